"""What of the settings a resumed run may not change, each with its reason. All others it may."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hunterFormsBS.training.settings import Settings

REASONS: Final = {
    "training.instruments": "each head of the model is that of the stem at its place",
    "training.optimizer": "the state of one kind of optimizer is of no use to another",
    "fine_tuning.heads": "they say what the run began with, and its heads have been trained since",
    "fine_tuning.lora": "adapters with other arguments have other weights, or mean another change of the model",
}


def kept(settings: Settings) -> dict[str, Any]:
    """Return what a state records of the settings: those of `REASONS`, in the same order."""
    lora = (
        None if settings.lora is None else {key: each for key, each in settings.lora.items() if key != "lora_dropout"}
    )
    heads = None if settings.heads is None else dict(settings.heads)
    return dict(zip(REASONS, (list(settings.stems), settings.optimizer, heads, lora), strict=True))


def refuse_changes(recorded: Mapping[str, Any], settings: Settings, folder: Path) -> None:
    """Compare what a state recorded with the settings of now.

    Parameters
    ----------
    recorded : mapping
        What `kept` returned then. States of earlier versions have recorded nothing.
    settings : Settings
    folder : Path
        Of the run.

    Raises
    ------
    ValueError
        If something has changed that may not.
    """
    now = kept(settings)
    for name, value in recorded.items():
        if name in now and now[name] != value:
            raise ValueError(
                f"the run in {folder} has {name} {value}, and the configuration {now[name]}: {REASONS[name]}. Change "
                f"it back, or start another run with --checkpoint {folder / 'last.ckpt'} and another --output"
            )
