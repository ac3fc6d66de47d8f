"""The command that measures a checkpoint: its table has what the formula of each metric says."""

from __future__ import annotations

import csv
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import torch

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import from_checkpoint, save_checkpoint
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.program.dispatch import main
from hunterFormsBS.separation import separate
from hunterFormsBS.training.scores import Comparison, Score
from hunterFormsBS.training.stempegSong import write_songs
from hunterFormsBS.training.truth import find_songs, read_song
from hunterFormsBS.training.validation import compare
from tests.models import TINY

STEMS = ("vocals", "drums", "bass", "other")
CHUNK = 8192


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("songs")
    write_songs(folder)
    return folder / "test"


def run(*arguments: object) -> int:
    return main(["validate", *map(str, arguments), "--accelerator", "cpu"])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.ckpt"
    save_checkpoint(path, BandSplitRotator(**TINY | {"stereo": True, "num_stems": 4}))
    return path


def test_the_table_has_the_scores_of_each_stem_of_each_song(
    songs: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scores.csv"
    status = run(
        *("--checkpoint", checkpoint, "--songs", songs, "--stems", *STEMS, "--metrics", "sdr", "l1_freq"),
        *("--output", output, "--chunk-size", CHUNK, "--num-overlap", 1),
    )
    assert status == 0
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = find_songs(songs, STEMS, 44100)
    assert [(row["song"], row["stem"]) for row in rows] == [
        (song.folder.name, stem) for song in found for stem in STEMS
    ]
    torch.manual_seed(0)
    model = BandSplitRotator(**TINY | {"stereo": True, "num_stems": 4})
    mixture, truth = read_song(found[0], range(4), 2)
    estimates = separate(model, mixture, chunk_size=CHUNK, num_overlap=1)
    for row, estimate, stem in zip(rows, estimates, truth, strict=False):
        ratio = 10 * torch.log10(stem.square().sum() / (stem - estimate).square().sum())
        assert float(row["sdr"]) == pytest.approx(float(ratio), abs=1e-3)
    assert all(0 < float(row["l1_freq"]) < 100 for row in rows)
    assert capsys.readouterr().out.startswith("sdr: vocals ")


def test_what_is_not_stated_comes_from_the_configuration(
    songs: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = {"training": {"instruments": list(STEMS)}, "audio": {"chunk_size": CHUNK, "sample_rate": 44100}}
    inside = tmp_path / "inside.ckpt"
    save_checkpoint(inside, from_checkpoint(checkpoint), configuration={**sections, "inference": {"num_overlap": 1}})
    stated = ("--stems", *STEMS, "--chunk-size", CHUNK, "--num-overlap", 1)
    printed = []
    for arguments in (("--checkpoint", checkpoint, *stated), ("--checkpoint", inside)):
        assert run(*arguments, "--songs", songs, "--metrics", "si_sdr") == 0
        printed.append(capsys.readouterr().out)
    assert printed[0].startswith("si_sdr: vocals ")
    assert printed[1] == printed[0]


def test_without_names_of_stems_it_ends_in_one_line(
    songs: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--checkpoint", checkpoint, "--songs", songs) == 1
    assert re.fullmatch(
        r"\S+: error: the configuration names no stems: name them in --stems, .*\n", capsys.readouterr().err
    )


def test_processes_that_torchrun_starts_share_the_songs_out(songs: Path, checkpoint: Path, tmp_path: Path) -> None:
    several = tmp_path / "songs"
    for name in ("A", "B", "C"):
        shutil.copytree(next(songs.iterdir()), several / name)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    arguments = ["--checkpoint", checkpoint, "--songs", several, "--stems", *STEMS, "--chunk-size", CHUNK]
    tables = []
    for processes in ("1", "2"):
        output = tmp_path / f"{processes}.csv"
        command = [*torchrun, processes, "-m", "hunterFormsBS", "validate", *arguments, "--output", output]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*map(str, command), "--accelerator", "cpu"], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("sdr: vocals ") == 1
        tables.append(output.read_text())
    assert tables[0].count("\n") == 1 + 3 * len(STEMS)
    assert tables[1] == tables[0]


@pytest.mark.parametrize(
    ("stems", "message"),
    [(("vocals", "drums"), "--stems names 2 stems, and the model has 4"), ((*STEMS[:3], "piano"), "piano")],
)
def test_a_mistake_ends_in_one_line(
    stems: tuple[str, ...], message: str, songs: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--checkpoint", checkpoint, "--songs", songs, "--stems", *stems) == 1
    assert re.fullmatch(rf"\S+: error: .*{message}.*\n", capsys.readouterr().err)


# ---- several checkpoints


def saved(folder: Path, *stems: str) -> Path:
    """Return a checkpoint that names its stems."""
    torch.manual_seed(len(stems[0]))
    path = folder / f"{stems[0]}{len(stems)}.ckpt"
    model = BandSplitRotator(**TINY | {"stereo": True, "num_stems": len(stems)})
    save_checkpoint(path, model, configuration={"training": {"instruments": list(stems)}})
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Return two checkpoints, the second with the stems of the first in another order."""
    return saved(tmp_path, *STEMS), saved(tmp_path, *STEMS[::-1])


@pytest.fixture
def three_songs(songs: Path, tmp_path: Path) -> Path:
    """Return three different songs, of a fifth of a second."""
    (song,) = songs.iterdir()
    for number, name in enumerate("ABC"):
        for path in song.glob("*.wav"):
            audio, rate = soundfile.read(str(path), start=number * 22050, frames=CHUNK)
            (tmp_path / "three" / name).mkdir(parents=True, exist_ok=True)
            soundfile.write(str(tmp_path / "three" / name / path.name), audio, rate)
    return tmp_path / "three"


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_table_of_several_checkpoints_is_the_tables_of_each(
    suffix: str, three_songs: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    shared = ("--songs", three_songs, "--chunk-size", CHUNK, "--num-overlap", 1)
    alone = []
    for path in pair:
        assert run("--checkpoint", path, *shared, "--output", tmp_path / f"one.{suffix}") == 0
        alone += [{"checkpoint": str(path), **row} for row in rows_of(tmp_path / f"one.{suffix}")]
    assert run("--checkpoint", *pair, *shared, "--output", tmp_path / f"both.{suffix}") == 0
    assert rows_of(tmp_path / f"both.{suffix}") == alone
    assert [row["stem"] for row in alone[12:16]] == list(STEMS[::-1])
    assert isinstance(alone[0]["sdr"], float if suffix == "parquet" else str)


def test_checkpoints_are_compared_song_by_song(
    three_songs: Path, pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scores.csv"
    shared = ("--songs", three_songs, "--chunk-size", CHUNK, "--num-overlap", 1)
    assert run("--checkpoint", *pair, *shared, "--output", output) == 0
    printed = capsys.readouterr().out.splitlines()
    table = {(row["checkpoint"], row["stem"], row["song"]): float(row["sdr"]) for row in rows_of(output)}
    for stem in STEMS:
        first, second = (np.array([table[str(path), stem, song] for song in "ABC"]) for path in pair)
        apart = second - first
        (line,) = (line for line in printed if line.startswith(f"{pair[1]}: sdr of {stem} minus"))
        assert line.partition(f"that of {pair[0]}: ")[2] == (
            f"{apart.mean():+.2f}, standard deviation {apart.std(ddof=1):.2f}, 3 songs; "
            f"best {apart.max():+.2f} ({'ABC'[apart.argmax()]}), worst {apart.min():+.2f} ({'ABC'[apart.argmin()]})"
        )
        for path, scores in zip(pair, (first, second), strict=True):
            assert (
                f"{path}: sdr of {stem}: best {scores.max():.2f} ({'ABC'[scores.argmax()]}), "
                f"worst {scores.min():.2f} ({'ABC'[scores.argmin()]})"
            ) in printed
            (line,) = (line for line in printed if line.startswith(f"{path}: sdr: "))
            assert f"{stem} {scores.mean():.2f}" in line


def test_a_stem_that_is_another_sum_for_another_checkpoint_is_not_compared(
    three_songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    four, two = saved(tmp_path, *STEMS), saved(tmp_path, "vocals", "other")
    both = ("--checkpoint", four, "--checkpoint", two)
    assert run(*both, "--songs", three_songs, "--chunk-size", CHUNK, "--num-overlap", 1) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"sdr of (\w+) minus", printed) == ["vocals"]
    said = f"{two}: other is not compared: it is bass.wav + drums.wav + other.wav, and for {four} other.wav"
    assert said in printed.splitlines()


def test_a_stem_that_is_silent_for_all_has_no_difference() -> None:
    silent, heard = Score("A", "vocals", {}), Score("B", "vocals", {"sdr": 3.0})
    better = Score("B", "vocals", {"sdr": 4.5})
    comparison = Comparison({"first": [silent, heard], "second": [silent, better]}, {"second": {}})
    (spread,) = comparison.differences("second", "sdr").values()
    assert spread[:1] == (1.5,)
    assert spread.songs == 1
    assert math.isnan(spread.deviation)
    assert "second: sdr of vocals minus that of first: +1.50, 1 song; best" in "\n".join(comparison.describe(["sdr"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{0}", "{0}"), "--checkpoint has a name twice"),
        (("{0}", "{1}", "--lora", "-", "-", "-"), "--lora has 3 paths for 2 checkpoints: give one, or one for each"),
    ],
)
def test_checkpoints_that_cannot_be_compared_are_refused(
    arguments: tuple[str, ...],
    message: str,
    songs: Path,
    pair: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = [argument.format(*pair) for argument in arguments]
    assert run("--songs", songs, "--checkpoint", *named) == 1
    assert re.fullmatch(rf"\S+: error: {message}.*\n", capsys.readouterr().err)


def test_parquet_asks_for_its_package_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=re.escape(how_to_install("parquet"))):
        compare([Path("nowhere.ckpt")], Path("nowhere"), output=tmp_path / "scores.parquet")
