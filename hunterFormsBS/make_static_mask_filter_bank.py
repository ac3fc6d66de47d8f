"""Helpers for a REPL or notebook: print a band layout as code to paste, or draw it.

The printing functions return nothing, so that a REPL shows only the code. `hunterFormsBS.blocks.layout` makes the
tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.blocks.layout import (
    check_freqs_per_bands,
    check_mask_filter_bank,
    check_sample_rate,
    mask_filter_bank_non_overlapping,
)
from hunterFormsBS.installation import how_to_install

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_Number = TypeVar("_Number", int, float)


def filter_bank_non_overlapping(freqs_per_bands: Sequence[int], num_bands: int | None = None) -> None:
    """Print the layout of bands side by side.

    Parameters
    ----------
    freqs_per_bands : Sequence[int]
        Number of bins in each band. Their sum is the number of bins.
    num_bands : int | None, default None
        Expected number of bands, to catch a missing or repeated number in a long list.
    """
    counts = check_freqs_per_bands(freqs_per_bands)
    if num_bands is not None and num_bands != len(counts):
        raise ValueError(
            f"num_bands={num_bands} disagrees with the {len(counts)} numbers in freqs_per_bands: correct one, "
            "or leave num_bands out"
        )
    print_static_mask(mask_filter_bank_non_overlapping(counts, sum(counts)))


def librosa_filters_mel(
    sample_rate: float | None = None,
    stft_n_fft: int | None = None,
    num_bands: int | None = None,
    *,
    sr: float | None = None,
    n_fft: int | None = None,
    n_mels: int | None = None,
    **keywordArguments: Any,
) -> None:
    """Print the layout of `librosa.filters.mel`: each band holds the bins with nonzero weight.

    The first bin is put into the first band and the last bin into the last. Without `keywordArguments` this is the
    layout of `hunterFormsBS.blocks.layout.mask_filter_bank_mel`, which needs no librosa.

    Parameters
    ----------
    sample_rate, sr : float, default 44100
        Samples per second of the audio.
    stft_n_fft, n_fft : int, default 2048
        Length of the Fourier transform, in samples.
    num_bands, n_mels : int, default 60
        Number of bands.
    **keywordArguments : Any
        For `librosa.filters.mel`, for example `htk=True`. With `fmin` or `fmax`, the model needs a `freq_range`.

    Raises
    ------
    ImportError
        When librosa is not installed.
    ValueError
        When a parameter and its librosa alias are both given and differ.
    """
    sample_rate = _one_of("sample_rate", sample_rate, "sr", sr, default=44100.0)
    stft_n_fft = _one_of("stft_n_fft", stft_n_fft, "n_fft", n_fft, default=2048)
    num_bands = _one_of("num_bands", num_bands, "n_mels", n_mels, default=60)
    try:
        import librosa
    except ImportError as error:
        raise ImportError(
            f"librosa_filters_mel needs librosa: {how_to_install('librosa')}; "
            "hunterFormsBS.blocks.layout.mask_filter_bank_mel makes the default mel layouts without it"
        ) from error
    weights = librosa.filters.mel(sr=sample_rate, n_fft=stft_n_fft, n_mels=num_bands, **keywordArguments)
    mask = torch.as_tensor(weights > 0)
    mask[0, 0] = True
    mask[-1, -1] = True
    print_static_mask(mask)


def print_static_mask(mask_filter_bank: Tensor) -> None:
    """Print code that makes a mask, with runs of equal values compressed.

    Parameters
    ----------
    mask_filter_bank : Tensor
        Boolean, `(band, freq)`.
    """
    mask = check_mask_filter_bank(mask_filter_bank)
    rows = ("+".join(f"[{int(value)}]*{stop - start}" for value, start, stop in _runs(row)) for row in mask)
    print("import torch")
    print(f"mask_filter_bank: torch.Tensor = torch.tensor(dtype=torch.bool, data=[{', '.join(rows)}])")


def plot_mask_filter_bank(
    mask_filter_bank: Tensor | BandSplitRotator, *, sample_rate: float | None = None, ax: Axes | None = None
) -> Axes:
    """Draw each band from its lowest to its highest frequency, and below, how many bands share each bin.

    Each bin extends halfway to its neighbours. The lowest, at 0 Hz, which a logarithmic axis cannot show, is drawn at
    the left edge. A bin in no band is shaded over the whole height.

    Parameters
    ----------
    mask_filter_bank : Tensor | BandSplitRotator
        Boolean, `(band, freq)`, with the last bin at half the sample rate; or a model, for its layout.
    sample_rate : float | None, default None
        Samples per second of the audio. `None`: what the model states, else 44100.
    ax : Axes | None, default None
        Where to draw; a new figure by default.

    Returns
    -------
    ax : Axes
        The bands, one collection each, in order; the counts are in its child axes. In a REPL, show it with
        `ax.figure.show()`; a notebook shows it automatically.

    Raises
    ------
    ImportError
        When matplotlib is not installed.
    """
    if isinstance(mask_filter_bank, BandSplitRotator):
        sample_rate = mask_filter_bank.configuration["sample_rate"] if sample_rate is None else sample_rate
        mask_filter_bank = mask_filter_bank.mask_filter_bank.cpu()
    mask = check_mask_filter_bank(mask_filter_bank)
    sample_rate = 44100.0 if sample_rate is None else sample_rate
    check_sample_rate(sample_rate)
    try:
        import matplotlib.pyplot as plt
        from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator
    except ImportError as error:
        raise ImportError(f"plot_mask_filter_bank needs matplotlib: {how_to_install('plot')}") from error

    num_bands, num_freqs = mask.shape
    edges = _edges_hz(num_freqs, sample_rate)
    bands_per_bin = [int(count) for count in mask.sum(dim=0)]
    drawn: Axes = plt.subplots(figsize=(10, 6.5), layout="constrained")[1] if ax is None else ax
    # matplotlib's annotations omit keyword arguments, so strict checkers know none of its methods.
    axes: Any = drawn

    for band, row in enumerate(mask):
        bars = [(edges[start], edges[stop] - edges[start]) for value, start, stop in _runs(row) if value]
        axes.broken_barh(bars, (band - 0.45, 0.9), color=("tab:blue", "tab:orange")[band % 2])
    uncovered = [run for run in _runs(~mask.any(dim=0)) if run[0]]
    for _, start, stop in uncovered:
        axes.axvspan(edges[start], edges[stop], color="tab:red", alpha=0.25, linewidth=0, label="in no band")
    if uncovered:
        axes.legend(handles=axes.patches[-1:], loc="upper left")

    # The counts are inside the axes, under band 0, so that the layout of a caller's axes does not change.
    share = 0.2
    strip: Any = axes.inset_axes((0, 0, 1, 0.7 * share), sharex=drawn)
    strip.stairs(bands_per_bin, edges, fill=True, color="0.75")
    strip.stairs([count if count > 1 else 0 for count in bands_per_bin], edges, fill=True, color="0.35")
    strip.set(ylim=(0, max(bands_per_bin) + 0.5), ylabel="bands\nper bin")
    strip.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    strip.tick_params(labelbottom=False)

    ticks = MaxNLocator(nbins=12, integer=True, steps=(1, 2, 5, 10)).tick_values(0, num_bands - 1)
    axes.set_yticks([tick for tick in ticks if 0 <= tick < num_bands])
    axes.set(ylabel="band", ylim=(-0.5 - share / (1 - share) * num_bands, num_bands - 0.5))
    axes.set(xlabel="frequency (Hz)", xlim=(edges[0], edges[-1]), xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_title(f"{num_bands} bands of {num_freqs} frequency bins")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    return drawn


def _one_of(name: str, value: _Number | None, alias: str, alias_value: _Number | None, *, default: _Number) -> _Number:
    if value is not None and alias_value is not None and value != alias_value:
        raise ValueError(f"{name}={value} and its alias {alias}={alias_value} differ: pass one of them")
    given = alias_value if value is None else value
    return default if given is None else given


def _runs(row: Tensor) -> list[tuple[bool, int, int]]:
    """Return each run of equal values: the value, the first index and the index after the last."""
    changes = [int(index) + 1 for index in (row[1:] != row[:-1]).nonzero()]
    return [(bool(row[start]), start, stop) for start, stop in pairwise((0, *changes, len(row)))]


def _edges_hz(num_freqs: int, sample_rate: float) -> list[float]:
    """Return the `num_freqs + 1` frequencies at which bins begin and end; 0 Hz is shown as a quarter of the spacing."""
    spacing = sample_rate / 2 / max(num_freqs - 1, 1)
    return [spacing / 4, *((freq - 0.5) * spacing for freq in range(1, num_freqs)), sample_rate / 2]
