"""Random segments of songs with stems, to train on.

The mixture is the sum of all stems, or `mixture.wav` if `own_mixture` is set.

Axis letters: b batch, n stem, s audio channel, t sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from hunterFormsBS.training.augmentations import Augmentations, MixtureCodec
from hunterFormsBS.training.truth import Audio, Read, Song, read, read_parts, tensor_of, total

DRAWS = 10


class _Offsets:
    """Offsets at which segments can start.

    Parameters
    ----------
    songs : sequence of Song
    """

    def __init__(self, songs: Sequence[Song]) -> None:
        self.songs = songs
        lengths = np.array([song.length for song in songs], dtype=np.float64)
        self.probabilities = lengths / lengths.sum()

    def draw(self, random: np.random.Generator, chunk_size: int) -> tuple[Song, int]:
        """Draw a song, with probability proportional to its length, and an offset."""
        song = self.songs[int(random.choice(len(self.songs), p=self.probabilities))]
        return song, int(random.integers(max(1, song.length - chunk_size + 1)))


class Segments(Dataset[tuple[Tensor, Tensor]]):
    """Endless random segments. A segment depends only on its index and the seed.

    Parameters
    ----------
    songs : sequence of Song
    chunk_size : int
        Samples of a segment.
    channels : int
    seed : int
    targets : sequence of int
        Indices of the instruments to return.
    remix : float
        Probability of drawing every stem independently, from any song.
    gains : (float, float)
        Bounds of the random factor of each stem, or of the whole segment with `own_mixture`.
    min_mean_abs : float
        An independently drawn stem that is quieter is drawn again, at most `DRAWS` times.
    instruments : sequence of str
        Names of the songs' parts, for augmentations.
    augment : Augmentations, default None
        Effects on stems.
    mixup : sequence of float
        Probabilities of further stems of the same instrument, which are averaged. Only for independently drawn stems.
    mixup_gains : (float, float)
        Bounds of their random factors.
    mixture_codec : MixtureCodec, default None
        An effect on only the mixture.
    own_mixture : bool
        Read the mixture from the song's own file, if any, instead of summing stems. One gain scales it and all stems.
        Not with effects, which would not be in the file.
    lengths : (int, int), default None
        Bounds of a random length of segments, in samples, at most `chunk_size`.
    batch : int
        Segments per batch over all processes; they have the same length.
    reading : callable
        The function that reads files: `read`, or that of a `hunterFormsBS.training.cache.Cache`.
    """

    def __init__(
        self,
        songs: Sequence[Song],
        *,
        chunk_size: int,
        channels: int,
        seed: int,
        targets: Sequence[int],
        remix: float = 0.0,
        gains: tuple[float, float] = (1.0, 1.0),
        min_mean_abs: float = 0.0,
        instruments: Sequence[str] = (),
        augment: Augmentations | None = None,
        mixup: Sequence[float] = (),
        mixup_gains: tuple[float, float] = (1.0, 1.0),
        mixture_codec: MixtureCodec | None = None,
        own_mixture: bool = False,
        lengths: tuple[int, int] | None = None,
        batch: int = 1,
        reading: Read = read,
    ) -> None:
        self.songs = songs
        self.chunk_size = chunk_size
        self.channels = channels
        self.seed = seed
        self.targets = list(targets)
        self.remix = remix
        self.gains = gains
        self.min_mean_abs = min_mean_abs
        self.instruments = instruments
        self.augment = augment
        self.mixup = mixup
        self.mixup_gains = mixup_gains
        self.mixture_codec = mixture_codec
        self.own_mixture = own_mixture
        self.lengths = lengths
        self.batch = batch
        self.reading = reading
        self.opened: dict[Path, None] = {}  # files of the last segment, in order
        self.offsets = [_Offsets(songs)]
        for part in range(max(len(song.parts) for song in songs)):
            self.offsets.append(_Offsets([song for song in songs if part < len(song.parts) and song.parts[part]]))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the mixture, `(s, t)`, and the targets, `(n, s, t)`."""
        self.opened.clear()
        random = np.random.default_rng((self.seed, index))
        remix = random.random() < self.remix
        song, start = self.offsets[0].draw(random, self.chunk_size)
        own = song.mixture if self.own_mixture and not remix else None
        gain = np.float32(1.0 if own is None else random.uniform(*self.gains))
        stems: list[Audio] = []
        for part in range(len(self.offsets) - 1):
            stem = self._draw(random, part) if remix else self._effects(self._read(song, part, start), part, random)
            stems.append(stem * (np.float32(random.uniform(*self.gains)) if own is None else gain))
        if own is None:
            mixture = total(stems)
        else:
            self.opened[own] = None
            mixture = self.reading(own, start, self.chunk_size, self.channels) * gain
        if self.mixture_codec is not None:
            mixture = self.mixture_codec(mixture, random)
        chosen = np.stack([stems[target] for target in self.targets])
        length = self._length(index)
        return tensor_of(mixture[..., :length].copy()), tensor_of(chosen[..., :length].copy())

    def _length(self, index: int) -> int:
        """Return the length of all segments of a segment's batch."""
        if self.lengths is None:
            return self.chunk_size
        random = np.random.default_rng((self.seed, index // self.batch, 1))
        return int(random.integers(self.lengths[0], self.lengths[1] + 1))

    def files(self, index: int) -> list[Path]:
        """Return the files of a segment, by reading it again."""
        self[index]
        return list(self.opened)

    def _draw(self, random: np.random.Generator, part: int) -> Audio:
        """Draw a stem independently, alone or averaged with others of the same instrument."""
        stems = [self._draw_one(random, part)]
        stems += [self._draw_one(random, part) for probability in self.mixup if random.random() < probability]
        if not self.mixup:
            return stems[0]
        gains = random.uniform(*self.mixup_gains, len(stems))
        scaled = [stem * np.float32(gain) for stem, gain in zip(stems, gains, strict=True)]
        return cast("Audio", np.mean(scaled, axis=0, dtype=np.float32))

    def _draw_one(self, random: np.random.Generator, part: int) -> Audio:
        stem = np.zeros((self.channels, self.chunk_size), np.float32)
        for _ in range(DRAWS):
            song, start = self.offsets[1 + part].draw(random, self.chunk_size)
            stem = self._read(song, part, start)
            if np.abs(stem).mean() >= self.min_mean_abs:
                break
        return self._effects(stem, part, random)

    def _effects(self, stem: Audio, part: int, random: np.random.Generator) -> Audio:
        if self.augment is None:
            return stem
        # Parts that are only in the mixture get the effects of `all`.
        return self.augment(stem, self.instruments[part] if part < len(self.instruments) else "all", random)

    def _read(self, song: Song, part: int, start: int) -> Audio:
        # A song whose stems are all named has no remaining part.
        paths = song.parts[part] if part < len(song.parts) else ()
        if not paths:
            return np.zeros((self.channels, self.chunk_size), np.float32)
        self.opened.update(dict.fromkeys(paths))
        return read_parts(paths, start, self.chunk_size, self.channels, self.reading)


class Positions(Sampler[list[int]]):
    """The indices of each batch of one process, from any batch on; together the processes use every index once.

    Parameters
    ----------
    first, last : int
        The first batch, and the one after the last.
    batch_size : int
        Of one process.
    rank, world_size : int
        This process's rank, and the number of processes.
    """

    def __init__(self, first: int, last: int, *, batch_size: int, rank: int, world_size: int) -> None:
        self.first = first
        self.last = last
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.first, self.last):
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield list(range(start, start + self.batch_size))
