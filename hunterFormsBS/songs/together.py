"""The files of one song appear together at the end, or none does, whatever happens on the way.

They are written to a hidden folder within the output, which holds a lock while its process lives, and renamed once all
are complete. What a killed process left behind has no lock: it is finished if all of its files were complete, and else
removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import IO, Any

from hunterFormsBS.printable import printable
from hunterFormsBS.songs.signals import uninterrupted

__all__ = ["BusyError", "appearing_together", "check_targets", "finish_leftovers", "identities"]

SUFFIX = ".hunterFormsBS"
LOCK, JOURNAL = "lock", "journal"

Identity = tuple[int, int]


class BusyError(OSError):
    """Another process is writing the same files."""


def identities(paths: Iterable[Path]) -> frozenset[Identity]:
    """Return what tells files apart whatever they are called, for those that exist."""
    return frozenset(identity for identity in map(_identity, paths) if identity is not None)


def check_targets(targets: Sequence[Path], *, overwrite: bool, kept: frozenset[Identity] = frozenset()) -> None:
    """Find out whether the files of a song can be written.

    Parameters
    ----------
    targets : Sequence[Path]
        The files.
    overwrite : bool
        Whether files that exist may be replaced.
    kept : frozenset[Identity]
        `identities` of files that may not be replaced in any case.

    Raises
    ------
    OSError, ValueError
        With the file and the remedy.
    """
    existing: list[Path] = []
    for path in targets:
        for parent in path.parents:
            if parent.exists():
                if not parent.is_dir():
                    message = f"{printable(parent)} is a file where the folder of the stems would be: move it away"
                    raise NotADirectoryError(message)
                break
        if path.is_dir():
            raise IsADirectoryError(f"{printable(path)} is a folder where a stem would be: move it away")
        if _identity(path) in kept:
            raise ValueError(f"the song {printable(path)} would be replaced by a stem: pass another --output")
        if os.path.lexists(path):
            existing.append(path)
    if existing and not overwrite:
        listed = ", ".join(printable(path) for path in existing)
        raise ValueError(f"{listed} exists: pass --overwrite to replace it, or another --output")


@contextmanager
def appearing_together(output: Path, targets: Sequence[Path], *, overwrite: bool = False) -> Generator[list[Path]]:
    """Give each file a place to be written, and rename all of them at the end of the with statement.

    Parameters
    ----------
    output : Path
        A folder on one file system with the targets. It is made, and removed again after an error.
    targets : Sequence[Path]
        Where the files are to appear, below the output folder.
    overwrite : bool
        Whether they may replace files.

    Yields
    ------
    places : list[Path]
        Where to write the files, one for each target. All of them must be written.

    Raises
    ------
    BusyError
        If another process is writing these files.
    OSError, ValueError
        If something cannot be written or renamed; what was replaced until then is back.
    """
    made = _make_folder(output)
    name = hashlib.sha256(os.fsencode(os.path.relpath(targets[0], output))).hexdigest()[:16]
    folder = output / f".{name}{SUFFIX}"
    try:
        with _locked(folder, targets[0]):
            try:
                _finish_or_remove(folder, output)
                places = [folder / f"{number}{path.suffix}" for number, path in enumerate(targets)]
                yield places
                with uninterrupted():
                    _rename_all(folder, output, places, targets, overwrite=overwrite)
            finally:
                with uninterrupted():
                    _empty(folder)
    finally:
        with uninterrupted():
            _remove_empty(made)


def finish_leftovers(output: Path) -> None:
    """Finish or remove what killed processes left in the output folder."""
    for folder in output.glob(f".*{SUFFIX}"):
        with suppress(OSError), _locked(folder, folder):
            _finish_or_remove(folder, output)


def _rename_all(
    folder: Path, output: Path, places: Sequence[Path], targets: Sequence[Path], *, overwrite: bool
) -> None:
    """Rename all files, or, after an error, have everything as it was."""
    made: list[Path] = []
    moved: list[tuple[Path, Path]] = []
    try:
        for target in targets:
            made += _make_folder(target.parent)
        check_targets(targets, overwrite=overwrite)
        # From here on a process that takes over from a killed one goes forward: everything is complete.
        names = [[place.name, os.path.relpath(target, output)] for place, target in zip(places, targets, strict=True)]
        (folder / JOURNAL).write_text(json.dumps(names))
        for number, (place, target) in enumerate(zip(places, targets, strict=True)):
            if os.path.lexists(target):
                replaced = folder / f"{number}.replaced"
                _rename(target, replaced)
                moved.append((target, replaced))
            _rename(place, target)
            moved.append((place, target))
    except BaseException:
        for before, after in reversed(moved):
            _rename(after, before)
        (folder / JOURNAL).unlink(missing_ok=True)
        _remove_empty(made)
        raise


def _rename(before: Path, after: Path) -> None:
    before.replace(after)


def _finish_or_remove(folder: Path, output: Path) -> None:
    """Rename the files of a killed process if all were complete, and remove what else is in its folder."""
    journal: list[tuple[str, str]] = []
    with suppress(OSError, TypeError, ValueError):  # Without a journal, or with half of one, nothing was renamed.
        journal = [(str(place), str(target)) for place, target in json.loads((folder / JOURNAL).read_text())]
    for place_name, target_name in journal:
        place, target = folder / PurePath(place_name).name, PurePath(target_name)
        if place.exists() and not target.is_absolute() and ".." not in target.parts:
            (output / target).parent.mkdir(parents=True, exist_ok=True)
            _rename(place, output / target)
    _empty(folder)


def _empty(folder: Path) -> None:
    """Remove what is in the hidden folder but its lock."""
    for path in folder.iterdir():
        if path.name != LOCK:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


@contextmanager
def _locked(folder: Path, target: Path) -> Generator[None]:
    """Hold the lock of a hidden folder, which is made, and removed at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with path.open("a+b") as file:
        # Whoever held the lock removed its file, if this is not the file that has the name now.
        if not _lock(file) or not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise BusyError(
                f"{printable(target)} is being written by another process: wait for it, or use another --output"
            )
        try:
            yield
        finally:
            with uninterrupted():
                if os.name == "nt":
                    file.close()  # No file that is open can be removed there.
                path.unlink(missing_ok=True)
                with suppress(OSError):
                    folder.rmdir()


def _lock(file: IO[bytes]) -> bool:
    """Lock an open file until it is closed, and tell whether that worked; true where there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return _lock_on_windows(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _lock_on_windows(file: IO[bytes]) -> bool:
    import importlib

    locks: Any = importlib.import_module("msvcrt")
    try:
        locks.locking(file.fileno(), locks.LK_NBLCK, 1)
    except OSError:
        return False
    return True


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder and all above it, and return those that were not there, outermost first."""
    missing = [path for path in reversed([folder, *folder.parents]) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in reversed(folders):
        with suppress(OSError):
            folder.rmdir()


def _identity(path: Path) -> Identity | None:
    """Return what tells a file apart, None if there is none or its name cannot be one."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
