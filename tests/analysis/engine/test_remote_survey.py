"""Surveys of checkpoints on a server: what ends them, how they go on, and that no secrets are left anywhere."""

import os
import subprocess
import sys
import threading
import time

import pytest
from range_server import PROXIES, RangeServer
from safetensors.torch import save
from typer.testing import CliRunner
from weights import weight

from lowrank_ldu.analysis import CompareOptions, SurveyOptions, analyze_checkpoint, compare_checkpoints
from lowrank_ldu.analysis.engine.survey import analyze_remotely, survey
from lowrank_ldu.analysis.engine.worker import SharedCheckpoint, forget_checkpoints
from lowrank_ldu.checkpoints import open_weights
from lowrank_ldu.cli.app import app
from lowrank_ldu.errors import ClusterError, JournalError, RemoteError, WorkerError

pytest.importorskip("aiohttp")

PATH = "/m/model.safetensors"
TENSORS = {f"w{n}": weight(12 - n, 9, seed=n) for n in range(4)} | {"bias": weight(5)}
OPTIONS = SurveyOptions(ranks=(2, 4), threads=1)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("lowrank_ldu.checkpoints.remote.faults.sleep", lambda _: None)
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    server = RangeServer({PATH: save(TENSORS)})
    yield server
    server.stop()


@pytest.fixture
def url(server):
    return f"http://me:hush@{server.host}{PATH}?signature=hush"


