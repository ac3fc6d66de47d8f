"""Songs found by what the arguments name."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hunterFormsBS.console import Console
from hunterFormsBS.failures import UsageError
from hunterFormsBS.songs.ffmpeg import is_audio
from hunterFormsBS.songs.finding import STANDARD_INPUT, Song, find_songs
from tests.media import KINDS, encode, noise


@pytest.fixture
def copies() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found(copies: ExitStack, *given: Path, output: Path = Path("nowhere")) -> list[Song]:
    return find_songs(given, output, copies, Console("test"))


def test_one_file_given_twice_is_one(tmp_path: Path, copies: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "song.wav")
    (tmp_path / "link.wav").symlink_to(tmp_path / "song.wav")
    monkeypatch.chdir(tmp_path)
    given = [Path("song.wav"), tmp_path / "song.wav", Path("x/../song.wav"), Path("link.wav"), Path("*.wav"), tmp_path]
    (tmp_path / "x").mkdir()
    assert [song.path for song in found(copies, *given)] == [Path("song.wav")]


def test_patterns_that_the_shell_left_are_expanded(tmp_path: Path, copies: ExitStack) -> None:
    touch(tmp_path / "b.wav", tmp_path / "a.wav", tmp_path / "c.txt", tmp_path / "deep" / "d.wav")
    assert [song.path.name for song in found(copies, tmp_path / "*.wav")] == ["a.wav", "b.wav"]
    assert [song.path.name for song in found(copies, tmp_path / "**" / "*.wav")] == ["a.wav", "b.wav", "d.wav"]
    with pytest.raises(UsageError, match=r"nothing matches .*\*\.mp3"):
        found(copies, tmp_path / "*.mp3")


def test_brackets_in_the_name_of_a_file_are_brackets(tmp_path: Path, copies: ExitStack) -> None:
    song = tmp_path / "song [live].wav"
    touch(song)
    assert [each.path for each in found(copies, song, tmp_path / "missing [live].wav")] == [
        song,
        tmp_path / "missing [live].wav",
    ]


def test_folders_keep_their_tree_and_leave_out_what_was_written_there_before(tmp_path: Path, copies: ExitStack) -> None:
    touch(tmp_path / "a.wav", tmp_path / "cd 1" / "b.FLAC", tmp_path / ".hidden.wav", tmp_path / "cover.jpg")
    touch(tmp_path / "out" / "a" / "vocals.wav")
    songs = found(copies, tmp_path, output=tmp_path / "out")
    assert [(song.path.name, str(song.folder)) for song in songs] == [("a.wav", "."), ("b.FLAC", "cd 1")]


def test_what_is_hidden_in_a_folder_is_no_song(tmp_path: Path, copies: ExitStack) -> None:
    touch(tmp_path / "a.wav", tmp_path / ".hidden.wav", tmp_path / ".trash" / "cd" / "b.wav", tmp_path / "c.wav" / "x")
    assert [song.path.name for song in found(copies, tmp_path)] == ["a.wav"]
    # A folder that is hidden can be asked for.
    assert [song.path.name for song in found(copies, tmp_path / ".trash")] == ["b.wav"]


def test_stems_cannot_be_written_among_the_songs_of_the_next_run(
    tmp_path: Path, copies: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "a.wav")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"is the folder that songs are taken from.*stems"):
        found(copies, tmp_path, output=Path())
    assert found(copies, tmp_path / "a.wav", output=Path())


def test_folders_that_a_pattern_matches_may_be_without_audio(tmp_path: Path, copies: ExitStack) -> None:
    touch(tmp_path / "in" / "a.wav", tmp_path / "in" / "scans" / "cover.jpg")
    assert [song.path.name for song in found(copies, tmp_path / "in" / "*")] == ["a.wav"]
    with pytest.raises(UsageError, match="only folders without audio files match"):
        found(copies, tmp_path / "in" / "s*")


def test_a_folder_without_audio_is_refused(tmp_path: Path, copies: ExitStack) -> None:
    touch(tmp_path / "cover.jpg")
    with pytest.raises(UsageError, match="is a folder without audio files"):
        found(copies, tmp_path)


def test_standard_input_is_copied_until_the_end(copies: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"music" * 1000)))
    (song,) = found(copies, STANDARD_INPUT, STANDARD_INPUT)
    assert song.name == "stdin"
    assert song.source.read_bytes() == b"music" * 1000
    copies.close()
    assert not song.source.exists()


def test_a_closed_standard_input_is_refused(copies: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="standard input is closed"):
        found(copies, STANDARD_INPUT)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_waited_for_with_a_word(
    tmp_path: Path, copies: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "song.wav"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(b"music"), daemon=True)
    writer.start()
    (tmp_path / "x").mkdir()
    (song,) = found(copies, pipe, tmp_path / "x" / ".." / "song.wav")  # which is not waited for again
    writer.join()
    assert (song.path, song.name, song.source.read_bytes()) == (pipe, "song", b"music")
    assert f"{pipe} is a named pipe: waiting until a program writes" in capsys.readouterr().err


def test_a_temporary_folder_that_is_full_is_named(
    tmp_path: Path, copies: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"music")))
    with pytest.raises(OSError, match="No space left on device for the contents of -") as caught:
        found(copies, STANDARD_INPUT)
    assert str(caught.value.filename).startswith(str(tmp_path))


LEFT_OUT = {
    "notes.txt": b"Dear diary, today I sang.\n" * 50,
    "list.m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nsong.tta\n#EXT-X-ENDLIST\n",
    "cover.webp": b"RIFF\x24\0\0\0WEBPVP8 " + bytes(24),  # which begins as WAV does
    "cover.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),  # as M4A
    "cover.jpg": b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(range(256)) * 40,
    "cover.png": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40,
    "song.lrc": b"[00:01.00] la\n" * 99,
    "song.srt": b"1\n00:00:01,000 --> 00:00:02,000\nla\n\n" * 99,
    "noise.bin": random.Random(0).randbytes(50_000),
    "nothing": b"",
}


@pytest.fixture(scope="module")
def playing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of files of every kind that plays."""
    return encode(tmp_path_factory.mktemp("playing") / "songs", noise(0.4))


