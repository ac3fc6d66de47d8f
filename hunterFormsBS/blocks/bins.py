"""Gathering the bins of bands from a spectrum, and averaging the masks of bands at each bin."""

from __future__ import annotations

from torch import Tensor

from hunterFormsBS.kernels.constants import Constants
from hunterFormsBS.kernels.overlap import average_runs, average_slice, gather_runs, gather_slice, runs_of
from hunterFormsBS.kernels.seam import served_by


class Bins:
    """The bins of a band layout, listed band after band.

    Parameters
    ----------
    mask_filter_bank : Tensor
        Boolean `(band, f)`, on the CPU.
    """

    def __init__(self, mask_filter_bank: Tensor) -> None:
        freq_indices = [int(freq) for freq in mask_filter_bank.nonzero()[:, 1]]
        self.num_freqs = mask_filter_bank.shape[1]
        self.runs = runs_of(freq_indices)
        self.constants = Constants(
            freq_indices=freq_indices, num_bands_per_freq=[int(count) for count in mask_filter_bank.sum(0)]
        )

    @served_by(gather_slice, gather_runs)
    def gather(self, frames: Tensor) -> Tensor:
        """Concatenate the bins of all bands: `(b, t, f, s, c)` to `(b, t, bins of all bands, s, c)`."""
        return frames.index_select(2, self.constants.on(frames.device, "freq_indices"))

    @served_by(average_slice, average_runs)
    def average(self, masks: Tensor) -> Tensor:
        """Average the masks of all bands at each bin: `(b, n, t, bins of all bands, s, c)` to `(b, n, t, f, s, c)`."""
        freq_indices, num_bands = (
            self.constants.on(masks.device, name) for name in ("freq_indices", "num_bands_per_freq")
        )
        total = masks.new_zeros((*masks.shape[:3], self.num_freqs, *masks.shape[4:]))
        total = total.index_add(3, freq_indices, masks)
        return total / num_bands.clamp_min(1)[:, None, None]
