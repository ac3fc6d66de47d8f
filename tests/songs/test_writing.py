"""Stems in every format, and disks that are full."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import mutagen
import mutagen.mp3
import numpy as np
import pytest
import soundfile
import torch

from hunterFormsBS.choices import FORMATS, Format
from hunterFormsBS.songs.encoders import SoundEncoder
from hunterFormsBS.songs.encodings import DEPTHS, Encoding, quality_or_bit_rate
from hunterFormsBS.songs.reading import probe_audio, read_audio
from hunterFormsBS.songs.writing import Level, StemFile, WritingError, writing_together


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


@pytest.mark.exhaustive  # 4.3 GB go through libsndfile
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


# Bit rates and MP4 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "kilobits"), [(44100, 320), (44100, 128), (48000, 32), (22050, 160), (8000, 8)])
def test_mp3_has_exactly_the_bit_rate_that_is_asked_for(rate: int, kilobits: int, tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    write(path, Encoding("mp3", None, bit_rate=1000 * kilobits), rate, tone(rate))
    info = mutagen.File(path).info
    assert info.bitrate == pytest.approx(1000 * kilobits, rel=1e-4)
    assert info.bitrate_mode != mutagen.mp3.BitrateMode.VBR


@pytest.mark.parametrize(("kind", "kilobits"), [("opus", 64), ("opus", 256), ("m4a", 96), ("m4a", 320)])
def test_opus_and_aac_come_near_the_bit_rate_that_is_asked_for(kind: Format, kilobits: int, tmp_path: Path) -> None:
    noise = torch.from_numpy(np.random.default_rng(0).uniform(-0.3, 0.3, (2, 480_000)).astype("float32"))
    path = tmp_path / f"a.{kind}"
    write(path, Encoding(kind, None, bit_rate=1000 * kilobits), 48000, noise)
    assert path.stat().st_size * 8 / 10 == pytest.approx(1000 * kilobits, rel=0.06)


@pytest.mark.parametrize(
    ("kind", "keywords", "rate", "message"),
    [
        (
            "mp3",
            {"quality": (None, 300_000)},
            44100,
            "MP3 at .* Hz has no --quality 300k: its .* are 32, .*320k",
        ),
        (
            "mp3",
            {"quality": (None, 320_000)},
            22050,
            "MP3 at 22050 Hz has no --quality 320k: its .* are 8, .*160k",
        ),
        ("opus", {"quality": (None, 600_000)}, 48000, "OPUS of 2 channel.* has no --quality 600k: use 12k to 512k"),
        (
            "m4a",
            {"quality": (None, 200_000)},
            8000,
            "AAC of 2 .* at 8000 Hz has no --quality 200k: use 16k to 96k",
        ),
        ("ogg", {"quality": (None, 128_000)}, 44100, "ogg has no exact bit rate"),
        ("flac", {"quality": (None, 128_000)}, 44100, "flac here keeps all of the sound"),
        ("m4a", {"quality": (5, None), "bit_depth": 16}, 44100, "m4a here keeps all of the sound"),
        ("m4a", {"bit_depth": 32}, 44100, "m4a has no --bit-depth 32: use 16 or 24"),
        ("mp3", {"sample_rate": 96000}, 44100, "mp3 has no --sample-rate 96000: use 48000"),
        ("opus", {"sample_rate": 44100}, 44100, "opus has no --sample-rate 44100: use 48000"),
    ],
)
def test_what_a_format_cannot_have_is_refused_with_what_it_can(
    kind: Format, keywords: dict[str, Any], rate: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Encoding.of(kind, **keywords).check(rate, 2)


@pytest.mark.parametrize("text", ["", "11", "-1", "nan", "320kk", "k", "1e1", "99999k", "\u0663"])
def test_a_quality_that_is_neither_a_number_nor_a_bit_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="from 0 to 10, or a bit rate such as 320k"):
        quality_or_bit_rate(text)


@pytest.mark.parametrize("depth", [16, 24])
def test_alac_keeps_every_bit_of_its_depth(depth: int, tmp_path: Path) -> None:
    whole = torch.from_numpy(np.random.default_rng(0).integers(-(2 ** (depth - 1)), 2 ** (depth - 1), (2, 30_001)))
    path = tmp_path / "a.m4a"
    write(path, Encoding("m4a", depth), 44100, (whole / 2 ** (depth - 1)).float())
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "s32le", "-"]
    decoded = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, dtype="<i4")
    assert np.array_equal(decoded.reshape(-1, 2).T >> (32 - depth), whole.numpy())


def atoms(content: bytes) -> dict[bytes, bytes]:
    """Return the atoms of an MP4 file, or within one, by their names."""
    found: dict[bytes, bytes] = {}
    while content:
        size = int.from_bytes(content[:4], "big")
        found[content[4:8]] = content[8:size]
        content = content[size:]
    return found


@pytest.mark.parametrize("depth", [None, 16])
@pytest.mark.parametrize("names", [["mixture", "drums", "bass", "other", "V\u00f6cals"], ["mixture", "vocals"]])
def test_a_stem_mp4_has_the_mixture_and_four_stems_with_names_and_colours(
    names: list[str], depth: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.stem.mp4"
    stems = [tone(44100, 1) / (number + 1) for number in range(len(names))]
    with writing_together(tmp_path, dict.fromkeys(names, path), 44100, Encoding("stem.mp4", depth)) as folder:
        for file, stem in zip(folder.open(2), stems, strict=True):
            file.write(stem)
    assert [*tmp_path.iterdir()] == [path]
    content = json.loads(atoms(atoms(atoms(path.read_bytes())[b"moov"])[b"udta"])[b"stem"])
    assert [stem["name"] for stem in content["stems"]] == [*names[1:], *[""] * (5 - len(names))]
    assert all(re.fullmatch("#[0-9A-F]{6}", stem["color"]) for stem in content["stems"])
    assert len({stem["color"] for stem in content["stems"]}) == 4
    assert content["version"] == 1
    assert not any(part["enabled"] for part in content["mastering_dsp"].values())
    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "f32le", "-c:a", "pcm_f32le"]
    for number, stem in enumerate([*stems, *[torch.zeros(2, 44100)] * (5 - len(stems))]):
        done = subprocess.run([*program, "-map", f"0:a:{number}", "-"], capture_output=True, check=True)
        audio = torch.frombuffer(bytearray(done.stdout), dtype=torch.float32).reshape(-1, 2).T
        begun = 1024 if depth is None else 0  # FFmpeg's AAC needs a frame to find into a tone.
        torch.testing.assert_close(audio[:, begun:], stem[:, begun:], rtol=0, atol=2**-15 if depth else 0.05)


def test_the_atom_has_the_keys_of_the_file_that_stempeg_brings_along(tmp_path: Path) -> None:
    spec = find_spec("stempeg")
    if spec is None or spec.origin is None:
        pytest.skip('the song needs stempeg: pip install -e ".[examples]"')
    (other,) = Path(spec.origin).parent.glob("data/*.stem.mp4")
    path = tmp_path / "a.stem.mp4"
    with writing_together(tmp_path, dict.fromkeys(["mixture", "a"], path), 8000, Encoding("stem.mp4", None)) as folder:
        for file in folder.open(1):
            file.write(torch.zeros(1, 8000))
    ours, theirs = (
        json.loads(atoms(atoms(atoms(each.read_bytes())[b"moov"])[b"udta"])[b"stem"]) for each in (path, other)
    )
    assert {*ours} == {*theirs}
    assert {*ours["stems"][0]} == {*theirs["stems"][0]}
    for part in ("compressor", "limiter"):
        assert {*ours["mastering_dsp"][part]} == {*theirs["mastering_dsp"][part]}


@pytest.mark.parametrize("kind", ["stem.mp4", "flac", "wav"])
def test_one_factor_raises_or_lowers_all_stems(kind: Format, tmp_path: Path) -> None:
    depth = 16 if kind == "stem.mp4" else DEPTHS[kind]
    together = kind == "stem.mp4"
    files = {name: tmp_path / (f"a.{kind}" if together else f"{name}.{kind}") for name in ("mixture", "voice")}
    loud, quiet = tone(44100), tone(44100) / 10
    for level, factor in ((Level(peak=-6.0), 10 ** (-6 / 20) / 0.5), (Level(at_most=-20.0), 0.2)):
        with writing_together(tmp_path, files, 44100, Encoding(kind, depth), existing="replace", level=level) as folder:
            for file, stem in zip(folder.open(2), (loud, quiet), strict=True):
                file.write(stem)
        assert folder.factor == pytest.approx(factor, rel=1e-5)
        for number, (path, stem) in enumerate(zip(files.values(), (loud, quiet), strict=True), start=1):
            audio = torch.cat(list(probe_audio(path, stream=number if together else 1).blocks()), dim=-1)
            torch.testing.assert_close(audio, stem * folder.factor, rtol=0, atol=2**-15)


def test_files_get_the_sample_rate_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write(path, Encoding(sample_rate=16000), 44100, tone(44100))
    audio, rate = read_audio(path)
    assert rate == 16000
    torch.testing.assert_close(audio[:, 1000:-1000], tone(16000)[:, 1000:-1000], rtol=0, atol=1e-4)
