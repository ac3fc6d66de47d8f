"""Small models of every kind, derived from the tables of options and of variants, so that none is forgotten.

`drawn` turns options on at random; `COLUMNS` has one model for each kind that the package can build.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import torch

from hunterFormsBS.checkpoint.variants import VARIANTS
from hunterFormsBS.options import OPTIONS, check_arguments, idle_options
from hunterFormsBS.theTypes import FlashAttentionConfig
from hunterFormsBS.variantRow import Variant

# Numbers and functions to draw from, where the smallest that a row allows, and the two after it, would not do.
CHOICES: dict[str, tuple[Any, ...]] = {
    "attn_dropout": (0.2,),
    "conv_kernel_size": (1, 3, 5),
    "dim": (8, 12),
    "dim_head": (2, 4, 6),
    "ff_dropout": (0.2,),
    "flash_attn": (False, FlashAttentionConfig(), FlashAttentionConfig(enable_flash=False)),
    "mask_transformer_dim_head": (2, 4),
    "multi_stft_hop_size": (20, 31),
    "multi_stft_resolution_loss_weight": (0.5,),
    "multi_stft_resolutions_window_sizes": ((128, 64, 31), (50,)),
    "multi_stft_window_fn": (torch.hamming_window,),
    "num_residual_fracs": (1, 2),
    "scale": (0.3, 1.0),
    "segm_backbone_channels": ((16, 17, 18, 20, 16), (16,) * 5),
    "segm_num_heads": (2, 4),
    "stft_hop_length": (8, 20),
    "stft_win_length": (48,),
    "stft_window_fn": (torch.hamming_window,),
    "wsa_window_len": (1, 5, 8),
}
TINY: dict[str, Any] = {
    "dim": 8,
    "depth": 2,
    "heads": 2,
    "dim_head": 4,
    "time_transformer_depth": 1,
    "freq_transformer_depth": 1,
    "stft_n_fft": 64,
    "stft_win_length": 64,
    "stft_hop_length": 16,
    "dim_freqs_in": 33,
    "multi_stft_resolutions_window_sizes": (64, 32),
    "multi_stft_hop_size": 20,
}
OF_THE_LAYOUT = ("dim_freqs_in", "stft_n_fft")
SIDE_BY_SIDE: dict[str, Any] = {"freqs_per_bands": (2, 3, 4, 5, 7, 12)}
MEL: dict[str, Any] = {"num_bands": 4, "sample_rate": 2000}
BRANCH: dict[str, Any] = {"segm_backbone_channels": (16,) * 5, "segm_base_depth": 1, "segm_num_heads": 2}
"""The smallest branch of HyperACE heads."""


def values_of(name: str) -> tuple[Any, ...]:
    """Return small values of an option that are not as if it was left out."""
    kinds, option = OPTIONS[name]
    if name in CHOICES:
        return CHOICES[name]
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if bool in kinds or choices:
        several = [*choices, *((True, False) if bool in kinds else ())]
    else:
        first = max(int(option.least), 1)
        several = [first, first + 1, first + 2]
    return tuple(value for value in several if not option.is_off(value) or (NoneType in kinds and value is not None))


def with_company(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Add what these arguments cannot be without."""
    whole = dict(arguments)
    for axis in ("time", "freq"):
        if whole.get(f"{axis}_conformer_depth"):
            whole[f"{axis}_transformer_depth"] = 0
    if whole.get("n_wsa_sinks"):
        whole.setdefault("wsa_window_len", 5)
    if whole.get("use_hyperACE"):
        whole = {**BRANCH, **whole}
    return whole


def layout(draw: random.Random) -> dict[str, Any]:
    """Return the size of a frame, and a band layout for it."""
    size = draw.choice((64, 50))
    bins = size // 2 + 1
    return {"stft_n_fft": size, "stft_win_length": 50, "dim_freqs_in": bins, **bands_of(bins, draw)}


