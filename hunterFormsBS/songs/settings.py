"""Settings that a configuration states for separating with its checkpoint; the command line goes before them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Unpack, cast

from hunterFormsBS.checkpoint import CheckpointError
from hunterFormsBS.checkpoint.byName import find_configuration
from hunterFormsBS.checkpoint.programs import section_of
from hunterFormsBS.failures import UsageError
from hunterFormsBS.parametersSeparation import KeywordsSeparation, ParametersSeparation
from hunterFormsBS.printable import printable
from hunterFormsBS.songs.names import key_of, safe_name

__all__ = ["Settings", "find_configuration", "read_settings", "stated_separation", "stem_indices"]

WINDOW = 2048
"""Samples of the transform's window in the models whose configuration does not state it."""


class Settings(NamedTuple):
    """How to separate with a checkpoint."""

    sample_rate: int
    """Of the audio that the model takes."""
    parameters: ParametersSeparation
    names: list[str]
    """Of the stems; empty if the configuration names none."""
    normalize: bool
    """Give the model songs whose mono mix has mean 0 and standard deviation 1."""
    model_type: str = ""
    """What MSST calls this kind of model. Empty if the configuration does not tell."""


def read_settings(configuration: Mapping[str, Any], **given: Unpack[KeywordsSeparation]) -> tuple[Settings, list[str]]:
    """Return settings of the keywords and, for others, of a configuration, and warnings.

    Raises
    ------
    CheckpointError
        If the configuration is wrong.
    UsageError
        If the keywords do not fit it.
    """
    audio, inference, training, model = (
        section_of(configuration, name) for name in ("audio", "inference", "training", "model")
    )
    stated = stated_separation(configuration)
    normalize: object = inference.get("normalize") or False
    if not isinstance(normalize, bool):
        raise CheckpointError(f"normalize in the configuration must be true or false, but is {normalize!r}")
    sample_rate = _size(audio, "sample_rate") or _size(model, "sample_rate") or 44100
    remarks: list[str] = []
    chosen: KeywordsSeparation = {**stated, **given}
    chunk_size = chosen.get("chunk_size", ParametersSeparation.chunk_size)
    if "chunk_size" in given:
        window = _size(model, "stft_win_length") or _size(model, "stft_n_fft") or (WINDOW if "dim" in model else 1)
        trained = stated.get("chunk_size")
        if chunk_size < window:
            raise UsageError(
                f"--chunk-size {chunk_size} is less than one window of the model's transform, {window} "
                f"samples: use what it was trained on, {trained or 'usually some 8 seconds'}"
            )
        if trained is not None and chunk_size < trained:
            remarks.append(
                f"--chunk-size {chunk_size} is less than the {trained} samples that the model was trained on, "
                "which sound better"
            )
    if (overlap := chosen.get("num_overlap", 1)) > chunk_size:
        raise UsageError(f"--num-overlap {overlap:g} is more than the {chunk_size} samples of a chunk: use a few")
    parameters = ParametersSeparation(**chosen)
    names = _stem_names(training, _size(model, "num_stems"))
    return Settings(sample_rate, parameters, names, normalize, _model_type(training, model)), remarks


def stated_separation(configuration: Mapping[str, Any]) -> KeywordsSeparation:
    """Return what a configuration says of how to separate.

    Raises
    ------
    CheckpointError
        If that cannot be used.
    """
    inference, audio, model = (section_of(configuration, name) for name in ("inference", "audio", "model"))
    frames, hop = _size(inference, "dim_t"), _size(model, "stft_hop_length") or _size(audio, "hop_length")
    # Other programs take the frames of a chunk for its length, where they do not find that.
    by_frames = (frames - 1) * hop if frames and hop and frames > 1 else None
    sizes = {
        "chunk_size": _size(inference, "chunk_size") or _size(audio, "chunk_size") or by_frames,
        "num_overlap": _size(inference, "num_overlap"),
        "batch_size": _size(inference, "batch_size"),
    }
    return cast("KeywordsSeparation", {name: size for name, size in sizes.items() if size is not None})


def stem_indices(wanted: Sequence[str] | None, known: Sequence[str], option: str = "--stems") -> list[int] | None:
    """Return the numbers of the stems that were asked for by an option; None stands for all.

    Raises
    ------
    UsageError
        If the model has no such stem.
    """
    if wanted is None:
        return None
    if known:
        numbers_of = {key_of(name): number for number, name in enumerate(known)}
        unknown = [name for name in wanted if key_of(safe_name(name)) not in numbers_of]
        if unknown:
            near = difflib.get_close_matches(key_of(unknown[0]), numbers_of, n=1)
            hint = f"; is {known[numbers_of[near[0]]]} meant?" if near else ""
            raise UsageError(f"{option}: the model has no stem {', '.join(unknown)}, but {', '.join(known)}{hint}")
        return [numbers_of[key_of(safe_name(name))] for name in wanted]
    numbers = [re.fullmatch(r"stem_([1-9]\d*)", name) for name in wanted]
    if not all(numbers):
        raise UsageError(
            f"{option} {','.join(wanted)}: no configuration names the stems of this checkpoint. "
            "Pass --configuration, or call them stem_1, stem_2, ..."
        )
    return [int(number[1]) - 1 for number in numbers if number]


def _stem_names(training: Mapping[str, Any], num_stems: int | None) -> list[str]:
    """Return the names of the stems; none if the model has another number of them."""
    target, instruments = training.get("target_instrument"), training.get("instruments")
    if target and num_stems in (None, 1):
        return [safe_name(target)]
    if not isinstance(instruments, Sequence) or isinstance(instruments, str):
        return []
    names = [safe_name(name) for name in cast("Sequence[object]", instruments)]
    return names if num_stems in (None, len(names)) else []


def _model_type(training: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    if stated := training.get("model_type"):
        return safe_name(stated)
    return ("mel_band_roformer" if model.get("num_bands") else "bs_roformer") if model else ""


def _size(section: Mapping[str, Any], name: str) -> int | None:
    size: object = section.get(name)
    if size is None or (isinstance(size, int) and not isinstance(size, bool) and size > 0):
        return size
    raise CheckpointError(
        f"{name} in the configuration must be an integer of at least 1, but is {printable(repr(size))}"
    )
