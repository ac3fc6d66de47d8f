"""Weights files, read without executing anything in them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor

from hunterFormsBS.checkpoint.configurationFile import PathFilename, parse_mapping, read_text
from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.kinds import kind_of_weights
from hunterFormsBS.checkpoint.torchFile import ASK_FOR_STATE_DICT, TorchFile
from hunterFormsBS.checkpoint.unpickling import DamagedError, Placeholder, StoredTensor
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.limits import (
    DEEPEST,
    DEEPEST_WEIGHTS,
    LONGEST_KEY,
    MOST_DIGITS,
    MOST_KEYS,
    MOST_SHARDS,
)
from hunterFormsBS.printable import list_some, printable, short_repr

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
    "checkpoint",
    "module",
    "ema",
    "params_ema",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema",
    "ema_model",
)
"""Keys under which trainers store weights: the model itself before its moving averages."""

_PREFIXES: Final = ("module.", "model.", "_orig_mod.")
_FIRST_KEY: Final = "band_split.to_features.0.1.weight"
_TENSORS: Final = (Tensor, StoredTensor)
_WEIGHT: Final = re.compile(r"(^|\.)(band_split|layers|final_norm|mask_estimators)\.")
_LONG_NUMBER: Final = re.compile(rf"\d{{{MOST_DIGITS + 1},}}")


class WeightsFile:
    """A weights file; its contents determine the format.

    Every member raises `CheckpointError` if the file is empty, truncated, of another format, or exceeds a limit of
    `hunterFormsBS.limits`, and `OSError` if it cannot be opened.

    Parameters
    ----------
    pathFilename : str | PathLike[str]
        A file of `torch.save` or safetensors, or the index of several safetensors files.
    """

    def __init__(self, pathFilename: PathFilename) -> None:
        self.path = Path(pathFilename)
        self.kind = kind_of_weights(self.path)
        self._file: TorchFile | None = None

    @cached_property
    def content(self) -> object:
        """The file's contents. Tensors may be `StoredTensor`s, so that optimizer states are not read into memory."""
        with _naming(self.path):
            if self.kind == "torch":
                self._file = TorchFile(self.path)
                return self._file.content
            return _read_safetensors(self.path) if self.kind == "safetensors" else _read_shards(self.path)

    @cached_property
    def configuration(self) -> Mapping[str, Any] | None:
        """The configuration that `save_checkpoint` stored in the file. No weights are read for it."""
        if self.kind == "safetensors":
            with _naming(self.path):
                metadata = _metadata_of_safetensors(self.path)
            if metadata.get("upstream") != "hunterFormsBS" or "configuration" not in metadata:
                return None
            return parse_mapping(metadata["configuration"], f"what {printable(self.path)} says of its model")
        if self.kind != "torch" or not isinstance(self.content, Mapping):
            return None
        content = cast("Mapping[str, object]", self.content)
        configuration = content.get("configuration")
        if not isinstance(configuration, Mapping) or content.get("upstream") != "hunterFormsBS":
            return None
        return cast("Mapping[str, Any]", self.read(dict(cast("Mapping[str, object]", configuration))))

    def read(self, value: object, device: torch.device | str = "cpu") -> object:
        """Return a value of `content` with its tensors read; containers may be nested up to `DEEPEST`."""
        with _naming(self.path):
            return self._read(value, torch.device(device), DEEPEST)

    def read_state_dict(
        self, chosen: Mapping[str, Tensor | StoredTensor], device: torch.device | str
    ) -> dict[str, Tensor]:
        """Read the chosen tensors."""
        return cast("dict[str, Tensor]", self.read(dict(chosen), device))

    def _read(self, value: object, device: torch.device, depth: int) -> object:
        if not depth:
            raise CheckpointError(f"it has containers in containers, more than {DEEPEST} deep")
        if isinstance(value, StoredTensor):
            return cast("TorchFile", self._file).read(value, device)
        if isinstance(value, Tensor):
            return value.to(device)
        if isinstance(value, dict):
            entries = cast("dict[object, object]", value)
            return {key: self._read(inner, device, depth - 1) for key, inner in entries.items()}
        if isinstance(value, (list, tuple)):
            items = [self._read(inner, device, depth - 1) for inner in cast("Sequence[object]", value)]
            return items if isinstance(value, list) else tuple(items)
        return value


class Contents(NamedTuple):
    """A model in a weights file.

    Parameters
    ----------
    state_dict : dict[str, Tensor]
        Its tensors, without containers and key prefixes that trainers add.
    configuration : Mapping[str, Any] or None
        The one that `save_checkpoint` stored with them, in this package's convention.
    remarks : tuple[str, ...]
        Choices among several sets of weights, for warnings.
    """

    state_dict: dict[str, Tensor]
    configuration: Mapping[str, Any] | None
    remarks: tuple[str, ...]


