"""Facts about public checkpoints: where they are, how to recognise them, and the configurations that files lack.

The facts are in `hunterFormsBS/catalogue.json`. To add a checkpoint, add an entry there: its stems, its repository on
the Hugging Face Hub, size in bytes and SHA-256, the samples of a chunk, and those arguments of its model that differ
from `common`, in the words and the convention of Music-Source-Separation-Training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = ["Entry", "entries", "recognise_file", "sha256"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A public checkpoint.

    Parameters
    ----------
    name : str
        Of this catalogue.
    stems : tuple of str
        In the order of the model's heads.
    configuration : Mapping[str, Any]
        As Music-Source-Separation-Training writes one.
    repository, revision, file : str
        Where it is on the Hugging Face Hub. Empty: it is elsewhere.
    sha256 : str
        Of the file. Empty: not known.
    size : int
        Of the file, in bytes. 0: not known.
    """

    name: str
    stems: tuple[str, ...]
    configuration: Mapping[str, Any]
    repository: str = ""
    revision: str = "main"
    file: str = ""
    sha256: str = ""
    size: int = 0


@cache
def entries() -> Mapping[str, Entry]:
    """Return all checkpoints of the catalogue by their names."""
    facts: dict[str, Any] = json.loads(files("hunterFormsBS").joinpath("catalogue.json").read_text(encoding="utf-8"))
    return MappingProxyType({name: _entry(name, row, facts["common"]) for name, row in facts["checkpoints"].items()})


def recognise_file(path: Path, has_its_shapes: Callable[[Entry], bool]) -> Entry | None:
    """Return which checkpoint of the catalogue a file is, or None.

    Only a file of the right size is read, to compute its SHA-256. Where the catalogue has none, a file is recognised
    by its size, if that is of one checkpoint alone, and the shapes of all its tensors.

    Parameters
    ----------
    path : Path
        A file, or anything else, which the catalogue does not have.
    has_its_shapes : callable
        Asked at most once, whether the tensors of the file have the shapes of a checkpoint's model.
    """
    size = path.stat().st_size if path.is_file() else 0
    candidates = [entry for entry in entries().values() if size and entry.size == size]
    if any(entry.sha256 for entry in candidates):
        digest = sha256(path)
        return next((entry for entry in candidates if entry.sha256 == digest), None)
    return candidates[0] if len(candidates) == 1 and has_its_shapes(candidates[0]) else None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, computed anew only where its path, size or time of change differ."""
    status = path.stat()
    return _sha256(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache
def _sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(name: str, row: Mapping[str, Any], common: Mapping[str, Any]) -> Entry:
    location = {key: row[key] for key in ("repository", "revision", "file", "sha256", "size") if key in row}
    stems = tuple(row["stems"])
    model = {**common, **row["model"]}
    configuration = {
        "audio": {"chunk_size": row["chunk_size"], "sample_rate": model.get("sample_rate", 44100)},
        "model": model,
        "training": {"instruments": list(stems)},
    }
    return Entry(name=name, stems=stems, configuration=configuration, **location)
