"""Records that carry arguments from a constructor to the block that uses them.

A public constructor takes flat keyword arguments; it packs those that travel together once, into one
of these records, and each record unpacks into a signature that has the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Required, TypeAlias, TypedDict

from torch import Tensor

from hunterFormsBS.blocks.valueResidual import LearnedValueResidualMix

WindowFunction: TypeAlias = Callable[..., Tensor]
"""A function of a length in samples, such as `torch.hann_window`, that also takes `device` and `dtype`."""


class FlashAttentionConfig(NamedTuple):
    """The `scaled_dot_product_attention` backends that PyTorch may choose from.

    Parameters
    ----------
    enable_flash, enable_math, enable_mem_efficient : bool
        Allow FlashAttention [1]_, the plain composition of operators, and the memory-efficient kernel.

    References
    ----------
    .. [1] Dao et al., FlashAttention, NeurIPS 2022, arXiv 2205.14135.
    """

    enable_flash: bool = True
    enable_math: bool = True
    enable_mem_efficient: bool = True


class ParametersAttention(TypedDict):
    """Arguments of `Attention` that are the same in every layer."""

    heads: int
    dim_head: int
    attn_dropout: float
    flash_attn: bool | FlashAttentionConfig
    sage_attention: bool
    scale: float | None


class ParametersTransformer(ParametersAttention):
    """Arguments of `Transformer` that are the same on every axis and in every layer group."""

    ff_dropout: float
    ff_mult: int
    norm_output: bool
    num_residual_streams: int
    num_residual_fracs: int
    mc_hyper_conn_sinkhorn_iters: int | None
    use_torch_checkpoint: bool


class ParametersSTFT(TypedDict):
    """Arguments of `hunterFormsBS.blocks.spectrum.SpectralTransform`, lengths in samples."""

    stft_n_fft: int
    stft_hop_length: int
    stft_win_length: int
    stft_normalized: bool
    stft_window_fn: WindowFunction


class ParametersComputeLoss(TypedDict):
    """What `lossComputation` needs besides audio, lengths in samples."""

    stft_n_fft: int
    multi_stft_hop_size: int
    multi_stft_normalized: bool
    multi_stft_resolution_loss_weight: float
    multi_stft_resolutions_window_sizes: Sequence[int]
    multi_stft_window_fn: WindowFunction


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
