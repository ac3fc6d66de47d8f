"""Damaged and made up files and arguments: each ends in a model or in one clear line, within seconds and below 2 GB.

Runs for a few seconds in the tests, and for as long as one likes as a script, which prints how often each outcome was:

    python tests/checkpoint/test_fuzz.py --minutes 20 --seed 7
"""

from __future__ import annotations

import argparse
import datetime
import faulthandler
import inspect
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
from hunterFormsBS.checkpoint.weightsFile import WeightsFile

MINUTES = 0.04
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
ARGUMENTS = tuple(inspect.signature(BandSplitRotator).parameters)

VALUES: dict[str, tuple[Any, ...]] = {
    "none": (None,),
    "boolean": (True, False),
    "integer": (0, 1, 2, 3, 4, 8, 16, 44100, -1, 2**20, 2**31, 2**62, 2**63, 2**64, 10**400),
    "float": (0.5, -0.0, 1e-45, 1e39, math.inf, -math.inf, math.nan),
    "text": ("", "x", "5", "false", "\x1b[2J", "\u202e", "hann_window", "9" * 5000),
    "list": ([], [1], [3, 6], [None], [9] * 1000, [math.nan, 1], ["x"]),
    "rows": ([[1]], [[1, 0], [0]], [["x"]], [[]], [[math.nan] * 9] * 2, [[True] * 9] * 2),
    "tuple": ((), (0, 9), (-1, -1), (1.5, None)),
    "mapping": ({}, {"a": 1}, {1: 2}, {"a": {"b": []}}),
    "tensor": (
        *(torch.ones(()), torch.ones(2, 9), torch.ones(1, 1, 9, dtype=torch.bool), torch.ones(2, 9).to_sparse()),
        *(torch.ones(2, 9).cfloat(), torch.ones(2, 9, dtype=torch.bool, device="meta")),
    ),
    "other": (b"ab", 3 + 4j, {1, 2}, datetime.date(2020, 1, 1), datetime.timedelta(1)),
}
"""Values of every type that a configuration, a file of PyTorch or a caller can hold."""

ALL_VALUES = tuple(value for values in VALUES.values() for value in values)
BITS = (b"\x00", b"\xff", b"\x80", b"}", b"(", b"R", b"c", b"\x85", b".", b"{", b'"', b":", b"*a", b"&a ", b"9", b"[")