def test_everything_that_plays_is_taken_from_a_folder_whatever_its_suffix(playing: Path, copies: ExitStack) -> None:
    taken = {song.path.name for song in found(copies, playing)}
    assert taken == set(KINDS)
    assert all(is_audio(file) for file in playing.iterdir())


def test_what_is_left_out_of_a_folder_is_counted_by_reason_and_named_in_the_records(
    playing: Path, tmp_path: Path, copies: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    songs = tmp_path / "songs"
    touch(songs / "._song.wav", songs / ".trash" / "a.wav", songs / "out" / "song" / "vocals.wav")
    for name, content in LEFT_OUT.items():
        (songs / name).write_bytes(content)
    shutil.copy(playing / "tta.tta", songs / "song.tta")
    console = Console("test")
    console.json = True
    assert [song.path.name for song in find_songs([songs], songs / "out", copies, console)] == ["song.tta"]
    printed = capsys.readouterr()
    assert re.findall(r"(\d+) (hidden|not audio|written)", printed.err) == [
        ("2", "hidden"),
        (str(len(LEFT_OUT)), "not audio"),
        ("1", "written"),
    ]
    records = [json.loads(line) for line in printed.out.splitlines()]
    assert {Path(record["song"]).name for record in records} == {*LEFT_OUT, "._song.wav", "a.wav", "vocals.wav"}
    assert {record["status"] for record in records} == {"left out"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_within_a_folder_are_not_waited_for(tmp_path: Path, copies: ExitStack) -> None:
    touch(tmp_path / "a.wav")
    os.mkfifo(tmp_path / "b.wav")
    (tmp_path / "c.wav").symlink_to(tmp_path / "nowhere.wav")
    assert [song.path.name for song in found(copies, tmp_path)] == ["a.wav"]
