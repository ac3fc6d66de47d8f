"""Low-rank adapters by peft: added to a model, and saved separately. `hunterforms convert --lora` merges them.

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

from hunterFormsBS.checkpoint.adapters import CONFIGURATION
from hunterFormsBS.checkpoint.heads import HEAD
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.training.settings import Settings

__all__ = ["add_adapters", "linear_layers_of_transformers", "save_adapters", "settings_of_adapters"]

# peft takes seconds to import: it is loaded where it is used.


def add_adapters(model: nn.Module, settings: Mapping[str, Any]) -> Any:
    """Add adapters to linear layers of a model, in place, and freeze everything else.

    Parameters
    ----------
    model : nn.Module
    settings : mapping
        Arguments of `peft.LoraConfig`, such as `r`, `lora_alpha`, `lora_dropout`, `target_modules`, and
        `modules_to_save`, modules to train completely. Without `target_modules` all linear layers of the transformers
        get adapters.

    Returns
    -------
    adapted : peft.PeftModel
        It wraps the model, and saves, loads and merges the adapters.

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
    """Return the names of the linear layers under `layers`."""
    modules: dict[str, nn.Module] = dict(model.named_modules())  # pyright: ignore[reportUnknownArgumentType]
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    return [name for name in linear if name.startswith("layers.")]


def settings_of_adapters(settings: Settings) -> dict[str, Any]:
    """Return the arguments of a run's adapters, with new heads among the modules to train completely."""
    arguments = dict(settings.lora or {})
    saved: list[str] = list(arguments.get("modules_to_save") or ())
    for number, stem in enumerate(settings.stems):
        name = f"{HEAD}{number}"
        covered = any(name.endswith(each) or name.startswith(f"{each}.") for each in saved)
        if (settings.heads or {}).get(stem, number) is None and not covered:
            saved.append(name)
    return {**arguments, "modules_to_save": saved} if saved else arguments


def save_adapters(adapted: Any, folder: Path, settings: Settings) -> None:
    """Save adapters as peft does, and also the stems of the model with the heads that they started from.

    peft ignores that, with a warning; nothing else distinguishes a new head from one of the checkpoint.
    """
    adapted.save_pretrained(str(folder))
    if settings.heads is None:
        return
    path = folder / CONFIGURATION
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    content["stem_heads"] = {stem: settings.heads[stem] for stem in settings.stems}
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
