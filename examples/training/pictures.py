"""Pictures and sound for the log: spectrograms, and what each stem's masks do in each band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from hunterFormsBS.bandSplitRotator import BandSplitRotator

LABELLED_BANDS = 8


def log_excerpt(
    writer: SummaryWriter,
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
    writer : SummaryWriter
    model : BandSplitRotator
    mixture : Tensor
        `(s, t)`.
    truth, estimates : mapping of str to Tensor
        The same for each of the model's stems, in order.
    sample_rate : int
    update : int
        Position in the log.
    """
    named = {
        "mixture": mixture,
        **{f"{stem}/true": audio for stem, audio in truth.items()},
        **{f"{stem}/estimated": audio for stem, audio in estimates.items()},
    }
    for name, audio in named.items():
        # TensorBoard plays one channel.
        writer.add_audio(name, audio.mean(0, keepdim=True).clamp(-1, 1), update, sample_rate=sample_rate)
    writer.add_figure("spectrograms", spectrogram_figure(named, sample_rate), update)
    masks = band_masks(model, mixture)
    seconds = mixture.shape[-1] / sample_rate
    writer.add_figure("masks", mask_figure(masks, model.mask_filter_bank, list(truth), sample_rate, seconds), update)


@torch.inference_mode()
def band_masks(model: BandSplitRotator, mixture: Tensor) -> Tensor:
    """Return how much of each band each stem keeps of a mixture `(s, t)`: `(n, band, t)`, mean modulus of the mask.

    These are the masks as the estimators make them, before bands that overlap are averaged.
    """
    device = next(model.parameters()).device
    spectrum = model.stft.forward(mixture[None].to(device))
    tokens = model.transform(model.split_bands(model.gather_bands(spectrum)))
    masks = model.estimate_masks(tokens, range(model.num_stems))[0]  # (n, t, bins of all bands, s, c)
    modulus = torch.linalg.vector_norm(masks, dim=-1).mean(-1)
    widths = model.mask_filter_bank.sum(1).tolist()
    return torch.stack([band.mean(-1) for band in modulus.split(widths, dim=-1)], dim=1).cpu()


def mask_figure(
    masks: Tensor, mask_filter_bank: Tensor, stems: Sequence[str], sample_rate: int, seconds: float
) -> Figure:
    """Draw masks `(n, band, t)`, one picture a stem, bands from low to high."""
    figure = Figure(figsize=(4 + 4 * len(stems), 5), layout="constrained")
    num_bands, num_freqs = mask_filter_bank.shape
    centres = [float(row.nonzero().float().mean()) * sample_rate / 2 / (num_freqs - 1) for row in mask_filter_bank]
    ticks = sorted({round(band) for band in torch.linspace(0, num_bands - 1, min(LABELLED_BANDS, num_bands)).tolist()})
    every_axes = figure.subplots(1, len(stems), squeeze=False)[0]
    image: Any = None
    for axes, stem, mask in zip(every_axes, stems, masks, strict=True):
        image = axes.imshow(
            mask.numpy(),
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            cmap="magma",
            vmin=0,
            vmax=max(1.0, float(masks.max())),
            extent=(0, seconds, -0.5, num_bands - 0.5),
        )
        axes.set(title=stem, xlabel="time (s)", yticks=ticks)
        axes.set_yticklabels([f"{band}: {_hertz(centres[band])}" for band in ticks])
    every_axes[0].set_ylabel("band: its middle")
    figure.colorbar(image, ax=every_axes, label="mean modulus of the mask")
    return figure


def spectrogram_figure(named: Mapping[str, Tensor], sample_rate: int) -> Figure:
    """Draw spectrograms of audio `(s, t)` in dB, all on one scale: mixture and true stems, and below them estimates."""
    levels = {name: _decibels(audio.mean(0)) for name, audio in named.items()}
    loudest = max(float(level.max()) for level in levels.values())
    columns = 1 + len(named) // 2
    figure = Figure(figsize=(4 * columns, 6), layout="constrained")
    every_axes = figure.subplots(2, columns, sharex=True, sharey=True, squeeze=False)
    every_axes[1, 0].set_axis_off()
    cells = [*every_axes[0], *every_axes[1, 1:]]
    image: Any = None
    for axes, (name, level) in zip(cells, levels.items(), strict=True):
        image = axes.imshow(
            level.numpy(),
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=loudest - 80,
            vmax=loudest,
            extent=(0, named[name].shape[-1] / sample_rate, 0, sample_rate / 2000),
        )
        axes.set(title=name)
        axes.tick_params(labelbottom=True, labelleft=True)
    figure.supxlabel("time (s)")
    figure.supylabel("frequency (kHz)")
    figure.colorbar(image, ax=every_axes, label="dB")
    return figure


def _decibels(samples: Tensor) -> Tensor:
    size = min(2048, 2 * (samples.shape[-1] // 4))
    window = torch.hann_window(size)
    spectrum = torch.stft(samples, size, size // 4, window=window, return_complex=True)
    return 20 * spectrum.abs().clamp_min(1e-6).log10()


def _hertz(frequency: float) -> str:
    return f"{frequency / 1000:.1f} kHz" if frequency >= 1000 else f"{frequency:.0f} Hz"
