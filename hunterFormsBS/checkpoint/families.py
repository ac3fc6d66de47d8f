"""The upstream families: how each is recognised, and how its keys and arguments become this package's.

`FAMILIES` is the one table. To support another family, add a row: rows are tried from the top, and the first whose
patterns fit the keys of a state dict is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, get_args

from hunterFormsBS.printable import short_repr

Upstream: TypeAlias = Literal["msst", "msst_experimental", "lucidrains", "hunterFormsBS"]


class CheckpointError(ValueError):
    """A file or a mapping that cannot be used as a checkpoint or as a configuration."""


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
        Upstream's defaults where they differ from those of `BandSplitRotator`, under its names and in its counting.
    mask_estimator_depth_excess : int
        What upstream's `mask_estimator_depth` counts beyond the hidden layers.
    conformer : bool
        Whether it is of a class of Conformers, which `newest_family` returns only when asked for.
    variant : bool
        Whether it is of a class for one kind of head or layer, which `newest_family` does not return.
    """

    name: str
    upstream: Upstream
    overlapping: bool
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    defaults: Mapping[str, object] = field(default_factory=dict[str, object])
    mask_estimator_depth_excess: int = 0
    conformer: bool = False
    variant: bool = False


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

_CONFORMER: Final = MappingProxyType(
    {
        "freq_conformer_depth": 2,
        "freq_transformer_depth": 0,
        "norm_output": False,
        "time_conformer_depth": 2,
        "time_transformer_depth": 0,
    }
)
_EXPERIMENTAL: Final = MappingProxyType({"residual_in_first_group_only": True, "zero_dc": False})

