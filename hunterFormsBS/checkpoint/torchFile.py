"""Files of `torch.save`: archives, and the format before PyTorch 1.6. Tensors are read on demand."""

from __future__ import annotations

import ctypes
import errno
import sys
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, cast

import torch
from torch import Tensor

from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.checkpoint.kinds import MAGIC
from hunterFormsBS.checkpoint.unpickling import DamagedError, Storage, StoredTensor, unpickle
from hunterFormsBS.limits import COMPRESSIONS, LARGEST_EXPANSION, LARGEST_HEADER, MOST_KEYS
from hunterFormsBS.printable import short_repr

_ENCRYPTED: Final = 0x1  # a flag of an entry
_ZIP_HEADER: Final = 30  # bytes of the header of an entry, without its name
_BROKEN: Final = (EOFError, LookupError, NotImplementedError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)


class _Extent(NamedTuple):
    """The bytes of a storage in the file."""

    start: int
    stored: int
    size: int
    deflated: bool = False


class TorchFile:
    """A file of `torch.save`. `content` has every tensor as a `StoredTensor`, and `read` reads one.

    Parameters
    ----------
    path : Path

    Raises
    ------
    CheckpointError
        If it has another format, or exceeds a limit.
    DamagedError
        If it is damaged or incomplete.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        self.swapped = False
        self._extents: dict[str, _Extent] = {}
        self._read: dict[str, Tensor] = {}
        self._total = 0
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                with _reading_an_archive():
                    self.content = self._open_archive(file)
            else:
                file.seek(0)
                self.content = self._open_legacy(file)

    def read(self, stored: StoredTensor, device: torch.device | str = "cpu") -> Tensor:
        """Read a tensor. Tensors that share memory in the file share it here."""
        if torch.device(device).type == "meta":
            return torch.empty_strided(stored.shape, stored.strides, dtype=stored.dtype, device="meta")
        numbers = self._numbers(stored.storage)
        return torch.as_strided(numbers, stored.shape, stored.strides, stored.storage.offset + stored.offset).to(device)

    def _numbers(self, storage: Storage) -> Tensor:
        known = self._read.get(storage.key)
        if known is not None:
            if known.dtype != storage.dtype:
                raise DamagedError(f"the storage {short_repr(storage.key)} has two types")
            return known
        extent = self._extents.get(storage.key)
        size = torch.empty((), dtype=storage.dtype, device="meta").element_size()
        if extent is None or extent.size < (storage.offset + storage.numbers) * size or extent.size % size:
            raise DamagedError(f"of the storage {short_repr(storage.key)} a part is missing")
        self._total += extent.stored
        if self._total > self.size:
            raise CheckpointError(
                f"its parts claim {self._total:,} bytes of a file of {self.size:,}: they lie over one another"
            )
        if not extent.size:
            return torch.empty(0, dtype=storage.dtype, device="cpu")
        numbers = self._bytes(extent).view(storage.dtype)
        if self.swapped:
            cast("Any", numbers.untyped_storage()).byteswap(storage.dtype)
        self._read[storage.key] = numbers
        return numbers

    def _bytes(self, extent: _Extent) -> Tensor:
        if extent.deflated:
            return self._inflated(extent)
        memory = torch.empty(extent.size, dtype=torch.uint8, device="cpu")
        # Read into the tensor's memory: no second copy, no zeroing.
        view = (ctypes.c_char * extent.size).from_address(memory.data_ptr())
        with self.path.open("rb", buffering=0) as file:
            file.seek(extent.start)
            done = 0
            while done < extent.size:
                count = file.readinto(memoryview(view)[done:])
                if not count:
                    raise DamagedError("the file ends too early")
                done += count
        return memory

    def _inflated(self, extent: _Extent) -> Tensor:
        with self.path.open("rb") as file, _reading_an_archive():
            file.seek(extent.start)
            data = zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(file.read(extent.stored), extent.size)
        if len(data) < extent.size:
            raise DamagedError("an entry ends too early")
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)

    def _open_archive(self, file: IO[bytes]) -> object:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            names = {entry.filename for entry in entries}
            if len(entries) > MOST_KEYS:
                raise CheckpointError(f"it has {len(entries):,} entries, and at most {MOST_KEYS:,} are read")
            if any(name.endswith("/constants.pkl") for name in names):
                raise CheckpointError("it is a TorchScript archive, which holds code: " + ASK_FOR_STATE_DICT)
            if any(name.endswith("/.data/extern_modules") for name in names):
                raise CheckpointError("it is a torch.package archive, which holds code: " + ASK_FOR_STATE_DICT)
            pickles = [entry for entry in entries if entry.filename.partition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise CheckpointError(
                    "it is a zip archive, but not one of torch.save: pass the checkpoint that is in it"
                )
            for entry in entries:
                if entry.compress_type not in COMPRESSIONS or entry.flag_bits & _ENCRYPTED:
                    raise CheckpointError(
                        f"{short_repr(entry.filename)} in it is encrypted, or compressed by method "
                        f"{entry.compress_type}, and only plain and deflated entries are read: pack it anew"
                    )
                if entry.file_size > LARGEST_EXPANSION * max(1, entry.compress_size):
                    raise CheckpointError(
                        f"{short_repr(entry.filename)} in it expands from {entry.compress_size:,} bytes to "
                        f"{entry.file_size:,}, and at most {LARGEST_EXPANSION} times as many are read"
                    )
            folder = pickles[0].filename.removesuffix("data.pkl")
            if f"{folder}byteorder" in names:
                with archive.open(f"{folder}byteorder") as order:
                    self.swapped = order.read(6).decode("latin-1") not in ("", sys.byteorder)
            data = f"{folder}data/"
            for entry in entries:
                if entry.filename.startswith(data):
                    self._extents[entry.filename.removeprefix(data)] = self._extent(entry, file)
            if pickles[0].file_size > LARGEST_HEADER:
                raise CheckpointError(
                    f"what describes its tensors is larger than {LARGEST_HEADER:,} bytes, which no checkpoint needs"
                )
            with archive.open(pickles[0]) as pickled:
                return unpickle(pickled)

    def _extent(self, entry: zipfile.ZipInfo, file: IO[bytes]) -> _Extent:
        position = file.tell()
        file.seek(entry.header_offset)
        header = file.read(_ZIP_HEADER)
        file.seek(position)
        if len(header) < _ZIP_HEADER or not header.startswith(b"PK\x03\x04"):
            raise DamagedError("an entry is not where the archive says")
        lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        start = entry.header_offset + _ZIP_HEADER + lengths
        deflated = entry.compress_type == zipfile.ZIP_DEFLATED
        stored = entry.compress_size if deflated else entry.file_size
        if start + stored > self.size:
            raise DamagedError("an entry ends after the file")
        return _Extent(start, stored, entry.file_size, deflated)

    def _open_legacy(self, file: IO[bytes]) -> object:
        magic, version = unpickle(file), unpickle(file)
        if magic != int.from_bytes(MAGIC, "little", signed=True) or version != 1001:
            raise CheckpointError(f"it is of version {short_repr(version)} of PyTorch's format, and 1001 is read")
        system = unpickle(file)
        if isinstance(system, dict):
            self.swapped = cast("dict[str, object]", system).get("little_endian", True) is not (
                sys.byteorder == "little"
            )
        storages: dict[str, torch.dtype] = {}
        content = unpickle(file, storages)
        keys = unpickle(file)
        if not isinstance(keys, list) or len(cast("list[object]", keys)) > MOST_KEYS:
            raise DamagedError("the list of storages is missing")
        for key in cast("list[object]", keys):
            name = key if isinstance(key, str) else str(key) if isinstance(key, int) else ""
            header = file.read(8)
            if len(header) < 8:
                raise DamagedError("the file ends too early")
            count = int.from_bytes(header, "little")
            if name not in storages:
                # The next entries can only be skipped if the size of its numbers is known.
                raise DamagedError(f"nothing tells the type of the storage {short_repr(name)}")
            size = count * torch.empty((), dtype=storages[name], device="meta").element_size()
            if file.tell() + size > self.size:
                raise DamagedError("the file ends too early")
            self._extents[name] = _Extent(file.tell(), size, size)
            file.seek(size, 1)
        return content


ASK_FOR_STATE_DICT: Final = (
    "only tensors and plain containers are read. If you trust where the file comes from, load it with the program that "
    "made it and save the state dict of its model alone"
)


@contextmanager
def _reading_an_archive() -> Generator[None]:
    """Turn exceptions from a damaged archive into `DamagedError`."""
    try:
        yield
    except (CheckpointError, DamagedError):
        raise
    except OSError as error:
        # A damaged archive can lead to an offset before its start.
        if error.errno != errno.EINVAL:
            raise
        raise DamagedError("an entry is not where the archive says") from error
    except _BROKEN as error:
        raise DamagedError(str(error) or type(error).__name__) from error
