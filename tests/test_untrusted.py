"""Files that may be damaged: JSON that says one thing, ranges that are there, holes."""

import os
import subprocess
import sys

import pytest

from lowrank_ldu import untrusted
from lowrank_ldu.untrusted import (
    CONFIGURATION,
    LISTING,
    Limit,
    ShortFileError,
    check_regular,
    range_parts,
    read_exactly,
    read_json,
    read_range,
    strict_json,
)

SMALL = Limit(1000, 100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is there twice"),
        (b"[NaN]", "NaN is no finite number"),
        (b"[-Infinity]", "-Infinity is no finite number"),
        (b"[1e999]", "1e999 is no finite number"),
        (b'["\\ud800"]', "surrogates not allowed"),
        (b'{"\\uDFFF": 1}', "surrogates not allowed"),
        (b'["\xff"]', "can't decode byte 0xff"),
        (b'["\xed\xa0\x80"]', "can't decode byte 0xed"),
        ('["a"]'.encode("utf-16"), "can't decode byte"),
        (b" " * 1001, "larger than 1000 bytes"),
        (b"[" + b"1," * 200 + b"1]", "more than 100 values"),
        (b"{} {}", "Extra data"),
        (b"", "Expecting value"),
    ],
)
def test_what_is_no_json_that_says_one_thing(text, message):
    with pytest.raises(ValueError, match=message):
        strict_json(text, SMALL)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000])
@pytest.mark.parametrize("lenient", [False, True])
def test_objects_that_are_too_deep(text, lenient):
    with pytest.raises(ValueError, match="too deep"):
        strict_json(text, CONFIGURATION, lenient=lenient)


@pytest.mark.parametrize(
    ("text", "value"),
    [(b'\xef\xbb\xbf{"a": 1}', {"a": 1}), (b'["\\ud83d\\ude00", "\\\\ud800"]', ["\N{GRINNING FACE}", r"\ud800"])],
)
def test_what_is_json(text, value):
    assert strict_json(text, SMALL) == value


def test_what_transformers_takes(tmp_path):
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, Infinity], "dtype": 1, "dtype": 2}')
    assert read_json(tmp_path / "config.json", SMALL, lenient=True) == {
        "time_step_limit": [0, float("inf")],
        "dtype": 2,
    }


WORST = """
import resource, sys
from lowrank_ldu import untrusted
limit = getattr(untrusted, sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
part = sys.argv[2].encode()
text = b"[" + part * min(limit.size // len(part) - 1, limit.values // sum(map(part.count, (b",", b"[", b"{"))) - 1)
untrusted.strict_json(text + b"0]", limit)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 2**10)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs the resource module")
@pytest.mark.parametrize("name", ["CONFIGURATION", "LISTING"])
@pytest.mark.parametrize("part", ["[],", "{},", '{"":0},', '"ab",', '"' + "\N{GRINNING FACE}" * 15 + '",'])
def test_memory_of_the_worst_json(name, part):
    done = subprocess.run(
        [sys.executable, "-P", "-c", WORST, name, part], capture_output=True, text=True, check=True
    )  # fmt: skip
    assert int(done.stdout) < (300 if name == "CONFIGURATION" else 900)


def test_the_index_of_half_a_million_tensors():
    entries = ",".join(
        f'"model.layers.{number}.mlp.experts.gate_up_proj.weight": "model-00001-of-00999.safetensors"'
        for number in range(500_000)
    )
    assert len(strict_json(f'{{"weight_map": {{{entries}}}}}'.encode(), LISTING)["weight_map"]) == 500_000


def test_ranges(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(range(100)))
    assert read_range(path, 10, 90) == bytes(range(10, 100))
    assert b"".join(range_parts(path, 10, 20)) == bytes(range(10, 30))
    for start, left in [(20, 80), (99, 1), (100, 0), (200, 0)]:
        with pytest.raises(ShortFileError, match=f"has 90 bytes, of which {left} are left"):
            read_range(path, start, 90)
        with pytest.raises(ShortFileError, match=f"has 90 bytes, of which {left} are left"):
            list(range_parts(path, start, 90))
    with path.open("rb") as file, pytest.raises(ShortFileError, match="of which 100 are left"):
        read_exactly(file, 2**62)


@pytest.fixture
def sparse(tmp_path, monkeypatch):
    """A file of which the last quarter was written, and a limit that it is above."""
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.seek(3 * 2**20)
        file.write(b"1" * 2**20)
    monkeypatch.setattr(untrusted, "_SPARSE_FROM", 2**16)
    return path


@pytest.mark.skipif(not hasattr(os, "SEEK_DATA"), reason="holes cannot be told")
def test_holes(sparse):
    with pytest.raises(ValueError, match="mostly holes"):
        check_regular(sparse)
    with pytest.raises(ValueError, match="mostly holes"):
        read_range(sparse, 0, 2**20)
    assert read_range(sparse, 3 * 2**20, 2**20) == b"1" * 2**20
    with sparse.open("r+b") as file:
        file.write(b"1" * 2**20)
    check_regular(sparse)


@pytest.mark.parametrize("error", [22, 95])
def test_file_systems_that_do_not_tell_holes(sparse, monkeypatch, error):
    """Of FUSE, say: a file may be whole and take no blocks."""

    lseek = os.lseek

    def unknown(descriptor, place, whence):
        if whence in {os.SEEK_DATA, os.SEEK_HOLE}:
            raise OSError(error, os.strerror(error))
        return lseek(descriptor, place, whence)

    monkeypatch.setattr(os, "lseek", unknown)
    check_regular(sparse)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match="is no regular file"):
            check_regular(path)
    with untrusted.open_regular(tmp_path / "pipe") as file:
        assert not file.read()