def read_contents(pathFilename: PathFilename, map_location: torch.device | str = "cpu") -> Contents:
    """Read a model's tensors, and its configuration in the file; raises as `read_state_dict` of this package."""
    file = WeightsFile(pathFilename)
    chosen, remarks = unwrap(file.content, file.path)
    return Contents(file.read_state_dict(chosen, map_location), file.configuration, tuple(remarks))


def unwrap(content: object, path: Path) -> tuple[dict[str, Tensor | StoredTensor], list[str]]:
    """Find the model's tensors in a file's contents, and strip prefixes from their keys.

    Everything but tensors is left out: epochs, metrics, optimizer states.

    Returns
    -------
    state_dict : dict[str, Tensor | StoredTensor]
    remarks : list[str]
        Choices, for warnings: of several sets of weights the first in the order of `_WRAPPERS` is taken.
    """
    remarks: list[str] = []
    found = content
    for _ in range(DEEPEST_WEIGHTS):
        if not isinstance(found, Mapping):
            break
        mapping = cast("Mapping[str, object]", found)
        names = [name for name in _WRAPPERS if _holds(mapping.get(name), _FIRST_KEY)]
        names = names or [name for name in _WRAPPERS if _holds(mapping.get(name))]
        if not names:
            break
        if len(names) > 1:
            remarks.append(f"{printable(path)} holds several sets of weights, {', '.join(names)}: {names[0]} is read")
        found = mapping[names[0]]
    if isinstance(found, Placeholder):
        raise CheckpointError(
            f"{printable(path)} is refused, because its weights are within {found!r}, which is neither a tensor nor a "
            f"plain container, and could run code: {ASK_FOR_STATE_DICT}"
        )
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{printable(path)} holds no state dict, but a {_kind(found)}")
    entries = cast("Mapping[object, object]", found)
    state_dict: dict[str, Tensor | StoredTensor] = {
        key: value for key, value in entries.items() if isinstance(key, str) and isinstance(value, _TENSORS)
    }
    _refuse_objects(entries, path)
    if not state_dict:
        keys = ", ".join(short_repr(key, 60) for key in list(entries)[:10]) or "none"
        raise CheckpointError(
            f"{printable(path)} holds no weights under any key that trainers use; its keys are: {keys}"
        )
    _refuse_keys(state_dict, path)
    # A compiled module inside the model has its prefix in the middle of keys.
    state_dict = {key.replace("_orig_mod.", ""): tensor for key, tensor in state_dict.items()}
    prefixes = [key.removesuffix(_FIRST_KEY) for key in state_dict if key.endswith(_FIRST_KEY)]
    if len(prefixes) > 1:
        listed = ", ".join(short_repr(prefix, 60) for prefix in prefixes[:10])
        remarks.append(f"{printable(path)} holds several models, under {listed}: {short_repr(prefixes[0], 60)} is read")
    beside = [key for key in state_dict if prefixes and not key.startswith(prefixes[0])]
    if beside:
        if len(prefixes) == 1:
            remarks.append(
                f"{printable(path)} holds a model under {short_repr(prefixes[0], 60)}, and {len(beside)} "
                f"other tensors, which are left out: {list_some(beside)}"
            )
        state_dict = {key: tensor for key, tensor in state_dict.items() if key.startswith(prefixes[0])}
    return _strip_prefixes(state_dict, prefixes[:1]), remarks


@contextmanager
def _naming(path: Path) -> Generator[None]:
    """Begin every refusal with the name of the file, in one line."""
    try:
        yield
    except DamagedError as error:
        raise CheckpointError(
            f"{printable(path)} cannot be read, it is damaged or incomplete: copy or download it again "
            f"({printable(_first_line(error), 160)})"
        ) from error
    except CheckpointError as error:
        text = str(error)
        if text.startswith(printable(path)):
            raise
        raise CheckpointError(f"{printable(path)} is refused: {text}") from error
    except MemoryError as error:
        raise CheckpointError(f"{printable(path)} asks for more memory than there is") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with _reading_safetensors():
        from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

        return cast("Callable[..., dict[str, Tensor]]", load_file)(path)


def _metadata_of_safetensors(path: Path) -> Mapping[str, str]:
    with _reading_safetensors():
        from safetensors import safe_open

        with cast("Callable[..., Any]", safe_open)(path, framework="pt") as opened:
            return opened.metadata() or {}


