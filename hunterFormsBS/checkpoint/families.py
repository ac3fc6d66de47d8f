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
        Whether its bands overlap, as in a Mel-Band RoFormer.
    present, absent : tuple[str, ...]
        Regular expressions. Each of `present` matches some key of the family's state dicts, none of `absent` does.
    renames : tuple[tuple[str, str], ...]
        Regular expressions and replacements, applied to every key in this order.
    defaults : Mapping[str, object]
        Upstream's defaults that differ from those of `BandSplitRotator`, with its names and convention.
    mask_estimator_depth_excess : int
        How many layers more than the hidden ones upstream's `mask_estimator_depth` counts.
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
# Upstream's Mel-Band RoFormer passes the mix and the first values to lerp in the wrong order.
_VALUE_RESIDUAL_SWAPPED: Final = MappingProxyType(
    {"use_value_residual_learning": True, "learned_value_residual_mix": "swapped"}
)
# Before 0.9.2 linear attention did it too.
_VALUE_RESIDUAL_SWAPPED_EVERYWHERE: Final = MappingProxyType(
    {"use_value_residual_learning": True, "learned_value_residual_mix": "swapped_everywhere"}
)
_MANIFOLD: Final = MappingProxyType({"num_residual_streams": 4, "mc_hyper_conn_sinkhorn_iters": 2})

_LIKE_OURS: Final[Mapping[str, object]] = MappingProxyType({})
_EXPERIMENTAL: Final = MappingProxyType({"residual_in_first_group_only": True, "zero_dc": False})

_UNWRAP: Final = (r"\.branch\.", ".")
MEL_MIX: Final = r"\.learned_value_residual_mix\."
"""A part of the keys of upstream's Mel-Band RoFormer with value residuals."""
_NAME_MIX: Final = (rf"{MEL_MIX}0\.", ".to_value_residual_mix.")
_STREAMS: Final = r"\.static_alpha$"
_BRANCH: Final = r"\.branch\."
_SINKHORN: Final = r"\.h_post_scale$"
_FINAL_NORM: Final = r"^final_norm\."
_MIX: Final = r"\.to_value_residual_mix\."


def _mel(
    name: str,
    upstream: Upstream = "lucidrains",
    *,
    present: tuple[str, ...] = (),
    absent: tuple[str, ...] = (),
    renames: tuple[tuple[str, str], ...] = (),
    defaults: Mapping[str, object] = _LIKE_OURS,
) -> Family:
    """Return the row of a Mel-Band RoFormer: its bands overlap, and it has no final norm."""
    of_project = {"linear_transformer_depth": 1, "zero_dc": False} if upstream == "lucidrains" else {}
    return Family(
        name=f"{name}, Mel-Band RoFormer" if upstream == "lucidrains" else name,
        upstream=upstream,
        overlapping=True,
        present=present,
        absent=(*absent, _FINAL_NORM),
        renames=renames,
        defaults={**_MEL, **of_project, **defaults},
    )


def _bs(
    name: str,
    upstream: Upstream = "lucidrains",
    *,
    present: tuple[str, ...] = (),
    renames: tuple[tuple[str, str], ...] = (),
    defaults: Mapping[str, object] = _LIKE_OURS,
) -> Family:
    """Return the row of a BS-RoFormer: it has a final norm, and counts the last layer of a mask estimator too."""
    return Family(
        name=name,
        upstream=upstream,
        overlapping=False,
        present=(*present, _FINAL_NORM),
        renames=renames,
        defaults={**({"zero_dc": False} if upstream == "lucidrains" else {}), **defaults},
        mask_estimator_depth_excess=1,
    )


