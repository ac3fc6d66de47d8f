"""Low-rank adapters by peft: put into a model, saved beside it, and merged into its weights.

    adapted = add_adapters(model, {"r": 8, "lora_alpha": 16})
    …train `model`, whose layers now have adapters…
    adapted.save_pretrained("adapters")
    merged = adapted.merge_and_unload()         # or later, of the checkpoint: `read_adapters` of the package

Needs `python -m pip install -e ".[lora]"`. Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021,
arXiv 2106.09685.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hunterFormsBS.checkpoint import from_checkpoint, save_checkpoint
from hunterFormsBS.checkpoint.adapters import read_adapters
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.songs.settings import find_configuration

__all__ = ["add_adapters", "linear_layers_of_transformers", "merge_adapters"]

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


def merge_adapters(
    checkpoint: Path, adapters: Path, output: Path, configuration: Path | Mapping[str, Any] | None = None
) -> None:
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

    Raises
    ------
    CheckpointError, ImportError, OSError
        If a file cannot be read, or the adapters are those of another model.
    """
    pathFilename, found, content = find_configuration(checkpoint, configuration)
    merging = read_adapters(adapters, content)
    stated = {name: section for name, section in content.items() if name != "lora"}
    merged = merging.merge_into(from_checkpoint(pathFilename, None if found is None else stated))
    sections = {name: section for name, section in stated.items() if name not in ("model", "upstream")}
    save_checkpoint(output, merged, configuration=sections)
