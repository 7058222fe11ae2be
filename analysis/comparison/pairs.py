"""Pair the tensors of two checkpoints by name."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from lowrank_ldu.analysis.comparison.matrix import MatrixComparison  # noqa: TC001  # journals are decoded by it
from lowrank_ldu.analysis.comparison.updates import (
    in_shape_of_weights,
    matrix_names,
    named_by,
    owner,
    parts_of_updates,
    updated_name,
)
from lowrank_ldu.analysis.selection import (
    dtype_in_words,
    ignored_dtype,
    ignored_reason,
    name_reason,
    storage_reason,
)
from lowrank_ldu.checkpoints.formats.lora_folder import adapted_name
from lowrank_ldu.checkpoints.reader import SAME_TENSOR

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from lowrank_ldu.analysis.options import CompareOptions
    from lowrank_ldu.checkpoints import TensorInfo
    from lowrank_ldu.checkpoints.weights import WeightsReader

Status = Literal["compared", "unchanged", "only in the base", "only in the tuned checkpoint", "not compared"]


@dataclass(frozen=True)
class PairResult:
    """Hold the result for one name.

    Attributes
    ----------
    name : str
        As the base has it, or the tuned checkpoint where the base lacks it.
    status : str
        "compared", "unchanged" (a matrix that is equal in every entry), "only in the base", "only in the tuned
        checkpoint", or "not compared".
    base_shape, tuned_shape : tuple of int, or None
        As stored; None where there is no such tensor.
    base_dtype, tuned_dtype : str
        As stored, and what it was dequantized to; for what is not a tensor, what it is; empty where there is nothing.
    reason : str or None
        Why there is no comparison; or how the base differs from the one that an adapter was trained on, if that was
        accepted.
    comparison : MatrixComparison or None
        Only of what was compared.
    device : str or None
        That computed it: that of the comparison, or "cpu" where that cannot hold it. None if it was not compared.
    """

    name: str
    status: Status
    base_shape: tuple[int, ...] | None
    tuned_shape: tuple[int, ...] | None
    base_dtype: str
    tuned_dtype: str
    reason: str | None = None
    comparison: MatrixComparison | None = None
    device: str | None = None

    def __repr__(self) -> str:
        return f"PairResult {self.name!r}: {self.status}, {self.comparison or self.reason}"


@dataclass(frozen=True)
class Pair:
    """Hold one name of two checkpoints.

    A side that lacks it has None, and `base_is` or `tuned_is` where it is there but is not a plain tensor. The tuned
    side of a part is the update of the whole matrix, with the part's shape. `unmeasured` is what an adapter has of the
    weight, or of its module, that is no update which can be measured. `order_is_unknown` says that one side does not
    tell whether it is stored as the other one, and `shape_is_unknown` that the tuned side has an update of a weight
    that is not there.
    """

    name: str
    base: TensorInfo | None
    tuned: TensorInfo | None
    base_is: str | None
    tuned_is: str | None
    is_part: bool = False
    unmeasured: str | None = None
    order_is_unknown: bool = False
    shape_is_unknown: bool = False

    def result(
        self, status: Status, reason: str | None = None, comparison: MatrixComparison | None = None
    ) -> PairResult:
        """Return the result for this name."""
        return PairResult(
            self.name,
            status,
            self.base.shape if self.base else None,
            self.tuned.shape if self.tuned and not self.shape_is_unknown else None,
            dtype_in_words(self.base) if self.base else ignored_dtype(self.base_is or ""),
            dtype_in_words(self.tuned) if self.tuned else ignored_dtype(self.tuned_is or ""),
            reason,
            comparison,
        )


@dataclass(frozen=True)
class Prefixes:
    """Hold what names of one side have before those of the other.

    One of them at most is not empty.

    Attributes
    ----------
    base, tuned : str
        As ``"bert."``.
    """

    base: str = ""
    tuned: str = ""


def pair_up(base: WeightsReader, tuned: WeightsReader) -> tuple[list[Pair], Prefixes]:
    """Pair every name of either checkpoint, and say what prefix was left out.

    Names of the base come first, in its order. A wrapper around a model puts a prefix before every name: where more
    names differ by one than are equal, it is left out. Updates of an adapter are called as modules, and are those of
    their weights; one of a matrix that the base has in parts is taken apart likewise.
    """
    of_base = {info.name: info for info in base.tensors}
    names, weights = set(of_base), {info.name: info.name for info in tuned.tensors}
    others: dict[str, str] = {}
    if tuned.holds_updates:
        names = matrix_names(base)
        weights = {name: updated_name(name, names) for name in weights}
        others = dict(named_by(tuned))
    # An adapter's other tensors are of the same model, and tell the prefix too.
    known = {*weights.values(), *(name if name in names else f"{name}.weight" for name in others)}
    prefixes = _prefixes(names, known)
    renamed = _without_prefix(names, set(weights.values()), prefixes)
    of_tuned = {renamed.get(weights[info.name], weights[info.name]): info for info in tuned.tensors}
    parts: dict[str, TensorInfo] = {}
    if tuned.updates is not None:
        of_tuned = in_shape_of_weights(base, of_tuned)
    if tuned.holds_updates:
        parts = parts_of_updates(base, of_tuned)
        for whole in {part.part_of for part in parts.values()}:
            del of_tuned[whole]
        of_tuned |= parts
        others |= {adapted_name(info.name): info.name for name, info in of_tuned.items() if name not in of_base}
    unmeasured = {prefixes.base + name.removeprefix(prefixes.tuned): stored for name, stored in others.items()}
    listed = dict.fromkeys([*of_base, *of_tuned, *base.ignored, *tuned.ignored])
    pairs = [
        Pair(
            name,
            of_base.get(name),
            of_tuned.get(name),
            base.ignored.get(name),
            tuned.ignored.get(name),
            name in parts,
            next((unmeasured[each] for each in owner(name) if each in unmeasured), None),
            _order_is_unknown(of_base.get(name), of_tuned.get(name), base, tuned),
            tuned.updates is not None and name in of_tuned and of_tuned[name].shape == (),
        )
        for name in listed
    ]
    return pairs, prefixes


def _order_is_unknown(
    info: TensorInfo | None, other: TensorInfo | None, base: WeightsReader, tuned: WeightsReader
) -> bool:
    if info is None or other is None or (info.order == other.order and not tuned.holds_updates):
        return False
    return info.name in base.undecided or other.name in tuned.undecided


def _prefixes(base: Collection[str], tuned: Collection[str]) -> Prefixes:
    """Return the prefix by which more names differ than are equal."""
    alone_in_base, alone_in_tuned = set(base) - set(tuned), set(tuned) - set(base)
    found: Counter[Prefixes] = Counter()
    found.update(Prefixes(tuned=prefix) for prefix in _beginnings(alone_in_tuned, alone_in_base))
    found.update(Prefixes(base=prefix) for prefix in _beginnings(alone_in_base, alone_in_tuned))
    # Of equally frequent ones the shortest, if the others go on from it: of two models in one file none is meant.
    order = {each: (-found[each], len(each.base + each.tuned), each.base, each.tuned) for each in found}
    best = min(found, key=order.__getitem__, default=Prefixes())
    alike = [each for each in found if found[each] == found[best]]
    if not all(each.base.startswith(best.base) and each.tuned.startswith(best.tuned) for each in alike):
        return Prefixes()
    return best if found[best] > len(set(base) & set(tuned)) else Prefixes()


def _beginnings(names: Collection[str], others: Collection[str]) -> Iterator[str]:
    """Yield what stands before another name, for each dot in each name that one stands behind."""
    for name in names:
        place = name.find(".")
        while place >= 0:
            if name[place + 1 :] in others:
                yield name[: place + 1]
            place = name.find(".", place + 1)


def _without_prefix(base: Collection[str], tuned: Collection[str], prefixes: Prefixes) -> dict[str, str]:
    """Return the base's name of each tuned one that differs by the prefix."""
    renamed = {}
    for name in set(tuned) - set(base):
        other = prefixes.base + name.removeprefix(prefixes.tuned)
        if other != name and other in base and other not in tuned:
            renamed[name] = other
    return renamed


