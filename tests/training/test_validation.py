"""The command that measures a checkpoint: its table has what the formula of each metric says."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import from_checkpoint, save_checkpoint
from hunterFormsBS.program.dispatch import main
from hunterFormsBS.separation import separate
from hunterFormsBS.training.stempegSong import write_songs
from hunterFormsBS.training.truth import find_songs, read_song
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
