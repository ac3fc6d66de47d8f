"""A model's arguments, from the keys and shapes of a state dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count, islice
from typing import Final, NamedTuple, TypeAlias

from torch import Tensor

from hunterFormsBS.checkpoint.arguments import DEFAULTS
from hunterFormsBS.checkpoint.bands import infer_bands
from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.plainKeys import to_plain_keys
from hunterFormsBS.checkpoint.recognition import Recognition, recognise
from hunterFormsBS.checkpoint.variants import VARIANTS
from hunterFormsBS.limits import MOST_DIGITS
from hunterFormsBS.options import OPTIONS, idle_options
from hunterFormsBS.printable import LISTED, list_some, short_repr
from hunterFormsBS.variantRow import Count, Present, Reading, Size, Sizes

_Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

_WITHOUT_VARIANTS: Final = {name: DEFAULTS[name] for variant in VARIANTS for name in variant.switches}


@dataclass(frozen=True, kw_only=True)
class Inferred:
    """Arguments and bands that keys and shapes determine.

    Parameters
    ----------
    arguments : dict[str, object]
        Constructor arguments of `BandSplitRotator`.
    widths : tuple[int, ...]
        Real inputs of each band: two for each of its bins and channels.
    overlapping : bool
        Whether the layers are those of a Mel-Band RoFormer.
    """

    arguments: dict[str, object]
    widths: tuple[int, ...]
    overlapping: bool


class InferredConfiguration(NamedTuple):
    """Constructor arguments of `BandSplitRotator` that a state dict determines.

    Parameters
    ----------
    arguments : dict[str, object]
        The arguments that keys and shapes determine.
    undetermined : list[str]
        The names of all others.
    """

    arguments: dict[str, object]
    undetermined: list[str]


def translate_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate the keys of a known upstream family to those of this package.

    Keys of this package, which are also Music-Source-Separation-Training's, do not change. Tensors are not copied.

    Parameters
    ----------
    state_dict : Mapping[str, Tensor]
        Keys without prefixes such as `module.`, as `read_state_dict` returns them.

    Returns
    -------
    translated : dict[str, Tensor]

    Raises
    ------
    CheckpointError
        If keys are unknown; the message lists them.
    """
    return to_plain_keys(state_dict, recognise(state_dict)).state_dict


def infer_configuration(state_dict: Mapping[str, Tensor]) -> InferredConfiguration:
    """Return the constructor arguments that the keys and shapes of a state dict determine.

    Arguments follow this package's convention. Bands are assumed to cover all bins, because a state dict does not show
    a `freq_range`. Mono and stereo are distinguished by the number of bins, which is odd for every `stft_n_fft` that is
    a multiple of four.

    Parameters
    ----------
    state_dict : Mapping[str, Tensor]
        Of any known family.

    Returns
    -------
    inferred : InferredConfiguration
        The arguments, and the names of those that are not determined.

    Raises
    ------
    CheckpointError
        If keys are unknown, or if parts of a model are missing.
    """
    recognition = recognise(state_dict)
    arguments = infer(to_plain_keys(state_dict, recognition).state_dict, recognition).arguments
    of_nothing = {"dim_freqs_in"} | idle_options(arguments)
    undetermined = [name for name in DEFAULTS if name not in arguments and name not in of_nothing]
    return InferredConfiguration(arguments, undetermined)


def infer(state_dict: Mapping[str, Tensor], recognition: Recognition) -> Inferred:
    """Return what keys and shapes of a recognised model, with this package's keys, determine."""
    shapes = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    bands = _count(shapes, r"band_split\.to_features\.(\d+)\.", "bands")
    weights = [_shape(shapes, f"band_split.to_features.{band}.1.weight", axes=2) for band in range(bands)]
    widths = tuple(width for _, width in weights)
    norm_output = any(re.fullmatch(r"layers\.\d+\.\d+\.norm\.gamma", key) for key in shapes)
    final_norm = "final_norm.gamma" in shapes
    has_no_norms = any(variant.defaults.get("norm_output") is False for variant in recognition.variants)
    overlapping = not final_norm and (norm_output or has_no_norms)
    arguments: dict[str, object] = {
        **_WITHOUT_VARIANTS,
        "dim": weights[0][0],
        "final_norm": final_norm,
        "norm_output": norm_output,
        **infer_bands(widths, overlapping=overlapping),
        **_infer_layers(shapes, recognition),
        **_infer_streams(shapes),
        **_infer_mask_estimators(shapes),
    }
    for variant in reversed(recognition.variants):
        arguments |= {name: _read(reading, shapes) for name, reading in variant.readings.items()}
    arguments |= _infer_value_residual(shapes, recognition, arguments)
    idle = idle_options(arguments)
    arguments = {
        name: value for name, value in arguments.items() if name not in idle or OPTIONS[name].option.is_off(value)
    }
    return Inferred(arguments=arguments, widths=widths, overlapping=overlapping)


