"""The arguments of a model: evidence from every source, and the decision that follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any, SupportsIndex, cast

from hunterFormsBS.checkpoint.arguments import DEFAULTS, OPEN, audible_arguments, without_idle_arguments
from hunterFormsBS.checkpoint.bands import BAND_ARGUMENTS, contradictions, resolve_bands
from hunterFormsBS.checkpoint.configuration import StatedArguments, to_plain_values
from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.families import Family
from hunterFormsBS.checkpoint.recognition import Recognition
from hunterFormsBS.checkpoint.stateDict import Inferred
from hunterFormsBS.choices import Upstream
from hunterFormsBS.printable import printable, short_repr


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything known about a model before it is built, by source.

    Parameters
    ----------
    path : Path
        The file.
    recognition : Recognition
        From the keys of its tensors: the family whose defaults apply.
    shapes : Inferred
        From the shapes of its tensors, which win over a configuration.
    configuration : StatedArguments
        From the configuration.
    caller : Mapping[str, object]
        From the caller: arguments, which win over the configuration and must agree with the shapes.
    upstream : Upstream or None
        From the caller or the file: the project whose defaults apply.
    stems : Sequence[int] or None
        From the caller: the heads to load.
    partial : bool
        Whether the caller's arguments may contradict the shapes.
    """

    path: Path
    recognition: Recognition
    shapes: Inferred
    configuration: StatedArguments
    caller: Mapping[str, object]
    upstream: Upstream | None = None
    stems: Sequence[int] | None = None
    partial: bool = False


@dataclass(frozen=True)
class Decision:
    """The conclusion from the evidence.

    Parameters
    ----------
    arguments : dict[str, Any]
        Of `BandSplitRotator`.
    remarks : tuple[str, ...]
        Remarks on stated arguments that the shapes contradict, and on audible ones that nothing determined.
    """

    arguments: dict[str, Any]
    remarks: tuple[str, ...]


