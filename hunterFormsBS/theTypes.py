"""Records that carry arguments from the constructor to the layers that use them.

`BandSplitRotator` takes flat keyword arguments. It packs related ones once into these records, with the same names, and
passes the records whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

WindowFunction: TypeAlias = Callable[..., Tensor]
"""A function of a length in samples, such as `torch.hann_window`, that also takes `device` and `dtype`."""

ValueResidualMix: TypeAlias = Literal["constant", "learned", "swapped"]
"""How one attention layer mixes values: halfway, by a learned factor, or with the learned factor and the values
swapped."""

LearnedValueResidualMix: TypeAlias = bool | Literal["swapped", "swapped_everywhere"]
"""The same choice for a whole model."""


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
    """Settings of attention that all layers share.

    Parameters
    ----------
    heads, dim_head : int
        Heads, and features of each.
    attn_dropout : float
        Dropout probability of attention weights, and after the output projection.
    flash_attn, sage_attention
        PyTorch's fused attention, or SageAttention where it can be used; see `hunterFormsBS.attend.Attend`.
    scale : float, default None
        Factor on the scores, `dim_head ** -0.5` by default.
    wsa_window_len, n_wsa_sinks : int, default None and 0
        Positions attend to those at most half a window away, and to this many sinks before the first.
    """

    heads: int = 8
    dim_head: int = 64
    attn_dropout: float = 0.0
    flash_attn: bool | FlashAttentionConfig = True
    sage_attention: bool = False
    scale: float | None = None
    wsa_window_len: int | None = None
    n_wsa_sinks: int = 0


class ParametersResidual(NamedTuple):
    """How sublayers are connected; see `hunterFormsBS.blocks.residual.residual_wrapper`."""

    num_residual_streams: int = 1
    num_residual_fracs: int = 1
    mc_hyper_conn_sinkhorn_iters: int | None = None


class ParametersTransformer(NamedTuple):
    """Settings that all transformers share.

    Parameters
    ----------
    attention : ParametersAttention
        Of its attention layers.
    residual : ParametersResidual
        Of the connections between layers.
    ff_mult, ff_dropout
        Hidden features of the feedforward, in multiples of `dim`, and its dropout probability.
    norm_output : bool
        Normalise the output.
    use_torch_checkpoint : bool
        Activation checkpointing: recompute inner activations in the backward pass instead of storing them.
    """

    attention: ParametersAttention = ParametersAttention()
    residual: ParametersResidual = ParametersResidual()
    ff_mult: int = 4
    ff_dropout: float = 0.0
    norm_output: bool = True
    use_torch_checkpoint: bool = False


class ParametersConvolution(NamedTuple):
    """The convolutions of Conformers.

    Parameters
    ----------
    conv_expansion_factor : int
        Channels, in multiples of the features of a token.
    conv_kernel_size : int
        Kernel size in positions, an odd number.
    """

    conv_expansion_factor: int = 2
    conv_kernel_size: int = 31


class ParametersLayerGroups(NamedTuple):
    """The transformers and Conformers of a layer group, by axis; `BandSplitRotator` documents the fields.

    Axes are named linear (all tokens at once), time and frequency, in the order in which they run in a group.
    """

    depth: int
    freq_conformer_depth: int = 0
    freq_transformer_depth: int = 2
    learned_value_residual_mix: LearnedValueResidualMix | None = None
    linear_transformer_depth: int = 0
    residual_in_first_group_only: bool = False
    siamese: bool = False
    time_conformer_depth: int = 0
    time_transformer_depth: int = 2
    use_pope: bool = False
    use_rotary_pos: bool = True
    use_value_residual_learning: bool = False

    @property
    def transformer_depths(self) -> dict[str, int]:
        """Layers of the transformer on each axis."""
        return {
            "linear": self.linear_transformer_depth,
            "time": self.time_transformer_depth,
            "frequency": self.freq_transformer_depth,
        }

    @property
    def conformer_depths(self) -> dict[str, int]:
        """Layers of the Conformer on each axis."""
        return {"linear": 0, "time": self.time_conformer_depth, "frequency": self.freq_conformer_depth}

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes with a transformer or a Conformer."""
        conformers = self.conformer_depths
        return tuple(axis for axis, depth in self.transformer_depths.items() if depth or conformers[axis])


class ParametersBranch(NamedTuple):
    """The HyperACE branch of a mask head; see `hunterFormsBS.heads.hyperACE`.

    Parameters
    ----------
    segm_backbone_channels : sequence of int
        Channels of its five stages.
    segm_base_depth : int
        Bottlenecks of the second and the last stage; those between have twice as many.
    segm_hyperace_k, segm_hyperace_l : int
        Parallel hypergraph branches, and convolutional blocks next to them.
    segm_num_heads, segm_num_hyperedges : int
        Of each hypergraph branch.
    segm_version : {1, 2}
        Which of the two published branches.
    """

    segm_backbone_channels: Sequence[int] = (64, 256, 384, 512, 768)
    segm_base_depth: int = 2
    segm_hyperace_k: int = 2
    segm_hyperace_l: int = 1
    segm_num_heads: int = 8
    segm_num_hyperedges: int = 32
    segm_version: Literal[1, 2] = 2


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
