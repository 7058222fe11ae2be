for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
    const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const key = (row) => row.cells[column].dataset.value;
    const number = (text) => (text === "" ? NaN : text === "inf" ? Infinity : Number(text));
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      if (heading.classList.contains("text")) return sign * key(a).localeCompare(key(b));
      const [x, y] = [number(key(a)), number(key(b))];
      return Number.isNaN(x) - Number.isNaN(y) || sign * (x > y ? 1 : x < y ? -1 : 0);
    });
    table.tBodies[0].append(...rows);
  }));
}