_UNWRAP: Final = (r"\.branch\.", ".")
_NAME_MIX: Final = (r"\.learned_value_residual_mix\.0\.", ".to_value_residual_mix.")
_STREAMS: Final = r"\.static_alpha$"
_BRANCH: Final = r"\.branch\."
_SINKHORN: Final = r"\.h_post_scale$"
_FINAL_NORM: Final = r"^final_norm\."
_CONVOLUTION: Final = r"\.conv\.net\."
_HEAD_OR_BIAS: Final = (
    r"^mask_estimators\.\d+\.(?:layers|segm)\.|\.ln_y_attn\.|\.positional_encoding\.pe$"
    r"|^(?:linear_62_bias_0|linear_64_bias_0|shared_qkv_bias|shared_out_bias)$"
)
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
        # None of the classes for these variants silences 0 Hz.
        name="BS-RoFormer with other mask heads, layers, positions or biases",
        upstream="msst",
        overlapping=False,
        present=(_HEAD_OR_BIAS, _FINAL_NORM),
        defaults={"zero_dc": False},
        mask_estimator_depth_excess=1,
        variant=True,
    ),
    Family(
        name="Windowed sink attention, Mel-Band RoFormer",
        upstream="msst",
        overlapping=True,
        present=(r"^sink_tokens$",),
        absent=(_FINAL_NORM,),
        defaults={**_MEL, "attn_dropout": 0.0, "ff_dropout": 0.0, "wsa_window_len": 10, "zero_dc": True},
        variant=True,
    ),
    Family(
        name="Music-Source-Separation-Training, Mel-Band Conformer",
        upstream="msst",
        overlapping=True,
        present=(_CONVOLUTION,),
        absent=(_FINAL_NORM,),
        defaults={**_MEL, **_CONFORMER, "zero_dc": True},
        mask_estimator_depth_excess=1,
        conformer=True,
    ),
    Family(
        name="Music-Source-Separation-Training, BS-Conformer",
        upstream="msst",
        overlapping=False,
        present=(_CONVOLUTION, _FINAL_NORM),
        defaults={**_CONFORMER, "zero_dc": True},
        mask_estimator_depth_excess=1,
        conformer=True,
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

_NORM = r"norm\.gamma"
_LINEAR = r"(?:weight|bias)"
_BATCH_NORM = rf"{_LINEAR}|running_mean|running_var|num_batches_tracked"
_ATTENTION = (
    rf"{_NORM}|to_qkv\.(?:(?:0\.)?weight|bias)|to_gates\.{_LINEAR}|to_out\.(?:[01]\.weight|0\.bias)|temperature|rotary_embed\.freqs"
    rf"|pope_embed\.(?:bias|inv_freqs)|to_value_residual_mix\.{_LINEAR}"
)
_FEED_FORWARD = rf"net\.0\.gamma|net\.[14]\.{_LINEAR}"
_HYPER_CONNECTION = (
    rf"{_NORM}|static_(?:alpha|beta)|dynamic_(?:alpha|beta)_(?:fn|scale)"
    r"|h_post_scale|pre_branch_scale|residual_scale"
)
_KNOWN_KEY: Final = re.compile(
    rf"band_split\.to_features\.\d+\.(?:0\.gamma|1\.{_LINEAR})"
    rf"|layers\.\d+\.\d+\.{_NORM}"
    rf"|layers\.\d+\.\d+\.layers\.\d+\.0\.(?:branch\.)?(?:{_ATTENTION})"
    rf"|layers\.\d+\.\d+\.layers\.\d+\.1\.(?:branch\.)?(?:{_FEED_FORWARD})"
    rf"|layers\.\d+\.\d+\.layers\.\d+\.[01]\.(?:{_HYPER_CONNECTION})"
    rf"|layers\.\d+\.\d+\.layers\.\d+\.attn\.(?:{_ATTENTION})"
    rf"|layers\.\d+\.\d+\.layers\.\d+\.ff[12]\.ff\.(?:{_FEED_FORWARD})"
    rf"|layers\.\d+\.\d+\.layers\.\d+\.conv\.net\.(?:0\.gamma|[247]\.{_LINEAR}|5\.(?:{_BATCH_NORM}))"
    rf"|layers\.\d+\.\d+\.layers\.\d+\.out_norm\.gamma"
    rf"|layers\.\d+\.\d+\.ln_[xy]_(?:attn|mlp)\.\d+\.gamma|layers\.\d+\.\d+\.y_attn\.\d+"
    rf"|sink_tokens|shared_(?:qkv|out)_bias"
    rf"|final_norm\.gamma"
    rf"|mask_estimators\.\d+\.{_NORM}"
    rf"|mask_estimators\.\d+\.layers\.\d+\.[01]\.layers\.\d+\.0\.(?:{_ATTENTION})"
    rf"|mask_estimators\.\d+\.layers\.\d+\.[01]\.layers\.\d+\.1\.(?:{_FEED_FORWARD})"
    # The strict load compares the rest of the keys of this branch.
    rf"|mask_estimators\.\d+\.segm\.(?:backbone|hyperace|decoder|upsample_head)\.\S+"
    rf"|mask_estimators\.\d+\.to_freqs\.\d+\.0\.(?:fno_blocks|lifting|projection)\.\S+"
    rf"|mask_estimators\.\d+\.to_freqs\.\d+\.0\.\d+\.{_LINEAR}"
)


def is_known_key(key: str) -> bool:
    """Tell whether a key has the form of one of this package's keys."""
    return _KNOWN_KEY.fullmatch(key) is not None


def recognise(keys: Iterable[str], upstream: Upstream | None = None) -> Family:
    """Find the family of a state dict.

    Parameters
    ----------
    keys : Iterable[str]
        The keys of the state dict, without prefixes.
    upstream : Upstream | None = None
        Look among the families of this project. `None`: among all, where the plain layout is taken for MSST's.

    Returns
    -------
    family : Family
        The first row of the table that fits.
    """
    lines = "\n".join(keys)
    for family in _families_of(upstream):
        fits = all(re.search(pattern, lines, re.MULTILINE) for pattern in family.present)
        if fits and not any(re.search(pattern, lines, re.MULTILINE) for pattern in family.absent):
            return family
    # Only a state dict that mixes families gets here; whether it can be loaded is for the strict load to say.
    return newest_family(upstream or "msst", overlapping=False)


def newest_family(upstream: Upstream, *, overlapping: bool, conformer: bool = False) -> Family:
    """Return the row that describes a project's present code, for configurations without a state dict."""
    rows = [row for row in _families_of(upstream) if row.overlapping == overlapping and not row.variant]
    wanted = [row for row in rows if row.conformer == conformer] or [row for row in rows if not row.conformer]
    return wanted[0]


def check_upstream(upstream: object) -> Upstream:
    """Return `upstream` where it names a project of the table.

    Raises
    ------
    ValueError
        Otherwise.
    """
    for known in get_args(Upstream):
        if upstream == known:
            name: Upstream = known
            return name
    names = ", ".join(repr(name) for name in get_args(Upstream))
    raise ValueError(f"upstream must be one of {names}, but is {short_repr(upstream)}")


def _families_of(upstream: Upstream | None) -> list[Family]:
    return [family for family in FAMILIES if upstream is None or family.upstream == upstream]
