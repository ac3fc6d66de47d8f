"""What is true of a song is the same for training, validation and scoring, whatever lies in its folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import save_checkpoint
from hunterFormsBS.program.dispatch import main
from hunterFormsBS.training.checking import check_songs
from hunterFormsBS.training.datasets import find_data
from hunterFormsBS.training.segments import Segments
from hunterFormsBS.training.trainer import train
from hunterFormsBS.training.truth import explain_sums, find_songs, read_song
from tests.models import TINY

RATE = 8000
LENGTH = 400


def song(folder: Path, *names: str) -> Path:
    """Write a song whose files are constant: each has twice the level of the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        file = name if "." in name else f"{name}.wav"
        soundfile.write(str(folder / file), np.full((LENGTH, 2), 2**number, np.int16), RATE, subtype="PCM_16")
    return folder.parent


FOUR = ("vocals", "drums", "bass", "other")

CASES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], str | None, list[set[str]], list[str]]] = {
    # instruments, files, target; files of each instrument, lines that are printed
    "four stems": (FOUR, FOUR, None, [{each} for each in FOUR], []),
    "the rest": (
        ("vocals", "other"),
        ("vocals", "bass", "guitar", "piano"),
        None,
        [{"vocals"}, {"bass", "guitar", "piano"}],
        ["other = bass + guitar + piano"],
    ),
    "only in the mixture": (
        ("vocals", "drums"),
        FOUR,
        None,
        [{"vocals"}, {"drums"}, {"bass", "other"}],
        ["only in the mixture = bass + other"],
    ),
    "mixture with a capital": (FOUR, (*FOUR, "Mixture"), None, [{each} for each in FOUR], []),
    "mix": (FOUR, (*FOUR, "Full Mix"), None, [{each} for each in FOUR], ["left out, being in … : Full Mix.wav"]),
    "instrumental": (
        FOUR,
        (*FOUR, "instrumental", "mixture"),
        None,
        [{each} for each in FOUR],
        ["left out, being in … : instrumental.wav"],
    ),
    "no_vocals": (
        FOUR,
        (*FOUR, "no_vocals"),
        None,
        [{each} for each in FOUR],
        ["left out, being in … : no_vocals.wav"],
    ),
    "an instrumental alone": (
        ("vocals", "other"),
        ("vocals", "instrumental"),
        None,
        [{"vocals"}, {"instrumental"}],
        ["other = instrumental"],
    ),
    "an instrumental that is asked for": (
        ("vocals", "instrumental"),
        (*FOUR, "instrumental"),
        None,
        [{"vocals"}, {"instrumental"}],
        [f"left out, being in … : {each}.wav" for each in ("bass", "drums", "other")],
    ),
    "capitals": (("vocals", "Drums"), ("Vocals", "DRUMS.flac"), None, [{"Vocals"}, {"DRUMS"}], []),
    "what is hidden": (
        ("vocals", "other"),
        ("vocals", "other", "._vocals.wav", "._guitar.wav"),
        None,
        [{"vocals"}, {"other"}],
        [],
    ),
    "a target": (
        ("vocals", "other"),
        ("vocals", "bass", "drums"),
        "other",
        [{"vocals"}, {"bass", "drums"}],
        ["other = bass + drums"],
    ),
    "a target without the others": (FOUR, ("vocals", "mixture"), "vocals", [{"vocals"}, set(), set(), set()], []),
    "other without vocals": (("vocals", "other"), ("other",), "other", [set(), {"other"}], []),
}


@pytest.mark.parametrize("case", CASES)
def test_files_belong_to_stems_by_their_names(case: str, tmp_path: Path) -> None:
    instruments, files, target, parts, lines = CASES[case]
    folder = song(tmp_path / "songs" / "A", *files)
    song(folder / ".ipynb_checkpoints", "vocals")
    song(folder / "__MACOSX", "vocals")
    (found,) = find_songs(folder, instruments, RATE, target=target)
    assert [{path.stem for path in part} for part in found.parts] == parts
    printed = explain_sums([found], instruments)
    assert printed == [line.replace("… ", "other files by their names") for line in lines]
    assert (found.mixture is not None) == any(name.casefold() == "mixture" for name in files)


