"""Checks of a model's input and of a state dict; messages state the value received and the remedy.

Arguments of the constructor are checked by their rows, in `hunterFormsBS.options`; the band layout where it is
resolved, in `hunterFormsBS.blocks.layout`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

from torch import Tensor

from hunterFormsBS.printable import short_repr
from hunterFormsBS.theTypes import ParametersSTFT


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
    """Refuse audio so short that its estimate would be longer than its target."""
    half, hop, length = stft.stft_n_fft // 2 + 1, stft.stft_hop_length, audio.shape[-1]
    if length < half and half // hop * hop > length:
        raise ValueError(
            f"raw_audio has {length} samples, and with match_input_audio_length=False the estimate of so short a song "
            f"is longer than its target: pass at least {half} samples, or build the model with "
            "match_input_audio_length=True."
        )


def check_stem_ids(active_stem_ids: Sequence[int] | None, num_stems: int) -> list[int]:
    """Return the stems to estimate as a list, all of them for None; refuse invalid ones."""
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
    """Refuse targets that do not fit the mixture `audio`, `(b, s, t)`."""
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
    """Return a message with the constructor arguments that would fit a state dict's mask estimators; None if these fit.

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
