"""Find the fitted bases that adapters name by their digests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lowrank_ldu.adapters.input_files import checked_path
from lowrank_ldu.errors import AdapterError, FittingError
from lowrank_ldu.formatting import printable
from lowrank_ldu.nn.basis import FittedBasis, fitted_basis, use_basis

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowrank_ldu.adapters.stored_layer import AdapterFile


def given_basis(basis: object) -> FittedBasis:
    """Return a caller's basis, or the one of a caller's path.

    Layers know it from here on.

    Raises
    ------
    TypeError
        It is neither.
    AdapterError
        There is no such file, or it is no basis.
    """
    if not isinstance(basis, str | os.PathLike):
        if not all(hasattr(basis, name) for name in ("digest", "factors", "check")):
            raise TypeError(f"basis is a {type(basis).__name__}; accepted: a FittedBasis, or the path of its file")
        found = cast("FittedBasis", basis)
    else:
        try:
            found = _loaded(checked_path(basis, "basis"))
        except FittingError as error:
            raise AdapterError(str(error)) from error
    use_basis(found)
    return found


def find_basis(digest: str, named: str | None = None, folder: Path | None = None) -> FittedBasis:
    """Return the basis of a digest, which layers know from here on.

    It is looked up among the bases of this process, in the file that an adapter names, and in a file of that name in
    the adapter's folder and beside it.

    Parameters
    ----------
    digest : str
    named : str, optional
        Path of a file.
    folder : Path, optional
        Of the adapter.

    Raises
    ------
    AdapterError
        It is in none of them; the message has the digest.
    """
    known = fitted_basis(digest)
    if known is not None:
        return known
    seen = ""
    for path in _places(named, folder):
        try:
            basis = _loaded(path)
        except FittingError as error:
            seen += f" ({printable(str(error))})"
            continue
        if basis.digest == digest:
            use_basis(basis)
            return basis
        seen += f" ({printable(str(path))} is basis {basis.digest})"
    raise AdapterError(
        f"the adapter's factors are of the fitted basis {digest}, which is not known{seen}; accepted: its file, given "
        "as basis (--basis of export), named by basis_file, beside the adapter's folder, or loaded before with "
        "lowrank_ldu.nn.use_basis(lowrank_ldu.fitting.FittedBasis.load(path))"
    )


def find_bases_of(adapter: AdapterFile, basis: object = None) -> None:
    """Make the fitted bases of a stored adapter known to layers.

    Parameters
    ----------
    adapter : AdapterFile
    basis : FittedBasis or path, optional
        One of them, as the caller gave it.

    Raises
    ------
    TypeError, AdapterError
        As for `given_basis` and `find_basis`; or the adapter has no use for the basis that is given.
    """
    digests = {layer.record.options.basis_digest for layer in adapter.layers.values()} - {None}
    if basis is not None:
        given = given_basis(basis).digest
        if given not in digests:
            wanted = ", ".join(sorted(map(str, digests))) or "none"
            raise AdapterError(f"basis has digest {given}; accepted: what the adapter's factors are of, {wanted}")
    for digest in sorted(map(str, digests)):
        find_basis(digest, adapter.basis_file, adapter.path)


def _places(named: str | None, folder: Path | None) -> Iterator[Path]:
    if not named or "\0" in named:
        return
    own = Path(named)
    places = [own] if folder is None else [own, folder / own.name, folder.parent / own.name]
    for path in dict.fromkeys(places):
        # Path's method raises where no file can have such a name.
        if os.path.isfile(path):  # noqa: PTH113
            yield path


def _loaded(path: Path) -> FittedBasis:
    from lowrank_ldu.fitting import FittedBasis  # noqa: PLC0415  # few adapters need it

    return FittedBasis.load(path)
