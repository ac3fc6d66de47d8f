"""Helpers for a REPL: what they print makes the mask again, and what they draw is the layout."""

import ast
import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

import librosa
import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.patches import Patch, StepPatch
from torch import Tensor

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.blocks.layout import (
    mask_filter_bank_bs_roformer_default,
    mask_filter_bank_mel_band_default,
    mask_filter_bank_non_overlapping,
)
from hunterFormsBS.make_static_mask_filter_bank import (
    filter_bank_non_overlapping,
    librosa_filters_mel,
    plot_mask_filter_bank,
    print_static_mask,
)

mpl.use("Agg")


def printed_by(function: Callable[..., None], *arguments: Any, **keywordArguments: Any) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        function(*arguments, **keywordArguments)
    return stream.getvalue()


def executed(source: str) -> Tensor:
    names: dict[str, Any] = {}
    exec(source, names)
    mask: Tensor = names["mask_filter_bank"]
    return mask


def librosa_mask(**arguments: Any) -> Tensor:
    mask = torch.from_numpy(librosa.filters.mel(**arguments) > 0)
    mask[0, 0] = True
    mask[-1, -1] = True
    return mask


# Printing


def test_runs_of_equal_values_are_compressed() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 0, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
    assert printed_by(print_static_mask, mask) == (
        "import torch\n"
        "mask_filter_bank: torch.Tensor = torch.tensor(dtype=torch.bool, "
        "data=[[1]*3+[0]*2, [0]*1+[1]*1+[0]*1+[1]*2, [1]*5])\n"
    )


@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_executing_what_was_printed_makes_the_same_mask(
    num_bands: int, num_freqs: int, seed: int, density: float
) -> None:
    random = torch.rand(num_bands, num_freqs, generator=torch.Generator().manual_seed(seed))
    mask = random < density
    source = printed_by(print_static_mask, mask)
    assert [type(statement) for statement in ast.parse(source).body] == [ast.Import, ast.AnnAssign]
    made = executed(source)
    assert made.dtype == torch.bool
    assert torch.equal(made, mask)


@pytest.mark.parametrize("mask", [mask_filter_bank_mel_band_default, mask_filter_bank_bs_roformer_default])
def test_default_layouts_survive_printing(mask: Tensor) -> None:
    assert torch.equal(executed(printed_by(print_static_mask, mask)), mask)


def test_counts_are_printed_as_bands_side_by_side() -> None:
    source = printed_by(filter_bank_non_overlapping, [2, 1, 3])
    assert executed(source).int().tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]
    assert printed_by(filter_bank_non_overlapping, (2, 1, 3), num_bands=3) == source


def test_counts_that_are_not_as_many_as_expected_are_refused() -> None:
    with pytest.raises(ValueError, match="num_bands=4 disagrees with the 3 numbers in freqs_per_bands"):
        filter_bank_non_overlapping((2, 1, 3), 4)


@pytest.mark.parametrize(
    ("counts", "error"), [((2, -2), ValueError), ((), ValueError), (7, TypeError), ("12", TypeError)]
)
def test_counts_that_make_no_sense_are_refused(counts: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="freqs_per_bands must be"):
        filter_bank_non_overlapping(counts)


@pytest.mark.parametrize(
    ("mask", "error"),
    [(torch.ones(2, 3), TypeError), ([[True]], TypeError), (torch.ones(3, dtype=torch.bool), ValueError)],
)
@pytest.mark.parametrize("function", [print_static_mask, plot_mask_filter_bank])
def test_what_is_no_mask_is_refused(function: Callable[..., object], mask: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="mask_filter_bank must be"):
        function(mask)


# librosa's filters


def test_librosa_filters_are_printed_with_the_first_and_last_bin_in_a_band() -> None:
    expected = librosa_mask(sr=22050, n_fft=1024, n_mels=30)
    assert torch.equal(executed(printed_by(librosa_filters_mel, 22050, 1024, 30)), expected)
    assert expected.any(dim=0).all()


def test_librosa_filters_are_those_of_mel_band_roformer_by_default() -> None:
    assert torch.equal(executed(printed_by(librosa_filters_mel)), mask_filter_bank_mel_band_default)


def test_further_keywords_reach_librosa() -> None:
    keywords: dict[str, Any] = {"htk": True, "fmin": 100.0, "fmax": 7000.0}
    made = executed(printed_by(librosa_filters_mel, 22050, 512, 20, **keywords))
    assert torch.equal(made, librosa_mask(sr=22050, n_fft=512, n_mels=20, **keywords))
    assert not torch.equal(made, librosa_mask(sr=22050, n_fft=512, n_mels=20))
    with pytest.raises(TypeError, match="wrong_keyword"):
        librosa_filters_mel(wrong_keyword=1)


def test_parameters_may_have_the_names_that_librosa_gives_them() -> None:
    source = printed_by(librosa_filters_mel, 22050, 1024, 30)
    assert printed_by(librosa_filters_mel, sr=22050, n_fft=1024, n_mels=30) == source
    assert printed_by(librosa_filters_mel, 22050, stft_n_fft=1024, n_mels=30, sr=22050) == source


@pytest.mark.parametrize(
    "arguments",
    [
        {"sample_rate": 44100, "sr": 48000},
        {"stft_n_fft": 2048, "n_fft": 1024},
        {"num_bands": 60, "n_mels": 64},
    ],
)
def test_parameter_and_alias_that_differ_are_refused_even_at_the_default(arguments: dict[str, Any]) -> None:
    (name, value), (alias, alias_value) = arguments.items()
    with pytest.raises(ValueError, match=f"{name}={value} and its alias {alias}={alias_value} differ: pass one"):
        librosa_filters_mel(**arguments)


