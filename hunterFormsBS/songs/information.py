"""A description of a checkpoint: family, arguments, stems, sample rate, and arguments that nothing determines."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import cast

from hunterFormsBS.checkpoint import from_checkpoint, read_state_dict
from hunterFormsBS.checkpoint.configuration import to_plain_values
from hunterFormsBS.checkpoint.recognition import recognise
from hunterFormsBS.choices import Upstream
from hunterFormsBS.console import Console, one_line
from hunterFormsBS.printable import printable, say
from hunterFormsBS.songs.settings import find_configuration, read_settings, stated_separation

__all__ = ["show_information"]


def show_information(
    checkpoint: Path, console: Console, *, configuration: Path | None = None, upstream: Upstream | None = None
) -> int:
    """Print the description of a checkpoint as lines or, with `--json`, as one record, and return the exit status."""
    file, used, content = find_configuration(checkpoint, configuration)
    settings, _ = read_settings(content)
    of_configuration = stated_separation(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        family = recognise(read_state_dict(file), upstream).family
        model = from_checkpoint(file, used, upstream=upstream)
    remarks = list(dict.fromkeys(one_line(warning.message) for warning in caught))
    numbered = [f"stem_{number}" for number in range(1, model.num_stems + 1)]
    arguments = {name: to_plain_values(value) for name, value in model.configuration.items()}
    information: dict[str, object] = {
        "checkpoint": str(file),
        "family": family.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "stems": settings.names if len(settings.names) == model.num_stems else numbered,
        "sample_rate": settings.sample_rate,
        **{name: of_configuration.get(name) for name in ("chunk_size", "num_overlap", "batch_size")},
        "normalize": settings.normalize,
        "arguments": arguments,
        "warnings": remarks,
    }
    if console.json:
        console.record(information)
        return 0
    for name, value in information.items():
        if name == "arguments":
            say("arguments:", sys.stdout)
            for argument, stated in arguments.items():
                say(f"  {argument}: {_shown(stated)}", sys.stdout)
        elif name == "warnings":
            for remark in remarks:
                console.warn(remark)
        else:
            say(f"{name}: {_shown(value)}", sys.stdout)
    return 0


def _shown(value: object) -> str:
    """Return a value for people: lists with commas, None as `not stated`."""
    if value is None:
        return "not stated"
    if isinstance(value, list):
        value = ", ".join(map(str, cast("list[object]", value)))
    return printable(value if isinstance(value, str) else json.dumps(value, default=str))
