"""What people see of a run: its speed, its history, its log in Weights & Biases, and the page at its end."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
import torch
import yaml

from hunterFormsBS.installation import how_to_install
from hunterFormsBS.training.history import History, curves, read_history
from hunterFormsBS.training.loggers import open_log
from hunterFormsBS.training.report import changed_settings, write_report
from hunterFormsBS.training.settings import Settings
from hunterFormsBS.training.speed import Speed, peak_memory
from hunterFormsBS.training.trainer import train

# ---- speed


def test_speed_leaves_validations_out_and_the_time_left_does_not() -> None:
    times = iter([0.0, 40.0, 70.0, 80.0, 85.0])
    speed = Speed(lambda: next(times))
    for _ in range(10):
        speed.count(8.0)
    with speed.left_out():  # from 40 to 70
        pass
    assert speed.read(left=90) == {
        "speed/updates_per_second": 10 / 50,
        "speed/audio_per_second": 80 / 50,
        "speed/hours_left": 90 * 8 / 3600,
    }
    speed.count(1.0)
    assert speed.read(left=0)["speed/audio_per_second"] == 1 / 5


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks /proc")
def test_peak_memory_of_a_cpu_is_that_of_the_process() -> None:
    block = torch.ones(10_000_000)
    peak = peak_memory(torch.device("cpu"))
    (line,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert peak == pytest.approx(1024 * int(line), rel=0.02)
    assert peak > block.nbytes


# ---- history


def test_what_a_killed_run_logged_after_its_state_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path, 0)
    for update in range(1, 6):
        history.add({"loss/total": update / 2}, update)
        history.flush()
    again = History(path, 4)
    again.add({"loss/total": 7.0}, 4)
    again.flush()
    assert curves(read_history(path)) == {"loss/total": ([1, 2, 3, 4], [0.5, 1.0, 1.5, 7.0])}
    History(path, 0)  # a run that begins has no history
    assert read_history(path) == []


def test_a_line_that_was_cut_off_is_left_out_and_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"update": 1, "loss/total": 2.0}\n{"update": 2, "loss/to')
    history = History(path, 10)
    history.add({"loss/total": math.nan, "learning_rate": 0.5}, 3)
    history.flush()
    assert [entry["update"] for entry in read_history(path)] == [1, 3]
    assert curves(read_history(path)) == {"loss/total": ([1], [2.0]), "learning_rate": ([3], [0.5])}


def test_a_history_that_cannot_be_written_is_written_later(tmp_path: Path) -> None:
    history = History(tmp_path / "later" / "history.jsonl", 0)
    history.add({"loss/total": 1.0}, 1)
    with pytest.warns(UserWarning, match=r"history\.jsonl cannot be written yet: No such file or directory"):
        history.flush()
    (tmp_path / "later").mkdir()
    history.add({"loss/total": 2.0}, 2)
    history.flush()
    assert [entry["update"] for entry in read_history(history.pathFilename)] == [1, 2]


# ---- Weights & Biases


class FakeRun:
    """A run of Weights & Biases that keeps what it gets."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.exit_code: int | None = None

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """Put a module in place of `wandb`, with the functions that are used of it, and return the runs it begins."""
    runs: list[FakeRun] = []

    def init(**arguments: Any) -> FakeRun:
        runs.append(FakeRun(**arguments))
        return runs[-1]

    module = SimpleNamespace(
        init=init,
        Settings=lambda **settings: settings,
        Audio=lambda samples, sample_rate: ("sound", samples.shape, sample_rate),
        Image=lambda figure: ("picture", figure),
    )
    monkeypatch.setitem(sys.modules, "wandb", module)  # type: ignore[arg-type]
    return runs


def log_a_little(folder: Path, since: int | None) -> None:
    from matplotlib.figure import Figure

    log = open_log("wandb", folder, {"training": {"lr": 0.1}}, since=since)
    log.numbers({"loss/total": 1.5}, 3)
    log.sound("vocals/true", torch.zeros(1, 500), 44100, 3)
    log.picture("masks", Figure((1, 1)), 3)
    log.flush()
    log.close(complete=True)


def test_numbers_sounds_and_pictures_go_to_weights_and_biases(wandb: list[FakeRun], tmp_path: Path) -> None:
    log_a_little(tmp_path, None)
    (run,) = wandb
    assert run.arguments["config"] == {"training": {"lr": 0.1}}
    assert run.arguments["dir"] == str(tmp_path)
    assert run.logged[0] == (3, {"loss/total": 1.5})
    assert run.logged[1] == (3, {"vocals/true": ("sound", (500,), 44100)})
    assert run.logged[2][1]["masks"][0] == "picture"
    assert run.exit_code == 0
    assert curves(read_history(tmp_path / "history.jsonl")) == {"loss/total": ([3], [1.5])}
    assert soundfile.info(str(tmp_path / "excerpt" / "vocals true.flac")).frames == 500


