"""How loud audio is, and where it sounds, measured in blocks."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from hunterFormsBS.choices import SOUNDING
from hunterFormsBS.songs.ffmpeg import av_module
from hunterFormsBS.songs.parts import PREVIEW, Part

__all__ = ["HOP", "Energies", "Sounding", "loudest_part", "loudness", "sounding_parts"]

HOP = 0.1
"""Seconds of a step."""

SHORTEST_PAUSE = 0.5
"""Seconds: a shorter one does not end a part."""


class Sounding(NamedTuple):
    """A part of a song where a stem is above the threshold: start and end in seconds, and its level in dB."""

    start: float
    end: float
    decibels: float


class Energies:
    """Energy of audio that comes in blocks, in steps of a tenth of a second."""

    def __init__(self, sample_rate: int) -> None:
        self.hop = max(1, round(HOP * sample_rate))
        """Samples of a step."""
        self._steps = array("d")  # Small tensors would fragment the memory of large ones.
        self._rest = torch.zeros(0, dtype=torch.float64)
        self._channels = 1

    @classmethod
    def of(cls, blocks: Iterable[Tensor], sample_rate: int) -> Self:
        """Measure audio."""
        energies = cls(sample_rate)
        for block in blocks:
            energies.add(block)
        return energies

    def add(self, block: Tensor) -> None:
        """Take the next samples, `(s, t)`."""
        self._channels = max(1, block.shape[0])
        energy = torch.cat([self._rest, block.double().square().sum(dim=0)])
        whole = len(energy) // self.hop * self.hop
        self._steps.frombytes(energy[:whole].reshape(-1, self.hop).sum(dim=1).numpy().tobytes())
        self._rest = energy[whole:].clone()

    def steps(self) -> Tensor:
        """Return the energy of each step, of all channels; the last one may be shorter."""
        steps = torch.tensor(self._steps, dtype=torch.float64)
        return torch.cat([steps, self._rest.sum()[None]]) if len(self._rest) else steps

    def means(self) -> Tensor:
        """Return the mean square of each step, over channels as well."""
        steps = self.steps()
        samples = torch.full_like(steps, self.hop)
        if len(self._rest):
            samples[-1] = len(self._rest)
        return steps / (samples * self._channels)

    @property
    def length(self) -> int:
        """Samples of each channel so far."""
        return len(self._steps) * self.hop + len(self._rest)


def sounding_parts(audio: Iterable[Tensor] | Energies, sample_rate: int, threshold: float = SOUNDING) -> list[Sounding]:
    """Return the parts of a stem where it sounds, to a tenth of a second; without pauses from half a second on.

    Parameters
    ----------
    audio : Iterable[Tensor] | Energies
        Blocks `(s, t)`, for example `[stem]`, or what was measured of them.
    sample_rate : int
        In Hz.
    threshold : float = -50.0
        In dB: 0 is the level of a square wave of full scale, in the mean over channels.

    Returns
    -------
    parts : list[Sounding]
        In order. Each with the level of its mean square.
    """
    if not isinstance(audio, Energies):
        audio = Energies.of(audio, sample_rate)
    means = audio.means()
    sounding = [int(step) for step in (means > 10 ** (threshold / 10)).nonzero()]
    pause = round(SHORTEST_PAUSE / HOP)
    spans: list[tuple[int, int]] = []
    for step in sounding:
        if spans and step - spans[-1][1] < pause:
            spans[-1] = spans[-1][0], step + 1
        else:
            spans.append((step, step + 1))
    return [
        Sounding(
            round(start * audio.hop / sample_rate, 3),
            round(min(end * audio.hop, audio.length) / sample_rate, 3),
            round(10 * math.log10(float(means[start:end].mean())), 1),
        )
        for start, end in spans
    ]


def loudest_part(blocks: Iterable[Tensor], sample_rate: int, duration: float = PREVIEW) -> Part:
    """Return the part of this duration with the most energy, to a tenth of a second; all of a song that is shorter.

    The song comes in blocks `(s, t)`.
    """
    energies = Energies.of(blocks, sample_rate)
    total = energies.steps().cumsum(0)
    total = torch.cat([total.new_zeros(1), total])
    window = min(len(total) - 1, max(1, round(duration * sample_rate / energies.hop)))
    start = int((total[window:] - total[:-window]).argmax()) * energies.hop / sample_rate
    return Part(start, start + duration)


def loudness(blocks: Iterable[Tensor], sample_rate: int, channels: int) -> float:
    """Return the integrated loudness of audio by EBU R 128, in LUFS, as FFmpeg measures it; -70 or less for silence.

    The audio comes in blocks `(s, t)`, with one or two channels.
    """
    av = av_module()
    layout = "mono" if channels == 1 else "stereo"
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=sample_rate, format="fltp", layout=layout)
    graph.link_nodes(source, graph.add("ebur128", "metadata=1:framelog=quiet"), graph.add("abuffersink")).configure()
    measured, position = -math.inf, 0
    for block in chain(blocks, [None]):
        frame = None
        if block is not None:
            frame = av.AudioFrame.from_ndarray(block.contiguous().numpy(), format="fltp", layout=layout)
            frame.sample_rate, frame.pts = sample_rate, position
            position += frame.samples
        graph.push(frame)
        while True:
            try:
                metadata: Any = graph.pull().metadata
            except (av.error.BlockingIOError, av.error.EOFError):
                break
            measured = float(metadata.get("lavfi.r128.I", measured))
    return measured
