"""Keep a run's folder: configuration, manifest, log and result."""

from __future__ import annotations

import errno
import json
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from lowrank_ldu.errors import OutputError, RunDirectoryError
from lowrank_ldu.files import replace_file
from lowrank_ldu.finetuning.checkpoints import way_on
from lowrank_ldu.finetuning.configuration import differences
from lowrank_ldu.finetuning.extra import require
from lowrank_ldu.validation import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_CONFIG = "config.resolved.json"
_MANIFEST = "manifest.json"
_METRICS = "metrics.json"
_LOG = "log.jsonl"
_ADAPTER = "adapter"
_LOCK = ".lock"
# In the result: what is to be evaluated once, and was not yet.
NOT_EVALUATED = "not_evaluated"
_OF_RESULT = {"metric", "metrics", "greater_is_better", "reported", "numbers", "seconds", NOT_EVALUATED}
# Of a full disk, a quota, a largest size of files, a disk that can no longer be written to.
_NO_MORE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


class RunDirectory:
    """Hold one run's files.

    `config.resolved.json` is written first and `metrics.json` last: the run is finished when that is there.

    Parameters
    ----------
    path : pathlib.Path
        Need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.adapter = path / _ADAPTER
        self.log = path / _LOG

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in the folder.

        The lock ends with the process, however that ends.

        Raises
        ------
        RunDirectoryError
            Another process trains there.
        OutputError
            The folder cannot be made.
        """
        filelock = require("filelock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.path / _LOCK)
            lock.acquire(blocking=False)
        except filelock.Timeout as error:
            raise RunDirectoryError(
                f"{self.path}: another process trains here; accepted: its end, or another --out"
            ) from error
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror})") from error
        try:
            yield
        finally:
            lock.release()

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse a folder of another configuration, or of none.

        Parameters
        ----------
        config : mapping

        Raises
        ------
        RunDirectoryError
            The message names the keys that differ.
        """
        before = self._read(_CONFIG)
        if before is not None:
            self._refuse(differences(before, _as_json(config)), "was begun with another configuration")
        elif self.path.is_dir():
            # Hidden files are the lock, and what a process has begun to write that was killed at once.
            others = sorted(each.name for each in self.path.iterdir() if not each.name.startswith("."))
            if others:
                raise RunDirectoryError(
                    f"{self.path}: holds {others[0]}, and no run; accepted: a new or an empty folder, or a run's"
                )

    def begin(self, config: Mapping[str, Any], same: Mapping[str, Any], start: Mapping[str, Any]) -> None:
        """Write the configuration, and add a start to the manifest.

        Parameters
        ----------
        config : mapping
        same : mapping
            What has to be the same at every start: digests of the model and the data, rows in a step.
        start : mapping
            Of `describe_start`.

        Raises
        ------
        RunDirectoryError
            One of them is not.
        """
        manifest = self._read(_MANIFEST)
        if manifest is None:
            manifest = {"same": dict(same), "seed": config["seed"], "starts": []}
        self._refuse(differences(manifest["same"], same), "was begun with other data, models or processes")
        manifest["starts"].append(dict(start))
        if self._read(_CONFIG) is None:
            self._write(_CONFIG, config)
        self._write(_MANIFEST, manifest)
        self.checkpoints.mkdir(exist_ok=True)

    def finished(self) -> dict[str, Any] | None:
        """Return the result of a finished run, or None."""
        record = self._read(_METRICS)
        if record is not None and not record.keys() >= _OF_RESULT:
            raise RunDirectoryError(
                f"{self.path / _METRICS}: is no run's result; accepted: the folder without it, which is trained again"
            )
        return record

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result, the mark of completion."""
        self._write(_METRICS, result)

    def remove_checkpoints(self, *, failed: bool = False) -> None:
        """Remove the checkpoints of a run that is finished, or has failed for good."""
        if self.checkpoints.is_dir() and (failed or self.finished() is not None):
            with self.locked():
                shutil.rmtree(self.checkpoints)

    def keep_predictions(self, split: str, predictions: Any, labels: Any) -> None:
        """Write what the metrics of a split are computed from.

        Parameters
        ----------
        split : str
        predictions, labels : numpy.ndarray
            A row for each row of the split.
        """
        self._predictions(split).parent.mkdir(exist_ok=True)
        tensors = {"predictions": np.ascontiguousarray(predictions), "labels": np.ascontiguousarray(labels)}
        replace_file(self._predictions(split), save(tensors))

    def predictions(self, split: str) -> tuple[Any, Any] | None:
        """Return the predictions and the labels of a split, or None where there are none.

        Parameters
        ----------
        split : str

        Returns
        -------
        tuple of numpy.ndarray or None
        """
        file = self._predictions(split)
        if not file.is_file():
            return None
        try:
            tensors = load_file(file)
            return tensors["predictions"], tensors["labels"]
        except (OSError, SafetensorError, KeyError) as error:
            raise RunDirectoryError(f"{file}: cannot be read ({error}); accepted: what a run wrote") from error

    def _predictions(self, split: str) -> Path:
        return self.path / "predictions" / f"{split}.safetensors"

    def shorten_log(self, step: int) -> float:
        """Remove the lines of the log that come after a step.

        A resumed run writes them once more.

        Parameters
        ----------
        step : int

        Returns
        -------
        float
            Seconds of training up to that step.
        """
        lines = []
        if self.log.is_file():
            for line in self.log.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:  # the last one, of a process that was killed
                    continue
                if entry["step"] <= step:
                    lines.append(entry)
        replace_file(self.log, "".join(f"{json.dumps(entry)}\n" for entry in lines).encode())
        return max((float(entry["seconds"]) for entry in lines), default=0.0)

    @contextmanager
    def written(self) -> Iterator[None]:
        """Say of a disk that takes no more that the run can go on.

        Raises
        ------
        OutputError
            In place of what the system says.
        """
        try:
            yield
        except OSError as error:
            if error.errno not in _NO_MORE:
                raise
            raise OutputError(
                f"{self.path}: cannot be written ({error.strerror}); {way_on(self.checkpoints)}"
            ) from error

    def _refuse(self, found: list[str], what: str) -> None:
        if found:
            raise RunDirectoryError(f"{self.path}: {what} ({'; '.join(found)}); accepted: the same, or another --out")

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunDirectoryError(f"{self.path / name}: cannot be read ({error})") from error
        if not isinstance(content, dict):
            raise RunDirectoryError(f"{self.path / name}: holds {shown(content)}; accepted: a table")
        return content

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        replace_file(self.path / name, f"{json.dumps(content, indent=2)}\n".encode())


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as it comes back from its file."""
    content: dict[str, Any] = json.loads(json.dumps(config))
    return content