def command(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def tensors_read(server):
    """Ranges of tensors that were asked for."""
    return [asked for asked in server.ranges(PATH) if asked[0] > 8]


def dies_after(server, reads):
    """Have the server die when it was asked for so many ranges behind the header."""
    left = [None] * reads
    server.misbehave = lambda path, start: (
        (left.pop() if left else 503) if path.startswith(PATH) and start > 8 else None
    )


def test_figures_are_those_of_the_file(server, url, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(server.files[PATH])
    there, here = analyze_checkpoint(url, OPTIONS), analyze_checkpoint(tmp_path / "model.safetensors", OPTIONS)
    assert there.checkpoint == server.url + PATH
    assert [tensor.name for tensor in there.results] == [tensor.name for tensor in here.results]
    for (_, one), (_, other) in zip(there.matrices, here.matrices, strict=True):
        assert one.at("ldu", 4, "partial").diagnostics == other.at("ldu", 4, "partial").diagnostics


def test_a_survey_goes_on_when_the_server_is_back(server, url, tmp_path):
    out, journal = tmp_path / "out", tmp_path / "out.journal"
    dies_after(server, 2)
    stopped = command("analyze", url, "--out", out, "--rank", 2, "--threads", 1)
    assert stopped.exit_code == 2
    assert f"error: {server.url}{PATH}: the server fails (503), asked 4 times; try again later" in stopped.stderr
    assert "--resume goes on from there" in stopped.stderr
    assert not out.exists()
    assert 1 <= journal.read_bytes().count(b'"result"') <= 2
    kept = journal.read_bytes().count(b'"result"')
    server.stop()
    refused = command("analyze", url, "--out", out, "--rank", 2, "--threads", 1, "--resume")
    assert refused.exit_code == 2
    assert "the server cannot be reached" in refused.stderr
    server.start()
    server.misbehave = lambda path, start: None
    server.requests.clear()
    # Signed anew, and with another password.
    other = f"http://me:hush2@{server.host}{PATH}?signature=hush2"
    done = command("analyze", other, "--out", out, "--rank", 2, "--threads", 1, "--resume")
    assert done.exit_code == 0, done.output
    assert "4 matrices analyzed" in done.stdout
    assert len(tensors_read(server)) == 4 - kept
    assert not journal.exists()
    for said in (stopped, refused, done):
        assert "hush" not in said.output


def test_no_secrets_are_left(server, url, tmp_path):
    dies_after(server, 2)
    command("analyze", url, "--out", tmp_path / "a", "--threads", 1)
    server.misbehave = lambda path, start: None
    assert command("analyze", url, "--out", tmp_path / "b", "--threads", 1).exit_code == 0
    assert command("claims", url, "--out", tmp_path / "c", "--threads", 1).exit_code == 0
    server.files["/m/tuned.safetensors"] = save({name: values + 0.1 * values**2 for name, values in TENSORS.items()})
    tuned = url.replace("model", "tuned")
    compared = command("compare", url, tuned, "--out", tmp_path / "d", "--threads", 1)
    assert compared.exit_code == 0, compared.output
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"a.journal", "analysis.json", "report.html", "claims.json", "tensors.parquet"} <= {f.name for f in files}
    for file in files:
        assert b"hush" not in file.read_bytes(), file
    assert server.url.encode() in (tmp_path / "a.journal").read_bytes()
    assert (server.url + PATH) in (tmp_path / "b" / "analysis.json").read_text()


@pytest.mark.parametrize("marks", ["ETag", "Last-Modified", "none"])
def test_a_file_that_was_changed_between_two_parts(server, url, tmp_path, marks):
    server.etags, server.modified = (
        marks == "ETag",
        "Mon, 02 Jan 2023 00:00:00 GMT" if marks == "Last-Modified" else None,
    )
    journal = tmp_path / "journal"
    dies_after(server, 2)
    with pytest.raises(RemoteError, match=r"fails \(503\)"):
        analyze_checkpoint(url, OPTIONS, journal=journal)
    before = journal.read_bytes()
    server.misbehave = lambda path, start: None
    server.modified = server.modified and "Tue, 03 Jan 2023 00:00:00 GMT"
    changed = {name: values + 1 for name, values in TENSORS.items()}
    server.files[PATH] = save(changed if marks != "none" else changed | {"more": weight(3, 3)})
    with pytest.raises(JournalError, match=f"cannot be continued: {server.url}{PATH} has been changed since; remove"):
        analyze_checkpoint(url, OPTIONS, journal=journal, resume=True)
    assert journal.read_bytes() == before


def test_a_file_that_is_changed_during_a_survey(server, url, tmp_path):
    journal = tmp_path / "journal"
    changed = save({name: values + 1 for name, values in TENSORS.items()})

    def change(_path, _start):
        if len(tensors_read(server)) == 3:
            server.files[PATH] = changed

    server.misbehave = change
    with pytest.raises(RemoteError, match="has been changed on the server since it was opened"):
        analyze_checkpoint(url, OPTIONS, journal=journal)
    with pytest.raises(JournalError, match="has been changed since; remove the file to begin anew"):
        analyze_checkpoint(url, OPTIONS, journal=journal, resume=True)


def test_a_reading_that_takes_long_is_given_up(server, url):
    """Ctrl-C need not wait for a server that says nothing."""
    silent, left = threading.Event(), [None]

    def misbehave(_path, start):
        if start <= 8 or left:
            return left.pop() if start > 8 else None
        silent.set()
        return "silence"

    server.misbehave = misbehave
    with open_weights(url) as reader:
        results = survey(reader, OPTIONS)
        assert [next(results).name for _ in range(2)] == ["bias", "w0"]
        assert silent.wait(10)
        start = time.monotonic()
        results.close()
        assert time.monotonic() - start < 5  # of a minute of silence
        server.misbehave = lambda path, start: None
        assert reader.load("w3").shape == (9, 9)


def test_another_configuration_between_two_parts(server, url, tmp_path):
    dies_after(server, 2)
    with pytest.raises(RemoteError):
        analyze_checkpoint(url, OPTIONS, journal=tmp_path / "journal")
    server.misbehave = lambda path, start: None
    server.files["/m/config.json"] = b"{}"
    with pytest.raises(JournalError, match=r"its source is of other files, .*/m/config.json among them"):
        analyze_checkpoint(url, OPTIONS, journal=tmp_path / "journal", resume=True)


def test_a_comparison_reads_pairs(server, tmp_path):
    server.files["/m/tuned.safetensors"] = save({name: values * 1.5 for name, values in TENSORS.items()})
    (tmp_path / "model.safetensors").write_bytes(server.files[PATH])
    tuned = f"{server.url}/m/tuned.safetensors"
    there = compare_checkpoints(server.url + PATH, tuned, CompareOptions(ranks=(2,), threads=1))
    here = compare_checkpoints(tmp_path / "model.safetensors", tuned, CompareOptions(ranks=(2,), threads=1))
    assert [comparison for _, comparison in there.matrices] == [comparison for _, comparison in here.matrices]
    dies_after(server, 2)
    with pytest.raises(RemoteError, match=r"fails \(503\)"):
        compare_checkpoints(server.url + PATH, tuned, CompareOptions(ranks=(2,), threads=1))


def test_a_worker_reads_the_same_file(server):
    with open_weights(server.url + PATH) as reader:
        source = SharedCheckpoint.of(reader)
        assert source.path == server.url + PATH
        try:
            analysis = analyze_remotely(source, OPTIONS, reader.info("w0")).analysis
            assert not isinstance(analysis, str)
            forget_checkpoints()
            server.files[PATH] = save({name: values + 1 for name, values in TENSORS.items()})
            with pytest.raises(WorkerError, match="its files have another size or time of change"):
                analyze_remotely(source, OPTIONS, reader.info("w1"))
        finally:
            forget_checkpoints()


@pytest.mark.parametrize("start", ["http://me:hush@", "http://"])
def test_workers_are_sent_no_secrets(server, start):
    end = "" if "hush" in start else "?signature=hush"
    with open_weights(f"{start}{server.host}{PATH}{end}") as reader:
        with pytest.raises(ClusterError, match="accepted: the local engine") as caught:
            SharedCheckpoint.of(reader)
        assert "hush" not in str(caught.value)


def test_a_process_ends_quietly(url):
    """Sessions are closed, or there would be warnings of them."""
    code = "import sys; from lowrank_ldu.checkpoints import open_weights; open_weights(sys.argv[1]).load('w0')"
    environment = {name: value for name, value in os.environ.items() if name not in PROXIES}
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code, url],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
