"""Public checkpoints by name: where they are, how to recognise them, and what their files do not say.

    model = from_checkpoint("bs_roformer-unwa-revive")            # fetched once, then from the cache
    model = from_checkpoint("hub:pcunwa/BS-Roformer-Revive/bs_roformer_revive.ckpt")
    recognise("anything.ckpt")                                    # a file that is here, by size and SHA-256

The facts are in `catalogue.json`. To add a checkpoint, add an entry there: its stems, its place on the Hugging Face
Hub, size in bytes and SHA-256, the samples of a chunk, and those arguments of its model that differ from `common`, in
the words and the counting of Music-Source-Separation-Training.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, cast

from hunterFormsBS.checkpoint.configurationFile import PathFilename, read_configuration
from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.printable import printable, short_repr

if TYPE_CHECKING:
    from hunterFormsBS.bandSplitRotator import BandSplitRotator

__all__ = ["Entry", "entries", "fetch", "publish", "recognise"]

PREFIX: Final = "hub:"
MODEL: Final = "model.safetensors"
"""The file of a model that `publish` uploads."""


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
        Place on the Hugging Face Hub. Empty: it is elsewhere.
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


def recognise(pathFilename: PathFilename) -> Entry | None:
    """Return which checkpoint of the catalogue a file is, or None.

    Only a file of the right size is read, to compute its SHA-256. Where the catalogue has none, a file is recognised
    by its size, if that is of one checkpoint alone, and the shapes of all its tensors.
    """
    path = Path(pathFilename)
    size = path.stat().st_size if path.is_file() else 0
    candidates = [entry for entry in entries().values() if size and entry.size == size]
    if any(entry.sha256 for entry in candidates):
        digest = _sha256(path)
        return next((entry for entry in candidates if entry.sha256 == digest), None)
    if len(candidates) == 1 and _has_the_shapes_of(candidates[0], path):
        return candidates[0]
    return None


def is_remote(name: object) -> bool:
    """Tell whether this names a checkpoint to fetch, and no file that is here."""
    return isinstance(name, str) and (name.startswith(PREFIX) or (name in entries() and not Path(name).exists()))


def find(name: PathFilename) -> tuple[Path, Mapping[str, Any] | None]:
    """Return the file of a checkpoint, fetched by `fetch` if this is a name, and then its configuration.

    Raises
    ------
    CheckpointError, ImportError
        See `fetch`.
    FileNotFoundError
        If there is no such file; with the name of the catalogue that may be meant.
    """
    text = Path(name).as_posix()
    if is_remote(text):
        return fetch(text)
    path = Path(name)
    if not path.exists():
        near = difflib.get_close_matches(text, entries(), n=1, cutoff=0.8)
        hint = f"; the catalogue has {near[0]}" if near else ""
        raise FileNotFoundError(errno.ENOENT, f"{os.strerror(errno.ENOENT)}{hint}", str(name))
    return path, None


def fetch(name: str) -> tuple[Path, Mapping[str, Any] | None]:
    """Fetch a checkpoint from the Hugging Face Hub, or find it in the cache of `huggingface_hub`.

    That package's settings apply: its cache, its token, `HF_HUB_OFFLINE`, `HF_ENDPOINT`, and its progress bar.

    Parameters
    ----------
    name : str
        Of the catalogue, or `hub:OWNER/REPOSITORY/FILE`.

    Returns
    -------
    path : Path
        The file, whose SHA-256 is that of the catalogue where it is known.
    configuration : Mapping[str, Any] or None
        That of the catalogue, or what stands beside the file under its name, or the only YAML file of the repository.

    Raises
    ------
    CheckpointError
        If the name is unknown, the file cannot be fetched, or it is another one than the catalogue's.
    ImportError
        If huggingface_hub is not installed.
    """
    entry = entries().get(name) or _entry_at(name)
    if not entry.repository:
        raise CheckpointError(
            f"{printable(name)} is in the catalogue, and not on the Hugging Face Hub: download it by hand, and pass "
            "the file, which is recognised"
        )
    path = _download(entry.repository, entry.file, entry.revision)
    if entry.sha256 and _sha256(path) != entry.sha256:
        raise CheckpointError(
            f"{printable(entry.file)} of {printable(entry.repository)} is not the file of the catalogue: its SHA-256 "
            f"is {_sha256(path)}, not {entry.sha256}. If its author replaced it, name a revision: "
            "hub:OWNER/REPOSITORY/FILE@REVISION"
        )
    configuration: Mapping[str, Any] | None = entry.configuration or _configuration_beside(entry)
    return path, configuration


def publish(
    model: BandSplitRotator,
    repository: str,
    *,
    configuration: Mapping[str, Any] | None = None,
    private: bool = False,
) -> str:
    """Upload a model to the Hugging Face Hub, where `BandSplitRotator.from_pretrained` finds it.

    Parameters
    ----------
    model : BandSplitRotator
        It becomes one file of safetensors that holds its arguments.
    repository : str
        `OWNER/REPOSITORY`, made if it is not there.
    configuration : Mapping[str, Any] | None = None
        Further sections; see `hunterFormsBS.checkpoint.save_checkpoint`.
    private : bool = False
        Whether a new repository is.

    Returns
    -------
    str
        The address of the commit.

    Raises
    ------
    CheckpointError
        If the upload is refused or there is no connection.
    ImportError
        If huggingface_hub is not installed.
    """
    from hunterFormsBS.checkpoint.saving import save_checkpoint

    hub = _hub()
    with TemporaryDirectory() as folder, _explained(f"{MODEL} cannot be uploaded to {printable(repository)}"):
        path = Path(folder) / MODEL
        save_checkpoint(path, model, configuration=configuration)
        client = hub.HfApi()
        client.create_repo(repository, private=private, exist_ok=True)
        return str(
            client.upload_file(
                path_or_fileobj=path, path_in_repo=MODEL, repo_id=repository, commit_message="Upload a BandSplitRotator"
            )
        )


def _entry(name: str, row: Mapping[str, Any], common: Mapping[str, Any]) -> Entry:
    place = {key: row[key] for key in ("repository", "revision", "file", "sha256", "size") if key in row}
    stems = tuple(row["stems"])
    model = {**common, **row["model"]}
    configuration = {
        "audio": {"chunk_size": row["chunk_size"], "sample_rate": model.get("sample_rate", 44100)},
        "model": model,
        "training": {"instruments": list(stems)},
    }
    return Entry(name=name, stems=stems, configuration=configuration, **place)


def _entry_at(name: str) -> Entry:
    """Return the entry of `hub:OWNER/REPOSITORY/FILE`, with `@REVISION` or without, which may be in the catalogue."""
    place, _, revision = name.removeprefix(PREFIX).partition("@")
    owner, _, rest = place.partition("/")
    repository, _, file = rest.partition("/")
    if not name.startswith(PREFIX) or not (owner and repository and file):
        raise CheckpointError(
            f"{short_repr(name)} is neither a name of the catalogue nor hub:OWNER/REPOSITORY/FILE: see "
            "hunterFormsBS.catalogue.entries()"
        )
    repository = f"{owner}/{repository}"
    for entry in entries().values():
        if (entry.repository, entry.file) == (repository, file) and revision in ("", entry.revision):
            return entry
    return Entry(name=name, stems=(), configuration={}, repository=repository, file=file, revision=revision or "main")


def _configuration_beside(entry: Entry) -> Mapping[str, Any] | None:
    try:
        with _explained(entry.repository):
            names: list[str] = _hub().HfApi().list_repo_files(entry.repository, revision=entry.revision)
    except CheckpointError:
        return None  # Offline: the file came from the cache.
    texts = [name for name in names if name.lower().endswith((".yaml", ".yml"))]
    stem = str(Path(entry.file).with_suffix(""))
    own = [name for name in texts if str(Path(name).with_suffix("")) == stem] or (texts if len(texts) == 1 else [])
    return read_configuration(_download(entry.repository, own[0], entry.revision)) if own else None


def _download(repository: str, file: str, revision: str) -> Path:
    with _explained(f"{printable(file)} of {printable(repository)} cannot be fetched from the Hugging Face Hub"):
        return Path(cast("Callable[..., str]", _hub().hf_hub_download)(repository, file, revision=revision))


@contextmanager
def _explained(what: str) -> Generator[None]:
    """Turn what huggingface_hub and the libraries beneath it raise into one line that begins with `what`."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        of_hub = type(error).__module__.partition(".")[0] in ("huggingface_hub", "httpx", "requests")
        if not of_hub and not isinstance(error, (OSError, ValueError)):
            raise
        raise CheckpointError(f"{what}: {printable(' '.join(str(error).split()), 300)}") from error


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(f"to fetch checkpoints, install huggingface_hub: {how_to_install('hub')}") from error
    return huggingface_hub


def _has_the_shapes_of(entry: Entry, path: Path) -> bool:
    """Tell whether a file holds the tensors of the checkpoint's model, by their keys and shapes."""
    import torch

    from hunterFormsBS.checkpoint.loading import from_configuration
    from hunterFormsBS.checkpoint.stateDict import translate_state_dict
    from hunterFormsBS.checkpoint.weightsFile import WeightsFile, unwrap

    file = WeightsFile(path)
    try:
        found = translate_state_dict(file.read_state_dict(unwrap(file.content, path)[0], "meta"))
    except CheckpointError:
        return False
    with torch.device("meta"):
        expected = from_configuration(entry.configuration).state_dict()
    return {key: tensor.shape for key, tensor in found.items()} == {
        key: tensor.shape for key, tensor in expected.items()
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
