"""Files of a song that appear together once all of them are complete, and trust nothing that others left.

Each is written under an unguessable hidden name in the folder of its target, and renamed at the end. Until then it is
locked: a file of such a name without a lock was left by a killed process, and the next run removes it.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import secrets
import stat
import sys
import time
from collections.abc import Callable, Container, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Literal, Self

from hunterFormsBS.printable import printable
from hunterFormsBS.songs.names import key_of
from hunterFormsBS.songs.signals import uninterrupted

__all__ = [
    "BusyError",
    "Existing",
    "appearing_together",
    "called",
    "check_targets",
    "check_writable",
    "identity",
    "remove_leftovers",
    "scratch_file",
]

Existing = Literal["refuse", "keep", "replace"]
"""Ways to treat a file that exists under the name of a stem; "refuse": the song fails."""

Identity = tuple[int, int]

ATTEMPTS = 4
"""How often a song is begun: two processes that begin at the same moment notice each other, and both step back."""

_HIDDEN = re.compile(r"\.[0-9a-f]{16}\.[0-9a-f]{16}\.hunterFormsBS(\.\w+)?")


class BusyError(OSError):
    """Another process is writing the same files."""


def identity(path: Path) -> Identity | None:
    """Return device and inode of a file; None if there is none, or its name cannot be one."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def check_targets(
    output: Path, targets: Sequence[Path], *, existing: Existing, kept: Container[Identity | None] = ()
) -> None:
    """Raise an OSError or a ValueError if the files of a song cannot be written below the output folder.

    `kept` has the `identity` of each file that may never be replaced.
    """
    for path in targets:
        _real_folder(output, path.parent)
        for parent in path.parents:
            if parent.exists():
                if not parent.is_dir():
                    message = f"{printable(parent)} is a file where the folder of the stems would be: move it away"
                    raise NotADirectoryError(message)
                break
        if path.is_dir():
            raise IsADirectoryError(f"{printable(path)} is a folder where a stem would be: move it away")
        if identity(path) in kept:
            raise ValueError(f"the song {printable(path)} would be replaced by a stem: pass another --output")
    if existing == "refuse" and (found := [path for path in targets if os.path.lexists(path)]):
        raise _exists(found)


def check_writable(output: Path) -> None:
    """Raise an OSError if no file can be made in a folder, which is made for that, and removed again."""
    with called(output), _Made() as made:
        _new_file(output / "probe", output, made)


def remove_leftovers(output: Path, folder: Path) -> list[str]:
    """Remove what killed processes of this user left in the output folder, or in one below it.

    These are regular files with hidden names, as `appearing_together` makes them, and without a lock. What is returned
    are the `_key`s of files that processes are writing there.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if _HIDDEN.fullmatch(entry.name)]
        folder = _real_folder(output, folder) if names else folder
    except (OSError, ValueError):  # It is not there, or not ours.
        return []
    return [name.split(".")[1] for name in names if _is_written(folder / name)]


@contextmanager
def appearing_together(
    output: Path, targets: Sequence[Path], *, existing: Existing = "refuse"
) -> Generator[list[FileIO]]:
    """Make files that get their names together at the end of the with statement, or, after an error, are removed.

    Parameters
    ----------
    output : Path
        The folder that all are below. Links below it are not followed out of it. Folders that do not exist are made,
        and removed again after an error.
    targets : Sequence[Path]
        The names that the files get.
    existing : Existing, default "refuse"
        What becomes of files that have these names by then.

    Yields
    ------
    files : list[FileIO]
        One for each target, open for writing; `name` is the hidden name. All must be written.

    Raises
    ------
    BusyError
        If another process is writing one of them.
    OSError, ValueError
        If a file cannot be made or named. After that, what had the names before has them again.
    """
    with _Made() as made:
        files = _begin(output, targets, made)
        yield files
        for file, target in zip(files, targets, strict=True):
            with called(target):
                os.fsync(file.fileno())
        with uninterrupted(), ExitStack() as undo:
            for file, target in zip(files, targets, strict=True):
                if sys.platform == "win32":  # Nothing that is open can be renamed there.
                    file.close()
                with called(target):
                    _name(Path(str(file.name)), _real_folder(output, target.parent) / target.name, existing, made, undo)
            undo.pop_all()


@contextmanager
def called(path: Path) -> Generator[None]:
    """Name this path, and not a hidden one, in errors."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def scratch_file(folder: Path) -> IO[bytes]:
    """Open a file without a name, which is removed when it is closed, however the process ends.

    Where a system cannot make files without names, it has a hidden one for an instant, which the next run removes after
    a kill, as all others.
    """
    with called(folder):
        return TemporaryFile(dir=folder, prefix=f"{_hidden_name(folder / 'scratch')}.")


