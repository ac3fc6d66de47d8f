"""Files that end early, and headers that do not say how long a song is."""

from __future__ import annotations

import io
import re
import struct
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from hunterFormsBS.songs import headers
from hunterFormsBS.songs.reading import AudioFile, probe_audio, read_audio

RATE = 48000
SECONDS = 4
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (SECONDS * RATE, 2))
KINDS = {
    "wav": ("WAV", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
}
WITHOUT_LENGTH = ("ogg", "opus")
"""Formats whose headers do not say how long the song is, only where it ends."""


def write(folder: Path, kind: str) -> Path:
    container, subtype = KINDS[kind]
    soundfile.write(folder / f"a.{kind}", NOISE, RATE, format=container, subtype=subtype)
    return folder / f"a.{kind}"


def read(audio: AudioFile) -> int:
    """Return how many samples are read."""
    return sum(block.shape[-1] for block in audio.blocks())


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_file_is_read_without_a_word(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(probe_audio(path)) == pytest.approx(len(NOISE), abs=3000 if kind == "mp3" else 0)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_ends_before_its_header_says_is_read_so_far_with_a_warning(
    kind: str, share: float, tmp_path: Path
) -> None:
    path = write(tmp_path, kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    audio = probe_audio(path)
    with pytest.warns(UserWarning, match=r"was it copied or downloaded whole\?") as caught:
        length = read(audio)
    # The last page of an Ogg file, of a second at most, is lost if it is not complete.
    assert length / len(NOISE) == pytest.approx(share, abs=0.26 if kind in WITHOUT_LENGTH else 0.05)
    (message,) = [str(warning.message) for warning in caught]
    durations = re.findall(r"\d+\.\d\d s", message)
    assert durations[0] == f"{length / RATE:.2f} s"
    if kind in WITHOUT_LENGTH:
        assert "in the middle of what its format ends with" in message
    else:
        assert float(durations[1][:-2]) == pytest.approx(SECONDS, abs=0.06)


def without_sizes(kind: str, content: bytearray, size: int) -> None:
    """Put a size into a header where the writer would have had to go back to state the right one."""
    place = content.index(b"data") + 4
    if kind == "w64":
        content[16:24] = content[place + 12 : place + 20] = struct.pack("<Q", size)
    elif kind == "rf64":
        content[20:44] = struct.pack("<3Q", size, size, size)
    else:
        content[place : place + 4] = struct.pack("<I", size)
        if kind == "wav":
            content[4:8] = struct.pack("<I", size)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("wav", 0),
        ("wav", 0xFFFFFFFF),
        ("wav", 0x7FFFFFFF),
        ("wav with the size of the file", 0),
        ("rf64", 0),
        ("w64", 0x7FFFFFFFFFFFFFFF),
        ("w64", 0xFFFFFFFFFFFFFFFF),
    ],
)
@pytest.mark.parametrize("length", [len(NOISE), 3])
def test_a_file_whose_writer_could_not_go_back_is_read_to_its_end(
    kind: str, size: int, length: int, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{kind[:4].strip()}"
    soundfile.write(path, NOISE[:length], RATE, subtype="PCM_24", format=kind[:4].strip().upper())
    content = bytearray(path.read_bytes())
    without_sizes(kind, content, size)
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        audio, _ = read_audio(path)
    torch.testing.assert_close(audio, torch.as_tensor(NOISE[:length].T).float(), rtol=0, atol=2**-22)


def test_a_wav_from_a_pipe_of_ffmpeg_is_read_to_its_end(tmp_path: Path) -> None:
    class Pipe:
        """What cannot be gone back in."""

        def __init__(self) -> None:
            self.content = b""

        def write(self, data: bytes) -> int:
            self.content += bytes(data)
            return len(data)

    pipe = Pipe()
    with av.open(pipe, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout="stereo")
        samples = (NOISE[:RATE] * 32767).astype("int16").reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, "s16", "stereo")
        frame.sample_rate = RATE
        container.mux([*stream.encode(frame), *stream.encode(None)])
    path = tmp_path / "pipe.wav"
    path.write_bytes(pipe.content)
    assert read(probe_audio(path)) == RATE


def test_a_flac_that_says_nothing_of_its_length_is_read_to_its_end(tmp_path: Path) -> None:
    path = write(tmp_path, "flac")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the upper bits of the number of samples in STREAMINFO, and below the lower
    content[22:26] = bytes(4)
    path.write_bytes(content)
    audio = probe_audio(path)
    assert read(audio) == len(NOISE)


def test_a_wav_of_no_samples_is_still_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((0, 2)), RATE)
    with pytest.raises(ValueError, match="holds no samples"):
        probe_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("kind", KINDS)
def test_headers_cut_off_anywhere_are_read_so_far_or_refused(kind: str, tmp_path: Path) -> None:
    content = write(tmp_path, kind).read_bytes()
    for length in (1, 3, 4, 11, 12, 20, 36, 40, 44, 60, 100, 200):
        path = tmp_path / f"{length}.{kind}"
        path.write_bytes(content[:length])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert read(probe_audio(path)) < len(NOISE)
            except ValueError as error:
                assert path.name in str(error)  # noqa: PT017  # it may be read as well


@pytest.mark.parametrize("kind", ["wav", "w64", "rf64", "flac", "mp3"])
def test_little_is_read_of_a_song_for_its_header(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, kind)
    lengths: list[int] = []
    original = headers.PatchedFile.read

    def counted(file: headers.PatchedFile, size: int = -1, /) -> bytes:
        data = original(file, size)
        lengths.append(len(data))
        return data

    monkeypatch.setattr(headers.PatchedFile, "read", counted)
    audio = probe_audio(path)
    assert (audio.sample_rate, audio.channels) == (RATE, 2)
    assert sum(lengths) < 70_000


def encoded(codec: str, container: str) -> bytes:
    """Return a second of six channels."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as target:
        stream = target.add_stream(codec, rate=RATE, layout="5.1")
        for start in range(0, RATE, 1536):
            samples = np.repeat(NOISE[start : start + 1536, :1].T, 6, axis=0).astype("float32")
            frame = av.AudioFrame.from_ndarray(samples, "fltp", "5.1")
            frame.sample_rate, frame.pts = RATE, start
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(("container", "silence"), [("ac3", 0), ("spdif", 0), ("spdif", 400)])
def test_compressed_audio_that_a_wav_calls_pcm_is_found_by_its_header_and_read(
    container: str, silence: int, tmp_path: Path
) -> None:
    samples = bytes(silence) + encoded("ac3", container)
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 2, RATE, 4 * RATE, 4, 16)
    content = fmt + struct.pack("<4sI", b"data", len(samples)) + samples
    path = tmp_path / "a.wav"
    path.write_bytes(struct.pack("<4sI4s", b"RIFF", 4 + len(content), b"WAVE") + content)
    with pytest.raises(ValueError, match="6 channels"):
        probe_audio(path)
    audio = probe_audio(path, downmix=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        blocks = list(audio.blocks())
    assert {len(block) for block in blocks} == {2}
    assert sum(block.shape[-1] for block in blocks) == pytest.approx(RATE, abs=3000)
