"""The journal of a run: what was there is there again, and nothing that belongs to something else."""

import dataclasses
import json
import math
import os
import zlib

import pytest
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from weights import weight

from lowrank_ldu.analysis import CompareOptions, SurveyOptions, analyze_checkpoint, compare_checkpoints, lock_journal
from lowrank_ldu.analysis.engine import journal as journal_module
from lowrank_ldu.analysis.engine import survey as survey_module
from lowrank_ldu.analysis.engine.journal import JOURNAL_FORMAT
from lowrank_ldu.errors import JournalError
from lowrank_ldu.untrusted import Limit

OPTIONS = SurveyOptions(ranks=(2, 4), threads=1)
COMPARED = CompareOptions(ranks=(2, 4), threads=1)


class Analysis:
    options = OPTIONS

    def __init__(self, folder):
        self.checkpoint = folder / "model.safetensors"
        state = {"nan": weight(9, 7), "inf": weight(8, 12, seed=1), "zero": torch.zeros(5, 6), "bias": weight(4)}
        save_file(state, self.checkpoint)

    def run(self, journal, *, resume=True, progress=None, **options):
        chosen = dataclasses.replace(self.options, **options)
        return analyze_checkpoint(self.checkpoint, chosen, progress, journal=journal, resume=resume)

    def figures(self, result):
        return result.analysis


class Comparison(Analysis):
    """Of the same weights with an update; that of zeros has a relative norm of inf."""

    options = COMPARED

    def __init__(self, folder):
        super().__init__(folder)
        self.base, self.checkpoint = self.checkpoint, folder / "tuned" / "model.safetensors"
        self.checkpoint.parent.mkdir()
        save_file({name: W + weight(*W.shape, seed=2) for name, W in load_file(self.base).items()}, self.checkpoint)

    def run(self, journal, *, resume=True, progress=None, **options):
        chosen = dataclasses.replace(self.options, **options)
        return compare_checkpoints(self.base, self.checkpoint, chosen, progress, journal=journal, resume=resume)

    def figures(self, result):
        return result.comparison


@pytest.fixture
def work(request, tmp_path):
    """An analysis, or what the test is parametrized with."""
    return getattr(request, "param", Analysis)(tmp_path)


BOTH = pytest.mark.parametrize("work", [Analysis, Comparison], indirect=True)


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "journal"


def same(one, other):
    """Equality of numbers in which nan is nan."""
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@BOTH
def test_every_number_comes_back(work, journal):
    first = work.run(journal)
    again = work.run(journal)
    assert same([dataclasses.asdict(result) for result in first.results], list(map(dataclasses.asdict, again.results)))
    assert again.seconds > first.seconds - 0.1
    assert [type(work.figures(each)) for each in first.results] == [type(work.figures(each)) for each in again.results]


