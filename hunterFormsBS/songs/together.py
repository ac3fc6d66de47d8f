"""The files of one song appear together at the end, or none does, whatever happens on the way.

They are written to a hidden folder within the output, which holds a lock while its process lives, and renamed once all
are complete. What a killed process left behind has no lock: it is finished if all of its files were complete, and else
removed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import IO, Any

from hunterFormsBS.printable import printable
from hunterFormsBS.songs.names import key_of
from hunterFormsBS.songs.signals import uninterrupted

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".hunterFormsBS"
LOCK, JOURNAL = "lock", "journal"

_PLAIN = re.compile(r"[\w. -]{1,60}", re.ASCII)
"""Names that every file system takes."""


class BusyError(OSError):
    """Another process is writing the same files."""


def check_targets(targets: Sequence[Path], *, overwrite: bool, sources: Sequence[Path] = ()) -> None:
    """Find out before a song is separated whether its files can be written.

    Parameters
    ----------
    targets : Sequence[Path]
        The files.
    overwrite : bool
        Whether files that exist may be replaced.
    sources : Sequence[Path]
        Files that may not be replaced in any case.

    Raises
    ------
    OSError, ValueError
        With the file and the remedy.
    """
    kept = {(status.st_dev, status.st_ino) for status in map(_status, sources) if status is not None}
    existing: list[Path] = []
    for path in targets:
        status = _status(path)
        if status is not None and (status.st_dev, status.st_ino) in kept:
            raise ValueError(f"{printable(path)} is a song to be separated, which is never replaced: use another --output")
        if path.is_dir():
            raise IsADirectoryError(f"{printable(path)} is a folder where a stem would be: move it away")
        for parent in path.parents:
            if parent.exists() and not parent.is_dir():
                raise NotADirectoryError(
                    f"{printable(parent)} is a file where the folder of the stems would be: move it away"
                )
        if status is not None or path.is_symlink():
            existing.append(path)
    if existing and not overwrite:
        listed = ", ".join(printable(path) for path in existing)
        raise ValueError(f"{listed} exists: pass --overwrite to replace it, or another --output")


def check_names(output: Path, targets: Iterable[Path]) -> None:
    """Find out whether the file system of the output folder takes the names of files and folders below it.

    Raises
    ------
    OSError
        With the file and the remedy.
    """
    tried: set[str] = set()
    with tempfile.TemporaryDirectory(dir=output, prefix=".names.") as folder:
        for target in targets:
            for part in target.relative_to(output).parts:
                if part in tried or _PLAIN.fullmatch(part):
                    continue
                tried.add(part)
                try:
                    Path(folder, part).touch()
                    Path(folder, part).unlink()
                except (OSError, ValueError) as error:
                    reason = error.strerror if isinstance(error, OSError) else error
                    number = error.errno if isinstance(error, OSError) else errno.EINVAL
                    raise OSError(number, f"{reason}: use a shorter or plainer name", str(target)) from error


@contextmanager
def appearing_together(output: Path, targets: Sequence[Path], *, overwrite: bool = False) -> Generator[list[Path]]:
    """Give each file a place to be written, and rename all of them at the end of the with statement.

    Parameters
    ----------
    output : Path
        An existing folder, on one file system with the targets.
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
    OSError
        If something cannot be written or renamed; what was replaced until then is back.
    """
    folder = output / f".{hashlib.sha256(key_of(targets[0]).encode(errors='surrogatepass')).hexdigest()[:16]}{SUFFIX}"
    with _locked(folder, targets[0]):
        _finish_or_remove(folder, output)
        try:
            places = [folder / f"{number}{path.suffix}" for number, path in enumerate(targets)]
            yield places
            with uninterrupted():
                _rename_all(folder, output, places, targets, overwrite=overwrite)
        finally:
            with uninterrupted():
                _empty(folder)


def finish_leftovers(output: Path) -> int:
    """Finish or remove what killed processes left in the output folder, and return how many songs that were."""
    count = 0
    for folder in output.glob(f".*{SUFFIX}"):
        with suppress(OSError), _locked(folder, folder):
            _finish_or_remove(folder, output)
            count += 1
    return count


@contextmanager
def output_folder(folder: Path) -> Generator[None]:
    """Make the folder, find out whether it can be written, and remove it again if nothing came into it."""
    made = _make_folder(folder)
    try:
        probe = folder / f".{os.getpid()}{SUFFIX}.probe"
        probe.touch()
        probe.unlink()
        finish_leftovers(folder)
        yield
    finally:
        with uninterrupted():
            _remove_empty(made)


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
        relative = [os.path.relpath(target, output) for target in targets]
        (folder / JOURNAL).write_text(json.dumps([[place.name, path] for place, path in zip(places, relative, strict=True)]))
        for number, (place, target) in enumerate(zip(places, targets, strict=True)):
            if os.path.lexists(target):
                kept = folder / f"{number}.replaced"
                os.replace(target, kept)
                moved.append((target, kept))
            os.replace(place, target)
            moved.append((place, target))
    except BaseException:
        for before, after in reversed(moved):
            os.replace(after, before)
        (folder / JOURNAL).unlink(missing_ok=True)
        _remove_empty(made)
        raise


def _finish_or_remove(folder: Path, output: Path) -> None:
    """Rename the files of a killed process if all were complete, and remove what else is in its folder."""
    journal: Any = None
    with suppress(OSError, ValueError):
        journal = json.loads((folder / JOURNAL).read_text())
    for pair in journal if isinstance(journal, list) else []:
        place, target = folder / PurePath(pair[0]).name, PurePath(pair[1])
        if place.exists() and not target.is_absolute() and ".." not in target.parts:
            (output / target).parent.mkdir(parents=True, exist_ok=True)
            os.replace(place, output / target)
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
    file = path.open("a+b")
    try:
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
    finally:
        file.close()


def _lock(file: IO[bytes]) -> bool:
    """Lock an open file until it is closed, and tell whether that worked; true where there are no locks."""
    if fcntl is None:
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
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


def _status(path: Path) -> os.stat_result | None:
    """Return the status of a file, None if there is none or its name cannot be one."""
    try:
        return path.stat()
    except (OSError, ValueError):
        return None
