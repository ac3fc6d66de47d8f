"""The model: one class for BS-RoFormer, Mel-Band RoFormer and every other band layout."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, cast, overload

import torch
from einops import rearrange
from torch import Tensor, nn

from hunterFormsBS.blocks.bandSplit import BandSplit
from hunterFormsBS.blocks.bins import Bins
from hunterFormsBS.blocks.layerGroups import SEQUENCES, layer_groups
from hunterFormsBS.blocks.layout import DEFAULT_FREQS_PER_BANDS, is_overlapping, resolve_mask_filter_bank
from hunterFormsBS.blocks.loss import lossComputation
from hunterFormsBS.blocks.norm import RMSNorm
from hunterFormsBS.blocks.positions import PositionEmbedding, complex_product
from hunterFormsBS.blocks.residual import expand_streams, reduce_streams
from hunterFormsBS.blocks.sharedBias import SharedBias, share
from hunterFormsBS.blocks.siamese import run_siamese
from hunterFormsBS.blocks.spectrum import SpectralTransform
from hunterFormsBS.checks import check_audio, check_length, check_stem_ids, check_target, explain_misfit
from hunterFormsBS.choices import MODEL_FILE
from hunterFormsBS.containers import folded_repr, nested
from hunterFormsBS.heads import head_of
from hunterFormsBS.heads.mlp import masks_of_stems
from hunterFormsBS.kernels.recompute import checkpointed
from hunterFormsBS.kernels.seam import without_compiled_methods
from hunterFormsBS.operations.norm import at_least_float32
from hunterFormsBS.optionRow import taken_by
from hunterFormsBS.options import check_arguments, resolved
from hunterFormsBS.signature import explained
from hunterFormsBS.theTypes import (
    FlashAttentionConfig,
    LearnedValueResidualMix,
    ParametersAttention,
    ParametersComputeLoss,
    ParametersConvolution,
    ParametersLayerGroups,
    ParametersResidual,
    ParametersSTFT,
    ParametersTransformer,
    WindowFunction,
)


class BandSplitRotator(nn.Module):
    """Separate stems with band-split rotary transformers [1]_ [2]_.

    Audio becomes a spectrum; each band of each frame becomes a token; transformers run along time and along
    frequency in turn; each stem's mask estimator turns tokens into a complex mask; masked spectra become audio. Axis
    letters: b batch, n stem, s audio channel, f frequency bin, t time frame (of audio: sample), c real and imaginary
    part, d feature, h head.

    Most models need only the first ten arguments. The others select variants and change how a model computes;
    https://hunterhogan.github.io/hunterFormsBS/options.html lists them.

    Parameters
    ----------
    dim : int
        Features of a token.
    depth : int
        Layer groups, each a linear (if any), a time and a frequency transformer.
    num_stems : int
        Stems to estimate.
    stereo : bool
        Two audio channels instead of one.
    dim_head, heads : int
        Features of an attention head, and heads.
    freqs_per_bands : sequence of int
        Bins in each band, for bands that do not overlap. Used unless one of the other two layouts is given.
    num_bands : int, default None
        Bands of a mel layout, with `sample_rate`. Otherwise it must agree with the layout.
    sample_rate : float, default None
        Hz. With `num_bands`: mel layout, unless `mask_filter_bank` is given.
    mask_estimator_depth : int, default None
        Hidden layers of a mask estimator; None: 1. Upstream's BS-RoFormer counts one more.

    Other Parameters
    ----------------
    attn_dropout, ff_dropout : float
        Dropout probabilities of attention and feedforward, in [0, 1).
    conv_expansion_factor, conv_kernel_size : int
        Convolutions of Conformers: channels in multiples of `dim`, and kernel size in positions.
    dim_freqs_in : int
        Frequency bins, as older configurations state them. `stft_n_fft // 2 + 1` is used, with a warning if they
        differ.
    ff_mult : int, default None
        Hidden features of the feedforward, in multiples of `dim`; None: 4.
    final_norm, norm_output, zero_dc : bool, default None
        Normalise after all layer groups; normalise after each transformer; silence the 0 Hz bin. None: False, True,
        False if bands overlap, else True, False, True, as in the upstream models.
    flash_attn : bool or FlashAttentionConfig
        True: PyTorch's fused attention; False: explicit softmax; a configuration restricts PyTorch's choice of kernels.
    freq_conformer_depth, time_conformer_depth : int
        Layers of the Conformer along frequency, or time, in a layer group. It replaces the transformer, whose depth
        must be 0; see `hunterFormsBS.blocks.conformer`.
    freq_range : (int, int), default None
        First bin, and the bin after the last, to separate; -1 leaves an end open. Other bins come out silent.
    learned_value_residual_mix : bool or {'swapped', 'swapped_everywhere'}, default None
        True or None: mix value residuals by a learned factor. False: halfway. 'swapped': as upstream's Mel models in
        softmax attention (see `hunterFormsBS.operations.valueResidual.mix_values`); 'swapped_everywhere': in linear
        attention too, as their versions before 1.0. Needs `use_value_residual_learning`.
    linear_transformer_depth, time_transformer_depth, freq_transformer_depth : int
        Attention and feedforward pairs in the transformers of a layer group. The linear one attends across all tokens
        at once. 0: no transformer, for time and frequency only with a Conformer instead.
    mask_filter_bank : Tensor, default None
        Boolean `(band, f)`: which bins belong to which band. Bands may overlap.
    mask_fno_depth, mask_fno_modes : int
        FNO head: Fourier neural operators along time make the masks instead of MLPs. Number of blocks, and frequencies
        that each block keeps (3 and 33 in the published models). 0 frequencies: no FNO head.
    mask_transformer_depth, mask_transformer_dim_head, mask_transformer_heads : int
        Large-Inst v2 head: pairs of transformers along time and frequency before the MLPs of each mask head (4 in the
        published model), features of their attention heads, and number of heads.
    match_input_audio_length : bool
        Return as many samples as the input has. False: a multiple of the hop length.
    mc_hyper_conn_sinkhorn_iters : int, default None
        Manifold-constrained hyper-connections with that many Sinkhorn iterations; None: no constraint.
    mlp_expansion_factor : int
        Hidden features of a mask estimator, in multiples of `dim`.
    multi_stft_hop_size, multi_stft_normalized, multi_stft_window_fn
        Spectra in the loss: samples between frames; whether to scale by the frame length to the power of -1/2; function
        that makes a window from its length.
    multi_stft_resolution_loss_weight : float
        Factor on the spectral term of the loss.
    multi_stft_resolutions_window_sizes : sequence of int
        Window lengths in samples, one spectrum for each; frames have at least `stft_n_fft` samples.
    num_residual_fracs, num_residual_streams : int
        Hyper-connections: fractions that features are divided into, and copies of the residual stream. 1 and 1:
        ordinary residual connections.
    n_wsa_sinks, wsa_window_len : int, default 0 and None
        Windowed sink attention along time: learned frames before the first, to which all frames attend; and the window.
        A frame attends to the sinks and to frames at most half a window away.
    residual_in_first_group_only : bool
        Sublayers add their input only in the first layer group, there even in addition to residual streams. This is a
        mistake of MSST's experimental classes that their checkpoints need.
    sage_attention : bool
        SageAttention on CUDA in half precision without gradients; elsewhere `flash_attn` applies, after a warning.
    scale : float, default None
        Factor on attention scores; `dim_head ** -0.5` by default.
    segm_backbone_channels, segm_base_depth
        With `use_hyperACE`: channels of the five stages of its branch, and bottlenecks of the second and last stage.
    segm_hyperace_k, segm_hyperace_l, segm_num_heads, segm_num_hyperedges : int
        With `use_hyperACE`: parallel hypergraph branches, convolutional blocks next to them, heads and hyperedges of
        each branch. None: 2, 1 and 32 in version 2, and 3, 2 and 16 in version 1.
    segm_version : {1, 2}
        With `use_hyperACE`: which of the two published branches.
    siamese : bool
        Two streams of tokens that share their layers; see `hunterFormsBS.blocks.siamese`.
    skip_connection : bool
        Add the outputs of all earlier layer groups before a group's time transformer.
    stft_hop_length, stft_n_fft, stft_win_length : int
        Samples between frames, in a frame, and in the window, which is centred in the frame.
    stft_normalized, stft_window_fn
        Whether to scale spectra by `stft_n_fft ** -0.5`; function that makes the window from its length.
    use_hyperACE : bool
        Add to each mask that of a convolutional branch with hypergraph fusion; see
        `hunterFormsBS.heads.hyperACE.branch`. The published models have `zero_dc=False`.
    use_pope : bool
        Polar instead of rotary position embedding; see `hunterFormsBS.blocks.positions`.
    use_rotary_pos : bool
        False: add sines and cosines of positions to the input of each transformer, and rotate nothing.
    use_shared_bias : bool
        All attention layers share one bias for queries, keys and values, and one for their output projections.
    use_torch_checkpoint : bool
        Activation checkpointing: less memory for a second forward pass in training.
    use_value_residual_learning : bool
        Mix values of later layer groups with those of the first; see
        `hunterFormsBS.operations.valueResidual.mix_values`.

    Attributes
    ----------
    configuration : dict
        The arguments: `type(model)(**model.configuration)` is the same model with new weights.
    mask_filter_bank : Tensor
        Boolean `(band, f)`, on the device of the model. Not a buffer: averages over buffers would refuse or truncate
        it.

    References
    ----------
    .. [1] Lu et al., Music Source Separation with Band-Split RoPE Transformer, ICASSP 2024, arXiv 2309.02612.
    .. [2] Wang et al., Mel-RoFormer for Vocal Separation and Vocal Melody Transcription, ISMIR 2024, arXiv 2409.04702.
    """

    @explained
    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        attn_dropout: float = 0.0,
        conv_expansion_factor: int = 2,
        conv_kernel_size: int = 31,
        dim_freqs_in: int = 1025,
        dim_head: int = 64,
        ff_dropout: float = 0.0,
        ff_mult: int | None = None,
        final_norm: bool | None = None,
        flash_attn: bool | FlashAttentionConfig = True,
        freq_conformer_depth: int = 0,
        freq_range: tuple[int, int] | None = None,
        freq_transformer_depth: int = 2,
        freqs_per_bands: Sequence[int] = DEFAULT_FREQS_PER_BANDS,
        heads: int = 8,
        learned_value_residual_mix: LearnedValueResidualMix | None = None,
        linear_transformer_depth: int = 0,
        mask_estimator_depth: int | None = None,
        mask_filter_bank: Tensor | None = None,
        mask_fno_depth: int = 3,
        mask_fno_modes: int = 0,
        mask_transformer_depth: int = 0,
        mask_transformer_dim_head: int = 64,
        mask_transformer_heads: int = 8,
        match_input_audio_length: bool = True,
        mc_hyper_conn_sinkhorn_iters: int | None = None,
        mlp_expansion_factor: int = 4,
        multi_stft_hop_size: int = 147,
        multi_stft_normalized: bool = False,
        multi_stft_resolution_loss_weight: float = 1.0,
        multi_stft_resolutions_window_sizes: Sequence[int] = (4096, 2048, 1024, 512, 256),
        multi_stft_window_fn: WindowFunction = torch.hann_window,
        norm_output: bool | None = None,
        num_bands: int | None = None,
        num_residual_fracs: int | None = None,
        num_residual_streams: int = 1,
        n_wsa_sinks: int = 0,
        num_stems: int = 1,
        residual_in_first_group_only: bool = False,
        sage_attention: bool = False,
        sample_rate: float | None = None,
        scale: float | None = None,
        segm_backbone_channels: Sequence[int] = (64, 256, 384, 512, 768),
        segm_base_depth: int = 2,
        segm_hyperace_k: int | None = None,
        segm_hyperace_l: int | None = None,
        segm_num_heads: int = 8,
        segm_num_hyperedges: int | None = None,
        segm_version: Literal[1, 2] = 2,
        siamese: bool = False,
        skip_connection: bool = False,
        stereo: bool = False,
        stft_hop_length: int = 512,
        stft_n_fft: int = 2048,
        stft_normalized: bool = False,
        stft_win_length: int = 2048,
        stft_window_fn: WindowFunction = torch.hann_window,
        time_conformer_depth: int = 0,
        time_transformer_depth: int = 2,
        use_hyperACE: bool = False,
        use_pope: bool = False,
        use_rotary_pos: bool = True,
        use_shared_bias: bool = False,
        use_torch_checkpoint: bool = False,
        use_value_residual_learning: bool = False,
        wsa_window_len: int | None = None,
        zero_dc: bool | None = None,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        check_arguments(arguments)
        super().__init__()
        self._configuration = copy.deepcopy(arguments)
        self.audio_channels = 2 if stereo else 1
        self.match_input_audio_length = match_input_audio_length
        self.num_residual_streams = num_residual_streams
        self.num_stems = num_stems
        self.siamese = siamese
        self.skip_connection = skip_connection
        self.stereo = stereo
        self.use_torch_checkpoint = use_torch_checkpoint
        self.layout = resolve_mask_filter_bank(
            num_freqs=stft_n_fft // 2 + 1,
            stft_n_fft=stft_n_fft,
            mask_filter_bank=mask_filter_bank,
            sample_rate=sample_rate,
            num_bands=num_bands,
            freqs_per_bands=freqs_per_bands,
            freq_range=freq_range,
        )
        arguments = resolved(arguments, overlapping=is_overlapping(self.layout))
        # Parameters are registered in upstream's order, because optimizer states are positional.
        self._make_transforms(arguments)
        self._make_layers(arguments)
        self._make_band_layers(arguments)

    def _make_transforms(self, arguments: Mapping[str, Any]) -> None:
        """Make the stages between audio and bands, which have no parameters."""
        self.zero_dc: bool = arguments["zero_dc"]
        self.bins = Bins(self.layout)
        self.stft = SpectralTransform(ParametersSTFT(**taken_by(ParametersSTFT, arguments)))
        self.multi_stft = ParametersComputeLoss(**taken_by(ParametersComputeLoss, arguments))

    def _make_layers(self, arguments: Mapping[str, Any]) -> None:
        """Make the layer groups, and the parameters that they share."""
        dim, sinks = arguments["dim"], arguments["n_wsa_sinks"]
        attention = ParametersAttention(**taken_by(ParametersAttention, arguments))
        residual = ParametersResidual(**taken_by(ParametersResidual, arguments))
        transformer = ParametersTransformer(attention, residual, **taken_by(ParametersTransformer, arguments))
        groups = ParametersLayerGroups(**taken_by(ParametersLayerGroups, arguments))
        convolution = ParametersConvolution(**taken_by(ParametersConvolution, arguments))
        shared_bias = None
        if arguments["use_shared_bias"]:
            shared_bias = SharedBias.zeros(dim, attention.heads * attention.dim_head)
            self.register_load_state_dict_post_hook(share_biases_again)  # type: ignore[no-untyped-call]
        self.shared_qkv_bias = None if shared_bias is None else shared_bias.qkv
        self.shared_out_bias = None if shared_bias is None else shared_bias.out
        self.axes = groups.axes
        self.layers = layer_groups(dim, transformer, groups, convolution, shared_bias)
        self.sink_tokens = nn.Parameter(torch.randn(sinks, len(self.layout), dim)) if sinks else None
        self.final_norm = RMSNorm(dim) if arguments["final_norm"] else nn.Identity()

    def _make_band_layers(self, arguments: Mapping[str, Any]) -> None:
        """Make the band split and the mask heads."""
        dim, kind = arguments["dim"], head_of(arguments)
        dim_inputs = [2 * self.audio_channels * int(band.sum()) for band in self.layout]
        self.band_split = BandSplit(dim, dim_inputs)
        self.mask_estimators = nn.ModuleList(kind.build(dim, dim_inputs, arguments) for _ in range(self.num_stems))

    @staticmethod
    def from_pretrained(repository: str, *, revision: str = "main", **overrides: Any) -> BandSplitRotator:
        """Load a model that `hunterFormsBS.catalogue.publish` uploaded to the Hugging Face Hub.

        Parameters
        ----------
        repository : str
            `OWNER/REPOSITORY`.
        revision : str, default "main"
            Branch, tag or commit.
        **overrides : Any
            Further arguments of `hunterFormsBS.checkpoint.from_checkpoint`, whose errors these are.
        """
        # Through the package: the model must not import the modules that read checkpoints.
        package: Any = sys.modules[__name__.partition(".")[0]]
        return package.from_checkpoint(f"hub:{repository}/{MODEL_FILE}@{revision}", **overrides)

    def reset_parameters(self) -> None:
        """Initialise every parameter, for example after `to_empty`."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()
        self.share_biases()
        if self.sink_tokens is not None:
            nn.init.normal_(self.sink_tokens)
        for bias in (self.shared_qkv_bias, self.shared_out_bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def share_biases(self) -> None:
        """Let all attention layers share the model's biases again, if it has any."""
        if self.shared_qkv_bias is not None and self.shared_out_bias is not None:
            share(self.layers, SharedBias(self.shared_qkv_bias, self.shared_out_bias))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply `to`, `to_empty`, `double` and the like, and share biases again."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.share_biases()
        return self

    @property
    def mask_filter_bank(self) -> Tensor:
        """The band layout."""
        return self.layout.to(next(self.parameters()).device)

    @property
    def configuration(self) -> dict[str, Any]:
        """A copy of the arguments: `type(model)(**model.configuration)` is the same model with new weights."""
        return copy.deepcopy(self._configuration)

    def extra_repr(self) -> str:
        """Describe the layout, the channels, the hop and the size."""
        bands, freqs = self.layout.shape
        return (
            f"bands={bands}, freqs={freqs}, num_stems={self.num_stems}, audio_channels={self.audio_channels}, "
            f"stft_hop_length={self.stft.parameters.stft_hop_length}, "
            f"parameters={sum(parameter.numel() for parameter in self.parameters()):,}"
        )

    def __repr__(self) -> str:
        """Describe the model in one screen: layers that differ only in size are shown once."""
        return folded_repr(self)

    @overload
    def forward(
        self,
        raw_audio: Tensor,
        target: None = None,
        active_stem_ids: Sequence[int] | None = None,
        *,
        return_loss_breakdown: bool = False,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        raw_audio: Tensor,
        target: Tensor,
        active_stem_ids: Sequence[int] | None = None,
        *,
        return_loss_breakdown: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        raw_audio: Tensor,
        target: Tensor,
        active_stem_ids: Sequence[int] | None = None,
        *,
        return_loss_breakdown: Literal[True],
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self,
        raw_audio: Tensor,
        target: Tensor,
        active_stem_ids: Sequence[int] | None = None,
        *,
        return_loss_breakdown: bool,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self,
        raw_audio: Tensor,
        target: Tensor | None = None,
        active_stem_ids: Sequence[int] | None = None,
        *,
        return_loss_breakdown: bool = False,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]: ...

    def forward(
        self,
        raw_audio: Tensor,
        target: Tensor | None = None,
        active_stem_ids: Sequence[int] | None = None,
        *,
        return_loss_breakdown: bool = False,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        """Separate audio, or, given the true stems, return the loss.

        Parameters
        ----------
        raw_audio : Tensor
            The mixture, floating point, `(b, s, t)`, or `(b, t)` if mono; any length from one sample up.
        target : Tensor, default None
            The true stems, all of them; for shapes see `hunterFormsBS.bandSplit.lossComputation`.
        active_stem_ids : sequence of int, default None
            Run only these stems' heads, in this order; None: all.
        return_loss_breakdown : bool
            Return the two terms of the loss as well.

        Returns
        -------
        Tensor or (Tensor, (Tensor, Tensor))
            Without `target` stems, `(b, n, s, t)`, float32 or better. With `target` the loss, or the loss and its
            waveform term and spectral term, the latter before weighting.

        Raises
        ------
        TypeError, ValueError
            If the input does not fit, before anything is computed.
        """
        audio = check_audio(raw_audio, self.audio_channels)
        stem_ids = check_stem_ids(active_stem_ids, self.num_stems)
        if target is not None:
            check_target(target, audio, self.num_stems)
            if not self.match_input_audio_length:
                check_length(audio, self.stft.parameters)

        spectrum = self.stft.forward(audio)
        spectra = self.mask_spectrum(spectrum, stem_ids)
        length = audio.shape[-1]
        recon_audio = self.stft.inverse(spectra, length if self.match_input_audio_length else None)

        if target is None:
            return recon_audio
        return lossComputation(
            recon_audio, target, stem_ids, self.multi_stft, return_loss_breakdown=return_loss_breakdown
        )

    def mask_spectrum(self, spectrum: Tensor, stem_ids: Sequence[int] | None = None) -> Tensor:
        """Estimate and apply masks: everything between the two STFTs, in real numbers.

        Parameters
        ----------
        spectrum : Tensor
            `(b, s, f, t, c)`, from `self.stft.forward`.
        stem_ids : sequence of int, default None
            Stems to estimate; None: all.

        Returns
        -------
        Tensor
            The stems' spectra, `(b, n, s, f, t, c)`.
        """
        stem_ids = range(self.num_stems) if stem_ids is None else stem_ids
        bands = self.gather_bands(spectrum)
        tokens = self.split_bands(bands)
        tokens = self.transform(tokens)
        band_masks = self.estimate_masks(tokens, stem_ids)
        mask = self.average_overlaps(band_masks)
        return self.apply_mask(spectrum, mask)

    def gather_bands(self, spectrum: Tensor) -> Tensor:
        """Concatenate the bins of all bands: `(b, s, f, t, c)` to `(b, t, bins of all bands × s × c)`."""
        frames = self.bins.gather(rearrange(spectrum, "b s f t c -> b t f s c"))
        return rearrange(frames, "b t f s c -> b t (f s c)")

    def split_bands(self, bands: Tensor) -> Tensor:
        """Make one token of each band of each frame: `(b, t, band, d)`."""
        # Not from `parameters()`, which is empty in the replicas of nn.DataParallel.
        norms = [module for module in self.band_split.modules() if isinstance(module, RMSNorm)]
        if norms:
            # Widened for float64, never narrowed before the norm: a loud song's spectrum exceeds float16.
            bands = bands.to(torch.promote_types(bands.dtype, norms[0].gamma.dtype))
        split = checkpointed(self.band_split) if self.use_torch_checkpoint else self.band_split
        return split(bands)

    def transform(self, x: Tensor) -> Tensor:
        """Run all layer groups on tokens `(b, t, band, d)`: attention along time and along frequency in turn."""
        if self.siamese:
            return run_siamese(self.layers, x, self.final_norm)
        if self.sink_tokens is not None:
            x = torch.cat((self.sink_tokens.to(x.dtype).expand(len(x), -1, -1, -1), x), dim=1)
        x = expand_streams(x, self.num_residual_streams)
        batch, frames, bands, _ = x.shape
        first_values: dict[str, Tensor | None] = {}
        earlier: list[Tensor] = []
        for group in nested(self.layers):
            for axis, transformer in zip(self.axes, group, strict=True):
                if axis == "time":
                    x = sum(earlier, start=x)
                # From here x is a transposed view; the transformer's first layer reads it as it is.
                sequences = rearrange(x, f"b t f d -> {SEQUENCES[axis]}")
                sequences, values = transformer(sequences, first_values.get(axis))
                first_values.setdefault(axis, values)
                x = rearrange(sequences, f"{SEQUENCES[axis]} -> b t f d", b=batch, t=frames, f=bands)
            if self.skip_connection:
                earlier.append(x)
        x = reduce_streams(x, self.num_residual_streams)
        if self.sink_tokens is not None:
            x = x[:, len(self.sink_tokens) :]
        return self.final_norm(x)

    def estimate_masks(self, x: Tensor, stem_ids: Sequence[int]) -> Tensor:
        """Turn tokens `(b, t, band, d)` into masks `(b, n, t, bins of all bands, s, c)`, float32 or better."""
        estimators = [self.mask_estimators[stem_id] for stem_id in stem_ids]
        masks = masks_of_stems(estimators, x, self.use_torch_checkpoint)
        mask = rearrange(masks, "b n t (f s c) -> b n t f s c", s=self.audio_channels, c=2)
        return mask.to(at_least_float32(mask.dtype))

    def average_overlaps(self, band_masks: Tensor) -> Tensor:
        """Average the masks of all bands at each bin: `(b, n, t, bins of all bands, s, c)` to `(b, n, t, f, s, c)`."""
        return self.bins.average(band_masks)

    def apply_mask(self, spectrum: Tensor, mask: Tensor) -> Tensor:
        """Multiply the spectrum, `(b, s, f, t, c)`, by complex masks, `(b, n, t, f, s, c)`: `(b, n, s, f, t, c)`."""
        factor = rearrange(mask, "b n t f s c -> b n s t f c")
        spectra = complex_product(rearrange(spectrum, "b s f t c -> b 1 s t f c"), factor)
        if self.zero_dc:
            spectra[..., 0, :] = 0
        return rearrange(spectra, "b n s t f c -> b n s f t c")

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state dict, with copies of the frequencies that layers share under all names but the first.

        So `safetensors.torch.save_file`, which refuses tensors that share memory, can write it. Trained tensors share
        memory with the parameters, as in every module of PyTorch, so a state dict follows the model during training.
        With `keep_vars=True` frequencies do too.
        """
        state = cast("dict[str, Tensor]", super().state_dict(*args, **kwargs))
        if not kwargs.get("keep_vars", False):
            seen: set[nn.Module] = set()
            prefix = kwargs.get("prefix", "").removesuffix(".")
            modules = cast("Iterable[tuple[str, nn.Module]]", self.named_modules(None, prefix, remove_duplicate=False))
            for name, module in modules:
                if isinstance(module, PositionEmbedding):
                    key = f"{name}.{module.frequencies}"
                    if module in seen and key in state:
                        state[key] = state[key].clone()
                    seen.add(module)
        return state

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if misfit := explain_misfit(state_dict, prefix, self._configuration):
            raise RuntimeError(misfit)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # pyright: ignore[reportUnknownMemberType]

    def __getstate__(self) -> dict[str, Any]:
        """Leave compiled methods, such as `mask_spectrum`, out of copies and pickles."""
        return without_compiled_methods(self)

    if TYPE_CHECKING:
        __call__ = forward


def share_biases_again(model: nn.Module, _incompatible_keys: object) -> None:
    """Share biases after loading: `assign=True` gives every layer its own parameters."""
    cast(BandSplitRotator, model).share_biases()
