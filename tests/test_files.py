"""Folders that are there whole or not at all, whatever ends the process that writes them."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lowrank_ldu import files
from lowrank_ldu.errors import OutputError
from lowrank_ldu.files import check_target, replace_file, whole_folder

OLD = {"report.html": "old", "inner/figures.csv": "old", "inner/mine.txt": "mine"}
NEW = {"report.html": "new", "inner/figures.csv": "new", "more/b": "new"}
CARRIED = {**NEW, "inner/mine.txt": "mine"}
STEPS = ("replace", "rename", "link", "mkdir", "chmod", "unlink", "rmdir", "scandir", "open")


def write(folder, content):
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def content_of(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def replace(target, content=NEW):
    with whole_folder(target, overwrite=True) as folder:
        write(folder, content)


def in_a_process_of_its_own(function, *arguments):
    """Run a function of this file where nothing has begun threads, which a fork would leave behind."""
    code = f"import sys, test_files; test_files.{function.__name__}(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def killed_at(step, target):
    """Whether a process that is to replace the folder came to that step of the file system, where it ends."""
    child = os.fork()
    if child == 0:
        calls = itertools.count(1)

        def counted(owner, name):
            original = getattr(owner, name)

            def call(*args, **options):
                if next(calls) == step:
                    os._exit(137)  # as kill -9 would
                return original(*args, **options)

            setattr(owner, name, call)

        for name in STEPS:
            counted(os, name)
        counted(files, "_exchange")
        replace(target)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in {0, 137}
    return status != 0


def kill_at_every_step(place, exchange):
    place = Path(place)
    if exchange == "three names":
        # As on file systems that cannot exchange two names.
        files._NO_EXCHANGE.add(files.errno.EXDEV)
        files.ctypes.get_errno = lambda: files.errno.EXDEV
        files._RENAME_EXCHANGE = 2**16
    target = place / "out"
    seen = []
    for step in itertools.count(1):
        write(target, OLD)
        killed = killed_at(step, target)
        # Between two of three names there is neither, and the next run puts the old one back.
        seen.append(content_of(target) if target.exists() else None)
        if not killed:
            break
        with pytest.raises(OutputError, match="not empty"), whole_folder(target, overwrite=False):
            pass
        files._tidy(target)
        assert content_of(target) in (OLD, CARRIED)
        replace(target, {"c": "c"})
        assert [path.name for path in place.iterdir()] == ["out"]
        shutil.rmtree(target)
    assert len(seen) > 20
    missing = [number for number, content in enumerate(seen) if content is None]
    assert len(missing) == (exchange == "three names"), missing
    assert all(content in (OLD, CARRIED) for content in seen if content is not None)
    assert OLD in seen
    assert CARRIED in seen


@pytest.mark.parametrize("exchange", ["one step", "three names"])
def test_a_killed_process_leaves_the_old_folder_or_the_new_one(tmp_path, exchange):
    in_a_process_of_its_own(kill_at_every_step, tmp_path, exchange)


def test_an_exchange_that_fails_half_way_puts_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "out"
    write(target, OLD)
    monkeypatch.setattr(files.sys, "platform", "other")
    rename, calls = Path.rename, []

    def failing(self, to):
        calls.append(self)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="cannot be written"):
        replace(target)
    assert content_of(target) == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_another_process_adds_in_the_last_moment_is_kept(tmp_path, monkeypatch):
    target = tmp_path / "out"
    write(target, OLD)
    exchange = files._exchange

    def late(first, second):
        write(second, {"late.txt": "theirs"})
        exchange(first, second)

    monkeypatch.setattr(files, "_exchange", late)
    replace(target)
    assert content_of(target) == CARRIED | {"late.txt": "theirs"}


def write_beside_another(place):
    """Also beside a folder whose maker's number is another process's by now, and what only looks like one."""
    place = Path(place)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        with whole_folder(place / "out", overwrite=True):
            os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    while not (there := list(place.glob(".out.*.tmp"))):
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    others = [place / ".out.1-0123abcd.tmp", place / ".out.99999999-0123abcd.tmq", place / ".other.2-0.tmp"]
    for folder in others:
        folder.mkdir()
    replace(place / "out")
    assert there[0].is_dir()
    assert all(folder.is_dir() for folder in others)
    os.close(writer)
    os.waitpid(child, 0)


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    in_a_process_of_its_own(write_beside_another, tmp_path)


def test_links_and_pipes_and_empty_folders_are_carried_over(tmp_path):
    target = tmp_path / "out"
    write(target, OLD)
    (target / "empty").mkdir()
    (target / "link").symlink_to("nowhere")
    (target / "folder").symlink_to("inner")
    os.mkfifo(target / "pipe")
    replace(target)
    assert (target / "empty").is_dir()
    assert (target / "link").readlink() == Path("nowhere")
    assert (target / "folder").readlink() == Path("inner")
    assert (target / "pipe").is_fifo()
    assert content_of(target)["inner/mine.txt"] == "mine"


def test_modes_are_kept_and_new_ones_are_those_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        target = tmp_path / "out"
        replace(target, OLD)
        assert target.stat().st_mode & 0o777 == 0o750
        assert (target / "report.html").stat().st_mode & 0o777 == 0o640
        target.chmod(0o700)
        (target / "report.html").chmod(0o604)
        (target / "inner").chmod(0o711)
        replace(target)
        assert target.stat().st_mode & 0o777 == 0o700
        assert (target / "inner").stat().st_mode & 0o777 == 0o711
        assert (target / "report.html").stat().st_mode & 0o777 == 0o604
        replace_file(tmp_path / "file", b"1")
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
        (tmp_path / "file").chmod(0o600)
        replace_file(tmp_path / "file", b"2")
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    write(tmp_path / "there", OLD)
    (tmp_path / "out").symlink_to(tmp_path / "there")
    replace(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert content_of(tmp_path / "there") == CARRIED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "there"]


def test_the_working_folder_is_not_taken_away(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    for target in (Path(), tmp_path / "a" / "b", tmp_path / "a"):
        with pytest.raises(OutputError, match="is the working folder, or holds it"):
            check_target(target, overwrite=True)
    replace(Path("c"))
    assert content_of(tmp_path / "a" / "b" / "c") == NEW


@pytest.mark.parametrize("length", [255, 256, 300])
def test_long_names(tmp_path, length):
    target = tmp_path / ("n" * length)
    if length == 255:
        replace(target)
        assert content_of(target) == NEW
    else:
        with pytest.raises(OutputError, match="cannot be .*File name too long"):
            replace(target)
    assert list(tmp_path.iterdir()) == [target] * (length == 255)


SIGNALED = """
import os, signal, sys
from pathlib import Path
from lowrank_ldu.cli import _unwind_on
from lowrank_ldu.files import whole_folder

