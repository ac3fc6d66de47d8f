"""What the loader has to know of the constructor's arguments, apart from what files say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, get_origin

from hunterFormsBS.heads.mlp import OptionsMLP
from hunterFormsBS.options import OPTIONS, idle_options

DEFAULTS: Final[Mapping[str, object]] = MappingProxyType({name: row.option.default for name, row in OPTIONS.items()})
"""All arguments of `BandSplitRotator` and their defaults."""

SEQUENCES: Final = frozenset(
    name for name, row in OPTIONS.items() if any(get_origin(kind) in (Sequence, tuple) for kind in row.kinds)
)
"""Those that are tuples, and lists in files."""

OPEN: Final = ("learned_value_residual_mix", "mc_hyper_conn_sinkhorn_iters")
"""Those that decide how a model computes with parameters that look the same."""

NOT_AUDIBLE: Final = ("match_input_audio_length", "sage_attention", "use_torch_checkpoint", "flash_attn")
"""Those that change how a model computes, but no sample of its stems by more than rounding or their length."""

_IDLE_UPSTREAM: Final = frozenset(
    {
        *OptionsMLP.__annotations__,
        *("mc_hyper_conn_sinkhorn_iters", "residual_in_first_group_only", "skip_connection"),
        "use_value_residual_learning",
    }
)
"""Those that upstream accepts where they have no effect."""


_BY_CLASS: Final = frozenset({"residual_in_first_group_only", "scale"})
"""Those that upstream's class determines: none has an argument for the scale, and MSST's experimental classes add what
comes in to what a sublayer returns in the first layer group alone."""


def audible_arguments(arguments: Mapping[str, object]) -> list[str]:
    """Return the names of audible arguments that neither shapes nor the class determine, apart from `stft_hop_length`.

    Upstream's configurations state the hop length, and leave others out where they are as upstream's defaults.
    """
    determined = idle_options(arguments) | _BY_CLASS | {"stft_hop_length"}
    return [name for name, row in OPTIONS.items() if row.option.is_audible and name not in determined]


def without_idle_arguments(arguments: Mapping[str, object]) -> dict[str, Any]:
    """Return arguments without those that upstream accepts where they have no effect, and the constructor does not."""
    idle = idle_options(arguments) & _IDLE_UPSTREAM
    if "use_value_residual_learning" in idle:
        idle.add("learned_value_residual_mix")
    return {name: value for name, value in arguments.items() if name not in idle}
