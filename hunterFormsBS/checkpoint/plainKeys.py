"""Keys of all known families, translated to those of this package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor

from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.recognition import Recognition
from hunterFormsBS.checkpoint.variants import LAYER_BIAS, ROTARY_TABLE, SHARED_BIASES, SINUSOIDS, VARIANTS
from hunterFormsBS.printable import list_some, short_repr
from hunterFormsBS.variantRow import ATTENTION_KEYS, FEED_FORWARD_KEYS

_HALF_PRECISION: Final = 2e-3
"""Largest difference of float16 tables from the formula."""

_LAYER_BIAS: Final = re.compile(LAYER_BIAS)
_TABLE: Final = re.compile(ROTARY_TABLE)
_SINUSOIDS: Final = re.compile(SINUSOIDS)
_FOURIER_WEIGHT: Final = re.compile(r"(.*\.fno_blocks\.convs\.\d+\.weight)(?:\.tensor)?")

_NORM: Final = r"norm\.gamma"
_LINEAR: Final = r"(?:weight|bias)"
_HYPER_CONNECTION: Final = (
    rf"{_NORM}|static_(?:alpha|beta)|dynamic_(?:alpha|beta)_(?:fn|scale)"
    r"|h_post_scale|pre_branch_scale|residual_scale"
)
_LAYER: Final = r"layers\.\d+\.\d+\.layers\.\d+"
_KNOWN_KEY: Final = re.compile(
    "|".join(
        (
            rf"band_split\.to_features\.\d+\.(?:0\.gamma|1\.{_LINEAR})",
            rf"layers\.\d+\.\d+\.{_NORM}",
            rf"{_LAYER}\.0\.(?:branch\.)?(?:{ATTENTION_KEYS})",
            rf"{_LAYER}\.1\.(?:branch\.)?(?:{FEED_FORWARD_KEYS})",
            rf"{_LAYER}\.[01]\.(?:{_HYPER_CONNECTION})",
            r"final_norm\.gamma",
            rf"mask_estimators\.\d+\.to_freqs\.\d+\.0\.\d+\.{_LINEAR}",
            *(variant.keys for variant in VARIANTS if variant.keys),
        )
    )
)


class PlainWeights(NamedTuple):
    """A model's tensors with this package's keys.

    Parameters
    ----------
    state_dict : dict[str, Tensor]
        Shared biases under `shared_qkv_bias`, `shared_out_bias` and in every layer, or nowhere if they are 0;
        frequencies instead of position tables; pairs of real numbers instead of complex numbers.
    remarks : tuple[str, ...]
        Remarks on tensors that were left out or replaced.
    """

    state_dict: dict[str, Tensor]
    remarks: tuple[str, ...]


def to_plain_keys(state_dict: Mapping[str, Tensor], recognition: Recognition) -> PlainWeights:
    """Translate the keys and forms of a known family's tensors to this package's, without copies.

    Parameters
    ----------
    state_dict : Mapping[str, Tensor]
        Keys without prefixes such as `module.`, as `read_state_dict` returns them.
    recognition : Recognition
        Of the same keys.

    Raises
    ------
    CheckpointError
        If keys are unknown (the message lists them), if one of the two shared biases is missing, or if tables are not
        those of rotary or sinusoidal positions.
    """
    remarks: list[str] = []
    renamed = {SHARED_BIASES.get(key, key): tensor for key, tensor in _real_pairs(state_dict).items()}
    plain = _tables_to_frequencies(_share_biases(renamed, remarks), remarks)
    return PlainWeights(_translate(plain, recognition), tuple(remarks))


def is_known_key(key: str) -> bool:
    """Tell whether a key has the form of one of this package's keys."""
    return _KNOWN_KEY.fullmatch(key) is not None


def _translate(state_dict: Mapping[str, Tensor], recognition: Recognition) -> dict[str, Tensor]:
    family = recognition.of_keys
    groups = [int(match[1]) for key in state_dict if (match := re.match(r"layers\.\d+\.(\d+)\.", key))]
    first_group = min(groups, default=0)
    translated: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in state_dict.items():
        name = key
        for pattern, replacement in family.renames:
            name = re.sub(pattern, replacement, name)
        # If upstream counts a linear transformer that does not exist, its numbers begin at 1.
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
        # Before release 0.4 the hyper-connections library had no axis for proposals in manifold-constrained
        # connections.
        name, found, _ = key.rpartition(".dynamic_alpha_fn")
        if found and tensor.ndim == 2 and f"{name}.h_post_scale" in translated:
            translated[key] = tensor.unsqueeze(0)
    return translated


