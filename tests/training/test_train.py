"""The training example: its reader, its pieces, and whole runs in processes of their own, killed and resumed too."""

from __future__ import annotations

import fcntl
import math
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from packaging.version import Version
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hunterFormsBS.checkpoint import from_checkpoint, from_configuration, read_configuration
from hunterFormsBS.console import Console
from hunterFormsBS.songs.signals import ending_on_signals, uninterrupted
from hunterFormsBS.training import trainer
from hunterFormsBS.training.averaging import AveragedWeights, copy_weights
from hunterFormsBS.training.engine import compile_transformers, make_fabric
from hunterFormsBS.training.history import curves, read_history
from hunterFormsBS.training.optimizers import make_optimizer
from hunterFormsBS.training.optimizerState import load_named_state, named_state
from hunterFormsBS.training.rehearsal import rehearse
from hunterFormsBS.training.run import Run
from hunterFormsBS.training.schedules import learning_rate_factor
from hunterFormsBS.training.sections import SECTIONS, settings_from
from hunterFormsBS.training.segments import Positions, Segments
from hunterFormsBS.training.settings import Settings
from hunterFormsBS.training.states import StoppedError, claim, newest_state
from hunterFormsBS.training.stempegSong import write_songs
from hunterFormsBS.training.trainer import train
from hunterFormsBS.training.truth import find_songs, read_song

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

RATE = 8000


# ---- songs


def write_song(folder: Path, **stems: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for name, samples in stems.items():
        soundfile.write(str(folder / f"{name}.wav"), samples, RATE, subtype="PCM_16")


def ramp(length: int, offset: int) -> np.ndarray:
    """Return stereo audio in which every sample says where it is, (t, s), in steps of 16 bits."""
    position = (np.arange(length) + offset).astype(np.int16)
    return np.stack([position, -position], axis=1)


def positions_of(audio: torch.Tensor) -> np.ndarray:
    """Return what `ramp` put into the first channel of (s, t)."""
    return np.rint(audio[0].numpy() * 32768).astype(int)


@pytest.fixture
def ramps(tmp_path: Path) -> list[Any]:
    for song, offset in (("A", 1000), ("B", 10000)):
        write_song(tmp_path / song, vocals=ramp(3000, offset), drums=ramp(3000, offset + 4000))
    return find_songs(tmp_path, ["vocals", "drums"], RATE)


def segments(songs: list[Any], **settings: Any) -> Segments:
    return Segments(songs, **{"chunk_size": 200, "channels": 2, "seed": 7, "targets": [0, 1], **settings})


def test_without_remixing_a_segment_is_the_same_place_of_every_stem_and_their_sum(ramps: list[Any]) -> None:
    reader = segments(ramps)
    for index in range(20):
        mixture, stems = reader[index]
        vocals, drums = (positions_of(stem) for stem in stems)
        start = vocals[0]
        np.testing.assert_array_equal(vocals, np.arange(start, start + 200))
        np.testing.assert_array_equal(drums, vocals + 4000)
        torch.testing.assert_close(mixture, stems.sum(0))
        torch.testing.assert_close(stems[:, 1], -stems[:, 0])


def test_segments_come_from_everywhere_in_every_song(ramps: list[Any]) -> None:
    reader = segments(ramps)
    starts = {int(positions_of(reader[index][1][0])[0]) for index in range(400)}
    for offset in (1000, 10000):
        inside = sorted(start - offset for start in starts if 0 <= start - offset <= 2800)
        assert len(inside) > 120
        assert inside[0] < 100
        assert inside[-1] > 2700


def test_remixing_draws_each_stem_by_itself(ramps: list[Any]) -> None:
    reader = segments(ramps, remix=1.0)
    apart = 0
    for index in range(20):
        mixture, stems = reader[index]
        vocals, drums = (int(positions_of(stem)[0]) for stem in stems)
        apart += drums - vocals != 4000
        torch.testing.assert_close(mixture, stems.sum(0))
    assert apart >= 19


def test_gains_scale_each_stem_by_its_own_factor_within_the_bounds(ramps: list[Any]) -> None:
    plain, scaled = segments(ramps), segments(ramps, gains=(0.5, 1.5))
    factors = []
    for index in range(20):
        mixture, stems = scaled[index]
        ratio = stems / plain[index][1]
        assert ratio.std(dim=(1, 2)).max() < 1e-6
        factors += ratio.mean(dim=(1, 2)).tolist()
        torch.testing.assert_close(mixture, stems.sum(0))
    assert len(set(factors)) == 40
    assert 0.5 <= min(factors) < 0.7
    assert 1.3 < max(factors) <= 1.5


def test_an_index_gives_the_same_segment_in_any_order_and_another_seed_gives_another(ramps: list[Any]) -> None:
    settings = {"remix": 0.5, "gains": (0.5, 1.5)}
    forward = [segments(ramps, **settings)[index][0] for index in range(8)]
    reader = segments(ramps, **settings)
    backward = [reader[index][0] for index in reversed(range(8))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert not torch.equal(forward[0], segments(ramps, **settings, seed=8)[0][0])


def test_reading_a_segment_takes_the_memory_of_a_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minute = np.zeros((60 * RATE, 2), np.int16)
    write_song(tmp_path / "A", vocals=minute, drums=minute)
    reader = segments(find_songs(tmp_path, ["vocals", "drums"], RATE), chunk_size=RATE, remix=0.5)
    asked: list[int] = []
    read = soundfile.SoundFile.read

    def recorded(file: soundfile.SoundFile, frames: int = -1, **keywords: Any) -> Any:
        asked.append(frames)
        return read(file, frames, **keywords)

    monkeypatch.setattr(soundfile.SoundFile, "read", recorded)
    tracemalloc.start()
    for index in range(10):
        reader[index]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert set(asked) == {RATE}
    # A segment of a stem has 64 kB, and a few are alive at a time; a stem of the song has 3.8 MB.
    assert peak < 600_000


def test_a_song_shorter_than_a_segment_is_followed_by_silence(tmp_path: Path) -> None:
    write_song(tmp_path / "A", vocals=ramp(150, 1000))
    _, stems = segments(find_songs(tmp_path, ["vocals"], RATE), targets=[0])[3]
    np.testing.assert_array_equal(positions_of(stems[0]), [*range(1000, 1150), *[0] * 50])


def test_other_takes_the_stems_without_a_name_and_without_it_only_the_mixture_does(tmp_path: Path) -> None:
    levels = {"vocals": 1000, "drums": 200, "bass": 30, "other": 4}
    constant = {name: np.full((300, 2), level, np.int16) for name, level in levels.items()}
    write_song(tmp_path / "A", **constant, mixture=np.full((300, 2), 5, np.int16))

    def one(instruments: list[str], targets: list[int]) -> list[int]:
        mixture, stems = segments(find_songs(tmp_path, instruments, RATE), targets=targets)[0]
        return [int(positions_of(audio)[0]) for audio in (mixture, *stems)]

    assert one(["vocals", "other"], [0, 1]) == [1234, 1000, 234]
    assert one(["vocals", "other"], [0]) == [1234, 1000]
    assert one(["vocals", "drums"], [0, 1]) == [1234, 1000, 200]
    assert one(["vocals", "drums", "bass", "other"], [3]) == [1234, 4]


def test_channels_are_averaged_for_mono_and_repeated_for_stereo(tmp_path: Path) -> None:
    write_song(tmp_path / "A", vocals=np.stack([np.full(300, 100), np.full(300, 300)], 1).astype(np.int16))
    write_song(tmp_path / "B", vocals=np.full(300, 200, np.int16))
    songs = find_songs(tmp_path, ["vocals"], RATE)
    mono, repeated = (segments([song], channels=c, targets=[0])[0][1][0] for song, c in zip(songs, (1, 2), strict=True))
    assert mono.shape == (1, 200)
    assert repeated.shape == (2, 200)
    assert (mono * 32768 == 200).all()
    assert (repeated * 32768 == 200).all()


def test_a_remixed_stem_that_is_too_quiet_is_drawn_again(tmp_path: Path) -> None:
    half = np.concatenate([np.zeros(3000), np.full(3000, 8000)]).astype(np.int16)
    write_song(tmp_path / "A", vocals=np.stack([half, half], 1))
    songs = find_songs(tmp_path, ["vocals"], RATE)
    reader = segments(songs, targets=[0], remix=1.0, min_mean_abs=0.001)
    assert all(reader[index][0].abs().mean() >= 0.001 for index in range(50))
    reader = segments(songs, targets=[0], remix=1.0)
    assert any(reader[index][0].abs().mean() < 0.001 for index in range(50))


def test_a_whole_song_has_its_own_mixture(tmp_path: Path) -> None:
    write_song(tmp_path / "A", vocals=ramp(300, 0), drums=ramp(300, 50), mixture=ramp(300, 70))
    mixture, stems = read_song(find_songs(tmp_path, ["vocals", "drums"], RATE)[0], [1], 2)
    assert stems.shape == (1, 2, 300)
    assert positions_of(stems[0])[0] == 50
    assert positions_of(mixture)[0] == 70


@pytest.mark.parametrize(
    ("instruments", "sample_rate", "message"),
    [
        (["vocals", "bass"], RATE, r"A has no file bass\.wav: its stems are drums, vocals"),
        (["vocals", "drums"], 44100, r"drums\.wav has 8000 Hz, and the configuration 44100 Hz"),
    ],
)
def test_songs_that_do_not_fit_the_configuration_are_refused(
    tmp_path: Path, instruments: list[str], sample_rate: int, message: str
) -> None:
    write_song(tmp_path / "A", vocals=ramp(300, 0), drums=ramp(300, 0))
    with pytest.raises(ValueError, match=message):
        find_songs(tmp_path, instruments, sample_rate)


@pytest.mark.parametrize("folder", ["", "missing"])
def test_a_folder_without_songs_is_refused(tmp_path: Path, folder: str) -> None:
    with pytest.raises(ValueError, match="holds no songs: put a folder for each song there"):
        find_songs(tmp_path / folder, ["vocals"], RATE)


def test_processes_share_the_indices_out_and_a_resumed_run_goes_on_where_it_was() -> None:
    def of(rank: int, world_size: int, batch_size: int, first: int = 0) -> list[list[int]]:
        return list(Positions(first, 4, batch_size=batch_size, rank=rank, world_size=world_size))

    together = [first + second for first, second in zip(of(0, 2, 3), of(1, 2, 3), strict=True)]
    assert together == of(0, 1, 6) == [list(range(start, start + 6)) for start in (0, 6, 12, 18)]
    assert of(1, 2, 3, first=2) == of(1, 2, 3)[2:]


def test_a_state_that_was_not_completed_does_not_count(tmp_path: Path) -> None:
    assert newest_state(tmp_path) is None
    for name in ("000000009", "000000010", "000000011.unfinished"):
        (tmp_path / "resume" / name).mkdir(parents=True)
    assert newest_state(tmp_path) == tmp_path / "resume" / "000000010"


# ---- settings, schedule, averages

MSST = """
audio: {chunk_size: 4096, dim_f: 1024, hop_length: 441, num_channels: 2, sample_rate: 44100, min_mean_abs: 0.001, x: 1}
model: {dim: 8}
training:
  batch_size: 3
  gradient_accumulation_steps: 2
  grad_clip: 0
  instruments: [vocals, other]
  lr: 5.0e-5
  patience: 2
  target_instrument: vocals
  num_epochs: 4
  num_steps: 5
  ema_momentum: 0.99
  optimizer: adam
  use_amp: true
  other_fix: true
augmentations: {enable: true, loudness: true, loudness_min: 0.5, loudness_max: 1.5, mixup: true}
inference: {batch_size: 8, dim_t: 256, num_overlap: 4}
"""


def test_settings_of_an_upstream_configuration_are_taken_and_those_without_effect_named() -> None:
    with pytest.warns(UserWarning, match="no effect here:") as caught:
        settings = settings_from(yaml.safe_load(MSST))
    said = [str(each.message).partition(" has no effect here: ") for each in caught]
    assert settings.stems == ("vocals",)
    assert (settings.batch_size, settings.inference_batch_size, settings.num_overlap) == (3, 8, 4)
    assert settings.updates == 12  # 4 epochs of 5 batches, two for an update, and one for the last of each
    assert settings.gains == (0.5, 1.5)
    assert settings.lr == 5e-5
    assert [name for name, _, _ in said] == ["audio.x", "training.other_fix"]
    assert all(instead for _, _, instead in said)
    assert (settings.schedule, settings.patience, settings.mixup) == ("ReduceLROnPlateau", 2, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": None}, "lacks lr"),
        ({"optimizer": "sgd"}, "optimizer='sgd' is unknown: choose one of adam, adamw"),
        ({"target_instrument": "bass"}, "target_instrument='bass' is none of"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"batch_size": 1.5}, r"batch_size=1\.5 must be a whole number"),
    ],
)
@pytest.mark.filterwarnings("ignore:.* has no effect here")
def test_settings_that_cannot_be_used_are_refused(change: dict[str, Any], message: str) -> None:
    configuration = yaml.safe_load(MSST)
    configuration["training"] |= change
    with pytest.raises(ValueError, match=message):
        settings_from(configuration)