class _Made(list[Callable[[], object]]):
    """Functions that remove what this process has made, called at the end of the with statement, the last one first.

    Each is appended before the file or folder is made, so that no signal comes between. They are also called when the
    list is freed, since a signal just before the end of a with statement can keep its exit from running.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.remove_all()

    def __del__(self) -> None:
        if self:
            self.remove_all()

    def remove_all(self) -> None:
        with uninterrupted():
            while self:
                with suppress(OSError):
                    self.pop()()


def _begin(output: Path, targets: Sequence[Path], made: _Made) -> list[FileIO]:
    """Make the hidden files, unless another process has them."""
    busy: list[Path] = []
    for _ in range(ATTEMPTS):
        files = [_new_file(target, output, made) for target in targets]
        # Only now, so that at least one of two processes notices the other.
        writing = {folder: remove_leftovers(output, folder) for folder in {target.parent for target in targets}}
        busy = [target for target in targets if writing[target.parent].count(_key(target)) > 1]
        if not busy:
            return files
        made.remove_all()
        time.sleep(random.uniform(0, 0.1))
    raise BusyError(f"{printable(busy[0])} is being written by another process: wait for it, or use another --output")


def _new_file(target: Path, output: Path, made: _Made) -> FileIO:
    """Make a file of a hidden name in the folder of a target, locked, and the folders above it."""
    folder = _real_folder(output, target.parent)
    with called(target):
        for path in reversed([folder, *folder.parents]):
            if not path.exists():
                made.append(path.rmdir)
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            hidden = folder / _hidden_name(target)
            made.append(hidden.unlink)
            file = FileIO(str(hidden), "x+")
            made.append(file.close)
            # Before it was locked, another process could have removed it.
            if _lock(file) is not False and hidden.exists():
                return file
            file.close()


def _name(hidden: Path, target: Path, existing: Existing, made: _Made, undo: ExitStack) -> None:
    """Give a file its name, and note how to undo that."""
    if existing == "replace":
        former = target.with_name(_hidden_name(target))
        made.append(former.unlink)
        try:
            former.hardlink_to(target)
        except FileNotFoundError:
            undo.callback(target.unlink, missing_ok=True)
        except OSError:  # Without hard links, what is replaced cannot come back.
            pass
        else:
            undo.callback(former.replace, target)
        hidden.replace(target)
        return
    try:
        _link(hidden, target)
    except FileExistsError:
        if existing == "refuse":
            raise _exists([target]) from None
    else:
        undo.callback(target.unlink, missing_ok=True)


def _link(hidden: Path, target: Path) -> None:
    """Give a file a name that no file has."""
    try:
        target.hardlink_to(hidden)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        target.touch(exist_ok=False)
        try:
            hidden.replace(target)
        except BaseException:
            target.unlink()
            raise


def _real_folder(output: Path, folder: Path) -> Path:
    """Return where a folder of the output folder is, unless a link leads out of that."""
    real, root = (Path(os.path.realpath(path)) for path in (folder, output))
    if not real.is_relative_to(root):
        raise ValueError(
            f"{printable(folder)} is, or is below, a link that leads out of {printable(output)}: remove the link, or "
            "pass another --output"
        )
    return real


def _key(target: Path) -> str:
    """Return the part of a hidden name that all processes writing one file share."""
    return hashlib.sha256(os.fsencode(key_of(target.name))).hexdigest()[:16]


def _hidden_name(target: Path) -> str:
    return f".{_key(target)}.{secrets.token_hex(8)}.hunterFormsBS{target.suffix}"


def _is_written(hidden: Path) -> bool:
    """Tell whether a process is writing a hidden file; remove one that none writes, if it is ours."""
    try:
        status = hidden.lstat()
        if not stat.S_ISREG(status.st_mode):
            return False
        if sys.platform == "win32":
            hidden.unlink()  # which fails where it is open
        elif status.st_uid == os.geteuid():
            with FileIO(os.open(hidden, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
                locked = _lock(file)
                if locked and os.path.samestat(status, os.fstat(file.fileno())):
                    hidden.unlink()
                return locked is False
    except OSError as error:
        return sys.platform == "win32" and isinstance(error, PermissionError)
    return False


def _lock(file: FileIO) -> bool | None:
    """Lock an open file until it is closed: False if another process has, None where there are no locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _exists(paths: Sequence[Path]) -> ValueError:
    listed = ", ".join(map(printable, paths))
    return ValueError(
        f"{listed} exists: pass --overwrite to replace it, --skip-existing to keep it, or another --output"
    )
