"""Pictures and audio for the log: spectrograms, and masks of each stem by band."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.plot import plot_band_masks, plot_separation

if TYPE_CHECKING:
    from hunterFormsBS.training.loggers import Log


def log_excerpt(
    log: Log,
    model: BandSplitRotator,
    mixture: Tensor,
    truth: Mapping[str, Tensor],
    estimates: Mapping[str, Tensor],
    sample_rate: int,
    update: int,
) -> None:
    """Write audio, spectrograms and masks to the log.

    Parameters
    ----------
    log : Log
    model : BandSplitRotator
    mixture : Tensor
        `(s, t)`.
    truth, estimates : mapping of str to Tensor
        Audio `(s, t)` of each of the model's stems, in order.
    sample_rate : int
    update : int
        Step in the log.
    """
    from matplotlib.figure import Figure

    named = {
        "mixture": mixture,
        **{f"{stem}/true": audio for stem, audio in truth.items()},
        **{f"{stem}/estimated": audio for stem, audio in estimates.items()},
    }
    for name, audio in named.items():
        # TensorBoard plays one channel.
        log.sound(name, audio.mean(0, keepdim=True).clamp(-1, 1), sample_rate, update)
    true, estimated = (torch.stack(list(audio.values())) for audio in (truth, estimates))
    # Figures without pyplot, which would keep them in memory.
    spectrograms = Figure(figsize=(4 * (1 + len(truth)), 7), layout="constrained")
    plot_separation(mixture, estimated, truth=true, names=list(truth), sample_rate=sample_rate, figure=spectrograms)
    log.picture("spectrograms", spectrograms, update)
    masks = Figure(figsize=(4 + 4 * len(truth), 5), layout="constrained")
    plot_band_masks(model, mixture, names=list(truth), sample_rate=sample_rate, figure=masks)
    log.picture("masks", masks, update)
