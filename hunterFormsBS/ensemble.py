"""Ensembles: the stems of several models combined, under MSST's and UVR's names of the methods.

`*_wave` combines samples, `*_fft` bins of short-time spectra. `avg` is the mean, weighted if weights are given;
`median` the middle value, or the mean of the two in the middle; `min` and `max` take the value of the smallest or
largest modulus at each sample or bin. If moduli are equal, MSST's methods take the first model's value. UVR's,
`uvr_min_spec` and `uvr_max_spec`, take the last one's, and otherwise equal `min_fft` and `max_fft`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Unpack, cast

import torch
from torch import Tensor

from hunterFormsBS.choices import ENSEMBLES, Ensemble
from hunterFormsBS.overlapAdd import aligned, branches
from hunterFormsBS.parametersSeparation import KeywordsSeparation, ParametersSeparation
from hunterFormsBS.printable import short_repr
from hunterFormsBS.separation import iter_blocks, stems_of
from hunterFormsBS.signature import with_fields_of

__all__ = ["ENSEMBLES", "HOP", "Ensemble", "combine", "combine_streams", "separate_ensemble_stream", "uses_spectra"]

# torch.fft has no annotations.
_rfft = cast("Callable[[Tensor], Tensor]", torch.fft.rfft)  # pyright: ignore[reportUnknownMemberType]
_irfft = cast("Callable[[Tensor, int], Tensor]", torch.fft.irfft)  # pyright: ignore[reportUnknownMemberType]

HOP = 1024
"""Samples between spectra."""
_PIECE = 256 * HOP  # Samples combined at a time.


def combine(estimates: Sequence[Tensor], kind: Ensemble = "avg_wave", weights: Sequence[float] | None = None) -> Tensor:
    """Combine estimates of the same stems.

    Parameters
    ----------
    estimates : Sequence[Tensor]
        One for each model, of one shape, with samples along the last axis: what `separate` returns.
    kind : Ensemble, default "avg_wave"
        One of `ENSEMBLES`. Spectra have 2048 samples and a hop of 1024, with a Hann window, as in MSST. The song is
        padded with silence to a multiple of 1024 samples. MSST does not pad, and divides the last samples, up to 1023,
        by the end of a window, which is nearly zero; audio-separator drops them in UVR's methods. All other samples are
        equal.
    weights : Sequence[float] | None, default None
        One for each estimate, for `avg_wave` and `avg_fft`. They are divided by their sum.

    Returns
    -------
    Tensor
        Of the shape of one estimate, float32 or float64.

    Raises
    ------
    ValueError
        If the kind is unknown, the weights do not fit, or the estimates differ in shape.
    """
    _check(len(estimates), kind, weights)
    shapes = {tuple(estimate.shape) for estimate in estimates}
    if len(shapes) > 1 or not all(min(shape, default=0) for shape in shapes):
        message = f"`estimates` must be of one shape without an empty axis: received {sorted(shapes)}."
        raise ValueError(message)
    starts = range(0, estimates[0].shape[-1], _PIECE)
    pieces = [[estimate.detach()[..., start : start + _PIECE] for start in starts] for estimate in estimates]
    return torch.cat(list(combine_streams(pieces, kind, weights)), dim=-1)


def combine_streams(
    streams: Sequence[Iterable[Tensor]], kind: Ensemble = "avg_wave", weights: Sequence[float] | None = None
) -> Generator[Tensor]:
    """Combine streams of estimates of the same stems, and yield blocks as soon as they are final.

    For parameters see `combine`. Streams, for example of `separate_stream`, may have different block boundaries, which
    do not affect the result. They are read in turn, so little is held.

    Raises
    ------
    ValueError
        As `combine`; and if a stream ends before the others.
    """
    _check(len(streams), kind, weights)
    rule = _rule(kind, weights)
    return _spectra_combined(streams, rule) if uses_spectra(kind) else _samples_combined(streams, rule)


def uses_spectra(kind: Ensemble) -> bool:
    """Return whether spectra are combined, not samples."""
    return not kind.endswith("_wave")


@with_fields_of(ParametersSeparation)
def separate_ensemble_stream(
    models: Sequence[Callable[[Tensor], Tensor]],
    blocks: Iterable[Tensor],
    *,
    kind: Ensemble = "avg_wave",
    weights: Sequence[float] | None = None,
    length: int | None = None,
    **keywords: Unpack[KeywordsSeparation],
) -> Generator[Tensor]:
    """Separate a stream with several models of the same stems; yield combined blocks `(n, s, t)`.

    The blocks are read once, for all models. If models need different chunks, or have stems in different orders, use
    `hunterFormsBS.separation.separate_stream` for each, and `combine_streams`.

    Parameters
    ----------
    models : Sequence[Callable[[Tensor], Tensor]]
        Each as in `hunterFormsBS.separation.separate`.
    blocks : Iterable[Tensor]
        As in `hunterFormsBS.separation.separate_stream`.
    kind, weights
        As in `combine`.
    length : int | None, default None
        Samples to expect.
    **keywords : Unpack[KeywordsSeparation]
        The fields of `ParametersSeparation`.

    Raises
    ------
    TypeError, ValueError, RuntimeError, torch.OutOfMemoryError
        As `combine_streams` and `separate_stream`.
    """
    _check(len(models), kind, weights)
    parameters = ParametersSeparation(**keywords)
    copies = branches((block.clone() for block in iter_blocks(blocks)), len(models))
    streams = [stems_of(model, copied, parameters, length=length) for model, copied in zip(models, copies, strict=True)]
    return combine_streams(streams, kind, weights)


def _check(count: int, kind: object, weights: Sequence[float] | None) -> None:
    """Refuse invalid methods, numbers of estimates and weights."""
    if count == 0:
        message = "an ensemble needs at least one estimate: received none."
        raise ValueError(message)
    if kind not in ENSEMBLES:
        message = f"`kind` must be one of {', '.join(ENSEMBLES)}: received {short_repr(kind)}."
        raise ValueError(message)
    if weights is None:
        return
    if kind not in ("avg_wave", "avg_fft"):
        message = f"`weights` are for avg_wave and avg_fft: received {short_repr(list(weights))} with {kind}."
        raise ValueError(message)
    if len(weights) != count or not all(map(math.isfinite, weights)) or not sum(weights) > 0:
        message = (
            f"`weights` must be finite, with a sum above zero, one for each of {count}: "
            f"received {short_repr(list(weights))}."
        )
        raise ValueError(message)


def _rule(kind: str, weights: Sequence[float] | None) -> Callable[[Sequence[Tensor]], Tensor]:
    """Return the function that combines tensors, real or complex, element by element."""

    def mean(values: Sequence[Tensor]) -> Tensor:
        factors = [1.0] * len(values) if weights is None else list(weights)
        total = sum(factors)
        result = values[0] * (factors[0] / total)
        for value, factor in zip(values[1:], factors[1:], strict=True):
            result = result.add(value, alpha=factor / total)
        return result

    def smallest(values: Sequence[Tensor]) -> Tensor:
        result = values[0]
        for value in values[1:]:
            result = torch.where(value.abs() < result.abs(), value, result)
        return result

    def largest(values: Sequence[Tensor]) -> Tensor:
        result = values[0]
        for value in values[1:]:
            result = torch.where(value.abs() > result.abs(), value, result)
        return result

    rules = {"avg": mean, "median": _median, "min": smallest, "max": largest}
    if kind.startswith("uvr_"):
        rule = rules[kind.split("_")[1]]
        return lambda values: rule(values[::-1])
    return rules[kind.partition("_")[0]]


def _median(values: Sequence[Tensor]) -> Tensor:
    """Return the middle one, or the mean of two. Complex numbers are ordered by real parts, then imaginary parts."""
    stacked = torch.stack(list(values))
    if stacked.is_complex():
        stacked = stacked.gather(0, stacked.imag.argsort(dim=0, stable=True))
        ordered = stacked.gather(0, stacked.real.argsort(dim=0, stable=True))
    else:
        ordered = stacked.sort(dim=0).values
    count = len(values)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def _samples_combined(
    streams: Sequence[Iterable[Tensor]], rule: Callable[[Sequence[Tensor]], Tensor]
) -> Generator[Tensor]:
    for blocks in aligned(streams):
        yield rule(blocks)


def _spectra_combined(
    streams: Sequence[Iterable[Tensor]], rule: Callable[[Sequence[Tensor]], Tensor]
) -> Generator[Tensor]:
    """Combine frames of two hops each; half of the first one lies before the song, half of the last one behind it."""
    pending: list[Tensor] = []
    later = torch.empty(0)  # What the last frame so far adds to the next hop.
    received = 0
    ready = -HOP  # Final samples, counted from the start of the song.

    def finished(audio: list[Tensor]) -> Tensor:
        """Return as many samples as there are frames times the hop: all but what the last frame adds later."""
        nonlocal later
        window = torch.hann_window(2 * HOP, dtype=torch.float64, device=audio[0].device).to(audio[0].dtype)
        spectra = [_rfft(one.unfold(-1, 2 * HOP, HOP) * window) for one in audio]
        frames = _irfft(rule(spectra), 2 * HOP) * window
        first, second = frames[..., :HOP], frames[..., HOP:]
        total = first + torch.cat((later[..., None, :], second[..., :-1, :]), dim=-2)
        later = second[..., -1, :]
        overlapping = window[:HOP].square() + window[HOP:].square()
        return (total / overlapping).flatten(-2)

    for blocks in aligned(streams):
        if not pending:
            pending = [block.new_zeros((*block.shape[:-1], HOP)) for block in blocks]
            later = pending[0]
        pending = [torch.cat(pair, dim=-1) for pair in zip(pending, blocks, strict=True)]
        received += blocks[0].shape[-1]
        hops = pending[0].shape[-1] // HOP
        if hops < 2:
            continue
        block = finished([one[..., : hops * HOP] for one in pending])
        pending = [one[..., (hops - 1) * HOP :] for one in pending]
        block = block if ready >= 0 else block[..., HOP:]  # Drop what lies before the song.
        ready += (hops - 1) * HOP
        if block.shape[-1]:
            yield block
    if pending:
        rest = -pending[0].shape[-1] % HOP + HOP
        block = finished([torch.nn.functional.pad(one, (0, rest)) for one in pending])
        block = block if ready >= 0 else block[..., HOP:]
        yield block[..., : received - max(0, ready)]
