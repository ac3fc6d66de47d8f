"""Settings of Music-Source-Separation-Training that are not read here, and what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

OF_OTHER_MODELS: Final = (
    "audio.dim_f",
    "audio.dim_t",
    "audio.hop_length",
    "audio.n_fft",
    "audio.num_channels",
    "audio.stereo",
    "inference.dim_t",
    "type",
)
"""In every configuration, but read only for other architectures: not worth a warning."""

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
"""Settings that the section `augmentations` replaced in MSST too."""

INSTEAD: Final[Mapping[str, str]] = {
    "training.other_fix": "name `other` or `instrumental` in training.instruments: it takes whatever has no name there",
    "training.early_stop": "stop the run when you like: best.ckpt is there, and the same command goes on",
    "training.num_warmup_steps": "nothing: Music-Source-Separation-Training reads it for scheduler: linear_scheduler "
    "only; say training.warmup_steps for another one",
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
    "lora": "the section is fine_tuning.lora here, with arguments of peft.LoraConfig",
}


def explain(unread: Mapping[str, Any]) -> dict[str, str]:
    """Return what to do instead for each setting that is not read, except those that nobody would miss.

    Parameters
    ----------
    unread : mapping
        Values by `section.name`. A setting in `INSTEAD` that is off is left out.
    """
    instead: dict[str, str] = {}
    for name, value in unread.items():
        section, _, setting = name.partition(".")
        known = section if section in INSTEAD else name
        if known in OF_OTHER_MODELS or known in READ_BY_NOBODY or (known in INSTEAD and value in (False, None, 0)):
            continue
        instead[known] = INSTEAD.get(known) or "it is unknown: see docs/training.md"
        if section == "audio" and setting.startswith("stft_"):
            instead[known] = "the same setting in the section model counts"
    return instead
