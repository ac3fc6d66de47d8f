"""Files of one song: all of them appear or none, after errors too; nothing that others left is touched."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hunterFormsBS.songs import together
from hunterFormsBS.songs.together import (
    BusyError,
    Existing,
    appearing_together,
    check_targets,
    identity,
    remove_leftovers,
)

NAMES = ("song/a.wav", "song/b.wav", "elsewhere/c.wav")
PATTERN = re.compile(r"\.[0-9a-f]{16}\.[0-9a-f]{16}\.hunterFormsBS\.wav")

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files, or lets few users make them")


def content(folder: Path) -> dict[str, str]:
    """Return what is in all files below a folder."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def folders(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_dir()}


def write(
    output: Path, text: str, *, existing: Existing = "refuse", meanwhile: Callable[[], object] | None = None
) -> None:
    with appearing_together(output, [output / name for name in NAMES], existing=existing) as files:
        for file in files:
            file.write(text.encode())
        if meanwhile is not None:
            meanwhile()


def write_by_hand(output: Path, *names: str, text: str = "old") -> None:
    for name in names:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text(text)


# One process ---------------------------------------------------------------------------------------------------------


def test_nothing_is_there_before_the_end_and_everything_after_it(tmp_path: Path) -> None:
    output = tmp_path / "out"
    targets = [output / name for name in NAMES]
    with appearing_together(output, targets) as files:
        for file, target in zip(files, targets, strict=True):
            file.write(b"new")
            assert Path(str(file.name)).parent == target.parent  # on one file system
            assert PATTERN.fullmatch(Path(str(file.name)).name)
        assert not any(target.exists() for target in targets)
    assert content(output) == dict.fromkeys(NAMES, "new")


def test_hidden_names_are_others_each_time(tmp_path: Path) -> None:
    names = set()
    for _ in range(3):
        with appearing_together(tmp_path, [tmp_path / "a.wav"], existing="replace") as (file,):
            names.add(str(file.name))
    assert len(names) == 3


