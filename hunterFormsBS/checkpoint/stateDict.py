"""What a state dict says by its keys and shapes: the model that it belongs to."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import count, islice
from typing import Final, NamedTuple, TypeAlias

from torch import Tensor

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.blocks.layout import mask_filter_bank_mel
from hunterFormsBS.checkpoint.families import CheckpointError, is_known_key, recognise
from hunterFormsBS.checkpoint.limits import MOST_DIGITS
from hunterFormsBS.checkpoint.variants import (
    infer_variants,
    refuse_unsupported,
    to_plain_keys,
)
from hunterFormsBS.options import idle_options
from hunterFormsBS.printable import printable, short_repr

_LISTED: Final = 20
"""How many keys a message lists before it counts the rest."""

_Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

_USUAL_MEL_LAYOUTS: Final = tuple(
    (sample_rate, stft_n_fft)
    for sample_rate in (44100, 48000, 32000, 24000, 22050, 16000, 96000)
    for stft_n_fft in (2048, 4096, 1024, 8192, 512)
)

_MOST_MEL_BANDS: Final = 512


class InferredConfiguration(NamedTuple):
    """Constructor arguments of `BandSplitRotator`, as far as a state dict determines them.

    Parameters
    ----------
    arguments : dict[str, object]
        The arguments that keys and shapes determine.
    undetermined : list[str]
        The names of all others.
    """

    arguments: dict[str, object]
    undetermined: list[str]


class MelLayout(NamedTuple):
    """Arguments of a mel layout whose bands are as wide as those of a state dict."""

    sample_rate: int
    stft_n_fft: int
    stereo: bool


@cache
def constructor_arguments() -> tuple[str, ...]:
    """Return the names of the arguments of `BandSplitRotator`."""
    return tuple(inspect.signature(BandSplitRotator).parameters)


def translate_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give every tensor of a known upstream family the key that it has in this package.

    Keys of this package, which are also those of Music-Source-Separation-Training, stay as they are. The tensors are
    not copied.

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
        If keys are left that no family has; the message lists them.
    """
    refuse_unsupported(state_dict)
    family = recognise(state_dict)
    state_dict, _ = to_plain_keys(state_dict)
    groups = [int(match[1]) for key in state_dict if (match := re.match(r"layers\.\d+\.(\d+)\.", key))]
    first_group = min(groups, default=0)
    translated: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in state_dict.items():
        name = key
        for pattern, replacement in family.renames:
            name = re.sub(pattern, replacement, name)
        # Where upstream keeps a place for a linear transformer that is not there, its groups begin at 1.
        name = re.sub(r"^(layers\.\d+\.)(\d+)", lambda match: f"{match[1]}{int(match[2]) - first_group}", name)
        if not is_known_key(name):
            unknown.append(key)
        elif name in translated:
            raise CheckpointError(
                f"two tensors of the state dict would be {short_repr(name)}: is it two models in one?"
            )
        translated[name] = tensor
    if unknown:
        likeness = f" (it looks most like {family.name})" if len(unknown) < len(state_dict) else ""
        raise CheckpointError(
            f"the state dict has {len(unknown)} unknown keys, so it is not of a family that this package knows"
            f"{likeness}: {list_some(unknown)}"
        )
    for key, tensor in translated.items():
        # Before release 0.4 the hyper-connections library had no axis for proposals of the manifold-constrained kind.
        if key.endswith(".dynamic_alpha_fn") and tensor.ndim == 2 and _sibling(key, "h_post_scale") in translated:
            translated[key] = tensor.unsqueeze(0)
    return translated


