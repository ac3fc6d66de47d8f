"""How good a model is on whole songs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torchmetrics.audio import SignalNoiseRatio
from tqdm import tqdm

from hunterFormsBS.separation import separate
from training.segments import Song, read_song
from training.settings import Settings

DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def signal_to_distortion(
    fabric: Fabric, model: nn.Module, songs: Sequence[Song], settings: Settings, dtype: torch.dtype | None
) -> dict[str, float]:
    """Separate songs, shared out among the processes, and return the SDR of each stem in dB, averaged over songs.

    The ratio is that of the Music Demixing challenges: the energy of the true stem over the energy of what differs
    from it, both channels of the whole song together. No filter is allowed to the estimate, unlike in BSS Eval. A stem
    that is silent throughout a song has no such ratio and is left out; one that is silent in all songs has no entry.

    Parameters
    ----------
    fabric : Fabric
    model : nn.Module
        The same in every process, not sharded, on the process's device.
    songs : sequence of Song
    settings : Settings
    dtype : torch.dtype, optional
        See `separate`.
    """
    metrics = {stem: SignalNoiseRatio().to(fabric.device) for stem in settings.stems}
    targets = [settings.instruments.index(stem) for stem in settings.stems]
    mine = songs[fabric.global_rank :: fabric.world_size]
    for song in tqdm(mine, desc="validation", unit="song", leave=False, disable=fabric.global_rank > 0):
        mixture, truth = read_song(song, targets, channels_of(model))
        estimates = separate_with(model, mixture, settings, dtype)
        for metric, estimate, stem in zip(metrics.values(), estimates, truth, strict=True):
            if stem.abs().sum() > 0:
                metric.update(estimate.flatten().to(fabric.device), stem.flatten().to(fabric.device))
    scores: dict[str, float] = {}
    with warnings.catch_warnings():
        # A process without a song takes part in the sum all the same.
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
        for stem, metric in metrics.items():
            score = float(metric.compute())
            if score == score:
                scores[stem] = score
    return scores


def separate_with(model: nn.Module, mixture: Tensor, settings: Settings, dtype: torch.dtype | None) -> Tensor:
    """Separate a mixture, `(s, t)`, as the configuration says: `(n, s, t)`."""
    return separate(
        model,
        mixture,
        chunk_size=settings.chunk_size,
        num_overlap=settings.num_overlap,
        batch_size=settings.inference_batch_size,
        dtype=dtype,
    )


def channels_of(model: nn.Module) -> int:
    """Return how many audio channels a model takes."""
    return 2 if model.stereo else 1
