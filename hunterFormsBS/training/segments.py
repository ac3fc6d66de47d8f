"""Random segments of songs with stems, to train on.

The mixture is the sum of all stems; `mixture.wav` is read for songs whose own mixture counts.

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


class _Places:
    """Where segments can start.

    Parameters
    ----------
    songs : sequence of Song
    """

    def __init__(self, songs: Sequence[Song]) -> None:
        self.songs = songs
        lengths = np.array([song.length for song in songs], dtype=np.float64)
        self.probabilities = lengths / lengths.sum()

    def draw(self, random: np.random.Generator, chunk_size: int) -> tuple[Song, int]:
        """Choose a song, in proportion to its length, and where the segment starts."""
        song = self.songs[int(random.choice(len(self.songs), p=self.probabilities))]
        return song, int(random.integers(max(1, song.length - chunk_size + 1)))


class Segments(Dataset[tuple[Tensor, Tensor]]):
    """Endless random segments. What an index gives depends on it and the seed alone: a position is a number.

    Parameters
    ----------
    songs : sequence of Song
    chunk_size : int
        Samples of a segment.
    channels : int
    seed : int
    targets : sequence of int
        Instruments to return, of those that the songs have.
    remix : float
        Probability of drawing every stem by itself, from any song.
    gains : (float, float)
        Bounds of the random factor of each stem, or of the whole segment where the mixture is the song's own.
    min_mean_abs : float
        A stem drawn by itself that is quieter is drawn again, `DRAWS` times at most.
    instruments : sequence of str
        Names of the songs' parts, which choose their augmentations.
    augment : Augmentations, default None
        Effects of stems.
    mixup : sequence of float
        Probabilities of further stems of the same instrument; the mean of all of them is the stem. Only of stems that
        are drawn by themselves.
    mixup_gains : (float, float)
        Bounds of the random factors of those.
    mixture_codec : MixtureCodec, default None
        An effect of the mixture alone.
    own_mixture : bool
        Read the mixture from the song's own file where it has one, instead of summing stems. One gain scales it and
        all stems. Only without effects, which the file does not know of.
    lengths : (int, int), default None
        Bounds of a random length of segments, in samples, `chunk_size` at most.
    batch : int
        Segments of a batch, all processes together: they have the same length.
    reading : callable
        How files are read: `read`, or that of a `hunterFormsBS.training.cache.Cache`.
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
        self.places = [_Places(songs)]
        for part in range(max(len(song.parts) for song in songs)):
            self.places.append(_Places([song for song in songs if part < len(song.parts) and song.parts[part]]))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the mixture, `(s, t)`, and the targets, `(n, s, t)`."""
        self.opened.clear()
        random = np.random.default_rng((self.seed, index))
        remix = random.random() < self.remix
        song, start = self.places[0].draw(random, self.chunk_size)
        own = song.mixture if self.own_mixture and not remix else None
        gain = np.float32(1.0 if own is None else random.uniform(*self.gains))
        stems: list[Audio] = []
        for part in range(len(self.places) - 1):
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
        """Return the length of a segment, which is that of all segments of its batch."""
        if self.lengths is None:
            return self.chunk_size
        random = np.random.default_rng((self.seed, index // self.batch, 1))
        return int(random.integers(self.lengths[0], self.lengths[1] + 1))

    def files(self, index: int) -> list[Path]:
        """Return the files that a segment is read from, by reading it again."""
        self[index]
        return list(self.opened)

    def _draw(self, random: np.random.Generator, part: int) -> Audio:
        """Draw a stem by itself, alone or mixed up with others of the same instrument."""
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
            song, start = self.places[1 + part].draw(random, self.chunk_size)
            stem = self._read(song, part, start)
            if np.abs(stem).mean() >= self.min_mean_abs:
                break
        return self._effects(stem, part, random)

    def _effects(self, stem: Audio, part: int, random: np.random.Generator) -> Audio:
        if self.augment is None:
            return stem
        # What only the mixture knows has the effects of all.
        return self.augment(stem, self.instruments[part] if part < len(self.instruments) else "all", random)

    def _read(self, song: Song, part: int, start: int) -> Audio:
        # A song whose stems are all named has no part for the rest.
        paths = song.parts[part] if part < len(song.parts) else ()
        if not paths:
            return np.zeros((self.channels, self.chunk_size), np.float32)
        self.opened.update(dict.fromkeys(paths))
        return read_parts(paths, start, self.chunk_size, self.channels, self.reading)


class Positions(Sampler[list[int]]):
    """The indices of each batch of one process, from any batch on; together the processes take every index once.

    Parameters
    ----------
    first, last : int
        The first batch, and the one after the last.
    batch_size : int
        Of one process.
    rank, world_size : int
        Which process this is, of how many.
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
