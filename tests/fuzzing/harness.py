"""Runs damaged inputs in a process of their own, and tells what came of them."""

import collections
import itertools
import os
import random
import resource
import select
import signal
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import torch
from formats import FORMATS
from mutations import mutate

# Reading one takes milliseconds. Compilers and page caches of a busy machine may take some seconds.
SECONDS = 20
# So often as long is waited for one that is given hardly any time, on a machine that is busy with others.
PATIENCE = 10
MEMORY = 2 * 2**30
# Folders of what is not the package itself.
_OTHERS = {"tests", ".venv", "site-packages"}


def attempt(name, seed, number):
    """Read one damaged input, and return what came of it in a word.

    Parameters
    ----------
    name : str
        Of a format.
    seed, number : int
        Which input.
    """
    form = FORMATS[name]
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _write(Path(place), _files(name, seed, number))
        return form.read(Path(place) / form.opened)


def run(names=None, seed=0, *, seconds=None, count=None, keep=None, tell=lambda _: None):
    """Read inputs of each format in turn, and return what was found.

    Parameters
    ----------
    names : sequence of str, optional
        Formats; all of them if not given.
    seed : int
    seconds : float, optional
        Until when.
    count : int, optional
        How many of each format.
    keep : path, optional
        Folder for the files of what was found.
    tell : callable
        Gets lines: findings as they come, and counts in the end.

    Returns
    -------
    dict of str to str
        What was found, by what it is (an exception and where it was raised, a signal, a time), with the first input.
    """
    names = list(names or FORMATS)
    end = time.monotonic() + seconds if seconds is not None else None
    outcomes = {name: collections.Counter() for name in names}
    findings: dict[str, str] = {}
    rest = ((name, number) for number in itertools.count() for name in names)
    if count is not None:
        rest = itertools.islice(rest, count * len(names))
    waiting = None
    while end is None or time.monotonic() < end:
        batch = ([waiting] if waiting else []) + list(itertools.islice(rest, 200))
        waiting = None
        if not batch:
            break
        for (name, number), outcome, what in _in_a_process(batch, seed):
            outcomes[name][outcome] += 1
            if outcome == "found" and what not in findings:
                findings[what] = f"--only {name!r} --seed {seed} --number {number}"
                tell(f"FOUND {what}: {findings[what]}")
                if keep is not None:
                    _write(Path(keep) / f"{name} {seed} {number}", _files(name, seed, number))
            if end is not None and time.monotonic() > end:
                break
    for name, counts in outcomes.items():
        tell(f"{name}: {', '.join(f'{value} {outcome}' for outcome, value in sorted(counts.items()))}")
    tell(f"{sum(counts.total() for counts in outcomes.values())} inputs, {len(findings)} findings")
    return findings


def _files(name, seed, number):
    files, _ = mutate(FORMATS[name].files, random.Random(f"{name} {seed} {number}"))  # noqa: S311
    return files


def _write(folder, files):
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def _in_a_process(batch, seed):
    """Yield the outcome of each input; a process that ends or hangs is the outcome of the one it was reading."""
    while batch:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _work(batch, seed, writer)
            os._exit(0)
        os.close(writer)
        done = 0
        with os.fdopen(reader, "rb", buffering=0) as lines:
            while True:
                line = _next_line(lines, child)
                if not line:
                    break
                outcome, _, what = line.decode().rstrip("\n").partition(" ")
                yield batch[done], outcome.replace("_", " "), what
                done += 1
            if done < len(batch):
                ended, status = os.waitpid(child, os.WNOHANG)
                if not ended and line is None:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    yield batch[done], "found", f"{batch[done][0]}: still reading after {SECONDS} s"
                else:
                    status = status if ended else os.waitpid(child, 0)[1]
                    yield batch[done], "found", f"{batch[done][0]}: ended with {os.waitstatus_to_exitcode(status)}"
                batch = batch[done + 1 :]
            else:
                os.waitpid(child, 0)
                return


def _next_line(lines, child):
    """What comes of an input, empty if its process has ended; None if it takes too long."""
    begun = _seconds_of(child)
    for _ in range(PATIENCE):
        ready, _, _ = select.select([lines], [], [], SECONDS)
        if ready:
            return lines.readline()
        if _seconds_of(child) - begun > SECONDS / 2:
            break
    return None


def _seconds_of(process):
    """The time that a process was given of a processor, which may be busy with others."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _work(batch, seed, writer):
    torch.set_num_threads(1)
    with Path("/proc/self/statm").open() as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    for name, number in batch:
        try:
            line = attempt(name, seed, number).replace(" ", "_")
        except BaseException as error:  # noqa: BLE001  # whatever it is
            line = f"found {name}: {_described(error)}"
        os.write(writer, line.encode("utf-8", "backslashreplace") + b"\n")


def _described(error):
    """An exception and the innermost place in the package that it went through: what tells one finding from another."""
    root = str(Path(__file__).parents[2])
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        frame for frame in frames if frame.filename.startswith(root) and not _OTHERS & set(Path(frame.filename).parts)
    ]
    place = (ours or frames)[-1]
    said = " ".join(str(error).split())[:120]
    return f"{type(error).__name__} in {os.path.relpath(place.filename, root)}:{place.lineno} ({said})"
