"""Damaged and made up files and arguments: each ends in a model or in one clear line, within seconds and below 2 GB.

Runs for a few seconds in the tests, and for as long as one likes as a script, which prints how often each outcome was:

    HUNTERFORMSBS_FUZZ_SECONDS=3600 python tests/test_fuzz.py 7
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import from_checkpoint, from_configuration, read_configuration

SECONDS = float(os.environ.get("HUNTERFORMSBS_FUZZ_SECONDS", "12"))
LONGEST_CASE = 10.0
LARGEST = 2 * 2**30
ALLOWED = (ValueError, TypeError, OSError)  # of which CheckpointError is the first

SMALL: dict[str, Any] = {
    "dim": 8,
    "depth": 2,
    "heads": 1,
    "dim_head": 4,
    "time_transformer_depth": 1,
    "freq_transformer_depth": 1,
    "freqs_per_bands": [3, 6],
    "stft_n_fft": 16,
    "stft_win_length": 16,
    "stft_hop_length": 4,
    "dim_freqs_in": 9,
    "mlp_expansion_factor": 1,
    "mask_estimator_depth": 1,
}
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, 3, 4, 8, 16, 44100, -1, 2**20, 2**31, 2**62, 2**63, 2**64, 10**400, 0.5, -0.0, 1e-45),
    *(
        1e39,
        math.inf,
        -math.inf,
        math.nan,
        "",
        "x",
        "false",
        "\x1b[2J",
        "\u202e",
        "hann_window",
        [],
        [1],
        [3, 6],
        [[1]],
    ),
    *((), (0, 9), (-1, -1), {}, {"a": 1}, [[1, 0], [0]], [["x"]], [None], b"ab", 3 + 4j, [9] * 1000, "9" * 5000),
)
BITS = (b"\x00", b"\xff", b"\x80", b"}", b"(", b"R", b"c", b"\x85", b".", b"{", b'"', b":", b"*a", b"&a ", b"9", b"[")


def seeds(folder: Path) -> dict[str, bytes]:
    """Return whole files of every kind."""
    state = BandSplitRotator(**SMALL).state_dict()
    torch.save({"state_dict": state, "epoch": 3}, folder / "zip.ckpt")
    torch.save({"model": state}, folder / "legacy.ckpt", _use_new_zipfile_serialization=False)
    save_file({key: tensor.clone() for key, tensor in state.items()}, folder / "a.safetensors")
    weight_map = dict.fromkeys(state, "a.safetensors")
    (folder / "a.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "a.json").write_text(json.dumps({"model": SMALL, "training": {"instruments": ["vocals"]}}))
    lines = "".join(f"  {name}: {value}\n" for name, value in SMALL.items())
    (folder / "a.yaml").write_text(f"audio: &a\n  rate: !!int 3\nmodel:\n{lines}  freq_range: !!python/tuple [0, 9]\n")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def mutate(data: bytes, dice: random.Random) -> bytes:
    """Change some bytes, most often those where the structure of a file is."""
    changed = bytearray(data)
    for _ in range(dice.choice((0, 1, 1, 1, 2, 4, 16))):
        place = dice.choice((dice.randrange(len(changed) + 1), dice.randrange(min(400, len(changed)) + 1)))
        length = dice.choice((1, 1, 1, 2, 4, 8, 64))
        choice = dice.randrange(6)
        if choice == 0:
            changed[place : place + length] = dice.randbytes(length)
        elif choice == 1:
            del changed[place : place + length]
        elif choice == 2:
            changed[place:place] = dice.choice(BITS) * dice.choice((1, 2, 100, 5000))
        elif choice == 3:
            changed[place : place + 1] = dice.choice(BITS)
        elif choice == 4:
            source = dice.randrange(len(changed) + 1)
            changed[place:place] = changed[source : source + 100 * length]
        elif changed:
            del changed[dice.randrange(len(changed)) :]
    return bytes(changed)


def mutate_entry(path: Path, data: bytes, dice: random.Random) -> None:
    """Change what is in the pickle of an archive, with the archive left whole."""
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    chosen = dice.choice([name for name in entries if name.endswith("data.pkl")] * 8 + list(entries))
    entries[chosen] = mutate(entries[chosen], dice)
    with zipfile.ZipFile(path, "w", dice.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def case(folder: Path, whole: dict[str, bytes], dice: random.Random) -> tuple[str, Callable[[], object]]:
    """Return a kind of case, and what to do for it."""
    kind = dice.choice([*whole, "entry", "state dict", "arguments", "configuration"])
    path = folder / f"case-{kind.replace(' ', '')}"
    if kind == "arguments":
        names = dice.sample(
            sorted(BandSplitRotator.__init__.__annotations__.keys() - {"return"}), dice.choice((1, 1, 2))
        )
        changes = {name: dice.choice(VALUES) for name in names}
        return kind, lambda: BandSplitRotator(**{**SMALL, **changes})
    if kind == "configuration":
        changed: dict[Any, Any] = {**SMALL, dice.choice([*SMALL, "mask_filter_bank", "x", 3]): dice.choice(VALUES)}
        return kind, lambda: from_configuration(dice.choice((changed, {"model": changed})))
    if kind == "entry":
        mutate_entry(path, whole["zip.ckpt"], dice)
    elif kind == "state dict":
        state: dict[Any, Any] = dict(BandSplitRotator(**SMALL).state_dict())
        for key in dice.sample(sorted(state), dice.choice((0, 1, 2))):
            tensor = state.pop(key)
            state[mutate(key.encode(), dice).decode("latin-1")] = dice.choice(
                (tensor, tensor.half(), tensor.bool(), tensor.flatten(), tensor[..., :0], tensor.to_sparse(), *VALUES)
            )
        torch.save(dice.choice((state, {"model": state}, [state])), path)
    else:
        path = folder / f"case-{kind}"
        path.write_bytes(mutate(whole[kind], dice))
    if path.suffix in (".json", ".yaml") and "index" not in path.name:
        return kind, lambda: from_configuration(read_configuration(path))
    stated = dice.choice((None, SMALL, {**SMALL, dice.choice(list(SMALL)): dice.choice(VALUES)}))
    return kind, lambda: from_checkpoint(path, stated, upstream=dice.choice((None, "hunterFormsBS")))


def outcome(action: Callable[[], object]) -> str:
    """Return how a case ended; `wrong: …` where it broke the promise."""
    start = time.process_time()  # of this process: machines are shared, and stopped
    try:
        result = "model" if isinstance(action(), BandSplitRotator) else "wrong: no model"
    except ALLOWED as error:
        result = type(error).__name__
        message = str(error)
        steering = [c for c in message if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")]
        if len(message) > 3500 or steering or not message:
            result = f"wrong: the message {message[:500]!r}"
    except Exception:  # noqa: BLE001  # every other is what is looked for
        result = f"wrong: {''.join(traceback.format_exc()[-1500:])}"
    taken = time.process_time() - start
    return f"wrong: took {taken:.1f} s" if taken > LONGEST_CASE else result


def fuzz(seed: int, seconds: float) -> int:
    """Run cases for some time, print what came of them, and return how many broke the promise."""
    faulthandler.enable()
    faulthandler.dump_traceback_later(seconds + 60, exit=True)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        whole = seeds(Path(name))
        number = 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            number += 1
            kind, action = case(Path(name), whole, random.Random(f"{seed} {number}"))
            result = outcome(action)
            counts[f"{kind}: {result[:5] if result.startswith('wrong') else result}"] += 1
            if result.startswith("wrong"):
                print(f"seed {seed}, case {number}, {kind}: {result}", flush=True)
    for line, count in sorted(counts.items()):
        print(f"{count:8} {line}")
    wrong = sum(count for line, count in counts.items() if line.endswith("wrong"))
    print(f"{number} cases, {wrong} wrong, at most {peak() / 2**20:.0f} MiB")
    return wrong + (peak() > LARGEST)


def peak() -> int:
    """Return the most bytes that this process held."""
    status = Path("/proc/self/status")
    if status.exists():  # On Linux the other count begins with what the process that started this one held.
        return next(int(line.split()[1]) * 1024 for line in status.open() if line.startswith("VmHWM"))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


@pytest.mark.process
@pytest.mark.parametrize("seed", [17])
def test_damaged_and_made_up_files_end_in_a_model_or_in_one_clear_line(seed: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run(
        [sys.executable, __file__, str(seed)], capture_output=True, text=True, env=environment, timeout=SECONDS + 120
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert " 0 wrong" in done.stdout


if __name__ == "__main__":
    sys.exit(min(1, fuzz(int(sys.argv[1]) if len(sys.argv) > 1 else 0, SECONDS)))
