"""Songs before the first step: what is wrong with them, and the cache of decoded audio."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from hunterFormsBS.training.cache import Cache, files_of
from hunterFormsBS.training.checking import check_songs, refuse
from hunterFormsBS.training.segments import Segments
from hunterFormsBS.training.truth import Song, find_songs, read

RATE = 8000
STEMS = ("vocals", "drums")


def noise(seconds: float = 1.0, level: float = 0.1, channels: int = 2) -> np.ndarray:
    random = np.random.default_rng(round(seconds * 1000 + level * 100))
    return level * random.uniform(-1, 1, (round(seconds * RATE), channels))


def song(folder: Path, name: str = "A", suffix: str = ".wav", **files: np.ndarray) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    for stem, samples in files.items():
        soundfile.write(str(path / f"{stem}{suffix}"), samples, RATE)
    return path


def remarks_on(folder: Path, **settings: Any) -> list[str]:
    remarks, damages = check_songs(find_songs(folder, STEMS, RATE), RATE, **settings)
    assert damages == []
    return remarks


# ---- the check


def test_songs_that_are_as_they_should_be_have_no_remarks(tmp_path: Path) -> None:
    t = np.arange(RATE)[:, None] / RATE
    vocals, drums = (0.3 * np.sin(2 * np.pi * frequency * t).repeat(2, axis=1) for frequency in (440, 150))
    whole = vocals + drums
    for suffix in (".wav", ".flac", ".mp3"):
        song(tmp_path / suffix, "A", suffix, vocals=vocals, drums=drums, mixture=whole)
        assert remarks_on(tmp_path / suffix, workers=2) == []


CLIPPED = np.clip(noise(level=4.0), -1, 1)


@pytest.mark.parametrize(
    ("drums", "mixture", "remark"),
    [
        (noise(0.5), None, "drums.wav is 0.50 s shorter than the longest stem of the song"),
        (np.zeros((RATE, 2)), None, "drums.wav is silent throughout"),
        (np.full((RATE, 2), 1e-6), None, "drums.wav is silent throughout"),
        (CLIPPED, None, r"drums.wav is clipped in \d+ places"),
        (noise(0.999), noise(), r"mixture.wav is not the sum of the stems: the difference is -?\d\.\d dB below it"),
    ],
)
def test_what_is_wrong_is_said_with_the_name_of_the_file(
    drums: np.ndarray, mixture: np.ndarray | None, remark: str, tmp_path: Path
) -> None:
    song(tmp_path, "good", vocals=noise(), drums=noise(1.02))
    bad = song(tmp_path, "bad", vocals=noise(), drums=drums, **({} if mixture is None else {"mixture": mixture}))
    (found,) = remarks_on(tmp_path)
    assert found.startswith(f"{bad}/")
    assert re.search(remark, found)


def test_loud_peaks_are_not_clipped_ones(tmp_path: Path) -> None:
    peaks = noise()
    peaks[::400] = 1.0  # at full scale, but never for long
    song(tmp_path, vocals=noise(), drums=peaks)
    assert remarks_on(tmp_path) == []


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_damaged_files_are_all_named_and_end_the_run(tmp_path: Path) -> None:
    for name in ("A", "B", "C"):
        song(tmp_path, name, ".flac", vocals=noise(), drums=noise(1.02))
    songs = find_songs(tmp_path, STEMS, RATE)
    cut_off(tmp_path / "A" / "drums.flac")
    soundfile.write(str(tmp_path / "C" / "drums.wav"), np.full((RATE, 2), np.nan), RATE, subtype="FLOAT")
    songs[2] = Song(songs[2].folder, songs[2].length, (songs[2].parts[0], (tmp_path / "C" / "drums.wav",)))
    remarks, damages = check_songs(songs, RATE)
    assert remarks == []
    assert [damage.partition(" ")[0] for damage in damages] == [
        str(tmp_path / "A" / "drums.flac"),
        str(tmp_path / "C" / "drums.wav"),
    ]
    with pytest.raises(
        ValueError, match=r"the data have 2 songs that cannot be trained on: .*A/drums\.flac .*not finite"
    ):
        refuse(damages)
    refuse([])


# ---- the cache


def segments(songs: list[Song], **settings: Any) -> Segments:
    wanted = {"chunk_size": 700, "channels": 2, "seed": 1, "targets": [0, 1], "remix": 0.5}
    return Segments(songs, **{**wanted, **settings})


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg"])
@pytest.mark.parametrize("channels", [1, 2])
def test_segments_from_the_cache_are_those_from_the_files(suffix: str, channels: int, tmp_path: Path) -> None:
    song(tmp_path / "songs", "A", suffix, vocals=noise(), drums=noise(0.7, channels=1), mixture=noise(0.9))
    songs = find_songs(tmp_path / "songs", STEMS, RATE)
    cache = Cache(tmp_path / "cache")
    cache.fill(files_of(songs), workers=2)
    plain, cached = (
        segments(songs, channels=channels, own_mixture=True, reading=reading) for reading in (read, cache.read)
    )
    for index in range(10):
        for ours, theirs in zip(cached[index], plain[index], strict=True):
            # An MP3 decoder that starts in the middle knows a little less of what came before.
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3 if suffix == ".mp3" else 1e-6)


def test_the_cache_is_filled_once_and_again_for_files_that_have_changed(tmp_path: Path) -> None:
    path = song(tmp_path / "songs", vocals=noise(), drums=noise(0.7)) / "vocals.wav"
    cache = Cache(tmp_path / "cache")
    files = files_of(find_songs(tmp_path / "songs", STEMS, RATE))
    cache.fill(files)
    first = {each: each.stat().st_mtime_ns for each in cache.folder.iterdir()}
    assert len(first) == 2
    cache.fill(files)
    assert {each: each.stat().st_mtime_ns for each in cache.folder.iterdir()} == first
    soundfile.write(str(path), noise(0.8, level=0.2), RATE)
    cache.fill(files)
    assert len(list(cache.folder.iterdir())) == 3
    np.testing.assert_array_equal(cache.read(path, 100, 50, 2), read(path, 100, 50, 2))


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_the_cache_keeps_every_bit_of_a_file(subtype: str, tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(str(path), noise(), RATE, subtype=subtype)
    cache = Cache(tmp_path / "cache")
    cache.fill([path])
    np.testing.assert_array_equal(cache.read(path, 0, RATE + 5, 2), read(path, 0, RATE + 5, 2))


def test_a_damaged_file_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    path = song(tmp_path, "A", ".flac", vocals=noise()) / "vocals.flac"
    cut_off(path)
    cache = Cache(tmp_path / "cache")
    with pytest.raises(ValueError, match=rf"{path} cannot be read"):
        cache.fill([path])
    assert list(cache.folder.iterdir()) == []
