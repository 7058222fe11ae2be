"""Refuse pickles that would reserve memory for nothing.

Those of torch.save are looked at before torch reads them: none may take memory that its file does not hold.
"""

from __future__ import annotations

import pickle
import pickletools
import warnings
from typing import TYPE_CHECKING, Any

from lowrank_ldu.untrusted import open_regular

if TYPE_CHECKING:
    from pathlib import Path

_ZIP = b"PK\x03\x04"
# Before torch 1.6: a number, a version and the machine, each a pickle, and what was saved.
_LEGACY_PICKLES = 4
# Called with a size they reserve it. By their last names alone: a module may have had another one in Python 2.
_RESERVING = ("bytearray", "Tensor", "UntypedStorage", "TypedStorage")
# What torch does of each kind, where no code is to run; it refuses the others.
_CALLS, _PUTS, _GETS = {"REDUCE", "NEWOBJ"}, {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
_MARK = object()


def check_calls(path: Path) -> None:
    """Refuse a file whose pickle reserves memory by calls.

    Raises
    ------
    pickle.UnpicklingError
        It calls bytearray, or the class of a tensor or a storage; torch lets it, even where no code is to run.
    ValueError
        It is damaged.
    """
    with open_regular(path) as file:
        if file.read(len(_ZIP)) != _ZIP:
            file.seek(0)
            for _ in range(_LEGACY_PICKLES):
                _check(file)
                if not file.peek(1):  # type: ignore[attr-defined]  # a buffered reader's
                    break  # a pickle of something else, which torch refuses
            return
    import torch  # noqa: PLC0415

    # As torch finds it, of several members with one name. Its types are told in part.
    records: Any = torch._C.PyTorchFileReader(str(path))  # noqa: SLF001
    _check(records.get_record("data.pkl"))


def _check(content: Any) -> None:
    """Follow the globals on the stack of one pickle.

    What is in containers cannot be called any more.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    with warnings.catch_warnings():
        # Python's own module warns of text that is escaped wrongly.
        warnings.simplefilter("ignore", DeprecationWarning)
        operations = list(pickletools.genops(content))
    for opcode, argument, _ in operations:
        name = opcode.name
        if name in _CALLS:
            called = stack[-2] if len(stack) > 1 and isinstance(stack[-2], str) else ""
            if called.endswith(_RESERVING):
                raise pickle.UnpicklingError(f"reserves memory: calls GLOBAL {called.replace(' ', '.')}")
        if name in _PUTS:
            memo[argument] = stack[-1] if stack else None
            continue
        _pop(stack, opcode)
        if name in _GETS:
            stack.append(memo.get(argument))
        elif name == "GLOBAL":
            stack.append(argument)
        else:
            stack += [_MARK if each is pickletools.markobject else None for each in opcode.stack_after]


def _pop(stack: list[Any], opcode: pickletools.OpcodeInfo) -> None:
    before = opcode.stack_before
    if pickletools.markobject in before:
        while stack and stack.pop() is not _MARK:
            pass
        before = before[: before.index(pickletools.markobject)]
    del stack[max(len(stack) - len(before), 0) :]