def seeds(folder: Path) -> dict[str, bytes]:
    """Return whole files of every kind."""
    state = BandSplitRotator(**SMALL).state_dict()
    torch.save({"state_dict": state, "epoch": 3}, folder / "zip.ckpt")
    torch.save({"model": state}, folder / "legacy.ckpt", _use_new_zipfile_serialization=False)
    torch.save(training_state(), folder / "state.ckpt")
    save_file({key: tensor.clone() for key, tensor in state.items()}, folder / "a.safetensors")
    weight_map = dict.fromkeys(state, "a.safetensors")
    (folder / "a.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "a.json").write_text(json.dumps({"model": SMALL, "training": {"instruments": ["vocals"]}}))
    lines = "".join(f"  {name}: {value}\n" for name, value in SMALL.items())
    (folder / "a.yaml").write_text(f"audio: &a\n  rate: !!int 3\nmodel:\n{lines}  freq_range: !!python/tuple [0, 9]\n")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def training_state() -> dict[str, Any]:
    """Return what trainers save to continue from."""
    model = BandSplitRotator(**SMALL)
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.square().sum() for parameter in model.parameters()).backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "dice": {"torch": torch.get_rng_state(), "python": random.Random(0).getstate()},
        "step": 3,
    }


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
    write_archive(path, entries, dice.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def write_archive(path: Path, entries: dict[str, bytes], method: int) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def compress(path: Path, data: bytes, dice: random.Random) -> None:
    """Pack an archive anew by one of the methods, and then let it be damaged, or claim another method."""
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    write_archive(path, entries, dice.choice((0, 8, 12, 14)))
    packed = bytearray(path.read_bytes())
    if dice.random() < 0.5:
        method = dice.choice((*range(21), *range(93, 100), 65535)).to_bytes(2, "little")
        for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            at = packed.find(mark)
            while at >= 0:
                packed[at + offset : at + offset + 2] = method
                at = packed.find(mark, at + 4)
    path.write_bytes(mutate(bytes(packed), dice))


def case(folder: Path, whole: dict[str, bytes], dice: random.Random) -> tuple[str, Callable[[], object]]:
    """Return a kind of case, and what to do for it."""
    kind = dice.choice([*whole, "entry", "compression", "state dict", "arguments", "configuration", "beside weights"])
    path = folder / f"case-{kind.replace(' ', '')}"
    changed: dict[Any, Any] = {**SMALL, dice.choice([*ARGUMENTS, "x", 3]): dice.choice(ALL_VALUES)}
    if kind == "arguments":
        changes = {name: dice.choice(ALL_VALUES) for name in dice.sample(ARGUMENTS, dice.choice((1, 1, 2)))}
        return kind, lambda: BandSplitRotator(**{**SMALL, **changes})
    if kind == "configuration":
        return kind, lambda: from_configuration(dice.choice((changed, {"model": changed})))
    if kind == "entry":
        mutate_entry(path, whole[dice.choice(("zip.ckpt", "state.ckpt"))], dice)
    elif kind == "compression":
        compress(path, whole["zip.ckpt"], dice)
    elif kind == "state dict":
        state: dict[Any, Any] = dict(BandSplitRotator(**SMALL).state_dict())
        for key in dice.sample(sorted(state), dice.choice((0, 1, 2))):
            tensor = state.pop(key)
            state[mutate(key.encode(), dice).decode("latin-1")] = dice.choice(
                (
                    tensor,
                    tensor.half(),
                    tensor.bool(),
                    tensor.flatten(),
                    tensor[..., :0],
                    tensor.to_sparse(),
                    *ALL_VALUES,
                )
            )
        torch.save(dice.choice((state, {"model": state}, [state])), path)
    elif kind == "beside weights":
        # In the file itself as well, where it may hold tensors.
        within = {"state_dict": BandSplitRotator(**SMALL).state_dict(), "configuration": {"model": changed}}
        torch.save({**within, "upstream": dice.choice(("hunterFormsBS", dice.choice(ALL_VALUES)))}, path)
        given = dice.choice((None, changed, {"model": changed}))
        overrides = dice.choice(({}, {name: changed[name] for name in ARGUMENTS if name in changed}))
        return kind, lambda: from_checkpoint(path, given, **overrides)
    else:
        path = folder / f"case-{kind}"
        path.write_bytes(mutate(whole[kind], dice))
    if path.suffix in (".json", ".yaml") and "index" not in path.name:
        return kind, lambda: from_configuration(read_configuration(path))
    if kind == "state.ckpt" and dice.random() < 0.5:
        return kind, lambda: (file := WeightsFile(path)).read(file.content)
    stated = dice.choice((None, SMALL, changed))
    return kind, lambda: from_checkpoint(path, stated, upstream=dice.choice((None, "hunterFormsBS")))


def outcome(action: Callable[[], object]) -> str:
    """Return how a case ended; `wrong: …` where it broke the promise."""
    start = time.process_time()  # of this process: machines are shared, and stopped
    try:
        result = "model" if isinstance(action(), BandSplitRotator) else "content"
    except ALLOWED as error:
        result = type(error).__name__
        message = str(error)
        steering = [c for c in message if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")]
        if len(message) > 3500 or steering or not message or " at 0x" in message:
            result = f"wrong: the message {message[:500]!r}"
    except Exception:  # noqa: BLE001  # every other is what is looked for
        result = f"wrong: {''.join(traceback.format_exc()[-1500:])}"
    taken = time.process_time() - start
    return f"wrong: took {taken:.1f} s" if taken > LONGEST_CASE else result


def fuzz(seed: int, minutes: float) -> int:
    """Run cases for some time, print what came of them, and return how many broke the promise."""
    seconds = 60 * minutes
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
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, __file__, "--minutes", str(MINUTES), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=180)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert " 0 wrong" in done.stdout


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", VALUES)
def test_every_argument_of_every_type_ends_in_a_model_or_in_one_clear_line(kind: str) -> None:
    wrong = []
    for name in ARGUMENTS:
        # One value of each type for each argument, chosen anew for every argument; the script tries the others.
        value = random.Random(f"{kind} {name}").choice(VALUES[kind])
        result = outcome(lambda name=name, value=value: from_configuration({**SMALL, name: value}))
        wrong += [f"{name}={value!r}: {result}"] if result.startswith("wrong") else []
    assert wrong == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", [True, 5, 2.5, "text", {"a": 1}, [1], torch.ones(())], ids=repr)
def test_a_filter_bank_of_the_wrong_type_beside_weights_is_one_clear_line(value: object, tmp_path: Path) -> None:
    torch.save(BandSplitRotator(**SMALL).state_dict(), tmp_path / "a.ckpt")
    for given, overrides in (({**SMALL, "mask_filter_bank": value}, {}), (SMALL, {"mask_filter_bank": value})):
        with pytest.raises(ValueError, match=r"mask_filter_bank=.* is not a list of rows of one length"):
            from_checkpoint(tmp_path / "a.ckpt", given, **overrides)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", ["9" * 5000, [[True] * 9] * 200], ids=["text", "rows"])
def test_a_long_value_that_weights_contradict_is_one_bounded_line(value: object, tmp_path: Path) -> None:
    torch.save(BandSplitRotator(**SMALL).state_dict(), tmp_path / "a.ckpt")
    wrong = []
    for name in ("dim", "heads", "use_value_residual_learning", "freqs_per_bands", "mask_filter_bank", "stereo"):
        result = outcome(lambda name=name: from_checkpoint(tmp_path / "a.ckpt", SMALL, **{name: value}))
        wrong += [f"{name}: {result}"] if result not in ("CheckpointError", "TypeError", "ValueError") else []
    assert wrong == []


def main() -> int:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--minutes", type=float, default=MINUTES)
    reader.add_argument("--seed", type=int, default=0)
    options = reader.parse_args()
    return min(1, fuzz(options.seed, options.minutes))


if __name__ == "__main__":
    sys.exit(main())
