"""Hold the results of a comparison: frames, plots, files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.comparison.pairs import PairResult, Prefixes
from lowrank_ldu.analysis.framed import Framed
from lowrank_ldu.analysis.options import CompareOptions  # noqa: TC001  # documents are decoded by the annotations
from lowrank_ldu.environment import Environment  # noqa: TC001  # likewise
from lowrank_ldu.files import whole_folder
from lowrank_ldu.validation import check_flag, check_path

if TYPE_CHECKING:
    import os

    import pandas as pd
    from matplotlib.axes import Axes

    from lowrank_ldu.analysis.comparison.matrix import MatrixComparison


@dataclass(frozen=True)
class CheckpointComparison(Framed):
    """Results of a comparison.

    Attributes
    ----------
    base, tuned : str
        The paths that were opened, or what was compared in memory.
    options : CompareOptions
    environment : Environment
    seconds : float
        Wall-clock time.
    results : list of PairResult
        Every name of either checkpoint, in the order of the base, then of the tuned one.
    prefixes : Prefixes
        What names of one side have before those of the other.
    updates : bool
        Whether the tuned side is an adapter, whose updates were measured as they are.
    tensors, figures : pandas.DataFrame
        The same as tables, new ones each time: a row for each name; for each changed matrix, method and rank.
        `lowrank_ldu.analysis.frame_columns` has their columns, which `save` writes too.
    """

    base: str
    tuned: str
    options: CompareOptions
    environment: Environment
    seconds: float
    results: list[PairResult]
    prefixes: Prefixes = field(default_factory=Prefixes)
    updates: bool = False

    @property
    def matrices(self) -> list[tuple[PairResult, MatrixComparison]]:
        """Changed matrices, each with its comparison."""
        return [(tensor, tensor.comparison) for tensor in self.results if tensor.comparison is not None]

    @property
    def computed_on(self) -> str:
        """What the matrices were computed on, as of `Analysis.computed_on`."""
        from lowrank_ldu.analysis.report.where import computed_on  # noqa: PLC0415

        return computed_on(self)

    @property
    def headline_rank(self) -> int:
        """Rank of the summaries.

        The largest one asked for that is below the full rank of some matrix.
        """
        return self.options.headline_rank(max(matrix.full_rank for _, matrix in self.matrices))

    @property
    def others(self) -> list[PairResult]:
        """Everything else, each with a reason."""
        return [tensor for tensor in self.results if tensor.comparison is None]

    @property
    def unchanged(self) -> list[PairResult]:
        """Matrices that are equal in every entry."""
        return [tensor for tensor in self.results if tensor.status == "unchanged"]

    @property
    def tensors(self) -> pd.DataFrame:
        """A row for each name of either checkpoint."""
        return self._frame("tensors")

    @property
    def figures(self) -> pd.DataFrame:
        """A row for each changed matrix, method and rank."""
        return self._frame("figures")

    def plot_overview(self, ax: Axes | None = None) -> Axes:
        """Draw a row of shares for each update, at the headline rank.

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
        from lowrank_ldu.analysis.comparison.on_axes import draw_overview  # noqa: PLC0415

        return draw_overview(self, ax)

    def plot_heat_map(self, ax: Axes | None = None) -> Axes:
        """Draw how far weights were moved by layer and module type.

        As `plot_overview`; ValueError where no name has a layer.
        """
        from lowrank_ldu.analysis.comparison.on_axes import draw_heat_map  # noqa: PLC0415

        return draw_heat_map(self, ax)

    def plot_shares(self, ax: Axes | None = None, *, logarithmic: bool = False) -> Axes:
        """Draw shares along the rank: median and band over the updates.

        As `plot_overview`; `logarithmic` is whether the axis of the shares is.
        """
        from lowrank_ldu.analysis.comparison.on_axes import draw_shares  # noqa: PLC0415

        return draw_shares(self, ax, logarithmic=logarithmic)

    def plot_trained_numbers(self, ax: Axes | None = None) -> Axes:
        """Draw shares along the trained numbers; parameters as of `plot_overview`.

        The numbers are divided by the m + n of LoRA of rank 1, so that matrices of every shape fit.
        """
        from lowrank_ldu.analysis.comparison.on_axes import draw_trained_numbers  # noqa: PLC0415

        return draw_trained_numbers(self, ax)

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the report into a folder, whole or not at all.

        Parameters
        ----------
        folder : str or os.PathLike
            Made if it is not there; the folder that it is in has to be. What is written is said at
            `lowrank_ldu.analysis.write_comparison`.
        overwrite : bool
            Replace files of the same names in it; others stay. Without it the folder has to be empty.

        Raises
        ------
        OutputError
            The folder is not empty, without `overwrite`, or cannot be written.
        """
        from lowrank_ldu.analysis.comparison.report import write_comparison  # noqa: PLC0415

        overwrite = check_flag(overwrite, "overwrite")
        with whole_folder(check_path(folder, "folder"), overwrite=overwrite) as made:
            write_comparison(self, made)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> CheckpointComparison:
        """Read a comparison that was saved.

        Parameters
        ----------
        folder : str or os.PathLike
            What `save` wrote, or its `compare.json`.

        Returns
        -------
        CheckpointComparison
            Equal to the one that was saved.

        Raises
        ------
        DocumentError
            There is no such document, it is damaged, or it is of another version.
        """
        from lowrank_ldu.analysis.comparison.reading import load_comparison  # noqa: PLC0415

        return load_comparison(folder)

    def __repr__(self) -> str:
        from lowrank_ldu.analysis.comparison.shown import comparison_text  # noqa: PLC0415

        return comparison_text(self)

    def _repr_html_(self) -> str:
        from lowrank_ldu.analysis.comparison.shown import comparison_html  # noqa: PLC0415

        return comparison_html(self)

    def _build(self, name: str) -> pd.DataFrame:
        from lowrank_ldu.analysis.comparison.frames import comparison_frame  # noqa: PLC0415  # pandas takes a while

        return comparison_frame(self, name)
