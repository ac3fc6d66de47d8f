"""Files of weights: read without running what is in them, and written so that none is ever half there."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import tarfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, cast

import torch
from torch import Tensor

from hunterFormsBS.checkpoint.configuration import PathFilename
from hunterFormsBS.checkpoint.families import CheckpointError
from hunterFormsBS.installation import how_to_install

_WRAPPERS: Final = (
    "state_dict",
    "model_state_dict",
    "state",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "best_state",
    "ema",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema",
    "ema_model",
)
"""Keys under which trainers store the weights, those of the model itself before its moving averages."""

_DEEPEST: Final = 8
"""How far down dictionaries are searched, one of which may hold itself."""

_PREFIXES: Final = ("module.", "model.", "_orig_mod.")
_FIRST_KEY: Final = "band_split.to_features.0.1.weight"


def read_file(pathFilename: PathFilename, map_location: torch.device | str) -> object:
    """Read what is in a file of weights: tensors and plain containers.

    The format is told by the content: what `torch.save` wrote, safetensors, or the index of weights in several
    safetensors files.

    Raises
    ------
    CheckpointError
        If the file is empty, truncated or of another format, or if reading it could run code.
    OSError
        If the file cannot be opened.
    """
    path = Path(pathFilename)
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        raise CheckpointError(f"{path} is empty: copy or download it again")
    if start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and not tarfile.is_tarfile(path)):
        return _read_pickled(path, map_location)
    if start[8:] == b"{":
        return _read_safetensors(path, map_location)
    if path.name.endswith(".index.json"):
        return _read_shards(path, map_location)
    raise CheckpointError(
        f"{path} is not a file of weights: neither torch.save nor safetensors wrote it. "
        "If it is a configuration, pass it as configuration"
    )


def unwrap(content: object, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Find the model's tensors in what a file holds, and strip the prefixes of their keys.

    Whatever is not a tensor is left out: epochs, metrics, the state of an optimizer.

    Returns
    -------
    state_dict : dict[str, Tensor]
    remarks : list[str]
        What had to be chosen, for warnings: of several sets of weights the first in the order of `_WRAPPERS` is taken.
    """
    remarks: list[str] = []
    found = content
    for _ in range(_DEEPEST):
        if not isinstance(found, Mapping):
            break
        mapping = cast("Mapping[str, object]", found)
        names = [name for name in _WRAPPERS if _holds(mapping.get(name), _FIRST_KEY)]
        names = names or [name for name in _WRAPPERS if _holds(mapping.get(name))]
        if not names:
            break
        if len(names) > 1:
            remarks.append(f"{path} holds several sets of weights, {', '.join(names)}: {names[0]} is read")
        found = mapping[names[0]]
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path} holds no state dict, but a {type(found).__name__}")
    entries = cast("Mapping[object, object]", found)
    state_dict = {key: value for key, value in entries.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not state_dict:
        keys = ", ".join(map(repr, list(entries)[:10])) or "none"
        raise CheckpointError(f"{path} holds no weights where they are looked for; its keys are: {keys}")
    # A compiled module inside the model puts its prefix in the middle of keys.
    state_dict = {key.replace("_orig_mod.", ""): tensor for key, tensor in state_dict.items()}
    prefixes = [key.removesuffix(_FIRST_KEY) for key in state_dict if key.endswith(_FIRST_KEY)]
    if len(prefixes) > 1:
        listed = ", ".join(map(repr, prefixes))
        remarks.append(f"{path} holds several models, under {listed}: {prefixes[0]!r} is read")
        state_dict = {key: tensor for key, tensor in state_dict.items() if key.startswith(prefixes[0])}
    return _strip_prefixes(state_dict, prefixes[:1]), remarks


def write_file(content: object, pathFilename: PathFilename) -> None:
    """Write with `torch.save`, under another name until the file is complete."""
    path = Path(pathFilename)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _read_pickled(path: Path, map_location: torch.device | str) -> object:
    try:
        # From an open file, because newer versions of torch.load go by the suffix.
        with path.open("rb") as file, warnings.catch_warnings():
            # torch.load remarks on the format of a file before it refuses it.
            warnings.simplefilter("ignore")
            content: object = torch.load(file, map_location=map_location, weights_only=True)
    # What the bytes of a damaged or hostile file raise is as arbitrary as they are.
    except Exception as error:
        # A damaged file can also ask for a position before its start, which is an invalid argument.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        text = str(error)
        refused = re.search(r"GLOBAL (\S+)", text) or re.search(r"(TorchScript) archive", text)
        if refused or (isinstance(error, pickle.UnpicklingError) and "Unsupported" in text):
            what = refused[1] if refused else "an unknown instruction"
            raise CheckpointError(
                f"{path} is refused, because to read it Python would have to unpickle {what}, which could run code: "
                "only tensors and plain containers are read. If you trust where the file comes from, load it with the "
                "program that made it and save the state dict of its model alone"
            ) from error
        raise CheckpointError(
            f"{path} cannot be read, it is damaged or incomplete: copy or download it again ({_first_line(error)})"
        ) from error
    return content


def _read_safetensors(path: Path, map_location: torch.device | str) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
    except ImportError as error:
        raise ImportError(f"to read .safetensors, install safetensors: {how_to_install('separation')}") from error
    try:
        return cast("Callable[..., dict[str, Tensor]]", load_file)(path, device=str(map_location))
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} cannot be read, it is damaged or incomplete: copy or download it again ({_first_line(error)})"
        ) from error


def _read_shards(path: Path, map_location: torch.device | str) -> dict[str, Tensor]:
    try:
        index: object = json.loads(path.read_text(encoding="utf-8"))
        names = cast("dict[str, dict[str, str]]", index)["weight_map"].values()
        shards = sorted({Path(name).name for name in names})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not an index of weights with a weight_map: {_first_line(error)}") from error
    state_dict: dict[str, Tensor] = {}
    for shard in shards:
        content = read_file(path.with_name(shard), map_location)
        state_dict.update(cast("dict[str, Tensor]", content))
    return state_dict


def _holds(value: object, key_end: str = "", depth: int = _DEEPEST) -> bool:
    """Tell whether a mapping holds, at some depth, a tensor whose key ends so."""
    if not isinstance(value, Mapping) or not depth:
        return False
    return any(
        str(key).endswith(key_end) if isinstance(inner, Tensor) else _holds(inner, key_end, depth - 1)
        for key, inner in cast("Mapping[object, object]", value).items()
    )


def _strip_prefixes(state_dict: dict[str, Tensor], found: list[str]) -> dict[str, Tensor]:
    """Strip the prefix that was found, or the usual ones as long as every key has one of them."""
    shared = [known for known in _PREFIXES if all(key.startswith(known) for key in state_dict)]
    prefix = next(iter([*found, *shared]), "")
    if not prefix:
        return state_dict
    stripped = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items()}
    return stripped if found else _strip_prefixes(stripped, [])


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