def leave_out(pairs: list[Pair], options: CompareOptions, *, updates: bool = False) -> dict[str, PairResult]:
    """Return results for pairs that cannot be compared, by name.

    With `updates` the tuned side has those of an adapter, which leaves other weights as they are.
    """
    results: dict[str, PairResult] = {}
    # An adapter of another model says nothing of this one.
    fits = updates and any(pair.base is not None and pair.tuned is not None for pair in pairs)
    for pair in pairs:
        unwanted = name_reason(pair.name, options)
        if unwanted is not None:
            results[pair.name] = pair.result("not compared", unwanted)
        elif pair.base is not None and pair.tuned is not None:
            reason = _mismatch(pair.base, pair.tuned)
            if reason is None and pair.order_is_unknown:
                reason = "one side lacks the h.N.mlp.c_fc.weight that tells whether this is stored as (in, out)"
            if reason is not None:
                results[pair.name] = pair.result("not compared", reason)
        elif pair.base is not None and pair.unmeasured is not None:
            results[pair.name] = pair.result(
                "not compared", f"the adapter has {pair.unmeasured!r}, which is not measured"
            )
        elif fits and pair.base is not None and pair.tuned_is is None:
            results[pair.name] = pair.result("unchanged", "the adapter does not change it")
        else:
            results[pair.name] = _one_sided(pair, pairs)
    return results


