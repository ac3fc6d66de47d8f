"""Low-rank adapters by peft: put into a model, saved beside it, and merged into its weights.

    adapted = add_adapters(model, {"r": 8, "lora_alpha": 16})
    …train `model`, whose layers now have adapters…
    adapted.save_pretrained("adapters")
    merged = adapted.merge_and_unload()         # or later, of the checkpoint: `read_adapters` of the package

Needs `python -m pip install -e ".[lora]"`. Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021,
arXiv 2106.09685.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.checkpoint import from_checkpoint, save_checkpoint
from hunterFormsBS.checkpoint.adapters import CONFIGURATION, read_adapters, without_adapters
from hunterFormsBS.checkpoint.heads import HEAD, model_with_heads, with_heads
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.songs.settings import find_configuration
from hunterFormsBS.training.settings import Settings

__all__ = [
    "add_adapters",
    "linear_layers_of_transformers",
    "merge_adapters",
    "save_adapters",
    "settings_of_adapters",
]

# peft takes seconds to import: it is loaded where it is used.


def add_adapters(model: nn.Module, settings: Mapping[str, Any]) -> Any:
    """Put adapters beside linear layers of a model, in place, and freeze everything else.

    Parameters
    ----------
    model : nn.Module
    settings : mapping
        Arguments of `peft.LoraConfig`, such as `r`, `lora_alpha`, `lora_dropout`, `target_modules`, and
        `modules_to_save`, which are trained as a whole beside the adapters. Without `target_modules` all linear layers
        of the transformers have adapters.

    Returns
    -------
    adapted : peft.PeftModel
        It holds the model, and saves, loads and merges the adapters.

    Raises
    ------
    ImportError
        If peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError(f"low-rank adapters are peft's: {how_to_install('lora')} ({error})") from error

    arguments: dict[str, Any] = {"target_modules": linear_layers_of_transformers(model), **settings}
    return get_peft_model(model, LoraConfig(**arguments))


def linear_layers_of_transformers(model: nn.Module) -> list[str]:
    """Name the linear layers under `layers`."""
    modules: dict[str, nn.Module] = dict(model.named_modules())  # pyright: ignore[reportUnknownArgumentType]
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    return [name for name in linear if name.startswith("layers.")]


def settings_of_adapters(settings: Settings) -> dict[str, Any]:
    """Return the arguments of a run's adapters, with new heads among what is trained as a whole."""
    arguments = dict(settings.lora or {})
    saved: list[str] = list(arguments.get("modules_to_save") or ())
    for number, stem in enumerate(settings.stems):
        name = f"{HEAD}{number}"
        covered = any(name.endswith(each) or name.startswith(f"{each}.") for each in saved)
        if (settings.heads or {}).get(stem, number) is None and not covered:
            saved.append(name)
    return {**arguments, "modules_to_save": saved} if saved else arguments


def save_adapters(adapted: Any, folder: Path, settings: Settings) -> None:
    """Save adapters as peft does, and with them which stems the model had, and from which heads.

    peft ignores that, with a warning; nothing else tells a new head from one of the checkpoint.
    """
    adapted.save_pretrained(str(folder))
    if settings.heads is None:
        return
    path = folder / CONFIGURATION
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    content["stem_heads"] = {stem: settings.heads[stem] for stem in settings.stems}
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def merge_adapters(
    checkpoint: Path,
    adapters: Path,
    output: Path,
    configuration: Path | Mapping[str, Any] | None = None,
    *,
    keep_stems: bool = False,
) -> list[str]:
    """Write a checkpoint with low-rank adapters merged into its weights, which needs no other file.

    Parameters
    ----------
    checkpoint : Path
        What the adapters were trained on: a file, or a name that `from_checkpoint` knows.
    adapters : Path
        The folder that peft saved, or Music-Source-Separation-Training's file of loralib.
    output : Path
        The checkpoint to write.
    configuration : Path or mapping, optional
        Of the checkpoint, if that does not hold its own.
    keep_stems : bool, default False
        Where the adapters were trained with other stems: keep those of the checkpoint that they lack, with their own
        heads behind layers that have changed, and put new stems after them. Without it the stems are those of the
        adapters.

    Returns
    -------
    stems : list of str
        In the order of the heads; empty if no configuration names them.

    Raises
    ------
    CheckpointError, ImportError, OSError
        If a file cannot be read, or the adapters are those of another model.
    ValueError
        If stems are to be kept whose names no configuration states.
    """
    pathFilename, found, content = find_configuration(checkpoint, configuration)
    merging = read_adapters(adapters, content)
    stated = merging.configuration_of(content)
    base = from_checkpoint(pathFilename, None if found is None else without_adapters(content))
    merged = merging.merge_into(base)
    if merging.heads and keep_stems:
        names = _stems_of(content)
        if len(names) != base.num_stems:
            raise ValueError(
                f"{checkpoint} has {base.num_stems} stems, and its configuration names {len(names)} in "
                "training.instruments: pass a configuration that names each, or leave out --keep-stems"
            )
        merged, names = _joined(base, names, merged, list(merging.heads))
        stated["training"]["instruments"] = names
    sections = {name: section for name, section in stated.items() if name not in ("model", "upstream")}
    save_checkpoint(output, merged, configuration=sections)
    return _stems_of(stated)


def _stems_of(configuration: Mapping[str, Any]) -> list[str]:
    training: Mapping[str, Any] = configuration.get("training") or {}
    target = training.get("target_instrument")
    return [str(target)] if target else [str(name) for name in training.get("instruments") or ()]


def _joined(
    base: BandSplitRotator, names: list[str], merged: BandSplitRotator, trained: list[str]
) -> tuple[BandSplitRotator, list[str]]:
    """Return a model with the layers of one model, its heads, and the heads of another whose stems it lacks."""
    joined = [*names, *(stem for stem in trained if stem not in names)]
    model, _ = model_with_heads(merged, [trained.index(stem) if stem in trained else None for stem in joined])
    kept = with_heads(base.state_dict(), [None if stem in trained else names.index(stem) for stem in joined])
    heads = {key: tensor for key, tensor in kept.items() if key.startswith(HEAD)}
    model.load_state_dict({**model.state_dict(), **heads})
    return model, joined
