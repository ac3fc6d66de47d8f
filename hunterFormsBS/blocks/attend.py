"""Softmax attention.

Axis letters in this module: b sequences, n positions, h heads, e features of one head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hunterFormsBS.kernels.scaledDotProduct import by_heads, by_sequences, fused, fused_twice, sage
from hunterFormsBS.kernels.seam import Layer, served_by
from hunterFormsBS.operations.attentionWeights import attention_weights
from hunterFormsBS.theTypes import FlashAttentionConfig, ParametersScaledDotProduct


class Attend(Layer):
    """Scaled dot-product attention, `softmax(scale · q kᵀ) v` [1]_.

    Parameters
    ----------
    attn_dropout : float
        Probability of dropping an attention weight while training.
    flash_attn : bool or FlashAttentionConfig
        True: PyTorch's `scaled_dot_product_attention` and whatever backend it picks. A configuration restricts its
        choice. False: explicit softmax, which keeps the whole attention matrix.
    sage_attention : bool
        Use SageAttention [2]_ for float16 and bfloat16 on CUDA without gradients (its kernels have no backward pass).
        Elsewhere `scaled_dot_product_attention` is used, and one warning says why.
    scale : float, default None
        Factor on the scores; `q.shape[-1] ** -0.5` by default.
    wsa_window_len, n_wsa_sinks : int, default None and 0
        With a window, a position attends to positions at most half a window away, and to the first `n_wsa_sinks`, which
        attend to all [3]_.

    References
    ----------
    .. [1] Vaswani et al., Attention Is All You Need, NeurIPS 2017, arXiv 1706.03762.
    .. [2] Zhang et al., SageAttention, ICLR 2025, arXiv 2410.02367.
    .. [3] Benetatos et al., Efficient Vocal Source Separation Through Windowed Sink Attention, 2025, arXiv 2510.25745.
    """

    def __init__(
        self,
        *,
        attn_dropout: float = 0.0,
        flash_attn: bool | FlashAttentionConfig = True,
        sage_attention: bool = False,
        scale: float | None = None,
        wsa_window_len: int | None = None,
        n_wsa_sinks: int = 0,
    ) -> None:
        super().__init__()
        self.attn_dropout = nn.Dropout(attn_dropout)
        self.flash_attn = flash_attn
        self.sage_attention = sage_attention
        self.scale = scale
        self.wsa_window_len = wsa_window_len
        self.n_wsa_sinks = n_wsa_sinks

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from `q` to `k`, both `(b, h, n, e)`; mix `v`, `(b, h, n, e')` with e' ≤ e, to its own shape."""
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        seen = None
        if self.wsa_window_len is not None:
            seen = windowed_sinks(q.shape[-2], self.wsa_window_len, self.n_wsa_sinks, q)
        if self.flash_attn:
            dropout = self.attn_dropout.p if self.training else 0.0
            parameters = ParametersScaledDotProduct(scale, dropout, self.flash_attn, self.sage_attention)
            return scaled_dot_product(q, k, v, parameters, seen)
        return self.attn_dropout(attention_weights(q, k, scale, seen).to(v.dtype)) @ v


def windowed_sinks(length: int, window: int, sinks: int, like: Tensor) -> Tensor:
    """Return which positions each position attends to, boolean `(queries, keys)`, on the device of `like`."""
    positions = torch.arange(length, device=like.device)
    queries, keys = positions[:, None], positions
    return (queries < sinks) | (keys < sinks) | ((queries - keys).abs() <= window // 2)


@served_by(sage, by_heads, by_sequences, fused_twice, fused)
def scaled_dot_product(
    q: Tensor, k: Tensor, v: Tensor, parameters: ParametersScaledDotProduct, seen: Tensor | None = None
) -> Tensor:
    """Return `softmax(scale · q kᵀ) v`, with dropout of weights; `seen` is that of `attention_weights`."""
    weights = nn.functional.dropout(attention_weights(q, k, parameters.scale, seen), parameters.dropout)
    return weights.to(v.dtype) @ v
