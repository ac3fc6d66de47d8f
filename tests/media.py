"""Small audio files of many kinds for tests, encoded and decoded by FFmpeg's own program."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np

RATE = 48000

KINDS: dict[str, tuple[str, str | None]] = {
    **{f"{codec}.wav": (codec, None) for codec in ("pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le")},
    **{f"{codec}.wav": (codec, None) for codec in ("pcm_u8", "pcm_alaw", "pcm_mulaw", "adpcm_ms", "adpcm_ima_wav")},
    **{"a.w64": ("pcm_s24le", None), "a.aiff": ("pcm_s16be", None), "a.caf": ("pcm_s16be", None)},
    **{"a.au": ("pcm_s16be", None), "a.voc": ("pcm_s16le", None), "a.flac": ("flac", None), "a.tta": ("tta", None)},
    **{"a.wv": ("wavpack", None), "alac.m4a": ("alac", None), "a.m4a": ("aac", None), "a.m4b": ("aac", "ipod")},
    **{"a.mp4": ("aac", None), "a.mov": ("pcm_s16le", None), "a.3gp": ("aac", None), "a.mka": ("flac", None)},
    **{"a.mkv": ("ac3", None), "opus.webm": ("libopus", None), "vorbis.webm": ("libvorbis", None)},
    **{
        "a.ogg": ("libvorbis", None),
        "a.oga": ("flac", None),
        "a.opus": ("libopus", None),
        "a.mp3": ("libmp3lame", None),
    },
    **{"a.mp2": ("mp2", None), "a.aac": ("aac", None), "a.ac3": ("ac3", None), "a.eac3": ("eac3", None)},
    **{"a.wma": ("wmav2", None), "a.asf": ("wmav1", None), "a.ts": ("aac", None), "mp2.ts": ("mp2", None)},
    **{"a.avi": ("libmp3lame", None), "a.flv": ("aac", None), "a.mpg": ("mp2", "mpeg"), "a.nut": ("libvorbis", None)},
}
"""A codec and a container, where the suffix does not say which, for each name of a file."""

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
        codec, container = KINDS[kind]
        command += ["-c:a", codec, "-ar", str(rate), *(["-f", container] if container else []), str(folder / kind)]
    program("-y", *command, given=np.ascontiguousarray(audio.T).tobytes())
    return folder


def program(*arguments: str, given: bytes = b"") -> bytes:
    """Run FFmpeg's own program, and return what it prints."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "quiet", *arguments]
    return subprocess.run(command, input=given, capture_output=True, check=False).stdout


def by_program(path: Path, channels: int = 2) -> np.ndarray:
    """Return what FFmpeg's own program decodes of the first audio stream, `(s, t)`; nothing if it fails."""
    codec = KINDS.get(path.name, ("", None))[0]
    checked = ["-err_detect", "crccheck+explode"] if codec in CHECKSUMMED else []
    output = ["-map", "0:a:0", "-f", "f32le", "-c:a", "pcm_f32le", "-"]
    done = program("-nostdin", *checked, "-i", str(path), *output)
    return np.frombuffer(done, "<f4").reshape(-1, channels).T