def infer_configuration(state_dict: Mapping[str, Tensor]) -> InferredConfiguration:
    """Find every constructor argument that the keys and shapes of a state dict determine.

    The arguments count as this package's constructor does, whatever the family. Bands are taken to cover all bins,
    because nothing in a state dict tells of a `freq_range`. Mono and stereo are told apart by the number of bins,
    which is odd for every `stft_n_fft` that is a multiple of four.

    Parameters
    ----------
    state_dict : Mapping[str, Tensor]
        Of any known family.

    Returns
    -------
    inferred : InferredConfiguration
        The arguments, and the names of those that must come from elsewhere.

    Raises
    ------
    CheckpointError
        If keys are unknown, or if parts of a model are missing.
    """
    family = recognise(state_dict)
    shapes = _shapes_of(translate_state_dict(state_dict))
    mix = family.defaults["learned_value_residual_mix"] if _is_mel_mix(state_dict) else True
    arguments = {
        **_infer_bands(shapes),
        **_infer_layers(shapes),
        **_infer_value_residual(shapes, mix),
        **_infer_streams(shapes),
        **_infer_mask_estimators(shapes),
        **_infer_conformer_depths(shapes),
    }
    if any(key.endswith((".rotary_embed.freqs", ".pope_embed.bias")) for key in shapes):
        arguments["use_rotary_pos"] = True
    elif any(key.endswith(".positional_encoding.pe") for key in state_dict):
        arguments["use_rotary_pos"] = False
    if (
        _is_mel_mix(state_dict)
        and arguments["linear_transformer_depth"]
        and "mc_hyper_conn_sinkhorn_iters" in arguments
    ):
        # Version 0.9.2 stopped swapping in linear attention, and left no trace of it in the keys.
        del arguments["learned_value_residual_mix"]
    of_nothing = {"dim_freqs_in"} | idle_options(arguments)
    undetermined = [name for name in constructor_arguments() if name not in arguments and name not in of_nothing]
    return InferredConfiguration(arguments, undetermined)


def band_widths(state_dict: Mapping[str, Tensor]) -> list[int]:
    """Return the number of real inputs of each band: two for each of its bins and channels."""
    return _band_widths(_shapes_of(state_dict))


def _band_widths(shapes: _Shapes) -> list[int]:
    count = _count(shapes, r"band_split\.to_features\.(\d+)\.", "bands")
    weights = [_shape(shapes, f"band_split.to_features.{band}.1.weight", axes=2) for band in range(count)]
    return [width for _, width in weights]


@cache
def _usual_mel_counts(sample_rate: int, stft_n_fft: int, num_bands: int) -> tuple[int, ...]:
    if num_bands > _MOST_MEL_BANDS:
        return ()
    try:
        mask = mask_filter_bank_mel(sample_rate, stft_n_fft, num_bands)
    except ValueError:  # so many bands that some are empty
        return ()
    return tuple(int(count) for count in mask.sum(dim=1))


def find_mel_layout(widths: Sequence[int]) -> MelLayout | None:
    """Find a usual mel layout whose bands have these widths, or return `None`."""
    for sample_rate, stft_n_fft in _USUAL_MEL_LAYOUTS:
        counts = _usual_mel_counts(sample_rate, stft_n_fft, len(widths))
        for stereo in (True, False):
            if list(widths) == [count * (4 if stereo else 2) for count in counts]:
                return MelLayout(sample_rate, stft_n_fft, stereo)
    return None


