"""Tags and cover art: from every container that has them into every format that is written."""

from __future__ import annotations

import base64
import random
import subprocess
import sys
import warnings
import zlib
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
import torch

from hunterFormsBS.choices import FORMATS, Format
from hunterFormsBS.limits import LARGEST_PICTURES, LONGEST_TAG, MOST_TAGS
from hunterFormsBS.songs.encodings import DEPTHS, Encoding
from hunterFormsBS.songs.reading import read_audio
from hunterFormsBS.songs.tags import FRAMES, Tags, read_tags, write_tags
from hunterFormsBS.songs.writing import writing_together

RATE = 48000
TEXTS = {"title": ["Dédé"], "artist": ["One", "Two"], "album": ["An Album"], "tracknumber": ["3/12"], "date": ["1999"]}
COVER = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


def write(path: Path, kind: Format) -> Path:
    encoding = Encoding(kind, DEPTHS[kind])
    with writing_together(path.parent, {"a": path}, RATE, encoding, existing="replace") as folder:
        folder.open(2)[0].write(torch.zeros(2, RATE))
    return path


def picture() -> Any:
    made = mutagen.flac.Picture()
    made.data, made.mime, made.type = COVER, "image/png", 3
    return made


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_written_is_read_back_and_the_audio_is_not_changed(kind: Format, tmp_path: Path) -> None:
    path = write(tmp_path / f"a.{kind}", kind)
    before, _ = read_audio(path)
    write_tags(Tags(TEXTS, [picture()]), [path])
    tags = read_tags(path)
    assert tags.texts == TEXTS
    assert [(one.data, one.mime, one.type) for one in tags.pictures] == [(COVER, "image/png", 3)]
    after, _ = read_audio(path)
    assert torch.equal(before, after)


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


def syncsafe(size: int) -> bytes:
    return bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))


def compressed_title(size: int, frames: int = 1) -> bytes:
    """Return an ID3 tag of titles of so many bytes, compressed a thousandfold."""
    packed = zlib.compress(b"\x03" + bytes([65]) * size, 9)
    frame = b"TIT2" + syncsafe(len(packed) + 4) + b"\x00\x09" + syncsafe(size + 1) + packed
    return b"ID3\x04\x00\x00" + syncsafe(len(frame) * frames) + frame * frames


def within(path: Path, tag: bytes) -> Path:
    """Put an ID3 tag where a container has it."""
    kind = path.suffix[1:]
    if kind == "mp3":
        write(path, kind)
        path.write_bytes(tag + path.read_bytes())
        return path
    soundfile.write(path, np.zeros((RATE, 2)), RATE)
    order: Any = "little" if kind == "wav" else "big"
    content = path.read_bytes() + b"ID3 " + len(tag).to_bytes(4, order) + tag + bytes(len(tag) % 2)
    path.write_bytes(content[:4] + (len(content) - 8).to_bytes(4, order) + content[8:])
    return path


MEASURED = """
import sys, warnings
from pathlib import Path
from hunterFormsBS.songs.reading import read_audio
from hunterFormsBS.songs.tags import read_tags
warnings.simplefilter("ignore")
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) >> 10
before = peak()
for name in sys.argv[1:]:
    read_audio(Path(name))
    texts = read_tags(Path(name)).texts
    assert sum(len(text) for values in texts.values() for text in values) < 100_000, name
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak of a process")
def test_compressed_tags_take_no_more_memory_than_the_limit_and_leave_no_long_title(tmp_path: Path) -> None:
    # One process for all, since it has to import PyTorch.
    large = compressed_title(256 << 20)
    files = [within(tmp_path / f"a.{kind}", large) for kind in ("mp3", "wav", "aiff")]
    files.append(within(tmp_path / "many.mp3", compressed_title(16 << 20, frames=20)))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, files)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 256


def test_titles_and_pictures_without_measure_are_cut_off_with_a_warning(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp3", "mp3")
    frames = mutagen.id3.ID3()
    frames.add(mutagen.id3.TIT2(encoding=3, text="x" * 2_000_000))
    frames.add(mutagen.id3.TPE1(encoding=3, text=["y"] * 10_000))
    frames.add(mutagen.id3.APIC(encoding=0, mime="image/png", type=3, desc="", data=bytes(LARGEST_PICTURES + 1)))
    frames.save(path)
    with pytest.warns(UserWarning, match="of the song") as caught:
        tags = read_tags(path)
    assert [len(tags.texts["title"][0]), len(tags.texts["artist"]), len(tags.pictures)] == [LONGEST_TAG, MOST_TAGS, 0]
    assert [str(warning.message).partition(":")[0] for warning in caught] == [
        "artist, title of the song",
        "the pictures of the song have 32 MiB and are left out",
    ]
    (tmp_path / "out").mkdir()
    for kind in FORMATS:
        stem = write(tmp_path / "out" / f"a.{kind}", kind)
        write_tags(tags, [stem])
        assert read_tags(stem).texts == tags.texts


@pytest.mark.parametrize("seed", range(3))
def test_damaged_tags_of_every_format_end_no_song(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    for kind in FORMATS:
        path = write(tmp_path / f"a.{kind}", kind)
        write_tags(Tags(TEXTS, [picture()]), [path])
        whole = path.read_bytes()
        start = max(0, whole.find(b"Album") - 200)
        for _ in range(10):
            content = bytearray(whole)
            place = start + dice.randrange(400)
            content[place : place + 4] = dice.randbytes(dice.choice((1, 4, 40)))
            path.write_bytes(content)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = read_tags(path)
            assert set(found.texts) <= set(FRAMES)
            assert all(len(text) <= LONGEST_TAG for texts in found.texts.values() for text in texts)
