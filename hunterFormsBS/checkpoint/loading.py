"""Checkpoints and configurations of every upstream family, loaded into `BandSplitRotator`.

Tensor shapes win over a configuration. The caller's arguments win over the configuration, and must agree with the
shapes. A warning lists the audible arguments that nothing determined.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.checkpoint.assigning import assign, fit
from hunterFormsBS.checkpoint.configuration import (
    Configuration,
    is_for_mel,
    load_configuration,
    model_section,
    resolve_values,
    stated_arguments,
    upstream_of,
)
from hunterFormsBS.checkpoint.configurationFile import PathFilename
from hunterFormsBS.checkpoint.decision import Evidence, arguments_of_configuration, decide
from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.facts import Entry, recognise_file
from hunterFormsBS.checkpoint.families import check_upstream
from hunterFormsBS.checkpoint.plainKeys import to_plain_keys
from hunterFormsBS.checkpoint.recognition import family_of_configuration, recognise
from hunterFormsBS.checkpoint.stateDict import infer, translate_state_dict
from hunterFormsBS.checkpoint.weightsFile import read_contents
from hunterFormsBS.choices import Upstream


def read_state_dict(pathFilename: PathFilename, *, map_location: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Read the weights of a model, executing nothing in the file.

    Parameters
    ----------
    pathFilename : str | PathLike[str]
        A file of `torch.save` or safetensors, or the .index.json of several safetensors files.
    map_location : torch.device | str, default "cpu"
        The device of the tensors.

    Returns
    -------
    state_dict : dict[str, Tensor]
        The model's tensors, without the dictionaries and the prefixes `module.`, `model.` and `_orig_mod.` that
        trainers add; in the file's dtype, with the keys of its family.

    Raises
    ------
    CheckpointError
        If the file is empty, damaged or of another format, holds no weights, or needs unpickling of anything but
        tensors and plain containers.
    OSError
        If the file cannot be opened.
    """
    contents = read_contents(pathFilename, map_location)
    _warn(contents.remarks)
    return contents.state_dict


def from_configuration(
    configuration: Configuration, *, upstream: Upstream = "msst", **overrides: Any
) -> BandSplitRotator:
    """Build the model that a configuration describes, with new weights.

    Parameters
    ----------
    configuration : str | PathLike[str] | Mapping[str, Any]
        A file or a mapping. The model's arguments are in its section `model`, or at the top level.
    upstream : Upstream, default "msst"
        The project whose convention and defaults they follow: `'msst'`, `'msst_experimental'`, `'lucidrains'` or
        `'hunterFormsBS'`.
    **overrides : Any
        Arguments of `BandSplitRotator`, in its convention; they override the configuration.

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
    section, upstream = model_section(whole), upstream_of(whole, upstream) or upstream
    # This package's own configurations state every argument, whatever the layout.
    overlapping = check_upstream(upstream) != "hunterFormsBS" and is_for_mel(section)
    given = _given(overrides)
    family = family_of_configuration(upstream, {**section, **given}, overlapping=overlapping)
    stated = stated_arguments(whole, family)
    arguments = arguments_of_configuration(stated, given, family)
    _warn(stated.remarks)
    return BandSplitRotator(**arguments).eval()


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
    """Load a model from a local file; see `hunterFormsBS.checkpoint.from_checkpoint`, which can also fetch one.

    Parameters
    ----------
    beside : Mapping[str, Any] | None, default None
        The configuration found with the file. One that was passed, or is in the file, takes precedence.
    """
    contents = read_contents(path)
    whole = choose_configuration(path, configuration, contents.configuration, beside)
    if configuration is None and contents.configuration is not None:
        upstream = upstream or "hunterFormsBS"
    upstream = upstream_of(whole, upstream)
    recognition = recognise(contents.state_dict, upstream)
    state_dict, left_out = to_plain_keys(contents.state_dict, recognition)
    remarks = contents.remarks + left_out
    del contents  # so that a tensor is freed as soon as it has become a parameter
    evidence = Evidence(
        path=path,
        recognition=recognition,
        shapes=infer(state_dict, recognition),
        configuration=stated_arguments(whole, recognition.family),
        caller=_given(overrides),
        upstream=upstream,
        stems=stems,
        partial=partial,
    )
    decision = decide(evidence)
    with torch.device("cpu" if partial else "meta"):  # the tensors of the file become its parameters
        model = BandSplitRotator(**decision.arguments)
    state_dict, fitted = fit(state_dict, model, path, stems=stems, partial=partial)
    _warn([*remarks, *decision.remarks, *evidence.configuration.remarks, *fitted], stacklevel=4)
    assign(model, state_dict, path)
    return model.to(device, dtype).eval()


def choose_configuration(path: Path, *stated: Configuration | None) -> Mapping[str, Any]:
    """Return the configuration of a checkpoint: the first that is given, or that of the catalogue, or an empty one.

    Parameters
    ----------
    path : Path
        The file, which the catalogue may recognise.
    *stated : Configuration | None
        In this order: the one that was passed, the one within the file, the one found with it.
    """
    for configuration in stated:
        if configuration is not None:
            return load_configuration(configuration)
    entry = recognise_file(path, lambda entry: has_shapes_of(entry, path))
    return load_configuration((entry and entry.configuration) or None)


def has_shapes_of(entry: Entry, path: Path) -> bool:
    """Tell whether a file's tensors have the keys and shapes of a public checkpoint's model."""
    try:
        state_dict = translate_state_dict(read_contents(path, "meta").state_dict)
    except CheckpointError:
        return False
    with torch.device("meta"):
        expected = from_configuration(entry.configuration).state_dict()
    return {key: tensor.shape for key, tensor in state_dict.items()} == {
        key: tensor.shape for key, tensor in expected.items()
    }


def _given(overrides: Mapping[str, object]) -> dict[str, object]:
    """Return the overrides that are not None, ready for the constructor."""
    return {name: value for name, value in resolve_values(overrides).items() if value is not None}


def _warn(remarks: Sequence[str], stacklevel: int = 3) -> None:
    """Warn at the line that called the public function."""
    for remark in remarks:
        warnings.warn(remark, stacklevel=stacklevel)
