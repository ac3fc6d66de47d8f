"""Pictures of separations and of masks: what they show is what was computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from hunterFormsBS import plot
from hunterFormsBS.plot import band_masks, plot_band_masks, plot_separation, save_spectrogram

mpl.use("Agg")
RATE = 8000


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def sine(kilohertz: float = 1, length: int = 20000) -> torch.Tensor:
    """Return a sine of full scale, `(2, t)`."""
    return torch.sin(2 * math.pi * 1000 * kilohertz * torch.arange(length) / RATE).repeat(2, 1)


def test_band_masks_show_what_each_stem_keeps_of_each_band(
    tiny_model: Callable[..., nn.Module], overlapping_mask: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(num_stems=2, stereo=True, overlapping=True)
    widths = overlapping_mask.sum(1).tolist()
    # The mask of bin i, counted over all bands, has modulus i in stem 0 and 2 i in stem 1.
    bins = torch.arange(float(sum(widths)))

    def masks(tokens: torch.Tensor, _stems: Any) -> torch.Tensor:
        unit = torch.tensor([0.6, -0.8])
        return (
            torch.stack([bins, 2 * bins])[None, :, None, :, None, None].expand(1, 2, tokens.shape[1], -1, 2, 1) * unit
        )

    monkeypatch.setattr(model, "estimate_masks", masks)
    drawn = band_masks(model, torch.randn(2, 160))
    assert drawn.shape == (2, 5, 11)
    means = torch.stack([band.mean() for band in bins.split(widths)])
    torch.testing.assert_close(drawn[0], means[:, None].expand(-1, 11))
    torch.testing.assert_close(drawn[1], 2 * drawn[0])


def test_masks_are_drawn_band_by_band_over_time_under_the_names_of_the_stems(
    tiny_model: Callable[..., nn.Module],
) -> None:
    model: Any = tiny_model(num_stems=2, stereo=True, overlapping=True)
    audio = torch.randn(2, 160)
    axes = plot_band_masks(model, audio, names=["vocals", "other"], sample_rate=RATE)
    assert [each.get_title() for each in axes] == ["vocals", "other"]
    for each, mask in zip(axes, band_masks(model, audio), strict=True):
        (image,) = each.get_images()
        np.testing.assert_array_equal(image.get_array(), mask.numpy())
        assert tuple(image.get_extent()) == (0, 160 / RATE, -0.5, 4.5)


def test_spectrograms_have_a_sine_of_full_scale_at_its_frequency_and_at_0_decibels() -> None:
    axes = plot_separation(sine(), sine()[None] / 10, truth=sine()[None], names=["vocals"], sample_rate=RATE)
    assert [each.get_title() for each in axes] == ["mixture", "vocals, true", "vocals, estimated"]
    for each, level in zip(axes, (0, 0, -20), strict=True):
        (mesh,) = each.collections
        column = np.asarray(mesh.get_array())[:, 10]
        assert column.max() == pytest.approx(level, abs=0.1)
        loudest = mesh.get_coordinates()[column.argmax() : column.argmax() + 2, 0, 1]
        assert loudest[0] < 1 < loudest[1]  # kHz


@pytest.mark.parametrize("frames", [10, 1500])  # with samples between windows, and without
def test_a_spectrogram_in_blocks_is_that_of_the_whole(
    frames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plot, "FRAMES", frames)
    audio = sine(length=60_000)
    for name, blocks in (("whole", [audio]), ("blocks", torch.split(audio, 777, dim=-1))):
        save_spectrogram(tmp_path / name, blocks, 60_000, RATE)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "blocks").read_bytes()
    image = mpl.image.imread(tmp_path / "whole")
    assert image.shape[:2] == (400, 1200)


def test_stems_without_the_true_ones_stand_beside_the_mixture() -> None:
    axes = plot_separation(sine()[0], torch.stack([sine(), sine(2)]), sample_rate=RATE)
    assert [each.get_title() for each in axes] == ["mixture", "stem 1", "stem 2"]


def test_pictures_go_where_they_are_told_to() -> None:
    figure = Figure()
    axes = plot_separation(sine(), sine()[None], figure=figure)
    assert all(each.figure is figure for each in axes)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("length", [1, 100, 400000])
def test_audio_of_any_length_is_drawn_in_bounded_size(length: int) -> None:
    axes = plot_separation(sine(length=length), sine(length=length)[None], sample_rate=RATE)
    assert 0 < axes[0].collections[0].get_array().shape[1] <= 1502


@pytest.mark.parametrize("names", ["ab", ["vocals"], ["a", "b", "c"]])
def test_names_that_are_not_as_many_as_the_stems_are_refused(names: Any) -> None:
    with pytest.raises(ValueError, match="must name each of the 2 stems"):
        plot_separation(sine(), torch.stack([sine(), sine()]), names=names)


def test_true_stems_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match="truth has 1 stems and stems 2"):
        plot_separation(sine(), torch.stack([sine(), sine()]), truth=sine()[None])


def test_audio_of_other_channels_than_the_models_is_refused(tiny_model: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"\(3, 100\)"):
        plot_band_masks(tiny_model(stereo=True), torch.randn(3, 100))  # type: ignore[arg-type]


@pytest.mark.parametrize("draw", [plot_separation, plot_band_masks])
def test_a_missing_matplotlib_is_named(
    draw: Callable[..., Any], tiny_model: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    first = sine() if draw is plot_separation else tiny_model(stereo=True)
    with pytest.raises(ImportError, match=rf"{draw.__name__} needs matplotlib: .* -m pip install 'matplotlib"):
        draw(first, torch.randn(1, 2, 160) if draw is plot_separation else torch.randn(2, 160))
