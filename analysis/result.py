"""Hold the results of a survey: frames, figures, files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.engine.survey import TensorResult  # noqa: TC001  # documents are decoded by the annotations
from lowrank_ldu.analysis.framed import Framed
from lowrank_ldu.analysis.options import SurveyOptions  # noqa: TC001  # likewise
from lowrank_ldu.environment import Environment  # noqa: TC001  # likewise

if TYPE_CHECKING:
    import os

    import pandas as pd
    from matplotlib.axes import Axes

    from lowrank_ldu.analysis.measures.matrix import MatrixAnalysis
    from lowrank_ldu.analysis.report.plots import Factor
    from lowrank_ldu.decomposition import Pivoting


@dataclass(frozen=True)
class Analysis(Framed):
    """Results of a survey.

    Attributes
    ----------
    checkpoint : str
        The path that was opened, or what was analyzed in memory.
    options : SurveyOptions
    environment : Environment
    seconds : float
        Wall-clock time of the survey, of all its parts if it was continued.
    results : list of TensorResult
        Every tensor in the order of the checkpoint, then what is not a plain tensor.
    adapter_numbers : int or None
        If the matrices are the updates of an adapter, the numbers that it stores for them; None for weights.
    tensors, figures, curves, targets : pandas.DataFrame
        The same as tables, new ones each time: a row for each tensor; for each tensor, method and rank; for each point
        of a curve along the rank; for each tensor, method and target error. `lowrank_ldu.analysis.frame_columns` has
        their columns, which `save` writes too.
    """

    checkpoint: str
    options: SurveyOptions
    environment: Environment
    seconds: float
    results: list[TensorResult]
    adapter_numbers: int | None = None

    @property
    def matrices(self) -> list[tuple[TensorResult, MatrixAnalysis]]:
        """Analyzed tensors, each with its analysis."""
        return [(tensor, tensor.analysis) for tensor in self.results if tensor.analysis is not None]

    @property
    def has_times(self) -> bool:
        """Whether methods were timed at the shape of some matrix."""
        return any(matrix.svd_seconds is not None for _, matrix in self.matrices)

    @property
    def computed_on(self) -> str:
        """What the matrices were computed on, in words, such as "cuda:0 NVIDIA H100 80GB HBM3"; "cpu" by default."""
        from lowrank_ldu.analysis.report.where import computed_on  # noqa: PLC0415

        return computed_on(self)

    @property
    def headline_rank(self) -> int:
        """Rank of the summaries.

        The largest one asked for that is below the full rank of some matrix.
        """
        return self.options.headline_rank(max((min(matrix.m, matrix.n) for _, matrix in self.matrices), default=0))

    @property
    def skipped(self) -> list[TensorResult]:
        """Tensors that were not analyzed."""
        return [tensor for tensor in self.results if tensor.analysis is None]

    @property
    def tensors(self) -> pd.DataFrame:
        """A row for each tensor, the skipped ones too."""
        return self._frame("tensors")

    @property
    def figures(self) -> pd.DataFrame:
        """A row for each matrix, method and rank."""
        return self._frame("figures")

    @property
    def curves(self) -> pd.DataFrame:
        """A row for each matrix, method and sampled rank."""
        return self._frame("curves")

    @property
    def targets(self) -> pd.DataFrame:
        """A row for each matrix, method and target error, with the smallest rank that reaches it."""
        return self._frame("targets")

    def plot_overview(self, ax: Axes | None = None) -> Axes:
        """Draw a row of errors for each matrix, at the headline rank.

        This and the other plots are those of the report.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; a new figure of `matplotlib.pyplot` if not given.

        Returns
        -------
        matplotlib.axes.Axes
            `ax`, or that of the new figure.

        Raises
        ------
        TypeError
            `ax` is neither.
        """
        from lowrank_ldu.analysis.report.on_axes import draw_overview  # noqa: PLC0415

        return draw_overview(self, ax)

    def plot_heat_map(self, ax: Axes | None = None) -> Axes:
        """Draw the errors of LDU by layer and module type.

        As `plot_overview`; ValueError where no name has a layer. Of the first pivoting, at the headline rank.
        """
        from lowrank_ldu.analysis.report.on_axes import draw_heat_map  # noqa: PLC0415

        return draw_heat_map(self, ax)

    def plot_errors(self, ax: Axes | None = None, *, pivoting: Pivoting | None = None) -> Axes:
        """Draw errors along the rank: median and band over the matrices.

        As `plot_overview`; `pivoting` is one of the analysis, the first if not given, and anything else a ValueError.
        """
        from lowrank_ldu.analysis.report.on_axes import draw_errors  # noqa: PLC0415

        return draw_errors(self, ax, pivoting)

    def plot_pivots(self, ax: Axes | None = None, *, pivoting: Pivoting | None = None) -> Axes:
        """Draw the pivots of each matrix; parameters as of `plot_errors`."""
        from lowrank_ldu.analysis.report.on_axes import draw_pivots  # noqa: PLC0415

        return draw_pivots(self, ax, pivoting)

    def plot_conditioning(self, ax: Axes | None = None, *, factor: Factor = "gram") -> Axes:
        """Draw condition numbers by rank and pivoting.

        As `plot_overview`; `factor` is "left", "right" or "gram", the metric of the diagonal.
        """
        from lowrank_ldu.analysis.report.on_axes import draw_conditioning  # noqa: PLC0415

        return draw_conditioning(self, ax, factor)

    def plot_times(self, ax: Axes | None = None) -> Axes:
        """Draw the milliseconds of each method; parameters as of `plot_overview`."""
        from lowrank_ldu.analysis.report.on_axes import draw_times  # noqa: PLC0415

        return draw_times(self, ax)

    def plot_speeds(self, ax: Axes | None = None) -> Axes:
        """Draw the time of the SVD over that of each method; parameters as of `plot_overview`."""
        from lowrank_ldu.analysis.report.on_axes import draw_speeds  # noqa: PLC0415

        return draw_speeds(self, ax)

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the report into a folder, whole or not at all.

        Parameters
        ----------
        folder : str or os.PathLike
            Made if it is not there; the folder that it is in has to be. What is written is said at
            `lowrank_ldu.analysis.write_report`.
        overwrite : bool
            Replace files of the same names in it; others stay. Without it the folder has to be empty.

        Raises
        ------
        OutputError
            The folder is not empty, without `overwrite`, or cannot be written.
        """
        from lowrank_ldu.analysis.report.page import save_report  # noqa: PLC0415

        save_report(self, folder, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Analysis:
        """Read an analysis that was saved.

        Parameters
        ----------
        folder : str or os.PathLike
            What `save` wrote, or its `analysis.json`.

        Returns
        -------
        Analysis
            Equal to the one that was saved.

        Raises
        ------
        DocumentError
            There is no such document, it is damaged, or it is of another version.
        """
        from lowrank_ldu.analysis.reading import load_analysis  # noqa: PLC0415

        return load_analysis(folder)

    def __repr__(self) -> str:
        from lowrank_ldu.analysis.report.summary import analysis_text  # noqa: PLC0415

        return analysis_text(self)

    def _repr_html_(self) -> str:
        from lowrank_ldu.analysis.report.summary import analysis_html  # noqa: PLC0415

        return analysis_html(self)

    def _build(self, name: str) -> pd.DataFrame:
        from lowrank_ldu.analysis.report.frames import analysis_frame  # noqa: PLC0415  # pandas takes a while

        return analysis_frame(self, name)
