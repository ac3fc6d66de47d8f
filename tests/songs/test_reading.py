"""Audio files: what can be read, how rates are converted, and that nothing half-written stays."""

from __future__ import annotations

import math
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hunterFormsBS.songs import writing as songs_writing
from hunterFormsBS.songs.encodings import Encoding
from hunterFormsBS.songs.rates import resample
from hunterFormsBS.songs.reading import probe_audio, read_audio
from hunterFormsBS.songs.writing import AudioFolder, writing_together

RATE = 8000
FLOAT = Encoding()


def writing(
    folder: Path, names: list[str], encoding: Encoding = FLOAT, *, overwrite: bool = True
) -> AbstractContextManager[AudioFolder]:
    files = {name: folder / f"{name}.{encoding.format}" for name in names}
    return writing_together(folder, files, RATE, encoding, existing="replace" if overwrite else "refuse")


def sine(frequency: float, sample_rate: int, seconds: float = 0.5) -> Tensor:
    """Return `(1, t)`."""
    t = torch.arange(int(sample_rate * seconds), dtype=torch.float64) / sample_rate
    return torch.sin(2 * math.pi * frequency * t)[None].float()


def test_the_header_says_length_rate_and_channels(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", np.zeros((123, 2)), 22050)
    audio = probe_audio(tmp_path / "a.flac")
    assert (audio.length, audio.sample_rate, audio.channels) == (123, 22050, 2)


def test_integers_are_read_with_full_scale_at_one(tmp_path: Path) -> None:
    samples = np.array([[-32768, 0], [16384, 32767]], dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="PCM_16")
    audio, sample_rate = read_audio(tmp_path / "a.wav")
    assert sample_rate == RATE
    assert torch.equal(audio, torch.tensor([[-1.0, 0.5], [0.0, 32767 / 32768]]))
    assert audio.is_contiguous()


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("nowhere.wav", None, FileNotFoundError, "nowhere.wav"),
        ("empty.wav", b"", ValueError, "empty.wav is empty"),
        ("text.wav", b"Dear diary, today I sang.\n" * 9, ValueError, "text.wav is not audio.*ffmpeg"),
        ("headless.raw", b"\0" * 99, ValueError, "headless.raw is not audio"),
        ("cut.wav", b"RIFF\x24\0\0\0WAVEfmt ", ValueError, "cut.wav is not audio"),
    ],
)
def test_files_that_are_no_audio_are_refused_by_name(
    tmp_path: Path, name: str, content: bytes | None, error: type[Exception], message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for function in (probe_audio, read_audio):
        with pytest.raises(error, match=message):
            function(tmp_path / name)


def test_a_folder_a_silent_header_and_surround_are_refused_with_the_remedy(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 2)), RATE)
    soundfile.write(tmp_path / "surround.wav", np.zeros((9, 6)), RATE)
    with pytest.raises(IsADirectoryError, match="is a folder: pass the files in it"):
        probe_audio(tmp_path)
    with pytest.raises(ValueError, match=r"none\.wav holds no samples"):
        probe_audio(tmp_path / "none.wav")
    with pytest.raises(ValueError, match=r"surround\.wav has 6 channels.*-ac 2"):
        probe_audio(tmp_path / "surround.wav")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_samples_that_are_not_finite_are_refused_with_their_time(tmp_path: Path, value: float) -> None:
    samples = np.zeros((RATE, 2), dtype=np.float32)
    samples[[2000, 3000], 1] = value
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"a\.wav has NaN or infinity at 2 samples, the first at 0\.250 s"):
        read_audio(tmp_path / "a.wav")


