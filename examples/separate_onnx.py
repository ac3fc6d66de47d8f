"""Separate a WAV file with an exported model: NumPy and onnxruntime, no PyTorch.

    python examples/separate_onnx.py model.onnx song.wav --output stems

The model is a file from `hunterforms convert model.ckpt --output model.onnx`. Axis letters: b batch, n stem, s audio
channel, f frequency bin, t time frame (of audio: sample), c real and imaginary part.

Needs `pip install numpy onnxruntime`.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidProtobuf, NoSuchFile

Array: TypeAlias = NDArray[np.float32]


class SpectralTransform:
    """The short-time Fourier transform of PyTorch, `center=True`, and its inverse.

    Parameters
    ----------
    stft_n_fft, stft_hop_length : int
        Samples in a frame and between frames.
    stft_normalized : bool
        Scale by `stft_n_fft ** -0.5`.
    stft_window : sequence of float
        No longer than a frame, in which it is centred.
    """

    def __init__(
        self, *, stft_n_fft: int, stft_hop_length: int, stft_normalized: bool, stft_window: Sequence[float]
    ) -> None:
        self.n_fft = stft_n_fft
        self.hop = stft_hop_length
        self.scale = stft_n_fft**-0.5 if stft_normalized else 1.0
        before = (stft_n_fft - len(stft_window)) // 2
        after = stft_n_fft - len(stft_window) - before
        self.window: Array = np.pad(np.asarray(stft_window, np.float32), (before, after))

    def forward(self, audio: Array) -> Array:
        """Transform audio, `(s, t)`, to `(s, f, t, c)`."""
        half = self.n_fft // 2
        # Reflection at an end needs more samples than it adds.
        audio = np.pad(audio, ((0, 0), (0, max(0, half + 1 - audio.shape[-1]))))
        audio = np.pad(audio, ((0, 0), (half, half)), mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(audio, self.n_fft, axis=-1)[:, :: self.hop]
        spectrum = np.fft.rfft(frames * self.window) * self.scale  # (s, t, f)
        return np.stack((spectrum.real, spectrum.imag), axis=-1).swapaxes(1, 2).astype(np.float32)

    def inverse(self, spectra: Array, length: int) -> Array:
        """Transform `(..., f, t, c)` to audio, `(..., t)` with `length` samples."""
        spectra = spectra.swapaxes(-3, -2) / self.scale
        frames = np.fft.irfft(spectra[..., 0] + 1j * spectra[..., 1], self.n_fft) * self.window  # (..., t, n_fft)
        num_frames = frames.shape[-2]
        audio = np.zeros((*frames.shape[:-2], self.n_fft + self.hop * (num_frames - 1)), np.float32)
        weight = np.zeros(audio.shape[-1], np.float32)
        for index in range(num_frames):
            part = slice(index * self.hop, index * self.hop + self.n_fft)
            audio[..., part] += frames[..., index, :]
            weight[part] += self.window**2
        kept = slice(self.n_fft // 2, self.n_fft // 2 + length)
        return np.divide(audio[..., kept], weight[kept], dtype=np.float32)


def separate(
    mask_spectrum: Callable[[Array], Array],
    transform: SpectralTransform,
    mixture: Array,
    *,
    chunk_size: int,
    num_overlap: int = 2,
    progress: Callable[[int, int], object] | None = None,
) -> Array:
    """Separate audio chunk by chunk and add up the estimates, weighted so that the weights sum to one.

    This equals `hunterFormsBS.separation.separate`, except that audio shorter than a chunk is not extended.

    Parameters
    ----------
    mask_spectrum : Callable
        `(b, s, f, t, c)` to `(b, n, s, f, t, c)`.
    transform : SpectralTransform
        The transform of the model.
    mixture : Array
        `(s, t)`.
    chunk_size : int
        Samples at a time.
    num_overlap : int
        How many chunks cover a sample.
    progress : Callable, default None
        Gets the number of chunks done and of all chunks.

    Returns
    -------
    Array
        `(n, s, t)`.
    """
    length = mixture.shape[-1]
    chunk_size = min(chunk_size, length)
    last = length - chunk_size
    starts = [*range(0, last, max(1, chunk_size // num_overlap)), last]
    # Estimates fade in and out where chunks overlap, each within its half.
    fades = [min(chunk_size // 2, max(0, before + chunk_size - start)) for before, start in pairwise(starts)]
    stems = np.zeros(0, np.float32)
    total = np.zeros(length, np.float32)
    for index, (start, rise, fall) in enumerate(zip(starts, [0, *fades], [*fades, 0], strict=True)):
        part = slice(start, start + chunk_size)
        spectrum = transform.forward(mixture[:, part])
        estimate = transform.inverse(mask_spectrum(spectrum[None])[0], chunk_size)
        weight = np.ones(chunk_size, np.float32)
        weight[:rise] = squared_sine(rise)
        weight[chunk_size - fall :] = squared_sine(fall)[::-1]
        if not index:
            stems = np.zeros((len(estimate), *mixture.shape), np.float32)
        stems[..., part] += estimate * weight
        total[part] += weight
        if progress is not None:
            progress(index + 1, len(starts))
    return stems / total


def squared_sine(length: int) -> NDArray[np.float64]:
    """Return a rise from nearly 0 to nearly 1."""
    return np.square(np.sin((np.arange(length) + 0.5) * (np.pi / 2 / max(1, length))))


def read_wav(pathFilename: Path) -> tuple[Array, int]:
    """Return the samples of a WAV file, `(s, t)`, and the sample rate."""
    content = pathFilename.read_bytes()
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise ValueError(f"{pathFilename} is not a WAV file: convert it, for example with ffmpeg -i FILE song.wav")
    chunks: dict[bytes, bytes] = {}
    position = 12
    while position + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, position)
        chunks.setdefault(name, content[position + 8 : position + 8 + size])
        position += 8 + size + size % 2
    if not {b"fmt ", b"data"} <= chunks.keys():
        raise ValueError(f"{pathFilename} holds no audio: copy or download it again")
    kind, channels, sample_rate, _, _, bits = struct.unpack_from("<HHIIHH", chunks[b"fmt "])
    if kind == 0xFFFE:  # the extensible format states its type later
        (kind,) = struct.unpack_from("<H", chunks[b"fmt "], 24)
    data = np.frombuffer(chunks[b"data"], np.uint8)
    data = data[: len(data) // (channels * bits // 8) * (channels * bits // 8)]
    if (kind, bits) == (3, 32):
        samples = data.view("<f4").astype(np.float32)
    elif kind == 1 and bits in (16, 24, 32):
        # The bytes of a sample become the upper bytes of 32 bits, least significant first.
        wide = np.zeros((len(data) * 8 // bits, 4), np.uint8)
        wide[:, 4 - bits // 8 :] = data.reshape(-1, bits // 8)
        samples = wide.view("<i4")[:, 0].astype(np.float32) / np.float32(2**31)
    else:
        raise ValueError(
            f"{pathFilename} is of WAV format {kind} with {bits} bits: convert it to 16, 24 or 32 bits PCM "
            "or 32 bits floating point, for example with ffmpeg -i FILE song.wav"
        )
    if not len(samples):
        raise ValueError(f"{pathFilename} holds no samples: copy or download it again")
    return np.ascontiguousarray(samples.reshape(-1, channels).T), sample_rate


def write_wav(pathFilename: Path, audio: Array, sample_rate: int) -> None:
    """Write `(s, t)` as 32-bit floating point, which does not clip."""
    data = np.ascontiguousarray(audio.T, "<f4").tobytes()
    channels = len(audio)
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16),
        *(3, channels, sample_rate, 4 * channels * sample_rate, 4 * channels, 32),
        *(b"data", len(data)),
    )
    pathFilename.write_bytes(head + data)


def show_progress(done: int, total: int) -> None:
    """Show the progress on one line of the terminal."""
    print(f"\rchunk {done} of {total}", end="" if done < total else "\n", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    description = "Separate a WAV file with an exported model: separate_onnx.py MODEL MIXTURE"
    # Without a usage message, errors are one line.
    parser = argparse.ArgumentParser("separate_onnx.py", usage=argparse.SUPPRESS, description=description)
    parser.add_argument("model", type=Path, help="what hunterforms convert wrote")
    parser.add_argument("mixture", type=Path, help="WAV file")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder for the stems")
    parser.add_argument("--chunk-size", type=int, help="samples at a time")
    parser.add_argument("--num-overlap", type=int, default=2, help="how many chunks cover a sample")
    parser.add_argument("--threads", type=int, default=0, help="0: one for each core")
    options = parser.parse_args(arguments)

    try:
        mixture, sample_rate = read_wav(options.mixture)
    except (OSError, ValueError) as error:
        said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        raise SystemExit(f"separate_onnx.py: error: {said}") from error
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = options.threads
    try:
        session = onnxruntime.InferenceSession(options.model, session_options, providers=["CPUExecutionProvider"])
    except (Fail, InvalidProtobuf, NoSuchFile) as error:
        raise SystemExit(f"separate_onnx.py: error: {' '.join(str(error).split())}") from error
    settings: dict[str, Any] = json.loads(session.get_modelmeta().custom_metadata_map["hunterFormsBS"])
    if sample_rate != settings["sample_rate"]:
        raise SystemExit(
            f"{options.mixture} has {sample_rate} samples per second, and the model takes {settings['sample_rate']}: "
            f"resample it, for example with ffmpeg -i FILE -ar {settings['sample_rate']} song.wav"
        )
    channels = settings["audio_channels"]
    if len(mixture) == 1:
        mixture = np.repeat(mixture, channels, axis=0)
    if len(mixture) != channels:
        raise SystemExit(f"{options.mixture} has {len(mixture)} channels, and the model takes {channels}: mix it down.")

    stems = separate(
        lambda spectrum: session.run(["spectra"], {"spectrum": spectrum})[0],
        SpectralTransform(**{name: value for name, value in settings.items() if name.startswith("stft_")}),
        mixture,
        chunk_size=options.chunk_size or settings["chunk_size"],
        num_overlap=options.num_overlap,
        progress=show_progress if sys.stderr.isatty() else None,
    )
    options.output.mkdir(parents=True, exist_ok=True)
    for name, stem in zip(settings["stem_names"], stems, strict=True):
        write_wav(options.output / f"{name}.wav", stem, sample_rate)
        print(options.output / f"{name}.wav")


if __name__ == "__main__":
    main()
