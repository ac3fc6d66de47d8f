"""Text files read as plain values: configurations, and the index of a model in several files."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, cast

from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.kinds import refuse_unless_file, refuse_weights
from hunterFormsBS.checkpoint.parsing import check_extent, parse_json, parse_yaml
from hunterFormsBS.limits import LARGEST_TEXT
from hunterFormsBS.printable import printable

PathFilename: TypeAlias = str | PathLike[str]
"""The path of a file."""


def read_configuration(pathFilename: PathFilename) -> dict[str, Any]:
    """Read a YAML or JSON configuration.

    `!!python/tuple`, which Music-Source-Separation-Training writes, is read as a tuple. Every other tag for Python
    objects is refused; nothing in the file is executed.

    Parameters
    ----------
    pathFilename : str | PathLike[str]
        A file whose name ends in .json is JSON; all others are YAML.

    Returns
    -------
    configuration : dict[str, Any]
        The whole file, with its sections.

    Raises
    ------
    CheckpointError
        If the file is not text, is neither YAML nor JSON, is not a mapping, states a key twice, or contains Python
        objects.
    OSError
        If the file cannot be opened.
    """
    path = Path(pathFilename)
    parse = parse_json if path.suffix.lower() == ".json" else parse_yaml
    return parse_mapping(read_text(path), f"the configuration {printable(path)}", parse)


def parse_mapping(text: str, what: str, parse: Callable[[str], object] = parse_json) -> dict[str, Any]:
    """Parse a mapping of plain values; `what` names it at the start of a `CheckpointError`."""
    try:
        parsed = parse(text)
        check_extent(parsed)
    except RecursionError as error:
        raise CheckpointError(f"{what} cannot be read: it is nested too deep") from error
    except ValueError as error:
        raise CheckpointError(f"{what} cannot be read: {printable(' '.join(str(error).split()))}") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(
            f"{what} holds {'nothing' if parsed is None else type(parsed).__name__}, "
            'but must hold a mapping such as "model: {dim: 384, depth: 6}"'
        )
    return cast("dict[str, Any]", parsed)


def read_text(path: Path) -> str:
    """Read a text file, up to the size limit of configurations.

    Raises
    ------
    CheckpointError
        If it is larger, is not UTF-8, or is a checkpoint.
    OSError
        If it cannot be opened.
    """
    refuse_unless_file(path, "a configuration")
    with path.open("rb") as file:
        data = file.read(LARGEST_TEXT + 1)
    refuse_weights(path, data[:4096])
    if len(data) > LARGEST_TEXT:
        raise CheckpointError(
            f"{printable(path)} is larger than {LARGEST_TEXT:,} bytes, which no configuration is: pass the .yaml or "
            ".json file"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{printable(path)} is not a configuration, because it is not text in UTF-8: {printable(error, 120)}"
        ) from error
