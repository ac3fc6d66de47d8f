"""Facts about the constructor's arguments for the loader, independent of files."""

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
"""Arguments that are tuples in Python and lists in files."""

OPEN: Final = ("learned_value_residual_mix", "mc_hyper_conn_sinkhorn_iters")
"""Arguments that change the computation and leave no trace in the parameters."""

NOT_AUDIBLE: Final = ("match_input_audio_length", "sage_attention", "use_torch_checkpoint", "flash_attn")
"""Arguments that change the computation, but only the rounding and the length of stems."""

_IDLE_UPSTREAM: Final = frozenset(
    {
        *OptionsMLP.__annotations__,
        *("mc_hyper_conn_sinkhorn_iters", "residual_in_first_group_only", "skip_connection"),
        "use_value_residual_learning",
    }
)
"""Arguments that upstream accepts even where they have no effect."""


def audible_arguments(arguments: Mapping[str, object]) -> list[str]:
    """Return the names of audible arguments that tensor shapes and upstream's class do not determine.

    `stft_hop_length` is not among them: upstream's configurations always state it, but omit others that equal defaults.
    """
    determined = idle_options(arguments) | {"stft_hop_length"}
    return [
        name
        for name, (_, option) in OPTIONS.items()
        if option.is_audible and not option.is_of_class and name not in determined
    ]


def without_idle_arguments(arguments: Mapping[str, object]) -> dict[str, Any]:
    """Drop the arguments without effect that upstream accepts and the constructor refuses."""
    idle = idle_options(arguments) & _IDLE_UPSTREAM
    if "use_value_residual_learning" in idle:
        idle.add("learned_value_residual_mix")
    return {name: value for name, value in arguments.items() if name not in idle}
