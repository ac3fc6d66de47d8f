"""Checkpoints and configurations of every upstream family, read into `BandSplitRotator`.

What the shapes of tensors determine is taken from there, what a configuration states from there, and what the caller
states above both. What nothing determines is named in a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
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
)
from hunterFormsBS.checkpoint.configurationFile import PathFilename
from hunterFormsBS.checkpoint.decision import Evidence, arguments_of_configuration, decide
from hunterFormsBS.checkpoint.families import Upstream, check_upstream
from hunterFormsBS.checkpoint.plainKeys import to_plain_keys
from hunterFormsBS.checkpoint.recognition import family_of_configuration, recognise
from hunterFormsBS.checkpoint.stateDict import infer
from hunterFormsBS.checkpoint.weightsFile import read_contents


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
    family = family_of_configuration(upstream, {**section, **overrides}, overlapping=overlapping)
    stated = stated_arguments(whole, family)
    arguments = arguments_of_configuration(stated, _given(overrides), family)
    _warn(stated.remarks)
    return BandSplitRotator(**arguments).eval()


def from_checkpoint(
    pathFilename: PathFilename,
    configuration: Configuration | None = None,
    *,
    upstream: Upstream | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    stems: Sequence[int] | None = None,
    partial: bool = False,
    **overrides: Any,
) -> BandSplitRotator:
    """Load a model from a checkpoint of any known family.

    A `UserWarning` is given for each argument of the configuration that the shapes of the tensors contradict, which
    are followed, and one that names the arguments which change the audio and which nothing determined.

    Parameters
    ----------
    pathFilename : str | PathLike[str]
        The checkpoint; see `read_state_dict`. Or a name of `hunterFormsBS.catalogue`, or `hub:OWNER/REPOSITORY/FILE`,
        which are fetched from the Hugging Face Hub.
    configuration : str | PathLike[str] | Mapping[str, Any] | None = None
        As in `from_configuration`. `None`: the one that `save_checkpoint` put into the file, or that of the catalogue,
        which recognises files that are here as well, or the one beside a file that is fetched.
    upstream : Upstream | None = None
        Whose counting and whose defaults the configuration follows. `None`: recognised from the keys, taking
        `'msst'` where the plain layout cannot tell; `'hunterFormsBS'` for a configuration within the file.
        `'msst_experimental'` is for checkpoints of MSST's experimental classes, which keys do not tell: see
        `residual_in_first_group_only` of `BandSplitRotator`.
    device : torch.device | str = 'cpu'
        Where the model goes.
    dtype : torch.dtype = torch.float32
        Of the model's parameters, whatever that of the file.
    stems : Sequence[int] | None = None
        Load only these heads, in this order. `None`: all.
    partial : bool = False
        Let `overrides` change shapes, such as `num_stems` or `depth`, for training on: tensors that fit are taken, the
        others are new. A `UserWarning` says of each part of the model how many tensors are taken, new and left out.
    **overrides : Any
        Arguments of `BandSplitRotator`, in its counting, which win over the configuration.

    Returns
    -------
    model : BandSplitRotator
        In eval mode, loaded strictly. `match_input_audio_length` is true unless stated, so that the estimates are as
        long as the mixture where upstream's are rounded down to a multiple of the hop length.

    Raises
    ------
    CheckpointError
        If the file cannot be used, if keys are unknown or missing, or if an argument is unknown or cannot belong to
        these weights.
    OSError
        If a file cannot be opened.
    """
    from hunterFormsBS import catalogue  # which reads configurations itself

    path, beside = catalogue.find(pathFilename)
    contents = read_contents(path)
    if configuration is None and contents.configuration is not None:
        configuration, upstream = contents.configuration, upstream or "hunterFormsBS"
    if configuration is None and beside is None and (entry := catalogue.recognise(path)):
        beside = entry.configuration
    recognition = recognise(contents.state_dict, None if upstream is None else check_upstream(upstream))
    state_dict, left_out = to_plain_keys(contents.state_dict, recognition)
    remarks = contents.remarks + left_out
    del contents  # so that a tensor goes from memory as soon as it has become a parameter
    evidence = Evidence(
        path=path,
        recognition=recognition,
        shapes=infer(state_dict, recognition),
        configuration=stated_arguments(load_configuration(configuration or beside), recognition.family),
        caller=_given(overrides),
        upstream=upstream,
        stems=stems,
        partial=partial,
    )
    decision = decide(evidence)
    with torch.device("cpu" if partial else "meta"):  # the tensors of the file become its parameters
        model = BandSplitRotator(**decision.arguments)
    state_dict, fitted = fit(state_dict, model, path, stems=stems, partial=partial)
    _warn([*remarks, *decision.remarks, *evidence.configuration.remarks, *fitted])
    assign(model, state_dict, path)
    return model.to(device, dtype).eval()


def _given(overrides: Mapping[str, object]) -> dict[str, object]:
    """Return the overrides that state something, ready for the constructor."""
    return {name: value for name, value in resolve_values(overrides).items() if value is not None}


def _warn(remarks: Sequence[str]) -> None:
    for remark in remarks:
        warnings.warn(remark, stacklevel=3)