def test_the_bytes_are_on_the_disk_before_a_file_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed, sync, name = [], os.fsync, together._name  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino) or sync(descriptor))

    def named(hidden: Path, *arguments: object) -> None:
        assert len(flushed) == len(NAMES)
        assert hidden.stat().st_ino in flushed
        name(hidden, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(together, "_name", named)
    write(tmp_path, "new")
    assert content(tmp_path) == dict.fromkeys(NAMES, "new")


@pytest.mark.parametrize("existing", ["refuse", "keep", "replace"])
@pytest.mark.parametrize("there", [(), NAMES[:1], NAMES[1:], NAMES])
def test_files_that_exist_are_an_error_or_kept_or_replaced(
    there: tuple[str, ...], existing: Existing, tmp_path: Path
) -> None:
    write_by_hand(tmp_path, *there)
    before = {name: identity(tmp_path / name) for name in there}
    if existing == "refuse" and there:
        with pytest.raises(ValueError, match=r"exists: pass --overwrite to replace it, --skip-existing to keep it"):
            write(tmp_path, "new", existing=existing)
        assert content(tmp_path) == dict.fromkeys(there, "old")
    else:
        write(tmp_path, "new", existing=existing)
        kept = there if existing == "keep" else ()
        assert content(tmp_path) == dict.fromkeys(NAMES, "new") | dict.fromkeys(kept, "old")
        assert {name: identity(tmp_path / name) for name in kept} == {name: before[name] for name in kept}


@pytest.fixture(params=["with", "without"])
def _hard_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do as file systems of either kind."""

    def refuse(*_arguments: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if request.param == "without":
        monkeypatch.setattr(Path, "hardlink_to", refuse)


@pytest.mark.usefixtures("_hard_links")
@pytest.mark.parametrize("moment", range(len(NAMES)))
@pytest.mark.parametrize("existing", ["refuse", "keep", "replace"])
def test_a_file_that_comes_at_any_moment_is_replaced_only_where_asked(
    existing: Existing, moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, calls = together._name, []  # pyright: ignore[reportPrivateUsage]

    def raced(hidden: Path, target: Path, *arguments: object) -> None:
        if len(calls) == moment:
            target.write_text("precious")
        calls.append(target)
        name(hidden, target, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(together, "_name", raced)
    if existing == "refuse":
        with pytest.raises(ValueError, match="exists: pass --overwrite"):
            write(tmp_path, "new")
        assert content(tmp_path) == {NAMES[moment]: "precious"}
    else:
        write(tmp_path, "new", existing=existing)
        expected = dict.fromkeys(NAMES, "new") | ({NAMES[moment]: "precious"} if existing == "keep" else {})
        assert content(tmp_path) == expected


@pytest.mark.parametrize("there", [(), NAMES[:1], NAMES[1:], NAMES])
@pytest.mark.parametrize("failing", range(len(NAMES)))
def test_an_error_while_names_are_given_leaves_everything_as_it_was(
    there: tuple[str, ...], failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    write_by_hand(output, *there)
    before = folders(tmp_path)
    replace, calls = Path.replace, []

    def failing_once(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == failing + 1:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing_once)
    with pytest.raises(PermissionError) as caught:
        write(output, "new", existing="replace")
    assert caught.value.filename == str(output / NAMES[failing])  # not the hidden name
    assert content(tmp_path) == {f"out/{name}": "old" for name in there}
    assert folders(tmp_path) == before


@pytest.mark.usefixtures("_hard_links")
def test_an_error_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    output = tmp_path / "a" / "out"
    with pytest.raises(RuntimeError), appearing_together(output, [output / name for name in NAMES]):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", 0)])
def test_a_signal_while_names_are_given_waits_for_the_last(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = together._name  # pyright: ignore[reportPrivateUsage]

    def interrupted(*arguments: object) -> None:
        os.kill(os.getpid(), number)
        name(*arguments)  # type: ignore[arg-type]

    def end(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(together, "_name", interrupted)
    before = signal.signal(number, end)
    try:
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, "new")
    finally:
        signal.signal(number, before)
    assert content(tmp_path) == dict.fromkeys(NAMES, "new")


def test_songs_are_told_apart_by_what_they_are_and_not_by_their_names(tmp_path: Path) -> None:
    song, link = tmp_path / "song.wav", tmp_path / "link.wav"
    song.write_text("music")
    link.hardlink_to(song)
    with pytest.raises(ValueError, match=r"link\.wav would be replaced by a stem"):
        check_targets(tmp_path, [link], existing="replace", kept={identity(song), identity(tmp_path / "missing")})
    check_targets(tmp_path, [link], existing="replace")


# Links ---------------------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("target", ["elsewhere", "missing"])
def test_no_link_below_the_output_folder_leads_out_of_it(deep: bool, when: str, target: str, tmp_path: Path) -> None:
    output, outside = tmp_path / "out", tmp_path / target
    output.mkdir()
    if target == "elsewhere":
        outside.mkdir()
    targets = [output / "song" / "deep" / "a.wav" if deep else output / "song" / "a.wav"]
    if when == "before":
        (output / "song").symlink_to(outside)
        with pytest.raises(ValueError, match="leads out of"):
            check_targets(output, targets, existing="replace")
        with pytest.raises(ValueError, match="leads out of"), appearing_together(output, targets):
            pass
    else:

        def exchange() -> None:
            with appearing_together(output, targets):
                (output / "song").rename(tmp_path / "moved")
                (output / "song").symlink_to(outside)

        with pytest.raises(ValueError, match="leads out of"):
            exchange()
    assert not outside.exists() or list(outside.iterdir()) == []


@posix
@pytest.mark.parametrize("existing", ["refuse", "keep", "replace"])
def test_a_link_under_the_name_of_a_stem_is_never_written_through(existing: Existing, tmp_path: Path) -> None:
    write_by_hand(tmp_path, "precious", text="precious")
    (tmp_path / "out").mkdir()
    link = tmp_path / "out" / "a.wav"
    link.symlink_to(tmp_path / "precious")
    try:
        with appearing_together(tmp_path / "out", [link], existing=existing) as (file,):
            file.write(b"new")
    except ValueError:
        assert existing == "refuse"
    assert (tmp_path / "precious").read_text() == "precious"
    assert link.is_symlink() == (existing != "replace")


@posix
def test_the_output_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    write(tmp_path / "out", "new")
    assert content(tmp_path / "disk") == dict.fromkeys(NAMES, "new")


# What others left ----------------------------------------------------------------------------------------------------

OURS = ".0123456789abcdef.0123456789abcdef.hunterFormsBS.wav"
BEFORE = ".0123456789abcdef.hunterFormsBS"  # as an earlier version called its hidden folders


def a_journal(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "0.wav").write_text("stale")
    (folder / "journal").write_text(text)


FOREIGN: dict[str, Callable[[Path, Path], object]] = {
    "a link to a folder": lambda path, other: path.symlink_to(other),
    "a link to a file": lambda path, other: path.symlink_to(other / "precious"),
    "a link to nothing": lambda path, other: path.symlink_to(other / "missing"),
    "a named pipe": lambda path, _other: os.mkfifo(path),
    "a socket": lambda path, _other: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)),
    "an empty folder": lambda path, _other: path.mkdir(),
    "a journal": lambda path, _other: a_journal(path, json.dumps([["0.wav", NAMES[0]], ["0.wav", "../precious"]])),
    "a journal with NUL": lambda path, _other: a_journal(path, json.dumps([["0.wav", "\0"]])),
    "a journal of brackets": lambda path, _other: a_journal(path, "[" * 100_000),
}


@posix
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", [OURS, BEFORE, ".x.hunterFormsBS"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_nothing_that_others_left_is_followed_trusted_moved_or_deleted(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    write_by_hand(tmp_path, "other/precious", text="precious")
    for folder in (tmp_path / "out", tmp_path / "out" / "song"):
        folder.mkdir()
        FOREIGN[kind](folder / name, tmp_path / "other")
    before = {path: path.lstat() for path in [tmp_path / "other" / "precious", *(tmp_path / "out").rglob(f"{name}*")]}
    write(tmp_path / "out", "new")
    write(tmp_path / "out", "newer", existing="replace")
    for folder in (tmp_path / "out", tmp_path / "out" / "song"):
        assert remove_leftovers(tmp_path / "out", folder) == []
    assert {target: (tmp_path / "out" / target).read_text() for target in NAMES} == dict.fromkeys(NAMES, "newer")
    for path, status in before.items():
        assert os.path.samestat(path.lstat(), status)
        assert path.lstat().st_mtime_ns == status.st_mtime_ns
    assert content(tmp_path / "other") == {"precious": "precious"}


@pytest.mark.parametrize(
    ("name", "goes"),
    [
        (OURS, True),
        (OURS.replace(".wav", ".flac"), True),
        (OURS.upper(), False),
        (f"{OURS}.bak", False),
        (OURS[1:], False),
        (OURS.replace("0123", "123"), False),
        (".x.hunterFormsBS", False),
        (".hunterFormsBS", False),
    ],
)
def test_only_files_of_exactly_our_names_are_taken_for_left_by_a_kill(name: str, goes: bool, tmp_path: Path) -> None:
    write_by_hand(tmp_path, f"song/{name}")
    write(tmp_path, "new")
    assert content(tmp_path) == dict.fromkeys(NAMES, "new") | ({} if goes else {f"song/{name}": "old"})


@posix
def test_what_another_user_left_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_by_hand(tmp_path, f"song/{OURS}")
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    write(tmp_path, "new")
    assert content(tmp_path) == {**dict.fromkeys(NAMES, "new"), f"song/{OURS}": "old"}


@posix
def test_where_nothing_can_be_locked_songs_are_written_and_nothing_is_taken_for_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    write_by_hand(tmp_path, f"song/{OURS}")
    monkeypatch.setattr("fcntl.flock", refuse)
    write(tmp_path, "new")
    assert content(tmp_path) == {**dict.fromkeys(NAMES, "new"), f"song/{OURS}": "old"}


# Two at a time -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [NAMES, NAMES[:1], NAMES[2:], (NAMES[1], "song/d.wav")])
def test_a_second_process_on_one_of_the_files_notices_the_first_and_harms_nothing(
    other: tuple[str, ...], tmp_path: Path
) -> None:
    def second() -> None:
        targets = [tmp_path / name for name in other]
        busy = pytest.raises(BusyError, match=r"\.wav is being written by another process: wait for it")
        with busy, appearing_together(tmp_path, targets, existing="replace"):
            pass

    write(tmp_path, "first", meanwhile=second)
    assert content(tmp_path) == dict.fromkeys(NAMES, "first")


def test_two_that_write_different_files_into_one_folder_do_not_notice_each_other(tmp_path: Path) -> None:
    with appearing_together(tmp_path, [tmp_path / "a.wav"]), appearing_together(tmp_path, [tmp_path / "b.wav"]):
        pass
    assert content(tmp_path) == {"a.wav": "", "b.wav": ""}


def test_of_two_that_begin_at_the_same_moment_one_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have made their files before either looks: both step back, and begin again at different moments."""
    started: list[object] = []
    look = together.remove_leftovers

    def begin_another(*arguments: Path) -> list[str]:
        if not started:
            other = appearing_together(tmp_path, [tmp_path / "a.wav"])
            started.append(other)
            with pytest.raises(BusyError):
                other.__enter__()
        return look(*arguments)

    monkeypatch.setattr(together, "remove_leftovers", begin_another)
    with appearing_together(tmp_path, [tmp_path / "a.wav"]) as (file,):
        file.write(b"one")
    assert content(tmp_path) == {"a.wav": "one"}
