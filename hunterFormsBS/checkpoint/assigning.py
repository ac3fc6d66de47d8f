"""The tensors of a state dict become the parameters of a model, each in its own memory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.blocks.positions import RotaryEmbedding
from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.printable import list_some, printable, short_repr

_FREQUENCIES: Final = ".rotary_embed.freqs"


class FittedWeights(NamedTuple):
    """A state dict for a model, with remarks on tensors that the file lacks."""

    state_dict: dict[str, Tensor]
    remarks: tuple[str, ...]


def fit(
    state_dict: Mapping[str, Tensor],
    model: BandSplitRotator,
    path: Path,
    *,
    stems: Sequence[int] | None = None,
    partial: bool = False,
) -> FittedWeights:
    """Select the heads of some stems; fill in frequencies and, for a partial load, everything that does not fit."""
    chosen = dict(state_dict) if stems is None else _select_heads(state_dict, stems)
    return _take_what_fits(chosen, model) if partial else _fill_in_positions(chosen, model, path)


def assign(model: BandSplitRotator, state_dict: dict[str, Tensor], path: Path) -> None:
    """Make the tensors the parameters of an uninitialised model; refuse them with one message for all misfits."""
    expected = model.state_dict()
    missing = [key for key in expected if key not in state_dict]
    extra = [key for key in state_dict if key not in expected]
    misshapen = [
        f"{key} with the shape {short_repr(tuple(state_dict[key].shape))} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        # A single number may have one axis, as `load_state_dict` allows.
        if key in state_dict and tuple(state_dict[key].shape) not in (shape := tuple(tensor.shape), shape or (1,))
    ]
    mistyped = [
        f"{key} as {str(state_dict[key].dtype).removeprefix('torch.')}"
        for key, tensor in expected.items()
        if key in state_dict and _kind_of_numbers(state_dict[key]) not in _kinds_taken_for(tensor)
    ]
    problems = [
        f"{what} {len(keys)} tensors: {list_some(keys)}"
        for what, keys in (
            ("it lacks", missing),
            ("it has in excess", extra),
            ("it has misshapen", misshapen),
            ("it has of another kind of numbers than weights are", mistyped),
        )
        if keys
    ]
    if problems:
        raise CheckpointError(f"the weights of {printable(path)} do not make a whole model: {'; '.join(problems)}")
    # Each parameter gets its own memory; if the dtype differs, the tensor that was read is freed at once.
    taken: set[int] = set()
    for key, tensor in expected.items():
        read = state_dict.pop(key).detach().to(tensor.dtype)
        storage = read.untyped_storage()
        own = storage.nbytes() == read.numel() * read.element_size() and storage.data_ptr() not in taken
        state_dict[key] = read.contiguous() if own else read.clone(memory_format=torch.contiguous_format)
        taken.add(state_dict[key].untyped_storage().data_ptr())
    model.load_state_dict(state_dict, strict=True, assign=True)


def _select_heads(state_dict: Mapping[str, Tensor], stems: Sequence[int]) -> dict[str, Tensor]:
    """Keep everything, but of the mask estimators only those of these stems, renumbered."""
    renumbered = {f"mask_estimators.{index(stem)}.": f"mask_estimators.{number}." for number, stem in enumerate(stems)}
    selected: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        if not key.startswith("mask_estimators."):
            selected[key] = tensor
            continue
        head = key[: key.index(".", len("mask_estimators.")) + 1]
        if head in renumbered:
            selected[renumbered[head] + key.removeprefix(head)] = tensor
    return selected


def _take_what_fits(state_dict: Mapping[str, Tensor], model: BandSplitRotator) -> FittedWeights:
    """Return a complete state dict of the tensors that fit and the model's own, with a remark on each kind."""
    own = model.state_dict()
    fitting = {key for key, tensor in state_dict.items() if key in own and own[key].shape == tensor.shape}
    if not fitting:
        raise CheckpointError("no tensor of the checkpoint fits the model: pass other arguments, or build a new model")
    parts = {"taken": fitting, "new": own.keys() - fitting, "left out": state_dict.keys() - fitting}
    said = "; ".join(f"{name}: {_by_part(keys)}" for name, keys in parts.items())
    whole = {key: state_dict[key] if key in fitting else tensor for key, tensor in own.items()}
    return FittedWeights(whole, (f"of the tensors, by parts of the model, {said}",))


def _by_part(keys: Iterable[str]) -> str:
    """Return the number of keys in each numbered part of a model, as text."""
    counts = Counter(".".join(key.split(".")[:2]) for key in sorted(keys))
    return ", ".join(f"{printable(part, 120)} ({count})" for part, count in counts.items()) or "none"


def _fill_in_positions(state_dict: dict[str, Tensor], model: BandSplitRotator, path: Path) -> FittedWeights:
    """Give every attention layer its frequencies if a file has only one shared copy, or none."""
    attentions = [key for key in model.state_dict() if key.endswith(_FREQUENCIES)]
    # If more of an attention layer is missing, the file is incomplete.
    whole = [key for key in attentions if key.replace(_FREQUENCIES, ".to_qkv.weight") in state_dict]
    missing = [key for key in whole if key not in state_dict]
    if not missing:
        return FittedWeights(state_dict, ())
    copies = {_in_any_group(key): state_dict[key] for key in attentions if key in state_dict}
    with torch.device("cpu"):
        by_formula = RotaryEmbedding(model.configuration["dim_head"]).freqs.detach()
    # Those of the same transformer in another layer group are preferred.
    filled = {key: copies.get(_in_any_group(key), next(iter(copies.values()), by_formula)).clone() for key in missing}
    source = "the copy that is there" if copies else "the formula that upstream has for them"
    remark = f"{printable(path)} lacks {len(missing)} tensors {_FREQUENCIES[1:]}, which are taken from {source}"
    return FittedWeights(state_dict | filled, (remark,))


def _in_any_group(key: str) -> str:
    """Return a key without the number of its layer group."""
    return re.sub(r"\d+", "", key, count=1)


def _kind_of_numbers(tensor: Tensor) -> str:
    if tensor.layout != torch.strided or tensor.is_quantized:
        return str(tensor.layout)
    plain_types = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return "complex" if tensor.is_complex() else "real" if tensor.dtype in plain_types else str(tensor.dtype)


def _kinds_taken_for(tensor: Tensor) -> tuple[str, ...]:
    # Programs that convert a state dict to float32 also convert counters, which are not weights.
    kind = _kind_of_numbers(tensor)
    return (kind, "real") if kind == "torch.int64" else (kind,)
