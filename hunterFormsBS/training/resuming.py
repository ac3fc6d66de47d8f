"""Settings that a resumed run may not change, with reasons."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hunterFormsBS.training.settings import Settings

REASONS: Final = {
    "training.instruments": "each head belongs to the stem at its index",
    "training.optimizer": "another optimizer cannot use the state",
    "fine_tuning.heads": "they say what the run started from, and have been trained since",
    "fine_tuning.lora": "adapters with other arguments have other weights, or change the model differently",
}


def kept(settings: Settings) -> dict[str, Any]:
    """Return the settings to record in a state: those of `REASONS`, in order."""
    lora = (
        None if settings.lora is None else {key: each for key, each in settings.lora.items() if key != "lora_dropout"}
    )
    heads = None if settings.heads is None else dict(settings.heads)
    return dict(zip(REASONS, (list(settings.stems), settings.optimizer, heads, lora), strict=True))


def refuse_changes(recorded: Mapping[str, Any], settings: Settings, folder: Path) -> None:
    """Compare recorded with current settings.

    Parameters
    ----------
    recorded : mapping
        The result of `kept` then; empty for states of earlier versions.
    settings : Settings
    folder : Path
        Of the run.

    Raises
    ------
    ValueError
        If a setting has changed that may not.
    """
    now = kept(settings)
    for name, value in recorded.items():
        if name in now and now[name] != value:
            raise ValueError(
                f"the run in {folder} has {name} {value}, and the configuration {now[name]}: {REASONS[name]}. Change "
                f"it back, or start another run with --checkpoint {folder / 'last.ckpt'} and another --output"
            )