def test_example_configuration_is_complete_and_its_model_can_be_built() -> None:
    configuration = read_configuration(EXAMPLES / "train.yaml")
    settings = settings_from(configuration)
    configuration["model"] |= {"dim": 8, "depth": 1}
    model = from_configuration(configuration, upstream=configuration["upstream"])
    assert model.num_stems == len(settings.stems) == 4
    assert model.stereo


def test_every_setting_is_explained_in_the_example_or_on_the_page() -> None:
    explained = (EXAMPLES / "train.yaml").read_text()
    for page in ("training.md", "finetuning.md"):
        explained += (EXAMPLES.parent / "docs" / page).read_text()
    words = set(re.findall(r"\w+", explained))
    unexplained = {name for names in SECTIONS.values() for name in names} - words
    assert unexplained == set()


def some_settings(**changes: Any) -> Settings:
    required = {"instruments": ("vocals",), "chunk_size": 1, "num_steps": 100, "lr": 1.0}
    return Settings(**{**required, **changes})


def test_learning_rate_rises_in_a_line_and_falls_to_zero_as_a_cosine() -> None:
    settings = some_settings(warmup_steps=9)
    factors = [learning_rate_factor(update, settings) for update in range(101)]
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(factors[9:], 0.5 + 0.5 * np.cos(np.pi * np.arange(92) / 91), atol=1e-12)


def test_averaged_weights_are_those_of_torch(tiny_model: Callable[..., nn.Module]) -> None:
    model = tiny_model()
    # Late in a run, where the momentum is no longer limited; torch copies the weights at its first update.
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    reference.update_parameters(model)
    average = AveragedWeights(model, 0.9)
    for update in range(1000, 1003):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(update)
        reference.update_parameters(model)
    copy = tiny_model()
    copy_weights(average.gather(), copy)
    torch.testing.assert_close(copy.state_dict(), reference.module.state_dict())


def test_early_averages_forget_the_beginning() -> None:
    weight = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(weight.weight)
    average = AveragedWeights(weight, 0.999)
    nn.init.ones_(weight.weight)
    for update in range(1, 31):
        average.update(update)
    assert float(average.gather()["weight"]) > 0.99


def test_validation_score_is_the_ratio_of_energies_of_a_whole_song(tmp_path: Path) -> None:
    from lightning_fabric import Fabric

    from hunterFormsBS.training.scores import means
    from hunterFormsBS.training.validation import score_songs

    random = np.random.default_rng(0)
    stems = [
        {name: (random.uniform(-9000, 9000, (2000, 2))).astype(np.int16) for name in ("vocals", "drums")}
        for _ in range(2)
    ]
    stems[1]["drums"][:] = 0
    for song, audio in zip("AB", stems, strict=True):
        write_song(tmp_path / song, **audio)

    class Halves(nn.Module):
        stereo = True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([0.5 * x, 0.5 * x], dim=1)

    settings = some_settings(instruments=("vocals", "drums"), chunk_size=500, sample_rate=RATE)
    songs = find_songs(tmp_path, settings.instruments, RATE)
    scores = means(score_songs(Fabric(accelerator="cpu", devices=1), Halves(), songs, settings, None), "sdr")

    def ratio(song: dict[str, np.ndarray], name: str) -> float:
        true = song[name] / 32768
        error = true - (song["vocals"] / 32768 + song["drums"] / 32768) / 2
        return 10 * math.log10((true**2).sum() / (error**2).sum())

    assert scores["vocals"] == pytest.approx((ratio(stems[0], "vocals") + ratio(stems[1], "vocals")) / 2, abs=1e-3)
    # Silent in the second song, where there is no ratio.
    assert scores["drums"] == pytest.approx(ratio(stems[0], "drums"), abs=1e-3)


# ---- runs, on the music that stempeg brings along

