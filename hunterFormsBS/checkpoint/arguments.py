"""What the loader has to know of the constructor's arguments, apart from what files say of them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, cast

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.variantChecks import OF_CONFORMERS, OF_FNO, OF_HYPERACE, OF_MASK_TRANSFORMERS, OF_MLPS

DEFAULTS: Final[Mapping[str, object]] = MappingProxyType(
    {name: parameter.default for name, parameter in inspect.signature(BandSplitRotator).parameters.items()}
)
"""All arguments of `BandSplitRotator` and their defaults."""

SEQUENCES: Final = frozenset(
    {"freqs_per_bands", "freq_range", "multi_stft_resolutions_window_sizes", "segm_backbone_channels"}
)
"""Those that are tuples, and lists in files."""

OPEN: Final = ("learned_value_residual_mix", "mc_hyper_conn_sinkhorn_iters")
"""Those that decide how a model computes with parameters that look the same."""

NOT_AUDIBLE: Final = ("match_input_audio_length", "sage_attention", "use_torch_checkpoint", "flash_attn")
"""Those that change how a model computes, but no sample of its stems by more than rounding or their length."""

_AUDIBLE: Final = (
    "stft_win_length",
    "stft_window_fn",
    "stft_normalized",
    "skip_connection",
    "zero_dc",
    "mc_hyper_conn_sinkhorn_iters",
)
_AUDIBLE_WITH: Final = {"segm_num_heads": "use_hyperACE", "wsa_window_len": "n_wsa_sinks"}

_IDLE_WITHOUT: Final = (
    (("use_hyperACE",), OF_HYPERACE),
    (("mask_fno_modes",), OF_FNO),
    (("mask_transformer_depth",), OF_MASK_TRANSFORMERS),
    (("n_wsa_sinks",), ("wsa_window_len",)),
    (("time_conformer_depth", "freq_conformer_depth"), OF_CONFORMERS),
)
_NOT_AT_DEPTH_1: Final = (
    "learned_value_residual_mix",
    "residual_in_first_group_only",
    "skip_connection",
    "use_value_residual_learning",
)


def audible_arguments(arguments: Mapping[str, object]) -> list[str]:
    """Return the names of audible arguments that tensor shapes do not determine, apart from `stft_hop_length`.

    Upstream's configurations state the hop length, and leave others out where they are as upstream's defaults.
    """
    return [*_AUDIBLE, *(name for name, needed in _AUDIBLE_WITH.items() if arguments.get(needed))]


def idle_arguments(arguments: Mapping[str, object]) -> set[str]:
    """Return the names of arguments that describe what a model with these arguments does not have."""
    idle = {name for needed, names in _IDLE_WITHOUT if not any(map(arguments.get, needed)) for name in names}
    return idle | set(OF_MLPS if arguments.get("mask_fno_modes") else ())


def without_idle_arguments(arguments: Mapping[str, object]) -> dict[str, Any]:
    """Return arguments without those that upstream accepts where they have no effect, and the constructor does not."""
    idle: set[str] = set(OF_MLPS if arguments.get("mask_fno_modes") else ())
    if arguments.get("num_residual_streams", 1) == arguments.get("num_residual_fracs", 1) == 1:
        idle.add("mc_hyper_conn_sinkhorn_iters")
    if arguments.get("depth") == 1:
        idle.update(_NOT_AT_DEPTH_1)
    return {name: cast("Any", value) for name, value in arguments.items() if name not in idle}
