"""What a model refuses, with the value received and the remedy.

The band layout is checked where it is resolved, in `hunterFormsBS.blocks.layout`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from operator import index
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hunterFormsBS.printable import printable, short_repr
from hunterFormsBS.theTypes import FlashAttentionConfig, ParametersSTFT, WindowFunction
from hunterFormsBS.variantChecks import check_variants

OPTIONAL = (
    "ff_mult",
    "mask_estimator_depth",
    "mc_hyper_conn_sinkhorn_iters",
    "num_residual_fracs",
    "segm_hyperace_k",
    "segm_hyperace_l",
    "segm_num_hyperedges",
    "wsa_window_len",
)
"""Integers that may be None, for the default."""

POSITIVE = (
    "conv_expansion_factor",
    "conv_kernel_size",
    "dim",
    "depth",
    "dim_freqs_in",
    "dim_head",
    "ff_mult",
    "heads",
    "mask_transformer_dim_head",
    "mask_fno_depth",
    "mask_transformer_heads",
    "mc_hyper_conn_sinkhorn_iters",
    "mlp_expansion_factor",
    "multi_stft_hop_size",
    "num_residual_fracs",
    "num_residual_streams",
    "num_stems",
    "segm_base_depth",
    "segm_hyperace_k",
    "segm_hyperace_l",
    "segm_num_heads",
    "segm_num_hyperedges",
    "stft_hop_length",
    "stft_n_fft",
    "stft_win_length",
    "wsa_window_len",
)

NOT_NEGATIVE = (
    "freq_conformer_depth",
    "freq_transformer_depth",
    "linear_transformer_depth",
    "mask_estimator_depth",
    "mask_fno_modes",
    "mask_transformer_depth",
    "n_wsa_sinks",
    "time_conformer_depth",
    "time_transformer_depth",
)

BOOLEANS = (
    "match_input_audio_length",
    "multi_stft_normalized",
    "sage_attention",
    "residual_in_first_group_only",
    "siamese",
    "skip_connection",
    "stereo",
    "stft_normalized",
    "use_hyperACE",
    "use_pope",
    "use_rotary_pos",
    "use_shared_bias",
    "use_torch_checkpoint",
    "use_value_residual_learning",
)

OPTIONAL_BOOLEANS = ("final_norm", "norm_output", "zero_dc")
"""Booleans that may be None, for the default of the layout."""

LARGEST = 2**20
"""The largest integer of any argument: features, layers, samples. Beyond it memory would run out, or counting."""

MOST = {
    "conv_expansion_factor": 64,
    "conv_kernel_size": 65535,
    "depth": 256,
    "dim": 65536,
    "dim_head": 65536,
    "ff_mult": 1024,
    "freq_conformer_depth": 64,
    "freq_transformer_depth": 64,
    "heads": 4096,
    "linear_transformer_depth": 64,
    "mask_estimator_depth": 64,
    "mask_fno_depth": 64,
    "mask_fno_modes": 65536,
    "mask_transformer_depth": 64,
    "mask_transformer_dim_head": 4096,
    "mask_transformer_heads": 4096,
    "mc_hyper_conn_sinkhorn_iters": 1000,
    "mlp_expansion_factor": 1024,
    "n_wsa_sinks": 4096,
    "num_residual_fracs": 256,
    "num_residual_streams": 256,
    "num_stems": 256,
    "segm_base_depth": 64,
    "segm_hyperace_k": 64,
    "segm_hyperace_l": 64,
    "segm_num_heads": 1024,
    "segm_num_hyperedges": 4096,
    "time_conformer_depth": 64,
    "time_transformer_depth": 64,
}
"""The largest values of arguments that count parts of a model, far above any that is of use."""

MOST_PARAMETERS = 2**33
"""Parameters of a model, which are 34 GB in float32."""

_LARGEST_FLOAT32 = torch.finfo(torch.float32).max
_SMALLEST_FLOAT32 = torch.finfo(torch.float32).tiny
_LEAST_POWER = 1e-11
"""Below this PyTorch's inverse transform refuses the sum of squared windows."""


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse constructor arguments of `BandSplitRotator` that are out of range or contradict one another.

    Raises
    ------
    TypeError, ValueError
        With the argument, its value and what to pass instead.
    """
    for name in BOOLEANS + OPTIONAL_BOOLEANS:
        _check_boolean(name, arguments[name])
    if not isinstance(arguments["flash_attn"], (bool, FlashAttentionConfig)):
        raise TypeError(f"flash_attn={short_repr(arguments['flash_attn'])} is no boolean: pass True or False.")
    for name in POSITIVE:
        _check_integer(name, arguments[name], lowest=1)
    for name in NOT_NEGATIVE:
        _check_integer(name, arguments[name], lowest=0)
    for name in ("attn_dropout", "ff_dropout"):
        _check_number(name, arguments[name])
        if not 0 <= arguments[name] < 1:
            raise ValueError(
                f"{name}={arguments[name]} is no probability, or drops everything: pass a number from 0 to less than 1."
            )
    if arguments["scale"] is not None:
        _check_number("scale", arguments["scale"])
        if not _SMALLEST_FLOAT32 <= arguments["scale"] <= _LARGEST_FLOAT32:
            raise ValueError(
                f"scale={short_repr(arguments['scale'])} is not positive in float32: leave it out for dim_head ** -0.5."
            )
    refuse_tensors(arguments)
    _check_stft(arguments)
    _check_combinations(arguments)
    check_variants(arguments)
    _check_size(arguments)


def refuse_tensors(arguments: Mapping[str, Any]) -> None:
    """Refuse tensors, which cannot even be compared with a number, except for a dense filter bank with content."""
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            dense = value.layout == torch.strided and not value.is_nested and not value.is_meta
            if name != "mask_filter_bank" or not dense:
                wanted = "a dense tensor with content" if name == "mask_filter_bank" else "a plain value"
                raise TypeError(f"{name} is a tensor of layout {value.layout} on {value.device}: pass {wanted}.")


def _check_boolean(name: str, value: object) -> None:
    if not isinstance(value, bool) and not (value is None and name in OPTIONAL_BOOLEANS):
        raise TypeError(f"{name}={short_repr(value)} is no boolean: pass True or False, without quotes.")


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={short_repr(value)} is no number: pass one such as 0.1.")


def _check_integer(name: str, value: object, *, lowest: int) -> None:
    if value is None and name in OPTIONAL:
        return
    try:
        number = index(value)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise TypeError(f"{name}={short_repr(value)} is not an integer: pass one of at least {lowest}.") from None
    if isinstance(value, bool) or number < lowest:
        raise ValueError(f"{name}={short_repr(value)} is out of range: pass an integer of at least {lowest}.")
    most = MOST.get(name, LARGEST)
    if number > most:
        raise ValueError(f"{name}={short_repr(value)} is out of range: pass an integer of at most {most}.")


def _check_stft(arguments: Mapping[str, Any]) -> None:
    n_fft, window, hop = (arguments[name] for name in ("stft_n_fft", "stft_win_length", "stft_hop_length"))
    if window > n_fft:
        raise ValueError(f"stft_win_length={window} exceeds stft_n_fft={n_fft}: a window must fit in a frame.")
    if hop > window:
        raise ValueError(
            f"stft_hop_length={hop} exceeds stft_win_length={window}: samples between windows would be lost. A "
            "quarter of the window is usual."
        )
    for name in ("stft_window_fn", "multi_stft_window_fn"):
        if not callable(arguments[name]):
            raise TypeError(f"{name}={short_repr(arguments[name])} is no function: pass one such as torch.hann_window.")
    _check_overlap(arguments["stft_window_fn"], window, hop)
    bins = n_fft // 2 + 1
    if arguments["dim_freqs_in"] != bins:
        warnings.warn(
            f"dim_freqs_in={arguments['dim_freqs_in']} disagrees with stft_n_fft={n_fft}, which has {bins} frequency "
            f"bins. {bins} is used: pass dim_freqs_in={bins}.",
            stacklevel=5,
        )
    name = "multi_stft_resolutions_window_sizes"
    sizes: object = arguments[name]
    if isinstance(sizes, (str, Tensor)) or not isinstance(sizes, Sequence) or not sizes:
        raise ValueError(
            f"{name}={short_repr(arguments[name])} names no window size: pass a sequence of sample counts, and "
            "multi_stft_resolution_loss_weight=0 for a loss on waveforms alone."
        )
    for size in sizes:  # pyright: ignore[reportUnknownVariableType]
        _check_integer("multi_stft_resolutions_window_sizes: window size", size, lowest=1)  # pyright: ignore[reportUnknownArgumentType]
    weight = arguments["multi_stft_resolution_loss_weight"]
    _check_number("multi_stft_resolution_loss_weight", weight)
    if not 0 <= weight <= _LARGEST_FLOAT32:
        raise ValueError(
            f"multi_stft_resolution_loss_weight={short_repr(weight)} is negative or not finite in float32: the loss "
            "would reward wrong spectra, or be no number. Pass a number of at least 0, usually 1."
        )


def _check_overlap(window_function: WindowFunction, window: int, hop: int) -> None:
    """Refuse a hop at which some sample is under no window, so that no spectrum tells what it was."""
    with torch.device("cpu"):
        samples = window_function(window).detach().double()
    if samples.device.type != "cpu" or samples.shape != (window,):
        return  # the layer that makes the transform says what is wrong with it
    # The sum over windows of what falls on one sample, which repeats after each hop.
    power = F.pad(samples.square(), (0, -window % hop)).reshape(-1, hop).sum(dim=0)
    if not float(power.min()) > _LEAST_POWER:
        name = getattr(window_function, "__name__", "the window")
        raise ValueError(
            f"stft_hop_length={hop} with stft_win_length={window} leaves samples that {printable(name, 60)} weights "
            f"with 0, which no inverse of the transform can restore: pass at most {max(1, window // 4)}, a quarter of "
            "the window."
        )


def _check_combinations(arguments: Mapping[str, Any]) -> None:
    if arguments["use_value_residual_learning"]:
        if arguments["depth"] == 1:
            raise ValueError(
                "use_value_residual_learning=True with depth=1: layer groups after the first mix their values with the "
                "first's, and there are none. Pass a depth of at least 2."
            )
    elif arguments["learned_value_residual_mix"] is not None:
        raise ValueError(
            f"learned_value_residual_mix={short_repr(arguments['learned_value_residual_mix'])} without "
            "use_value_residual_learning=True: there is nothing to mix. Pass both or neither."
        )
    if arguments["learned_value_residual_mix"] not in (None, True, False, "swapped", "swapped_everywhere"):
        raise ValueError(
            f"learned_value_residual_mix={short_repr(arguments['learned_value_residual_mix'])} is none of True, False, "
            "'swapped' and 'swapped_everywhere'."
        )
    if arguments["skip_connection"] and arguments["depth"] == 1:
        raise ValueError(
            "skip_connection=True with depth=1: there is no earlier layer group to add. Pass a depth of at least 2."
        )
    fracs = arguments["num_residual_fracs"] or 1
    if arguments["dim"] % fracs:
        raise ValueError(
            f"dim={arguments['dim']} is not a multiple of num_residual_fracs={fracs}, which divides the features."
        )
    if arguments["mc_hyper_conn_sinkhorn_iters"] is not None and fracs == arguments["num_residual_streams"] == 1:
        raise ValueError(
            f"mc_hyper_conn_sinkhorn_iters={arguments['mc_hyper_conn_sinkhorn_iters']} constrains how residual streams "
            "mix, and there is one: pass num_residual_streams or num_residual_fracs above 1, or leave it out."
        )
    if arguments["sage_attention"] and not arguments["flash_attn"]:
        raise ValueError(
            "sage_attention=True with flash_attn=False asks for a fused kernel and for none: pass one of them."
        )
    if arguments["dim_head"] % 2 and not arguments["use_pope"]:
        raise ValueError(
            f"dim_head={arguments['dim_head']} is odd, and rotary embeddings turn pairs of features: make it even, or "
            "pass use_pope=True."
        )


def _check_size(arguments: Mapping[str, Any]) -> None:
    """Refuse a model that no memory would hold, by a low estimate of its parameters."""
    dim, depth, stems = (arguments[name] for name in ("dim", "depth", "num_stems"))
    kinds = ("linear_transformer", "time_transformer", "freq_transformer", "time_conformer", "freq_conformer")
    layers = depth * sum(arguments[f"{kind}_depth"] for kind in kinds)
    layer = dim * (4 * arguments["heads"] * arguments["dim_head"] + 2 * (arguments["ff_mult"] or 4) * dim)
    hidden = arguments["mask_estimator_depth"]
    head = (1 if hidden is None else hidden) * arguments["mlp_expansion_factor"] * dim * dim
    parameters = layers * layer + stems * head
    if parameters > MOST_PARAMETERS:
        raise ValueError(
            f"dim={dim}, depth={depth}, heads={arguments['heads']}, dim_head={arguments['dim_head']} and "
            f"num_stems={stems} make a model of more than {parameters:.1e} parameters, and at most "
            f"{MOST_PARAMETERS:.1e} are built: pass smaller ones."
        )


def check_audio(raw_audio: Tensor, audio_channels: int) -> Tensor:
    """Return the mixture as `(b, s, t)`, or refuse it."""
    kind = "stereo=True: pass (b, 2, t)" if audio_channels == 2 else "stereo=False: pass (b, t) or (b, 1, t)"
    if not isinstance(raw_audio, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"raw_audio is a {type(raw_audio).__name__}: pass a tensor.")
    if not raw_audio.is_floating_point():
        raise TypeError(f"raw_audio has dtype {raw_audio.dtype}: pass floating point samples, full scale being ±1.")
    audio = raw_audio[:, None] if raw_audio.ndim == 2 else raw_audio
    if audio.ndim != 3 or audio.shape[1] != audio_channels:
        raise ValueError(f"raw_audio has shape {tuple(raw_audio.shape)}, and the model has {kind}.")
    if 0 in audio.shape:
        raise ValueError(f"raw_audio is empty, shape {tuple(raw_audio.shape)}: pass at least one sample.")
    return audio


def check_length(audio: Tensor, stft: ParametersSTFT) -> None:
    """Refuse to compare songs with estimates that are longer, because less than half a frame was filled up."""
    half, hop, length = stft.stft_n_fft // 2 + 1, stft.stft_hop_length, audio.shape[-1]
    if length < half and half // hop * hop > length:
        raise ValueError(
            f"raw_audio has {length} samples, and with match_input_audio_length=False the estimate of so short a song "
            f"is longer than its target: pass at least {half} samples, or build the model with "
            "match_input_audio_length=True."
        )


def check_stem_ids(active_stem_ids: Sequence[int] | None, num_stems: int) -> list[int]:
    """Return the stems to estimate as a list, all of them for None, or refuse the choice."""
    if active_stem_ids is None:
        return list(range(num_stems))
    try:
        if any(isinstance(stem_id, bool) for stem_id in active_stem_ids):
            raise TypeError
        stem_ids = [index(stem_id) for stem_id in active_stem_ids]
    except TypeError:
        raise TypeError(
            f"active_stem_ids={short_repr(active_stem_ids)}: pass a list of stem numbers, such as [0]."
        ) from None
    if not stem_ids:
        raise ValueError("active_stem_ids is empty: name at least one stem, or pass None for all.")
    if len(set(stem_ids)) < len(stem_ids):
        raise ValueError(f"active_stem_ids={stem_ids} names a stem twice.")
    if not all(0 <= stem_id < num_stems for stem_id in stem_ids):
        raise ValueError(
            f"active_stem_ids={stem_ids}: the model's {num_stems} stems are numbered 0 to {num_stems - 1}."
        )
    return stem_ids


def check_target(target: Tensor, audio: Tensor, num_stems: int) -> None:
    """Refuse true stems that do not fit the mixture `audio`, `(b, s, t)`."""
    batch, channels, length = audio.shape
    shapes: list[tuple[int, ...]] = [(batch, num_stems, channels)]
    if num_stems == 1:
        shapes.append((batch, channels))
        if channels == 1:
            shapes.append((batch,))
    accepted = " or ".join(f"({', '.join(map(str, shape))}, {length})" for shape in shapes)
    if not isinstance(target, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"target is a {type(target).__name__}: pass a tensor.")
    if not target.is_floating_point():
        raise TypeError(f"target has dtype {target.dtype}: pass floating point samples.")
    if tuple(target.shape[:-1]) not in shapes or target.shape[-1] < length:
        raise ValueError(
            f"target has shape {tuple(target.shape)}: for this mixture and num_stems={num_stems} pass {accepted}, "
            "every stem of the model, also those left out of active_stem_ids."
        )


def explain_misfit(state_dict: Mapping[str, Any], prefix: str, arguments: Mapping[str, Any]) -> str | None:
    """Say which constructor arguments would make the mask estimators of a state dict fit, None if they do.

    Parameters
    ----------
    state_dict : mapping
        Upstream keys, under `prefix`.
    arguments : mapping
        The model's `num_stems`, `mask_estimator_depth`, `mlp_expansion_factor` and `dim`.
    """
    pattern = re.compile(re.escape(prefix) + r"mask_estimators\.(\d+)\.to_freqs\.0\.0\.(\d+)\.weight")
    found = {(int(m[1]), int(m[2])): state_dict[m[0]] for m in map(pattern.fullmatch, state_dict) if m}
    if not found:
        return None
    wanted = {
        "mask_estimator_depth": max(layer for _, layer in found) // 2,
        "num_stems": 1 + max(stem for stem, _ in found),
    }
    first_layer = found[min(found)]
    if wanted["mask_estimator_depth"] and first_layer.shape[1] == arguments["dim"]:
        wanted["mlp_expansion_factor"] = first_layer.shape[0] // arguments["dim"]
    mine = {name: 1 if arguments[name] is None else arguments[name] for name in wanted}
    misfits = {name: value for name, value in wanted.items() if mine[name] != value}
    if not misfits:
        return None
    remedy = ", ".join(f"{name}={value}" for name, value in misfits.items())
    present = ", ".join(f"{name}={mine[name]}" for name in misfits)
    return (
        f"This state dict needs a model built with {remedy}; this one has {present}.\n"
        "mask_estimator_depth counts hidden layers here, one less than in upstream BS-RoFormer configurations and the "
        "same as in upstream Mel-Band RoFormer ones; hunterFormsBS.checkpoint.from_checkpoint translates."
    )
