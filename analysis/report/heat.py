"""The heat map: layers by module types, as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from lowrank_ldu.analysis.report.places import places
from lowrank_ldu.analysis.report.scope import headline_matrices

if TYPE_CHECKING:
    from lowrank_ldu.analysis.run import Analysis


@dataclass(frozen=True)
class HeatCell:
    """One module type in one layer.

    Attributes
    ----------
    error, svd_error : float
        Medians over its matrices.
    matrices : int
        How many they are: more than one where a layer has several experts, say.
    worst : str
        Name of the one with the largest error.
    """

    error: float
    svd_error: float
    matrices: int
    worst: str


@dataclass(frozen=True)
class HeatMap:
    """Errors of the first pivoting at the headline rank.

    Attributes
    ----------
    modules : list of str
        In the order of the checkpoint.
    layers : list of int
        Ascending.
    cells : dict of tuple of (str, int) to HeatCell
        There is none where a layer has no such module.
    apart : dict of str to HeatCell
        By name, the matrices outside layers.
    """

    modules: list[str]
    layers: list[int]
    cells: dict[tuple[str, int], HeatCell]
    apart: dict[str, HeatCell]


def heat_map(analysis: Analysis) -> HeatMap:
    """Arrange the matrices that the headline rank is low for by what their names say (`places`)."""
    chosen = headline_matrices(analysis)
    found = places(tensor.name for tensor, _ in chosen)
    errors: dict[tuple[str, int | None], dict[str, tuple[float, float]]] = {}
    for tensor, matrix in chosen:
        figures = matrix.at("ldu", analysis.headline_rank, analysis.options.pivoting[0]).diagnostics
        place = found[tensor.name]
        at_place = errors.setdefault((place.module, place.layer), {})
        at_place[tensor.name] = (figures.frobenius_error, figures.svd_frobenius_error)
    cells: dict[tuple[str, int], HeatCell] = {}
    apart: dict[str, HeatCell] = {}
    for (module, layer), named in errors.items():
        if layer is None:
            apart |= {name: _cell({name: pair}) for name, pair in named.items()}
        else:
            cells[module, layer] = _cell(named)
    return HeatMap(
        modules=list(dict.fromkeys(module for module, _ in cells)),
        layers=sorted({layer for _, layer in cells}),
        cells=cells,
        apart=apart,
    )


def _cell(named: dict[str, tuple[float, float]]) -> HeatCell:
    return HeatCell(
        error=median(error for error, _ in named.values()),
        svd_error=median(least for _, least in named.values()),
        matrices=len(named),
        worst=max(named, key=lambda name: named[name][0]),
    )
