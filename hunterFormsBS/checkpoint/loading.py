"""Checkpoints and configurations of every upstream family, read into `BandSplitRotator`.

What the shapes of tensors determine is taken from there, what a configuration states from there, and what the caller
states above both. What nothing determines is named in a warning.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Any, Final, SupportsIndex, cast

import torch
from torch import Tensor

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.blocks.positions import RotaryEmbedding
from hunterFormsBS.checkpoint import facts
from hunterFormsBS.checkpoint.bands import BAND_ARGUMENTS, contradictions, resolve_bands
from hunterFormsBS.checkpoint.configuration import (
    Configuration,
    PathFilename,
    StatedArguments,
    flash_attn_remarks,
    is_for_mel,
    load_configuration,
    model_section,
    parse_mapping,
    resolve_values,
    to_plain_values,
    translate_arguments,
)
from hunterFormsBS.checkpoint.families import CheckpointError, Upstream, check_upstream, newest_family, recognise
from hunterFormsBS.checkpoint.programs import ignored_remarks
from hunterFormsBS.checkpoint.stateDict import (
    band_widths,
    infer_configuration,
    list_some,
    translate_state_dict,
)
from hunterFormsBS.checkpoint.variants import has_conformers, to_plain_keys, undetermined_of_variant
from hunterFormsBS.checkpoint.weightsFile import WeightsFile, unwrap
from hunterFormsBS.printable import printable, short_repr
from hunterFormsBS.variantChecks import OF_MLPS

_AUDIBLE: Final = (
    "stft_win_length",
    "stft_window_fn",
    "stft_normalized",
    "skip_connection",
    "zero_dc",
    "mc_hyper_conn_sinkhorn_iters",
)
"""What no shape tells and a listener hears, beside `stft_hop_length`. What a configuration leaves out of these is as
upstream's default; the hop length is left out of none that is whole."""

_FREQUENCIES: Final = ".rotary_embed.freqs"
_OPEN: Final = ("learned_value_residual_mix", "mc_hyper_conn_sinkhorn_iters")
"""What decides how a model computes with parameters that look the same."""


