"""Writing checkpoints: for this package, for safetensors, and for programs that read those of MSST."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.checkpoint.arguments import DEFAULTS, NOT_AUDIBLE
from hunterFormsBS.checkpoint.configuration import to_plain_values
from hunterFormsBS.checkpoint.configurationFile import PathFilename
from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.families import newest_family
from hunterFormsBS.checkpoint.loading import from_configuration
from hunterFormsBS.checkpoint.stateDict import infer_configuration
from hunterFormsBS.choices import Layout
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.printable import printable, short_repr

_OF_ALL: Final = (
    *("dim", "depth", "stereo", "num_stems", "time_transformer_depth", "freq_transformer_depth"),
    *("dim_head", "heads", "attn_dropout", "ff_dropout", "flash_attn", "dim_freqs_in"),
    *("stft_n_fft", "stft_hop_length", "stft_win_length", "stft_normalized", "mask_estimator_depth"),
    *("multi_stft_resolution_loss_weight", "multi_stft_resolutions_window_sizes", "multi_stft_hop_size"),
    "multi_stft_normalized",
)
"""Arguments that a file can state and that the classes of all those programs have."""

_OF_SOME: Final = ("linear_transformer_depth", "mlp_expansion_factor", "skip_connection", "use_pope", "zero_dc")
"""Arguments that some of those programs lack and refuse: stated only if they differ from
Music-Source-Separation-Training's default."""

_UNLESS_STATED: Final[Mapping[str, object]] = {"ff_mult": 4, "num_residual_fracs": 1}


def save_checkpoint(
    pathFilename: PathFilename,
    model: nn.Module,
    *,
    configuration: Mapping[str, Any] | None = None,
    layout: Layout = "hunterFormsBS",
) -> None:
    """Save a model as one file for `from_checkpoint`, or as files for other programs.

    Parameters
    ----------
    pathFilename : str | PathLike[str]
        Written by safetensors if the name ends in .safetensors, else by `torch.save`; it appears once complete.
    model : nn.Module
        A `BandSplitRotator`, which may be compiled or wrapped for several devices.
    configuration : Mapping[str, Any] | None, default None
        Sections such as `audio`, `training` and `inference` to add to the model's own.
    layout : {'hunterFormsBS', 'msst'}, default "hunterFormsBS"
        `'msst'`: the pair of files that Music-Source-Separation-Training, UVR, pymss and, if a list names it,
        audio-separator load. The file holds only weights. The configuration has the same name with the suffix .yaml,
        follows MSST's convention, and states every argument that all of those programs know, and others that differ
        from MSST's defaults. `training.instruments` names the stems: pass it in `configuration`. Mask weights that
        `zero_dc` silences are 0 in the file, because some of those programs silence nothing.

    Raises
    ------
    TypeError
        If `model` is something else, or a configuration contains more than plain values.
    CheckpointError
        With `layout='msst'`, if the model has an option that those programs lack, or stems are not named.
    ImportError
        If safetensors or PyYAML is needed and not installed.
    """
    path = Path(pathFilename)
    bare = _bare(model)
    sections = {**(configuration or {}), "model": bare.configuration}
    if layout == "msst":
        content = _yaml(_sections_of_msst(bare, configuration or {}))
        with _complete(path) as unfinished, _complete(path.with_suffix(".yaml")) as unfinished_text:
            _write_weights(unfinished, path, _silenced(bare), None)
            unfinished_text.write_text(content, encoding="utf-8")
    elif layout == "hunterFormsBS":
        values = cast("dict[str, Any]", to_plain_values(sections))
        with _complete(path) as unfinished:
            _write_weights(unfinished, path, bare.state_dict(), values)
    else:
        raise ValueError(f"layout={short_repr(layout)} is neither 'hunterFormsBS' nor 'msst': pass one of them.")


