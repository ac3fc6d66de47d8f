"""Pictures for a REPL or notebook: band layouts, separations, and masks by band.

Each function returns the axes that it drew in. A notebook shows the picture automatically; in a REPL call
`axes[0].figure.show()`. All need matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.blocks.layout import check_sample_rate
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.make_static_mask_filter_bank import plot_mask_filter_bank as plot_mask_filter_bank

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["band_masks", "plot_band_masks", "plot_mask_filter_bank", "plot_separation", "save_spectrogram"]

# torch.fft has no annotations.
_rfft = cast("Callable[[Tensor], Tensor]", torch.fft.rfft)  # pyright: ignore[reportUnknownMemberType]

LABELLED_BANDS = 8
FRAMES = 1500
"""Most frames of a spectrogram: more than a screen has columns, few enough to draw in a second."""
DECIBELS = {"vmin": -90, "vmax": -10}


def plot_separation(
    mixture: Tensor,
    stems: Tensor,
    *,
    truth: Tensor | None = None,
    names: Sequence[str] | None = None,
    sample_rate: float = 44100,
    figure: Figure | None = None,
) -> list[Axes]:
    """Draw spectrograms of a mixture, its stems and, if given, the true stems above them, on one scale.

    Parameters
    ----------
    mixture : Tensor
        `(s, t)`, or `(t)` if mono.
    stems : Tensor
        As `hunterFormsBS.separation.separate` returns them: `(n, s, t)`.
    truth : Tensor, default None
        The true stems, `(n, s, t)`.
    names : sequence of str, default None
        Of the stems; None: numbers.
    sample_rate : float
        Samples per second.
    figure : Figure, default None
        Where to draw; None: a new figure of pyplot.

    Returns
    -------
    list of Axes
        The mixture's, those of the true stems if any, those of the stems.
    """
    check_sample_rate(sample_rate)
    names = _names(names, len(stems))
    pictures = [[("mixture", mixture)]]
    if truth is None:
        pictures[0] += list(zip(names, stems, strict=True))
    else:
        if truth.shape[0] != len(stems):
            raise ValueError(f"truth has {truth.shape[0]} stems and stems {len(stems)}: pass the same stems in both.")
        pictures[0] += [(f"{name}, true", audio) for name, audio in zip(names, truth, strict=True)]
        pictures += [[(f"{name}, estimated", audio) for name, audio in zip(names, stems, strict=True)]]
    columns = 1 + len(stems)
    # matplotlib's annotations omit keyword arguments, so strict checkers know none of its methods.
    drawing: Any = _figure(figure, (3.6 * columns, 3.6 * len(pictures)), "plot_separation")
    grid = drawing.subplots(len(pictures), columns, sharex=True, sharey=True, squeeze=False)
    if truth is not None:
        grid[1, 0].set_axis_off()
        grid[0, 0].xaxis.set_tick_params(labelbottom=True)
        grid[1, 1].yaxis.set_tick_params(labelleft=True)
    used: list[Any] = [*grid[0]] if truth is None else [*grid[0], *grid[1, 1:]]
    image: Any = None
    for axes, (name, audio) in zip(used, [picture for row in pictures for picture in row], strict=True):
        image = _draw_spectrogram(axes, [audio], audio.shape[-1], sample_rate)
        axes.set_title(name)
    drawing.supxlabel("time (s)")
    drawing.supylabel("frequency (kHz)")
    drawing.colorbar(image, ax=grid, label="power in dB, 0 for a sine of full scale", aspect=40, pad=0.01)
    return used


def plot_band_masks(
    model: BandSplitRotator,
    audio: Tensor,
    *,
    names: Sequence[str] | None = None,
    sample_rate: float = 44100,
    figure: Figure | None = None,
) -> list[Axes]:
    """Draw the mean modulus of each stem's masks, by band and time.

    Parameters
    ----------
    model : BandSplitRotator
        On any device.
    audio : Tensor
        A few seconds of a mixture, `(s, t)`, or `(t)` if mono. The model sees them as one chunk.
    names : sequence of str, default None
        Of the model's stems; None: numbers.
    sample_rate : float
        Samples per second.
    figure : Figure, default None
        Where to draw; None: a new figure of pyplot.

    Returns
    -------
    list of Axes
        One for each stem.
    """
    check_sample_rate(sample_rate)
    names = _names(names, model.num_stems)
    masks = band_masks(model, audio)
    mask_filter_bank = model.mask_filter_bank.cpu()
    num_bands, num_freqs = mask_filter_bank.shape
    centres = [float(row.nonzero().float().mean()) * sample_rate / 2 / (num_freqs - 1) for row in mask_filter_bank]
    labels = min(LABELLED_BANDS, num_bands)
    ticks = sorted({round(label * (num_bands - 1) / max(1, labels - 1)) for label in range(labels)})
    drawing: Any = _figure(figure, (3 + 4 * len(names), 5), "plot_band_masks")
    used = list(drawing.subplots(1, len(names), squeeze=False)[0])
    image: Any = None
    for axes, name, mask in zip(used, names, masks, strict=True):
        image = axes.imshow(
            mask.numpy(),
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            cmap="magma",
            vmin=0,
            vmax=max(1.0, float(masks.max())),
            extent=(0, audio.shape[-1] / sample_rate, -0.5, num_bands - 0.5),
        )
        axes.set(title=name, xlabel="time (s)", yticks=ticks)
        axes.set_yticklabels([f"{band}: {_hertz(centres[band])}" for band in ticks])
    used[0].set_ylabel("band: its middle")
    drawing.colorbar(image, ax=used, label="mean modulus of the mask", pad=0.01)
    return used


@torch.inference_mode()
def band_masks(model: BandSplitRotator, audio: Tensor) -> Tensor:
    """Return the mean modulus of each stem's masks for a mixture `(s, t)` or `(t)`: `(n, band, t)`.

    These are the masks of the estimators, before overlapping bands are averaged.
    """
    audio = audio[None] if audio.ndim == 1 else audio
    if audio.ndim != 2 or audio.shape[0] != model.audio_channels:
        channels = f"(2, t) for a stereo model, and this has shape {tuple(audio.shape)}"
        raise ValueError(f"audio must be (t) or (1, t) for a mono model and {channels}.")
    spectrum = model.stft.forward(audio[None].to(next(model.parameters()).device))
    tokens = model.transform(model.split_bands(model.gather_bands(spectrum)))
    masks = model.estimate_masks(tokens, range(model.num_stems))[0]  # (n, t, bins of all bands, s, c)
    modulus = masks.square().sum(-1).sqrt().mean(-1)
    ends = [int(end) for end in model.layout.sum(1).cumsum(0)]
    bands = [modulus[..., start:end].mean(-1) for start, end in pairwise([0, *ends])]
    return torch.stack(bands, dim=1).cpu()


def _figure(figure: Figure | None, size: tuple[float, float], function: str) -> Figure:
    if figure is not None:
        return figure
    pyplot = matplotlib_module("pyplot", function)
    drawing: Figure = pyplot.figure(figsize=size, layout="constrained")
    return drawing


def _names(names: Sequence[str] | None, count: int) -> list[str]:
    if names is None:
        return [f"stem {number}" for number in range(1, count + 1)]
    if isinstance(names, str) or len(names) != count:
        raise ValueError(f"names={names!r} must name each of the {count} stems: pass a list of as many.")
    return list(names)


def save_spectrogram(path: Path, blocks: Iterable[Tensor], length: int, sample_rate: float) -> None:
    """Write the spectrogram of audio of any length as a PNG, holding a few blocks in memory.

    Parameters
    ----------
    path : Path
    blocks : Iterable[Tensor]
        `(s, t)`.
    length : int
        Samples of each channel, about.
    sample_rate : float
        In Hz.
    """
    figure = matplotlib_module("figure", "save_spectrogram").Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots()
    image = _draw_spectrogram(axes, blocks, length, sample_rate)
    axes.set(xlabel="time (s)", ylabel="frequency (kHz)")
    figure.colorbar(image, ax=axes, label="power in dB, 0 for a sine of full scale", aspect=40, pad=0.01)
    figure.savefig(path, format="png", dpi=100)


def matplotlib_module(name: str, needed_by: str) -> Any:
    """Return a module of matplotlib, or raise an ImportError that says how to install it."""
    try:
        return import_module(f"matplotlib.{name}")
    except ImportError as error:
        raise ImportError(f"{needed_by} needs matplotlib: {how_to_install('plot')}") from error


def _draw_spectrogram(axes: Any, blocks: Iterable[Tensor], length: int, sample_rate: float) -> Any:
    """Draw the power of audio, averaged over channels, in dB on a logarithmic frequency axis."""
    size = max(4, min(4096, 2 * (length // 4)))
    hop = max(size // 4, length // FRAMES)
    power = _power(blocks, size, hop)[1:] / (size / 4) ** 2  # 1 for a sine of full scale
    seconds = torch.arange(power.shape[1]) * (hop / sample_rate)
    kilohertz = torch.arange(1, size // 2 + 1) * (sample_rate / 1000 / size)  # a logarithm has no 0
    grid = seconds.numpy(), kilohertz.numpy(), (10 * power.clamp_min(1e-12).log10()).numpy()
    axes.set(yscale="log", ylim=(max(0.03, float(kilohertz[0])), sample_rate / 2000))
    axes.yaxis.set_major_formatter("{x:g}")
    return axes.pcolormesh(*grid, **DECIBELS, cmap="magma", shading="nearest", rasterized=True)


def _power(blocks: Iterable[Tensor], size: int, hop: int) -> Tensor:
    """Return the power of windows around every `hop`th sample, `(f, t)`, the mean of all channels."""
    window = torch.hann_window(size)
    margin = torch.zeros(1, size // 2)  # silence before the song, and behind it
    pending = margin
    frames: list[Tensor] = []
    skip = 0  # samples between windows whose hop exceeds their length
    for block in chain(blocks, [margin]):
        audio = block.detach().cpu().float().reshape(-1, block.shape[-1])
        channels = max(len(pending), len(audio))
        pending = torch.cat([pending.expand(channels, -1), audio.expand(channels, -1)], dim=-1)
        pending, skip = pending[:, skip:], max(0, skip - pending.shape[-1])
        if skip or pending.shape[-1] < size:
            continue
        windows = pending.unfold(-1, size, hop)  # (s t size)
        frames.append(_rfft(windows * window).abs().square().mean(0).T)
        used = windows.shape[1] * hop
        pending, skip = pending[:, used:], max(0, used - pending.shape[-1])
    return torch.cat(frames, dim=-1)


def _hertz(frequency: float) -> str:
    return f"{frequency / 1000:.1f} kHz" if frequency >= 1000 else f"{frequency:.0f} Hz"
