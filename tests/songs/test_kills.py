"""A batch of songs that ends at any moment: by a kill, a signal or a full disk. Nothing is half-written, lost or left.

Takes a few rounds in the tests, and as many as one likes as a script, which prints how often each outcome was:

    python tests/songs/test_kills.py --rounds 100 --seed 7
"""

from __future__ import annotations

import argparse
import os
import random
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SONGS, STEMS = ("a", "b"), ("voice", "band")
NAMES = [f"{song}/{stem}.flac" for song in SONGS for stem in STEMS]
RECIPE = """
steps: {first: {models: model.ckpt}, second: {models: model.ckpt, input: first.voice}}
outputs: {voice: second.band, band: first.rest}
"""
MODES: dict[str, tuple[str, ...]] = {"plain": (), "overwrite": ("--overwrite",), "skip": ("--skip-existing",)}
HIDDEN = re.compile(r"\.[0-9a-f]{16}\.[0-9a-f]{16}\.hunterFormsBS(\.flac)?")
SIGNALS = [number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]
ROOMS = "batch|together|writing|threads|signals|separating|keeping"
TRACED = re.compile(rf"hunterFormsBS/songs/({ROOMS})\.py$|/contextlib\.py$")
OPERATIONS = frozenset({"open", "os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir"})

Moment = Callable[[], object]


class Hit(NamedTuple):
    """What happens to a run, and when: `number` counts what `kind` counts."""

    kind: str
    number: int = sys.maxsize


# In the process that is hit -------------------------------------------------------------------------------------------


def count_operations(hit: Moment, output: Path) -> Callable[[], int]:
    """Call `hit` before each operation on files below a folder; return what tells how often that was."""
    calls: list[None] = []

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in OPERATIONS and str(output) in str(arguments[0]):
            calls.append(None)
            hit()

    sys.addaudithook(audit)
    return lambda: len(calls)


def count_lines(hit: Moment) -> Callable[[], int]:
    """Call `hit` before each line that could leave something; return what tells how often that was."""
    calls: list[None] = []

    def trace(frame: Any, _event: str, _argument: object) -> Any:
        if TRACED.search(frame.f_code.co_filename) is None:
            return None
        calls.append(None)
        hit()
        return trace

    sys.settrace(trace)
    return lambda: len(calls)


def counted(number: int, action: Moment) -> Moment:
    """Return what does an action at the call of this number."""
    calls: list[None] = []

    def call() -> None:
        calls.append(None)
        if len(calls) == number:
            action()

    return call


def run_here(arguments: list[str], output: Path, hit: Hit, told: int) -> int:
    """Be the program, and have it hit; write how many moments there were to a pipe."""
    from hunterFormsBS.__main__ import run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    moments: Callable[[], int] = lambda: 0  # noqa: E731  # a name for what one of the branches makes
    if hit.kind == "operation":
        moments = count_operations(counted(hit.number, lambda: os.kill(os.getpid(), signal.SIGKILL)), output)
    elif hit.kind in signal.Signals.__members__:
        number = signal.Signals[hit.kind]
        moments = count_lines(counted(hit.number, lambda: signal.raise_signal(number)))
    elif hit.kind == "bytes":
        import_module("resource").setrlimit(import_module("resource").RLIMIT_FSIZE, (hit.number, hit.number))
    sys.argv = ["hunterFormsBS", *arguments]
    try:
        run()
    except SystemExit as error:
        status = int(error.code or 0)
    except KeyboardInterrupt:  # before the program's own first line or after its last
        status = 130
    sys.settrace(None)
    os.write(told, str(moments()).encode())
    return status


# Beside it ------------------------------------------------------------------------------------------------------------


NOTHING = Hit("nothing")