_unwind_on(signal.SIGTERM, signal.SIGHUP)
with whole_folder(Path(sys.argv[1]), overwrite=True) as folder:
    (folder / "a").write_text("half")
    os.kill(os.getpid(), int(sys.argv[2]))
"""


@pytest.mark.skipif(os.name == "nt", reason="there are no such signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_end_a_process_leave_nothing(tmp_path, number):
    done = subprocess.run([sys.executable, "-P", "-c", SIGNALED, str(tmp_path / "out"), str(int(number))], check=False)
    assert done.returncode == 128 + number
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="there is no such signal")
def test_nohup_is_respected(tmp_path):
    command = [sys.executable, "-P", "-c", SIGNALED, str(tmp_path / "out"), str(int(signal.SIGHUP))]
    done = subprocess.run([shutil.which("nohup"), *command], check=False, capture_output=True)
    assert done.returncode == 0
    assert (tmp_path / "out" / "a").read_text() == "half"


TOGETHER = """
import sys, time
from pathlib import Path
from lowrank_ldu.errors import OutputError
from lowrank_ldu.files import whole_folder

target, name, overwrite = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
print("ready", flush=True)
sys.stdin.readline()
try:
    for _ in range(20 if overwrite else 1):
        with whole_folder(target, overwrite=overwrite) as folder:
            for number in range(30):
                (folder / str(number)).write_text(name)
            if not overwrite:
                time.sleep(0.2)
except OutputError as error:
    print(error)
else:
    print("written")
