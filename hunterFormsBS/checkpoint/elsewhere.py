"""Files published outside the Hub, for example in GitHub releases: downloaded once, verified at each load.

They are stored in the assets folder of `huggingface_hub`, whose client, offline switch and progress bar are used. Files
that only a browser can download are found there, too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from hunterFormsBS.checkpoint.connection import Server, bar, explained, soon
from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.facts import Entry, sha256
from hunterFormsBS.printable import printable

__all__ = ["by_hand", "download", "files_by_hand"]


def download(url: str, page: str, digest: str = "", size: int = 0, before: Callable[[], object] = lambda: None) -> Path:
    """Return a file from the cache, or download it, continuing an interrupted download.

    The SHA-256 is compared at every call, with the known one or that of the first download.

    Parameters
    ----------
    url : str
        Of the file.
    page : str
        The web page for people, for messages.
    digest : str
        SHA-256 of the file. Empty: not known.
    size : int
        Of the file, in bytes. 0: not known.
    before : callable
        Called before the file is transferred.

    Raises
    ------
    CheckpointError
        If the file cannot be downloaded, is damaged, or has another digest or size.
    ImportError
        If huggingface_hub is not installed.
    """
    parts = urlsplit(url)
    server = Server(f"{parts.scheme}://{parts.netloc}", page, "HTTPS_PROXY", "HF_ASSETS_CACHE")
    name = unquote(parts.path.rpartition("/")[2])
    with explained(f"{printable(name)} cannot be fetched", lambda _hub: server) as hub:
        folders = [part.replace(":", "_") for part in (parts.netloc, *parts.path.split("/")[1:-1])]
        path = Path(hub.constants.HF_ASSETS_CACHE, "hunterFormsBS", *folders, name)
        record = path.with_name(f"{name}.sha256")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Two processes that need the same file download it once.
            with hub.utils.WeakFileLock(path.with_name(f"{name}.lock")):
                if not path.exists():
                    _fetch(hub, url, page, path, record, digest, size, before)
        known = digest or record.read_text(encoding="ascii").partition(" ")[0]
        if sha256(path) != known:
            raise CheckpointError(
                f"{printable(name)} is damaged in the cache, its SHA-256 is {sha256(path)}, not {printable(known)}: "
                f"delete {printable(path)} and load it again"
            )
    return path


def files_by_hand(entry: Entry) -> tuple[Path, Path]:
    """Return the names under which the files of a checkpoint that only a browser can fetch are looked for.

    Returns
    -------
    checkpoint, configuration : Path
        In the assets folder of `huggingface_hub`, whether that package is installed or not.
    """
    try:
        assets = Path(import_module("huggingface_hub.constants").HF_ASSETS_CACHE)
    except ImportError:
        assets = Path("~/.cache/huggingface/assets").expanduser()
    folder = assets / "hunterFormsBS" / "by_hand"
    return folder / f"{entry.name}.ckpt", folder / f"{entry.name}.yaml"


def by_hand(entry: Entry) -> str:
    """Return what to do to get a checkpoint that cannot be fetched by its name."""
    if entry.parts:
        return f"it is several models, to be loaded one by one: {', '.join(entry.parts)}"
    checkpoint, configuration = files_by_hand(entry)
    return (
        f"with a browser, save {entry.page} as {printable(checkpoint)} and its configuration, "
        f"{entry.configuration_page}, as {printable(configuration)}; from then on its name loads it"
    )


def _fetch(
    hub: Any, url: str, page: str, path: Path, record: Path, digest: str, size: int, before: Callable[[], object]
) -> None:
    """Download a file to a temporary name in the same folder, and rename it once it is complete and verified."""
    incomplete = path.with_name(f"{path.name}.incomplete")
    head = soon(partial(hub.get_session().head, url, follow_redirects=True))
    hub.utils.hf_raise_for_status(head)
    offered = int(head.headers.get("Content-Length") or 0)
    if size and offered and offered != size:
        raise CheckpointError(f"{_another(path, page)}: it has {offered} bytes, not {size}")
    before()
    expected = size or offered
    with incomplete.open("ab") as file:
        if not expected or file.tell() > expected:  # The partial file does not belong to this file, or may not.
            file.truncate(0)
            file.seek(0)
        hub.file_download.http_get(
            url,
            file,
            resume_size=file.tell(),
            expected_size=expected or None,
            displayed_filename=path.name,
            tqdm_class=bar(hub),
        )
    received = sha256(incomplete)
    if digest and received != digest:
        incomplete.unlink()
        raise CheckpointError(f"{_another(path, page)}: its SHA-256 is {received}, not {digest}")
    record.write_text(f"{received}  {path.name}\n", encoding="ascii")
    incomplete.replace(path)


def _another(path: Path, page: str) -> str:
    return f"{printable(path.name)} of {printable(page)} is not the file of the catalogue"
