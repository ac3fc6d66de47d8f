"""Decoded audio in memory-mapped files: each file is decoded once.

    cache = Cache(Path("cache"))
    cache.fill(paths)
    audio = cache.read(paths[0], start=44100, length=352800, channels=2)

It helps for MP3 and FLAC if training waits for decoding, and needs as much disk space as WAV files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import get_ident

import numpy as np
import soundfile
from tqdm import tqdm

from hunterFormsBS.training.truth import Audio, Song, fitted

BLOCK = 1 << 20
SCALE = np.float32(1 / 32768)


class Cache:
    """A folder of decoded files, one for each audio file, in 16 bits if the audio file has 16.

    Parameters
    ----------
    folder : Path
        It is created if necessary. Processes and runs may share it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path_of(self, path: Path) -> Path:
        """Return the path of the decoded file, which changes if the audio file changes."""
        status = path.stat()
        identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
        return self.folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npy"

    def fill(self, paths: Iterable[Path], *, workers: int = 1, progress: bool = False) -> None:
        """Decode the files that are not decoded yet.

        Raises
        ------
        ValueError
            If a file is damaged.
        OSError
            If the disk is full; files decoded before stay.
        """
        missing = [path for path in dict.fromkeys(paths) if not self.path_of(path).exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(workers) as pool:
            done = pool.map(self._decode, missing)
            for _ in tqdm(done, desc="cache", unit="file", total=len(missing), leave=False, disable=not progress):
                pass

    def _decode(self, path: Path) -> None:
        target = self.path_of(path)
        # A name for this thread: another process may decode the same file.
        unfinished = target.with_suffix(f".{os.getpid()}-{get_ident()}.unfinished")
        try:
            with soundfile.SoundFile(str(path)) as file:
                kind = "int16" if file.subtype == "PCM_16" else "float32"
                shape = (file.frames, file.channels)
                # Written as a file: writing to mapped memory on a full disk would kill the process.
                with unfinished.open("wb") as decoded:
                    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False}
                    np.lib.format.write_array_header_1_0(decoded, {**header, "shape": shape})
                    count = 0
                    while len(block := file.read(BLOCK, dtype=kind, always_2d=True)):
                        decoded.write(block.tobytes())
                        count += len(block)
            if count != shape[0]:
                raise ValueError(f"{path} cannot be read: {shape[0] - count} samples less than its header says")
            unfinished.replace(target)
        except soundfile.LibsndfileError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        finally:
            unfinished.unlink(missing_ok=True)

    def read(self, path: Path, start: int, length: int, channels: int) -> Audio:
        """Read from the decoded file, like `hunterFormsBS.training.truth.read`."""
        whole = np.load(self.path_of(path), mmap_mode="r")
        samples = whole[start : start + length]
        scaled = samples * SCALE if samples.dtype == np.int16 else np.asarray(samples)
        return fitted(scaled, length, channels)


def files_of(songs: Iterable[Song]) -> list[Path]:
    """Return all files of songs, including mixtures."""
    files: list[Path] = []
    for song in songs:
        files += [path for part in song.parts for path in part]
        if song.mixture is not None:
            files.append(song.mixture)
    return files