def _bare(model: nn.Module) -> BandSplitRotator:
    bare: object = model
    while not isinstance(bare, BandSplitRotator):
        inner = getattr(bare, "_orig_mod", None) or getattr(bare, "module", None)
        if inner is None:
            raise TypeError(f"model must be a BandSplitRotator, but is a {type(model).__name__}")
        bare = inner
    return bare


def _write_weights(
    unfinished: Path, path: Path, state_dict: Mapping[str, Tensor], configuration: Mapping[str, Any] | None
) -> None:
    if path.suffix.lower() != ".safetensors":
        content: Mapping[str, Any] = state_dict
        if configuration is not None:
            content = {"state_dict": state_dict, "configuration": configuration, "upstream": "hunterFormsBS"}
        with unfinished.open("wb") as file:
            torch.save(content, file)
        return
    try:
        from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
    except ImportError as error:
        raise ImportError(f"to write .safetensors, install safetensors: {how_to_install('separation')}") from error
    metadata = {"format": "pt"}
    if configuration is not None:
        metadata |= {"configuration": json.dumps(configuration, default=_rows), "upstream": "hunterFormsBS"}
    # Shared tensors are stored once per layer: safetensors does not support shared memory.
    tensors = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in state_dict.items()
    }
    cast("Callable[..., None]", save_file)(tensors, unfinished, metadata)


def _silenced(model: BandSplitRotator) -> dict[str, Tensor]:
    """Return the weights, with masks of 0 at 0 Hz if the model silences it: UVR and others do not."""
    state_dict = dict(model.state_dict())
    if not model.zero_dc:
        return state_dict
    # The lowest bin is the first of the first band, and in no other band, both side by side and in mel layouts.
    last = re.compile(rf"mask_estimators\.\d+\.to_freqs\.0\.0\.{2 * _mask_estimator_depth(model)}\.(weight|bias)")
    for key in filter(last.fullmatch, list(state_dict)):
        state_dict[key] = state_dict[key].clone()
        state_dict[key][: 2 * model.audio_channels] = 0  # in the half that is not the gate
    return state_dict


def _mask_estimator_depth(model: BandSplitRotator) -> int:
    depth: int | None = model.configuration["mask_estimator_depth"]
    return 1 if depth is None else depth


def _rows(mask: Tensor) -> list[list[int]]:
    """Return a mask of bands as lists for JSON."""
    return cast("list[list[int]]", mask.int().tolist())  # pyright: ignore[reportUnknownMemberType]