def _read(reading: Reading, shapes: _Shapes) -> object:
    match reading:
        case Count(pattern):
            return len({match[1] for key in shapes if (match := re.match(pattern, key))})
        case Present(pattern):
            return any(re.fullmatch(pattern, key) for key in shapes)
        case Size(pattern, axis, per, times):
            size = _size(shapes, pattern, axis)
            return size // (times * _size(shapes, per, 0)) if per else size
        case Sizes(patterns):
            return tuple(_size(shapes, pattern, 0) for pattern in patterns)
        case _:
            return reading


def _size(shapes: _Shapes, pattern: str, axis: int) -> int:
    key = next((key for key in shapes if re.fullmatch(pattern, key)), None)
    if key is None:
        raise CheckpointError(f"the state dict lacks {_readable(pattern)}: is the file complete?")
    shape = shapes[key]
    if len(shape) <= axis or 0 in shape:
        raise CheckpointError(f"{key} of the state dict has the shape {short_repr(shape)}: is the file complete?")
    return shape[axis]


def _readable(pattern: str) -> str:
    """Return a pattern as a readable key."""
    return pattern.replace(r"\d+", "0").replace("\\", "")


def _infer_layers(shapes: _Shapes, recognition: Recognition) -> dict[str, object]:
    depth = _count(shapes, r"layers\.(\d+)\.", "layer groups")
    groups = _count(shapes, r"layers\.0\.(\d+)\.", "transformers of layers.0")
    if groups not in (2, 3):
        raise CheckpointError(
            f"layers.0 has {groups} transformers, but a time and a frequency transformer are needed, "
            "and a linear one may come before them: part of the state dict is missing"
        )
    layers = [_count(shapes, rf"layers\.0\.{group}\.layers\.(\d+)\.", "layers") for group in range(groups)]
    arguments: dict[str, object] = {"depth": depth, "linear_transformer_depth": layers[0] if groups == 3 else 0}
    replacing = {variant.layer: variant for variant in recognition.variants if variant.layer}
    for axis, group in (("time", groups - 2), ("freq", groups - 1)):
        keys = [key for key in shapes if key.startswith(f"layers.0.{group}.")]
        kinds = [kind for kind, variant in replacing.items() if any(re.search(variant.pattern, key) for key in keys)]
        arguments |= {f"{axis}_{kind}_depth": 0 for kind in ("transformer", *replacing)}
        arguments[f"{axis}_{next(iter(kinds), 'transformer')}_depth"] = layers[group]

    layer = f"layers.0.{groups - 1}.layers.0"
    block = _block(shapes, f"{layer}.attn" if f"{layer}.attn.to_qkv.weight" in shapes else f"{layer}.0")
    feed_forward = f"{layer}.ff1.ff" if f"{layer}.ff1.ff.net.1.weight" in shapes else _block(shapes, f"{layer}.1")
    heads, dim = _shape(shapes, f"{block}.to_gates.weight", axes=2)
    rows, _ = _shape(shapes, f"{block}.to_qkv.weight", axes=2)
    inner, _ = _shape(shapes, f"{feed_forward}.net.1.weight", axes=2)
    if any(key.endswith((".rotary_embed.freqs", ".pope_embed.bias")) for key in shapes):
        arguments["use_rotary_pos"] = True
    return {
        **arguments,
        "heads": heads,
        "dim_head": rows // (3 * heads),
        "ff_mult": _ratio(inner, dim),
        "use_pope": f"{block}.pope_embed.bias" in shapes,
    }


