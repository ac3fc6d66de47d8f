"""Records that carry arguments from a constructor to the block that uses them.

`BandSplitRotator` takes flat keyword arguments. It packs those that belong together once, into one of these records,
whose fields have the same names, and the record is passed whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Required, TypeAlias, TypedDict

import torch
from torch import Tensor

from hunterFormsBS.blocks.valueResidual import LearnedValueResidualMix

WindowFunction: TypeAlias = Callable[..., Tensor]
"""A function of a length in samples, such as `torch.hann_window`, that also takes `device` and `dtype`."""


class FlashAttentionConfig(NamedTuple):
    """The `scaled_dot_product_attention` backends that PyTorch may choose from.

    Parameters
    ----------
    enable_flash, enable_math, enable_mem_efficient : bool
        Allow FlashAttention [1]_, attention made of separate operators, and the memory-efficient kernel.

    References
    ----------
    .. [1] Dao et al., FlashAttention, NeurIPS 2022, arXiv 2205.14135.
    """

    enable_flash: bool = True
    enable_math: bool = True
    enable_mem_efficient: bool = True


class ParametersScaledDotProduct(NamedTuple):
    """How to compute one call of attention; `dropout` is the probability in this call."""

    scale: float
    dropout: float
    flash_attn: bool | FlashAttentionConfig
    sage_attention: bool


class ParametersAttention(NamedTuple):
    """What is the same in the attention of every layer.

    Parameters
    ----------
    heads, dim_head : int
        Heads, and features of each.
    attn_dropout, flash_attn, sage_attention
        See `hunterFormsBS.attend.Attend`; `attn_dropout` also follows the output projection.
    scale : float, optional
        Factor on the scores, `dim_head ** -0.5` by default.
    """

    heads: int = 8
    dim_head: int = 64
    attn_dropout: float = 0.0
    flash_attn: bool | FlashAttentionConfig = True
    sage_attention: bool = False
    scale: float | None = None


class ParametersResidual(NamedTuple):
    """How sublayers are connected; see `hunterFormsBS.blocks.residual.residual_wrapper`."""

    num_residual_streams: int = 1
    num_residual_fracs: int = 1
    mc_hyper_conn_sinkhorn_iters: int | None = None


class ParametersTransformer(NamedTuple):
    """What is the same in every transformer, on every axis and in every layer group.

    Parameters
    ----------
    attention : ParametersAttention
        Of its attention layers.
    residual : ParametersResidual
        Of the connections between layers.
    ff_mult, ff_dropout
        See `hunterFormsBS.attend.FeedForward`.
    norm_output : bool
        Normalise what comes out.
    use_torch_checkpoint : bool
        In the backward pass compute again, instead of storing, what happens inside.
    """

    attention: ParametersAttention = ParametersAttention()
    residual: ParametersResidual = ParametersResidual()
    ff_mult: int = 4
    ff_dropout: float = 0.0
    norm_output: bool = True
    use_torch_checkpoint: bool = False


class ParametersSTFT(NamedTuple):
    """A short-time Fourier transform, for `hunterFormsBS.blocks.spectrum.SpectralTransform`.

    Parameters
    ----------
    stft_n_fft, stft_hop_length, stft_win_length : int
        Samples in a frame, between frames, and in the window, which is centred in the frame.
    stft_normalized : bool
        Scale by `stft_n_fft ** -0.5`.
    stft_window_fn : Callable
        Makes the window from its length.
    """

    stft_n_fft: int = 2048
    stft_hop_length: int = 512
    stft_win_length: int = 2048
    stft_normalized: bool = False
    stft_window_fn: WindowFunction = torch.hann_window


class ParametersComputeLoss(NamedTuple):
    """What `hunterFormsBS.bandSplit.lossComputation` needs besides audio.

    Parameters
    ----------
    stft_n_fft, multi_stft_hop_size : int
        Samples in a frame at least, and between frames.
    multi_stft_normalized : bool
        Scale spectra by the frame's length to the power of -1/2.
    multi_stft_resolution_loss_weight : float
        Factor on the spectral term.
    multi_stft_resolutions_window_sizes : sequence of int
        Samples in the window of each resolution.
    multi_stft_window_fn : Callable
        Makes a window from its length.
    """

    stft_n_fft: int = 2048
    multi_stft_hop_size: int = 147
    multi_stft_normalized: bool = False
    multi_stft_resolution_loss_weight: float = 1.0
    multi_stft_resolutions_window_sizes: Sequence[int] = (4096, 2048, 1024, 512, 256)
    multi_stft_window_fn: WindowFunction = torch.hann_window


class ParametersBandSplitRotator(TypedDict, total=False):
    """Keyword arguments of `BandSplitRotator` that the transition classes pass on; it documents them."""

    depth: Required[int]
    dim_freqs_in: int
    dim_head: int
    ff_mult: int | None
    final_norm: bool | None
    flash_attn: bool | FlashAttentionConfig
    freq_range: tuple[int, int] | None
    freq_transformer_depth: int
    freqs_per_bands: Sequence[int]
    heads: int
    learned_value_residual_mix: LearnedValueResidualMix | None
    linear_transformer_depth: int
    mask_estimator_depth: int | None
    mask_filter_bank: Tensor | None
    match_input_audio_length: bool
    mc_hyper_conn_sinkhorn_iters: int | None
    mlp_expansion_factor: int
    multi_stft_hop_size: int
    multi_stft_normalized: bool
    multi_stft_resolution_loss_weight: float
    multi_stft_resolutions_window_sizes: Sequence[int]
    multi_stft_window_fn: WindowFunction
    norm_output: bool | None
    num_residual_fracs: int | None
    num_residual_streams: int
    num_stems: int
    sage_attention: bool
    scale: float | None
    skip_connection: bool
    stereo: bool
    stft_hop_length: int
    stft_n_fft: int
    stft_normalized: bool
    stft_win_length: int
    stft_window_fn: WindowFunction
    time_transformer_depth: int
    use_pope: bool
    use_torch_checkpoint: bool
    use_value_residual_learning: bool
    zero_dc: bool | None