@contextmanager
def _complete(path: Path) -> Generator[Path]:
    """Provide a temporary name, and rename the file once it is complete and on disk."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _sections_of_msst(model: BandSplitRotator, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration for MSST, or refuse a model that its classes cannot build."""
    arguments, inferred = model.configuration, infer_configuration(model.state_dict()).arguments
    mel = arguments["num_bands"] is not None and bool(inferred["norm_output"]) and not inferred["final_norm"]
    family = newest_family("msst", overlapping=mel)
    resolved, theirs = {**arguments, "zero_dc": model.zero_dc}, {**DEFAULTS, **family.defaults}
    section = {name: arguments[name] for name in _OF_ALL}
    section |= {name: resolved[name] for name in _OF_SOME if resolved[name] != theirs[name]}
    section |= {
        "dim_freqs_in": arguments["stft_n_fft"] // 2 + 1,
        "mask_estimator_depth": _mask_estimator_depth(model) + family.mask_estimator_depth_excess,
        "multi_stft_resolutions_window_sizes": tuple(arguments["multi_stft_resolutions_window_sizes"]),
    }
    if mel:
        section |= {"num_bands": arguments["num_bands"], "sample_rate": arguments["sample_rate"]}
        section |= {"match_input_audio_length": arguments["match_input_audio_length"]}
    else:
        section["freqs_per_bands"] = tuple(arguments["freqs_per_bands"])
    _refuse_what_changes(model, section)
    stems, target = _stems(configuration, arguments["num_stems"])
    rate = arguments["sample_rate"] or 44100
    hop_length = arguments["stft_hop_length"]
    given = {name: dict(configuration.get(name) or {}) for name in ("audio", "training", "inference")}
    audio = {
        "chunk_size": 8 * rate // hop_length * hop_length,
        "sample_rate": rate,
        "num_channels": 2 if arguments["stereo"] else 1,
        "hop_length": hop_length,
        "n_fft": arguments["stft_n_fft"],
        "dim_f": section["dim_freqs_in"],
        "min_mean_abs": 0.0,
        **given["audio"],
    }
    # Frames of a chunk, from which UVR and audio-separator compute its length.
    frames = {"dim_t": audio["chunk_size"] // hop_length + 1} if isinstance(audio["chunk_size"], int) else {}
    return {
        "audio": audio,
        "model": section,
        "training": {
            "use_amp": True,
            "other_fix": False,
            **given["training"],
            "instruments": stems,
            "target_instrument": target,
        },
        "inference": {"batch_size": 1, **frames, "num_overlap": 2, "normalize": False, **given["inference"]},
    }


def _refuse_what_changes(model: BandSplitRotator, section: Mapping[str, Any]) -> None:
    """Refuse a model that differs from the one built from this section."""
    if model.configuration["mask_filter_bank"] is not None:
        raise CheckpointError(
            "Music-Source-Separation-Training cannot build this model: it knows no mask_filter_bank. Save it with "
            "layout='hunterFormsBS'."
        )
    with torch.device("meta"):
        again = from_configuration({"model": {**section, "dim_freqs_in": None}}, upstream="msst")
    mine, theirs = _effective(model), _effective(again)
    stated = {*section, "num_bands", "sample_rate", "freqs_per_bands", "norm_output", "final_norm", *NOT_AUDIBLE}
    differing = [name for name in mine if name not in stated and mine[name] != theirs[name]]
    shapes, other = ({key: tensor.shape for key, tensor in each.state_dict().items()} for each in (model, again))
    if not differing and shapes != other:
        differing = ["the band layout" if list(shapes) == list(other) else "the layers"]
    if differing:
        raise CheckpointError(
            f"Music-Source-Separation-Training cannot build this model: it has not {', '.join(differing)} as here. "
            "Save it with layout='hunterFormsBS'."
        )


def _effective(model: BandSplitRotator) -> dict[str, Any]:
    """Return a model's arguments with None replaced by what it stands for."""
    arguments = model.configuration
    usual = {**_UNLESS_STATED, "scale": arguments["dim_head"] ** -0.5, "zero_dc": model.zero_dc}
    return {name: usual.get(name) if value is None else value for name, value in arguments.items()}


def _stems(configuration: Mapping[str, Any], count: int) -> tuple[list[str], str | None]:
    """Return the names of stems, and the name of the only stem of a model of one."""
    training: Mapping[str, Any] = configuration.get("training") or {}
    names = [str(name) for name in training.get("instruments") or ()]
    target = training.get("target_instrument")
    if count == 1 and (target is not None or len(names) == 1):
        target = names[0] if target is None else str(target)
        return names or [target], target
    if len(names) != count:
        raise CheckpointError(
            f"the model has {count} stems, and training.instruments names {len(names)}"
            f"{': ' + printable(', '.join(names), 200) if names else ''}. Pass "
            "configuration={'training': {'instruments': [...]}} with a name for each, in the order of the heads."
        )
    return names, None


def _yaml(sections: Mapping[str, Any]) -> str:
    try:
        import yaml
    except ImportError as error:
        raise ImportError(f"to write YAML, install PyYAML: {how_to_install('separation')}") from error

    class Dumper(yaml.SafeDumper):
        """Plain values and tuples; the classes of those programs do not accept lists."""

    def represent(dumper: Any, values: tuple[object, ...]) -> Any:
        return dumper.represent_sequence("tag:yaml.org,2002:python/tuple", values, flow_style=True)

    Dumper.add_representer(tuple, represent)
    values = cast("dict[str, Any]", to_plain_values(sections))
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True)