def test_a_resumed_run_goes_on_there_and_a_new_one_in_the_same_folder_does_not(
    wandb: list[FakeRun], tmp_path: Path
) -> None:
    for since in (None, 4, None):
        log_a_little(tmp_path, since)
    first, resumed, other = (run.arguments["id"] for run in wandb)
    assert first == resumed != other
    assert all(run.arguments["resume"] == "allow" for run in wandb)


def test_weights_and_biases_itself_takes_it_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "SILENT": "true", "DATA_DIR": tmp_path, "CACHE_DIR": tmp_path}.items():
        monkeypatch.setenv(f"WANDB_{name}", str(value))
    log_a_little(tmp_path, None)
    log_a_little(tmp_path, 3)
    written = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    identifier = (tmp_path / "wandb" / "id").read_text()
    assert {path.name for path in written} == {f"run-{identifier}.wandb"}
    assert all(b"loss/total" in path.read_bytes() for path in written)
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/audio/**/*.wav"))) == len(written)


def test_weights_and_biases_are_asked_for_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = {
        "upstream": "hunterFormsBS",
        "audio": {"chunk_size": 1},
        "training": {"instruments": ["vocals"], "num_steps": 1, "lr": 1.0, "logger": "wandb"},
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(configuration))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=re.escape(how_to_install("wandb"))):
        train(tmp_path / "train.yaml", tmp_path / "run", songs=tmp_path / "nowhere")


# ---- the page at the end

SETTINGS = Settings(instruments=("vocals", "other"), chunk_size=500, num_steps=30, lr=0.25, grad_clip=1.0)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the page of a run with three validations."""
    folder = tmp_path_factory.mktemp("run")
    history = History(folder / "history.jsonl", 0)
    for update in (10, 20, 30):
        numbers = {"loss/total": 1 / update, "learning_rate": 0.25, "skipped": update / 10}
        history.add(numbers | {"speed/audio_per_second": update * 1.5, "memory/peak_gb": 7.5}, update)
    for update, score in ((10, 1.0), (20, 3.0), (30, 2.0)):
        history.add({"sdr/vocals": score, "sdr/other": score + 2, "sdr/mean": score + 1}, update)
        by_song = {"A & B/vocals": score, "C/vocals": score, "C/other": 9.125}
        history.add({f"sdr_by_song/{name}": value for name, value in by_song.items()}, update)
    history.flush()
    (folder / "check.txt").write_text("songs/A & B/bass.wav is silent throughout\n")
    ending = "StoppedError: the loss of update 31 is <nan>"
    path = write_report(folder, SETTINGS, {"dim": 8}, ending=ending, updates=30, seconds=3725.4)
    return path.read_text(encoding="utf-8")


def rows_of(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*)</tr>", page)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]


def test_the_page_says_how_a_run_went(report: str) -> None:
    rows = rows_of(report)
    assert ["ended", "StoppedError: the loss of update 31 is &lt;nan&gt;"] in rows
    assert ["updates", "30 of 30"] in rows
    assert ["duration", "1 h 02 min 05 s"] in rows
    assert ["seconds of audio per second", "30"] in rows
    assert ["memory, at most", "7.5 GB"] in rows
    assert ["updates left out because they were not finite", "3"] in rows
    assert ["best mean sdr", "4.00, after 20 updates"] in rows
    assert "<li>songs/A &amp; B/bass.wav is silent throughout</li>" in report
    assert ["dim", "8"] in rows
    assert "history.jsonl" in [row[0] for row in rows]


def test_the_page_has_the_scores_of_the_best_validation(report: str) -> None:
    rows = rows_of(report)
    start = rows.index(["song", "vocals", "other"])
    assert rows[start + 1 : start + 4] == [["A &amp; B", "3.00", ""], ["C", "3.00", "9.12"], ["mean", "3.00", "5.00"]]


def test_the_page_is_one_file_without_scripts(report: str) -> None:
    assert "<script" not in report
    assert re.findall(r'(?:src|href)="(?!data:)', report) == []
    assert report.count("data:image/png;base64,") == 1


def test_the_page_names_the_settings_that_are_not_the_defaults() -> None:
    assert list(changed_settings(SETTINGS)) == [
        ("training.instruments", "('vocals', 'other')", "none: it has to be stated"),
        ("audio.chunk_size", "500", "none: it has to be stated"),
        ("training.num_steps", "30", "none: it has to be stated"),
        ("training.lr", "0.25", "none: it has to be stated"),
        ("training.grad_clip", "1.0", "0.0"),
    ]


def test_a_run_that_ended_before_its_first_entry_has_a_page_too(tmp_path: Path) -> None:
    page = write_report(tmp_path, SETTINGS, {}, ending="OSError", updates=0, seconds=1.0).read_text(encoding="utf-8")
    assert ["updates", "0 of 30"] in rows_of(page)
    assert "<img" not in page
