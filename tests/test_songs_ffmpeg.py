"""Files that libsndfile does not read: encoded in the test, and decoded by FFmpeg through PyAV."""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from hunterFormsBS.songs.reading import probe_audio, read_audio

RATE = 48000


def tone(seconds: float = 2.0) -> np.ndarray:
    t = np.arange(int(seconds * RATE)) / RATE
    return np.stack([0.5 * np.sin(2 * np.pi * 440 * t), 0.25 * np.sin(2 * np.pi * 1000 * t)]).astype("float32")


def encode(path: Path, codec: str, audio: np.ndarray) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, layout="stereo" if len(audio) == 2 else "mono")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio), "fltp", stream.layout)
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


@pytest.mark.parametrize(
    ("name", "codec", "allowed"),
    [
        ("a.m4a", "aac", 0.05),
        ("a.mp4", "aac", 0.05),
        ("a.m4a", "alac", 1e-3),
        ("a.mkv", "ac3", 0.05),
        ("a.webm", "libopus", 0.1),
        ("a.wv", "wavpack", 0.01),
    ],
)
def test_what_was_encoded_is_read(name: str, codec: str, allowed: float, tmp_path: Path) -> None:
    expected = tone()
    path = encode(tmp_path / name, codec, expected)
    properties = probe_audio(path)
    assert (properties.sample_rate, properties.channels) == (RATE, 2)
    audio, rate = read_audio(path)
    assert rate == RATE
    # Encoders add a little at the beginning and the end.
    assert abs(audio.shape[-1] - expected.shape[-1]) < 6000
    assert abs(properties.length - audio.shape[-1]) < 6000
    spectra = [np.abs(np.fft.rfft(each[:, 20000:60000], axis=-1)) for each in (audio.numpy(), expected)]
    assert np.abs(spectra[0] - spectra[1]).max() < allowed * spectra[1].max()
    assert [int(each.argmax()) for each in spectra[0]] == [int(each.argmax()) for each in spectra[1]]


def test_channels_are_not_exchanged_and_blocks_are_of_the_size_asked_for(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.m4a", "alac", tone())
    blocks = list(probe_audio(path).blocks(10000))
    assert all(10000 <= block.shape[-1] < 16000 for block in blocks[:-1])
    torch.testing.assert_close(
        torch.cat(blocks, dim=-1)[:, :90000], torch.from_numpy(tone())[:, :90000], atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("content", [b"Dear diary", b"", bytes(range(256)) * 40])
def test_what_is_no_audio_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not audio|is empty") as caught:
        probe_audio(path)
    assert len(str(caught.value).splitlines()) == 1


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "a.m4a", "aac", tone())
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"PyAV is not here: .*\.\[av\]"):
        probe_audio(path)


@pytest.mark.parametrize("rate", [1, 999, 2_000_000])
def test_absurd_sample_rates_are_refused_with_the_value(rate: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((100, 2)), rate)
    with pytest.raises(ValueError, match=f"says that it has {rate} samples a second, and audio has 1000 to 768000"):
        probe_audio(tmp_path / "a.wav")


def test_a_file_that_ends_before_its_header_says_is_warned_about_with_both_durations(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.wv", "wavpack", np.tile(tone(), 5))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match=r"ends after \d\.\d\d s, and its header says (10|9)\.\d\d s: was it copied"):
        read_audio(path)
