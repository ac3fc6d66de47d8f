"""Files of stems combined: what the ensemble makes of the same samples in memory, and clear refusals."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mutagen
import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from hunterFormsBS.choices import ENSEMBLES
from hunterFormsBS.ensemble import combine
from hunterFormsBS.program.dispatch import main
from hunterFormsBS.songs import combining
from hunterFormsBS.songs.reading import AudioFile, read_audio

RATE = 8000

# The program's warnings are its messages, not those of the tests.
pytestmark = pytest.mark.filterwarnings("default::UserWarning")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Return three files of one length, of different kinds."""
    paths = [tmp_path / name for name in ("a.wav", "b.flac", "c.wav")]
    for seed, path in enumerate(paths):
        audio = np.random.default_rng(seed).uniform(-0.5, 0.5, (9001, 2))
        soundfile.write(path, audio, RATE, subtype="PCM_24" if path.suffix == ".flac" else "FLOAT")
    return paths


def call(*arguments: object) -> int:
    return main(["combine", *map(str, arguments)])


@pytest.mark.parametrize("kind", ENSEMBLES)
def test_files_are_combined_as_tensors_are(
    kind: Any, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "out.wav"
    assert call(*files, "--ensemble", kind, "--output", output) == 0
    assert capsys.readouterr().out == f"{output}\n"
    expected = combine([read_audio(path)[0] for path in files], kind)
    audio, rate = read_audio(output)
    assert rate == RATE
    torch.testing.assert_close(audio, expected, rtol=0, atol=1e-6)


def test_weights_belong_to_the_files_in_their_order_and_tags_are_those_of_the_first(
    files: list[Path], tmp_path: Path
) -> None:
    song = mutagen.File(files[1])
    song["title"] = "A Song"
    song.save()
    output = tmp_path / "out.flac"
    assert call(files[1], files[0], "--weights", "3,1", "--output", output) == 0
    expected = 0.75 * read_audio(files[1])[0] + 0.25 * read_audio(files[0])[0]
    torch.testing.assert_close(read_audio(output)[0], expected, rtol=0, atol=2**-22)
    assert mutagen.File(output)["title"] == ["A Song"]


def test_blocks_of_long_files_are_not_kept(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive, most = 0, 0

    def release() -> None:
        nonlocal alive
        alive -= 1

    def blocks(_self: AudioFile) -> Iterator[Tensor]:
        nonlocal alive, most
        for _ in range(60):
            array = np.zeros((2, 5000), dtype=np.float32)
            alive += 1
            weakref.finalize(array, release)
            most = max(most, alive)
            yield torch.from_numpy(array)
            del array

    monkeypatch.setattr(AudioFile, "blocks", blocks)
    combining.combine_files(files, tmp_path / "out.wav", "avg_fft")
    assert most <= 4 * len(files)


def test_what_cannot_be_combined_is_one_line(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = read_audio(files[0])[0].T.numpy()
    soundfile.write(tmp_path / "rate.wav", whole, 44100)
    soundfile.write(tmp_path / "mono.wav", whole[:, 0], RATE)
    soundfile.write(tmp_path / "short.wav", whole[:-1], RATE)
    soundfile.write(tmp_path / "short.ogg", whole[:-1000], RATE)
    out = ["--output", tmp_path / "out.wav"]
    for arguments, status, message in (
        ([files[0], tmp_path / "rate.wav", *out], 1, "a.wav has 8000 samples a second, but .*rate.wav 44100"),
        ([files[0], tmp_path / "mono.wav", *out], 1, r"a.wav has 2 channel\(s\), but .*mono.wav 1"),
        ([files[0], tmp_path / "short.wav", *out], 1, r"9001 samples \(1.13 s\), but .*short.wav has 9000"),
        ([files[0], tmp_path / "short.ogg", *out], 1, r"short.ogg has 8001 samples \(1.00 s\), but .*a.wav is longer"),
        ([files[0], files[1], "--output", files[2]], 1, "c.wav.* exist"),
        ([files[0], files[1], "--output", files[0], "--overwrite"], 1, "a.wav is one of the files to combine"),
        ([files[0], tmp_path / "nowhere.wav", *out], 1, "nowhere.wav: No such file"),
        ([files[0], *out], 2, "at least two files"),
        (files, 2, "--output FILE"),
        ([files[0], files[1], "--output", tmp_path / "out.txt"], 2, "must end with one of .wav, "),
        ([files[0], files[1], "--weights", "1", *out], 2, "1 --weights for 2 files"),
        ([files[0], files[1], "--weights", "1,1", "--ensemble", "max_fft", *out], 2, "max_fft has no --weights"),
        ([files[0], files[1], "--quality", "320k", *out], 2, "has no --quality"),
        ([files[0], files[1], "--bit-depth", 16, "--output", tmp_path / "o.mp3"], 2, "mp3 has no --bit-depth 16"),
    ):
        if status == 2:
            with pytest.raises(SystemExit, match="2"):
                call(*arguments)
        else:
            assert call(*arguments) == status
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert re.search(message, said), said
        assert not (tmp_path / "out.wav").exists()


def test_values_cut_off_are_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, np.full((100, 1), 1.5), RATE, subtype="FLOAT")
    assert call(tmp_path / "a.wav", tmp_path / "b.wav", "--output", tmp_path / "out.flac") == 0
    assert "100 values of" in capsys.readouterr().err
