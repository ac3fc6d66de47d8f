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
    figure.colorbar(image, ax=every_axes, label="mean modulus of the mask", pad=0.01)
    return figure


def spectrogram_figure(named: Mapping[str, Tensor], sample_rate: int) -> Figure:
    """Draw spectrograms of audio `(s, t)`, all on one scale: mixture and true stems, and below them estimates."""
    columns = 1 + len(named) // 2
    figure = Figure(figsize=(4 * columns, 7), layout="constrained")
    every_axes = figure.subplots(2, columns, sharex=True, sharey=True, squeeze=False)
    every_axes[1, 0].set_axis_off()
    every_axes[0, 0].xaxis.set_tick_params(labelbottom=True)
    every_axes[1, 1].yaxis.set_tick_params(labelleft=True)
    cells = [*every_axes[0], *every_axes[1, 1:]]
    image: Any = None
    for axes, (name, audio) in zip(cells, named.items(), strict=True):
        size = min(4096, 2 * (audio.shape[-1] // 4))
        level = _decibels(audio, size)
        seconds = torch.arange(level.shape[1]) * (size // 4 / sample_rate)
        kilohertz = torch.arange(1, size // 2 + 1) * (sample_rate / 1000 / size)  # a logarithm has no 0
        grid = seconds.numpy(), kilohertz.numpy(), level.numpy()
        image = axes.pcolormesh(*grid, vmin=-90, vmax=-10, cmap="magma", shading="nearest", rasterized=True)
        axes.set(title=name.replace("/", ", "), yscale="log", ylim=(max(0.03, float(kilohertz[0])), sample_rate / 2000))
        axes.yaxis.set_major_formatter("{x:g}")
    figure.supxlabel("time (s)")
    figure.supylabel("frequency (kHz)")
    figure.colorbar(image, ax=every_axes, label="power in dB, 0 for a sine of full scale", aspect=40, pad=0.01)
    return figure


def _decibels(audio: Tensor, size: int) -> Tensor:
    """Return the power of audio `(s, t)` at every frequency but 0, `(f, t)`: the mean of the channels, in dB."""
    spectrum = torch.stft(audio, size, size // 4, window=torch.hann_window(size), return_complex=True)[:, 1:]
    power = spectrum.abs().square().mean(0) / (size / 4) ** 2  # 1 for a sine of full scale
    return 10 * power.clamp_min(1e-12).log10()


def _hertz(frequency: float) -> str:
    return f"{frequency / 1000:.1f} kHz" if frequency >= 1000 else f"{frequency:.0f} Hz"