@contextmanager
def _reading_safetensors() -> Generator[None]:
    try:
        from safetensors import SafetensorError
    except ImportError as error:
        raise ImportError(f"to read .safetensors, install safetensors: {how_to_install('separation')}") from error
    try:
        yield
    # Dtypes that this PyTorch lacks, and names that are not text.
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DamagedError(_first_line(error)) from error


def _read_shards(path: Path) -> dict[str, object]:
    try:
        index: object = json.loads(read_text(path))
        weight_map = cast("dict[str, dict[object, object]]", index)["weight_map"]
        names = {Path(name).name for name in weight_map.values() if isinstance(name, str)}
        if (
            not names
            or "" in names
            or len(names) > MOST_SHARDS
            or any("\0" in name or len(name) > 255 for name in names)
        ):
            raise ValueError(f"it names no files, or one of no possible name, or more than {MOST_SHARDS}")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{printable(path)} is not an index of weights with a weight_map: {printable(_first_line(error), 160)}"
        ) from error
    state_dict: dict[str, object] = {}
    for name in sorted(names):
        shard = path.with_name(name)
        kind = kind_of_weights(shard)
        if kind == "index":
            raise CheckpointError(f"{printable(path)} names {printable(shard.name)}, which is an index itself")
        file = WeightsFile(shard)
        if not isinstance(file.content, dict) or not all(
            isinstance(key, str) and isinstance(value, _TENSORS)
            for key, value in cast("dict[object, object]", file.content).items()
        ):
            raise CheckpointError(f"{printable(path)} names {printable(shard.name)}, which is not a state dict")
        state_dict |= cast("dict[str, object]", file.read(cast("object", file.content)))
    return state_dict


def _holds(value: object, key_end: str = "") -> bool:
    """Tell whether a mapping contains, at any depth, a tensor whose key ends so. Each mapping is visited once."""
    level: list[Mapping[object, object]] = (
        [cast("Mapping[object, object]", value)] if isinstance(value, Mapping) else []
    )
    seen: set[int] = set()
    for _ in range(DEEPEST_WEIGHTS):
        deeper: list[Mapping[object, object]] = []
        for mapping in level:
            for key, inner in mapping.items():
                if isinstance(inner, _TENSORS):
                    if str(key).endswith(key_end):
                        return True
                elif isinstance(inner, Mapping) and id(cast("object", inner)) not in seen:
                    seen.add(id(cast("object", inner)))
                    deeper.append(cast("Mapping[object, object]", inner))
        level = deeper
    return False


def _refuse_objects(entries: Mapping[object, object], path: Path) -> None:
    """Refuse a state dict with a weight that is not a plain tensor."""
    for key, value in entries.items():
        if isinstance(key, str) and not isinstance(value, _TENSORS) and _WEIGHT.search(key[:LONGEST_KEY]):
            what = repr(value) if isinstance(value, Placeholder) else f"a {type(value).__name__}"
            raise CheckpointError(
                f"{printable(path)} is refused: its weight {short_repr(key)} is {what}, and a weight must be a "
                f"plain tensor; {ASK_FOR_STATE_DICT}"
            )


def _refuse_keys(state_dict: Mapping[str, object], path: Path) -> None:
    """Refuse more or longer keys than any model has."""
    if len(state_dict) > MOST_KEYS:
        raise CheckpointError(
            f"{printable(path)} is refused: it has {len(state_dict):,} tensors, and at most {MOST_KEYS:,} are read"
        )
    for key in state_dict:
        if len(key) > LONGEST_KEY:
            raise CheckpointError(
                f"{printable(path)} is refused: a key of it has {len(key):,} characters, and at most {LONGEST_KEY} are "
                f"read: {printable(key, 60)}"
            )
        if number := _LONG_NUMBER.search(key):
            raise CheckpointError(
                f"{printable(path)} is refused: {printable(key, 120)} has a number of {len(number[0])} digits, and at "
                f"most {MOST_DIGITS} are read"
            )


def _kind(value: object) -> str:
    return "Tensor" if isinstance(value, StoredTensor) else type(value).__name__


def _strip_prefixes(state_dict: dict[str, Tensor | StoredTensor], found: list[str]) -> dict[str, Tensor | StoredTensor]:
    """Strip the given prefix, or common ones as long as every key has one."""
    shared = [known for known in _PREFIXES if all(key.startswith(known) for key in state_dict)]
    prefix = next(iter([*found, *shared]), "")
    if not prefix:
        return state_dict
    stripped = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items()}
    return stripped if found else _strip_prefixes(stripped, [])


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