def _infer_value_residual(
    shapes: _Shapes, recognition: Recognition, arguments: Mapping[str, object]
) -> dict[str, object]:
    if not any(".to_value_residual_mix." in key for key in shapes):
        # The first layer group does not mix values.
        return {"use_value_residual_learning": False} if any(key.startswith("layers.1.") for key in shapes) else {}
    learned: dict[str, object] = {"use_value_residual_learning": True}
    if not recognition.mixes_as_mel:
        return {**learned, "learned_value_residual_mix": True}
    if arguments["linear_transformer_depth"] and "mc_hyper_conn_sinkhorn_iters" in arguments:
        return learned  # version 0.9.2 stopped swapping in linear attention, which keys do not show
    mix = recognition.of_keys.defaults.get("learned_value_residual_mix", True)
    return {**learned, "learned_value_residual_mix": mix}


def _infer_streams(shapes: _Shapes) -> dict[str, object]:
    key = next((key for key in shapes if key.endswith(".static_alpha")), None)
    if key is None:
        return {"num_residual_streams": 1, "num_residual_fracs": 1, "mc_hyper_conn_sinkhorn_iters": None}
    rows, columns = _shape(shapes, key, axes=2)  # streams · fracs, fracs + streams · fracs
    fracs = columns - rows
    if fracs < 1 or rows % fracs:
        raise CheckpointError(f"{key} has the shape ({rows}, {columns}), which no number of residual streams explains")
    arguments: dict[str, object] = {"num_residual_streams": rows // fracs, "num_residual_fracs": fracs}
    if _sibling(key, "h_post_scale") not in shapes:
        arguments["mc_hyper_conn_sinkhorn_iters"] = None
    return arguments


def _infer_mask_estimators(shapes: _Shapes) -> dict[str, object]:
    stems = _count(shapes, r"mask_estimators\.(\d+)\.", "mask estimators, one for each stem")
    pattern = re.compile(r"mask_estimators\.0\.to_freqs\.0\.0\.(\d+)\.weight")
    linears = [match[0] for key in shapes if (match := pattern.fullmatch(key))]
    arguments: dict[str, object] = {"num_stems": stems, "mask_estimator_depth": len(linears) - 1}
    if len(linears) > 1:
        hidden, dim = _shape(shapes, "mask_estimators.0.to_freqs.0.0.0.weight", axes=2)
        arguments["mlp_expansion_factor"] = _ratio(hidden, dim)
    return arguments


def _block(shapes: _Shapes, prefix: str) -> str:
    """Return the prefix of an attention or feedforward block, inside its hyper-connection if there is one."""
    return f"{prefix}.branch" if any(key.startswith(f"{prefix}.branch.") for key in shapes) else prefix


def _sibling(key: str, name: str) -> str:
    return f"{key.rpartition('.')[0]}.{name}"


def _ratio(width: int, dim: int) -> int | float:
    return width // dim if width % dim == 0 else width / dim


def _count(shapes: _Shapes, pattern: str, what: str) -> int:
    """Return the number of parts by the pattern's group, whose values must be 0, 1, 2 and so on."""
    numbers = {int(match[1]) for key in shapes if (match := re.match(pattern, key)) and len(match[1]) <= MOST_DIGITS}
    if numbers != set(range(len(numbers) or 1)):
        missing = list(islice((number for number in count() if number not in numbers), LISTED))
        lacking = [str(number) for number in missing if number <= max(numbers, default=0)]
        found = list_some([str(number) for number in sorted(numbers)]) or "none"
        raise CheckpointError(
            f"the state dict lacks {what}: number {', '.join(lacking)} is missing, found are {found}. "
            "Is the file complete, and are these the weights of a RoFormer for music source separation?"
        )
    return len(numbers)


def _shape(shapes: _Shapes, key: str, *, axes: int) -> tuple[int, ...]:
    if key not in shapes:
        raise CheckpointError(f"the state dict lacks {key}: is the file complete?")
    shape = shapes[key]
    if len(shape) != axes or 0 in shape:
        raise CheckpointError(
            f"{key} of the state dict has the shape {short_repr(shape)}, but must have {axes} axes, none empty"
        )
    return shape
