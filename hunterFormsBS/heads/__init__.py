"""The mask heads: each in a room of its own, with its layers, its options, and how a checkpoint shows it."""

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
"""All kinds, the one without a switch last."""


class OptionsOfHeads(OptionsMLP, OptionsAxial, OptionsFourier, OptionsHyperACE, total=False):
    """Arguments of the model that its mask heads take."""


def head_of(arguments: Mapping[str, Any]) -> HeadKind:
    """Return the kind that the arguments of a model ask for."""
    return next(kind for kind in HEADS if not kind.switch or arguments[kind.switch])