def read_state_dict(pathFilename: PathFilename, *, map_location: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Read the weights of a model, running nothing that is in the file.

    Parameters
    ----------
    pathFilename : str | PathLike[str]
        What `torch.save` or safetensors wrote, or the .index.json of several safetensors files.
    map_location : torch.device | str = 'cpu'
        The device of the tensors.

    Returns
    -------
    state_dict : dict[str, Tensor]
        The model's tensors, taken out of the dictionaries that trainers put around them, without the prefixes
        `module.`, `model.` and `_orig_mod.`; in the file's dtype, and with the keys of the family that made it.

    Raises
    ------
    CheckpointError
        If the file is empty, damaged or of another kind, holds no weights, or needs unpickling of anything but tensors
        and plain containers.
    OSError
        If the file cannot be opened.
    """
    path = Path(pathFilename)
    file = WeightsFile(path)
    chosen, remarks = unwrap(file.content, path)
    for remark in remarks:
        warnings.warn(remark, stacklevel=2)
    return file.read_state_dict(chosen, map_location)


def from_configuration(
    configuration: Configuration, *, upstream: Upstream = "msst", **overrides: Any
) -> BandSplitRotator:
    """Build the model that a configuration describes, with new weights.

    Parameters
    ----------
    configuration : str | PathLike[str] | Mapping[str, Any]
        A file or a mapping. The arguments of the model are in its section `model`, or are all of it.
    upstream : Upstream = 'msst'
        Whose counting and whose defaults they follow: `'msst'`, `'msst_experimental'`, `'lucidrains'` or
        `'hunterFormsBS'`.
    **overrides : Any
        Arguments of `BandSplitRotator`, in its counting, that replace those of the configuration.

    Returns
    -------
    model : BandSplitRotator
        In eval mode, on the default device.

    Raises
    ------
    CheckpointError
        If an argument is unknown or missing.
    """
    whole = load_configuration(configuration)
    section = model_section(whole)
    # This package's own configurations state every argument, whatever the layout.
    overlapping = check_upstream(upstream) != "hunterFormsBS" and is_for_mel(section)
    given = _given(overrides)
    conformer = has_conformers({**section, **given})
    family = newest_family(upstream, overlapping=overlapping, conformer=conformer)
    stated = translate_arguments(section, family).arguments
    defaults = dict(family.defaults)
    if not given.keys().isdisjoint({"freqs_per_bands", "mask_filter_bank"}):
        stated.pop("num_bands", None)
        defaults.pop("num_bands", None)
    if "freqs_per_bands" in given:
        stated.pop("mask_filter_bank", None)
    arguments = {**defaults, **stated, **given}
    missing = [name for name in ("dim", "depth") if name not in arguments]
    if missing:
        raise CheckpointError(f"the configuration lacks {' and '.join(missing)}: state it in the section model")
    for remark in [*ignored_remarks(whole), *flash_attn_remarks(section)]:
        warnings.warn(remark, stacklevel=2)
    return _build(arguments).eval()


def load(
    path: Path,
    configuration: Configuration | None = None,
    *,
    beside: Mapping[str, Any] | None = None,
    upstream: Upstream | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    stems: Sequence[int] | None = None,
    partial: bool = False,
    **overrides: Any,
) -> BandSplitRotator:
    """Load a model from a file that is here; see `hunterFormsBS.checkpoint.from_checkpoint`, which fetches it.

    Parameters
    ----------
    beside : Mapping[str, Any] | None = None
        The configuration that was found with the file. One that was passed, or that is in the file, comes first.
    """
    file = WeightsFile(path)
    chosen, remarks = unwrap(file.content, path)
    original = file.read_state_dict(chosen, "cpu")
    if configuration is None:
        configuration, upstream_within = configuration_within(file)
        upstream = upstream or upstream_within
    state_dict = translate_state_dict(original)
    if configuration is None and beside is None:
        entry = facts.recognise_file(path, lambda entry: has_shapes_of(entry, state_dict))
        beside = entry.configuration if entry else None
    if configuration is None:
        configuration = beside
    del file, chosen  # which keep the tensors
    family = recognise(original, None if upstream is None else check_upstream(upstream))
    whole = load_configuration(configuration)
    section = model_section(whole)
    stated = translate_arguments(section, family)
    given = _given(overrides)

    remarks += to_plain_keys(original)[1]
    inferred = infer_configuration(original).arguments
    reshaped: dict[str, object] = {}
    if partial:
        changed = [name for name in given if name in inferred and not _agrees(name, given, inferred)]
        reshaped = {name: given.pop(name) for name in changed if name not in BAND_ARGUMENTS}
    # What the keys leave open of value residuals and streams is as in the family of the keys, whatever the upstream.
    open_defaults = {name: recognise(original).defaults.get(name) for name in _OPEN}
    arguments, undetermined = _merge(
        {**open_defaults, **family.defaults}, inferred, stated, given, band_widths(state_dict), remarks
    )
    if stems is not None:
        state_dict = _select_heads(state_dict, stems, cast("int", arguments["num_stems"]))
        arguments["num_stems"] = len(stems)
    if "stft_hop_length" in undetermined:
        arguments["stft_hop_length"] = min(512, _win_length(arguments) // 4)
    arguments |= reshaped
    with torch.device("cpu" if partial else "meta"):  # the tensors of the file become its parameters
        model = _build(arguments)
    if partial:
        state_dict, remark = _take_what_fits(state_dict, model)
        remarks.append(remark)
    if undetermined:
        values = ", ".join(f"{name}={to_plain_values(model.configuration[name])!r}" for name in undetermined)
        remarks.append(
            f"nothing determines these arguments for {printable(path)}, so those of {family.name} are taken: {values}. "
            "Pass the configuration of the checkpoint, or the arguments that differ"
        )
    if "experimental" in path.stem.lower() and upstream is None:
        remarks.append(
            f"the name of {printable(path.name)} contains 'experimental': if it was trained with MSST's experimental "
            "classes, pass upstream='msst_experimental', because its keys are those of the ordinary ones and its audio "
            "is not"
        )
    remarks += [*ignored_remarks(whole), *flash_attn_remarks(section), *_fill_in_positions(state_dict, model, path)]
    for remark in remarks:
        warnings.warn(remark, stacklevel=3)  # where `from_checkpoint` was called

    del original
    _load(model, state_dict, path)
    return model.to(device, dtype).eval()


def has_shapes_of(entry: facts.Entry, state_dict: Mapping[str, Tensor]) -> bool:
    """Tell whether these are the keys and shapes of a public checkpoint's model."""
    with torch.device("meta"):
        expected = from_configuration(entry.configuration).state_dict()
    return {key: tensor.shape for key, tensor in state_dict.items()} == {
        key: tensor.shape for key, tensor in expected.items()
    }


def _take_what_fits(state_dict: Mapping[str, Tensor], model: BandSplitRotator) -> tuple[dict[str, Tensor], str]:
    """Return a whole state dict, of the tensors that fit and the model's own, and say which are which."""
    own = model.state_dict()
    fitting = {key for key, tensor in state_dict.items() if key in own and own[key].shape == tensor.shape}
    if not fitting:
        raise CheckpointError("no tensor of the checkpoint fits the model: pass other arguments, or build a new model")
    parts = {"taken": fitting, "new": own.keys() - fitting, "left out": state_dict.keys() - fitting}
    said = "; ".join(f"{name}: {_by_part(keys)}" for name, keys in parts.items())
    whole = {key: state_dict[key] if key in fitting else tensor for key, tensor in own.items()}
    return whole, f"of the tensors, by parts of the model, {said}"


def _by_part(keys: Iterable[str]) -> str:
    """Say how many of the keys are in each numbered part of a model."""
    counts = Counter(".".join(key.split(".")[:2]) for key in sorted(keys))
    return ", ".join(f"{printable(part, 120)} ({count})" for part, count in counts.items()) or "none"


def _merge(
    defaults: Mapping[str, object],
    inferred: Mapping[str, object],
    stated: StatedArguments,
    given: Mapping[str, object],
    widths: Sequence[int],
    remarks: list[str],
) -> tuple[dict[str, object], list[str]]:
    """Choose the constructor arguments, and name those that nothing determined; contradictions go to `remarks`."""
    for name, value in inferred.items():
        if name in BAND_ARGUMENTS:
            continue
        if name in given and not _agrees(name, given, inferred):
            stating = f"{name}={short_repr(given[name])}"
            raise CheckpointError(f"{stating} cannot be: the shapes of the tensors need {name}={value!r}")
        if name in stated.arguments and name not in given and not _agrees(name, stated.arguments, inferred):
            remarks.append(f"the configuration states {stated.spelled[name]}, but by the tensors {name}={value!r}")

    known = {**stated.arguments, **given}
    overlapping = not inferred["final_norm"] and (bool(inferred["norm_output"]) or has_conformers(inferred))
    bands, assumed = resolve_bands(widths, known, overlapping=overlapping)
    for name in contradictions(bands, known):
        if name in given:
            raise CheckpointError(
                f"{name}={short_repr(given[name])} cannot be: the widths of the bands need {_state(name, bands)}"
            )
        remarks.append(f"the configuration states {stated.spelled[name]}, but by the tensors {_state(name, bands)}")

    arguments = {**defaults, **known}
    for name, value in inferred.items():
        if name not in known or not _agrees(name, known, inferred):
            arguments[name] = value
    arguments = {name: value for name, value in arguments.items() if name not in BAND_ARGUMENTS} | bands
    if not arguments.get("use_value_residual_learning"):
        arguments.pop("learned_value_residual_mix", None)

    unstated = ["stft_hop_length", *assumed]
    if not stated.arguments:
        unstated += [
            *_AUDIBLE,
            *undetermined_of_variant(inferred),
            *(name for name in ("sample_rate",) if name in bands),
        ]
    undetermined = [name for name in unstated if name not in known and name not in inferred]
    if inferred.get("use_value_residual_learning") and "learned_value_residual_mix" not in {**inferred, **known}:
        undetermined.append("learned_value_residual_mix")
    return arguments, undetermined


def _agrees(name: str, stated: Mapping[str, object], inferred: Mapping[str, object]) -> bool:
    """Tell whether a stated argument can be that of the state dict from which the others were inferred."""
    value, by_shape = stated[name], inferred[name]
    if name == "use_value_residual_learning" and value and not by_shape:
        return stated.get("learned_value_residual_mix") is False  # a constant has no parameters
    if name == "learned_value_residual_mix":
        return value is not False  # how a learned mix is applied leaves no trace in its parameters
    if name == "mc_hyper_conn_sinkhorn_iters":
        return inferred["num_residual_streams"] == inferred["num_residual_fracs"] == 1
    return value == by_shape


def _state(name: str, bands: Mapping[str, object]) -> str:
    stated = {known: printable(f"{known}={to_plain_values(value)!r}", 600) for known, value in bands.items()}
    return stated.get(name, f"there is no {name}: {', '.join(stated.values())}")


def _given(overrides: Mapping[str, object]) -> dict[str, object]:
    """Return the overrides that state something, ready for the constructor."""
    return {name: value for name, value in resolve_values(overrides).items() if value is not None}


def _select_heads(state_dict: Mapping[str, Tensor], stems: Sequence[int], num_stems: int) -> dict[str, Tensor]:
    """Keep the mask estimators of these stems, numbered anew, and everything else."""
    integers = all(isinstance(cast("object", stem), SupportsIndex) for stem in stems)
    numbers = {index(stem) for stem in stems} if integers else set[int]()
    if not numbers or not numbers <= set(range(num_stems)) or len(numbers) < len(stems):
        raise CheckpointError(
            f"stems={short_repr(list(stems))} cannot be loaded: pass at least one number from 0 to {num_stems - 1}, "
            f"each once; the model has {num_stems} stem(s)"
        )
    renumbered = {f"mask_estimators.{index(stem)}.": f"mask_estimators.{place}." for place, stem in enumerate(stems)}
    selected: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        if not key.startswith("mask_estimators."):
            selected[key] = tensor
            continue
        head = key[: key.index(".", len("mask_estimators.")) + 1]
        if head in renumbered:
            selected[renumbered[head] + key.removeprefix(head)] = tensor
    return selected


def _win_length(arguments: Mapping[str, object]) -> int:
    """Return the window's length: as stated, or upstream's default where that fits into the Fourier transform."""
    stated, stft_n_fft = arguments.get("stft_win_length"), arguments.get("stft_n_fft")
    return stated if isinstance(stated, int) else min(2048, stft_n_fft if isinstance(stft_n_fft, int) else 2048)


def _build(arguments: Mapping[str, object]) -> BandSplitRotator:
    complete = dict(arguments)
    complete.setdefault("stft_win_length", _win_length(complete))
    stft_n_fft = complete.get("stft_n_fft")
    if isinstance(stft_n_fft, int):
        complete.setdefault("dim_freqs_in", stft_n_fft // 2 + 1)
    # What follows upstream accepts where it has no effect, and the constructor does not.
    if complete.get("num_residual_streams", 1) == complete.get("num_residual_fracs", 1) == 1:
        complete.pop("mc_hyper_conn_sinkhorn_iters", None)
    if complete.get("mask_fno_modes"):
        for name in OF_MLPS:
            complete.pop(name, None)
    if complete.get("depth") == 1:
        for name in (
            "skip_connection",
            "use_value_residual_learning",
            "learned_value_residual_mix",
            "residual_in_first_group_only",
        ):
            complete.pop(name, None)
    return BandSplitRotator(**cast("dict[str, Any]", complete))


def _load(model: BandSplitRotator, state_dict: dict[str, Tensor], path: Path) -> None:
    """Make the tensors the parameters of a model without content, or refuse them with one message that says all."""
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
    # Each parameter gets memory of its own; what was read for it goes at once where it is of another type.
    taken: set[int] = set()
    for key, tensor in expected.items():
        read = state_dict.pop(key).detach().to(tensor.dtype)
        storage = read.untyped_storage()
        own = storage.nbytes() == read.numel() * read.element_size() and storage.data_ptr() not in taken
        state_dict[key] = read.contiguous() if own else read.clone(memory_format=torch.contiguous_format)
        taken.add(state_dict[key].untyped_storage().data_ptr())
    model.load_state_dict(state_dict, strict=True, assign=True)


def _fill_in_positions(state_dict: dict[str, Tensor], model: BandSplitRotator, path: Path) -> list[str]:
    """Give every attention its frequencies, where a file has but one copy of what all share, or none."""
    attentions = [key for key in model.state_dict() if key.endswith(_FREQUENCIES)]
    # Where more of an attention is missing, it is the file that is not whole.
    whole = [key for key in attentions if key.replace(_FREQUENCIES, ".to_qkv.weight") in state_dict]
    missing = [key for key in whole if key not in state_dict]
    copies = {_place(key): state_dict[key] for key in attentions if key in state_dict}
    with torch.device("cpu"):
        by_formula = RotaryEmbedding(model.configuration["dim_head"]).freqs.detach() if missing else None
    for key in missing:
        # Those of the same transformer in another layer group come first.
        copy = copies.get(_place(key), next(iter(copies.values()), by_formula))
        state_dict[key] = cast("Tensor", copy).clone()
    if not missing:
        return []
    source = "the copy that is there" if copies else "the formula that upstream has for them"
    return [f"{printable(path)} lacks {len(missing)} tensors {_FREQUENCIES[1:]}, which are taken from {source}"]


def _place(key: str) -> str:
    """Return a key without the number of its layer group."""
    return re.sub(r"\d+", "", key, count=1)


def _kind_of_numbers(tensor: Tensor) -> str:
    if tensor.layout != torch.strided or tensor.is_quantized:
        return str(tensor.layout)
    plain_types = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return "complex" if tensor.is_complex() else "real" if tensor.dtype in plain_types else str(tensor.dtype)


def _kinds_taken_for(tensor: Tensor) -> tuple[str, ...]:
    # A counter is no weight, and programs that make all of a state dict float32 make it so too.
    kind = _kind_of_numbers(tensor)
    return (kind, "real") if kind == "torch.int64" else (kind,)


def configuration_within(file: WeightsFile) -> tuple[Mapping[str, Any] | None, Upstream | None]:
    """Return the configuration that `save_checkpoint` put beside the weights, and whose counting it follows."""
    if file.metadata.get("upstream") == "hunterFormsBS" and "configuration" in file.metadata:
        what = f"what {printable(file.path)} says of its model"
        return parse_mapping(file.metadata["configuration"], what), "hunterFormsBS"
    if not isinstance(file.content, Mapping):
        return None, None
    entries = cast("Mapping[str, object]", file.content)
    configuration, upstream = entries.get("configuration"), entries.get("upstream")
    if not isinstance(configuration, Mapping) or upstream != "hunterFormsBS":
        return None, None
    return cast("Mapping[str, Any]", file.read(dict(cast("Mapping[str, object]", configuration)))), "hunterFormsBS"
