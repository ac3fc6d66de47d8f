"""Values of options, and their defaults, as words and numbers. Nothing here imports PyTorch.

Command-line parsers need them before anything heavy is imported. All code takes them from here.
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
"""Ways to place and blend chunks."""

Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
DTYPES: Final[tuple[Dtype, ...]] = get_args(Dtype)
"""Dtypes of weights."""

Precision: TypeAlias = Literal[Dtype, "int8"]
DTYPES_COMPUTED: Final[tuple[Precision, ...]] = (*DTYPES, "int8")
"""Dtypes of a separation."""

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
"""Ways to combine estimates."""

Format: TypeAlias = Literal["wav", "flac", "mp3", "ogg", "opus", "m4a", "stem.mp4"]
KINDS: Final[tuple[Format, ...]] = get_args(Format)
"""Audio formats that can be written."""

STEM_MP4: Final = "stem.mp4"
"""The format that holds all stems of a song."""

FORMATS: Final[tuple[Format, ...]] = tuple(kind for kind in KINDS if kind != STEM_MP4)
"""The formats that hold one stem each."""

Layout: TypeAlias = Literal["hunterFormsBS", "msst"]
LAYOUTS: Final[tuple[Layout, ...]] = get_args(Layout)
"""Formats of checkpoints that can be written."""

MODEL_FILE: Final = "model.safetensors"
"""The file name of a model on the Hugging Face Hub."""

Upstream: TypeAlias = Literal["msst", "msst_experimental", "lucidrains", "hunterFormsBS"]
UPSTREAMS: Final[tuple[Upstream, ...]] = get_args(Upstream)
"""Projects whose convention a configuration may follow."""

CHUNK_SIZE: Final = 352800
NUM_OVERLAP: Final = 2
BATCH_SIZE: Final = 1
SHIFTS: Final = 1

SOUNDING: Final = -50.0
"""Level in dB of full scale above which a stem sounds. Residue in a silent stem is below it."""

LARGEST: Final = 10**12
"""Samples or chunks: more than any memory holds, but small enough that products of sizes do not overflow."""

ACCELERATORS: Final = ("auto", "cpu", "cuda", "mps")
"""Accelerators for training: `auto` is a GPU if there is one."""

STRATEGIES: Final = ("auto", "ddp", "fsdp2")
"""Strategies for several processes; `auto` is one process, or DDP."""

PRECISIONS: Final = ("32-true", "bf16-mixed", "16-mixed")
"""Precisions of training, by Lightning Fabric's names."""

METRICS: Final = ("sdr", "si_sdr", "l1_freq", "bleedless", "fullness", "log_wmse", "museval_sdr")
"""Metrics of separated stems."""


def dtype_of(name: Precision) -> torch.dtype:
    """Return PyTorch's dtype of a name."""
    import torch

    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
    return dict(zip(DTYPES_COMPUTED, dtypes, strict=True))[name]
