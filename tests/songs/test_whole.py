"""Every song whole: what is read of joined, chained and damaged files, with FFmpeg's own program as the oracle."""

from __future__ import annotations

import random
import re
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from hunterFormsBS.songs.reading import probe_audio, read_audio
from tests.media import KINDS, RATE, by_program, encode, noise

FIRST, SECOND = noise(1.0), noise(0.7, seed=1)


def read(path: Path) -> tuple[np.ndarray, list[str]]:
    """Return what is read, and what is said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        audio = torch.cat(list(probe_audio(path).blocks(7777)), dim=-1)
    return audio.numpy(), [str(warning.message) for warning in caught]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two songs of every kind, in `first` and `second`."""
    path = tmp_path_factory.mktemp("kinds")
    for name, samples in (("first", FIRST), ("second", SECOND)):
        encode(path / name, samples)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_whole_and_joined_files_are_read_as_ffmpeg_reads_them_without_a_word(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    first, second = ((folder / name / kind).read_bytes() for name in ("first", "second"))
    for content in (first, first + second):
        (tmp_path / kind).write_bytes(content)
        audio, said = read(tmp_path / kind)
        assert np.array_equal(audio, by_program(tmp_path / kind))
        # Nothing after the first part of these can be found by their headers.
        assert said == [] or (content != first and kind.endswith((".wma", ".asf")))


@pytest.mark.parametrize("kind", KINDS)
def test_cut_and_damaged_files_are_read_as_ffmpeg_reads_them_or_refused_in_one_line(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    whole = (folder / "first" / kind).read_bytes()
    dice = random.Random(kind)
    for length in (0, 1, 2000):
        content = bytearray(whole)
        start = dice.randrange(len(whole) // 4, len(whole) - length)
        content[start : start + length] = dice.randbytes(length)
        (tmp_path / kind).write_bytes(content if length else content[:start])
        said: list[str] = []
        try:
            audio, said = read(tmp_path / kind)
        except ValueError as error:
            refused = str(error)
        else:
            refused = ""
            np.testing.assert_array_equal(audio, by_program(tmp_path / kind))
        assert refused == "" or re.search("is not audio|has NaN|none of its samples", refused)
        assert len(said) < 2


@pytest.mark.parametrize(
    "kind", ["libmp3lame.mp3", "libvorbis.ogg", "libopus.opus", "flac.flac", "mp2.mp2", "aac.aac", "ac3.ac3", "aac.ts"]
)
def test_of_joined_and_chained_files_both_parts_are_there(kind: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / kind).write_bytes(b"".join((folder / name / kind).read_bytes() for name in ("first", "second")))
    audio, said = read(tmp_path / kind)
    assert audio.shape[-1] == pytest.approx(FIRST.shape[-1] + SECOND.shape[-1], abs=6000)
    assert np.abs(audio[:, -RATE // 4 :]).max() > 0.3
    assert said == []


@pytest.mark.parametrize(
    "kind", ["libmp3lame.mp3", "mp2.mp2", "aac.aac", "ac3.ac3", "flac.flac", "libvorbis.ogg", "libopus.opus", "aac.m4a"]
)
def test_damage_in_the_middle_is_left_out_with_one_warning_that_says_where_and_how_much(
    kind: str, tmp_path: Path
) -> None:
    path = encode(tmp_path, noise(6.0), [kind]) / kind
    content = bytearray(path.read_bytes())
    bad = len(content) // 12 if kind == "flac.flac" else 3000
    middle = len(content) // 2
    content[middle : middle + bad] = random.Random(0).randbytes(bad)
    path.write_bytes(content)
    audio, said = read(path)
    (message,) = said
    found = re.search(
        r"is damaged at (?:\d+ points from )?(\d+\.\d\d) s.* about (\d+\.\d\d) s cannot be decoded", message
    )
    assert found is not None
    where, lost = map(float, found.groups())
    # Pages of Ogg have up to a second, which is lost as a whole.
    assert where == pytest.approx(3.0, abs=1.1 if kind.endswith((".ogg", ".opus")) else 0.4)
    assert 0 < lost < 2.2
    assert audio.shape[-1] / RATE + lost == pytest.approx(6.0, abs=0.2)


def test_an_mp3_of_variable_rate_without_a_header_of_its_length_is_read_without_a_word(tmp_path: Path) -> None:
    audio = noise(6.0)
    audio[:, : 3 * RATE] = 0  # The rate of the beginning is no measure of the whole.
    path = tmp_path / "a.mp3"
    soundfile.write(path, audio.T, RATE, bitrate_mode="VARIABLE", compression_level=0)
    content = path.read_bytes()
    start = max(content.find(b"Xing"), content.find(b"Info"))
    assert start > 0
    second = content.index(content[content.index(b"\xff\xfb") :][:2], start)
    path.write_bytes(content[second:])
    got, said = read(path)
    assert got.shape[-1] == pytest.approx(audio.shape[-1], abs=3000)
    assert said == []


CONTAINERS = ("WAV", "WAVEX", "W64", "RF64", "AIFF", "CAF", "AU", "FLAC")
SUBTYPES = ("PCM_16", "PCM_24", "PCM_32", "PCM_U8", "FLOAT", "DOUBLE")


@pytest.mark.parametrize(
    ("container", "subtype"), [pair for pair in product(CONTAINERS, SUBTYPES) if soundfile.check_format(*pair)]
)
def test_every_sample_is_that_of_libsndfile(container: str, subtype: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    soundfile.write(path, noise(0.1, channels=1)[0], 44100, format=container, subtype=subtype)
    expected, _ = soundfile.read(path, dtype="float32", always_2d=True)
    audio, rate = read_audio(path)
    assert rate == 44100
    assert np.array_equal(audio.numpy(), expected.T)


@pytest.mark.parametrize("channels", [3, 64, 255])
def test_many_channels_are_told_with_their_number(channels: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((9, channels)), RATE, format="WAVEX")
    with pytest.raises(ValueError, match=f"a.wav has {channels} channels, but at most 2"):
        probe_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("channels", [0, 65535])
def test_channels_that_no_file_has_are_refused_in_one_line_without_an_address(channels: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((9, 2)), RATE)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[22:24] = channels.to_bytes(2, "little")
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(
        ValueError,
        match=r"a\.wav (is not audio that FFmpeg decodes|says that it has 0 channels|has 65535 channels, but)",
    ) as caught:
        probe_audio(tmp_path / "a.wav")
    assert "0x" not in str(caught.value)


def test_channels_that_cannot_be_mixed_down_are_refused_in_one_line(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((RATE, 255)), RATE, format="WAVEX")
    with pytest.raises(ValueError, match="cannot mix 255 channels down"):
        list(probe_audio(tmp_path / "a.wav", downmix=True).blocks())


def test_parts_with_other_rates_and_channels_get_those_of_the_first(tmp_path: Path) -> None:
    first = (encode(tmp_path / "first", noise(1.0), ["libmp3lame.mp3"]) / "libmp3lame.mp3").read_bytes()
    second = (
        encode(tmp_path / "second", noise(0.5, channels=1), ["libmp3lame.mp3"], rate=44100) / "libmp3lame.mp3"
    ).read_bytes()
    (tmp_path / "a.mp3").write_bytes(first + second)
    audio, _ = read(tmp_path / "a.mp3")
    assert audio.shape[0] == 2
    assert audio.shape[-1] == pytest.approx(1.5 * RATE, abs=5000)


def test_a_stream_that_begins_in_the_middle_of_a_file_takes_nothing_from_the_song(tmp_path: Path) -> None:
    # Longer than what FFmpeg looks at to find streams.
    path = encode(tmp_path / "long", noise(40.0), ["aac.flv"]) / "aac.flv"
    content, middle = path.read_bytes(), 13
    while middle < len(content) // 2:  # tags: a kind, a size of three bytes, seven more, the content, its whole size
        middle += 11 + int.from_bytes(content[middle + 1 : middle + 4]) + 4
    video = b"\x09" + (20).to_bytes(3) + content[middle + 4 : middle + 8] + bytes(3) + b"\x12" + bytes(19)
    changed = tmp_path / "b.flv"
    changed.write_bytes(content[:middle] + video + len(video).to_bytes(4) + content[middle:])
    (audio, said), (expected, _) = read(changed), read(path)
    assert np.array_equal(audio, expected)
    assert said == []
