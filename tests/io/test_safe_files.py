"""Files and folders are whole, whatever threads, links, modes, killed writers and broken disks do."""

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from metalora._util import files
from metalora._util.files import new_folder, replaced_folder, write_atomically, write_figure
from metalora.bench.store import RowStore

MARKER = "adapter.json"
NAMES = (MARKER, "second")


def write_file(path, content=b"new"):
    write_atomically(path, content)


def write_new_folder(path):
    with new_folder(path) as folder:
        (folder / MARKER).write_bytes(b"new")


def write_replaced_folder(path, content=b"new"):
    with replaced_folder(path, NAMES) as folder:
        (folder / MARKER).write_bytes(content)
        (folder / "second").write_bytes(content)


class Figure:
    """What `write_figure` asks of a figure of matplotlib."""

    def savefig(self, file, dpi, format):
        file.write(b"new")


def draw(path):
    write_figure(Figure(), path, dpi=100)


def append_row(path):
    RowStore(path).append({"key": "a"})


def claim_row(path):
    RowStore(path).claim("a")


WRITERS = {
    "file": write_file,
    "figure": draw,
    "new folder": write_new_folder,
    "folder": write_replaced_folder,
    "rows": append_row,
    "claim": claim_row,
}


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- threads ---------------------------------------------------------------------------------------------------------
def read_file(path):
    return {path.read_bytes()}


def read_folder(path):
    """The contents of one version; the folder may change between two reads, so that one is read by its handle."""
    handle = os.open(path, os.O_RDONLY)
    try:
        contents = set()
        for name in (MARKER, "second"):
            descriptor = os.open(name, os.O_RDONLY, dir_fd=handle)
            contents.add(os.read(descriptor, 100_000))
            os.close(descriptor)
        return contents
    except FileNotFoundError:
        return {b"removed meanwhile"}
    finally:
        os.close(handle)


SHARED = {"file": (write_file, read_file), "folder": (write_replaced_folder, read_folder)}


REMOVED = {b"removed meanwhile"}


def read_often(path, read):
    """All contents that are seen; a folder is not there between the two renames of its writer."""
    seen = []
    for _ in range(200):
        with contextlib.suppress(FileNotFoundError):
            seen.append(read(path))
    return seen


def write_often(path, write, digit):
    for _ in range(20):
        write(path, digit * 50_000)


@pytest.mark.parametrize("write, read", SHARED.values(), ids=SHARED)
def test_threads_that_write_one_path_never_tear_it(write, read, tmp_path):
    path = tmp_path / "x"
    write(path, b"0" * 50_000)
    with ThreadPoolExecutor(6) as pool:
        writing = [pool.submit(write_often, path, write, digit) for digit in (b"1", b"2", b"3", b"4")]
        reading = [pool.submit(read_often, path, read) for _ in range(2)]
    assert [future.result() for future in writing] == [None] * 4  # an error of a writer is raised here
    seen = [contents for future in reading for contents in future.result() if contents != REMOVED]
    assert len(seen) > 10 and all(len(contents) == 1 and len({*next(iter(contents))}) == 1 for contents in seen)
    assert names_in(tmp_path) == ["x"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a folder is replaced by two renames")
def test_a_folder_is_replaced_in_one_step(tmp_path, monkeypatch):
    write_replaced_folder(tmp_path / "x", b"old")

    def two_renames(*_):
        raise AssertionError("the folder is not there for a moment")

    monkeypatch.setattr(os, "replace", two_renames)
    with replaced_folder(tmp_path / "x", NAMES) as folder:
        (folder / MARKER).write_bytes(b"new")
    monkeypatch.undo()
    assert names_in(tmp_path) == ["x"] and names_in(tmp_path / "x") == [MARKER]
    assert (tmp_path / "x" / MARKER).read_bytes() == b"new"


def test_a_folder_is_replaced_where_names_cannot_be_exchanged(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    write_replaced_folder(tmp_path / "x", b"old")
    write_replaced_folder(tmp_path / "x", b"new")
    assert names_in(tmp_path) == ["x"] and (tmp_path / "x" / MARKER).read_bytes() == b"new"


@pytest.mark.parametrize("name", ("notes.txt", "tasks/ripe/task.safetensors", ".git/config"))
def test_a_folder_with_a_file_of_somebody_else_is_not_replaced(name, tmp_path):
    write_replaced_folder(tmp_path / "x", b"old")
    (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "x" / name).write_bytes(b"theirs")
    for ask in ASK.values():
        with pytest.raises(ValueError, match=f"x/{name.split('/')[0]}: would be lost"):
            ask(tmp_path / "x")
    assert (tmp_path / "x" / name).read_bytes() == b"theirs" and (tmp_path / "x" / MARKER).read_bytes() == b"old"
    assert names_in(tmp_path) == ["x"]


ASK = {"check": lambda path: files.check_folder(path, NAMES), "write": write_replaced_folder}


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
def test_nobody_asks_about_a_folder_while_another_writer_may_swap_it(ask, tmp_path, monkeypatch):
    original, asked = files._check_replaceable, []

    def check_lock_and_folder(path, marker):
        other_writer = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other_writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other_writer)
        asked.append(path)
        original(path, marker)

    monkeypatch.setattr(files, "_check_replaceable", check_lock_and_folder)
    ask(tmp_path / "x")
    assert asked == [tmp_path / "x"]


# ---- modes and links -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", (0o600, 0o640, 0o666, 0o444))
def test_a_file_keeps_its_mode(mode, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(mode)
    write_file(path)
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("umask", (0o022, 0o077, 0o002))
def test_a_new_file_has_the_mode_of_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        write_file(tmp_path / "x")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~umask


LINKED = {"file": (write_file, "x"), "folder": (write_replaced_folder, f"x/{MARKER}")}


@pytest.mark.parametrize("write, inside", LINKED.values(), ids=LINKED)
def test_a_link_stays_a_link(write, inside, tmp_path):
    (tmp_path / "there").mkdir()
    write(tmp_path / "there" / "x", b"old")
    (tmp_path / "link").symlink_to(tmp_path / "there" / "x")
    write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / inside).read_bytes() == b"new"


def test_a_device_is_not_replaced():
    with pytest.raises(ValueError, match="/dev/null: could not be written"):
        write_file("/dev/null")


# ---- killed writers --------------------------------------------------------------------------------------------------
KILLED = """
import os, signal, sys
from metalora._util import files
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
path = sys.argv[1]
if sys.argv[2] == "file":
    files.write_atomically(path, b"new")
else:
    with files.replaced_folder(path, ["m"]) as folder:
        (folder / "m").write_bytes(b"new")
"""


def leave(path, what):
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), what], env=os.environ | {"PYTHONPATH": source()})
    assert done.returncode < 0