def _real_pairs(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights of Fourier neural operators from complex numbers to pairs of real ones."""
    pairs: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        match = _FOURIER_WEIGHT.fullmatch(key)
        name = match[1] if match else key
        pairs[name] = torch.view_as_real(tensor) if match and tensor.is_complex() else tensor
    return pairs


def _share_biases(state_dict: dict[str, Tensor], remarks: list[str]) -> dict[str, Tensor]:
    shared = {name: state_dict[name] for name in SHARED_BIASES.values() if name in state_dict}
    of_layers = {key: match[1] for key in state_dict if (match := _LAYER_BIAS.fullmatch(key))}
    if not shared and not of_layers:
        return state_dict
    names = {"to_qkv": "shared_qkv_bias", "to_out.0": "shared_out_bias"}
    differing = ""
    for key in sorted(of_layers, key=_numbers):
        name, bias = names[of_layers[key]], state_dict[key]
        if name in shared and not bias.is_meta and not torch.equal(shared[name], bias):
            differing = key
        # The value that upstream's module ends with, because every layer loads into the same parameter.
        shared[name] = bias
    if differing:
        remarks.append(
            f"the biases of attention differ among layers, {differing} for one. Upstream's program has one for all "
            "layers and keeps the last one, which is taken"
        )
    rest = {key: tensor for key, tensor in state_dict.items() if key not in of_layers and key not in shared}
    if not any(bias.is_meta or bool(bias.any()) for bias in shared.values()):
        remarks.append(f"{' and '.join(sorted(shared))} are 0 everywhere, and are left out")
        return rest
    lacking = sorted(set(names.values()) - shared.keys())
    if lacking:
        raise CheckpointError(f"the state dict has one of the two shared biases, and lacks {lacking[0]}")
    complete = {**shared, **rest}
    for key in rest:
        prefix, found, _ = key.rpartition(".to_qkv.weight")
        if found:
            complete[f"{prefix}.to_qkv.bias"] = shared["shared_qkv_bias"]
            complete[f"{prefix}.to_out.0.bias"] = shared["shared_out_bias"]
    return complete


def _numbers(key: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", key)]


def _tables_to_frequencies(state_dict: dict[str, Tensor], remarks: list[str]) -> dict[str, Tensor]:
    rotary = [key for key in state_dict if _TABLE.fullmatch(key)]
    sinusoidal = [key for key in state_dict if _SINUSOIDS.fullmatch(key)]
    rest = {key: tensor for key, tensor in state_dict.items() if key not in {*rotary, *sinusoidal}}
    for key in sinusoidal:
        angles = _angles(key, state_dict[key])
        _compare(key, state_dict[key], torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2), "sinusoidal")
    for key in rotary:
        angles = _angles(key, state_dict[key])
        wave = angles.cos() if "cos_emb" in key else angles.sin()
        _compare(key, state_dict[key], wave.repeat_interleave(2, dim=-1), "rotary")
    if rotary:
        frequencies = _frequencies(state_dict[rotary[0]].shape[1]).float()
        remarks.append(f"{len(rotary)} tables of positions, {rotary[0]} for one, are replaced by their frequencies")
        for key in list(rest):
            if key.startswith("layers.") and key.endswith(".to_qkv.weight"):
                rest.setdefault(f"{key.removesuffix('.to_qkv.weight')}.rotary_embed.freqs", frequencies)
    return rest


def _frequencies(features: int) -> Tensor:
    return 10000.0 ** -(torch.arange(0, features, 2, dtype=torch.float64) / features)


def _angles(key: str, table: Tensor) -> Tensor:
    if table.ndim != 2 or table.shape[1] % 2:
        raise CheckpointError(f"{key} has the shape {tuple(table.shape)}, which no table of positions has")
    return torch.arange(table.shape[0], dtype=torch.float64)[:, None] * _frequencies(table.shape[1])


def _compare(key: str, table: Tensor, expected: Tensor, kind: str) -> None:
    if not table.is_meta and (table.double() - expected).abs().amax() > _HALF_PRECISION:
        raise CheckpointError(
            f"{key} is not the table of {kind} positions with a base of 10000, and no other positions are supported"
        )