TINY_RUN: dict[str, Any] = {
    "upstream": "hunterFormsBS",
    "audio": {"sample_rate": 44100, "chunk_size": 4096},
    "model": {
        "dim": 8,
        "depth": 2,
        "stereo": True,
        "num_stems": 4,
        "time_transformer_depth": 1,
        "freq_transformer_depth": 1,
        "heads": 2,
        "dim_head": 4,
        "freqs_per_bands": [5, 8, 16, 36],
        "stft_n_fft": 128,
        "stft_win_length": 128,
        "stft_hop_length": 64,
        "dim_freqs_in": 65,
        "multi_stft_resolutions_window_sizes": [128],
        "multi_stft_hop_size": 64,
        "mlp_expansion_factor": 1,
        "use_pope": True,
    },
    "training": {
        "instruments": ["vocals", "drums", "bass", "other"],
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_steps": 24,
        "lr": 0.003,
        "warmup_steps": 4,
        "weight_decay": 0.01,
        "grad_clip": 0.05,
        "ema_momentum": 0.9,
        "remix": 0.5,
        "num_workers": 0,
        "log_every": 1,
        "checkpoint_every": 2,
    },
    "augmentations": {"loudness": True, "loudness_min": 0.5, "loudness_max": 1.5},
    "validation": {"every": 8, "excerpt": 0.5},
}


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("songs")
    write_songs(folder)
    for path in (folder / "test").rglob("*.wav"):  # Whole songs are separated at each validation: one second will do.
        soundfile.write(str(path), soundfile.read(str(path), frames=44100)[0], 44100, subtype="PCM_16")
    return folder


def configured(folder: Path, **sections: dict[str, Any]) -> Path:
    configuration = {
        name: {**value, **sections.get(name, {})} for name, value in TINY_RUN.items() if name != "upstream"
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump({"upstream": TINY_RUN["upstream"], **configuration}))
    return path


# Installed modules only: before Python 3.13 the server does not know `sys.path`.
PRELOADED = ["lightning_fabric", "torchmetrics.audio", "torch.utils.tensorboard", "matplotlib.figure", "soundfile"]
PRELOADED += ["hunterFormsBS.checkpoint", "hunterFormsBS.separation"]