def decide(evidence: Evidence) -> Decision:
    """Choose the constructor arguments, and list those that nothing determined.

    Raises
    ------
    CheckpointError
        If what the caller passed contradicts the shapes, or if no band layout fits them.
    """
    by_shapes = {name: value for name, value in evidence.shapes.arguments.items() if name not in BAND_ARGUMENTS}
    stated, caller = evidence.configuration, dict(evidence.caller)
    reshaping: dict[str, object] = {}
    if evidence.partial:
        changed = [name for name in caller if name in by_shapes and not _agrees(name, caller, by_shapes)]
        reshaping = {name: caller.pop(name) for name in changed}
    known = {**stated.arguments, **caller}
    right = {
        name: f"{name}={value!r}"
        for name, value in by_shapes.items()
        if name in known and not _agrees(name, known, by_shapes)
    }
    _refuse(caller, right, "the shapes of the tensors need")
    bands, assumed = resolve_bands(evidence.shapes.widths, known, overlapping=evidence.shapes.overlapping)
    right_bands = {name: _state(name, bands) for name in contradictions(bands, known)}
    _refuse(caller, right_bands, "the widths of the bands need")

    certain = {name: value for name, value in by_shapes.items() if name in right or name not in known}
    chosen = {**_defaults(evidence.recognition), **known, **certain}
    chosen = {name: value for name, value in chosen.items() if name not in BAND_ARGUMENTS} | bands
    if not chosen.get("use_value_residual_learning"):
        chosen.pop("learned_value_residual_mix", None)
    if evidence.stems is not None:
        chosen["num_stems"] = _number_of(evidence.stems, cast("int", by_shapes["num_stems"]))
    undetermined = _undetermined(evidence, known, bands, assumed)
    if "stft_hop_length" in undetermined:
        chosen["stft_hop_length"] = min(512, _win_length(chosen) // 4)
    arguments = complete_arguments(chosen | reshaping)
    contradicted = (
        f"the configuration states {stated.spelled[name]}, but by the tensors {instead}"
        for name, instead in {**right, **right_bands}.items()
    )
    return Decision(arguments, (*contradicted, *_remarks(evidence, undetermined, arguments)))


def arguments_of_configuration(stated: StatedArguments, caller: Mapping[str, object], family: Family) -> dict[str, Any]:
    """Choose the constructor arguments from only a configuration.

    Raises
    ------
    CheckpointError
        If an argument is missing.
    """
    defaults, known = dict(family.defaults), {**stated.arguments, **caller}
    if not caller.keys().isdisjoint({"freqs_per_bands", "mask_filter_bank"}):
        overridden = {"num_bands", "mask_filter_bank"} if "freqs_per_bands" in caller else {"num_bands"}
        defaults.pop("num_bands", None)
        known = {name: value for name, value in known.items() if name in caller or name not in overridden}
    missing = [name for name in ("dim", "depth") if name not in known]
    if missing:
        raise CheckpointError(f"the configuration lacks {' and '.join(missing)}: state it in the section model")
    return complete_arguments({**defaults, **known})


def complete_arguments(arguments: Mapping[str, object]) -> dict[str, Any]:
    """Add arguments that follow from others, and drop those without effect."""
    complete = without_idle_arguments(arguments)
    complete.setdefault("stft_win_length", _win_length(complete))
    stft_n_fft = complete.get("stft_n_fft")
    if isinstance(stft_n_fft, int):
        complete.setdefault("dim_freqs_in", stft_n_fft // 2 + 1)
    return complete


def _defaults(recognition: Recognition) -> dict[str, object]:
    """Return upstream's defaults; for value residuals and streams, those of the family that the keys fit."""
    of_keys = recognition.of_keys.defaults
    return {**{name: of_keys.get(name) for name in OPEN}, **recognition.family.defaults}


def _refuse(caller: Mapping[str, object], right: Mapping[str, str], need: str) -> None:
    for name, instead in right.items():
        if name in caller:
            raise CheckpointError(f"{name}={short_repr(caller[name])} cannot be: {need} {instead}")


def _number_of(stems: Sequence[int], available: int) -> int:
    """Return the number of requested stems; refuse invalid ones."""
    numbers = {index(stem) for stem in stems if isinstance(cast("object", stem), SupportsIndex)}
    if not stems or len(numbers) < len(stems) or not numbers <= set(range(available)):
        raise CheckpointError(
            f"stems={short_repr(list(stems))} cannot be loaded: pass at least one number from 0 to {available - 1}, "
            f"each once; the model has {available} stem(s)"
        )
    return len(numbers)


def _undetermined(
    evidence: Evidence, known: Mapping[str, object], bands: Mapping[str, object], assumed: Sequence[str]
) -> list[str]:
    inferred = evidence.shapes.arguments
    audible = ["stft_hop_length", *assumed]
    if not evidence.configuration.arguments:
        audible += [*audible_arguments(inferred), *(name for name in ("sample_rate",) if name in bands)]
    undetermined = [name for name in audible if name not in known and name not in inferred]
    if inferred.get("use_value_residual_learning") and "learned_value_residual_mix" not in {**inferred, **known}:
        undetermined.append("learned_value_residual_mix")
    return list(dict.fromkeys(undetermined))


def _remarks(evidence: Evidence, undetermined: Sequence[str], arguments: Mapping[str, object]) -> Iterator[str]:
    path = evidence.path
    if undetermined:
        chosen = {**DEFAULTS, **arguments}
        values = ", ".join(f"{name}={to_plain_values(chosen[name])!r}" for name in undetermined)
        remedy = "State them in the configuration" if evidence.configuration.arguments else "Pass its configuration"
        yield (
            f"nothing determines these arguments for {printable(path)}, so those of {evidence.recognition.family.name} "
            f"are taken: {values}. {remedy}, or pass the arguments that differ"
        )
    if "experimental" in path.stem.lower() and evidence.upstream is None:
        yield (
            f"the name of {printable(path.name)} contains 'experimental': if it was trained with MSST's experimental "
            "classes, pass upstream='msst_experimental', because its keys are those of the ordinary ones and its audio "
            "is not"
        )


def _agrees(name: str, known: Mapping[str, object], by_shapes: Mapping[str, object]) -> bool:
    """Tell whether a known argument is compatible with the inferred ones."""
    value, by_shape = known[name], by_shapes[name]
    if name == "use_value_residual_learning" and value and not by_shape:
        return known.get("learned_value_residual_mix") is False  # a constant has no parameters
    if name == "learned_value_residual_mix":
        return value is not False  # the way in which a learned mix is applied leaves no trace in its parameters
    if name == "mc_hyper_conn_sinkhorn_iters":
        return by_shapes["num_residual_streams"] == by_shapes["num_residual_fracs"] == 1
    return value == by_shape


def _state(name: str, bands: Mapping[str, object]) -> str:
    stated = {known: printable(f"{known}={to_plain_values(value)!r}", 600) for known, value in bands.items()}
    return stated.get(name, f"there is no {name}: {', '.join(stated.values())}")


def _win_length(arguments: Mapping[str, object]) -> int:
    """Return the window's length: as stated, or upstream's default if it fits the Fourier transform."""
    stated, stft_n_fft = arguments.get("stft_win_length"), arguments.get("stft_n_fft")
    return stated if isinstance(stated, int) else min(2048, stft_n_fft if isinstance(stft_n_fft, int) else 2048)
