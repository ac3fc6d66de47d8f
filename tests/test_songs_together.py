"""Files of one song: all of them appear or none, after errors, kills and second processes too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from hunterFormsBS.songs import together
from hunterFormsBS.songs.together import BusyError, appearing_together, check_targets, finish_leftovers, identities

NAMES = ("song/a.wav", "song/b.wav", "elsewhere/c.wav")


def content(folder: Path) -> dict[str, str]:
    """Return what is in all files below a folder."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(output: Path, text: str, *, overwrite: bool = False, meanwhile: Callable[[], object] | None = None) -> None:
    with appearing_together(output, [output / name for name in NAMES], overwrite=overwrite) as places:
        for place in places:
            place.write_text(text)
        if meanwhile is not None:
            meanwhile()


def test_nothing_is_there_before_the_end_and_everything_after_it(tmp_path: Path) -> None:
    output = tmp_path / "out"
    targets = [output / name for name in NAMES]
    with appearing_together(output, targets) as places:
        for place in places:
            place.write_text("new")
        assert not any(target.exists() for target in targets)
    assert content(output) == dict.fromkeys(NAMES, "new")
    assert {path.name for path in output.iterdir()} == {"song", "elsewhere"}


@pytest.mark.parametrize("existing", [(), NAMES[:1], NAMES[1:], NAMES])
@pytest.mark.parametrize("failing", range(8))
def test_an_error_in_any_rename_leaves_everything_as_it_was(
    existing: tuple[str, ...], failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    for name in existing:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("old")
    folders = {path for path in tmp_path.rglob("*") if path.is_dir()}
    rename, calls = together._rename, []  # pyright: ignore[reportPrivateUsage]

    def failing_once(before: Path, after: Path) -> None:
        calls.append(before)
        if len(calls) == failing + 1:
            raise PermissionError(13, "Permission denied", str(after))
        rename(before, after)

    monkeypatch.setattr(together, "_rename", failing_once)
    if failing >= len(NAMES) + len(existing):
        write(output, "new", overwrite=True)
        assert content(output) == dict.fromkeys(NAMES, "new")
        return
    with pytest.raises(PermissionError):
        write(output, "new", overwrite=True)
    assert content(tmp_path) == {f"out/{name}": "old" for name in existing}
    assert {path for path in tmp_path.rglob("*") if path.is_dir()} == folders


def test_a_file_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "song").mkdir()
    with pytest.raises(ValueError, match="exists: pass --overwrite"):
        write(tmp_path, "new", meanwhile=lambda: (tmp_path / NAMES[1]).write_text("precious"))
    assert content(tmp_path) == {NAMES[1]: "precious"}


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", 0)])
def test_a_signal_among_the_renames_waits_for_their_end(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = together._rename  # pyright: ignore[reportPrivateUsage]

    def interrupted(before: Path, after: Path) -> None:
        rename(before, after)
        os.kill(os.getpid(), number)

    def end(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(together, "_rename", interrupted)
    before = signal.signal(number, end)
    try:
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, "new")
    finally:
        signal.signal(number, before)
    assert content(tmp_path) == dict.fromkeys(NAMES, "new")


KILLED = """
    import os, sys
    from pathlib import Path
    from hunterFormsBS.songs import together

    output, when = Path(sys.argv[1]), sys.argv[2]
    rename, calls = together._rename, []

    def killed(before, after):
        if when == str(len(calls)):
            os.kill(os.getpid(), 9)
        calls.append(before)
        rename(before, after)

    together._rename = killed
    with together.appearing_together(output, [output / name for name in sys.argv[3:]], overwrite=True) as places:
        for place in places:
            place.write_text("new")
        if when == "writing":
            os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot kill like this")
@pytest.mark.parametrize("when", ["writing", "0", "1", "3"])
@pytest.mark.parametrize("again", [False, True])
def test_what_a_killed_process_left_is_finished_or_removed(when: str, again: bool, tmp_path: Path) -> None:
    (tmp_path / "song").mkdir()
    (tmp_path / NAMES[0]).write_text("old")
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), when, *NAMES]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    assert subprocess.run(command, env=environment, check=False).returncode == -9
    assert len(list(tmp_path.glob(".*"))) == 1
    if again:
        write(tmp_path, "newer", overwrite=True)
        assert content(tmp_path) == dict.fromkeys(NAMES, "newer")
    else:
        finish_leftovers(tmp_path)
        assert content(tmp_path) == ({NAMES[0]: "old"} if when == "writing" else dict.fromkeys(NAMES, "new"))
    assert not list(tmp_path.glob(".*"))


def test_a_second_process_notices_the_first_and_harms_nothing(tmp_path: Path) -> None:
    with appearing_together(tmp_path, [tmp_path / name for name in NAMES]) as places:
        with pytest.raises(BusyError, match=r"song/a\.wav is being written by another process: wait for it"):
            write(tmp_path, "second")
        finish_leftovers(tmp_path)
        for place in places:
            place.write_text("first")
    assert content(tmp_path) == dict.fromkeys(NAMES, "first")


def test_a_journal_leads_nowhere_else(tmp_path: Path) -> None:
    output = tmp_path / "out"
    folder = output / ".0123.hunterFormsBS"
    folder.mkdir(parents=True)
    (folder / "0.wav").write_text("x")
    (folder / "journal").write_text('[["0.wav", "../stolen.wav"]]')
    finish_leftovers(output)
    assert content(tmp_path) == {}


def test_songs_are_told_apart_by_what_they_are_and_not_by_their_names(tmp_path: Path) -> None:
    song, link = tmp_path / "song.wav", tmp_path / "link.wav"
    song.write_text("music")
    link.hardlink_to(song)
    with pytest.raises(ValueError, match=r"link\.wav would be replaced by a stem"):
        check_targets([link], overwrite=True, kept=identities([song, tmp_path / "missing"]))
    check_targets([link], overwrite=True)


@pytest.mark.parametrize("journal", ["", "5", "[[1]]", '[["0.wav"', '{"a": 1}'])
def test_a_journal_that_is_none_is_removed(journal: str, tmp_path: Path) -> None:
    hidden = tmp_path / ".0.hunterFormsBS"
    hidden.mkdir()
    (hidden / "journal").write_text(journal)
    (hidden / "0.wav").write_bytes(b"half")
    finish_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []
