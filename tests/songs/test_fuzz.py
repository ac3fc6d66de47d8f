"""Media of every container cut and overwritten at random: each is read or refused in one clear line, and ends no batch.

Runs for a few seconds in the tests, and for as long as one likes as a script, which prints how often each outcome was:

    python tests/songs/test_fuzz.py --minutes 60 --seed 7
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mutagen
import numpy as np
import pytest
import soundfile
import torch

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.__main__ import main
from hunterFormsBS.checkpoint import save_checkpoint
from hunterFormsBS.songs.reading import probe_audio
from hunterFormsBS.songs.tags import read_tags
from tests.media import encode, noise

SECONDS = 3.0
LONGEST_CASE = 20.0
LARGEST = 2 * 2**30
SONGS_PER_BATCH = 6
ALLOWED = (ValueError, OSError)

SMALL = {
    "dim": 8,
    "depth": 1,
    "heads": 1,
    "dim_head": 4,
    "time_transformer_depth": 1,
    "freq_transformer_depth": 1,
    "freqs_per_bands": (3, 6),
    "dim_freqs_in": 9,
    "stft_n_fft": 16,
    "stft_win_length": 16,
    "stft_hop_length": 8,
    "stereo": True,
    "num_stems": 1,
}


def seeds(folder: Path) -> dict[str, bytes]:
    """Return whole files of every kind, with tags where mutagen writes them."""
    files = sorted(encode(folder / "whole", noise(0.25)).iterdir())
    for file in files:
        with contextlib.suppress(Exception):
            song: Any = mutagen.File(file, easy=True)
            song["title"], song["artist"] = "Dédé", ["One", "Two"]
            song.save()
    return {file.name: file.read_bytes() for file in files}


def damage(content: bytes, dice: random.Random) -> bytes:
    """Cut, overwrite, insert or repeat some bytes, most often in the header."""
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 8))):
        start = dice.choice((dice.randrange(len(changed) + 1), dice.randrange(min(300, len(changed)) + 1)))
        length = dice.choice((1, 1, 2, 4, 8, 500, 5000))
        choice = dice.randrange(6)
        if choice == 0:
            del changed[start : start + length]
        elif choice == 1:
            changed[start:start] = changed[: dice.randrange(len(changed) + 1)]
        elif choice == 2:
            changed[start : start + length] = dice.choice((b"\0", b"\xff", b"\x7f")) * length
        elif choice == 3 and dice.random() < 0.3:
            del changed[start:]
        else:
            changed[start : start + length] = dice.randbytes(length)
    return bytes(changed)


def read(path: Path) -> str:
    """Return what came of one file."""
    try:
        read_tags(path)
        audio = probe_audio(path, downmix=True)
        length = sum(block.shape[-1] for block in audio.blocks())
    except ALLOWED as error:
        message = str(error)
        steering = [c for c in message if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")]
        if len(message) > 1000 or steering or not message or re.search("0x[0-9a-f]{6}", message):
            return f"wrong: the message {message[:500]!r}"
        return "refused"
    return "read" if length else "wrong: no samples"


def separate(folder: Path, files: Mapping[str, bytes]) -> str:
    """Return what came of a batch with a good song at its end."""
    output = folder / "out"
    paths = [folder / name for name in files]
    for path, content in zip(paths, files.values(), strict=True):
        path.write_bytes(content)
    said = io.StringIO()
    arguments = ["--checkpoint", folder / "model.ckpt", "--output", output, "--overwrite", "--downmix"]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main([*map(str, [*paths, folder / "good.wav", *arguments])])
    good = output / "good" / "voice.wav"
    if status not in (0, 1) or "Traceback" in said.getvalue() or not good.exists():
        return f"wrong: status {status}, {said.getvalue()[-1500:]}"
    stems = {path.parent.name for path in output.rglob("*.wav")}
    for path in [*output.rglob("*.wav")]:
        path.unlink()
    return f"{len(stems) - 1} of {len(files)} and the good song separated"


def outcome(folder: Path, whole: Mapping[str, bytes], dice: random.Random) -> str:
    """Return how a case ended; `wrong: …` where it broke the promise."""
    start = time.process_time()  # of this process: machines are shared, and stopped
    kind = "batch" if dice.random() < 0.05 else "file"
    try:
        if kind == "batch":
            chosen = dice.sample(sorted(whole), SONGS_PER_BATCH)
            result = separate(folder, {f"{n}{name}": damage(whole[name], dice) for n, name in enumerate(chosen)})
        else:
            name = dice.choice(sorted(whole))
            (folder / f"case-{name}").write_bytes(damage(whole[name], dice))
            result = read(folder / f"case-{name}")
            result = f"{result}, {name}" if result.startswith("wrong") else result
    except BaseException:  # noqa: BLE001  # every other is what is looked for
        result = f"wrong: {traceback.format_exc()[-1500:]}"
    taken = time.process_time() - start
    return f"wrong: took {taken:.1f} s" if taken > LONGEST_CASE else f"{kind}: {result}"


def fuzz(seed: int, seconds: float) -> int:
    """Run cases for some time, print what came of them, and return how many broke the promise."""
    faulthandler.enable()
    faulthandler.dump_traceback_later(seconds + 120, exit=True)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = seeds(folder)
        settings = {"audio": {"chunk_size": 20000}, "training": {"instruments": ["voice"]}}
        save_checkpoint(folder / "model.ckpt", BandSplitRotator(**SMALL), configuration=settings)  # type: ignore[arg-type]
        soundfile.write(folder / "good.wav", np.zeros((3000, 2)), 44100)
        number = 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            number += 1
            result = outcome(folder, whole, random.Random(f"{seed} {number}"))
            counts[result.partition(" wrong")[0][:60]] += 1
            if "wrong: " in result:
                wrong += 1
                print(f"seed {seed}, case {number}: {result}", flush=True)
    for line, count in sorted(counts.items()):
        print(f"{count:8} {line}")
    print(f"{number} cases, {wrong} wrong, at most {peak() >> 20} MiB")
    return wrong + (peak() > LARGEST)


def peak() -> int:
    """Return the most bytes that this process held, where Linux tells it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return next(int(line.split()[1]) << 10 for line in status.open() if line.startswith("VmHWM"))


@pytest.mark.parametrize("seed", [17])
def test_damaged_media_is_read_or_refused_in_one_line_and_ends_no_batch(seed: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, __file__, "--minutes", str(SECONDS / 60), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=SECONDS + 240, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert " 0 wrong" in done.stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    sys.exit(min(1, fuzz(chosen.seed, chosen.minutes * 60)))
