"""Make a folder of songs to try training with, from the six seconds of music in the package stempeg.

    write_songs(Path("songs"))

writes `songs/train/Falcon 69/` and `songs/test/Falcon 69/`, each with a mixture and four stems. Training on it shows
that everything works, not how good a model is.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import av
import numpy as np
import soundfile

from hunterFormsBS.installation import how_to_install

STREAMS = ("mixture", "drums", "bass", "other", "vocals")
SECONDS_TO_TRAIN_ON = 4


def write_songs(folder: Path) -> None:
    """Write the first seconds of the song for training, and the rest for validation."""
    for name, (audio, sample_rate) in decode().items():
        cut = SECONDS_TO_TRAIN_ON * sample_rate
        for part, samples in (("train", audio[:cut]), ("test", audio[cut:])):
            song = folder / part / "Falcon 69"
            song.mkdir(parents=True, exist_ok=True)
            soundfile.write(str(song / f"{name}.wav"), samples, sample_rate, subtype="PCM_16")


def decode() -> dict[str, tuple[np.ndarray, int]]:
    """Return audio, `(t, s)`, and sample rate of each stream of the song."""
    # Importing stempeg itself would need ffmpeg.
    package = importlib.util.find_spec("stempeg")
    if package is None or package.origin is None:
        raise ImportError(f"the song is in the package stempeg: {how_to_install('examples')}")
    song = next((Path(package.origin).parent / "data").glob("*.stem.mp4"))
    streams: dict[str, tuple[np.ndarray, int]] = {}
    for index, name in enumerate(STREAMS):
        with av.open(str(song)) as container:
            stream = container.streams.audio[index]
            frames = [frame.to_ndarray() for frame in container.decode(stream)]
            streams[name] = (np.concatenate(frames, axis=1).T, int(stream.rate))
    return streams
