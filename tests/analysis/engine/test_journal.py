"""The journal of a survey: what was there is there again, and nothing that belongs to something else."""

import dataclasses
import json
import math
import os
import zlib

import pytest
import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file
from weights import weight

from lowrank_ldu.analysis import SurveyOptions, analyze_checkpoint, lock_journal
from lowrank_ldu.analysis.engine import journal as journal_module
from lowrank_ldu.analysis.engine.journal import JOURNAL_FORMAT
from lowrank_ldu.errors import JournalError
from lowrank_ldu.untrusted import Limit

OPTIONS = SurveyOptions(ranks=(2, 4), threads=1)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.safetensors"
    state = {"nan": weight(9, 7), "inf": weight(8, 12, seed=1), "zero": torch.zeros(5, 6), "bias": weight(4)}
    save_file(state, path)
    return path


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "journal"


def analyze(checkpoint, journal, options=OPTIONS, *, resume=True):
    return analyze_checkpoint(checkpoint, options, journal=journal, resume=resume)


def same(one, other):
    """Equality of numbers in which nan is nan."""
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def test_every_number_comes_back(checkpoint, journal):
    first = analyze(checkpoint, journal)
    again = analyze(checkpoint, journal)
    assert same([dataclasses.asdict(result) for result in first.results], list(map(dataclasses.asdict, again.results)))
    assert again.seconds > first.seconds - 0.1
    assert [type(result.analysis) for result in first.results] == [type(result.analysis) for result in again.results]


def test_a_line_that_is_not_whole_is_done_again(checkpoint, journal):
    first = analyze(checkpoint, journal)
    content = journal.read_bytes()
    lines = content.splitlines(keepends=True)
    assert len(lines) == 4
    for keep in (len(content) - 1, len(content) - len(lines[-1]) // 2, len(lines[0]) // 2, 0):
        journal.write_bytes(content[:keep])
        again = analyze(checkpoint, journal)
        assert [result.name for result in again.results] == [result.name for result in first.results]
        assert [line.count(b"seconds") > 0 for line in journal.read_bytes().splitlines()] == [False, True, True, True]


def test_nothing_is_replaced_unasked(checkpoint, journal):
    analyze(checkpoint, journal)
    with pytest.raises(JournalError, match="was not finished; accepted: --resume, to continue it, or remove the file"):
        analyze(checkpoint, journal, resume=False)


def test_a_lock_is_held_until_the_outermost_is_left(checkpoint, journal):
    other = FileLock(f"{journal}.lock")
    with lock_journal(journal):
        analyze(checkpoint, journal)
        with pytest.raises(Timeout):
            other.acquire(blocking=False)
    other.acquire(blocking=False)
    other.release()


def test_changed_files_are_noticed(checkpoint, journal):
    analyze(checkpoint, journal)
    stat = checkpoint.stat()
    os.utime(checkpoint, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(JournalError, match=r"cannot be continued: .*model.safetensors has been changed since"):
        analyze(checkpoint, journal)


def test_another_configuration_is_noticed(checkpoint, journal):
    """It may say how weights are fused or quantized."""
    analyze(checkpoint, journal)
    (checkpoint.parent / "config.json").write_text('{"model_type": "phi3"}')
    with pytest.raises(JournalError, match=r"it is of other files, .*config.json among them"):
        analyze(checkpoint, journal)


def test_other_files_are_noticed(checkpoint, journal, tmp_path):
    analyze(checkpoint, journal)
    other = tmp_path / "other.safetensors"
    other.write_bytes(checkpoint.read_bytes())
    with pytest.raises(JournalError, match="it is of other files"):
        analyze(other, journal)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SurveyOptions(ranks=(2,), threads=1), r"ranks was \[2, 4\], and is \[2\]"),
        (SurveyOptions(ranks=(2, 4), seed=1, threads=1), "seed was 0, and is 1"),
        (SurveyOptions(ranks=(2, 4), pivoting=("rook",), threads=1), "pivoting was"),
    ],
)
def test_other_options_are_noticed(checkpoint, journal, options, message):
    analyze(checkpoint, journal)
    with pytest.raises(JournalError, match=message):
        analyze(checkpoint, journal, options)


def test_threads_may_differ(checkpoint, journal):
    analyze(checkpoint, journal)
    analyze(checkpoint, journal, SurveyOptions(ranks=(2, 4), threads=2))


def with_sum(line):
    """The line of someone who mended its checksum."""
    text = line.partition(',"crc32"')[0]
    return '%s,"crc32":"%08x"}\n' % (text, zlib.crc32(f"{text}}}".encode()))  # noqa: UP031


def test_other_versions_are_noticed(checkpoint, journal):
    analyze(checkpoint, journal)
    first, *rest = journal.read_text().splitlines(keepends=True)
    journal.write_text(with_sum(first.replace('"version":"', '"version":"0.0.')) + "".join(rest))
    with pytest.raises(JournalError, match=r"it is of version 0\.0\."):
        analyze(checkpoint, journal)


