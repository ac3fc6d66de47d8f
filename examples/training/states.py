"""What a run leaves on the disk: states to continue from, each complete or not there, and a lock."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from typing import IO

from lightning_fabric import Fabric

KEPT = 2
"""States in the folder of a run: the newest, and the one before in case that is damaged."""


class StoppedError(RuntimeError):
    """A run cannot go on; the message says what to do."""


def claim(fabric: Fabric, folder: Path) -> IO[str] | None:
    """Make sure that no other run writes to this folder, for as long as the process lives and keeps what is returned.

    Processes can outlive the program that started them: killed with SIGKILL, `torchrun` takes none of its own along.

    Raises
    ------
    StoppedError
        In every process, if the folder is taken.
    """
    lock: IO[str] | None = None
    free = True
    if fabric.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
        try:
            import fcntl

            # Unlike flock, this is not inherited by the processes that read songs.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except OSError:
            free = False
    if not fabric.broadcast(free):
        raise StoppedError(f"another process trains in {folder}: end it, or choose another --output")
    return lock


def complete_states(folder: Path) -> list[Path]:
    """Return the complete states, the one with the most updates first."""
    return sorted((path for path in (folder / "resume").glob("*") if path.name.isdigit()), reverse=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what processes left that were killed while they wrote."""
    for path in (*(folder / "resume").glob("*.unfinished"), *(folder / "resume").glob("*.older")):
        remove(path)


def newest_state(folder: Path) -> Path | None:
    """Return the complete state with the most updates, if there is one."""
    return next(iter(complete_states(folder)), None)


def refuse_damaged(path: Path) -> None:
    """Compare what is in a file of `torch.save` with the sums that were written with it, which loading does not.

    Raises
    ------
    RuntimeError
        If something differs.
    zipfile.BadZipFile
        If the file has another format, or was cut off.
    """
    if path.is_file():
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged is not None:
            raise RuntimeError(f"{damaged} in it is not what was written")


def write_through(path: Path) -> None:
    """Have a file, or a folder and the files in it, on the disk and not only in the system's memory."""
    for each in (*(path.iterdir() if path.is_dir() else ()), path):
        if each.is_dir() and os.name == "nt":
            continue  # Windows opens no folders
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace(unfinished: Path, path: Path) -> None:
    """Give a complete file or folder its name, with what had that name gone only afterwards."""
    write_through(unfinished)
    if path.exists() and (path.is_dir() or unfinished.is_dir()):
        older = path.with_name(f"{path.name}.older")
        remove(older)
        path.rename(older)
        unfinished.rename(path)
        remove(older)
    else:
        unfinished.replace(path)
    write_through(path.parent)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