def bands_of(bins: int, draw: random.Random) -> dict[str, Any]:
    """Return a band layout."""
    kind = draw.choice(("side by side", "freq_range", "mel", "overlapping"))
    if kind == "mel":
        return {"num_bands": draw.choice((4, 6)), "sample_rate": draw.choice((2000, 8000))}
    if kind == "overlapping":
        mask = torch.zeros(draw.choice((3, 5)), bins, dtype=torch.bool)
        for band in mask:
            low = draw.randrange(bins)
            band[low : low + draw.randrange(1, 20)] = True
        mask[0, 0:20], mask[1, 15:] = True, True
        return {"mask_filter_bank": mask}
    low, high = (draw.randrange(3), bins - draw.randrange(3)) if kind == "freq_range" else (0, bins)
    cuts = sorted(draw.sample(range(low + 1, high), draw.randrange(6)))
    widths = [end - start for start, end in zip([low, *cuts], [*cuts, high], strict=True)]
    return {"freqs_per_bands": widths, **({"freq_range": (low, high)} if kind == "freq_range" else {})}


def is_possible(arguments: Mapping[str, Any]) -> bool:
    """Tell whether the constructor would take these arguments."""
    complete = {name: arguments.get(name, row.option.default) for name, row in OPTIONS.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_arguments(complete)
    except (TypeError, ValueError):
        return False
    return not idle_options(arguments).intersection(arguments)


def drawn(seed: int, kind: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return arguments of a small model, with options turned on at random, besides those of `kind`."""
    draw = random.Random(seed)
    fixed = dict(kind or {})
    names = [name for name, row in OPTIONS.items() if not row.option.is_layout and name not in (*fixed, *OF_THE_LAYOUT)]
    draw.shuffle(names)
    has_layout = any(OPTIONS[name].option.is_layout for name in fixed)
    chosen: dict[str, Any] = {**TINY, **({} if has_layout else layout(draw)), **fixed}
    assert is_possible(chosen), chosen
    for _round in range(2):  # options that need others are refused before those are there
        for name in names:
            if draw.random() < 0.3:
                more = with_company({**chosen, name: draw.choice(values_of(name))})
                chosen = more if is_possible(more) else chosen
    return chosen


def arguments_of(variant: Variant) -> dict[str, Any]:
    """Return arguments of a small model of a variant."""
    stated = {name: value for name, value in variant.readings.items() if isinstance(value, int)}
    switched = {name: values_of(name)[0] for name in variant.switches if name not in stated}
    defaults = {name: value for name, value in variant.defaults.items() if name.endswith("transformer_depth")}
    bands = MEL if variant.overlapping else SIDE_BY_SIDE
    return with_company({**TINY, **bands, **defaults, **switched, **stated})


BASIC: dict[str, dict[str, Any]] = {
    "plain": SIDE_BY_SIDE,
    "mel": {**MEL, "num_stems": 2, "stereo": True},
    "linear": {**SIDE_BY_SIDE, "linear_transformer_depth": 1, "skip_connection": True},
    "value residuals": {**SIDE_BY_SIDE, "use_value_residual_learning": True},
    "swapped value residuals": {
        **MEL,
        "linear_transformer_depth": 1,
        "use_value_residual_learning": True,
        "learned_value_residual_mix": "swapped",
    },
    "streams": {**SIDE_BY_SIDE, "num_residual_streams": 2},
    "constrained streams": {
        **SIDE_BY_SIDE,
        "num_residual_streams": 2,
        "num_residual_fracs": 2,
        "mc_hyper_conn_sinkhorn_iters": 2,
    },
    "PoPE": {**SIDE_BY_SIDE, "use_pope": True},
}
COLUMNS: dict[str, dict[str, Any]] = {
    **{name: {**TINY, **arguments} for name, arguments in BASIC.items()},
    **{
        variant.name: arguments_of(variant)
        for variant in VARIANTS
        if variant.options and (variant.switches or variant.readings)
    },
}
"""Arguments of a small model of each kind: what the plain model can be, and each variant of the package's table."""
