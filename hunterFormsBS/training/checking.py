"""Checks of all songs, by reading them once before the first update.

    remarks, damages = check_songs(songs, 44100)
    refuse(damages)

Audio that is in two files would count twice: `hunterFormsBS.training.truth` finds such files by name, this module by
audio.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
from numpy.typing import NDArray
from tqdm import tqdm

from hunterFormsBS.training.engine import gather
from hunterFormsBS.training.truth import Audio, Read, Song, read

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SILENT = 1e-4
"""A peak of -80 dB."""

FULL_SCALE = 32766.5 / 32768
CLIPPED_TOGETHER = 3
"""Least number of consecutive samples at full scale that count as clipping."""

CLIPPED_PEAKS_A_MINUTE = 10
SECONDS_OF_DIFFERENCE = 0.05
LEAST_RATIO = 10.0
"""dB of the mixture over its difference from the sum of stems. Lossy files of four stems reach more."""

CERTAIN_RATIO = 20.0
"""dB of a stem over its difference from other stems, or their sum, above which it is the same audio."""

BLOCK = 1 << 18


class _Heard:
    """Statistics of a file so far."""

    def __init__(self) -> None:
        self.peak = 0.0
        self.clipped = 0
        self.finite = True

    def take_in(self, audio: Audio) -> None:
        levels: NDArray[np.float32] = np.abs(audio)
        self.finite &= bool(np.isfinite(levels).all())
        self.peak = max(self.peak, float(levels.max(initial=0)))
        full = levels >= FULL_SCALE
        if full.any():
            self.clipped += sum(_runs(channel) for channel in full)


def _runs(full: NDArray[np.bool_]) -> int:
    """Count the runs of at least `CLIPPED_TOGETHER` samples."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], full, [False])).astype(np.int8)))
    return int(np.count_nonzero(edges[1::2] - edges[::2] >= CLIPPED_TOGETHER))


def check_songs(
    songs: Sequence[Song], sample_rate: int, *, reading: Read = read, workers: int = 1, progress: bool = False
) -> tuple[list[str], list[str]]:
    """Read whole songs, and return what is wrong, with file names.

    Parameters
    ----------
    songs : sequence of Song
    sample_rate : int
        Hz. Songs with other rates are refused when they are listed.
    reading : callable
        The function that reads files.
    workers : int
        Songs read at a time.
    progress : bool
        Show a bar.

    Returns
    -------
    remarks : list of str
        Stems that differ in length, are silent or clipped, and mixtures that differ from the sum of the stems.
    damages : list of str
        Files that cannot be read, or contain samples that are not finite, which would end the training. See `refuse`.
    """
    remarks: list[str] = []
    damages: list[str] = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        checked = pool.map(partial(_check, sample_rate=sample_rate, reading=reading), songs)
        for found, damaged in tqdm(
            checked, desc="check", unit="song", total=len(songs), leave=False, disable=not progress
        ):
            remarks += found
            damages += damaged
    return remarks, damages


def check_shared(
    fabric: Fabric, songs: Sequence[Song], sample_rate: int, *, reading: Read = read, workers: int = 1
) -> list[str]:
    """Check songs, divided among the processes; every process returns all remarks.

    Raises
    ------
    ValueError
        If files are damaged or duplicates.
    """
    mine = songs[fabric.global_rank :: fabric.world_size]
    checked = check_songs(mine, sample_rate, reading=reading, workers=workers, progress=fabric.is_global_zero)
    found = gather(fabric, checked)
    refuse([damage for _, damages in found for damage in damages])
    return [remark for remarks, _ in found for remark in remarks]


def refuse(damages: Sequence[str]) -> None:
    """Raise a ValueError if there is any damage."""
    if damages:
        raise ValueError(
            f"the data have {len(damages)} songs that cannot be trained on: {'; '.join(damages[:10])}"
            f"{'; …' if len(damages) > 10 else ''}: replace or remove these files"
        )


def _check(song: Song, sample_rate: int, reading: Read) -> tuple[list[str], list[str]]:
    """Return remarks on a song, and its damage."""
    try:
        return _remarks(song, sample_rate, reading), []
    except ValueError as error:
        return [], [str(error)]