class Bench:
    """Songs, a small model, and what it makes of them, alone or twice in a recipe that keeps stems in files."""

    def __init__(self, folder: Path, *, recipe: bool) -> None:
        import mutagen
        import numpy as np
        import soundfile
        import torch

        from hunterFormsBS import BandSplitRotator
        from hunterFormsBS.checkpoint import save_checkpoint

        torch.manual_seed(0)
        sizes: dict[str, Any] = {"time_transformer_depth": 1, "freq_transformer_depth": 1, "dim_freqs_in": 33}
        sizes |= {"stft_n_fft": 64, "stft_win_length": 64, "stft_hop_length": 32, "freqs_per_bands": (3, 10, 20)}
        model = BandSplitRotator(8, depth=1, heads=1, dim_head=8, num_stems=2, stereo=True, **sizes)
        self.checkpoint = folder / "model.ckpt"
        self.models: list[Any] = ["--checkpoint", self.checkpoint]
        if recipe:
            (folder / "recipe.yaml").write_text(RECIPE)
            self.models = ["--recipe", folder / "recipe.yaml", "--one-model-at-a-time"]
        self.output, self.errors = folder / "out", folder / "errors"
        save_checkpoint(
            self.checkpoint,
            model,
            configuration={
                "audio": {"sample_rate": 8000, "chunk_size": 2000},
                "training": {"instruments": list(STEMS)},
                "inference": {"num_overlap": 1},
            },
        )
        self.songs = [folder / f"{song}.flac" for song in SONGS]
        for number, song in enumerate(self.songs):
            soundfile.write(song, np.random.default_rng(number).uniform(-0.5, 0.5, (20_000, 2)), 8000)
            tags = mutagen.File(song)
            tags["title"] = song.name
            tags.save()
        begun = time.monotonic()
        self.run("plain")
        self.seconds = time.monotonic() - begun
        self.new = self.content()
        assert set(self.new) == set(NAMES)

    def run(self, mode: str, hit: Hit = NOTHING, *, after: float | None = None) -> tuple[int, int]:
        """Run the program on all songs in a process of its own, and return its status and how many moments it had."""
        arguments = [*self.songs, *self.models, "--output", self.output, "--format", "flac"]
        arguments += ["--quiet", *MODES[mode]]
        reading, told = os.pipe()
        process = os.fork()
        if not process:
            status = 99
            try:
                os.dup2(os.open(self.errors, os.O_RDWR | os.O_CREAT | os.O_TRUNC), 2)
                status = run_here([str(argument) for argument in arguments], self.output, hit, told)
            finally:
                os._exit(status)
        os.close(told)
        with os.fdopen(reading, "rb") as pipe:
            if after is not None and not select.select([pipe], [], [], after)[0]:
                os.kill(process, signal.SIGKILL)
            moments = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        errors = self.errors.read_text()
        assert "Traceback" not in errors, errors
        return status, int(moments or 0)

    def begin(self, chance: random.Random | None = None) -> dict[str, bytes]:
        """Have no stems, or by chance some that are older; return these."""
        for path in sorted(self.output.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        with suppress(FileNotFoundError):
            self.output.rmdir()
        old = {name: f"old {name}".encode() for name in NAMES if chance is not None and chance.random() < 0.3}
        for name, text in old.items():
            (self.output / name).parent.mkdir(parents=True, exist_ok=True)
            (self.output / name).write_bytes(text)
        return old

    def content(self) -> dict[str, bytes]:
        """Return all files by name."""
        return {
            path.relative_to(self.output).as_posix(): path.read_bytes()
            for path in self.output.rglob("*")
            if path.is_file()
        }

    def folders(self) -> set[str]:
        return {path.relative_to(self.output.parent).as_posix() for path in self.output.rglob("*") if path.is_dir()}


def check_kill(bench: Bench, mode: str, old: dict[str, bytes]) -> str:
    """Find out whether what a kill left is allowed, and complete it; return what it was."""
    left = bench.content()
    hidden = {name for name in left if HIDDEN.fullmatch(Path(name).name)}
    stems = {name: content for name, content in left.items() if name not in hidden}
    assert old.keys() <= stems.keys() <= set(NAMES), (old.keys(), left.keys())
    for name, content in stems.items():
        assert content == bench.new[name] or (name in old and content == old[name])
        assert mode == "overwrite" or name not in old or content == old[name]
    status, _ = bench.run("skip" if mode == "plain" else mode)
    assert status == 0, (mode, left.keys(), bench.errors.read_text())
    assert bench.content() == bench.new | ({} if mode == "overwrite" else old)
    new = {name for name, content in stems.items() if name not in old or content != old[name]}
    half = any(0 < len({f"{song}/{stem}.flac" for stem in STEMS} & new) < len(STEMS) for song in SONGS)
    return "some new, some not" if half and mode != "skip" else "hidden files" if hidden else "nothing"


def check_end(bench: Bench, mode: str, old: dict[str, bytes], folders: set[str]) -> str:
    """Find out whether each song is complete or as before, and nothing else is there; return how many are complete."""
    left = bench.content()
    complete = 0
    for song in SONGS:
        names = [f"{song}/{stem}.flac" for stem in STEMS]
        before = {name: old[name] for name in names if name in old}
        after = {name: bench.new[name] for name in names} | ({} if mode == "overwrite" else before)
        assert {name: left.pop(name) for name in names if name in left} in (before, after)
        complete += (bench.output / names[0]).exists() and (bench.output / names[-1]).exists()
        folders |= {f"out/{song}"} if any((bench.output / name).exists() for name in names) else set()
    assert left == {}
    assert bench.folders() <= folders
    assert bench.output.exists() == bool(folders)
    return f"{complete} songs complete"


def rounds(count: int, seed: int, folder: Path, *, recipe: bool = False) -> Counter[str]:
    """Hit so many runs of each mode in each way, and return how often each outcome was."""
    chance = random.Random(seed)
    bench = Bench(folder, recipe=recipe)
    outcomes: Counter[str] = Counter()
    for mode in MODES:
        bench.begin()
        moments = {"operation": bench.run(mode, Hit("operation"))[1]}
        bench.begin()
        moments |= dict.fromkeys(("SIGINT", "SIGTERM", "SIGHUP"), bench.run(mode, Hit("SIGINT"))[1])
        for number in range(count):
            old = bench.begin(chance)
            if number % 2:
                bench.run(mode, after=chance.uniform(0, 1.1 * bench.seconds))
            else:
                bench.run(mode, Hit("operation", chance.randint(1, moments["operation"])))
            outcomes[f"kill, {mode}: {check_kill(bench, mode, old)}"] += 1
        for number in range(count):
            old = bench.begin(chance)
            folders = bench.folders()
            kind = chance.choice([signal.Signals(number).name for number in SIGNALS])
            status, _ = bench.run(mode, Hit(kind, chance.randint(1, moments[kind])))
            asked = signal.Signals[kind]  # whose usual effect it has before the program's first line and after its last
            assert status in (0, 1, 130 if kind == "SIGINT" else 128 + asked, -asked), (kind, status)
            outcomes[f"signal, {mode}: status {status}, {check_end(bench, mode, old, folders)}"] += 1
        for _ in range(count):
            old = bench.begin(chance)
            folders = bench.folders()
            room = chance.randint(0, 2 * max(map(len, bench.new.values())))
            status, _ = bench.run(mode, Hit("bytes", room))
            assert status in (0, 1)
            outcomes[f"full disk, {mode}: status {status}, {check_end(bench, mode, old, folders)}"] += 1
    return outcomes


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere a fork of a process that holds PyTorch may crash, or not be"
)
@pytest.mark.parametrize("options", [(), ("--recipe",)], ids=str)
def test_a_batch_that_ends_at_any_moment_leaves_nothing_half_written_and_the_next_run_completes_it(
    options: tuple[str, ...],
) -> None:
    done = subprocess.run(
        [sys.executable, __file__, "--rounds", "2", *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    assert sum(int(line.split()[0]) for line in done.stdout.splitlines()) == 2 * 3 * len(MODES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=100, help="of each kind in each mode")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", action="store_true", help="two steps, one model at a time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = rounds(arguments.rounds, arguments.seed, Path(os.path.realpath(folder)), recipe=arguments.recipe)
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:6} {outcome}")


if __name__ == "__main__":
    main()