@pytest.mark.parametrize(
    ("line", "content", "message"),
    [
        (0, "{}", "is no journal of an analysis"),
        (0, "[]", "is no journal of an analysis"),
        (0, '{"format":"lowrank-ldu journal 2"}', "is no journal of this version"),
        (0, '{"format":"lowrank-ldu journal 3"}', "line 1 is damaged"),
        (0, '{"format":"lowrank-ldu journal' + "[" * 100_000, "line 1 is damaged"),
        (1, "[" * 100_000, "line 2 is damaged"),
        (1, "{}", "line 2 is damaged"),
        (2, "\x00\xff", "line 3 is damaged"),
        (2, '{"result":{"name":"a","shape":3,"analysis":null},"seconds":1}', "line 3 is damaged"),
    ],
)
def test_damage_is_named(checkpoint, journal, line, content, message):
    analyze(checkpoint, journal)
    lines = journal.read_text().splitlines()
    lines[line] = content
    journal.write_text("\n".join(lines) + "\n")
    with pytest.raises(JournalError, match=message):
        analyze(checkpoint, journal)


@pytest.mark.parametrize(("line", "field"), [(0, '"files":'), (1, '"dtype":'), (1, '"spectrum":')])
def test_fields_of_others_are_damage(checkpoint, journal, line, field):
    analyze(checkpoint, journal)
    whole = journal.read_text().splitlines(keepends=True)
    for other in (field.replace('":', '_":'), f'"other":1,{field}'):
        lines = [*whole]
        lines[line] = with_sum(lines[line].replace(field, other, 1))
        journal.write_text("".join(lines))
        with pytest.raises(JournalError, match=f"line {line + 1} is damaged"):
            analyze(checkpoint, journal)


def test_a_changed_number_is_noticed(checkpoint, journal):
    """It would still be a number."""
    analyze(checkpoint, journal)
    content = journal.read_bytes()
    digits = [place for place, byte in enumerate(content) if chr(byte) in "012345678"]
    for place in digits[:: len(digits) // 25]:
        journal.write_bytes(content[:place] + bytes([content[place] + 1]) + content[place + 1 :])
        with pytest.raises(JournalError):
            analyze(checkpoint, journal)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("content", ["notes", "notes\n", "{", '{"a": 1}\n', "\0" * 100, JOURNAL_FORMAT])
def test_what_is_no_journal_is_not_written_to(checkpoint, journal, content, resume):
    journal.write_text(content)
    with pytest.raises(JournalError, match="is no journal of an analysis, and stays as it is; accepted: another name"):
        analyze(checkpoint, journal, resume=resume)
    assert journal.read_text() == content
    journal.unlink()
    lock = journal.with_name(f"{journal.name}.lock")
    lock.write_text(content)
    with pytest.raises(JournalError, match="is no lock of a journal"):
        analyze(checkpoint, journal)
    assert lock.read_text() == content


@pytest.mark.parametrize("end", ["", "\n"])
def test_lines_have_a_limit(checkpoint, journal, monkeypatch, end):
    analyze(checkpoint, journal)
    monkeypatch.setattr(journal_module, "_LINE", Limit(100_000, 100_000))
    with journal.open("a") as file:
        file.write("1" * 200_000 + end)
    with pytest.raises(JournalError, match="line 5 is damaged"):
        analyze(checkpoint, journal)


def test_a_result_that_could_not_be_read_again_is_not_kept(checkpoint, journal, monkeypatch):
    analyze(checkpoint, journal)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.unlink()
    size = max(map(len, lines))
    monkeypatch.setattr(journal_module, "_LINE", Limit(size - 20, 10_000))
    for _ in range(2):
        assert len(analyze(checkpoint, journal).matrices) == 3
        assert len(journal.read_bytes().splitlines()) < 4


def test_two_results_of_one_tensor(checkpoint, journal):
    analyze(checkpoint, journal)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines, lines[1]]))
    with pytest.raises(JournalError, match="line 5 has a second result of 'inf'"):
        analyze(checkpoint, journal)


def test_a_result_of_no_tensor_of_the_checkpoint(checkpoint, journal):
    analyze(checkpoint, journal)
    *lines, last = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines) + with_sum(last.replace('"name":"', '"name":"other.')))
    with pytest.raises(JournalError, match=r"has a result of 'other\..*', which the checkpoint lacks"):
        analyze(checkpoint, journal)


def test_a_pipe_is_not_waited_for(checkpoint, journal):
    os.mkfifo(journal)
    with pytest.raises(JournalError, match="cannot be read"):
        analyze(checkpoint, journal)


def test_errors_are_tried_again(checkpoint, journal, monkeypatch):
    def scarce(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("lowrank_ldu.analysis.engine.survey.check_matrix", scarce)
        patch.setattr("lowrank_ldu.analysis.engine.survey.analyze_matrix", scarce)
        with pytest.raises((ValueError, MemoryError)):
            analyze(checkpoint, journal)
    assert len(analyze(checkpoint, journal).matrices) == 3


def test_where_it_cannot_be(checkpoint, tmp_path):
    with pytest.raises(JournalError, match="cannot be written"):
        analyze(checkpoint, tmp_path / "none" / "journal")
    (tmp_path / "folder").mkdir()
    with pytest.raises(JournalError, match="cannot be read"):
        analyze(checkpoint, tmp_path / "folder")


def test_strict_json(checkpoint, journal):
    analyze(checkpoint, journal)

    def refuse(name):
        raise AssertionError(name)

    for line in journal.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
