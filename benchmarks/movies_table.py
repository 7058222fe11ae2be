"""Print the runs of movies.py as the tables of docs/measurements.md."""

from statistics import mean, stdev


def print_tables(methods, results):
    print("| trained part | numbers | adapter's files, kB | rate | validation | test | seeds |")
    print("|---|---|---|---|---|---|---|")
    heads = [row for row in results.rows if row["method"] == "head"]
    if heads:
        print(_line("head alone", heads, "-"))
    for method in methods:
        rates = [rate for rate in method.rates if results.find(method.name, rate, 0)]
        if rates:
            best = max(rates, key=lambda rate: results.find(method.name, rate, 0)["validation"])
            rows = [row for row in results.rows if (row["method"], row["rate"]) == (method.name, best)]
            print(_line(method.what, rows, f"{best:g}"))
    print("\n| trained part | validation accuracy with seed 0 at each rate |\n|---|---|")
    for method in methods:
        tried = [row for rate in sorted(method.rates) if (row := results.find(method.name, rate, 0))]
        if tried:
            found = ", ".join(f"{row['rate']:g}: {row['validation']:.1f}" for row in tried)
            print(f"| {method.what} | {found} |")


def _line(what, rows, rate):
    numbers, size = rows[0]["numbers"], rows[0]["file_bytes"]
    figures = []
    for name in ("validation", "test"):
        values = [row[name] for row in rows]
        spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
        figures.append(f"{mean(values):.1f}{spread}")
    return f"| {what} | {numbers:,} | {size / 1000:.1f} | {rate} | {' | '.join(figures)} | {len(rows)} |"
