"""Models with the heads of another model, in any order and number, and with new heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch import Tensor

from hunterFormsBS.bandSplitRotator import BandSplitRotator

__all__ = ["HEAD", "join_stems", "model_with_heads", "with_heads"]

HEAD: Final = "mask_estimators."


def with_heads(state_dict: Mapping[str, Tensor], numbers: Sequence[int | None]) -> dict[str, Tensor]:
    """Return the weights with these heads in this order; None stands for a head without weights."""
    chosen = {key: tensor for key, tensor in state_dict.items() if not key.startswith(HEAD)}
    for head, number in enumerate(numbers):
        prefix = f"{HEAD}{number}."
        chosen |= {
            f"{HEAD}{head}.{key.removeprefix(prefix)}": tensor
            for key, tensor in state_dict.items()
            if key.startswith(prefix)
        }
    return chosen


def model_with_heads(model: BandSplitRotator, numbers: Sequence[int | None]) -> tuple[BandSplitRotator, frozenset[str]]:
    """Build a model with the heads of another one.

    Parameters
    ----------
    model : BandSplitRotator
        It is not changed.
    numbers : sequence of int or None
        For each head, the number of the old head to copy, or None for random weights.

    Returns
    -------
    other : BandSplitRotator
        In eval mode, on the same device and in the same dtype.
    taken : frozenset of str
        Keys of the weights taken from `model`.
    """
    arguments: dict[str, Any] = {**model.configuration, "num_stems": len(numbers)}
    other = BandSplitRotator(**arguments)
    taken = with_heads(model.state_dict(), numbers)
    other.load_state_dict({**other.state_dict(), **taken})
    return other.to(next(model.parameters())).eval(), frozenset(taken)


def join_stems(
    base: BandSplitRotator, names: Sequence[str], trained: BandSplitRotator, stems: Sequence[str]
) -> tuple[BandSplitRotator, list[str]]:
    """Build a model with the layers and heads of `trained`, and the other heads of `base`.

    Parameters
    ----------
    base : BandSplitRotator
    names : sequence of str
        Of the stems of `base`.
    trained : BandSplitRotator
    stems : sequence of str
        Of the stems of `trained`.

    Returns
    -------
    model : BandSplitRotator
    joined : list of str
        Names of its stems: those of `base`, then those that only `trained` has.
    """
    joined = [*names, *(stem for stem in stems if stem not in names)]
    model, _ = model_with_heads(trained, [stems.index(stem) if stem in stems else None for stem in joined])
    kept = with_heads(base.state_dict(), [None if stem in stems else names.index(stem) for stem in joined])
    model.load_state_dict(
        {**model.state_dict(), **{key: tensor for key, tensor in kept.items() if key.startswith(HEAD)}}
    )
    return model, joined
