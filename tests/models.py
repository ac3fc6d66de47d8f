"""Arguments of small models that many tests build."""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = {
    "dim": 12,
    "depth": 2,
    "heads": 2,
    "dim_head": 4,
    "time_transformer_depth": 1,
    "freq_transformer_depth": 1,
    "freqs_per_bands": (2, 3, 4, 5, 7, 12),
    "dim_freqs_in": 33,
    "stft_n_fft": 64,
    "stft_win_length": 64,
    "stft_hop_length": 16,
    "mlp_expansion_factor": 2,
    "multi_stft_resolutions_window_sizes": (128, 64, 32),
    "multi_stft_hop_size": 20,
}
"""33 bins in 6 bands: a forward pass takes milliseconds, and no two axes have the same length."""

SMALL = {"dim": 8, "depth": 2, "heads": 2, "dim_head": 4, "time_transformer_depth": 1, "freq_transformer_depth": 1}
SMALL_BS: dict[str, Any] = SMALL | {
    "stft_n_fft": 64,
    "stft_hop_length": 16,
    "stft_win_length": 64,
    "freqs_per_bands": (4, 8, 21),
    "mask_estimator_depth": 2,
    "stereo": True,
    "num_stems": 3,
}
SMALL_MEL: dict[str, Any] = SMALL | {
    "stft_n_fft": 2048,
    "stft_hop_length": 441,
    "stft_win_length": 2048,
    "num_bands": 60,
    "sample_rate": 44100,
    "mask_estimator_depth": 1,
    "mlp_expansion_factor": 1,
}

STEREO: dict[str, Any] = {
    "dim": 8,
    "depth": 1,
    "heads": 1,
    "dim_head": 8,
    "time_transformer_depth": 1,
    "freq_transformer_depth": 1,
    "num_stems": 2,
    "stereo": True,
    "freqs_per_bands": (3, 10, 20),
    "dim_freqs_in": 33,
    "stft_n_fft": 64,
    "stft_win_length": 64,
    "stft_hop_length": 16,
}
"""A model that separates a song of files within a second."""

STEREO_AT: dict[str, Any] = {"audio": {"sample_rate": 8000, "chunk_size": 2000}, "inference": {"num_overlap": 2}}
