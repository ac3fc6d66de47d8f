"""A checkpoint written anew: read as any program's, and saved for this package or for others."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from hunterFormsBS.checkpoint.byName import find_configuration, from_checkpoint
from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.saving import save_checkpoint
from hunterFormsBS.choices import Dtype, Layout, Upstream, dtype_of

__all__ = ["Options", "rewrite"]


class Options(argparse.Namespace):
    """What is read, and how it is written: the arguments of `hunterforms convert`."""

    checkpoint: str
    configuration: Path | None
    upstream: Upstream | None
    output: Path
    layout: Layout
    stems: list[str] | None
    dtype: Dtype
    overwrite: bool


def rewrite(options: Options) -> list[Path]:
    """Write the checkpoint, and return the files.

    Raises
    ------
    CheckpointError, ImportError, OSError
        If it cannot be read or written, or would replace a file.
    """
    files = [options.output, *([options.output.with_suffix(".yaml")] if options.layout == "msst" else [])]
    existing = [str(path) for path in files if path.exists()]
    if existing and not options.overwrite:
        raise CheckpointError(f"{' and '.join(existing)} would be replaced: pass --overwrite, or another --output")
    path, configuration, whole = find_configuration(options.checkpoint, options.configuration)
    model = from_checkpoint(path, configuration, upstream=options.upstream, dtype=dtype_of(options.dtype))
    sections = {
        name: whole[name] for name in ("audio", "training", "inference") if isinstance(whole.get(name), Mapping)
    }
    if options.stems:
        if len(options.stems) != model.num_stems:
            raise CheckpointError(f"--stems names {len(options.stems)}, and the model has {model.num_stems} stems")
        training = {**cast("Mapping[str, Any]", sections.get("training") or {}), "instruments": options.stems}
        training.pop("target_instrument", None)
        sections["training"] = training
    save_checkpoint(options.output, model, configuration=sections, layout=options.layout)
    return files
