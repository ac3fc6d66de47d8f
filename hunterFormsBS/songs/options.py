"""The options of the command line, as the functions that separate songs take them."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Literal, cast

from hunterFormsBS.choices import Blend, Ensemble, Format, Precision, Upstream, dtype_of
from hunterFormsBS.failures import UsageError
from hunterFormsBS.parametersSeparation import KeywordsSeparation
from hunterFormsBS.songs.parts import Part, clock

__all__ = ["Options"]


class Options(argparse.Namespace):
    """What is separated, and how: the arguments of `hunterforms separate`, as its parser returns them."""

    mixtures: list[Path]
    checkpoint: list[Path]
    configuration: list[Path]
    upstream: Upstream | None
    lora: Path | None
    recipe: str | None
    one_model_at_a_time: bool
    ensemble: Ensemble
    weights: list[float] | None
    output: Path
    audio_stream: int | None
    downmix: bool
    start: float | None
    end: float | None
    duration: float | None
    preview: bool
    stems: list[str] | None
    residual: str | None
    name_template: str
    format: Format
    bit_depth: int | None
    quality: tuple[float | None, int | None] | None
    clip: Literal["cut", "scale"]
    also_rest: str | None
    sample_rate: int | None
    normalize: dict[str, float] | None
    activity: float
    spectrograms: bool
    overwrite: bool
    skip_existing: bool
    json: bool
    quiet: bool
    chunk_size: int | None
    num_overlap: float | None
    batch_size: int | None
    tta: bool
    shifts: int
    blend: Blend
    device: str
    dtype: Precision

    def separation(self) -> KeywordsSeparation:
        """Return what it says of how to separate, but for the device, where models are loaded, and for the part."""
        apart = {"device", "start", "end", "duration"}
        given = {name: getattr(self, name) for name in KeywordsSeparation.__annotations__ if name not in apart}
        given["dtype"] = dtype_of(self.dtype)
        return cast("KeywordsSeparation", {name: value for name, value in given.items() if value is not None})

    def part(self) -> Part | None:
        """Return which part of songs is separated, None for a preview of each.

        Raises
        ------
        UsageError
            If the options of parts contradict each other.
        """
        ends = [name for name in ("end", "duration", "preview") if getattr(self, name) not in (None, False)]
        if len(ends) > 1:
            raise UsageError(f"{' and '.join(f'--{name}' for name in ends)} exclude each other: leave one out")
        start = self.start or 0.0
        if self.preview:
            if self.start is not None:
                raise UsageError("--preview finds its beginning: leave out --start, or pass it with --duration 30")
            return None
        end = start + self.duration if self.duration is not None else math.inf if self.end is None else self.end
        if end <= start:
            raise UsageError(f"the part would end at {clock(end)} and begin at {clock(start)}: end it later")
        return Part(start, end)