@pytest.mark.parametrize(
    ("instruments", "files", "message"),
    [
        (("other",), ("vocals", "other"), r"truth of other would be the whole mixture, other\.wav \+ vocals\.wav"),
        (("instrumental",), ("bass", "drums"), "truth of instrumental would be the whole mixture"),
        (("vocals",), ("vocals.wav", "vocals.flac"), r"two files for vocals, vocals\.flac and vocals\.wav: remove one"),
        (("vocals",), ("vocals", "mixture.wav", "Mixture.flac"), "two files for mixture"),
        (
            ("vocals", "drums", "other"),
            ("vocals", "drums", "instrumental"),
            r"no file other\.wav: its stems are drums, vocals; instrumental\.wav is taken to be in other files already",
        ),
    ],
)
def test_a_truth_that_would_be_wrong_is_refused(
    instruments: tuple[str, ...], files: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        find_songs(song(tmp_path / "songs" / "A", *files), instruments, RATE)


def test_songs_that_are_made_up_in_several_ways_are_counted(tmp_path: Path) -> None:
    for name, more in (("A", ("bass",)), ("B", ("bass",)), ("C", ("piano",)), ("D", ("other",))):
        folder = song(tmp_path / "songs" / name, "vocals", "other", *more)
    lines = explain_sums(find_songs(folder, ("vocals", "other"), RATE), ("vocals", "other"))
    assert lines == ["other = other + bass in 2 of 4 songs", "other = other + piano in 1 of 4 songs"]


def noise(seed: int, seconds: float = 1.0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal((round(RATE * seconds), 2))


DRUMS, BASS, KEYS = noise(1), noise(2), noise(3)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"drums": DRUMS, "bass": BASS, "keys": KEYS}, ""),
        ({"drums": DRUMS, "bass": BASS, "band": DRUMS + BASS}, r"band\.wav is the same as bass\.wav \+ drums\.wav: "),
        (
            {"drums": DRUMS, "bass": BASS, "keys": KEYS, "a": BASS + KEYS + DRUMS},
            r"a\.wav is the same as bass\.wav \+ ",
        ),
        ({"drums": DRUMS, "copy": DRUMS}, r"copy\.wav is the same as drums\.wav: "),
        ({"drums": DRUMS, "bass": BASS, "copy": DRUMS + 0.05 * KEYS}, r"copy\.wav is the same as drums\.wav: "),
        (
            {"drums": DRUMS, "bass": BASS, "wet": DRUMS + 0.2 * KEYS},
            r"wet\.wav but for 1[34]\.\d dB|but for 1[34]\.\d dB",
        ),
        ({"drums": DRUMS, "bass": BASS, "louder": 2 * DRUMS}, ""),
        ({"drums": DRUMS, "silence": 0 * DRUMS, "also": 0 * DRUMS}, ""),
    ],
    ids=["three stems", "a sum of two", "a sum of all", "a copy", "nearly a copy", "a relative", "louder", "silence"],
)
def test_what_is_heard_in_two_files_is_found_by_the_audio(
    files: Mapping[str, np.ndarray], found: str, tmp_path: Path
) -> None:
    folder = tmp_path / "songs" / "A"
    folder.mkdir(parents=True)
    for name, samples in {"vocals": noise(9), **files}.items():
        soundfile.write(str(folder / f"{name}.wav"), samples, RATE, subtype="FLOAT")
    songs = find_songs(tmp_path / "songs", ("vocals", "other"), RATE) if "drums" in files else []
    remarks, damages = check_songs(songs, RATE)
    heard = [line for line in (*remarks, *damages) if "is the same as" in line]
    assert len(heard) == bool(found)
    assert not found or re.search(found, heard[0])
    assert (heard == damages) == ("but for" not in found)


