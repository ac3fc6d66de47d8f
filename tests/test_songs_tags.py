"""Tags and cover art: from every container that has them into every format that is written."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

import av
import mutagen
import mutagen.flac
import mutagen.id3
import mutagen.mp4
import numpy as np
import pytest
import soundfile

from hunterFormsBS.songs.tags import Tags, read_tags, write_tags
from hunterFormsBS.songs.writing import DEPTHS, FORMATS, SUBTYPES, Format

RATE = 48000
TEXTS = {"title": ["Dédé"], "artist": ["One", "Two"], "album": ["An Album"], "tracknumber": ["3/12"], "date": ["1999"]}
COVER = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


def write(path: Path, kind: str) -> Path:
    container = {"opus": "OGG"}.get(kind, kind.upper())
    soundfile.write(path, np.zeros((RATE, 2)), RATE, format=container, subtype=SUBTYPES[kind, DEPTHS[kind]])  # type: ignore[index]
    return path


def picture() -> Any:
    made = mutagen.flac.Picture()
    made.data, made.mime, made.type = COVER, "image/png", 3
    return made


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_written_is_read_back_and_the_audio_is_not_changed(kind: Format, tmp_path: Path) -> None:
    path = write(tmp_path / f"a.{kind}", kind)
    before, _ = soundfile.read(path)
    write_tags(Tags(TEXTS, [picture()]), [path])
    tags = read_tags(path)
    assert tags.texts == TEXTS
    assert [(one.data, one.mime, one.type) for one in tags.pictures] == [(COVER, "image/png", 3)]
    after, _ = soundfile.read(path)
    assert np.array_equal(before, after)


def mp3(path: Path) -> None:
    write(path, "mp3")
    frames = mutagen.id3.ID3()
    for frame, text in (
        ("TIT2", "Dédé"),
        ("TPE1", ["One", "Two"]),
        ("TALB", "An Album"),
        ("TRCK", "3/12"),
        ("TDRC", "1999"),
    ):
        frames.add(getattr(mutagen.id3, frame)(encoding=3, text=text))
    frames.add(mutagen.id3.APIC(encoding=0, mime="image/png", type=3, desc="", data=COVER))
    frames.save(path)


def m4a(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, RATE), "float32"), "fltp", "mono")
        frame.sample_rate = RATE
        container.mux([*stream.encode(frame), *stream.encode(None)])
    song = mutagen.mp4.MP4(path)
    song["\xa9nam"], song["\xa9ART"], song["\xa9alb"], song["\xa9day"] = "Dédé", ["One", "Two"], "An Album", "1999"
    song["trkn"] = [(3, 12)]
    song["covr"] = [mutagen.mp4.MP4Cover(COVER, mutagen.mp4.MP4Cover.FORMAT_PNG)]
    song.save()


def opus(path: Path) -> None:
    write(path, "opus")
    song = mutagen.File(path)
    song.update({**TEXTS, "replaygain_track_gain": ["-3 dB"]})
    song["metadata_block_picture"] = [base64.b64encode(picture().write()).decode()]
    song.save()


@pytest.mark.parametrize("make", [mp3, m4a, opus])
def test_tags_of_other_programs_are_read(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "song"
    make(path.with_suffix(f".{make.__name__}"))
    tags = read_tags(path.with_suffix(f".{make.__name__}"))
    assert tags.texts == TEXTS  # and no loudness, which is that of the whole song
    assert [(one.data, one.mime) for one in tags.pictures] == [(COVER, "image/png")]


@pytest.mark.parametrize(("name", "codec"), [("a.wav", "pcm_s16le"), ("a.mka", "pcm_s16le"), ("a.caf", "pcm_s16be")])
def test_what_mutagen_does_not_know_is_read_by_ffmpeg(name: str, codec: str, tmp_path: Path) -> None:
    with av.open(str(tmp_path / name), "w") as container:
        container.metadata.update({"title": "Dédé", "artist": "One", "comment": "none of ours"})
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, RATE), "int16"), "s16", "mono")
        frame.sample_rate = RATE
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert read_tags(tmp_path / name) == Tags({"title": ["Dédé"], "artist": ["One"]}, [])


@pytest.mark.parametrize(
    "content", [b"", b"RIFF", b"fLaC" + bytes(99), b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + bytes(50), b"OggS" * 99]
)
def test_damaged_tags_are_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    assert read_tags(path) == Tags({}, [])


def test_without_mutagen_there_are_no_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.flac", "flac")
    write_tags(Tags(TEXTS, []), [path])
    monkeypatch.setitem(sys.modules, "mutagen", None)
    assert read_tags(path) == Tags({}, [])


def test_rf64_has_no_tags_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros((100, 2)), RATE, format="RF64")
    content = path.read_bytes()
    write_tags(Tags(TEXTS, [picture()]), [path])
    assert path.read_bytes() == content


def test_a_cover_that_is_too_large_is_left_out_with_a_warning_and_the_texts_stay(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", "flac")
    large = picture()
    large.data = bytes(1 << 24)
    with pytest.warns(UserWarning, match="the pictures of the song cannot be written to flac"):
        write_tags(Tags(TEXTS, [large]), [path])
    assert read_tags(path) == Tags(TEXTS, [])