@BOTH
def test_a_line_that_is_not_whole_is_done_again(work, journal):
    first = work.run(journal)
    content = journal.read_bytes()
    lines = content.splitlines(keepends=True)
    assert len(lines) == 4
    for keep in (len(content) - 1, len(content) - len(lines[-1]) // 2, len(lines[0]) // 2, 0):
        journal.write_bytes(content[:keep])
        again = work.run(journal)
        assert [result.name for result in again.results] == [result.name for result in first.results]
        assert [line.count(b"seconds") > 0 for line in journal.read_bytes().splitlines()] == [False, True, True, True]


def test_nothing_is_replaced_unasked(work, journal):
    work.run(journal)
    with pytest.raises(JournalError, match="was not finished; accepted: --resume, to continue it, or remove the file"):
        work.run(journal, resume=False)


def test_a_lock_is_held_until_the_outermost_is_left(work, journal):
    other = FileLock(f"{journal}.lock")
    with lock_journal(journal):
        work.run(journal)
        with pytest.raises(Timeout):
            other.acquire(blocking=False)
    other.acquire(blocking=False)
    other.release()


@BOTH
def test_changed_files_are_noticed(work, journal):
    work.run(journal)
    stat = work.checkpoint.stat()
    os.utime(work.checkpoint, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(JournalError, match=r"cannot be continued: .*model.safetensors has been changed since"):
        work.run(journal)


def test_another_configuration_is_noticed(work, journal):
    """It may say how weights are fused or quantized."""
    work.run(journal)
    (work.checkpoint.parent / "config.json").write_text('{"model_type": "phi3"}')
    with pytest.raises(JournalError, match=r"its source is of other files, .*config.json among them"):
        work.run(journal)


@BOTH
def test_other_files_are_noticed(work, journal, tmp_path):
    work.run(journal)
    other = tmp_path / "other.safetensors"
    other.write_bytes(work.checkpoint.read_bytes())
    work.checkpoint = other
    with pytest.raises(JournalError, match=r"its (source|tuned) is of other files, .*(model|other)\.safetensors among"):
        work.run(journal)


@BOTH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": (2,)}, r"ranks was \[2, 4\], and is \[2\]"),
        ({"seed": 1}, "seed was 0, and is 1"),
        ({"pivoting": ("rook",)}, "pivoting was"),
    ],
)
def test_other_options_are_noticed(work, journal, options, message):
    work.run(journal)
    with pytest.raises(JournalError, match=message):
        work.run(journal, **options)


@BOTH
def test_threads_may_differ(work, journal):
    work.run(journal)
    work.run(journal, threads=2)


def with_sum(line):
    """The line of someone who mended its checksum."""
    text = line.partition(',"crc32"')[0]
    return '%s,"crc32":"%08x"}\n' % (text, zlib.crc32(f"{text}}}".encode()))  # noqa: UP031


@BOTH
def test_other_versions_are_noticed(work, journal):
    work.run(journal)
    first, *rest = journal.read_text().splitlines(keepends=True)
    journal.write_text(with_sum(first.replace('"version":"', '"version":"0.0.')) + "".join(rest))
    with pytest.raises(JournalError, match=r"it is of version 0\.0\."):
        work.run(journal)


@pytest.mark.parametrize(
    ("line", "content", "message"),
    [
        (0, "{}", "is no journal of this program"),
        (0, "[]", "is no journal of this program"),
        (0, '{"format":"lowrank-ldu journal 4"}', "is no journal of this version"),
        (0, '{"format":"lowrank-ldu journal 5"}', "line 1 is damaged"),
        (0, '{"format":"lowrank-ldu journal' + "[" * 100_000, "line 1 is damaged"),
        (1, "[" * 100_000, "line 2 is damaged"),
        (1, "{}", "line 2 is damaged"),
        (2, "\x00\xff", "line 3 is damaged"),
        (2, '{"result":{"name":"a","shape":3,"analysis":null},"seconds":1}', "line 3 is damaged"),
    ],
)
def test_damage_is_named(work, journal, line, content, message):
    work.run(journal)
    lines = journal.read_text().splitlines()
    lines[line] = content
    journal.write_text("\n".join(lines) + "\n")
    with pytest.raises(JournalError, match=message):
        work.run(journal)


@pytest.mark.parametrize(
    ("work", "line", "field"),
    [
        (Analysis, 0, '"files":'),
        (Comparison, 0, '"base":'),
        (Analysis, 1, '"dtype":'),
        (Analysis, 1, '"spectrum":'),
        (Comparison, 1, '"tuned_shape":'),
        (Comparison, 1, '"explained":'),
    ],
    indirect=["work"],
)
def test_fields_of_others_are_damage(work, journal, line, field):
    work.run(journal)
    whole = journal.read_text().splitlines(keepends=True)
    for other in (field.replace('":', '_":'), f'"other":1,{field}'):
        lines = [*whole]
        lines[line] = with_sum(lines[line].replace(field, other, 1))
        journal.write_text("".join(lines))
        with pytest.raises(JournalError, match=f"line {line + 1} is damaged"):
            work.run(journal)


