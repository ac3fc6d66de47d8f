"""Downloads by `huggingface_hub`, from the Hub and elsewhere: progress, timeouts, and one-line failures."""

from __future__ import annotations

import errno
import logging
import re
import ssl
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, NamedTuple, TypeVar, cast
from urllib.request import getproxies

from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.limits import MOST_RESTARTS
from hunterFormsBS.printable import printable

__all__ = ["PATIENCE", "Server", "bar", "explained", "soon"]

PATIENCE: Final = 8.0
"""Seconds to wait for a short request: whether a file exists, and the list of files."""

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP)

_SECRETS: Final = re.compile(r"(?<=//)[^/@\s]*@|(?<=Bearer )\S+")
"""Passwords in addresses, and tokens in headers."""

T = TypeVar("T")


class Server(NamedTuple):
    """A server, as messages describe it.

    Parameters
    ----------
    address : str
        Scheme and host.
    page : str
        The web page for people.
    settings : str
        Environment variables that affect the connection.
    cache : str
        The constant of `huggingface_hub` with the folder of the cache.
    """

    address: str
    page: str
    settings: str
    cache: str


def bar(hub: Any) -> type[Any]:
    """Return a progress bar that ends the download if a server keeps restarting it."""
    usual: type[Any] = hub.utils.tqdm

    def update(self: Any, n: float | None = 1) -> object:
        if n is not None and n < 0:
            self.restarts += 1
        if self.restarts > MOST_RESTARTS:
            raise ConnectionError("the server breaks off, and then sends the file from its start")
        return usual.update(self, n)

    return type("Bar", (usual,), {"restarts": 0, "update": update})


def soon(call: Callable[..., T]) -> T:
    """Return the result of a call that takes a `timeout`; raise TimeoutError after `PATIENCE`.

    The timeout of a socket bounds each step, not the sum.
    """
    answers: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put((call(timeout=PATIENCE), None))
        except BaseException as error:  # noqa: BLE001  # raised again in the thread that waits
            answers.put((None, error))

    Thread(target=ask, daemon=True).start()
    try:
        answer, error = answers.get(timeout=PATIENCE)
    except Empty:
        raise TimeoutError(f"no answer within {PATIENCE:g} s") from None
    if error is not None:
        raise error
    return cast("T", answer)


@contextmanager
def explained(what: str, server: Callable[[Any], Server]) -> Generator[Any]:
    """Yield `huggingface_hub`, quiet; turn all exceptions of it and its libraries into one line.

    Parameters
    ----------
    what : str
        What failed: the start of the line.
    server : callable
        Returns the server, given `huggingface_hub`.
    """
    try:
        hub = import_module("huggingface_hub")
        for module in ("constants", "errors", "file_download", "utils"):
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
        line = f"{what}: {_remedy(hub, server(hub), error)} ({said})"
        raise CheckpointError(_SECRETS.sub("", line)) from error
    finally:
        logger.setLevel(level)


def _remedy(hub: Any, server: Server, error: Exception) -> str:
    errors, page = hub.errors, server.page
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
            "the certificate of the server is not trusted: if a proxy inspects the traffic, set SSL_CERT_FILE to its "
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
        cache = getattr(hub.constants, server.cache)
        return f"the cache {printable(cache)} {problem}, or set HF_HOME to another folder"
    proxy = getproxies().get(server.address.partition(":")[0])
    through = f" through the proxy {printable(proxy, 80)}" if proxy else ""
    return (
        f"{server.address} cannot be reached{through} or breaks off: check the connection, {server.settings}, "
        "and try again"
    )


def _remedy_for_status(status: int, page: str) -> str:
    if status in (401, 403):
        return f"you may not read {page}, or your token is wrong: log in with hf auth login, or unset HF_TOKEN"
    if status in (404, 410):
        return f"the file is no longer there: see {page}"
    if status == 407:
        return "the proxy requires authentication: set HTTPS_PROXY to http://NAME:PASSWORD@HOST:PORT"
    if status == 429:
        return "the server got too many requests: wait a few minutes, or log in with hf auth login"
    return f"the server answers with status {status}: try again later"


def _causes(error: BaseException) -> list[BaseException]:
    causes: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in causes:
        causes.append(following)
        following = following.__cause__ or following.__context__
    return causes
