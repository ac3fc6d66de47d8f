"""Mask heads: each module has the layers, the options and the variants of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hunterFormsBS.heads.axial import AXIAL, OptionsAxial
from hunterFormsBS.heads.fourier import FOURIER, OptionsFourier
from hunterFormsBS.heads.hyperACE import HYPERACE, OptionsHyperACE
from hunterFormsBS.heads.kind import HeadKind
from hunterFormsBS.heads.mlp import MLPS, OptionsMLP

__all__ = ["HEADS", "OptionsOfHeads", "head_of"]

HEADS: tuple[HeadKind, ...] = (AXIAL, HYPERACE, FOURIER, MLPS)
"""All kinds; the default one is last."""


class OptionsOfHeads(OptionsMLP, OptionsAxial, OptionsFourier, OptionsHyperACE, total=False):
    """Arguments of the model for its mask heads."""


def head_of(arguments: Mapping[str, Any]) -> HeadKind:
    """Return the kind that a model's arguments select."""
    return next(kind for kind in HEADS if not kind.switch or arguments[kind.switch])