@BOTH
def test_a_changed_number_is_noticed(work, journal):
    """It would still be a number."""
    work.run(journal)
    content = journal.read_bytes()
    digits = [place for place, byte in enumerate(content) if chr(byte) in "012345678"]
    for place in digits[:: len(digits) // 25]:
        journal.write_bytes(content[:place] + bytes([content[place] + 1]) + content[place + 1 :])
        with pytest.raises(JournalError):
            work.run(journal)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("content", ["notes", "notes\n", "{", '{"a": 1}\n', "\0" * 100, JOURNAL_FORMAT])
def test_what_is_no_journal_is_not_written_to(work, journal, content, resume):
    journal.write_text(content)
    with pytest.raises(JournalError, match="is no journal of this program, and stays as it is; accepted: another name"):
        work.run(journal, resume=resume)
    assert journal.read_text() == content
    journal.unlink()
    lock = journal.with_name(f"{journal.name}.lock")
    lock.write_text(content)
    with pytest.raises(JournalError, match="is no lock of a journal"):
        work.run(journal)
    assert lock.read_text() == content


@pytest.mark.parametrize("end", ["", "\n"])
def test_lines_have_a_limit(work, journal, monkeypatch, end):
    work.run(journal)
    monkeypatch.setattr(journal_module, "_LINE", Limit(100_000, 100_000))
    with journal.open("a") as file:
        file.write("1" * 200_000 + end)
    with pytest.raises(JournalError, match="line 5 is damaged"):
        work.run(journal)


def test_a_result_that_could_not_be_read_again_is_not_kept(work, journal, monkeypatch):
    work.run(journal)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.unlink()
    size = max(map(len, lines))
    monkeypatch.setattr(journal_module, "_LINE", Limit(size - 20, 10_000))
    for _ in range(2):
        assert len(work.run(journal).matrices) == 3
        assert len(journal.read_bytes().splitlines()) < 4


@BOTH
def test_two_results_of_one_tensor(work, journal):
    work.run(journal)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines, lines[1]]))
    with pytest.raises(JournalError, match="line 5 has a second result of 'inf'"):
        work.run(journal)


@BOTH
def test_a_result_of_no_tensor_of_the_checkpoint(work, journal):
    work.run(journal)
    *lines, last = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines) + with_sum(last.replace('"name":"', '"name":"other.')))
    with pytest.raises(JournalError, match=r"has a result of 'other\..*', which is none of the matrices"):
        work.run(journal)


def test_a_pipe_is_not_waited_for(work, journal):
    os.mkfifo(journal)
    with pytest.raises(JournalError, match="cannot be read"):
        work.run(journal)


