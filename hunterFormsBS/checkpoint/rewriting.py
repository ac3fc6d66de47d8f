"""Converting checkpoints of any program for this package or for others."""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, cast

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.checkpoint.adapters import Adapters, read_adapters, without_adapters
from hunterFormsBS.checkpoint.byName import find_configuration, from_checkpoint
from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.heads import join_stems
from hunterFormsBS.checkpoint.saving import save_checkpoint
from hunterFormsBS.choices import CHUNK_SIZE, Dtype, Layout, Upstream, dtype_of

__all__ = ["Options", "refuse_to_replace", "rewrite"]

SAMPLE_RATE: Final = 44100
"""Sample rate in Hz of exported models whose configuration states none."""

EXPORT_TOLERANCE: Final = 1e-3
"""Largest allowed difference of onnxruntime from PyTorch, relative to the largest value."""


class Options(argparse.Namespace):
    """The arguments of `hunterforms convert`."""

    checkpoint: str
    configuration: Path | None
    upstream: Upstream | None
    output: Path
    layout: Layout
    stems: list[str] | None
    dtype: Dtype
    lora: Path | None
    keep_stems: bool
    overwrite: bool


def rewrite(options: Options) -> list[Path]:
    """Write the checkpoint, as an ONNX file if the name ends in `.onnx`, and return the files.

    Raises
    ------
    CheckpointError, ImportError, OSError
        If it cannot be read or written, or would replace a file.
    """
    files = [options.output, *([options.output.with_suffix(".yaml")] if options.layout == "msst" else [])]
    refuse_to_replace(files, overwrite=options.overwrite)
    model, sections = _read(options)
    if options.output.suffix.lower() == ".onnx":
        _export(options.output, model, sections)
    else:
        save_checkpoint(options.output, model, configuration=sections, layout=options.layout)
    return files


def refuse_to_replace(files: Iterable[Path], *, overwrite: bool) -> None:
    """Raise a CheckpointError if a file exists and may not be overwritten."""
    existing = [str(path) for path in files if path.exists()]
    if existing and not overwrite:
        raise CheckpointError(f"{' and '.join(existing)} would be replaced: pass --overwrite, or another --output")


def _read(options: Options) -> tuple[BandSplitRotator, dict[str, Any]]:
    """Return the model, with adapters merged, and the rest of its configuration."""
    path, configuration, whole = find_configuration(options.checkpoint, options.configuration)
    dtype = dtype_of(options.dtype)
    if options.lora is None:
        model = from_checkpoint(path, configuration, upstream=options.upstream, dtype=dtype)
    else:
        merging = read_adapters(options.lora, whole)
        if configuration is not None:  # The section `lora` describes adapters; the checkpoint has none.
            configuration = without_adapters(whole)
        base = from_checkpoint(path, configuration, upstream=options.upstream)
        model, whole = _merged(base, merging, whole, keep_stems=options.keep_stems)
        model = model.to(dtype)
    named = ("audio", "training", "inference")
    sections = {name: whole[name] for name in named if isinstance(cast("object", whole.get(name)), Mapping)}
    if options.stems:
        if len(options.stems) != model.num_stems:
            raise CheckpointError(f"--stems names {len(options.stems)}, and the model has {model.num_stems} stems")
        training = {**cast("Mapping[str, Any]", sections.get("training") or {}), "instruments": options.stems}
        training.pop("target_instrument", None)
        sections["training"] = training
    return model, sections


def _merged(
    base: BandSplitRotator, merging: Adapters, configuration: Mapping[str, Any], *, keep_stems: bool
) -> tuple[BandSplitRotator, dict[str, Any]]:
    """Merge adapters into a model; return it and its configuration, with the names of its stems."""
    merged, stated = merging.merge_into(base), merging.configuration_of(configuration)
    if not merging.heads or not keep_stems:
        return merged, stated
    training: Mapping[str, Any] = configuration.get("training") or {}
    target = training.get("target_instrument")
    names: list[str] = [target] if target else list(training.get("instruments") or ())
    if len(names) != base.num_stems:
        raise CheckpointError(
            f"the checkpoint has {base.num_stems} stems, and its configuration names {len(names)} in "
            "training.instruments: pass a --configuration that names each, or leave out --keep-stems"
        )
    model, joined = join_stems(base, names, merged, list(merging.heads))
    stated["training"] = {**training, "instruments": joined, "target_instrument": None}
    return model, stated


def _export(output: Path, model: BandSplitRotator, sections: Mapping[str, Any]) -> None:
    # The exporter is imported only if it is used.
    from hunterFormsBS.checkpoint.onnxFile import export_onnx, relative_error

    # It prints which optional packages are missing.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    audio: Mapping[str, Any] = sections.get("audio") or {}
    training: Mapping[str, Any] = sections.get("training") or {}
    target = training.get("target_instrument")
    stems: list[str] = [target] if target else list(training.get("instruments") or ())
    with warnings.catch_warnings():
        # PyTorch's exporter uses deprecated parts of PyTorch.
        warnings.simplefilter("ignore")
        export_onnx(
            model.eval(),
            output,
            sample_rate=audio.get("sample_rate") or SAMPLE_RATE,
            chunk_size=audio.get("chunk_size") or CHUNK_SIZE,
            stem_names=stems if len(stems) == model.num_stems else (),
        )
        error = relative_error(output, model)
    if not error <= EXPORT_TOLERANCE:
        raise CheckpointError(
            f"{output} is {error:.1e} away from the model in onnxruntime: report it, with the checkpoint"
        )