@pytest.mark.parametrize(
    ("module", "package", "call"),
    [
        ("librosa", "librosa", lambda: librosa_filters_mel()),
        ("matplotlib.pyplot", "matplotlib", lambda: plot_mask_filter_bank(mask_filter_bank_mel_band_default)),
    ],
)
def test_missing_package_is_named_with_the_command_that_installs_it(
    module: str, package: str, call: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"-m pip install '{package}>="):
        call()


# Drawing


@pytest.fixture(autouse=True)
def _no_figure_stays_open() -> Iterator[None]:
    yield
    plt.close("all")


def bars_hz(ax: Axes) -> list[list[tuple[float, float]]]:
    """Read the left and right ends of each band's bars from the drawing."""
    return [
        [(path.get_extents().x0, path.get_extents().x1) for path in collection.get_paths()]
        for collection in ax.collections
    ]


def drawn_steps(patch: Patch) -> tuple[list[float], list[float]]:
    """Read the heights of a step drawing and the ends of its steps."""
    assert isinstance(patch, StepPatch)
    heights, edges, _ = patch.get_data()
    return list(heights), list(edges)


def test_each_band_is_drawn_at_its_number_between_the_edges_of_its_bins() -> None:
    # Bins at 0, 1, 2, 3 and 4 kHz meet half way; 0 Hz is drawn from a quarter of the spacing on.
    mask = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [1, 0, 0, 1, 1]], dtype=torch.bool)
    ax = plot_mask_filter_bank(mask, sample_rate=8000)
    assert bars_hz(ax) == [[(250.0, 1500.0)], [(500.0, 3500.0)], [(250.0, 500.0), (2500.0, 4000.0)]]
    for band, collection in enumerate(ax.collections):
        for path in collection.get_paths():
            assert path.get_extents().y0 < band < path.get_extents().y1


def test_strip_shows_how_many_bands_share_each_bin() -> None:
    mask = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 0, 1, 0], [1, 1, 0, 1, 1]], dtype=torch.bool)
    ax = plot_mask_filter_bank(mask, sample_rate=8000)
    (strip,) = ax.child_axes
    every, shared = (drawn_steps(patch) for patch in strip.patches)
    edges = [250.0, 500.0, 1500.0, 2500.0, 3500.0, 4000.0]
    assert every == ([2.0, 3.0, 0.0, 2.0, 1.0], edges)
    assert shared == ([2.0, 3.0, 0.0, 2.0, 0.0], edges)
    assert strip.get_xlim() == ax.get_xlim()
    assert strip.get_ylim()[1] > 3


def test_bins_in_no_band_are_shaded_and_explained() -> None:
    mask = torch.tensor([[0, 0, 1, 0, 1]], dtype=torch.bool)
    ax = plot_mask_filter_bank(mask, sample_rate=8000)
    to_hz = ax.transData.inverted()
    left, right = (to_hz.transform(patch.get_extents())[:, 0].tolist() for patch in ax.patches)
    assert left == pytest.approx([250.0, 1500.0])
    assert right == pytest.approx([2500.0, 3500.0])
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["in no band"]


@pytest.mark.parametrize("mask", [mask_filter_bank_mel_band_default, mask_filter_bank_bs_roformer_default])
def test_default_layouts_are_drawn_whole_on_a_logarithmic_axis_in_hz(mask: Tensor) -> None:
    ax = plot_mask_filter_bank(mask)
    spacing = 44100 / 2048
    bars = bars_hz(ax)
    assert len(bars) == len(mask)
    for row, ends in zip(mask, bars, strict=True):
        bins = row.nonzero().flatten().tolist()
        first = (bins[0] - 0.5) * spacing if bins[0] else spacing / 4
        last = (bins[-1] + 0.5) * spacing if bins[-1] < 1024 else 22050
        assert len(ends) == 1
        assert ends[0] == pytest.approx((first, last))
    assert ax.get_xscale() == "log"
    assert "Hz" in ax.get_xlabel()
    assert ax.get_xlim() == pytest.approx((spacing / 4, 22050))
    assert ax.get_legend() is None


def test_drawing_goes_where_it_is_told_and_elsewhere_opens_no_figure() -> None:
    _, (left, right) = plt.subplots(1, 2)
    mask = mask_filter_bank_non_overlapping((2, 3), 5)
    assert plot_mask_filter_bank(mask, ax=right) is right
    assert len(right.collections) == 2
    assert not left.collections
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (200, 3)])
def test_layouts_of_any_size_can_be_rendered_even_empty_ones(shape: tuple[int, int], value: int) -> None:
    ax = plot_mask_filter_bank(torch.full(shape, value, dtype=torch.bool))
    ax.figure.canvas.draw()
    low, high = ax.get_ylim()
    assert len(ax.collections) == shape[0]
    assert low < 0 <= shape[0] - 1 < high


def test_sample_rate_that_is_no_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="sample_rate must be positive and finite, but is 0"):
        plot_mask_filter_bank(mask_filter_bank_mel_band_default, sample_rate=0)


def test_a_model_is_drawn_as_its_layout_at_its_sample_rate() -> None:
    model = BandSplitRotator(4, depth=1, sample_rate=16000, num_bands=20, heads=1, dim_head=2)
    assert plot_mask_filter_bank(model).get_xlim()[1] == 8000
    assert len(plot_mask_filter_bank(model).collections) == 20
    assert plot_mask_filter_bank(model, sample_rate=48000).get_xlim()[1] == 24000
    assert plot_mask_filter_bank(BandSplitRotator(4, depth=1)).get_xlim()[1] == 22050