@BOTH
def test_errors_are_tried_again(work, journal, monkeypatch):
    def scarce(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("lowrank_ldu.analysis.engine.survey.analyze_matrix", scarce)
        patch.setattr("lowrank_ldu.analysis.comparison.work.compare_matrices", scarce)
        with pytest.raises(ValueError, match="error: MemoryError"):
            work.run(journal)
        assert not journal.exists()
    assert len(work.run(journal).matrices) == 3


def test_where_it_cannot_be(work, tmp_path):
    with pytest.raises(JournalError, match="cannot be written"):
        work.run(tmp_path / "none" / "journal")
    (tmp_path / "folder").mkdir()
    with pytest.raises(JournalError, match="cannot be read"):
        work.run(tmp_path / "folder")


@BOTH
def test_strict_json(work, journal):
    work.run(journal)

    def refuse(name):
        raise AssertionError(name)

    for line in journal.read_text().splitlines():
        json.loads(line, parse_constant=refuse)


@BOTH
@pytest.mark.parametrize("finished", [1, 2])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(work, journal, finished):
    def stop(state):
        if state.finished == finished:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.run(journal, progress=stop)
    # The last one was finished, and not yet kept.
    kept = journal.read_bytes().count(b'"result"') if journal.exists() else 0
    assert kept == finished - 1
    seen = []
    resumed, whole = work.run(journal, progress=seen.append), work.run(None, resume=False)
    assert [state.finished for state in seen] == [*range(kept, 4)]
    assert [result.name for result in resumed.results] == [result.name for result in whole.results]
    for one, other in zip(resumed.results, whole.results, strict=True):
        assert same(as_kept(one), as_kept(other))


def as_kept(result):
    """A result without what two runs never share."""
    return {key: value for key, value in dataclasses.asdict(result).items() if key != "seconds"}


def test_a_run_of_another_kind_is_named(tmp_path, journal):
    one, other = Analysis(tmp_path), Comparison(tmp_path)
    one.run(journal)
    with pytest.raises(JournalError, match="cannot be continued: it is of an analysis, and this is a comparison; remo"):
        other.run(journal)
    journal.unlink()
    other.run(journal)
    with pytest.raises(JournalError, match="cannot be continued: it is of a comparison, and this is an analysis; remo"):
        one.run(journal)


@pytest.mark.parametrize("work", [Comparison], indirect=True)
def test_the_two_sides_of_a_comparison_are_told_apart(work, journal):
    work.run(journal)
    work.base, work.checkpoint = work.checkpoint, work.base
    with pytest.raises(JournalError, match=r"cannot be continued: its base is of other files"):
        work.run(journal)


@pytest.mark.parametrize("work", [Comparison], indirect=True)
def test_matrices_that_are_equal_are_not_read_again(work, journal):
    save_file(load_file(work.base) | {"inf": weight(8, 12, seed=5)}, work.checkpoint)
    first, seen = work.run(journal), []
    assert [result.name for result in first.unchanged] == ["nan", "zero"]
    again = work.run(journal, progress=seen.append)
    assert seen == []
    assert list(map(as_kept, again.results)) == list(map(as_kept, first.results))


@pytest.mark.parametrize("work", [Comparison], indirect=True)
def test_the_scaling_of_an_adapter_is_noticed(work, journal, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = folder / "adapter_config.json"
    config.write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 6}')
    factors = {"base_model.model.nan.lora_A.weight": weight(2, 7), "base_model.model.nan.lora_B.weight": weight(9, 2)}
    save_file(factors, folder / "adapter_model.safetensors")
    save_file({"nan.weight": weight(9, 7)}, work.base)
    work.checkpoint = folder
    assert len(work.run(journal).matrices) == 1
    config.write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 60}')
    with pytest.raises(JournalError, match=r"adapter_config\.json has been changed since"):
        work.run(journal)


def test_values_beside_an_onnx_model_are_noticed(tmp_path, journal):
    onnx = pytest.importorskip("onnx")
    stored = [onnx.numpy_helper.from_array(weight(6, 5).numpy(), "w")]
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "graph", [], [], initializer=stored))
    path, values = tmp_path / "a.onnx", tmp_path / "values.bin"
    onnx.save(model, path, save_as_external_data=True, location=values.name, size_threshold=0)
    analyze_checkpoint(path, OPTIONS, journal=journal)
    values.write_bytes(weight(6, 5, seed=1).numpy().tobytes())
    os.utime(values, ns=(1, 1))
    with pytest.raises(JournalError, match=r"values\.bin has been changed since"):
        analyze_checkpoint(path, OPTIONS, journal=journal, resume=True)


def test_a_result_of_a_larger_machine_is_kept(work, journal, monkeypatch):
    """Once, and not as one that was skipped as well."""
    first = work.run(journal)
    monkeypatch.setattr(survey_module, "physical_memory", lambda: 1)
    again = work.run(journal)
    assert [(result.name, result.reason) for result in again.results] == [
        (result.name, result.reason) for result in first.results
    ]
