"""Stems in every format, and disks that are full."""

from __future__ import annotations

import errno
import io
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from hunterFormsBS.choices import FORMATS, Format
from hunterFormsBS.songs.encoders import SoundEncoder
from hunterFormsBS.songs.encodings import DEPTHS, Encoding
from hunterFormsBS.songs.reading import read_audio
from hunterFormsBS.songs.writing import StemFile, WritingError, writing_together


def tone(rate: int, seconds: float = 2) -> torch.Tensor:
    """Return two sines `(2, t)`, one in each channel."""
    t = torch.arange(int(rate * seconds), dtype=torch.float64) / rate
    return torch.stack([torch.sin(2 * torch.pi * 440 * t) / 2, torch.sin(2 * torch.pi * 1000 * t) / 4]).float()


def write(path: Path, encoding: Encoding, rate: int, audio: torch.Tensor) -> None:
    with writing_together(path.parent, {"a": path}, rate, encoding) as folder:
        folder.open(len(audio))[0].write(audio)


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000, 96000, 192000])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_keeps_channels_pitch_level_and_duration_at_any_rate(
    kind: Format, rate: int, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{kind}"
    encoding = Encoding(kind, DEPTHS[kind])
    write(path, encoding, rate, tone(rate))
    audio, got = read_audio(path)
    assert got == (48000 if kind == "opus" else encoding.rate(rate))  # at which FFmpeg decodes Opus
    assert got == rate or kind in ("mp3", "opus", "m4a")
    assert audio.shape[-1] == pytest.approx(2 * got, abs=0.06 * got)
    assert (
        Path(path).read_bytes()[:4] in (b"RIFF", b"fLaC", b"OggS", b"ID3\x04", b"\0\0\0\x1c", b"\xff\xfb\x90\x64")
        or kind == "mp3"
    )
    middle = audio[:, got // 2 : got // 2 + got]  # one second: bins of one Hz
    spectra = torch.fft.rfft(middle).abs() / (got / 2)
    assert spectra.argmax(dim=-1).tolist() == [440, 1000]
    torch.testing.assert_close(spectra.amax(dim=-1), torch.tensor([0.5, 0.25]), rtol=0.05, atol=0)


@pytest.mark.parametrize("kind", ["mp3", "ogg", "opus", "m4a"])
def test_higher_quality_takes_more_bytes(kind: Format, tmp_path: Path) -> None:
    noise = torch.from_numpy(np.random.default_rng(0).uniform(-0.3, 0.3, (2, 96000)).astype("float32"))
    sizes = []
    for quality in (0, 5, 10):
        path = tmp_path / f"{quality}.{kind}"
        write(path, Encoding(kind, None, quality), 48000, noise)
        sizes.append(path.stat().st_size)
    assert sizes == sorted(set(sizes))


class Full(io.FileIO):
    """A file on a disk that holds so many bytes."""

    room = 0

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if self.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("room", [0, 10, 1000, 50_000])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_full_disk_is_named_with_the_file(
    kind: Format, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = torch.from_numpy(np.random.default_rng(0).uniform(-0.3, 0.3, (2, 480_000)).astype("float32"))
    path = tmp_path / "out" / f"a.{kind}"
    monkeypatch.setattr(Full, "room", room)
    monkeypatch.setattr(os, "fdopen", lambda descriptor, mode: io.BufferedRandom(Full(descriptor, mode)))
    with pytest.raises(WritingError) as caught:
        write(path, Encoding(kind, DEPTHS[kind]), 48000, noise)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert caught.value.is_for_all
    assert list(tmp_path.iterdir()) == []


class Beginning(io.FileIO):
    """A file of any size of which the first bytes are kept."""

    kept = 1 << 20

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.position = self.end = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = offset + (0, self.position, self.end)[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def write(self, data: Any) -> int:
        if self.position < self.kept:
            super().seek(self.position)
            super().write(data)
        self.position += len(data)
        self.end = max(self.end, self.position)
        return len(data)


@pytest.mark.slow  # 4.3 GB go through libsndfile
def test_a_wav_that_grows_beyond_4_gib_becomes_rf64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fdopen", lambda descriptor, mode: io.BufferedRandom(Beginning(descriptor, mode)))
    block = torch.zeros(8, 1 << 20)
    with (tmp_path / "a.wav").open("w+b") as new:
        encoder = SoundEncoder(new, Encoding(), 48000, 8)
        for _ in range(129):
            encoder.write(block)
        encoder.close()
    header = (tmp_path / "a.wav").read_bytes()[:4096]
    assert header[:4] == b"RF64"
    assert header[12:16] == b"ds64"
    assert int.from_bytes(header[28:36], "little") == 129 * block.numel() * 4


@pytest.mark.parametrize("depth", [16, 24, 32])
def test_a_wav_below_4_gib_is_an_ordinary_one(depth: int, tmp_path: Path) -> None:
    write(tmp_path / "a.wav", Encoding("wav", depth), 8000, tone(8000))
    assert soundfile.info(tmp_path / "a.wav").format in ("WAV", "WAVEX")
    assert (tmp_path / "a.wav").read_bytes()[:4] == b"RIFF"


def test_levels_are_measured_where_they_are_cut_off(tmp_path: Path) -> None:
    for encoding, clipped in ((Encoding("wav", 16), 2), (Encoding(), 0)):
        with writing_together(tmp_path, {"a": tmp_path / "a.wav"}, 8000, encoding, existing="replace") as folder:
            (file,) = folder.open(1)
            file.write(torch.tensor([[0.5, -1.5]]))
            file.write(torch.tensor([[1.0, 1.25]]))
        assert (file.clipped, file.peak) == (clipped, 1.5)


def test_a_file_is_closed_once_a_thread_that_nobody_waited_for_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes, closes = soundfile.SoundFile.write, soundfile.SoundFile.close
    begun, closing, order = threading.Event(), threading.Event(), []

    def write_slowly(self: soundfile.SoundFile, samples: object) -> None:
        begun.set()
        closing.wait(0.1)
        writes(self, samples)
        order.append("written")

    def close(self: soundfile.SoundFile) -> None:
        closing.set()
        order.append("closed")
        closes(self)

    monkeypatch.setattr(soundfile.SoundFile, "write", write_slowly)
    monkeypatch.setattr(soundfile.SoundFile, "close", close)
    path = tmp_path / "a.wav"
    with path.open("xb") as new:
        encoder = SoundEncoder(new, Encoding(), 8000, 1)
        file = StemFile(encoder, path, sample_rate=8000, channels=1, cuts_off=False)
        thread = threading.Thread(target=file.write, args=(torch.zeros(1, 10),))
        thread.start()
        begun.wait()
        file.close()
        thread.join()
    assert order[:2] == ["written", "closed"]