FAMILIES: Final[tuple[Family, ...]] = (
    _mel(
        "BS-RoFormer 1.0 to 1.2.4 with residual streams",
        present=(_SINKHORN,),
        renames=(_NAME_MIX,),
        defaults={**_VALUE_RESIDUAL_SWAPPED, **_MANIFOLD},
    ),
    _bs(
        "BS-RoFormer 1.0 to 1.2.4 with residual streams",
        present=(_SINKHORN,),
        defaults={**_VALUE_RESIDUAL, **_MANIFOLD},
    ),
    _mel(
        "BS-RoFormer 0.6.1 to 0.9.2 with residual streams",
        present=(_STREAMS,),
        renames=(_NAME_MIX,),
        defaults={**_VALUE_RESIDUAL_SWAPPED_EVERYWHERE, "num_residual_streams": 4},
    ),
    _bs(
        "BS-RoFormer 0.6 to 0.9.2 with residual streams",
        present=(_STREAMS,),
        defaults={**_VALUE_RESIDUAL, "num_residual_streams": 4},
    ),
    # The wrapper of a single stream has no parameters, but leaves its name in the keys.
    _mel(
        "BS-RoFormer 0.6.1 to 1.2.4 with one residual stream",
        present=(_BRANCH,),
        renames=(_UNWRAP, _NAME_MIX),
        defaults=_VALUE_RESIDUAL_SWAPPED,
    ),
    _bs(
        "BS-RoFormer 0.6 to 1.2.4 with one residual stream",
        present=(_BRANCH,),
        renames=(_UNWRAP,),
        defaults=_VALUE_RESIDUAL,
    ),
    # No key tells 0.5.0, which mixed each layer's values with themselves, from 0.5.1, where they mix as meant.
    _bs("BS-RoFormer 0.5", present=(_MIX,), defaults=_VALUE_RESIDUAL),
    # Upstream reserves group 0 for a linear transformer.
    _mel(
        "BS-RoFormer 0.4 to 0.6.0 without linear transformer",
        present=(r"^layers\.0\.2\.",),
        absent=(r"^layers\.0\.0\.",),
    ),
    _mel("Music-Source-Separation-Training, Mel-Band RoFormer", "msst", defaults={"zero_dc": True}),
    _bs("Music-Source-Separation-Training, BS-RoFormer", "msst", defaults={"zero_dc": True}),
    # Their keys equal those of the two above.
    _mel(
        "Music-Source-Separation-Training, experimental Mel-Band RoFormer", "msst_experimental", defaults=_EXPERIMENTAL
    ),
    _bs("Music-Source-Separation-Training, experimental BS-RoFormer", "msst_experimental", defaults=_EXPERIMENTAL),
    _mel("BS-RoFormer 0.3 to 0.6.0"),
    # Keys do not show that the first releases of 0.3 had no window: stft_window_fn=torch.ones.
    _bs("BS-RoFormer 0.3 and 0.4"),
    Family(name="hunterFormsBS, overlapping bands", upstream="hunterFormsBS", overlapping=True, absent=(_FINAL_NORM,)),
    Family(name="hunterFormsBS", upstream="hunterFormsBS", overlapping=False),
)
"""All families. Those with the same keys as a row above are found only by naming their upstream."""

UPSTREAM_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {"add_value_residual": "use_value_residual_learning", "linear_conformer_depth": "linear_transformer_depth"}
)
"""Upstream's names of arguments with another name here."""

NAMES_OF_MEL_ONLY: Final[frozenset[str]] = frozenset(
    {"num_bands", "sample_rate", "add_value_residual", "linear_flash_attn"}
)
"""Arguments that only upstream's Mel-Band RoFormer has: a configuration with one of them is for that class."""


def families_of(upstream: Upstream | None) -> tuple[Family, ...]:
    """Return the rows of a project, all rows for `None`."""
    return tuple(family for family in FAMILIES if upstream in (None, family.upstream))


def newest_family(upstream: Upstream, *, overlapping: bool) -> Family:
    """Return the row for a project's current code, for configurations without a state dict."""
    return next(family for family in families_of(upstream) if family.overlapping == overlapping)


def check_upstream(upstream: object) -> Upstream:
    """Return `upstream` if it names a project of the table.

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
