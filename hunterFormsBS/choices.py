"""The values that options may have, and usual ones, as far as they are words and numbers: nothing here imports PyTorch.

Parsers of command lines offer them before anything heavy is imported. Whatever uses a value takes it from here too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

if TYPE_CHECKING:
    import torch

__all__ = [
    "ACCELERATORS",
    "BATCH_SIZE",
    "BLENDS",
    "CHUNK_SIZE",
    "DTYPES",
    "DTYPES_COMPUTED",
    "ENSEMBLES",
    "FORMATS",
    "KINDS",
    "LARGEST",
    "LAYOUTS",
    "METRICS",
    "MODEL_FILE",
    "NUM_OVERLAP",
    "PRECISIONS",
    "SHIFTS",
    "SOUNDING",
    "STEM_MP4",
    "STRATEGIES",
    "UPSTREAMS",
    "Blend",
    "Dtype",
    "Ensemble",
    "Format",
    "Layout",
    "Precision",
    "Upstream",
    "dtype_of",
]

Blend: TypeAlias = Literal["smooth", "msst", "pymss", "audio-separator"]
BLENDS: Final[tuple[Blend, ...]] = get_args(Blend)
"""The ways to lay chunks and to fade from one to the next."""

Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
DTYPES: Final[tuple[Dtype, ...]] = get_args(Dtype)
"""The types of numbers that weights may have."""

Precision: TypeAlias = Literal[Dtype, "int8"]
DTYPES_COMPUTED: Final[tuple[Precision, ...]] = (*DTYPES, "int8")
"""The types of numbers in which a song is separated."""

Ensemble: TypeAlias = Literal[
    "avg_wave",
    "median_wave",
    "min_wave",
    "max_wave",
    "avg_fft",
    "median_fft",
    "min_fft",
    "max_fft",
    "uvr_min_spec",
    "uvr_max_spec",
]
ENSEMBLES: Final[tuple[Ensemble, ...]] = get_args(Ensemble)
"""The ways to combine estimates."""

Format: TypeAlias = Literal["wav", "flac", "mp3", "ogg", "opus", "m4a", "stem.mp4"]
KINDS: Final[tuple[Format, ...]] = get_args(Format)
"""The kinds of audio files that are written."""

STEM_MP4: Final = "stem.mp4"
"""The kind that holds all stems of a song."""

FORMATS: Final[tuple[Format, ...]] = tuple(kind for kind in KINDS if kind != STEM_MP4)
"""The kinds that hold one stem each."""

Layout: TypeAlias = Literal["hunterFormsBS", "msst"]
LAYOUTS: Final[tuple[Layout, ...]] = get_args(Layout)
"""The kinds of checkpoints that are written."""

MODEL_FILE: Final = "model.safetensors"
"""The file of a model that is uploaded to the Hugging Face Hub."""

Upstream: TypeAlias = Literal["msst", "msst_experimental", "lucidrains", "hunterFormsBS"]
UPSTREAMS: Final[tuple[Upstream, ...]] = get_args(Upstream)
"""The projects whose conventions a configuration may follow."""

CHUNK_SIZE: Final = 352800
NUM_OVERLAP: Final = 2
BATCH_SIZE: Final = 1
SHIFTS: Final = 1

SOUNDING: Final = -50.0
"""Level in dB of full scale above which a stem sounds. What separation leaves of a silent stem is below."""

LARGEST: Final = 10**12
"""Samples or chunks: more than any memory holds, and so little that no product of sizes overflows unnoticed."""

ACCELERATORS: Final = ("auto", "cpu", "cuda", "mps")
"""Where a training runs: `auto` is a GPU if there is one."""

STRATEGIES: Final = ("auto", "ddp", "fsdp2")
"""How processes train together; `auto` is one process, or DDP."""

PRECISIONS: Final = ("32-true", "bf16-mixed", "16-mixed")
"""The types of numbers of a training, by the names of Lightning Fabric."""

METRICS: Final = ("sdr", "si_sdr", "l1_freq", "bleedless", "fullness", "log_wmse", "museval_sdr")
"""What can be measured of separated stems."""


def dtype_of(name: Precision) -> torch.dtype:
    """Return PyTorch's object for a type of numbers."""
    import torch

    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
    return dict(zip(DTYPES_COMPUTED, dtypes, strict=True))[name]
