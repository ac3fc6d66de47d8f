"""Facts about public checkpoints: addresses, digests, and configurations that files lack.

They are in `hunterFormsBS/catalogue.json`. To add a checkpoint, add an entry there: its stems, its repository on the
Hugging Face Hub (or its `url` elsewhere, or the `page` and the `configuration_page` if only a browser can download it,
or its `parts` if it is several models), size in bytes and SHA-256, chunk size in samples, and the arguments of its
model that differ from `common`, with the names and the convention of Music-Source-Separation-Training; then maker,
date, purpose, scores, and names in other programs. `python -m benchmarks.costs --write` adds its costs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from hunterFormsBS.printable import gigabytes, gigaflops

__all__ = [
    "Costs",
    "Entry",
    "Preset",
    "ScoreSource",
    "entries",
    "find_entry",
    "names",
    "presets",
    "recognise_file",
    "score_source",
    "sha256",
]

STEMS_ELSEWHERE: Final = {"instrumental": "instrum", "instruments": "instrum"}
"""Names of stems in use, and the catalogue's names for them."""

_RELEASE: Final = re.compile(r"(https://github\.com/[^/]+/[^/]+)/releases/download/")


class Costs(NamedTuple):
    """What separating takes, as far as it is known; 0 stands for not known.

    Parameters
    ----------
    flop_per_second : int
        Floating-point operations for a second of music.
    memory : int
        Bytes for the weights and one chunk.
    """

    flop_per_second: int
    memory: int

    def __str__(self) -> str:
        """Return both in words."""
        work, memory = gigaflops(self.flop_per_second) or "unknown", gigabytes(self.memory) or "unknown"
        return f"{work} GFLOP for a second of music, {memory} GB for the weights and a chunk"


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
        In the convention of Music-Source-Separation-Training. Empty: unknown.
    repository, revision, file : str
        Its address on the Hugging Face Hub. Empty: it is elsewhere.
    url : str
        The file's address outside the Hub. Empty: it is on the Hub, or only a browser can download it.
    page : str
        The maker's page, with its terms, if any.
    configuration_page : str
        The page of its configuration, if only a browser can download both; else empty.
    parts : tuple of str
        The addresses of its models, one for each stem, if it is several, as `from_checkpoint` takes them.
    sha256 : str
        Of the file. Empty: not known.
    size : int
        Of the file, in bytes. 0: not known.
    authors : tuple of str
        Who made it.
    created : str
        YYYY-MM-DD. Empty: unknown.
    purpose : str
        What for: `"separation"`, `"dereverb"`, `"denoise"`, `"decrowd"` or `"debleed"`.
    known_as : tuple of str
        File names and titles under which other programs know it.
    scores : Mapping[str, Mapping[str, Mapping[str, float]]]
        By test set (see `score_source`), stem and metric. A test set without stems is a page with scores.
    flop_per_second : int
        Floating-point operations per second of music, with one chunk per sample. 0: unknown.
    memory : int
        Bytes for the weights and one chunk in float32, computed from shapes, for attention that stores no scores and
        without memory-saving kernels. 0: unknown.
    """

    name: str
    stems: tuple[str, ...]
    configuration: Mapping[str, Any]
    repository: str = ""
    revision: str = "main"
    file: str = ""
    url: str = ""
    page: str = ""
    configuration_page: str = ""
    parts: tuple[str, ...] = ()
    sha256: str = ""
    size: int = 0
    authors: tuple[str, ...] = ()
    created: str = ""
    purpose: str = ""
    known_as: tuple[str, ...] = ()
    scores: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict[str, Any])
    flop_per_second: int = 0
    memory: int = 0

    @property
    def whose(self) -> str:
        """One line with the maker of the weights and the page with their terms, if stated."""
        makers = " and ".join(self.authors) or "their maker"
        return f"{self.name}: weights by {makers}; their terms of use, if stated, are at {self.page}"

    @property
    def costs(self) -> Costs:
        """What separating takes where one chunk covers each sample."""
        return Costs(self.flop_per_second, self.memory)

    def goes_by(self, name: str) -> bool:
        """Tell whether this is its name here, at its publisher or in another program."""
        own = (self.file or self.url).rpartition("/")[2]
        return name == self.name or (bool(own) and name == own) or name in self.known_as


class ScoreSource(NamedTuple):
    """Where scores come from.

    Parameters
    ----------
    name : str
        The test set, and how results were averaged.
    source : str
        Who published the scores.
    compares : bool
        Whether these scores are comparable: the same music, measured in the same way.
    """

    name: str
    source: str
    compares: bool


class Preset(NamedTuple):
    """Several checkpoints whose stems are combined.

    Parameters
    ----------
    name : str
    ensemble : str
        The method; see `hunterFormsBS.ensemble`.
    checkpoints : tuple of str
        Names of the catalogue.
    stems : tuple of str
        The stems that all of them have.
    source : str
        Who put them together.
    """

    name: str
    ensemble: str
    checkpoints: tuple[str, ...]
    stems: tuple[str, ...]
    source: str


@cache
def entries() -> Mapping[str, Entry]:
    """Return all checkpoints of the catalogue by their names."""
    facts = _facts()
    return MappingProxyType({name: _entry(name, row, facts["common"]) for name, row in facts["checkpoints"].items()})


def find_entry(name: str) -> Entry | None:
    """Return the checkpoint with this name in the catalogue, of its file or in another program, or None.

    An ambiguous name, as `model.ckpt` would be, matches none.
    """
    if (entry := entries().get(name)) is not None:
        return entry
    found = [entry for entry in entries().values() if entry.goes_by(name)]
    return found[0] if len(found) == 1 else None


def names() -> list[str]:
    """Return all names of all checkpoints, those of the catalogue first."""
    return [*entries(), *(name for entry in entries().values() for name in entry.known_as)]


@cache
def presets() -> Mapping[str, Preset]:
    """Return all presets by their names."""
    return MappingProxyType({name: _preset(name, row) for name, row in _facts()["presets"].items()})


def score_source(key: str) -> ScoreSource:
    """Return the source of a key of `Entry.scores`."""
    kind, _, rest = key.partition("/")
    if kind == "musdb18":
        name = f"{rest} results on training tracks of MUSDB18, medians of museval"
        return ScoreSource(name, "audio-separator 0.47.1", compares=True)
    if kind == "mvsep":
        address = f"https://mvsep.com/quality_checker/entry/{rest}"
        return ScoreSource("a test set of MVSEP's quality checker", address, compares=False)
    return ScoreSource("a test set that is not stated", "registry of splifft 0.0.9", compares=False)


def recognise_file(path: Path, has_its_shapes: Callable[[Entry], bool]) -> Entry | None:
    """Return the checkpoint of the catalogue that a file is, or None.

    Only files of a known size are read, to compute their SHA-256. If the catalogue has no digest, a file is recognised
    by its size, if unique, and the shapes of all its tensors.

    Parameters
    ----------
    path : Path
        A path. Anything but a file is not recognised.
    has_its_shapes : callable
        Called at most once: tells whether the file's tensors have the shapes of a checkpoint's model.
    """
    size = path.stat().st_size if path.is_file() else 0
    candidates = [entry for entry in entries().values() if size and entry.size == size]
    if any(entry.sha256 for entry in candidates):
        digest = sha256(path)
        return next((entry for entry in candidates if entry.sha256 == digest), None)
    return candidates[0] if len(candidates) == 1 and has_its_shapes(candidates[0]) else None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, cached by path, size and modification time."""
    status = path.stat()
    return _sha256(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache
def _sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _facts() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(files("hunterFormsBS").joinpath("catalogue.json").read_text(encoding="utf-8"))
    return facts


def _entry(name: str, row: Mapping[str, Any], common: Mapping[str, Any]) -> Entry:
    as_they_are = ("repository", "revision", "file", "url", "configuration_page", "sha256", "size", "created")
    further = ("purpose", "scores", "flop_per_second", "memory")
    fields: dict[str, Any] = {key: row[key] for key in (*as_they_are, *further) if key in row}
    fields |= {key: tuple(row.get(key, ())) for key in ("stems", "parts", "authors", "known_as")}
    return Entry(name=name, configuration=_configuration(row, common), page=_page(row), **fields)


def _configuration(row: Mapping[str, Any], common: Mapping[str, Any]) -> Mapping[str, Any]:
    if "model" not in row:
        return {}
    model = {**common, **row["model"]}
    return {
        "audio": {"chunk_size": row["chunk_size"], "sample_rate": model.get("sample_rate", 44100)},
        "model": model,
        "training": {"instruments": list(row["stems"])},
    }


def _page(row: Mapping[str, Any]) -> str:
    if "repository" in row:
        return f"https://huggingface.co/{row['repository']}"
    url: str = row.get("url", "")
    release = _RELEASE.match(url)
    return str(row.get("page", release[1] if release else url))


def _preset(name: str, row: Mapping[str, Any]) -> Preset:
    checkpoints = tuple(row["checkpoints"])
    have = [entries()[one].stems for one in checkpoints]
    stems = tuple(stem for stem in have[0] if all(stem in stems for stems in have))
    return Preset(name, row["ensemble"], checkpoints, stems, row["source"])
