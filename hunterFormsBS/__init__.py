"""Music source separation with band-split rotary transformers.

Names are imported from their modules on first use, so `import hunterFormsBS` is quick and imports no PyTorch.
"""

import typing as _typing

from hunterFormsBS.formerNames import make_importable as _make_importable
from hunterFormsBS.lazyNames import lazy as _lazy

if _typing.TYPE_CHECKING:
    from hunterFormsBS.attend import Attend as Attend
    from hunterFormsBS.attend import Attention as Attention
    from hunterFormsBS.attend import FeedForward as FeedForward
    from hunterFormsBS.attend import LinearAttention as LinearAttention
    from hunterFormsBS.attend import Transformer as Transformer
    from hunterFormsBS.bandSplit import DEFAULT_FREQS_PER_BANDS as DEFAULT_FREQS_PER_BANDS
    from hunterFormsBS.bandSplit import MLP as MLP
    from hunterFormsBS.bandSplit import BandSplit as BandSplit
    from hunterFormsBS.bandSplit import MaskEstimator as MaskEstimator
    from hunterFormsBS.bandSplit import lossComputation as lossComputation
    from hunterFormsBS.bandSplitRotator import BandSplitRotator as BandSplitRotator
    from hunterFormsBS.bs_roformer import BSRoformer as BSRoformer
    from hunterFormsBS.checkpoint import CheckpointError as CheckpointError
    from hunterFormsBS.checkpoint import from_checkpoint as from_checkpoint
    from hunterFormsBS.checkpoint import from_configuration as from_configuration
    from hunterFormsBS.checkpoint import infer_configuration as infer_configuration
    from hunterFormsBS.checkpoint import read_configuration as read_configuration
    from hunterFormsBS.checkpoint import read_state_dict as read_state_dict
    from hunterFormsBS.checkpoint import save_checkpoint as save_checkpoint
    from hunterFormsBS.checkpoint import translate_state_dict as translate_state_dict
    from hunterFormsBS.ensemble import separate_ensemble_stream as separate_ensemble_stream
    from hunterFormsBS.kernels.seam import reference as reference
    from hunterFormsBS.make_static_mask_filter_bank import filter_bank_non_overlapping as filter_bank_non_overlapping
    from hunterFormsBS.make_static_mask_filter_bank import librosa_filters_mel as librosa_filters_mel
    from hunterFormsBS.make_static_mask_filter_bank import print_static_mask as print_static_mask
    from hunterFormsBS.mel_band_roformer import MelBandRoformer as MelBandRoformer
    from hunterFormsBS.plot import plot_band_masks as plot_band_masks
    from hunterFormsBS.plot import plot_mask_filter_bank as plot_mask_filter_bank
    from hunterFormsBS.plot import plot_separation as plot_separation
    from hunterFormsBS.separation import separate as separate
    from hunterFormsBS.separation import separate_stream as separate_stream
    from hunterFormsBS.theTypes import FlashAttentionConfig as FlashAttentionConfig

_make_importable()

__version__: str

_HOMES = {
    "attend": ("Attend", "Attention", "FeedForward", "LinearAttention", "Transformer"),
    "bandSplit": ("DEFAULT_FREQS_PER_BANDS", "BandSplit", "MLP", "MaskEstimator", "lossComputation"),
    "bandSplitRotator": ("BandSplitRotator",),
    "bs_roformer": ("BSRoformer",),
    "checkpoint": (
        "CheckpointError",
        "from_checkpoint",
        "from_configuration",
        "infer_configuration",
        "read_configuration",
        "read_state_dict",
        "save_checkpoint",
        "translate_state_dict",
    ),
    "ensemble": ("separate_ensemble_stream",),
    "kernels.seam": ("reference",),
    "make_static_mask_filter_bank": ("filter_bank_non_overlapping", "librosa_filters_mel", "print_static_mask"),
    "mel_band_roformer": ("MelBandRoformer",),
    "plot": ("plot_band_masks", "plot_mask_filter_bank", "plot_separation"),
    "separation": ("separate", "separate_stream"),
    "theTypes": ("FlashAttentionConfig",),
}
"""The same names for the interpreter, by module. A test compares this with the imports above."""

# Out of the sight of type checkers, for whom a module with `__getattr__` has every name.
if not _typing.TYPE_CHECKING:
    _getattr, _dir, __all__ = _lazy(__name__, _HOMES)

    def __dir__() -> list[str]:
        """Return the names that completion offers."""
        return sorted({*_dir(), "__version__"})

    def __getattr__(name: str) -> object:
        """Return the version, or import what has this name."""
        if name == "__version__":
            from importlib.metadata import version

            return version("hunterFormsBS")
        return _getattr(name)
