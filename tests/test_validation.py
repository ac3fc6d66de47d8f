"""The example that measures a checkpoint: its table has what the formula of each metric says."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path

import pytest
import torch

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import save_checkpoint
from hunterFormsBS.separation import separate
from tests.conftest import TINY

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

from training.segments import find_songs, read_song  # noqa: E402
from training.stempegSong import write_songs  # noqa: E402

STEMS = ("vocals", "drums", "bass", "other")
CHUNK = 8192


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("songs")
    write_songs(folder)
    return folder / "test"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["validate.py", *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / "validate.py"), run_name="__main__")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.ckpt"
    save_checkpoint(path, BandSplitRotator(**TINY | {"stereo": True, "num_stems": 4}))
    return path


def test_the_table_has_the_scores_of_each_stem_of_each_song(
    songs: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scores.csv"
    run(
        monkeypatch,
        *("--checkpoint", checkpoint, "--songs", songs, "--stems", *STEMS, "--metrics", "sdr", "l1_freq"),
        *("--output", output, "--chunk-size", CHUNK, "--num-overlap", 1, "--accelerator", "cpu"),
    )
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


@pytest.mark.parametrize(
    ("stems", "message"),
    [(("vocals", "drums"), "--stems names 2 stems, and the model has 4"), ((*STEMS[:3], "piano"), "piano")],
)
def test_a_mistake_ends_in_one_line(
    stems: tuple[str, ...], message: str, songs: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, "--checkpoint", checkpoint, "--songs", songs, "--stems", *stems, "--accelerator", "cpu")
