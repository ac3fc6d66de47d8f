"""The Hugging Face Hub, through `huggingface_hub`: whatever fails there fails soon, in one line with the remedy."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
import ssl
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, TypeVar, cast
from urllib.request import getproxies

from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.facts import sha256
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.limits import LARGEST_TEXT, MOST_RESTARTS
from hunterFormsBS.printable import printable

__all__ = ["commit_of", "download", "names_of", "upload"]

PATIENCE: Final = 8.0
"""Seconds to wait for the answer to a short question: whether a file is there, and which files are beside it."""

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP)

_SECRETS: Final = re.compile(r"(?<=//)[^/@\s]*@|(?<=Bearer )\S+")
"""Passwords in addresses, and tokens in headers."""

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")

T = TypeVar("T")


def download(repository: str, file: str, revision: str, digest: str = "") -> Path:
    """Return a file of the Hub: that of the cache, unless there is a newer one and a connection.

    The SHA-256 is compared at every call where it is known: from the catalogue, or because the cache names a file
    after it.

    Parameters
    ----------
    repository, file, revision : str
    digest : str
        SHA-256 of the file, by which it is found in the cache without a connection.

    Raises
    ------
    CheckpointError
        If the file cannot be fetched, is damaged, or is another one than that of the digest.
    ImportError
        If huggingface_hub is not installed.
    """
    with _explained(f"{printable(file)} of {printable(repository)} cannot be fetched", repository) as hub:
        path = _find(hub, repository, file, revision, digest)
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
    """Return the commit from which a file was downloaded, after which the cache names its folder."""
    return path.parents[len(Path(file).parts) - 1].name


def names_of(repository: str, commit: str) -> list[str]:
    """Return the names of all files in a commit; without a connection as well, where it was asked for before.

    Raises
    ------
    CheckpointError
        If the commit was never listed, and cannot be now.
    """
    with _explained(f"the files of {printable(repository)} cannot be listed", repository) as hub:
        # A commit never changes, so a list of its files is kept beside the cache, for when there is no connection.
        memory = (
            Path(hub.constants.HF_ASSETS_CACHE) / "hunterFormsBS" / repository.replace("/", "--") / f"{commit}.json"
        )
        if (names := _read_names(memory)) is None:
            ask = partial(hub.HfApi().model_info, repository, revision=commit, timeout=PATIENCE)
            names = [str(sibling.rfilename) for sibling in _within(PATIENCE, ask).siblings or ()]
            with suppress(OSError):  # a cache that may only be read
                memory.parent.mkdir(parents=True, exist_ok=True)
                memory.write_text(json.dumps(names), encoding="utf-8")
    return names


def upload(repository: str, path: Path, *, private: bool) -> str:
    """Upload a file to a repository, which is made if it is not there, and return the address of the commit."""
    with _explained(f"{path.name} cannot be uploaded to {printable(repository)}", repository) as hub:
        client = hub.HfApi()
        client.create_repo(repository, private=private, exist_ok=True)
        upload_file = partial(client.upload_file, repo_id=repository, commit_message="Upload a BandSplitRotator")
        return str(upload_file(path_or_fileobj=path, path_in_repo=path.name))


def _find(hub: Any, repository: str, file: str, revision: str, digest: str) -> Path:
    fetch: Callable[..., str] = partial(hub.hf_hub_download, repository, file, revision=revision)
    cached = partial(fetch, local_files_only=True)
    missing: type[Exception] = hub.errors.LocalEntryNotFoundError
    with suppress(missing):
        # A file that cannot have changed needs no connection.
        if (digest or _COMMIT.fullmatch(revision)) and (not digest or sha256(Path(cached())) == digest):
            return Path(cached())
    # Asked first, once and with little patience: the download itself tries again for minutes.
    ask = partial(hub.get_hf_file_metadata, hub.hf_hub_url(repository, file, revision=revision), timeout=PATIENCE)
    try:
        _within(PATIENCE, ask)
    except (hub.errors.RemoteEntryNotFoundError, hub.errors.RevisionNotFoundError):
        raise
    except Exception as error:  # noqa: BLE001  # whatever it is, the cache may have the file
        unreachable = error
    else:
        return Path(fetch(tqdm_class=_bar(hub)))
    with suppress(missing):
        return Path(cached())
    raise unreachable


def _bar(hub: Any) -> type[Any]:
    """Return a progress bar that ends the download where a server sends the start of a file again and again."""
    usual: type[Any] = hub.utils.tqdm

    def update(self: Any, n: float | None = 1) -> object:
        if n is not None and n < 0:
            self.restarts += 1
        if self.restarts > MOST_RESTARTS:
            raise ConnectionError("the server breaks off, and then sends the file from its start")
        return usual.update(self, n)

    return type("Bar", (usual,), {"restarts": 0, "update": update})


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Return what a call returns, or raise TimeoutError. The timeout of a socket bounds each step, and not the sum."""
    answers: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:  # noqa: BLE001  # raised again in the thread that waits
            answers.put((None, error))

    Thread(target=ask, daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return cast("T", answer)


def _has_its_name(path: Path) -> bool:
    """Tell whether a file of the cache has the digest after which it is named: SHA-256, or that of Git."""
    if path.parent.name != "blobs":
        return True  # a copy, where the file system has no links: its name says nothing
    if re.fullmatch(r"[0-9a-f]{64}", path.name):
        return sha256(path) == path.name
    if re.fullmatch(r"[0-9a-f]{40}", path.name) and path.stat().st_size <= LARGEST_TEXT:
        data = path.read_bytes()
        # Mirrors that know nothing of Git name a file after the plain digest.
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
def _explained(what: str, repository: str) -> Generator[Any]:
    """Yield `huggingface_hub`, quiet, and turn all that it and the libraries beneath it raise into one line."""
    try:
        hub = import_module("huggingface_hub")
        for module in ("constants", "errors", "utils"):
            import_module(f"huggingface_hub.{module}")
    except ImportError as error:
        raise ImportError(f"to fetch checkpoints, install huggingface_hub: {how_to_install('hub')}") from error
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield hub
    except CheckpointError:
        raise
    except Exception as error:
        said = printable(" ".join(str(error).split()) or type(error).__name__, 200)
        line = f"{what}: {_remedy(hub, repository, error)} ({said})"
        raise CheckpointError(_SECRETS.sub("", line)) from error
    finally:
        logger.setLevel(level)


def _remedy(hub: Any, repository: str, error: Exception) -> str:
    errors, constants = hub.errors, hub.constants
    page = f"{constants.ENDPOINT}/{printable(repository)}"
    known: Sequence[tuple[type[BaseException], str]] = (
        (
            errors.OfflineModeIsEnabled,
            "it is not in the cache, and HF_HUB_OFFLINE forbids asking for it: unset HF_HUB_OFFLINE",
        ),
        (errors.GatedRepoError, f"its terms must be accepted: do so on {page}, then log in with hf auth login"),
        (errors.RevisionNotFoundError, f"the repository has no such revision: see {page}"),
        (errors.RemoteEntryNotFoundError, f"the repository has no such file: see {page}"),
        (
            errors.RepositoryNotFoundError,
            f"there is no {page}, or it is private: check the name, or log in with hf auth login",
        ),
        (errors.HFValidationError, "the Hub has no such names: write hub:OWNER/REPOSITORY/FILE"),
        (
            ssl.SSLError,
            "the certificate of the server is not trusted: if a proxy reads along, set SSL_CERT_FILE to its "
            "certificate; otherwise check the clock, and HF_ENDPOINT",
        ),
    )
    causes = _causes(error)
    for kind, remedy in known:
        if any(isinstance(cause, kind) for cause in causes):
            return remedy
    if isinstance(error, errors.HfHubHTTPError):
        return _remedy_for_status(cast("Any", error).response.status_code, page)
    numbers = {cause.errno for cause in causes if isinstance(cause, OSError)}
    if numbers & {*_FULL, *_FORBIDDEN}:
        problem = "is full: free some space" if numbers & {*_FULL} else "cannot be written: make it writable"
        return f"the cache {printable(constants.HF_HUB_CACHE)} {problem}, or set HF_HOME to another folder"
    proxy = getproxies().get(constants.ENDPOINT.partition(":")[0])
    through = f" through the proxy {printable(proxy, 80)}" if proxy else ""
    return (
        f"{constants.ENDPOINT} cannot be reached{through} or breaks off: check the connection, HTTPS_PROXY, "
        "HF_ENDPOINT and HF_TOKEN, and try again"
    )


def _remedy_for_status(status: int, page: str) -> str:
    if status in (401, 403):
        return f"you may not read {page}, or your token is wrong: log in with hf auth login, or unset HF_TOKEN"
    if status == 407:
        return "the proxy asks who you are: set HTTPS_PROXY to http://NAME:PASSWORD@HOST:PORT"
    if status == 429:
        return "the server had too many requests: wait some minutes, or log in with hf auth login"
    return f"the server answers with status {status}: try again later"


def _causes(error: BaseException) -> list[BaseException]:
    causes: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in causes:
        causes.append(following)
        following = following.__cause__ or following.__context__
    return causes
