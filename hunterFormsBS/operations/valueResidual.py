"""Value residual learning: later layers mix their values with those of the first."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

from hunterFormsBS.theTypes import LearnedValueResidualMix, ValueResidualMix


def mix_values(v: Tensor, first: Tensor | None, logits: Tensor | None, how: ValueResidualMix | None) -> Tensor:
    """Move values toward those of the first layer: value residual learning [1]_.

    `v + mix · (first - v)`; if `how` is 'swapped', `v + first · (mix - v)`, as in BS-RoFormer's Mel models, which swap
    the arguments of `lerp` and whose checkpoints were trained so.

    Parameters
    ----------
    v : Tensor
        Values, `(b, h, n, e)`.
    first : Tensor or None
        Values of the first layer, of the same shape; needed unless `how` is None.
    logits : Tensor or None
        `(b, n, h)`: `mix` is their sigmoid. None: 0.5.
    how : {'learned', 'constant', 'swapped'} or None
        None: values do not change.

    References
    ----------
    .. [1] Zhou et al., Value Residual Learning, ACL 2025, arXiv 2410.17897.
    """
    if how is None:
        return v
    if first is None:
        raise ValueError("This layer mixes its values with the first layer's: pass `first_values`.")
    mix = 0.5 if logits is None else rearrange(logits.sigmoid(), "b n h -> b h n 1")
    if how == "swapped":
        return v + first * (mix - v)
    return v + mix * (first - v)


def mixes_of_axes(
    use_value_residual_learning: bool, learned_value_residual_mix: LearnedValueResidualMix | None
) -> dict[str, ValueResidualMix | None]:
    """Return how values mix on each axis in the layer groups after the first; None: not at all."""
    softmax: ValueResidualMix | None = None
    if use_value_residual_learning:
        softmax = "learned" if learned_value_residual_mix in (None, True) else "swapped"
        softmax = softmax if learned_value_residual_mix is not False else "constant"
    linear = "learned" if learned_value_residual_mix == "swapped" else softmax
    return {"linear": linear, "time": softmax, "frequency": softmax}