def list_some(keys: Sequence[str]) -> str:
    """Write keys out, the first of them and the number of the rest when there are many."""
    rest = len(keys) - _LISTED
    return ", ".join(printable(key, 120) for key in keys[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _shapes_of(state_dict: Mapping[str, Tensor]) -> _Shapes:
    return {key: tuple(tensor.shape) for key, tensor in state_dict.items()}


def _infer_bands(shapes: _Shapes) -> dict[str, object]:
    widths = _band_widths(shapes)
    dim, _ = _shape(shapes, "band_split.to_features.0.1.weight", axes=2)
    norm_output = any(re.fullmatch(r"layers\.\d+\.\d+\.norm\.gamma", key) for key in shapes)
    final_norm = "final_norm.gamma" in shapes
    arguments: dict[str, object] = {"dim": dim, "final_norm": final_norm, "norm_output": norm_output}
    arguments["num_bands"] = len(widths)

    if not final_norm and (norm_output or _has_conformers(shapes)):
        mel_layout = find_mel_layout(widths)
        if mel_layout is not None:
            arguments.update(stereo=mel_layout.stereo, stft_n_fft=mel_layout.stft_n_fft)
        elif any(width % 4 for width in widths):
            arguments["stereo"] = False
        return arguments

    del arguments["num_bands"]  # freqs_per_bands says it
    if any(width % 4 for width in widths):
        stereo = False
    elif sum(widths) // 4 % 2:
        stereo = True
    else:
        return arguments
    freqs_per_bands = tuple(width // (4 if stereo else 2) for width in widths)
    arguments.update(stereo=stereo, freqs_per_bands=freqs_per_bands, stft_n_fft=2 * (sum(freqs_per_bands) - 1))
    return arguments


def _infer_layers(shapes: _Shapes) -> dict[str, object]:
    depth = _count(shapes, r"layers\.(\d+)\.", "layer groups")
    groups = _count(shapes, r"layers\.0\.(\d+)\.", "transformers of layers.0")
    if groups not in (2, 3):
        raise CheckpointError(
            f"layers.0 has {groups} transformers, but a time and a frequency transformer are needed, "
            "and a linear one may come before them: part of the state dict is missing"
        )
    layers = [_count(shapes, rf"layers\.0\.{group}\.layers\.(\d+)\.", "layers") for group in range(groups)]
    linear, time, freq = layers if groups == 3 else (0, *layers)

    layer = f"layers.0.{groups - 1}.layers.0"
    block = _block(shapes, f"{layer}.attn" if f"{layer}.attn.to_qkv.weight" in shapes else f"{layer}.0")
    feed_forward = f"{layer}.ff1.ff" if f"{layer}.ff1.ff.net.1.weight" in shapes else _block(shapes, f"{layer}.1")
    heads, dim = _shape(shapes, f"{block}.to_gates.weight", axes=2)
    rows, _ = _shape(shapes, f"{block}.to_qkv.weight", axes=2)
    inner, _ = _shape(shapes, f"{feed_forward}.net.1.weight", axes=2)
    return {
        "depth": depth,
        "linear_transformer_depth": linear,
        "time_transformer_depth": time,
        "freq_transformer_depth": freq,
        "heads": heads,
        "dim_head": rows // (3 * heads),
        "ff_mult": _ratio(inner, dim),
        "use_pope": f"{block}.pope_embed.bias" in shapes,
    }


def _has_conformers(shapes: _Shapes) -> bool:
    return any(".conv.net." in key for key in shapes)


def _infer_conformer_depths(shapes: _Shapes) -> dict[str, object]:
    """Return the arguments of variants; on the axes that have Conformers, their depths and 0 for transformers."""
    arguments = infer_variants(shapes)
    if not _has_conformers(shapes):
        return arguments
    groups = _count(shapes, r"layers\.0\.(\d+)\.", "transformers of layers.0")
    for axis, group in (("time", groups - 2), ("freq", groups - 1)):
        depth = _count(shapes, rf"layers\.0\.{group}\.layers\.(\d+)\.", "layers")
        conformer = f"layers.0.{group}.layers.0.conv.net.4.weight" in shapes
        arguments[f"{axis}_conformer_depth"] = depth if conformer else 0
        arguments[f"{axis}_transformer_depth"] = 0 if conformer else depth
    return arguments


def _is_mel_mix(state_dict: Mapping[str, Tensor]) -> bool:
    """Tell whether values are mixed as in upstream's Mel-Band RoFormer, whose name for the mix is its own."""
    return any(".learned_value_residual_mix." in key for key in state_dict)


def _infer_value_residual(shapes: _Shapes, mix: object) -> dict[str, object]:
    if any(".to_value_residual_mix." in key for key in shapes):
        return {"use_value_residual_learning": True, "learned_value_residual_mix": mix}
    if any(key.startswith("layers.1.") for key in shapes):
        return {"use_value_residual_learning": False}
    return {}  # the first layer group has nothing to mix its values with


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
    if not linears and any(".fno_blocks." in key for key in shapes):
        return {"num_stems": stems}
    arguments: dict[str, object] = {"num_stems": stems, "mask_estimator_depth": len(linears) - 1}
    if len(linears) > 1:
        hidden, dim = _shape(shapes, "mask_estimators.0.to_freqs.0.0.0.weight", axes=2)
        arguments["mlp_expansion_factor"] = _ratio(hidden, dim)
    return arguments


def _block(shapes: _Shapes, prefix: str) -> str:
    """Return the prefix of an attention or feed-forward block, inside its hyper-connection where it has one."""
    return f"{prefix}.branch" if any(key.startswith(f"{prefix}.branch.") for key in shapes) else prefix


def _sibling(key: str, name: str) -> str:
    return f"{key.rpartition('.')[0]}.{name}"


def _ratio(width: int, dim: int) -> int | float:
    return width // dim if width % dim == 0 else width / dim


def _count(shapes: _Shapes, pattern: str, what: str) -> int:
    """Return how many parts are numbered by the pattern's group, which must be 0, 1, 2 and so on."""
    numbers = {int(match[1]) for key in shapes if (match := re.match(pattern, key)) and len(match[1]) <= MOST_DIGITS}
    if numbers != set(range(len(numbers) or 1)):
        missing = list(islice((number for number in count() if number not in numbers), _LISTED))
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