"""


@pytest.mark.parametrize("overwrite", [False, True])
def test_processes_that_write_to_one_folder_leave_the_result_of_one(tmp_path, overwrite):
    target = tmp_path / "out"
    command = [sys.executable, "-P", "-c", TOGETHER, str(target)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([*command, name, str(overwrite)], **pipes) for name in "abc"]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    said = sorted(writer.communicate()[0].strip() for writer in writers)
    if overwrite:
        assert said == ["written"] * 3
    else:
        assert [text.partition(";")[0] for text in said] == [f"{target}: is not empty"] * 2 + ["written"]
    content = content_of(target)
    assert len(content) == 30
    assert len(set(content.values())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_lock_of_something_else_is_not_waited_for(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(files, "_LONGEST_WAIT", 0.1)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        replace(tmp_path / "out")
    finally:
        os.close(descriptor)
    assert content_of(tmp_path / "out") == NEW


def test_a_folder_that_may_be_written_to_and_not_listed(tmp_path, monkeypatch):
    open_file, iterdir = os.open, Path.iterdir

    def refused(path, *_, **__):
        if Path(path) == tmp_path:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", lambda path, *rest, **more: refused(path) or open_file(path, *rest, **more))
    monkeypatch.setattr(Path, "iterdir", lambda path: refused(path) or iterdir(path))
    replace(tmp_path / "out")
    assert content_of(tmp_path / "out") == NEW


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives files away")
def test_owners_are_kept_where_that_is_allowed(tmp_path, monkeypatch):
    target = tmp_path / "out"
    replace(target, OLD)
    replace_file(tmp_path / "file", b"1")
    for path in (target, target / "inner", target / "report.html", tmp_path / "file"):
        os.chown(path, 1234, 2345)
    (target / "report.html").chmod(0o4711)  # which a change of owner takes away
    replace(target)
    replace_file(tmp_path / "file", b"2")
    for path in (target, target / "inner", target / "report.html", tmp_path / "file"):
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)
    assert (target / "report.html").stat().st_mode & 0o7777 == 0o4711

    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refused)
    replace(target)
    assert content_of(target) == CARRIED
    assert (target / "report.html").stat().st_uid == 0


ACCESS = b"\x02\0\0\0" + b"".join(
    tag.to_bytes(2, "little") + mode.to_bytes(2, "little") + number.to_bytes(4, "little")
    for tag, mode, number in [
        (1, 6, 2**32 - 1),
        (2, 4, 1234),
        (4, 4, 2**32 - 1),
        (16, 4, 2**32 - 1),
        (32, 0, 2**32 - 1),
    ]
)


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="there are no extended attributes")
def test_access_lists_are_kept(tmp_path):
    replace(tmp_path / "out", OLD)
    file = tmp_path / "out" / "report.html"
    try:
        os.setxattr(file, "system.posix_acl_access", ACCESS)
    except OSError:
        pytest.skip("the file system has no access lists")
    replace(tmp_path / "out")
    assert file.read_text() == "new"
    assert os.getxattr(file, "system.posix_acl_access") == ACCESS


MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
90 22 254:0 /a {place}/with\\040space rw,relatime shared:1 - ext4 /dev/vda rw
91 22 0:40 / {place}/layers rw,relatime - overlay overlay rw
"""


def test_mount_points_of_the_same_device(tmp_path, monkeypatch):
    """Which the numbers of devices do not tell: they are folders of it at another place."""
    target = tmp_path / "with space"
    target.mkdir()
    read_text = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda path, **options: (
            MOUNTS.format(place=tmp_path) if path.name == "mountinfo" else read_text(path, **options)
        ),
    )
    with pytest.raises(OutputError, match="is a mount point, which cannot be replaced whole; accepted: a folder in it"):
        check_target(target, overwrite=True)
    replace(target / "a")


def test_folders_of_a_lower_layer(tmp_path, monkeypatch):
    """A folder of a container's image can be written to, and not be renamed."""
    target = tmp_path / "layers" / "out"
    write(target, OLD)
    monkeypatch.setattr(files, "_mounts", lambda: {"/": "ext4", str(tmp_path / "layers"): "overlay"})
    check_target(target, overwrite=True)
    rename = Path.rename

    def no_rename(self, to):
        if self == target:
            raise OSError(18, "Invalid cross-device link")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", no_rename)
    with pytest.raises(OutputError, match="a lower layer of an overlay, .*; accepted: a new folder"):
        check_target(target, overwrite=True)
    replace(target.with_name("new"))
    assert sorted(path.name for path in target.parent.iterdir()) == ["new", "out"]
    assert content_of(target) == OLD


MOUNTED = """
import subprocess, sys
from pathlib import Path
from lowrank_ldu.errors import OutputError
from lowrank_ldu.files import whole_folder

place, kind = Path(sys.argv[1]), sys.argv[2]
for name in ("low/out", "up", "work", "mnt", "bound"):
    (place / name).mkdir(parents=True)
layers = ",".join(f"{key}dir={place / name}" for key, name in [("lower", "low"), ("upper", "up"), ("work", "work")])
subprocess.run(
    ["mount", "-t", "overlay", "overlay", "-o", layers, place / "mnt"] if kind == "overlay"
    else ["mount", "--bind", place / "low", place / "bound"],
    check=True, capture_output=True,
)
target = place / ("mnt/out" if kind == "overlay" else "bound")
try:
    with whole_folder(target, overwrite=True):
        pass
except OutputError as error:
    print(error)
new = target.with_name("new")
for _ in range(2):
    with whole_folder(new, overwrite=True) as folder:
        (folder / "a").write_text("a")
print(*sorted(path.name for path in target.parent.iterdir()))
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs a mount namespace")
@pytest.mark.parametrize(("kind", "message"), [("overlay", "lower layer of an overlay"), ("bind", "is a mount point")])
def test_real_mounts(tmp_path, kind, message):
    command = ["unshare", "--mount", sys.executable, "-P", "-c", MOUNTED, str(tmp_path), kind]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode and ("unshare" in done.stderr or "'mount'" in done.stderr):
        pytest.skip("may not mount")
    assert done.returncode == 0, done.stderr
    said, names = done.stdout.splitlines()
    assert message in said
    assert names == ("new out" if kind == "overlay" else "bound low mnt new up work")
