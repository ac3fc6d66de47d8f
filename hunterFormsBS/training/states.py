"""States of a run on disk, complete or absent, and a lock."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_fabric import Fabric

KEPT = 2
"""Number of states kept: the newest, and the one before in case the newest is damaged."""


_OURS = re.compile(r"\.?(?:\d{9}|last|best|rehearsal|history|report)(?:\.(?:csv|ckpt))?(?:\.\w+)?\.unfinished")
"""Names of incomplete files and folders of a run."""


class StoppedError(RuntimeError):
    """A run cannot go on; the message says what to do."""


def claim(fabric: Fabric, folder: Path) -> IO[str] | None:
    """Lock this folder against other runs, for as long as the process keeps the returned object.

    Processes can outlive the program that started them: `torchrun` killed with SIGKILL does not end its own.

    Raises
    ------
    StoppedError
        In every process, if the folder is locked.
    """
    lock: IO[str] | None = None
    free = True
    if fabric.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
        try:
            import fcntl

            # Unlike flock, workers do not inherit this.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except OSError:
            free = False
        if free:
            remove_unfinished(folder)
    if not fabric.broadcast(free):
        raise StoppedError(f"another process trains in {folder}: end it, or choose another --output")
    return lock


def complete_states(folder: Path) -> list[Path]:
    """Return the complete states, newest first."""
    return sorted((path for path in (folder / "resume").glob("*") if path.name.isdigit()), reverse=True)


def remove_unfinished(folder: Path) -> None:
    """Remove files of processes that were killed while writing."""
    for directory in (folder, folder / "resume", folder / "scores"):
        for path in directory.glob("*.unfinished"):
            if _OURS.fullmatch(path.name):
                remove(path)


def newest_state(folder: Path) -> Path | None:
    """Return the newest complete state, if any."""
    return next(iter(complete_states(folder)), None)


def refuse_damaged(path: Path) -> None:
    """Verify the checksums in a file of `torch.save`, which loading does not.

    Raises
    ------
    RuntimeError
        If a checksum differs, or it is a folder of a sharded run of an older version.
    zipfile.BadZipFile
        If the file has another format, or is truncated.
    """
    if path.is_dir():
        raise RuntimeError("it is a folder of an older version, which only a pickle describes, and that could run code")
    with zipfile.ZipFile(path) as file:
        damaged = file.testzip()
    if damaged is not None:
        raise RuntimeError(f"{damaged} in it is not what was written")


def write_through(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def appearing(path: Path) -> Generator[Path]:
    """Yield the name under which a file is written; it gets its own when the with statement ends without an error."""
    unfinished = path.with_name(path.name + ".unfinished")
    yield unfinished
    unfinished.replace(path)


def replace(unfinished: Path, path: Path) -> None:
    """Rename a complete file, replacing the old one."""
    write_through(unfinished)
    unfinished.replace(path)
    write_through(path.parent)


def replace_files(unfinished: Path, folder: Path) -> None:
    """Move the files of a complete folder of adapters to another, weights first: only they change in a run."""
    folder.mkdir(exist_ok=True)
    for path in sorted(unfinished.iterdir(), key=lambda path: path.suffix != ".safetensors"):
        replace(path, folder / path.name)
    unfinished.rmdir()


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