def _mismatch(base: TensorInfo, tuned: TensorInfo) -> str | None:
    shapes = [tuple(info.shape[axis] for axis in info.order) if info.order else info.shape for info in (base, tuned)]
    if shapes[0] != shapes[1]:
        before, after = ("x".join(map(str, shape)) or "scalar" for shape in shapes)
        return f"its shape is {before} in the base and {after} in the tuned checkpoint"
    if base.reason == tuned.reason and base.reason.startswith(SAME_TENSOR):
        return base.reason
    reason = _own_reason(base)
    if reason is not None:
        return reason
    reason = _own_reason(tuned)
    return None if reason is None else f"in the tuned checkpoint: {reason}"


def _own_reason(info: TensorInfo) -> str | None:
    """Return why a tensor is no matrix; that it is tied on one side alone is no reason, since the other one differs."""
    return storage_reason(replace(info, reason="") if info.reason.startswith(SAME_TENSOR) else info)


def _one_sided(pair: Pair, pairs: list[Pair]) -> PairResult:
    if pair.base is None and pair.tuned is None:
        return pair.result("not compared", ignored_reason(pair.base_is or pair.tuned_is or ""))
    if pair.base is None:
        if pair.base_is is not None:
            return pair.result("not compared", f"it is not a plain tensor ({pair.base_is}) in the base")
        others = [other.name for other in pairs if other.base and not other.tuned]
        return pair.result("only in the tuned checkpoint", f"the base has no such name{_hint(pair.name, others)}")
    if pair.tuned_is is not None:
        return pair.result("not compared", f"it is not a plain tensor ({pair.tuned_is}) in the tuned checkpoint")
    others = [other.name for other in pairs if other.tuned and not other.base]
    return pair.result("only in the base", f"the tuned checkpoint has no such name{_hint(pair.name, others)}")


def _hint(name: str, others: list[str]) -> str:
    """Name the tensor that differs by a prefix alone.

    A wrapper around a model puts one before every name.
    """
    same = next((other for other in others if other.endswith(f".{name}") or name.endswith(f".{other}")), None)
    return "" if same is None else f"; it has {same!r}"
