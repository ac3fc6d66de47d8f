"""The upstream families: how each is recognised, and how its keys and arguments become this package's.

`FAMILIES` is the one table. To support another family, add a row: rows are tried from the top, and the first whose
patterns fit the keys of a state dict is taken (`hunterFormsBS.checkpoint.recognition`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.choices import UPSTREAMS, Upstream
from hunterFormsBS.printable import short_repr


@dataclass(frozen=True, kw_only=True)
class Family:
    r"""One row of the table.

    Parameters
    ----------
    name : str
        What messages call the family.
    upstream : Upstream
        The project whose constructors the configurations were written for.
    overlapping : bool
        Whether its bands overlap, which is to say that it is a Mel-Band RoFormer.
    present, absent : tuple[str, ...]
        Regular expressions. Each of `present` matches some key of the family's state dicts, none of `absent` does.
    renames : tuple[tuple[str, str], ...]
        Regular expressions and replacements, applied to every key in this order.
    defaults : Mapping[str, object]
        Upstream's defaults where they differ from those of `BandSplitRotator`, under its names and in its convention.
    mask_estimator_depth_excess : int
        What upstream's `mask_estimator_depth` counts beyond the hidden layers.
    """

    name: str
    upstream: Upstream
    overlapping: bool
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    defaults: Mapping[str, object] = field(default_factory=dict[str, object])
    mask_estimator_depth_excess: int = 0


_MEL: Final = MappingProxyType({"attn_dropout": 0.1, "ff_dropout": 0.1, "num_bands": 60, "sample_rate": 44100})
_VALUE_RESIDUAL: Final = MappingProxyType({"use_value_residual_learning": True, "learned_value_residual_mix": True})
# Upstream's Mel-Band RoFormer gives the mix and the first values to lerp in the wrong order.
_VALUE_RESIDUAL_SWAPPED: Final = MappingProxyType(
    {"use_value_residual_learning": True, "learned_value_residual_mix": "swapped"}
)
# Before 0.9.2 linear attention did it too.
_VALUE_RESIDUAL_SWAPPED_EVERYWHERE: Final = MappingProxyType(
    {"use_value_residual_learning": True, "learned_value_residual_mix": "swapped_everywhere"}
)
_MANIFOLD: Final = MappingProxyType({"num_residual_streams": 4, "mc_hyper_conn_sinkhorn_iters": 2})

_EXPERIMENTAL: Final = MappingProxyType({"residual_in_first_group_only": True, "zero_dc": False})

_UNWRAP: Final = (r"\.branch\.", ".")
MEL_MIX: Final = r"\.learned_value_residual_mix\."
"""In the keys of upstream's Mel-Band RoFormer that mixes values."""
_NAME_MIX: Final = (rf"{MEL_MIX}0\.", ".to_value_residual_mix.")
_STREAMS: Final = r"\.static_alpha$"
_BRANCH: Final = r"\.branch\."
_SINKHORN: Final = r"\.h_post_scale$"
_FINAL_NORM: Final = r"^final_norm\."
_MIX: Final = r"\.to_value_residual_mix\."

