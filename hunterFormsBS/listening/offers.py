"""The checkpoints that the page offers. Requests choose one by its identity, never by a path."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hunterFormsBS.catalogue import entries

__all__ = ["Offer", "offers"]

SUFFIXES = frozenset((".ckpt", ".pt", ".pth", ".th", ".bin", ".safetensors"))
CONFIGURATION_SUFFIXES = (".yaml", ".yml", ".json")


class Offer(NamedTuple):
    """A checkpoint that can be chosen.

    Parameters
    ----------
    identity : str
        For requests.
    name : str
        For people.
    checkpoint : Path
        File, name of the catalogue, or `hub:OWNER/REPOSITORY/FILE`.
    configuration : Path | None
        The configuration file of the same name in the same folder.
    fetched : bool
        Whether it has to be downloaded on first use.
    """

    identity: str
    name: str
    checkpoint: Path
    configuration: Path | None = None
    fetched: bool = False


def offers(folder: Path, checkpoints: Sequence[Path] = ()) -> dict[str, Offer]:
    """Return the given checkpoints, those below the folder, and those of the catalogue, by identity."""
    return {offer.identity: offer for offer in _offers(folder, checkpoints)}


def _offers(folder: Path, checkpoints: Sequence[Path]) -> Iterator[Offer]:
    for path in checkpoints:
        yield _of_file(path, path.as_posix())
    for path in sorted(folder.rglob("*")):
        if path.suffix in SUFFIXES and path.is_file():
            yield _of_file(path, path.relative_to(folder).as_posix())
    for name, entry in entries().items():
        if entry.repository or entry.url:
            yield Offer(name, name, Path(name), fetched=True)


def _of_file(path: Path, name: str) -> Offer:
    beside = (path.with_suffix(suffix) for suffix in CONFIGURATION_SUFFIXES)
    identity = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return Offer(identity, name, path, next((file for file in beside if file.is_file()), None))
