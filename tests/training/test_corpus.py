"""A corpus on a cluster: two actors of Ray on this machine, one of which is killed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import soundfile
import torch

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import from_checkpoint, save_checkpoint
from hunterFormsBS.separation import separate
from tests.models import STEREO, STEREO_AT

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="Ray kills and restarts actors there in other ways"),
    # What Ray, its clients and their sockets warn about.
    pytest.mark.filterwarnings("ignore"),
]

RATE = 8000


@pytest.fixture(scope="module")
def ray_here(starts_processes: None) -> Iterator[None]:
    """Start Ray on this machine, small, with this package and the examples on the path of its workers."""
    paths = [str(EXAMPLES), str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        import ray

        ray.init("local", num_cpus=2, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Return a folder with a checkpoint and songs, one of which is none."""
    torch.manual_seed(0)
    model = BandSplitRotator(**STEREO)
    sections = STEREO_AT | {"training": {"instruments": ["voice", "band"]}}
    save_checkpoint(tmp_path / "model.ckpt", model, configuration=sections)
    for number, folder in enumerate(["x", "x", "x/deep", "y", "y", "y"]):
        path = tmp_path / "songs" / folder / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.random.default_rng(number).uniform(-0.3, 0.3, (4000 + number, 2)), RATE)
    (tmp_path / "songs" / "bad.wav").write_text("Dear diary")
    return tmp_path


def rows(output: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(output / "results").to_pylist()


@pytest.mark.slow
def test_every_song_is_done_once_although_an_actor_is_killed(corpus: Path, ray_here: None) -> None:
    from separate_corpus import SeparateSong, find_songs, name_songs, separate_corpus

    killed = corpus / "killed"

    class Mortal(SeparateSong):
        def __call__(self, row: Mapping[str, str]) -> dict[str, Any]:
            if row["song"].endswith("3.wav") and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(row)

    output = corpus / "out"
    songs = find_songs(str(corpus / "songs"), "song")
    lost = separate_corpus(
        name_songs(songs), str(output), checkpoint=str(corpus / "model.ckpt"), kind="wav", actors=2, actor=Mortal
    )
    assert lost == []
    assert killed.exists()
    results = rows(output)
    assert sorted(row["song"] for row in results) == sorted(songs)
    assert {row["song"].rsplit("/", 1)[1]: row["status"] for row in results} == {
        **{f"{number}.wav": "separated" for number in range(6)},
        "bad.wav": "failed",
    }
    (bad,) = [row for row in results if row["status"] == "failed"]
    assert "is not audio" in bad["error"]
    stems = sorted(path.relative_to(output).as_posix() for path in output.rglob("*.wav"))
    folders = ("x/0", "x/1", "x/deep/2", "y/3", "y/4", "y/5")
    assert stems == [f"{folder}/{name}.wav" for folder in folders for name in ("band", "voice")]
    mixture, _ = soundfile.read(corpus / "songs" / "y" / "3.wav", dtype="float32")
    expected = separate(from_checkpoint(corpus / "model.ckpt"), torch.as_tensor(mixture.T), chunk_size=2000)
    got = np.stack([soundfile.read(output / "y" / "3" / f"{name}.wav")[0].T for name in ("voice", "band")])
    torch.testing.assert_close(torch.as_tensor(got).float(), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_song_that_is_fatal_to_every_actor_does_not_end_the_others(corpus: Path, ray_here: None) -> None:
    from separate_corpus import SeparateSong, separate_corpus

    class Fatal(SeparateSong):
        def __call__(self, row: Mapping[str, str]) -> dict[str, Any]:
            if row["name"] == "4":
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(row)

    songs = {str(corpus / "songs" / "y" / f"{number}.wav"): str(number) for number in (3, 4, 5)}
    lost = separate_corpus(songs, str(corpus / "out"), checkpoint=str(corpus / "model.ckpt"), actors=1, actor=Fatal)
    assert lost == [str(corpus / "songs" / "y" / "4.wav")]
    assert {row["status"] for row in rows(corpus / "out")} == {"separated"}
    assert len(rows(corpus / "out")) == 2


@pytest.mark.slow
def test_the_program_again_does_what_is_left(
    corpus: Path, ray_here: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from separate_corpus import main

    songs = [str(corpus / "songs" / "y" / f"{number}.wav") for number in (4, 5)]
    table = corpus / "table.csv"
    arguments = [str(table), "--checkpoint", str(corpus / "model.ckpt"), "--output", str(corpus / "out")]
    monkeypatch.setattr(sys, "argv", ["separate_corpus.py", *arguments, "--format", "wav"])
    table.write_text("song\n" + songs[0] + "\n")
    main()
    assert capsys.readouterr().out == "1 songs are separated, 0 failed, 0 ended their actors\n"
    first = (corpus / "out" / "4" / "voice.wav").stat().st_mtime_ns
    table.write_text("song\n" + "\n".join(songs) + "\n")
    main()
    assert capsys.readouterr().out == "2 songs are separated, 0 failed, 0 ended their actors\n"
    assert (corpus / "out" / "4" / "voice.wav").stat().st_mtime_ns == first
    assert sorted(row["song"] for row in rows(corpus / "out")) == songs


def test_folders_of_songs_stay_below_the_output_whatever_the_files_are_called(corpus: Path) -> None:
    from separate_corpus import name_songs

    assert name_songs(["s3://b/a/...wav", "s3://b/a/c.d.wav", "s3://b/e/x.flac"]) == {
        "s3://b/a/...wav": "a/_",
        "s3://b/a/c.d.wav": "a/c.d",
        "s3://b/e/x.flac": "e/x",
    }


def test_mistakes_are_found_before_anything_is_started(corpus: Path) -> None:
    from separate_corpus import find_songs, name_songs

    with pytest.raises(ValueError, match="holds no audio files"):
        find_songs(str(corpus / "nowhere"), "song")
    pyarrow.csv.write_csv(pyarrow.table({"path": ["a.wav"]}), corpus / "table.csv")
    with pytest.raises(ValueError, match="has no column song, but path: pass --column"):
        find_songs(str(corpus / "table.csv"), "song")
    with pytest.raises(ValueError, match=r"/a\.mp3 and /A\.wav would both be written to A"):
        name_songs(["/a.mp3", "/A.wav"])


def test_songs_keep_their_tree_below_what_they_have_in_common() -> None:
    from separate_corpus import name_songs

    assert name_songs(["s3://b/x/1.wav", "s3://b/x/y/2.flac"]) == {"s3://b/x/1.wav": "1", "s3://b/x/y/2.flac": "y/2"}
