"""What a run leaves on the disk: states to continue from, each complete or not there, and a lock."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_fabric import Fabric

KEPT = 2
"""States in the folder of a run: the newest, and the one before in case that is damaged."""


_OURS = re.compile(r"\.?(?:\d{9}|last|best|rehearsal|history|report)(?:\.(?:csv|ckpt))?(?:\.\w+)?\.unfinished")
"""Names of files and folders of a run that were not completed."""


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
        if free:
            remove_unfinished(folder)
    if not fabric.broadcast(free):
        raise StoppedError(f"another process trains in {folder}: end it, or choose another --output")
    return lock


def complete_states(folder: Path) -> list[Path]:
    """Return the complete states, the one with the most updates first."""
    return sorted((path for path in (folder / "resume").glob("*") if path.name.isdigit()), reverse=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what processes left that were killed while they wrote."""
    for place in (folder, folder / "resume", folder / "scores"):
        for path in place.glob("*.unfinished"):
            if _OURS.fullmatch(path.name):
                remove(path)


def newest_state(folder: Path) -> Path | None:
    """Return the complete state with the most updates, if there is one."""
    return next(iter(complete_states(folder)), None)


def refuse_damaged(path: Path) -> None:
    """Compare what is in a file of `torch.save` with the sums that were written with it, which loading does not.

    Raises
    ------
    RuntimeError
        If something differs, or it is a folder, as sharded runs of older versions left.
    zipfile.BadZipFile
        If the file has another format, or was cut off.
    """
    if path.is_dir():
        raise RuntimeError("it is a folder of an older version, which only a pickle describes, and that could run code")
    with zipfile.ZipFile(path) as file:
        damaged = file.testzip()
    if damaged is not None:
        raise RuntimeError(f"{damaged} in it is not what was written")


def write_through(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk and not only in the system's memory."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(unfinished: Path, path: Path) -> None:
    """Give a complete file its name, in place of what had that name."""
    write_through(unfinished)
    unfinished.replace(path)
    write_through(path.parent)


def replace_files(unfinished: Path, folder: Path) -> None:
    """Put the files of a complete folder of adapters into another one, weights first: only they change in a run."""
    folder.mkdir(exist_ok=True)
    for path in sorted(unfinished.iterdir(), key=lambda path: path.suffix != ".safetensors"):
        replace(path, folder / path.name)
    unfinished.rmdir()


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