def _remarks(song: Song, sample_rate: int, reading: Read) -> list[str]:
    stems = [path for part in song.parts for path in part]
    lengths = {path: soundfile.info(str(path)).frames for path in stems}
    heard = {path: _Heard() for path in stems}
    mixture = song.mixture
    energies = np.zeros(2)  # of the mixture, and of its difference from the sum
    products = np.zeros((len(stems), len(stems)))  # of each stem with each
    for start in range(0, max(lengths.values()), BLOCK):
        length = min(BLOCK, max(lengths.values()) - start)
        audio = np.stack([reading(path, start, length, 2) for path in stems])
        for path, one in zip(stems, audio, strict=True):
            heard[path].take_in(one)
        flat = audio.reshape(len(stems), -1).astype(np.float64)
        products += flat @ flat.T
        total = audio.sum(axis=0)
        if mixture is not None:
            whole = reading(mixture, start, length, 2)
            energies += np.square(whole, dtype=np.float64).sum(), np.square(total - whole, dtype=np.float64).sum()
    for path, one in heard.items():
        if not one.finite:
            raise ValueError(f"{path} has samples that are not finite")
    twice = {text: ratio for ratio, text in _heard_twice(stems, products)}
    for text, ratio in twice.items():
        if ratio >= CERTAIN_RATIO:
            raise ValueError(f"{text}: what is heard in both would count twice, so remove one of them")
    return [
        *(f"{text} but for {ratio:.1f} dB: see if one is heard in the other" for text, ratio in twice.items()),
        *_of_files(lengths, heard, sample_rate),
        *_of_mixture(mixture, energies),
    ]


def _heard_twice(stems: Sequence[Path], products: NDArray[np.float64]) -> Iterator[tuple[float, str]]:
    """Find stems that equal another, or the sum of others, from the inner products of all pairs.

    In a least-squares fit of a stem by the others, weights near 1 belong to its parts.

    Yields
    ------
    ratio, text : float, str
        dB of the stem over the difference, at least `LEAST_RATIO`, and a description of the equality.
    """
    energies = np.diag(products)
    audible = [number for number in range(len(stems)) if energies[number] > SILENT**2]
    for number in audible if len(audible) > 1 else ():
        others = [other for other in audible if other != number]
        same = [[other] for other in others if other > number]
        weights = np.linalg.lstsq(products[np.ix_(others, others)], products[others, number], rcond=None)[0]
        parts = [other for other, weight in zip(others, weights, strict=True) if weight > 0.5]
        for sum_of in [*same, *([parts] if len(parts) > 1 else [])]:
            both = products[np.ix_(sum_of, sum_of)].sum() - 2 * products[number, sum_of].sum() + energies[number]
            ratio = 10 * np.log10(energies[number] / max(both, 1e-12 * energies[number]))
            if ratio >= LEAST_RATIO:
                names = " + ".join(stems[part].name for part in sum_of)
                yield float(ratio), f"{stems[number]} is the same as {names}"


def _of_files(lengths: dict[Path, int], heard: dict[Path, _Heard], sample_rate: int) -> Iterator[str]:
    longest = max(lengths.values())
    for path, length in lengths.items():
        if longest - length > SECONDS_OF_DIFFERENCE * sample_rate:
            yield f"{path} is {(longest - length) / sample_rate:.2f} s shorter than the longest stem of the song"
        if heard[path].peak < SILENT:
            yield f"{path} is silent throughout"
        if heard[path].clipped * 60 * sample_rate > CLIPPED_PEAKS_A_MINUTE * length:
            yield f"{path} is clipped in {heard[path].clipped} places"


def _of_mixture(mixture: Path | None, energies: NDArray[np.float64]) -> Iterator[str]:
    if mixture is None or not energies[0]:
        return
    with np.errstate(divide="ignore"):
        ratio = 10 * np.log10(energies[0] / energies[1])
    if ratio < LEAST_RATIO:
        yield f"{mixture} is not the sum of the stems: the difference is {ratio:.1f} dB below it"
