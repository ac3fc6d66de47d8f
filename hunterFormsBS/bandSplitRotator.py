"""The model: one class for BS-RoFormer, Mel-Band RoFormer and every other band layout."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import torch
from einops import rearrange
from torch import Tensor, nn

from hunterFormsBS.bandSplit import DEFAULT_FREQS_PER_BANDS, BandSplit, MaskEstimator, lossComputation, masks_of_stems
from hunterFormsBS.blocks.bins import Bins
from hunterFormsBS.blocks.layerGroups import SEQUENCES, layer_groups
from hunterFormsBS.blocks.layout import is_overlapping, resolve_mask_filter_bank
from hunterFormsBS.blocks.norm import RMSNorm, at_least_float32
from hunterFormsBS.blocks.positions import complex_product
from hunterFormsBS.blocks.recompute import checkpointed
from hunterFormsBS.blocks.residual import expand_streams, reduce_streams
from hunterFormsBS.blocks.spectrum import SpectralTransform
from hunterFormsBS.blocks.valueResidual import LearnedValueResidualMix, mixes_of_axes
from hunterFormsBS.checks import check_arguments, check_audio, check_stem_ids, check_target, explain_misfit
from hunterFormsBS.kernels.seam import without_compiled_methods
from hunterFormsBS.signature import explained
from hunterFormsBS.theTypes import (
    FlashAttentionConfig,
    ParametersAttention,
    ParametersComputeLoss,
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

    Parameters
    ----------
    dim : int
        Features of a token.
    depth : int
        Layer groups, each a linear (if any), a time and a frequency transformer.
    attn_dropout, ff_dropout : float
        Dropout probabilities of attention and feedforward, in [0, 1).
    dim_freqs_in : int
        Frequency bins as older configurations state them. `stft_n_fft // 2 + 1` is used, and a warning says so when
        they differ.
    dim_head, heads : int
        Features of an attention head, and heads.
    ff_mult : int, optional
        Hidden features of the feedforward, in multiples of `dim`; 4 by default.
    final_norm, norm_output, zero_dc : bool, optional
        Normalise after all layer groups; normalise after each transformer; silence the 0 Hz bin. Unless given they are
        False, True, False where bands overlap and True, False, True where they do not, as in the upstream models.
    flash_attn, sage_attention, scale
        See `hunterFormsBS.attend.Attend`. `scale` is `dim_head ** -0.5` by default.
    freq_range : (int, int), optional
        First bin, and the bin after the last, to separate; -1 leaves an end open. Other bins come out silent.
    freqs_per_bands : sequence of int
        Bins in each band, for bands that do not overlap. Used unless one of the other two layouts is given.
    learned_value_residual_mix : bool or {'swapped', 'swapped_everywhere'}, optional
        True or None: value residuals are mixed by a learned factor. False: halfway. 'swapped': as upstream's Mel models
        mix them in softmax attention (see `hunterFormsBS.blocks.valueResidual.mix_values`); 'swapped_everywhere': in
        linear attention too, as their versions before 1.0 did. Needs `use_value_residual_learning`.
    linear_transformer_depth, time_transformer_depth, freq_transformer_depth : int
        Attention and feedforward pairs in the transformers of a layer group. The linear one attends across all tokens
        at once and may be 0 deep.
    mask_estimator_depth : int, optional
        Hidden layers of a mask estimator; 1 by default. BS-RoFormer upstream counts one more.
    mask_filter_bank : Tensor, optional
        Boolean `(band, f)`: which bins belong to which band. Bands may overlap.
    match_input_audio_length : bool
        Return as many samples as came in. False: a multiple of the hop length.
    mc_hyper_conn_sinkhorn_iters, num_residual_fracs, num_residual_streams
        See `hunterFormsBS.blocks.residual.residual_wrapper`.
    mlp_expansion_factor : int
        Hidden features of a mask estimator, in multiples of `dim`.
    multi_stft_hop_size, multi_stft_normalized, multi_stft_resolution_loss_weight, \
    multi_stft_resolutions_window_sizes, multi_stft_window_fn
        See `hunterFormsBS.theTypes.ParametersComputeLoss`.
    num_bands : int, optional
        Bands of a mel layout, with `sample_rate`; otherwise a check of the layout given.
    num_stems : int
        Stems to estimate.
    sample_rate : float, optional
        Hz. With `num_bands`: mel layout, unless `mask_filter_bank` is given.
    skip_connection : bool
        Add the outputs of all earlier layer groups before a group's time transformer.
    stereo : bool
        Two audio channels instead of one.
    stft_hop_length, stft_n_fft, stft_normalized, stft_win_length, stft_window_fn
        See `hunterFormsBS.theTypes.ParametersSTFT`.
    use_pope : bool
        Polar instead of rotary position embedding; see `hunterFormsBS.blocks.positions`.
    use_torch_checkpoint : bool
        Activation checkpointing: less memory for a second forward pass in training.
    use_value_residual_learning : bool
        Mix values of later layer groups with those of the first; see `hunterFormsBS.blocks.valueResidual.mix_values`.

    Attributes
    ----------
    configuration : dict
        The arguments, such that `type(model)(**model.configuration)` is the same model with new weights.
    mask_filter_bank : Tensor
        Boolean `(band, f)`, on the device of the model. No buffer: averages over buffers would refuse or truncate it.

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
        dim_freqs_in: int = 1025,
        dim_head: int = 64,
        ff_dropout: float = 0.0,
        ff_mult: int | None = None,
        final_norm: bool | None = None,
        flash_attn: bool | FlashAttentionConfig = True,
        freq_range: tuple[int, int] | None = None,
        freq_transformer_depth: int = 2,
        freqs_per_bands: Sequence[int] = DEFAULT_FREQS_PER_BANDS,
        heads: int = 8,
        learned_value_residual_mix: LearnedValueResidualMix | None = None,
        linear_transformer_depth: int = 0,
        mask_estimator_depth: int | None = None,
        mask_filter_bank: Tensor | None = None,
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
        num_stems: int = 1,
        sage_attention: bool = False,
        sample_rate: float | None = None,
        scale: float | None = None,
        skip_connection: bool = False,
        stereo: bool = False,
        stft_hop_length: int = 512,
        stft_n_fft: int = 2048,
        stft_normalized: bool = False,
        stft_win_length: int = 2048,
        stft_window_fn: WindowFunction = torch.hann_window,
        time_transformer_depth: int = 2,
        use_pope: bool = False,
        use_torch_checkpoint: bool = False,
        use_value_residual_learning: bool = False,
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
        self.skip_connection = skip_connection
        self.stereo = stereo
        self.use_torch_checkpoint = use_torch_checkpoint

        layout = resolve_mask_filter_bank(
            num_freqs=stft_n_fft // 2 + 1,
            stft_n_fft=stft_n_fft,
            mask_filter_bank=mask_filter_bank,
            sample_rate=sample_rate,
            num_bands=num_bands,
            freqs_per_bands=freqs_per_bands,
            freq_range=freq_range,
        )
        overlapping = is_overlapping(layout)
        self.zero_dc = not overlapping if zero_dc is None else zero_dc
        self.layout = layout
        self.bins = Bins(layout)

        self.stft = SpectralTransform(
            ParametersSTFT(stft_n_fft, stft_hop_length, stft_win_length, stft_normalized, stft_window_fn)
        )
        self.multi_stft = ParametersComputeLoss(
            stft_n_fft=stft_n_fft,
            multi_stft_hop_size=multi_stft_hop_size,
            multi_stft_normalized=multi_stft_normalized,
            multi_stft_resolution_loss_weight=multi_stft_resolution_loss_weight,
            multi_stft_resolutions_window_sizes=multi_stft_resolutions_window_sizes,
            multi_stft_window_fn=multi_stft_window_fn,
        )

        # Parameters are registered in upstream's order: optimizer states go by their positions.
        axis_depths = {
            "linear": linear_transformer_depth,
            "time": time_transformer_depth,
            "frequency": freq_transformer_depth,
        }
        self.axes = tuple(axis for axis, axis_depth in axis_depths.items() if axis_depth)
        self.layers = layer_groups(
            dim,
            ParametersTransformer(
                ParametersAttention(heads, dim_head, attn_dropout, flash_attn, sage_attention, scale),
                ParametersResidual(num_residual_streams, num_residual_fracs or 1, mc_hyper_conn_sinkhorn_iters),
                ff_mult=4 if ff_mult is None else ff_mult,
                ff_dropout=ff_dropout,
                norm_output=overlapping if norm_output is None else norm_output,
                use_torch_checkpoint=use_torch_checkpoint,
            ),
            depth=depth,
            axis_depths=axis_depths,
            use_pope=use_pope,
            mixes=mixes_of_axes(use_value_residual_learning, learned_value_residual_mix),
        )
        has_final_norm = not overlapping if final_norm is None else final_norm
        self.final_norm = RMSNorm(dim) if has_final_norm else nn.Identity()
        dim_inputs = [2 * self.audio_channels * int(band.sum()) for band in layout]
        self.band_split = BandSplit(dim, dim_inputs)
        self.mask_estimators = nn.ModuleList(
            MaskEstimator(
                dim,
                dim_inputs,
                mask_estimator_depth=1 if mask_estimator_depth is None else mask_estimator_depth,
                mlp_expansion_factor=mlp_expansion_factor,
            )
            for _stem in range(num_stems)
        )

    def reset_parameters(self) -> None:
        """Initialise every parameter, for a model that `to_empty` has left without content."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()

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
        """Separate audio, or, given the stems, return how far the estimates are from them.

        Parameters
        ----------
        raw_audio : Tensor
            The mixture, floating point, `(b, s, t)`, or `(b, t)` if mono; any length from one sample up.
        target : Tensor, optional
            The true stems, all of them; for shapes see `hunterFormsBS.bandSplit.lossComputation`.
        active_stem_ids : sequence of int, optional
            Run only these stems' heads, in this order; all by default.
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
            For input that does not fit, before anything is computed.
        """
        audio = check_audio(raw_audio, self.audio_channels)
        stem_ids = check_stem_ids(active_stem_ids, self.num_stems)
        if target is not None:
            check_target(target, audio, self.num_stems)

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
        stem_ids : sequence of int, optional
            Stems to estimate; all by default.

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
        """Line up the bins of every band: `(b, s, f, t, c)` to `(b, t, bins of all bands × s × c)`."""
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
        return cast(Tensor, split(bands))

    def transform(self, x: Tensor) -> Tensor:
        """Run all layer groups on tokens `(b, t, band, d)`: attention along time and along frequency in turn."""
        x = expand_streams(x, self.num_residual_streams)
        batch, frames, bands, _ = x.shape
        first_values: dict[str, Tensor | None] = {}
        earlier: list[Tensor] = []
        for group in self.layers:
            for axis, transformer in zip(self.axes, cast(nn.ModuleList, group), strict=True):
                if axis == "time":
                    x = sum(earlier, start=x)
                # From here x is a transposed view; the transformer's first layer reads it as it is.
                sequences = rearrange(x, f"b t f d -> {SEQUENCES[axis]}")
                sequences, values = transformer(sequences, first_values.get(axis))
                first_values.setdefault(axis, values)
                x = rearrange(sequences, f"{SEQUENCES[axis]} -> b t f d", b=batch, t=frames, f=bands)
            if self.skip_connection:
                earlier.append(x)
        return cast(Tensor, self.final_norm(reduce_streams(x, self.num_residual_streams)))

    def estimate_masks(self, x: Tensor, stem_ids: Sequence[int]) -> Tensor:
        """Turn tokens `(b, t, band, d)` into masks `(b, n, t, bins of all bands, s, c)`, float32 or better."""
        estimators = [self.mask_estimators[stem_id] for stem_id in stem_ids]
        masks = masks_of_stems(estimators, x, self.use_torch_checkpoint)
        mask = rearrange(masks, "b n t (f s c) -> b n t f s c", s=self.audio_channels, c=2)
        return mask.to(at_least_float32(mask.dtype))

    def average_overlaps(self, band_masks: Tensor) -> Tensor:
        """Give each bin the mean of its bands' masks: `(b, n, t, bins of all bands, s, c)` to `(b, n, t, f, s, c)`."""
        return self.bins.average(band_masks)

    def apply_mask(self, spectrum: Tensor, mask: Tensor) -> Tensor:
        """Multiply the spectrum, `(b, s, f, t, c)`, by complex masks, `(b, n, t, f, s, c)`: `(b, n, s, f, t, c)`."""
        factor = rearrange(mask, "b n t f s c -> b n s t f c")
        spectra = complex_product(rearrange(spectrum, "b s f t c -> b 1 s t f c"), factor)
        if self.zero_dc:
            spectra[..., 0, :] = 0
        return rearrange(spectra, "b n s t f c -> b n s f t c")

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