FAMILIES: Final[tuple[Family, ...]] = (
    Family(
        name="BS-RoFormer 1.0 to 1.2.4 with residual streams, Mel-Band RoFormer",
        upstream="lucidrains",
        overlapping=True,
        present=(_SINKHORN,),
        absent=(_FINAL_NORM,),
        renames=(_NAME_MIX,),
        defaults={**_MEL, **_VALUE_RESIDUAL_SWAPPED, **_MANIFOLD, "linear_transformer_depth": 1, "zero_dc": False},
    ),
    Family(
        name="BS-RoFormer 1.0 to 1.2.4 with residual streams",
        upstream="lucidrains",
        overlapping=False,
        present=(_SINKHORN, _FINAL_NORM),
        defaults={**_VALUE_RESIDUAL, **_MANIFOLD, "zero_dc": False},
        mask_estimator_depth_excess=1,
    ),
    Family(
        name="BS-RoFormer 0.6.1 to 0.9.2 with residual streams, Mel-Band RoFormer",
        upstream="lucidrains",
        overlapping=True,
        present=(_STREAMS,),
        absent=(_FINAL_NORM,),
        renames=(_NAME_MIX,),
        defaults={
            **_MEL,
            **_VALUE_RESIDUAL_SWAPPED_EVERYWHERE,
            "linear_transformer_depth": 1,
            "num_residual_streams": 4,
            "zero_dc": False,
        },
    ),
    Family(
        name="BS-RoFormer 0.6 to 0.9.2 with residual streams",
        upstream="lucidrains",
        overlapping=False,
        present=(_STREAMS, _FINAL_NORM),
        defaults={**_VALUE_RESIDUAL, "num_residual_streams": 4, "zero_dc": False},
        mask_estimator_depth_excess=1,
    ),
    Family(
        # The wrapper of a single stream has no parameters, but leaves its name in the keys.
        name="BS-RoFormer 0.6.1 to 1.2.4 with one residual stream, Mel-Band RoFormer",
        upstream="lucidrains",
        overlapping=True,
        present=(_BRANCH,),
        absent=(_FINAL_NORM,),
        renames=(_UNWRAP, _NAME_MIX),
        defaults={**_MEL, **_VALUE_RESIDUAL_SWAPPED, "linear_transformer_depth": 1, "zero_dc": False},
    ),
    Family(
        name="BS-RoFormer 0.6 to 1.2.4 with one residual stream",
        upstream="lucidrains",
        overlapping=False,
        present=(_BRANCH, _FINAL_NORM),
        renames=(_UNWRAP,),
        defaults={**_VALUE_RESIDUAL, "zero_dc": False},
        mask_estimator_depth_excess=1,
    ),
    Family(
        # No key tells 0.5.0, which mixed each layer's values with themselves, from 0.5.1, where they mix as meant.
        name="BS-RoFormer 0.5",
        upstream="lucidrains",
        overlapping=False,
        present=(_MIX, _FINAL_NORM),
        defaults={**_VALUE_RESIDUAL, "zero_dc": False},
        mask_estimator_depth_excess=1,
    ),
    Family(
        # Group 0 is the place that upstream keeps for a linear transformer.
        name="BS-RoFormer 0.4 to 0.6.0 without linear transformer, Mel-Band RoFormer",
        upstream="lucidrains",
        overlapping=True,
        present=(r"^layers\.0\.2\.",),
        absent=(r"^layers\.0\.0\.", _FINAL_NORM),
        defaults={**_MEL, "linear_transformer_depth": 1, "zero_dc": False},
    ),
    Family(
        name="Music-Source-Separation-Training, Mel-Band RoFormer",
        upstream="msst",
        overlapping=True,
        absent=(_FINAL_NORM,),
        defaults={**_MEL, "zero_dc": True},
    ),
    Family(
        name="Music-Source-Separation-Training, BS-RoFormer",
        upstream="msst",
        overlapping=False,
        present=(_FINAL_NORM,),
        defaults={"zero_dc": True},
        mask_estimator_depth_excess=1,
    ),
    Family(
        # Keys do not tell these from the two above.
        name="Music-Source-Separation-Training, experimental Mel-Band RoFormer",
        upstream="msst_experimental",
        overlapping=True,
        absent=(_FINAL_NORM,),
        defaults={**_MEL, **_EXPERIMENTAL},
    ),
    Family(
        name="Music-Source-Separation-Training, experimental BS-RoFormer",
        upstream="msst_experimental",
        overlapping=False,
        present=(_FINAL_NORM,),
        defaults=_EXPERIMENTAL,
        mask_estimator_depth_excess=1,
    ),
    Family(
        name="BS-RoFormer 0.3 to 0.6.0, Mel-Band RoFormer",
        upstream="lucidrains",
        overlapping=True,
        absent=(_FINAL_NORM,),
        defaults={**_MEL, "linear_transformer_depth": 1, "zero_dc": False},
    ),
    Family(
        # Nor do keys tell that the first releases of 0.3 had no window: stft_window_fn=torch.ones.
        name="BS-RoFormer 0.3 and 0.4",
        upstream="lucidrains",
        overlapping=False,
        present=(_FINAL_NORM,),
        defaults={"zero_dc": False},
        mask_estimator_depth_excess=1,
    ),
    Family(name="hunterFormsBS, overlapping bands", upstream="hunterFormsBS", overlapping=True, absent=(_FINAL_NORM,)),
    Family(name="hunterFormsBS", upstream="hunterFormsBS", overlapping=False),
)
"""All families. Those that share their keys with a row above them are found only by naming their upstream."""

UPSTREAM_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {"add_value_residual": "use_value_residual_learning", "linear_conformer_depth": "linear_transformer_depth"}
)
"""Upstream's names of arguments that have another name here."""

NAMES_OF_MEL_ONLY: Final[frozenset[str]] = frozenset(
    {"num_bands", "sample_rate", "add_value_residual", "linear_flash_attn"}
)
"""Arguments that only upstream's Mel-Band RoFormer has: a configuration that states one is of that class."""


def families_of(upstream: Upstream | None) -> tuple[Family, ...]:
    """Return the rows of a project, all for None."""
    return tuple(family for family in FAMILIES if upstream in (None, family.upstream))


def newest_family(upstream: Upstream, *, overlapping: bool) -> Family:
    """Return the row that describes a project's present code, for configurations without a state dict."""
    return next(family for family in families_of(upstream) if family.overlapping == overlapping)


def check_upstream(upstream: object) -> Upstream:
    """Return `upstream` where it names a project of the table.

    Raises
    ------
    CheckpointError
        Otherwise.
    """
    for known in UPSTREAMS:
        if upstream == known:
            return known
    names = ", ".join(map(repr, UPSTREAMS))
    raise CheckpointError(f"upstream must be one of {names}, but is {short_repr(upstream)}")
