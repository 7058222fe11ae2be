"""Time of LDU against exact SVD and quick PiSSA."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank_ldu.analysis.report.plot_panel import Panel
from lowrank_ldu.analysis.report.yardstick import svd_name

if TYPE_CHECKING:
    from lowrank_ldu.analysis.run import Analysis


def time_panels(analysis: Analysis) -> list[Panel]:
    """Return two panels, a point for each matrix: milliseconds, and the factor by which exact SVD is slower."""
    rank = analysis.headline_rank
    matrices = [matrix for _, matrix in analysis.matrices]
    entries = [matrix.size for matrix in matrices]
    exact = [matrix.svd_seconds for matrix in matrices]
    name = svd_name(matrices)
    series = {"svd": (name, exact)}
    series["pissa"] = ("quick PiSSA", [matrix.at("pissa", rank).seconds for matrix in matrices])
    for pivoting in analysis.options.pivoting:
        series[pivoting] = (
            f"LDU {pivoting}", [matrix.at("ldu", rank, pivoting).seconds for matrix in matrices]
        )  # fmt: skip
    times = Panel("times", f"Time to factor, rank {rank}", "entries of the matrix (m n)", "time (ms)")
    speeds = Panel("speeds", f"Speed against {name}, rank {rank}", "entries of the matrix (m n)", "time of SVD / time")
    for method, (label, seconds) in series.items():
        times.scatter(entries, [1e3 * spent for spent in seconds], method, label)
        if method != "svd":
            speeds.scatter(entries, [svd / spent for svd, spent in zip(exact, seconds, strict=True)], method, label)
    speeds.axes.axhline(1.0, color="#666666", linewidth=1.2, linestyle=":", label=f"as fast as {name}")
    for panel in (times, speeds):
        panel.make_logarithmic(x=True, y=True)
        panel.add_legend()
    return [times, speeds]