def source():
    return os.path.dirname(os.path.dirname(os.path.dirname(files.__file__)))


@pytest.mark.parametrize("what", ("file", "folder"))
def test_what_a_killed_writer_left_is_removed_when_it_is_old(what, tmp_path):
    leave(tmp_path / "x", what)
    (leftover,) = names_in(tmp_path)
    write_file(tmp_path / "y")
    assert leftover in names_in(tmp_path)  # it may be one that a writer has not locked yet
    old = time.time() - 2 * files.FRESH_SECONDS
    os.utime(tmp_path / leftover, (old, old))
    write_file(tmp_path / "y")
    assert names_in(tmp_path) == ["y"]


FOREIGN = (".x.tmp", "x.tmp", ".x.123.tmp", "x.metalora-tmp", ".hidden", "data")


def test_what_others_left_and_what_a_living_writer_holds_stays(tmp_path):
    held = tmp_path / ".x.0123.metalora-tmp"
    for name in (*FOREIGN, held.name):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (0, 0))
    with held.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_file(tmp_path / "y")
        assert names_in(tmp_path) == sorted((*FOREIGN, held.name, "y"))
    write_file(tmp_path / "y")
    assert names_in(tmp_path) == sorted((*FOREIGN, "y"))


def test_a_folder_whose_writer_was_killed_between_two_renames_comes_back(tmp_path):
    write_replaced_folder(tmp_path / "x", b"old")
    os.replace(tmp_path / "x", tmp_path / f".x.0123{files.OLD}")
    with pytest.raises(RuntimeError), replaced_folder(tmp_path / "x", NAMES):
        raise RuntimeError
    assert names_in(tmp_path) == ["x"] and (tmp_path / "x" / MARKER).read_bytes() == b"old"


# ---- disks -----------------------------------------------------------------------------------------------------------
def full(*_, **__):
    raise OSError(28, "No space left on device")


def read_only(*_, **__):
    raise OSError(30, "Read-only file system")


@pytest.mark.parametrize("reason", (full, read_only), ids=("full", "read-only"))
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_broken_disk_is_one_line_that_names_the_path(write, reason, tmp_path, monkeypatch):
    for name in ("open", "mkdir", "write"):
        monkeypatch.setattr(os, name, reason)
    with pytest.raises(ValueError) as error:
        write(tmp_path / "x")
    monkeypatch.undo()
    words = "No space left on device" if reason is full else "Read-only file system"
    assert str(error.value).startswith(str(tmp_path / "x")) and f"could not be written ({words})" in str(error.value)
    assert "\n" not in str(error.value) and not names_in(tmp_path)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_folder_that_is_a_file_is_one_line_that_names_the_path(write, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        ValueError,
        match=r"file/x.*: (could not be written \((Not a dir|File exists)|.*/file is a file, expected)",
    ):
        write(tmp_path / "file" / "x")


def test_an_error_in_the_middle_leaves_the_old_folder(tmp_path):
    write_replaced_folder(tmp_path / "x", b"old")
    with pytest.raises(ValueError, match="could not be written"), replaced_folder(tmp_path / "x", NAMES) as folder:
        (folder / MARKER).write_bytes(b"new")
        full()
    assert names_in(tmp_path) == ["x"] and (tmp_path / "x" / MARKER).read_bytes() == b"old"
