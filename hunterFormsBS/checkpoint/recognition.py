"""The origin of a checkpoint: its family and variants, recognised once from the keys of its state dict."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.families import MEL_MIX, Family, check_upstream, families_of, newest_family
from hunterFormsBS.checkpoint.variants import VARIANTS
from hunterFormsBS.choices import Upstream
from hunterFormsBS.variantRow import Variant


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """The origin of a state dict.

    Parameters
    ----------
    family : Family
        The family whose convention and defaults its configuration follows.
    of_keys : Family
        The family whose keys it has; it differs from `family` if the caller names the upstream.
    variants : tuple[Variant, ...]
        All that the keys fit.
    mixes_as_mel : bool
        Whether values are mixed as in upstream's Mel-Band RoFormer, recognised by its own name for the mix.
    """

    family: Family
    of_keys: Family
    variants: tuple[Variant, ...]
    mixes_as_mel: bool


def recognise(keys: Iterable[str], upstream: Upstream | None = None) -> Recognition:
    """Return the family and the variants of a state dict.

    Parameters
    ----------
    keys : Iterable[str]
        The keys of the state dict, without prefixes.
    upstream : Upstream | None, default None
        Consider only families of this project. `None`: all; the plain layout is taken for MSST's.

    Raises
    ------
    CheckpointError
        If a variant is not supported (the message names it), or there is no such upstream.
    """
    lines = "\n".join(keys)
    variants = find_variants(lines)
    if variants and not variants[0].options:
        refused = variants[0]
        raise CheckpointError(f"this is a checkpoint of {refused.name}, which is not supported. {refused.advice}")
    of_keys = _of_class(_first_that_fits(lines, None), variants)
    return Recognition(
        family=of_keys if upstream is None else _of_class(_first_that_fits(lines, check_upstream(upstream)), variants),
        of_keys=of_keys,
        variants=variants,
        mixes_as_mel=re.search(MEL_MIX, lines) is not None,
    )


def family_of_configuration(upstream: Upstream, arguments: Mapping[str, object], *, overlapping: bool) -> Family:
    """Return the family of a configuration without a state dict."""
    # With only a configuration, heads and biases are options of the plain class.
    variants = [row for row in VARIANTS if row.layer and any(arguments.get(name) for name in row.switches)]
    return _of_class(newest_family(upstream, overlapping=overlapping), variants)


def find_variants(keys: str) -> tuple[Variant, ...]:
    """Return all variants that keys, one per line, fit: none for the plain model and for unknown ones."""
    return tuple(row for row in VARIANTS if re.search(row.pattern, keys, re.MULTILINE))


def _first_that_fits(lines: str, upstream: Upstream | None) -> Family:
    for family in families_of(upstream):
        fits = all(re.search(pattern, lines, re.MULTILINE) for pattern in family.present)
        if fits and not any(re.search(pattern, lines, re.MULTILINE) for pattern in family.absent):
            return family
    # Only a mixture of families gets here; the strict load decides whether it can be loaded.
    return newest_family(upstream or "msst", overlapping=False)


def _of_class(family: Family, variants: Iterable[Variant]) -> Family:
    """Return the family with the defaults of a variant's class; all such classes were written for MSST."""
    if family.upstream != "msst":
        return family
    for variant in variants:
        if variant.defaults and variant.overlapping in (None, family.overlapping):
            excess = variant.mask_estimator_depth_excess
            return replace(
                family,
                name=f"{variant.name} ({family.name})",
                defaults={**family.defaults, **variant.defaults},
                mask_estimator_depth_excess=family.mask_estimator_depth_excess if excess is None else excess,
            )
    return family