def test_a_song_with_its_own_mixture_is_scaled_as_a_whole(tmp_path: Path) -> None:
    folder = song(tmp_path / "songs" / "A", "vocals", "drums", "mixture")
    reader = Segments(
        find_data(6, [folder], ("vocals", "drums"), RATE),
        chunk_size=100,
        channels=2,
        seed=1,
        targets=[0, 1],
        own_mixture=True,
        gains=(0.5, 1.5),
    )
    factors = set()
    for index in range(10):
        mixture, stems = reader[index]
        levels = [float(audio[0, 0]) * 32768 for audio in (*stems, mixture)]
        factors.add(round(levels[0], 6))
        assert levels == pytest.approx([levels[0], 2 * levels[0], 4 * levels[0]])
    assert len(factors) == 10
    assert all(0.5 <= factor <= 1.5 for factor in factors)


# ---- scoring


def score(folder: Path, checkpoint: Path, *arguments: object) -> int:
    command = ["--checkpoint", checkpoint, "--songs", folder, "--sample-rate", RATE, "--chunk-size", 200]
    return main(["validate", *map(str, (*command, *arguments)), "--accelerator", "cpu"])


@pytest.fixture
def of_one_stem(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint of a model of one stem, whose configuration says this of training."""

    def write(**training: object) -> Path:
        path = tmp_path / "model.ckpt"
        model = BandSplitRotator(**TINY | {"stereo": True, "num_stems": 1})
        save_checkpoint(path, model, configuration={"training": training})
        return path

    return write


@pytest.mark.parametrize("stated", [(), ("--stems", "other")], ids=["the target", "--stems"])
def test_the_truth_of_one_stem_is_scored_as_it_is_trained(
    stated: Sequence[str],
    of_one_stem: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = song(tmp_path / "songs" / "A", "vocals", "drums", "bass", "other")
    truths: list[list[float]] = []

    def measured(_names: object, _estimates: object, truth: np.ndarray, *_rest: object) -> list[dict[str, float]]:
        truths.append([round(float(stem[0, 0]) * 32768) for stem in truth])
        return [{"sdr": 1.0}]

    monkeypatch.setattr("hunterFormsBS.training.validation.measure", measured)
    checkpoint = of_one_stem(instruments=["vocals", "other"], target_instrument="other")
    assert score(folder, checkpoint, *stated) == 0
    trained = read_song(find_songs(folder, ("vocals", "other"), RATE)[0], [1], 2)[1]
    assert truths == [[2 + 4 + 8]] == [[round(float(trained[0, 0, 0]) * 32768)]]
    assert capsys.readouterr().out.startswith("other = other + bass + drums\n")


def test_other_alone_cannot_be_scored(
    of_one_stem: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = song(tmp_path / "songs" / "A", "vocals", "other")
    assert score(folder, of_one_stem(instruments=["other"]), "--stems", "other") == 1
    assert re.fullmatch(r"\S+: error: .* the truth of other would be the whole mixture, .*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--num-overlap", 0), "num_overlap=0 must be at least 1"),
        (("--chunk-size", 0), "chunk_size=0 must be at least"),
    ],
)
def test_zero_is_not_taken_for_unstated(
    option: tuple[str, int],
    message: str,
    of_one_stem: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = song(tmp_path / "songs" / "A", "vocals")
    assert score(folder, of_one_stem(instruments=["vocals"]), *option) == 1
    assert message in capsys.readouterr().err


# ---- songs to validate on

CONFIGURATION = """
upstream: hunterFormsBS
audio: {{chunk_size: 200, sample_rate: {rate}}}
model: {{dim: 8, depth: 1}}
training: {{instruments: [vocals, drums], num_steps: 1, lr: 0.1{more}}}
"""


@pytest.mark.parametrize(
    ("more", "valid", "message"),
    [
        ("", "typo", "--valid .*typo is not a folder"),
        (", patience: 2", None, "ReduceLROnPlateau lowers the learning rate after validations, and there are no songs"),
    ],
)
def test_a_run_that_would_validate_on_nothing_is_refused(
    more: str, valid: str | None, message: str, tmp_path: Path
) -> None:
    folder = song(tmp_path / "songs" / "A", "vocals", "drums")
    path = tmp_path / "train.yaml"
    path.write_text(CONFIGURATION.format(rate=RATE, more=more))
    with pytest.raises(ValueError, match=message):
        train(path, tmp_path / "run", data=[folder], valid=None if valid is None else tmp_path / valid)
    assert not (tmp_path / "run").exists()
