"""Low-rank adapters (LoRA) that peft saved, merged into the weights of a model.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv 2106.09685.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.printable import printable

__all__ = ["check_adapters", "merge_adapters"]


def check_adapters(folder: Path) -> None:
    """Refuse a folder without adapters.

    Raises
    ------
    CheckpointError
        With the remedy.
    """
    if not (folder / "adapter_config.json").is_file():
        raise CheckpointError(f"{printable(folder)} holds no adapters: choose a folder with adapter_config.json")


def merge_adapters(model: BandSplitRotator, folder: Path) -> BandSplitRotator:
    """Add saved adapters to the weights of the model that they were trained on.

    Parameters
    ----------
    model : BandSplitRotator
        Its modules are changed.
    folder : Path
        What `save_pretrained` of peft wrote: `adapter_config.json` and `adapter_model.safetensors`.

    Returns
    -------
    merged : BandSplitRotator
        Without a trace of peft, in eval mode.

    Raises
    ------
    CheckpointError
        If the folder holds no adapters, or those of another model.
    ImportError
        If peft is not installed.
    """
    check_adapters(folder)
    try:
        peft = import_module("peft")
    except ImportError as error:
        raise ImportError(f"to merge adapters, install peft: {how_to_install('lora')}") from error
    try:
        merged: BandSplitRotator = peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"the adapters in {printable(folder)} do not fit the model: pass the checkpoint that they were trained on "
            f"({printable(error)})"
        ) from error
    return merged.eval()
