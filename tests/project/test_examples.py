"""The quickstart, on a song made here, and what the README says about defaults and commands."""

from __future__ import annotations

import inspect
import math
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import soundfile
import torch
from bs_roformer import BSRoformer as UpstreamBSRoformer
from bs_roformer import MelBandRoformer as UpstreamMelBandRoformer
from torch import Tensor

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.__main__ import main as command_line
from hunterFormsBS.checkpoint import from_checkpoint
from hunterFormsBS.mel_band_roformer import MelBandRoformer
from hunterFormsBS.program.dispatch import load_command, understand
from hunterFormsBS.program.parsing import Parser
from hunterFormsBS.separation import separate

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FROM_BS_ROFORMER = (ROOT / "docs" / "from-bs-roformer.md").read_text(encoding="utf-8")
LENGTH = 20000


@pytest.fixture
def quickstart(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the program, made to work on short segments, so that a step takes milliseconds."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.delitem(sys.modules, "quickstart", raising=False)
    import quickstart as program

    monkeypatch.setattr(program, "SEGMENT", 8192)
    return program


@pytest.fixture
def song() -> tuple[Tensor, Tensor]:
    """Return a mixture `(s, t)` of four tones far apart, and the tones, `(n, s, t)`."""
    seconds = torch.arange(LENGTH) / 44100
    tones = torch.stack([0.2 * torch.sin(2 * math.pi * hertz * seconds) for hertz in (100, 600, 3000, 11000)])
    stems = tones[:, None].repeat(1, 2, 1)
    return stems.sum(0), stems


def test_signal_to_distortion_is_the_ratio_of_energies_in_decibels(quickstart: ModuleType) -> None:
    stems = torch.randn(4, 2, 100, dtype=torch.float64)
    other = torch.randn(4, 2, 100, dtype=torch.float64)
    other *= (stems.square().sum((1, 2)) / other.square().sum((1, 2))).sqrt()[:, None, None]  # as loud as the stems
    assert quickstart.signal_to_distortion(stems, torch.zeros_like(stems)).abs().max() < 1e-12
    torch.testing.assert_close(
        quickstart.signal_to_distortion(stems, stems + 0.1 * other), torch.full((4,), 20.0, dtype=torch.float64)
    )


def test_training_improves_on_silence_and_gives_the_same_weights_again(
    quickstart: ModuleType, song: tuple[Tensor, Tensor]
) -> None:
    mixture, stems = song
    weights: list[Tensor] = []
    for _ in range(2):
        torch.manual_seed(3)
        model = quickstart.build_model()
        quickstart.train(model, mixture, stems, seconds=0, steps=20, seed=5)
        weights.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    scores = quickstart.signal_to_distortion(stems, separate(model, mixture, chunk_size=8192))
    assert scores.min() > 1


def test_training_by_the_clock_ends_by_the_clock(
    quickstart: ModuleType, song: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(quickstart, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    quickstart.train(quickstart.build_model(), *song, seconds=4)
    assert next(ticks) == 5  # the start, and one after each of four steps


def test_training_ends_when_the_stems_are_worth_hearing_unless_steps_are_given(
    quickstart: ModuleType, song: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (quickstart.GOAL, quickstart.MINUTES) == (10, 6)
    monkeypatch.setattr(quickstart, "MEASURE_EVERY", 1)
    scores: list[float] = []

    def measured(*_: object) -> float:
        scores.append(4.0 * len(scores))
        return scores[-1]

    ticks = iter(range(1000))
    monkeypatch.setattr(quickstart, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    monkeypatch.setattr(quickstart, "mean_score", measured)
    quickstart.train(quickstart.build_model(), *song, seconds=900)
    assert scores == [0, 4, 8, 12]
    assert next(ticks) == 5  # the start, and four steps
    quickstart.train(quickstart.build_model(), *song, seconds=0, steps=1)
    assert len(scores) == 4


def test_the_mean_score_is_that_of_whole_stems_and_leaves_the_model_training(
    quickstart: ModuleType, song: tuple[Tensor, Tensor]
) -> None:
    mixture, stems = song
    model = quickstart.build_model().train()
    score = quickstart.mean_score(model, mixture, stems)
    assert model.training
    estimates = separate(model.eval(), mixture, chunk_size=8192, num_overlap=1)
    assert score == pytest.approx(quickstart.signal_to_distortion(stems, estimates).mean().item(), abs=1e-4)


def test_quickstart_writes_stems_that_the_command_line_gives_again(
    quickstart: ModuleType, song: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "find_song", lambda: Path("song.mp4"))
    monkeypatch.setattr(quickstart, "decode", lambda _: song)
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--steps", "2", "--threads", "1", "--output", str(tmp_path)])
    quickstart.main()
    command = ["mixture.wav", "--checkpoint", "quickstart.ckpt", "--output", "again", "--quiet"]
    monkeypatch.chdir(tmp_path)
    assert command_line(command) == 0

    assert (tmp_path / "spectrograms.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    mixture, _ = song
    estimates = separate(from_checkpoint("quickstart.ckpt"), mixture, chunk_size=8192, num_overlap=4)
    for name, estimate in zip(quickstart.STEMS, estimates, strict=True):
        assert soundfile.info(f"{name}.wav").subtype == "FLOAT"
        written, again = (
            torch.from_numpy(soundfile.read(f"{folder}{name}.wav")[0].T) for folder in ("", "again/mixture/")
        )
        torch.testing.assert_close(written, estimate.double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(written, again, rtol=0, atol=1e-6)


def test_report_has_what_silence_and_the_mixture_score(quickstart: ModuleType, song: tuple[Tensor, Tensor]) -> None:
    mixture, stems = song
    lines = quickstart.report(mixture, stems, stems / 2).splitlines()
    # The rest of the mixture is three tones, each as loud as the stem: 10 log10(1 / 3). Half a stem: 20 log10(2).
    for name, line in zip((*quickstart.STEMS, "mean"), lines[1:], strict=True):
        label, silence, untouched, score, *_ = line.split()
        assert label == name
        assert float(silence) == 0
        assert float(untouched) == pytest.approx(-4.77, abs=0.1)
        assert float(score) == pytest.approx(6.02, abs=0.005)


def test_the_song_of_stempeg_is_a_mixture_of_its_four_stems(quickstart: ModuleType) -> None:
    pytest.importorskip("av", reason='decoding needs av: pip install -e ".[examples]"')
    if quickstart.find_spec("stempeg") is None:
        pytest.skip('the song needs stempeg: pip install -e ".[examples]"')
    mixture, stems = quickstart.decode(quickstart.find_song())
    assert mixture.shape == stems.shape[1:]
    assert stems.shape[:2] == (4, 2)
    assert 5 < mixture.shape[1] / quickstart.SAMPLE_RATE < 7
    # Each stream was compressed by itself, so the sum of the stems is close to the mixture and not equal to it.
    assert quickstart.signal_to_distortion(mixture, stems.sum(0)) > 12


def table_rows(page: str, first_column: str) -> list[list[str]]:
    """Return the rows of a page's table whose heading begins with `first_column`."""
    table = re.search(rf"^\| {first_column} \|.*\n\| ---.*\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert table is not None
    return [[cell.strip() for cell in line.strip("| \n").split(" | ")] for line in table[1].splitlines()]


@pytest.mark.parametrize(
    ("column", "kind"),
    [(1, BandSplitRotator), (2, MelBandRoformer), (3, UpstreamBSRoformer), (4, UpstreamMelBandRoformer)],
    ids=["BandSplitRotator", "MelBandRoformer", "upstream BSRoformer", "upstream MelBandRoformer"],
)
def test_the_page_gives_the_defaults_of_the_code(column: int, kind: type) -> None:
    # MelBandRoformer here states those that differ and leaves the others to BandSplitRotator.
    parameters = dict(inspect.signature(kind).parameters)
    if kind is MelBandRoformer:
        parameters = {**inspect.signature(BandSplitRotator).parameters, **parameters}
    rows = table_rows(FROM_BS_ROFORMER, "Argument")
    assert len(rows) == 9
    for name, *cells in rows:
        stated = cells[column - 1]
        argument = "add_value_residual" if "add_value_residual" in stated else name.strip("`")
        default = parameters[argument].default if argument in parameters else "–"
        assert re.split(r"[ ,]", stated)[0] == str(default), f"{name}: {stated}"


def test_readme_commands_are_understood_by_the_command_line() -> None:
    commands = re.findall(r"^(?:python3? start\.py|hunterforms) (?!test)(\S+.*)$", README, re.MULTILINE)
    commands += re.findall(r"^torchrun .* -m hunterFormsBS (\S+ .*)$", README, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        assert understand(shlex.split(command)).options.output is not None


def options_of(command: str) -> set[str]:
    return set(re.findall(r"--[a-z-]+", Parser(command, load_command(command)).format_help()))


@pytest.mark.parametrize("program", ["msst", "uvr", "demucs", "splifft", "pymss"])
def test_pages_for_people_from_other_programs_name_options_that_exist(program: str) -> None:
    page = (ROOT / "docs" / f"from-{program}.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| [^|\n]+ \| Here \|\n\| ---.*\n((?:\|.*\n)+)", page, re.MULTILINE)
    assert tables != []
    here = "".join(line.rpartition(" | ")[2] for table in tables for line in table.splitlines())
    options = re.findall(r"`(--[a-z-]+)", here)
    assert options != []
    assert set(options) <= options_of("separate") | options_of("combine")