@pytest.mark.parametrize(("rate_from", "rate_to"), [(8000, 44100), (48000, 44100), (44100, 96000)])
def test_a_sine_keeps_its_frequency_phase_and_level_at_another_rate(rate_from: int, rate_to: int) -> None:
    resampled = resample(sine(1000, rate_from), rate_from, rate_to)
    expected = sine(1000, rate_to)
    assert resampled.shape == expected.shape
    inner = slice(rate_to // 10, -rate_to // 10)  # At its ends the sine is cut off, which no other rate can represent.
    torch.testing.assert_close(resampled[:, inner], expected[:, inner], rtol=0, atol=1e-5)


@settings(max_examples=60)
@given(
    length=st.integers(1, 3000),
    channels=st.integers(1, 2),
    rate_from=st.sampled_from([8000, 11025, 44100, 48000, 96000]),
    rate_to=st.sampled_from([8000, 44100, 48000]),
)
def test_there_and_back_gives_exactly_the_length(length: int, channels: int, rate_from: int, rate_to: int) -> None:
    there = resample(torch.zeros(channels, length), rate_from, rate_to)
    assert there.shape == (channels, -(-length * rate_to // rate_from))
    assert resample(there, rate_to, rate_from, length).shape == (channels, length)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("length", [1, 2, 300])
def test_soxr_gets_samples_of_all_channels_side_by_side(
    channels: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is one long: old versions of soxr go by the strides, and refuse others."""
    import soxr

    strides = []
    original = soxr.resample

    def recorded(samples: Any, *arguments: Any, **keywords: Any) -> Any:
        strides.append(samples.strides)
        return original(samples, *arguments, **keywords)

    monkeypatch.setattr(soxr, "resample", recorded)
    resample(torch.zeros(channels, length), 8000, 44100)
    assert strides == [(4 * channels, 4)]


def test_the_same_rate_changes_nothing() -> None:
    audio = sine(1000, RATE)
    assert torch.equal(resample(audio, RATE, RATE), audio)


@pytest.mark.parametrize(
    ("container", "bit_depth", "subtype", "tolerance"),
    [
        ("wav", 32, "FLOAT", 0),
        ("wav", 24, "PCM_24", 2**-23),
        ("wav", 16, "PCM_16", 2**-15),
        ("flac", 24, "PCM_24", 2**-23),
        ("flac", 16, "PCM_16", 2**-15),
    ],
)
def test_what_is_written_reads_back_within_the_bit_depth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str, bit_depth: int, subtype: str, tolerance: float
) -> None:
    monkeypatch.setattr(songs_writing, "FRAMES_PER_WRITE", 1000)
    audio = torch.cat([sine(440, RATE), sine(333, RATE) / 3])
    with writing(tmp_path, ["tone"], Encoding(container, bit_depth)) as folder:  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        folder.open(2)[0].write(audio)
    path = tmp_path / f"tone.{container}"
    assert [*tmp_path.iterdir()] == [path]
    assert soundfile.info(path).subtype == subtype
    read, sample_rate = read_audio(path)
    assert sample_rate == RATE
    torch.testing.assert_close(read, audio, rtol=0, atol=tolerance)


def test_values_beyond_full_scale_are_counted_where_they_are_cut_off_and_kept_in_floating_point(tmp_path: Path) -> None:
    audio = torch.tensor([[0.5, 1.5, -2.0, 1.0]])
    for encoding, clipped in ((Encoding("flac", 24), 2), (FLOAT, 0)):
        with writing(tmp_path, ["a"], encoding) as folder:
            (file,) = folder.open(1)
            file.write(audio)
        assert file.clipped == clipped
    cut_off = torch.tensor([[0.5, 1, -1, 1]])
    torch.testing.assert_close(read_audio(tmp_path / "a.flac")[0], cut_off, rtol=0, atol=2**-22)
    assert torch.equal(read_audio(tmp_path / "a.wav")[0], audio)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
def test_after_an_error_no_file_is_there_and_what_was_there_stays(tmp_path: Path, error: type[BaseException]) -> None:
    def write_and_fail(folder: Path) -> None:
        with writing(folder, ["first"], overwrite=True) as files:
            files.open(1)[0].write(torch.ones(1, 10))
            assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] == old.get(folder, [])
            raise error

    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "first.wav").write_bytes(b"precious")
    old = {tmp_path / "old": ["first.wav"]}
    for folder in (tmp_path / "old", tmp_path / "new"):
        with pytest.raises(error):
            write_and_fail(folder)
    assert [*tmp_path.rglob("*")] == [tmp_path / "old", tmp_path / "old" / "first.wav"]
    assert (tmp_path / "old" / "first.wav").read_bytes() == b"precious"


@pytest.mark.parametrize(("module", "called"), [("av", "PyAV"), ("soxr", "soxr")])
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, called: str
) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((9, 1)), RATE)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"install {called}: .* -m pip install .*{module}>="):
        resample(torch.zeros(1, 9), 8000, 16000) if module == "soxr" else probe_audio(tmp_path / "a.wav")
