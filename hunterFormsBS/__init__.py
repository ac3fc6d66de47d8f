"""Music source separation with band-split rotary transformers.

The model is here, `BandSplitRotator`. Everything else is imported from the module that it lives in, such as
`hunterFormsBS.checkpoint.from_checkpoint` and `hunterFormsBS.separation.separate`.
"""

import typing as _typing

from hunterFormsBS.formerNames import make_importable as _make_importable
from hunterFormsBS.pretrained import BandSplitRotator as BandSplitRotator

_make_importable()

__version__: str

_HOMES = {
    "attend": ("Attend", "Attention", "FeedForward", "LinearAttention", "Transformer"),
    "bandSplit": ("DEFAULT_FREQS_PER_BANDS", "BandSplit", "MLP", "MaskEstimator", "lossComputation"),
    "bs_roformer": ("BSRoformer",),
    "checkpoint": (
        "from_checkpoint",
        "from_configuration",
        "infer_configuration",
        "read_configuration",
        "read_state_dict",
        "save_checkpoint",
        "translate_state_dict",
    ),
    "make_static_mask_filter_bank": ("filter_bank_non_overlapping", "librosa_filters_mel", "print_static_mask"),
    "mel_band_roformer": ("MelBandRoformer",),
    "plot": ("plot_band_masks", "plot_mask_filter_bank", "plot_separation"),
    "separation": ("separate",),
    "theTypes": ("FlashAttentionConfig",),
}

# Out of the sight of type checkers, for whom a module with `__getattr__` has every name.
if not _typing.TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Return the version, or a module, which is imported only now, or say where a name lives."""
        if name == "__version__":
            from importlib.metadata import version

            return version("hunterFormsBS")
        if name in _HOMES:
            from importlib import import_module

            return import_module(f"hunterFormsBS.{name}")
        for module, names in _HOMES.items():
            if name in names:
                # No AttributeError, for which `from hunterFormsBS import …` would put a message of its own.
                raise ImportError(f"{name} lives in a module: from hunterFormsBS.{module} import {name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        """Return the names that completion offers, modules that are not imported yet among them."""
        return sorted({*globals(), "__version__", *_HOMES})
