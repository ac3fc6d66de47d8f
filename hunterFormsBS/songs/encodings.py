"""Formats of the files of stems, and the sample rates, bit depths and bit rates of each."""

from __future__ import annotations

import re
from typing import NamedTuple

from hunterFormsBS.choices import KINDS, STEM_MP4, Format

__all__ = ["BITS_PER_CHANNEL", "CODECS", "DEPTHS", "Encoding", "bit_rates_of_mp3", "quality_or_bit_rate"]

_MP4_CODECS: dict[int | None, str] = {None: "aac", 16: "alac", 24: "alac"}

CODECS: dict[tuple[str, int | None], str] = {
    ("wav", 16): "PCM_16",
    ("wav", 24): "PCM_24",
    ("wav", 32): "FLOAT",
    ("flac", 16): "PCM_16",
    ("flac", 24): "PCM_24",
    ("mp3", None): "MPEG_LAYER_III",
    ("ogg", None): "VORBIS",
    ("opus", None): "OPUS",
    **{(kind, depth): codec for kind in ("m4a", STEM_MP4) for depth, codec in _MP4_CODECS.items()},
}
"""The name that libsndfile, or FFmpeg for MP4, has for each pair of a format and a bit depth; 32 bits are floats."""

DEPTHS: dict[Format, int | None] = {kind: {"wav": 32, "flac": 24}.get(kind) for kind in KINDS}
"""The usual bit depth of each format; what is lossy has none."""

_RATES_OF_MPEG = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)

RATES: dict[str, tuple[int, ...]] = {
    "MPEG_LAYER_III": _RATES_OF_MPEG,
    "OPUS": (8000, 12000, 16000, 24000, 48000),
    "aac": (*_RATES_OF_MPEG, 64000, 88200, 96000),
}
"""The sample rates of codecs that do not take every one."""

HIGHEST_RATES = {"flac": 655_350, "ogg": 200_000}

BIT_RATES_OF_MP3 = (
    (32000, (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)),
    (16000, (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)),
    (0, (8, 16, 24, 32, 40, 48, 56, 64)),
)
"""Bit rates of MP3 in kilobits a second, from a sample rate on."""

BITS_PER_CHANNEL = {"OPUS": (6_000, 256_000), "aac": (8_000, 256_000)}
"""Bits a second of each channel, at least and at most."""


class Encoding(NamedTuple):
    """Format of a file, and how samples are stored in it.

    Parameters
    ----------
    bit_depth : int | None
        16, 24, or for wav 32, which is floating point; None for what is lossy. With one, MP4 holds ALAC instead of AAC.
    quality : float | None
        From 0, the smallest files, to 10, the best sound, for what is lossy. `None`: the codec's usual one.
    bit_rate : int | None
        Bits a second, in place of a quality.
    sample_rate : int | None
        In Hz. `None`: that of the song.
    """

    format: Format = "wav"
    bit_depth: int | None = 32
    quality: float | None = None
    bit_rate: int | None = None
    sample_rate: int | None = None

    @classmethod
    def of(
        cls,
        kind: Format,
        bit_depth: int | None = None,
        quality: tuple[float | None, int | None] | None = None,
        sample_rate: int | None = None,
    ) -> Encoding:
        """Return the encoding that options ask for: a quality or a bit rate as `quality_or_bit_rate` returns them.

        Raises
        ------
        ValueError
            If the format cannot have it.
        """
        depth = bit_depth or DEPTHS[kind]
        if (kind, depth) not in CODECS:
            depths = [str(one) for other, one in CODECS if other == kind and one is not None]
            remedy = f"use {' or '.join(depths)}" if depths else "leave it out"
            raise ValueError(f"--format {kind} has no --bit-depth {depth}: {remedy}")
        encoding = cls(kind, depth, *(quality or (None, None)), sample_rate)
        encoding.check()
        return encoding

    @property
    def codec(self) -> str:
        """A value of `CODECS`."""
        return CODECS[self.format, self.bit_depth]

    @property
    def is_together(self) -> bool:
        """Whether the mixture and all stems of a song are tracks of one file."""
        return self.format == STEM_MP4

    @property
    def cuts_off(self) -> bool:
        """Whether values beyond full scale are cut off, when it is written or when it is played."""
        return self.bit_depth != 32

    def rate(self, sample_rate: int) -> int:
        """Return the sample rate that a file gets: the one asked for, or the next that the format can have."""
        sample_rate = self.sample_rate or sample_rate
        rates = RATES.get(self.codec)
        if rates is not None:
            return min((rate for rate in rates if rate >= sample_rate), default=max(rates))
        return min(sample_rate, HIGHEST_RATES.get(self.format, sample_rate))

    def check(self, sample_rate: int | None = None, channels: int = 2) -> None:
        """Raise a ValueError for options that the format cannot have, at all or for a song of this sample rate."""
        if (wanted := self.sample_rate) is not None and self.rate(wanted) != wanted:
            raise ValueError(f"--format {self.format} has no --sample-rate {wanted}: use {self.rate(wanted)}")
        if self.quality is None and self.bit_rate is None:
            return
        if self.bit_depth is not None:
            raise ValueError(f"--format {self.format} here keeps all of the sound and has no --quality: leave it out")
        if self.bit_rate is not None:
            self._check_bit_rate(self.bit_rate, self.rate(sample_rate or 48000), channels)

    def _check_bit_rate(self, bits: int, rate: int, channels: int) -> None:
        if self.codec == "VORBIS":
            raise ValueError("--format ogg has no exact bit rate: give --quality from 0 to 10")
        if self.codec == "MPEG_LAYER_III":
            known = bit_rates_of_mp3(rate)
            if bits % 1000 or bits // 1000 not in known:
                listed = ", ".join(map(str, known))
                raise ValueError(f"MP3 at {rate} Hz has no --quality {bits / 1000:g}k: its bit rates are {listed}k")
            return
        least, most = (channels * each for each in BITS_PER_CHANNEL[self.codec])
        most = min(most, 6 * rate * channels) if self.codec == "aac" else most  # 6144 bits for 1024 samples
        if not least <= bits <= most:
            raise ValueError(
                f"{self.codec.upper()} of {channels} channel(s) at {rate} Hz has no --quality {bits / 1000:g}k: use "
                f"{least // 1000}k to {most // 1000}k"
            )


def bit_rates_of_mp3(sample_rate: int) -> tuple[int, ...]:
    """Return the bit rates of MP3 at a sample rate, in kilobits a second."""
    return next(rates for least, rates in BIT_RATES_OF_MP3 if sample_rate >= least)


def quality_or_bit_rate(text: str) -> tuple[float | None, int | None]:
    """Return the quality, or the bits a second, that a text such as `7` or `320k` means.

    Raises
    ------
    ValueError
        If it means neither.
    """
    if found := re.fullmatch(r"(\d{1,4})[kK]", text, re.ASCII):
        return None, 1000 * int(found[1])
    if re.fullmatch(r"\d{1,2}(\.\d{0,9})?|\.\d{1,9}", text, re.ASCII) and float(text) <= 10:
        return float(text), None
    raise ValueError(f"must be a number from 0 to 10, or a bit rate such as 320k, but is {text[:40]!r}")
