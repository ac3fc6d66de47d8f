"""Small audio files of many kinds for tests, encoded and decoded by FFmpeg's own program."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np

RATE = 48000

SUFFIXES = {
    **dict.fromkeys(["pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_u8", "pcm_alaw", "pcm_mulaw"], "wav"),
    "pcm_s16le": "wav mov voc w64",
    "pcm_s16be": "aiff caf au",
    "adpcm_ms": "wav",
    "adpcm_ima_wav": "wav",
    "flac": "flac oga mka",
    "tta": "tta",
    "wavpack": "wv",
    "alac": "m4a",
    "aac": "m4a m4b mp4 3gp aac ts flv",
    "ac3": "mkv ac3",
    "eac3": "eac3",
    "libopus": "webm opus",
    "libvorbis": "webm ogg nut",
    "libmp3lame": "mp3 avi",
    "mp2": "mp2 ts mpg",
    "wmav1": "asf",
    "wmav2": "wma",
}
"""In what each codec comes."""

KINDS = {f"{codec}.{suffix}": codec for codec, suffixes in SUFFIXES.items() for suffix in suffixes.split()}
"""The codec of each name of a file."""

CONTAINERS = {"m4b": "ipod", "mpg": "mpeg"}
"""What FFmpeg calls a container, where it is not the suffix."""

CHECKSUMMED = ("flac", "tta", "wavpack")
"""Codecs of which a frame that fails its checksum is left out."""


def noise(seconds: float, seed: int = 0, channels: int = 2) -> np.ndarray:
    """Return a tone with some noise, `(s, t)`."""
    t = np.arange(int(seconds * RATE)) / RATE
    tone = 0.4 * np.sin(2 * np.pi * 440 * t) + np.random.default_rng(seed).uniform(-0.1, 0.1, (channels, len(t)))
    return tone.astype("float32")


def encode(folder: Path, audio: np.ndarray, kinds: Sequence[str] = tuple(KINDS), rate: int = RATE) -> Path:
    """Write audio `(s, t)` into a file of each kind in a folder, and return the folder."""
    folder.mkdir(exist_ok=True)
    command = ["-f", "f32le", "-ar", str(RATE), "-ac", str(len(audio)), "-i", "-"]
    for kind in kinds:
        container = CONTAINERS.get(kind.rpartition(".")[2])
        command += [
            "-c:a",
            KINDS[kind],
            "-ar",
            str(rate),
            *(["-f", container] if container else []),
            str(folder / kind),
        ]
    program("-y", *command, given=np.ascontiguousarray(audio.T).tobytes())
    return folder


def program(*arguments: str, given: bytes = b"") -> bytes:
    """Run FFmpeg's own program, and return what it prints."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "quiet", *arguments]
    return subprocess.run(command, input=given, capture_output=True, check=False).stdout


def by_program(path: Path, channels: int = 2) -> np.ndarray:
    """Return what FFmpeg's own program decodes of the first audio stream, `(s, t)`; nothing if it fails."""
    checked = ["-err_detect", "crccheck+explode"] if KINDS.get(path.name) in CHECKSUMMED else []
    output = ["-map", "0:a:0", "-f", "f32le", "-c:a", "pcm_f32le", "-"]
    done = program("-nostdin", *checked, "-i", str(path), *output)
    return np.frombuffer(done, "<f4").reshape(-1, channels).T
