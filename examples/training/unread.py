"""Settings of Music-Source-Separation-Training that are not read here, each with what to do instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

OF_OTHER_MODELS: Final = (
    "audio.dim_f",
    "audio.dim_t",
    "audio.hop_length",
    "audio.n_fft",
    "audio.num_channels",
    "inference.dim_t",
)
"""Written into every configuration, and read by other architectures only: not worth a warning."""

READ_BY_NOBODY: Final = (
    "training.augmentation",
    "training.augmentation_loudness",
    "training.augmentation_loudness_max",
    "training.augmentation_loudness_min",
    "training.augmentation_loudness_type",
    "training.augmentation_mix",
    "training.augmentation_type",
    "training.use_mp3_compress",
)
"""What the section `augmentations` has replaced in MSST too."""

INSTEAD: Final[Mapping[str, str]] = {
    "training.other_fix": "name `other` or `instrumental` in training.instruments: it takes whatever has no name there",
    "training.early_stop": "stop the run when you like: best.ckpt is there, and the same command goes on",
    "training.bypass_filter": "nothing: log-WMSE weighs frequencies as ears do",
    "training.max_class_presence_ratio": "nothing: it belongs to training.dataset_type 7, which is not read",
    "training.model_type": "nothing: the section model says which layout it is",
    "training.num_precompute_chunks": "say audio.min_mean_abs: stems that are too quiet are drawn again",
    "training.precompute_batch_for_chunks": "say audio.min_mean_abs: stems that are too quiet are drawn again",
    "training.precompute_chunks": "say audio.min_mean_abs: stems that are too quiet are drawn again",
    "training.read_metadata_procs": "nothing: only headers are read",
    "training.normalize": "scale the audio files, or say augmentations.loudness",
    "inference.normalize": "scale the audio files: a model is given them as they are",
    "inference.use_autocast_dtype": "say training.precision",
    "inference.max_valid_tracks": "say validation.songs",
    "inference.chunk_size": "segments to separate are those of audio.chunk_size",
    "augmentations.mp3_compression_on_mixture_backend": "nothing: there is one encoder",
    "lora.r": "write the section as fine_tuning.lora, with arguments of peft.LoraConfig",
}


def explain(names: Iterable[str]) -> list[str]:
    """Return a line for each setting that is not read, but for those that nobody would miss.

    Parameters
    ----------
    names : iterable of str
        `section.name`.
    """
    lines: list[str] = []
    for name in names:
        if name in OF_OTHER_MODELS or name in READ_BY_NOBODY:
            continue
        section, _, setting = name.partition(".")
        instead = INSTEAD.get(name) or "it is unknown: see docs/training.md"
        if section == "lora":
            instead = INSTEAD["lora.r"]
        elif section == "audio" and setting.startswith("stft_"):
            instead = "the same setting in the section model counts"
        lines.append(f"  {name:.80}: {instead}")
    return lines