class Launched:
    """The training program in one process, or in several as `torchrun` starts them.

    Importing everything takes longer than these runs: a server does that once, and forks itself for each process.
    Drawing the pictures of the log takes longer than training, so one run draws them for all.
    """

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    program = """
import faulthandler, multiprocessing, os, sys, torch
faulthandler.enable()  # an abort within a library says where
multiprocessing.set_start_method(None, force=True)  # that of users, for the workers that read songs
os.environ.update(environment)
for stream in (sys.stdout, sys.stderr):
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
torch.set_num_threads(1)
sys.argv = arguments
import hunterFormsBS.training.pictures
if not pictures:
    hunterFormsBS.training.pictures.log_excerpt = lambda *arguments: None
    import hunterFormsBS.training.report
    hunterFormsBS.training.report.draw_curves = lambda *arguments: __import__("matplotlib.figure").figure.Figure((1, 1))
from hunterFormsBS.__main__ import run
run()
"""

    def __init__(
        self,
        configuration: Path,
        songs: Path,
        output: Path,
        *options: str,
        processes: int = 1,
        pictures: bool = False,
    ) -> None:
        self.output = output
        self.log = output / f"log{time.monotonic_ns()}.txt"
        arguments = command(configuration, songs, output, *options)[2:]
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self.processes = []
        for rank in range(processes):
            environment = {}
            if processes > 1:
                ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
                address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
                environment = {name: str(value) for name, value in {**ranks, **address}.items()}
            names = {"environment": environment, "log": str(self.log), "arguments": arguments}
            names |= {"pictures": pictures}
            self.processes.append(self.context.Process(target=exec, args=(self.program, names)))
        for process in self.processes:
            process.start()

    def finish(self) -> str:
        """Wait for the end, and return what was printed."""
        for process in self.processes:
            process.join(300)
        printed = self.log.read_text()
        assert [process.exitcode for process in self.processes] == [0] * len(self.processes), printed[-3000:]
        return printed

    def kill(self) -> int:
        """Kill all processes once there is a state to continue from, and return the updates of that state."""
        deadline = time.monotonic() + 300
        while newest_state(self.output) is None and time.monotonic() < deadline:
            assert all(process.is_alive() for process in self.processes), self.log.read_text()[-3000:]
            time.sleep(0.002)
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        assert [process.exitcode for process in self.processes] == [-signal.SIGKILL] * len(self.processes)
        state = newest_state(self.output)
        assert state is not None
        return int(state.name)

    def signal_all(self, number: int, rank: int = 0) -> tuple[list[int | None], list[int]]:
        """Signal a process and its workers after an update, as terminals and clusters do.

        Returns
        -------
        statuses : list of int
            Exit statuses of all processes.
        living : list of int
            Workers that live on.
        """
        process = self.processes[rank]
        deadline = time.monotonic() + 300
        while not (self.log.exists() and "loss=" in self.log.read_text()):
            assert process.is_alive(), self.log.read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        workers = [int(each) for each in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        for each in (*workers, process.pid):
            assert each is not None
            os.kill(each, number)
        for process in self.processes:
            process.join(300)
        statuses = [process.exitcode for process in self.processes]
        return statuses, [each for each in workers if Path(f"/proc/{each}").exists()]


def command(configuration: Path, songs: Path, output: Path, *options: str) -> list[str]:
    program = [sys.executable, "-m", "hunterFormsBS", "train", "--accelerator", "cpu", *options]
    return [*program, "--configuration", str(configuration), "--songs", str(songs), "--output", str(output)]


def curve(output: Path, tag: str = "loss/total") -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    scalars = events.Scalars(tag)
    assert len({event.step for event in scalars}) == len(scalars)
    return {event.step: event.value for event in scalars}


# ---- one update at a time


def in_this_process(folder: Path, *, precision: str | None = None, **training: Any) -> Run:
    configuration = {**TINY_RUN, "training": {**TINY_RUN["training"], **training}}
    fabric = make_fabric(
        accelerator="cpu", devices="auto", num_nodes=1, strategy="auto", precision=precision, use_amp=True
    )
    torch.manual_seed(0)
    model = from_configuration(configuration, upstream="hunterFormsBS")
    return Run(fabric, model, settings_from(configuration), configuration, folder)


def update_and_look_at_gradients(run: Run, songs: Path) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Update once, and return what was logged and the gradients as the optimizer got them."""
    gradients: list[torch.Tensor] = []
    run.optimizer.optimizer.register_step_pre_hook(
        lambda *_: gradients.extend(p.grad.clone() for p in run.model.parameters() if p.grad is not None)
    )
    found = find_songs(songs / "train", run.settings.instruments, run.settings.sample_rate)
    logged = run.update(run.batches(found))
    return {name: float(value) for name, value in logged.items()}, gradients


def test_gradients_are_clipped_to_the_norm_that_is_asked_for(songs: Path, tmp_path: Path) -> None:
    logged, clipped = update_and_look_at_gradients(in_this_process(tmp_path, grad_clip=0.01), songs)
    plain_log, plain = update_and_look_at_gradients(in_this_process(tmp_path, grad_clip=0), songs)
    norm = float(torch.cat([gradient.flatten() for gradient in plain]).norm())
    assert norm > 0.02
    assert logged["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    assert plain_log["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    for ours, whole in zip(clipped, plain, strict=True):
        torch.testing.assert_close(ours, whole * (0.01 / norm), rtol=1e-3, atol=1e-9)


def test_accumulated_gradients_are_those_of_the_larger_batch(songs: Path, tmp_path: Path) -> None:
    several = in_this_process(tmp_path, batch_size=1, gradient_accumulation_steps=4, grad_clip=0)
    one = in_this_process(tmp_path, batch_size=4, gradient_accumulation_steps=1, grad_clip=0)
    logged, accumulated = update_and_look_at_gradients(several, songs)
    expected_log, expected = update_and_look_at_gradients(one, songs)
    assert logged == pytest.approx(expected_log, rel=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for ours, whole in zip(accumulated, expected, strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-6 * largest)


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop", "prodigy"])
@pytest.mark.parametrize("earlier", [0, 1], ids=["at the beginning", "resumed"])
def test_a_rehearsal_leaves_the_run_as_it_was(optimizer: str, earlier: int, songs: Path, tmp_path: Path) -> None:
    if optimizer == "prodigy":
        pytest.importorskip("pytorch_optimizer")
    run = in_this_process(tmp_path, optimizer=optimizer, lr=1.0 if optimizer == "prodigy" else 0.003)
    found = find_songs(songs / "train", run.settings.instruments, run.settings.sample_rate)
    batches = run.batches(found)
    for _ in range(earlier):
        run.update(batches)

    def everything() -> Any:
        optimizer = run.optimizer.optimizer.state_dict()
        kept = run.model.state_dict(), optimizer["state"], run.average.averages
        return deepcopy((kept, optimizer["param_groups"], run.plateau.factor, run.updates, run.skipped, run.best))

    before = everything()
    seen: list[Path] = []
    save = run.save

    def save_and_look() -> None:
        save()
        seen.extend(tmp_path.rglob("*.ckpt"))

    run.save = save_and_look  # type: ignore[method-assign]
    rehearse(run, next(batches), find_songs(songs / "test", run.settings.instruments, run.settings.sample_rate))
    assert [path.name for path in seen] == ["last.ckpt"]
    assert list(tmp_path.iterdir()) == []
    (before_kept, *before_counts), (after_kept, *after_counts) = before, everything()
    assert after_counts == before_counts
    torch.testing.assert_close(after_kept, before_kept, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in run.model.parameters())


@pytest.mark.parametrize("broken", ["measure", "separate_with"])
def test_what_would_stop_the_first_validation_stops_the_rehearsal(
    broken: str, songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any) -> None:
        raise ImportError(f"no {broken}")

    monkeypatch.setattr(f"hunterFormsBS.training.rehearsal.{broken}", fail)
    run = in_this_process(tmp_path)
    found = find_songs(songs / "train", run.settings.instruments, run.settings.sample_rate)
    with pytest.raises(ImportError, match=f"no {broken}"):
        rehearse(run, next(run.batches(found)), found)
    assert run.updates == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.bfloat16), (None, torch.float32)])
def test_mixed_precision_computes_in_bfloat16_and_keeps_weights_and_gradients_in_float32(
    precision: str | None, dtype: torch.dtype, songs: Path, tmp_path: Path
) -> None:
    run = in_this_process(tmp_path, precision=precision)
    computed: set[torch.dtype] = set()
    for module in run.model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _module, _inputs, output: computed.add(output.dtype))
    _, gradients = update_and_look_at_gradients(run, songs)
    assert computed == {dtype}
    assert {tensor.dtype for tensor in (*gradients, *run.model.parameters())} == {torch.float32}


def test_checkpoints_hold_the_averaged_weights(songs: Path, tmp_path: Path) -> None:
    run = in_this_process(tmp_path, ema_momentum=0.9)
    batches = run.batches(find_songs(songs / "train", run.settings.instruments, run.settings.sample_rate))
    for _ in range(3):
        run.update(batches)
    run.save()
    saved = from_checkpoint(tmp_path / "last.ckpt").state_dict()
    average = run.average.gather()
    for name, parameter in run.model.named_parameters():
        torch.testing.assert_close(saved[name], average[name], rtol=0, atol=0)
        if parameter.requires_grad:
            assert not torch.equal(saved[name], parameter), name


# The compiler looks at the gradients of everything that it meets.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiling_compiles_every_transformer_and_changes_neither_keys_nor_gradients(
    tiny_model: Callable[..., nn.Module],
) -> None:
    models = [tiny_model(stereo=True), tiny_model(stereo=True)]
    models[1].load_state_dict(models[0].state_dict())
    graphs: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_transformers(models[0], False)
    compile_transformers(models[1], backend)
    assert models[1].state_dict().keys() == models[0].state_dict().keys()
    audio = torch.randn(2, 2, 300)
    losses = []
    for model in models:
        assert not graphs
        losses.append(model(audio, audio[:, None] / 2))
        losses[-1].backward()
    # Two groups of two transformers; those of an axis may share a graph.
    assert len(graphs) >= 2
    torch.testing.assert_close(losses[1], losses[0])
    for ours, plain in zip(models[1].parameters(), models[0].parameters(), strict=True):
        if plain.grad is not None:
            torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-4, atol=1e-6)


# ---- whole runs


@pytest.fixture(scope="module")
def whole_run(songs: Path, starts_processes: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train to the end without interruption, with dropout."""
    output = tmp_path_factory.mktemp("whole")
    dropout = {"attn_dropout": 0.1, "ff_dropout": 0.1}
    Launched(configured(output, model=dropout), songs, output, pictures=True).finish()
    return output


@pytest.mark.parametrize("workers", [(0, 0), pytest.param((2, 1), marks=pytest.mark.slow)])
def test_a_killed_run_continues_with_the_same_loss_curve_whatever_the_number_of_workers(
    workers: tuple[int, int], whole_run: Path, songs: Path, tmp_path: Path
) -> None:
    configurations = []
    for number in workers:
        configuration = yaml.safe_load((whole_run / "train.yaml").read_text())
        configuration["training"]["num_workers"] = number
        configurations.append(tmp_path / f"workers{number}.yaml")
        configurations[-1].write_text(yaml.safe_dump(configuration))
    updates = Launched(configurations[0], songs, tmp_path).kill()
    assert 0 < updates < 12
    report = Launched(configurations[1], songs, tmp_path).finish()
    assert f"continuing after update {updates} of 12" in report
    ours, theirs = (curves(read_history(folder / "history.jsonl")) for folder in (tmp_path, whole_run))
    for tag in ("loss/total", "gradient_norm", "learning_rate", "sdr/mean"):
        assert curve(tmp_path, tag) == curve(whole_run, tag)
        assert ours[tag] == theirs[tag]
    assert list(curve(tmp_path)) == list(range(1, 13))
    weights = [torch.load(output / "last.ckpt", weights_only=True) for output in (tmp_path, whole_run)]
    torch.testing.assert_close(weights[0]["state_dict"], weights[1]["state_dict"], rtol=0, atol=0)


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the workers in /proc")
def test_a_run_ended_by_every_signal_in_turn_is_the_run_that_was_not(
    whole_run: Path, songs: Path, tmp_path: Path
) -> None:
    configuration = yaml.safe_load((whole_run / "train.yaml").read_text())
    # No state of its own comes before the first validation.
    configuration["training"] |= {"num_workers": 1, "checkpoint_every": 1000}
    path = tmp_path / "signals.yaml"
    path.write_text(yaml.safe_dump(configuration))
    before = 0
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
        launched = Launched(path, songs, tmp_path)
        statuses, living = launched.signal_all(number)
        printed = launched.log.read_text()
        assert statuses == [128 + number], printed[-3000:]
        assert not living
        state = newest_state(tmp_path)
        assert state is not None
        assert before < int(state.name) < 12
        assert "<td>a signal asked it to" in (tmp_path / "report.html").read_text()
        assert f"{number.name}: saved after update {int(state.name)} of 12; give the same command" in printed
        before = int(state.name)
    Launched(path, songs, tmp_path).finish()
    for tag in ("loss/total", "gradient_norm", "learning_rate", "sdr/mean"):
        assert curve(tmp_path, tag) == curve(whole_run, tag)
    weights = [torch.load(output / "last.ckpt", weights_only=True) for output in (tmp_path, whole_run)]
    torch.testing.assert_close(weights[0]["state_dict"], weights[1]["state_dict"], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_is_lost_in_a_destructor_ends_a_validation_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    saved: list[bool] = []
    monkeypatch.setattr(trainer, "_validate", lambda *_: Interrupted() and None)
    run = SimpleNamespace(updates=3, save=lambda: saved.append(True))
    with pytest.raises(SystemExit) as ended, ending_on_signals(), uninterrupted() as waiting:
        trainer._validate_and_save(run, [], None, Console("test"), waiting)
    assert ended.value.code == 128 + signal.SIGTERM
    assert not saved


@pytest.mark.slow
def test_a_run_that_reads_from_the_cache_is_the_same(whole_run: Path, songs: Path, tmp_path: Path) -> None:
    configuration = yaml.safe_load((whole_run / "train.yaml").read_text())
    configuration["training"]["cache"] = str(tmp_path / "cache")
    (tmp_path / "cached.yaml").write_text(yaml.safe_dump(configuration))
    Launched(tmp_path / "cached.yaml", songs, tmp_path).finish()
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 10  # four stems and the mixture, twice
    for tag in ("loss/total", "sdr/mean"):
        assert curve(tmp_path, tag) == curve(whole_run, tag)


@pytest.mark.slow
@pytest.mark.process
def test_songs_are_checked_before_the_first_step(songs: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(songs, tmp_path / "songs")
    silent = mine / "train" / "Falcon 69" / "bass.wav"
    soundfile.write(str(silent), np.zeros((44100, 2)), 44100)
    configuration = configured(tmp_path, training={"num_steps": 2, "batch_size": 1, "warmup_steps": 0})
    report = Launched(configuration, mine, tmp_path, processes=2).finish()
    said = re.findall(r"^check: (/.*|\d+ remarks.*)$", report, re.MULTILINE)
    remarks = (tmp_path / "check.txt").read_text().splitlines()
    assert said == [*remarks, f"{len(remarks)} remarks on the songs, all in {tmp_path / 'check.txt'}"]
    assert [remark.partition(": ")[0] for remark in remarks] == [
        f"{silent} is 3.00 s shorter than the longest stem of the song",
        f"{silent} is silent throughout",
        f"{silent.with_name('mixture.wav')} is not the sum of the stems",
    ]
    # A run that goes on does not read everything again.
    assert "remarks on the songs" not in Launched(configuration, mine, tmp_path, processes=2).finish()


@pytest.mark.slow
@pytest.mark.process
def test_a_damaged_song_ends_every_process_before_the_first_step(songs: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(songs, tmp_path / "songs")
    for path in mine.rglob("*.wav"):
        audio, rate = soundfile.read(str(path))
        path.unlink()
        soundfile.write(str(path.with_suffix(".flac")), audio, rate)
    damaged = mine / "test" / "Falcon 69" / "drums.flac"
    damaged.write_bytes(damaged.read_bytes()[:-20000])
    launched = Launched(configured(tmp_path), mine, tmp_path, processes=2)
    for process in launched.processes:
        process.join(300)
    assert [process.exitcode for process in launched.processes] == [1, 1]
    report = launched.log.read_text()
    errors = re.findall(r"^hunterFormsBS: error: (.*)$", report, re.MULTILINE)
    assert len(errors) == 2
    assert all(str(damaged) in error and "replace or remove these files" in error for error in errors)
    assert "Traceback" not in report


def test_the_learning_rate_of_a_run_follows_its_schedule(whole_run: Path) -> None:
    settings = settings_from(TINY_RUN)
    expected = {update + 1: 0.003 * learning_rate_factor(update, settings) for update in range(12)}
    assert curve(whole_run, "learning_rate") == pytest.approx(expected, rel=1e-6)


def test_a_finished_run_has_nothing_left_to_do(whole_run: Path, songs: Path) -> None:
    before = curve(whole_run)
    assert "continuing after update 12 of 12" in Launched(whole_run / "train.yaml", songs, whole_run).finish()
    assert curve(whole_run) == before


@pytest.mark.slow
def test_a_run_of_another_model_is_not_continued(whole_run: Path, songs: Path, tmp_path: Path) -> None:
    other = configured(tmp_path, model={"zero_dc": False, "attn_dropout": 0.1, "ff_dropout": 0.1})
    launched = Launched(other, songs, whole_run)
    launched.processes[0].join(300)
    assert launched.processes[0].exitcode == 1
    assert "holds the run of another model: choose another --output" in launched.log.read_text()


@pytest.mark.slow
def test_a_folder_takes_one_run_at_a_time(whole_run: Path, songs: Path) -> None:
    with (whole_run / "lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        launched = Launched(whole_run / "train.yaml", songs, whole_run, processes=2)
        for process in launched.processes:
            process.join(300)
    assert [process.exitcode for process in launched.processes] == [1, 1]
    assert launched.log.read_text().count(f"another process trains in {whole_run}: end it, or choose") == 2


def test_checkpoints_load_without_any_other_file(whole_run: Path) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        model = from_checkpoint(whole_run / name)
        arguments = {**TINY_RUN["model"], "attn_dropout": 0.1}
        for argument in ("dim", "num_stems", "use_pope", "stft_hop_length", "attn_dropout"):
            assert model.configuration[argument] == arguments[argument]
        assert model(torch.randn(1, 2, 1000)).shape == (1, 4, 2, 1000)
        kept = torch.load(whole_run / name, weights_only=True)["configuration"]
        assert kept["training"]["instruments"] == TINY_RUN["training"]["instruments"]
        assert kept["audio"] == TINY_RUN["audio"]


def test_log_has_sound_and_pictures(whole_run: Path) -> None:
    import io

    import soundfile
    from matplotlib.image import imread
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole_run / "tensorboard"))
    events.Reload()
    stems = TINY_RUN["training"]["instruments"]
    names = ["mixture", *(f"{stem}/{kind}" for stem in stems for kind in ("true", "estimated"))]
    assert sorted(events.Tags()["audio"]) == sorted(names)
    for name in names:
        samples, rate = soundfile.read(io.BytesIO(events.Audio(name)[-1].encoded_audio_string))
        assert rate == 44100
        assert len(samples) == 22050
        assert np.abs(samples).max() > 1e-4
    assert sorted(events.Tags()["images"]) == ["masks", "spectrograms"]
    for name in events.Tags()["images"]:
        picture = imread(io.BytesIO(events.Images(name)[-1].encoded_image_string))
        assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 100
    assert {f"sdr/{stem}" for stem in (*stems, "mean")} <= set(events.Tags()["scalars"])
    assert {f"sdr_by_song/Falcon 69/{stem}" for stem in stems} <= set(events.Tags()["scalars"])


def test_log_has_speed_time_left_and_memory(whole_run: Path) -> None:
    updates, audio, left, memory = (
        curve(whole_run, tag)
        for tag in ("speed/updates_per_second", "speed/audio_per_second", "speed/hours_left", "memory/peak_gb")
    )
    assert list(updates) == list(left) == list(memory) == list(range(1, 13))
    for update, rate in updates.items():
        assert audio[update] == pytest.approx(rate * 4 * 4096 / 44100, rel=1e-5)
    assert left[12] == 0 < left[11] < 1
    assert 0.05 < memory[12] < 100


def test_a_run_ends_with_a_page_that_has_its_curves_scores_and_sounds(whole_run: Path) -> None:
    page = (whole_run / "report.html").read_text(encoding="utf-8")
    assert "<td>12 of 12</td>" in page
    assert "<td>after its last update</td>" in page
    assert page.count("data:image/png;base64,") == 3  # curves, spectrograms, masks
    assert page.count("data:audio/flac;base64,") == 1 + 2 * len(TINY_RUN["training"]["instruments"])
    assert "<td>Falcon 69</td>" in page
    entries = curves(read_history(whole_run / "history.jsonl"))
    for tag in ("loss/total", "sdr/mean", "gradient_norm"):
        assert dict(zip(*entries[tag], strict=True)) == pytest.approx(curve(whole_run, tag), rel=1e-6)


@pytest.fixture(scope="module")
def one_process(songs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train without dropout in one process, with the double batch of the runs in two."""
    output = tmp_path_factory.mktemp("one")
    Launched(configured(output), songs, output).finish()
    return output


# gloo, the CPU's way of communicating, cannot scatter sums in older versions.
SHARDS = Version(torch.__version__).release >= (2, 7)


@pytest.mark.parametrize(
    ("before", "after"),
    [(("ddp", 2), ("fsdp2", 2)), (("fsdp2", 2), ("auto", 1))] if SHARDS else [(("ddp", 2), ("ddp", 2))],
    ids=str,
)
def test_runs_killed_and_resumed_by_other_processes_train_as_one_with_the_double_batch(
    before: tuple[str, int], after: tuple[str, int], one_process: Path, songs: Path, tmp_path: Path
) -> None:
    def launch(strategy: str, processes: int) -> Launched:
        configuration = configured(tmp_path, training={"batch_size": 2 // processes})
        return Launched(configuration, songs, tmp_path, "--strategy", strategy, processes=processes)

    killed_after = launch(*before).kill()
    assert 0 < killed_after < 12
    report = launch(*after).finish()
    assert f"{after[1]} processes on cpu" in report
    assert f"continuing after update {killed_after} of 12" in report
    for tag, tolerance in (("loss/total", 1e-4), ("gradient_norm", 1e-3), ("sdr/mean", 1e-2)):
        expected = curve(one_process, tag)
        assert curve(tmp_path, tag) == pytest.approx(expected, rel=tolerance, abs=tolerance)
    ours, theirs = (from_checkpoint(output / "last.ckpt").state_dict() for output in (tmp_path, one_process))
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the workers in /proc")
@pytest.mark.parametrize(("rank", "strategy"), [(0, "ddp"), (1, "fsdp2" if SHARDS else "ddp")])
def test_a_signal_to_one_of_two_processes_ends_both_after_the_same_update(
    rank: int, strategy: str, one_process: Path, songs: Path, tmp_path: Path
) -> None:
    configuration = configured(tmp_path, training={"batch_size": 1, "checkpoint_every": 1000})
    launched = Launched(configuration, songs, tmp_path, "--strategy", strategy, processes=2)
    statuses, living = launched.signal_all(signal.SIGTERM, rank)
    printed = launched.log.read_text()
    assert statuses == [128 + signal.SIGTERM] * 2, printed[-3000:]
    assert not living
    state = newest_state(tmp_path)
    assert state is not None
    assert 0 < int(state.name) < 12
    assert printed.count(f"SIGTERM: saved after update {int(state.name)} of 12; give the same command") == 1
    report = Launched(configuration, songs, tmp_path, "--strategy", strategy, processes=2).finish()
    assert f"continuing after update {int(state.name)} of 12" in report
    assert list(curve(tmp_path)) == list(range(1, 13))
    for tag, tolerance in (("loss/total", 1e-4), ("gradient_norm", 1e-3), ("sdr/mean", 1e-2)):
        assert curve(tmp_path, tag) == pytest.approx(curve(one_process, tag), rel=tolerance, abs=tolerance)


@pytest.mark.slow
@pytest.mark.process
def test_an_upstream_configuration_trains_one_stem_compiled_checkpointed_and_in_bfloat16(
    songs: Path, tmp_path: Path
) -> None:
    configuration = {key: value for key, value in TINY_RUN.items() if key != "upstream"}
    model = {name: value for name, value in TINY_RUN["model"].items() if name != "use_pope"}
    # Upstream counts one hidden layer more.
    model |= {"num_stems": 1, "mask_estimator_depth": 2, "use_torch_checkpoint": True}
    training = {"instruments": ["vocals", "other"], "target_instrument": "vocals", "num_steps": 4, "warmup_steps": 0}
    training |= {"precision": "bf16-mixed", "compile": "aot_eager", "early_stop": 2}
    configuration |= {"model": model, "training": {**TINY_RUN["training"], **training}}
    path = tmp_path / "msst.yaml"
    path.write_text(yaml.safe_dump(configuration))
    report = Launched(path, songs, tmp_path).finish()
    assert "1 processes on cpu, bf16-mixed" in report
    assert "training.early_stop has no effect here: stop the run when you like" in report
    loaded = from_checkpoint(tmp_path / "best.ckpt")
    assert loaded.configuration["mask_estimator_depth"] == 1
    assert loaded(torch.randn(1, 2, 1000)).shape == (1, 1, 2, 1000)
    assert all(math.isfinite(loss) for loss in curve(tmp_path).values())


# As one writes it for Music-Source-Separation-Training, whose losses are options of its command line.
MSST_WITH_EVERYTHING = """
audio: {chunk_size: 8192, dim_f: 1024, dim_t: 256, hop_length: 64, n_fft: 128, num_channels: 2, sample_rate: 44100,
        min_mean_abs: 0.001}
training:
  batch_size: 2
  gradient_accumulation_steps: 1
  grad_clip: 1.0
  instruments: [drums, bass, other, vocals]
  target_instrument: null
  lr: 1.0
  patience: 2
  reduce_factor: 0.95
  num_epochs: 2
  num_steps: 6
  q: 0.95
  coarse_loss_clip: true
  ema_momentum: 0.9
  optimizer: prodigy
  use_amp: true
  augmentation: false
  augmentation_type: null
  dataset_type: 1
  log_every: 1
optimizer: {weight_decay: 0.01, d_coef: 2.0, use_bias_correction: true}
losses: {masked_loss: 1.0, multistft_loss: 0.01}
loss_multistft: {fft_sizes: !!python/tuple [512, 128], hop_sizes: [128, 32], win_lengths: [512, 128]}
augmentations:
  enable: true
  loudness: true
  loudness_min: 0.5
  loudness_max: 1.5
  mixup: true
  mixup_probs: !!python/tuple [0.2, 0.02]
  mixup_loudness_min: 0.5
  mixup_loudness_max: 1.5
  chunk_size_augm: true
  chunk_size_min: 4096
  chunk_size_max: 8192
  mp3_compression_on_mixture: 0.2
  mp3_compression_on_mixture_bitrate_min: 64
  mp3_compression_on_mixture_bitrate_max: 320
  all: {channel_shuffle: 0.5, random_inverse: 0.1, random_polarity: 0.5, mp3_compression: 0.2,
        mp3_compression_min_bitrate: 64, mp3_compression_max_bitrate: 320, mp3_compression_backend: lameenc}
  vocals: {pitch_shift: 0.5, pitch_shift_min_semitones: -3, pitch_shift_max_semitones: 3,
           seven_band_parametric_eq: 0.5, seven_band_parametric_eq_min_gain_db: -6,
           seven_band_parametric_eq_max_gain_db: 6}
  drums: {pedalboard_reverb: 0.5, pedalboard_reverb_room_size_min: 0.1, pedalboard_reverb_room_size_max: 0.9,
          pedalboard_reverb_damping_min: 0.1, pedalboard_reverb_damping_max: 0.9, pedalboard_reverb_wet_level_min: 0.1,
          pedalboard_reverb_wet_level_max: 0.9, pedalboard_reverb_dry_level_min: 0.1,
          pedalboard_reverb_dry_level_max: 0.9, pedalboard_reverb_width_min: 0.9, pedalboard_reverb_width_max: 1.0,
          tanh_distortion: 0.3, tanh_distortion_min: 0.1, tanh_distortion_max: 0.7}
inference: {batch_size: 4, dim_t: 256, num_overlap: 2}
"""


@pytest.mark.slow
@pytest.mark.process
def test_a_configuration_of_msst_trains_with_augmentations_two_losses_and_prodigy(songs: Path, tmp_path: Path) -> None:
    # Upstream counts one hidden layer more.
    model = {**{name: value for name, value in TINY_RUN["model"].items() if name != "use_pope"}}
    path = tmp_path / "msst.yaml"
    path.write_text(MSST_WITH_EVERYTHING + yaml.safe_dump({"model": {**model, "mask_estimator_depth": 2}}))
    report = Launched(path, songs, tmp_path).finish()
    assert "no effect here" not in report
    masked, spectra, total = (curve(tmp_path, f"loss/{name}") for name in ("masked_loss", "multistft_loss", "total"))
    assert list(total) == list(range(1, 13))
    assert all(math.isfinite(loss) for loss in total.values())
    assert total == pytest.approx({update: masked[update] + 0.01 * spectra[update] for update in total}, rel=1e-4)
    assert from_checkpoint(tmp_path / "best.ckpt").configuration["mask_estimator_depth"] == 1


PUBLIC = EXAMPLES.parent / "shared" / "configs_public"
PUBLIC = PUBLIC if PUBLIC.is_dir() else EXAMPLES.parent.parent / "shared" / "configs_public"


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif(not PUBLIC.is_dir(), reason="public configurations are not part of the repository")
@pytest.mark.parametrize("name", ["bs_roformer_with_lora", "mel_band_roformer_all_stems"])
def test_public_configurations_of_msst_train_with_their_augmentations_two_losses_and_prodigy(
    name: str, songs: Path, tmp_path: Path
) -> None:
    configuration = read_configuration(PUBLIC / f"ZFTurbo_Music-Source-Separation-Training__config_musdb18_{name}.yaml")
    # Smaller, and no longer: nothing else of what trains is changed.
    configuration["model"] |= {"dim": 16, "depth": 1, "heads": 2, "dim_head": 8, "mlp_expansion_factor": 1}
    configuration["audio"] |= {"chunk_size": 16384}
    configuration["training"] |= {"num_epochs": 1, "num_steps": 4}
    # A comment of one of them proposes Prodigy; losses are options of the command line there.
    configuration["training"] |= {"optimizer": "prodigy", "lr": 1.0}
    configuration["losses"] = {"masked_loss": 1.0, "multistft_loss": 0.01}
    path = tmp_path / "msst.yaml"
    path.write_text(yaml.safe_dump(configuration))
    report = Launched(path, songs, tmp_path).finish()
    remarks = re.findall("^hunterFormsBS: warning: (.*)", report, re.MULTILINE)
    instead = "lora has no effect here: the section is fine_tuning.lora here, with arguments of peft.LoraConfig"
    assert remarks == ([instead] if "lora" in configuration else [])
    (started,) = re.findall(r"^1 songs to train on.*", report, re.MULTILINE)
    assert started.endswith("1 processes on cpu, 32-true; starting at update 0 of 4")
    (scores,) = re.findall(r"^SDR after 4 updates: (.*)$", report, re.MULTILINE)
    assert re.findall(r"(\w+) -?[\d.]+ dB", scores) == configuration["training"]["instruments"]
    assert [each for each in curve(tmp_path, "loss/total").values() if not math.isfinite(each)] == []
    assert curve(tmp_path, "loss/masked_loss").keys() == curve(tmp_path, "loss/multistft_loss").keys() == {4}


def commands_of_page() -> list[str]:
    page = (EXAMPLES.parent / "docs" / "training.md").read_text(encoding="utf-8")
    section = page.partition("## Try it")[2].partition("\n## ")[0]
    return re.findall(r"^```bash\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_commands_of_the_page_go_from_installation_to_a_run_killed_and_resumed(
    run_commands: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Word for word, with a smaller model."""
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    configuration = tmp_path / "examples" / "trainSmall.yaml"
    settings = yaml.safe_load(configuration.read_text())
    settings["audio"] = TINY_RUN["audio"]
    settings["model"] = TINY_RUN["model"]
    settings["training"] |= {"num_steps": 60, "log_every": 1, "checkpoint_every": 5}
    settings["validation"] = {"every": 30, "excerpt": 0.5}
    configuration.write_text(yaml.safe_dump(settings))
    commands = commands_of_page()
    assert len(commands) == 7
    done = run_commands(commands, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    reports = re.findall(r"^1 songs to train on, .* 2 processes on cpu, 32-true; (.*)$", done.stdout, re.MULTILINE)
    assert reports[0] == "starting at update 0 of 60"
    (updates,) = map(int, re.findall(r"^continuing after update (\d+) of 60$", reports[1]))
    assert len(reports) == 2
    assert 5 <= updates < 60
    assert "update/s, loss=" in done.stderr  # the progress bar
    assert "sdr/mean" in done.stdout  # what TensorBoard found
    assert list(curve(tmp_path / "runs" / "first")) == list(range(1, 61))
    stems = sorted(path.name for path in (tmp_path / "separated" / "mixture").iterdir())
    assert stems == ["bass.wav", "drums.wav", "other.wav", "vocals.wav"]


@pytest.mark.slow
def test_training_starts_from_the_weights_of_a_checkpoint(whole_run: Path, songs: Path, tmp_path: Path) -> None:
    configuration = configured(tmp_path, training={"num_steps": 2, "lr": 1e-30, "weight_decay": 0.0, "warmup_steps": 0})
    Launched(configuration, songs, tmp_path, "--checkpoint", str(whole_run / "last.ckpt")).finish()
    start, end = (from_checkpoint(folder / "last.ckpt").state_dict() for folder in (whole_run, tmp_path))
    torch.testing.assert_close(end, start, rtol=0, atol=1e-20)


# ---- the order of parameters


def registered_as_in_0_1_0(model: nn.Module) -> nn.Module:
    """Sort the modules of a model anew; what it computes stays the same."""
    order = ("band_split", "layers", "final_norm", "mask_estimators")
    last = len(order)
    modules = sorted(model._modules.items(), key=lambda item: order.index(item[0]) if item[0] in order else last)
    model._modules.clear()
    model._modules.update(modules)
    return model


@pytest.mark.parametrize("positional", [False, True], ids=["by name", "as 0.1.0 saved it"])
def test_a_run_continues_the_same_in_whatever_order_the_parameters_are_registered(
    positional: bool, songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = in_this_process(tmp_path)
    found = find_songs(songs / "train", first.settings.instruments, first.settings.sample_rate)
    batches = first.batches(found)
    for _ in range(3):
        first.update(batches)
    first.save()
    if positional:
        path = newest_state(tmp_path)
        assert path is not None
        saved = torch.load(path, weights_only=True)
        # It had one group for whatever has two axes or more, and one for the rest.
        trained = [parameter for parameter in first.model.parameters() if parameter.requires_grad]
        groups = [[p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]]
        older = torch.optim.AdamW([{"params": group} for group in groups])
        load_named_state(older, first.model, named_state(first.optimizer.optimizer, first.model))
        saved["optimizer"] = older.state_dict()
        del saved["progress"]["names"]
        torch.save(saved, path)
    first.update(batches)

    build = from_configuration
    monkeypatch.setattr(
        sys.modules[__name__], "from_configuration", lambda *a, **k: registered_as_in_0_1_0(build(*a, **k))
    )
    second = in_this_process(tmp_path)
    names = [[name for name, _ in run.model.named_parameters()] for run in (first, second)]
    assert names[0] != names[1]
    assert second.resume()
    second.update(second.batches(found))
    torch.testing.assert_close(dict(second.model.named_parameters()), dict(first.model.named_parameters()))


def test_moments_of_another_shape_are_refused(tiny_model: Callable[..., nn.Module]) -> None:
    model = tiny_model()
    optimizer = make_optimizer(model, "adamw", lr=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    saved = named_state(optimizer, model)
    name = next(iter(saved["state"]))
    saved["state"][name]["exp_avg"] = torch.zeros(3)
    with pytest.raises(ValueError, match=rf"exp_avg of {re.escape(name)} has the shape \(3,\)"):
        load_named_state(optimizer, model, saved)


@pytest.mark.parametrize(("before", "after"), [((), (1,)), ((1,), ())], ids=str)
def test_moments_of_a_scalar_fit_the_vector_of_one_that_sharding_makes_of_it(
    before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    def made(shape: tuple[int, ...]) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Module()
        model.register_parameter("scale", nn.Parameter(torch.ones(shape)))
        optimizer = make_optimizer(model, "adamw", lr=1.0)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        return model, optimizer

    first, stepped = made(before)
    saved = named_state(stepped, first)
    model, optimizer = made(after)
    load_named_state(optimizer, model, saved)
    (state,) = optimizer.state.values()
    assert state["exp_avg"].shape == after
    assert state["step"].shape == ()


def test_a_resumed_run_takes_the_learning_rate_of_its_settings(songs: Path, tmp_path: Path) -> None:
    first = in_this_process(tmp_path, warmup_steps=0)
    first.update(first.batches(find_songs(songs / "train", first.settings.instruments, first.settings.sample_rate)))
    first.save()
    second = in_this_process(tmp_path, warmup_steps=0, lr=0.5)
    assert second.resume()
    logged, _ = update_and_look_at_gradients(second, songs)
    assert logged["learning_rate"] == pytest.approx(0.5 * learning_rate_factor(1, second.settings))


# ---- when it goes wrong


def updated_and_saved(run: Run, songs: Path, times: int) -> None:
    batches = run.batches(find_songs(songs / "train", run.settings.instruments, run.settings.sample_rate))
    for _ in range(times):
        run.update(batches)
        run.save()


def states(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "resume").iterdir())


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def overwrite(path: Path) -> None:
    path.write_bytes(b"no weights" * 100)


def turn_a_bit(path: Path) -> None:
    """Change one weight, which PyTorch loads as if nothing were wrong."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_off, empty, overwrite, turn_a_bit])
def test_two_states_are_kept_and_a_damaged_one_is_passed_over(
    damage: Callable[[Path], None], songs: Path, tmp_path: Path
) -> None:
    updated_and_saved(in_this_process(tmp_path), songs, 3)
    assert states(tmp_path) == [2, 3]
    damage(tmp_path / "resume" / "000000003")
    run = in_this_process(tmp_path)
    with pytest.warns(UserWarning, match=r"000000003 cannot be read, so the state before it is tried"):
        assert run.resume()
    assert run.updates == 2
    damage(tmp_path / "resume" / "000000002")
    message = r"no state in .*resume can be read: start again from the weights, with --checkpoint .*last\.ckpt"
    with pytest.warns(UserWarning, match="cannot be read"), pytest.raises(StoppedError, match=message):
        in_this_process(tmp_path).resume()
    # What the message proposes works.
    assert from_checkpoint(tmp_path / "last.ckpt").num_stems == 4


@pytest.mark.parametrize("lost", ["missing", "older"])
def test_a_run_killed_between_its_state_and_its_checkpoint_has_both_when_it_goes_on(
    lost: str, songs: Path, tmp_path: Path
) -> None:
    run = in_this_process(tmp_path)
    updated_and_saved(run, songs, 1)
    older = (tmp_path / "last.ckpt").read_bytes()
    updated_and_saved(run, songs, 1)
    (tmp_path / "last.ckpt").unlink()
    if lost == "older":
        (tmp_path / "last.ckpt").write_bytes(older)
    assert in_this_process(tmp_path).resume()
    saved, average = from_checkpoint(tmp_path / "last.ckpt").state_dict(), run.average.gather()
    for name, weights in average.items():
        torch.testing.assert_close(saved[name], weights, rtol=0, atol=0)


@pytest.mark.slow
def test_a_run_that_ends_in_a_validation_begins_with_it_again_and_logs_it_once(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hunterFormsBS.training.run

    monkeypatch.setattr(hunterFormsBS.training.run, "log_excerpt", lambda *_: None)
    training = {"num_steps": 8, "batch_size": 1, "warmup_steps": 0, "checkpoint_every": 1000}
    configuration = configured(tmp_path, training=training, validation={"every": 2})
    validate = Run.validate

    def validate_and_fail(run: Run, *arguments: Any) -> dict[str, float]:
        validate(run, *arguments)
        raise RuntimeError("no such metric")

    monkeypatch.setattr(Run, "validate", validate_and_fail)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no such metric"):
            train(configuration, tmp_path, songs=songs, accelerator="cpu")
        assert states(tmp_path) == [2]
    monkeypatch.setattr(Run, "validate", validate)
    train(configuration, tmp_path, songs=songs, accelerator="cpu")
    assert list(curve(tmp_path)) == [1, 2, 3, 4]
    assert list(curve(tmp_path, "sdr/mean")) == [2, 4]
    before = (tmp_path / "best.ckpt").stat().st_mtime_ns
    train(configuration, tmp_path, songs=songs, accelerator="cpu")
    assert (tmp_path / "best.ckpt").stat().st_mtime_ns == before
    assert list(curve(tmp_path, "sdr/mean")) == [2, 4]


def test_a_checkpoint_newer_than_all_states_that_can_be_read_stays(songs: Path, tmp_path: Path) -> None:
    updated_and_saved(in_this_process(tmp_path), songs, 2)
    newest = (tmp_path / "last.ckpt").read_bytes()
    cut_off(tmp_path / "resume" / "000000002")
    with pytest.warns(UserWarning, match="cannot be read"):
        assert in_this_process(tmp_path).resume()
    assert (tmp_path / "last.ckpt").read_bytes() == newest


def test_what_stands_in_the_way_of_the_checkpoint_is_named_and_the_state_is_not_blamed(
    songs: Path, tmp_path: Path
) -> None:
    (tmp_path / "last.ckpt").mkdir()
    with pytest.raises(StoppedError, match=r"last\.ckpt cannot be written: .*Is a directory"):
        updated_and_saved(in_this_process(tmp_path), songs, 1)
    assert states(tmp_path) == [1]


@pytest.mark.parametrize(("before", "after"), [("adamw", "rmsprop"), ("rmsprop", "adamw"), ("adam", "adamw")])
def test_a_state_of_another_optimizer_is_refused_where_none_is_recorded(
    before: str, after: str, songs: Path, tmp_path: Path
) -> None:
    updated_and_saved(in_this_process(tmp_path, optimizer=before), songs, 1)
    path = tmp_path / "resume" / "000000001"
    state = torch.load(path, weights_only=True)
    del state["progress"]["settings"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"the state is that of another optimizer.*say training\.optimizer as it was"):
        in_this_process(tmp_path, optimizer=after).resume()


class Gadget:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def a_file_that_runs(state: Path, proof: Path) -> None:
    torch.save({**torch.load(state, weights_only=True), "more": Gadget(proof)}, state)


def shards_that_run(state: Path, proof: Path) -> None:
    """Put the folder that `torch.distributed.checkpoint` writes, and reads with pickle, in place of a state."""
    state.unlink()
    state.mkdir()
    (state / ".metadata").write_bytes(pickle.dumps(Gadget(proof)))


@pytest.mark.parametrize("put", [a_file_that_runs, shards_that_run])
def test_nothing_in_a_state_runs(put: Callable[[Path, Path], None], songs: Path, tmp_path: Path) -> None:
    updated_and_saved(in_this_process(tmp_path), songs, 2)
    put(tmp_path / "resume" / "000000002", tmp_path / "proof")
    run = in_this_process(tmp_path)
    with pytest.warns(UserWarning, match=r"000000002 cannot be read, so the state before it is tried"):
        assert run.resume()
    assert run.updates == 1
    assert not (tmp_path / "proof").exists()


def test_states_are_written_in_the_folder_of_the_run_alone(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    updated_and_saved(in_this_process(tmp_path / "run"), songs, 1)
    assert states(tmp_path / "run") == [1]


def test_what_killed_processes_left_is_removed_and_nothing_else(songs: Path, tmp_path: Path) -> None:
    ours = ["resume/000000003.unfinished", ".last.ckpt.4711.unfinished", "scores/000000003.csv.unfinished"]
    ours += ["rehearsal.unfinished/resume/000000001", "history.jsonl.unfinished", "report.html.unfinished"]
    others = ["notes.unfinished", "resume/000000003", "last.ckpt", "best.lora/adapter_config.json"]
    (tmp_path / "last.lora.unfinished").mkdir()
    for name in (*ours, *others, "last.lora.unfinished/adapter_config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    lock = claim(in_this_process(tmp_path).fabric, tmp_path)
    assert lock is not None
    lock.close()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {*others, "lock"}


def size_of_files_limited(limit: int) -> AbstractContextManager[None]:
    """Let writing fail after so many bytes, as on a full disk."""

    @contextmanager
    def limited() -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_full_disk_leaves_the_states_before(share: float, songs: Path, tmp_path: Path) -> None:
    run = in_this_process(tmp_path)
    updated_and_saved(run, songs, 2)
    newest = newest_state(tmp_path)
    assert newest is not None
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    run.update(run.batches(find_songs(songs / "train", run.settings.instruments, run.settings.sample_rate)))
    message = r"000000003 cannot be written: .*\. What was saved before is as it was: make room on the disk"
    with size_of_files_limited(int(share * newest.stat().st_size)), pytest.raises(StoppedError, match=message):
        run.save()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    again = in_this_process(tmp_path)
    assert again.resume()
    assert again.updates == 2


def test_a_state_is_on_the_disk_before_it_gets_its_name(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, str]] = []
    sync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        done.append(("sync", Path(f"/proc/self/fd/{descriptor}").resolve().name))
        sync(descriptor)

    def replaced(path: Path, target: Path) -> Path:
        done.append(("rename", path.name))
        return replace(path, target)

    run = in_this_process(tmp_path)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    updated_and_saved(run, songs, 1)
    name = "000000001.unfinished"
    assert [each for each in done if each[1] in (name, "resume")] == [
        ("sync", name), ("rename", name), ("sync", "resume"),
    ]  # fmt: skip


def with_a_loss_that_is_not_finite(run: Run, update: int) -> None:
    run.model.register_forward_hook(
        lambda _module, _inputs, output: (output[0] * math.nan, output[1]) if run.updates == update else None
    )


def test_a_loss_that_is_not_finite_stops_the_run_and_names_update_files_and_scale(songs: Path, tmp_path: Path) -> None:
    run = in_this_process(tmp_path)
    with_a_loss_that_is_not_finite(run, 1)
    message = r"the loss of update 2 is nan in process 0, with a scale of 1\.0, of .*/vocals\.wav, .*/drums\.wav"
    with pytest.raises(StoppedError, match=message):
        updated_and_saved(run, songs, 2)
    assert states(tmp_path) == [1]


def test_a_process_whose_own_loss_is_finite_says_that_another_one_is_not(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "_is_finite", lambda _run, _loss: False)
    message = r"the loss of update 1 is not finite in another process, and \d+\.\d+ in process 0, with a scale of 1\.0"
    with pytest.raises(StoppedError, match=message):
        updated_and_saved(in_this_process(tmp_path), songs, 1)


@pytest.mark.process
def test_what_stops_a_run_is_printed_in_one_line(songs: Path, tmp_path: Path) -> None:
    configuration = configured(tmp_path, model={"multi_stft_resolution_loss_weight": 1e38})
    launched = Launched(configuration, songs, tmp_path)
    launched.processes[0].join(300)
    assert launched.processes[0].exitcode == 1
    report = launched.log.read_text()
    assert "Traceback" not in report
    (line,) = re.findall("^hunterFormsBS: error: (.*)$", report, re.MULTILINE)
    assert re.match(r"the (loss|norm of the gradient) of update \d+ is (nan|inf) in process 0, with a scale of 1", line)


@pytest.mark.parametrize("precision", [None, "16-mixed"])
def test_a_gradient_that_is_not_finite_stops_the_run_unless_a_scaler_takes_care_of_it(
    precision: str | None, songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = in_this_process(tmp_path, grad_clip=1.0)
    next(run.model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    if precision is None:
        message = r"the norm of the gradient of update 1 is (inf|nan) in process 0, with a scale of 1\.0, of .*\.wav"
        with pytest.raises(StoppedError, match=message):
            updated_and_saved(run, songs, 1)
        return
    monkeypatch.setattr(Run, "precision", precision)
    monkeypatch.setattr(run.optimizer, "step", lambda: None)
    updated_and_saved(run, songs, 1)
    assert run.skipped == 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory. You tried to allocate 20 bytes."),
    ],
)
@pytest.mark.parametrize("where", ["forward", "optimizer"])
def test_too_little_memory_at_the_first_step_says_what_to_lower(
    where: str, error: Exception, songs: Path, tmp_path: Path
) -> None:
    run = in_this_process(tmp_path)

    def fail(*_: object) -> None:
        raise error

    if where == "forward":
        run.model.register_forward_pre_hook(fail)
    else:
        run.optimizer.optimizer.register_step_pre_hook(fail)
    message = (
        r"too little memory for training\.batch_size=2 segments of audio\.chunk_size=4096 samples: lower the first, "
        "and raise training.gradient_accumulation_steps as much; say model.use_torch_checkpoint: true; train with "
        "precision: bf16-mixed; or lower the second"
    )
    with pytest.raises(StoppedError, match=message):
        updated_and_saved(run, songs, 1)


def test_or_is_skipped_and_counted(songs: Path, tmp_path: Path) -> None:
    run = in_this_process(tmp_path, not_finite="skip")
    with_a_loss_that_is_not_finite(run, 1)
    updated_and_saved(run, songs, 1)
    before = [parameter.clone() for parameter in run.model.parameters()]
    batches = run.batches(find_songs(songs / "train", run.settings.instruments, run.settings.sample_rate))
    assert float(run.update(batches)["skipped"]) == 1
    torch.testing.assert_close(list(run.model.parameters()), before, rtol=0, atol=0)
    assert math.isfinite(float(run.update(batches)["loss/total"]))
    assert (run.updates, run.skipped) == (3, 1)
    run.save()
    again = in_this_process(tmp_path, not_finite="skip")
    assert again.resume()
    assert again.skipped == 1
