"""The Hugging Face Hub, through `huggingface_hub`. Failures end soon, in one line with the remedy."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from hunterFormsBS.checkpoint.connection import Server, bar, explained, soon
from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.facts import sha256
from hunterFormsBS.limits import LARGEST_TEXT
from hunterFormsBS.printable import printable

__all__ = ["commit_of", "download", "names_of", "upload"]

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


def download(
    repository: str, file: str, revision: str, digest: str = "", before: Callable[[], object] = lambda: None
) -> Path:
    """Return a file of the Hub: the cached one, unless there is a newer one and a connection.

    The SHA-256 is compared at every call if it is known from the catalogue or from the name of the cached file.

    Parameters
    ----------
    repository, file, revision : str
    digest : str
        SHA-256 of the file, to find it in the cache offline.
    before : callable
        Called before a file that is not in the cache is downloaded.

    Raises
    ------
    CheckpointError
        If the file cannot be downloaded, is damaged, or has another digest.
    ImportError
        If huggingface_hub is not installed.
    """
    with _of_hub(f"{printable(file)} of {printable(repository)} cannot be fetched", repository) as hub:
        path = _find(hub, repository, file, revision, digest, before)
    kept = path.resolve()
    if not _has_its_name(kept):
        raise CheckpointError(
            f"{printable(file)} of {printable(repository)} is damaged in the cache, its digest is not the one that it "
            f"had on the Hub: delete {printable(kept)} and load it again"
        )
    if digest and sha256(path) != digest:
        raise CheckpointError(
            f"{printable(file)} of {printable(repository)} is not the file of the catalogue: its SHA-256 is "
            f"{sha256(path)}, not {digest}. If its author replaced it, name a revision: "
            "hub:OWNER/REPOSITORY/FILE@REVISION"
        )
    return path


def commit_of(path: Path, file: str) -> str:
    """Return the commit from which a file was downloaded: the name of its folder in the cache."""
    return path.parents[len(Path(file).parts) - 1].name


def names_of(repository: str, commit: str) -> list[str]:
    """Return the names of all files in a commit; offline, from an earlier list.

    Raises
    ------
    CheckpointError
        If the commit was never listed and cannot be listed now.
    """
    with _of_hub(f"the files of {printable(repository)} cannot be listed", repository) as hub:
        # A commit never changes, so the list of its files is stored for offline use.
        memory = (
            Path(hub.constants.HF_ASSETS_CACHE) / "hunterFormsBS" / repository.replace("/", "--") / f"{commit}.json"
        )
        if (names := _read_names(memory)) is None:
            ask = partial(hub.HfApi().model_info, repository, revision=commit)
            names = [str(sibling.rfilename) for sibling in soon(ask).siblings or ()]
            with suppress(OSError):  # a read-only cache
                memory.parent.mkdir(parents=True, exist_ok=True)
                memory.write_text(json.dumps(names), encoding="utf-8")
    return names


def upload(repository: str, path: Path, *, private: bool) -> str:
    """Upload a file to a repository, creating it if necessary; return the address of the commit."""
    with _of_hub(f"{path.name} cannot be uploaded to {printable(repository)}", repository) as hub:
        client = hub.HfApi()
        client.create_repo(repository, private=private, exist_ok=True)
        upload_file = partial(client.upload_file, repo_id=repository, commit_message="Upload a BandSplitRotator")
        return str(upload_file(path_or_fileobj=path, path_in_repo=path.name))


def _find(hub: Any, repository: str, file: str, revision: str, digest: str, before: Callable[[], object]) -> Path:
    fetch: Callable[..., str] = partial(hub.hf_hub_download, repository, file, revision=revision)
    cached = partial(fetch, local_files_only=True)
    missing: type[Exception] = hub.errors.LocalEntryNotFoundError
    with suppress(missing):
        # A file that cannot have changed needs no connection.
        if (digest or _COMMIT.fullmatch(revision)) and (not digest or sha256(Path(cached())) == digest):
            return Path(cached())
    # Asked first, once, with a short timeout: the download itself retries for minutes.
    ask = partial(hub.get_hf_file_metadata, hub.hf_hub_url(repository, file, revision=revision))
    try:
        soon(ask)
    except (hub.errors.RemoteEntryNotFoundError, hub.errors.RevisionNotFoundError):
        raise
    except Exception as error:  # noqa: BLE001  # whatever it is, the cache may have the file
        unreachable = error
    else:
        try:
            cached()
        except missing:
            before()
        return Path(fetch(tqdm_class=bar(hub)))
    with suppress(missing):
        return Path(cached())
    raise unreachable


def _has_its_name(path: Path) -> bool:
    """Tell whether a cached file has the digest in its name: SHA-256, or Git's."""
    if path.parent.name != "blobs":
        return True  # a copy, on a file system without links: its name is not a digest
    if re.fullmatch(r"[0-9a-f]{64}", path.name):
        return sha256(path) == path.name
    if re.fullmatch(r"[0-9a-f]{40}", path.name) and path.stat().st_size <= LARGEST_TEXT:
        data = path.read_bytes()
        # Mirrors without Git name a file after the plain digest.
        forms = (b"blob %d\0" % len(data) + data, data)
        return path.name in (hashlib.sha1(form, usedforsecurity=False).hexdigest() for form in forms)
    return True


def _read_names(memory: Path) -> list[str] | None:
    try:
        names: object = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(names, list):
        return None
    return [name for name in cast("list[object]", names) if isinstance(name, str)]


@contextmanager
def _of_hub(what: str, repository: str) -> Generator[Any]:
    """Yield `huggingface_hub` as `explained` does, for a repository of the Hub."""

    def server(hub: Any) -> Server:
        page = f"{hub.constants.ENDPOINT}/{printable(repository)}"
        return Server(hub.constants.ENDPOINT, page, "HTTPS_PROXY, HF_ENDPOINT and HF_TOKEN", "HF_HUB_CACHE")

    with explained(what, server) as hub:
        yield hub
