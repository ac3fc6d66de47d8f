"""Datasets of each type, what segments are made of, and a public configuration of Music-Source-Separation-Training."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from hunterFormsBS.checkpoint import read_configuration
from hunterFormsBS.training.augmentations import Augmentations, MixtureCodec
from hunterFormsBS.training.datasets import KINDS, find_data
from hunterFormsBS.training.sections import settings_from
from hunterFormsBS.training.segments import Segments
from hunterFormsBS.training.settings import Settings
from hunterFormsBS.training.unread import INSTEAD, explain

RATE = 8000
STEMS = ("vocals", "drums")


def write(path: Path, level: int, length: int = 3000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(str(path), np.full((length, 2), level, np.int16), RATE, subtype="PCM_16")


def levels(audio: torch.Tensor) -> list[int]:
    """Return what `write` wrote, of the first sample of each stem."""
    return [int(level) for level in torch.round(audio[..., 0, 0] * 32768).tolist()]


@pytest.fixture
def data(tmp_path: Path) -> dict[int, list[Path]]:
    """Two songs as each type of dataset: vocals of levels 1 and 2, drums of 10 and 20."""
    lines = ["instrum,path"]
    for number, song in ((1, "A"), (2, "B")):
        for name, level in (("vocals", number), ("drums", 10 * number)):
            write(tmp_path / "songs" / song / f"{name}.wav", level)
            write(tmp_path / "stems" / name / f"{song}.flac", level)
            lines.append(f"{name},stems/{name}/{song}.flac")
        write(tmp_path / "songs" / song / "mixture.wav", 100 * number)
    (tmp_path / "tracks.csv").write_text("\n".join(lines))
    songs = [tmp_path / "songs"]
    return {1: songs, 2: [tmp_path / "stems"], 3: [tmp_path / "tracks.csv"], 4: songs, 6: songs}


def segments(kind: int, paths: list[Path], **settings: Any) -> Segments:
    songs = find_data(kind, paths, STEMS, RATE)
    arguments = {"chunk_size": 200, "channels": 2, "seed": 7, "targets": [0, 1], "instruments": STEMS}
    drawn = {"remix": KINDS[kind].remix, "own_mixture": KINDS[kind].own_mixture}
    return Segments(songs, **{**arguments, **drawn, **settings})


@pytest.mark.parametrize("kind", KINDS)
def test_each_type_combines_stems_as_it_says(kind: int, data: dict[int, list[Path]]) -> None:
    reader = segments(kind, data[kind])
    seen = set()
    for index in range(60):
        mixture, stems = reader[index]
        seen.add((*levels(stems), int(levels(mixture[None])[0])))
    aligned = {(1, 10), (2, 20)}
    if kind == 6:
        assert seen == {(1, 10, 100), (2, 20, 200)}
    elif kind == 4:
        assert seen == {(*pair, sum(pair)) for pair in aligned}
    else:
        assert seen == {(*pair, sum(pair)) for pair in {*aligned, (1, 20), (2, 10)}}


@pytest.mark.parametrize("kind", [2, 3])
def test_a_dataset_without_files_for_an_instrument_is_refused(kind: int, data: dict[int, list[Path]]) -> None:
    with pytest.raises(ValueError, match="has no file for bass: add"):
        find_data(kind, data[kind], (*STEMS, "bass"), RATE)
    with pytest.raises(ValueError, match="has 8000 Hz, and the configuration 44100 Hz"):
        find_data(kind, data[kind], STEMS, 44100)


def test_a_list_that_cannot_be_read_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "tracks.csv"
    path.write_text("instrument,path\nvocals,a.wav\n")
    with pytest.raises(ValueError, match="has no column instrum: add a header line"):
        find_data(3, [path], STEMS, RATE)
    path.write_text("instrum,path\nvocals,a.wav\n")
    with pytest.raises(ValueError, match=r"tracks\.csv, line 2: there is no file .*a\.wav: remove the line"):
        find_data(3, [path], STEMS, RATE)


def test_mixup_averages_other_stems_of_the_instrument(data: dict[int, list[Path]]) -> None:
    reader = segments(2, data[2], mixup=(0.5, 1.0))
    vocals = [float(reader[index][1][0, 0, 0]) * 32768 for index in range(300)]
    # Two stems or three, each of level 1 or 2.
    expected = {1, 1.5, 2, 4 / 3, 5 / 3}
    assert {round(each, 3) for each in vocals} == {round(each, 3) for each in expected}
    threes = np.mean([round(each, 3) in (1.333, 1.667) for each in vocals])
    assert threes == pytest.approx(0.5 * 6 / 8, abs=0.1)
    scaled = segments(2, data[2], mixup=(0.5,), mixup_gains=(3.0, 3.0))
    assert min(float(scaled[index][1][0, 0, 0]) * 32768 for index in range(20)) > 2.9


@pytest.mark.parametrize("kind", [1, 4])
def test_effects_are_of_each_stem_and_the_mixture_is_the_sum(kind: int, data: dict[int, list[Path]]) -> None:
    augment = Augmentations({"drums": {"random_polarity": 1.0}}, RATE)
    reader = segments(kind, data[kind], augment=augment)
    for index in range(5):
        mixture, stems = reader[index]
        vocals, drums = levels(stems)
        assert vocals > 0 > drums
        assert levels(mixture[None]) == [vocals + drums]


def test_a_codec_of_the_mixture_leaves_the_stems(data: dict[int, list[Path]]) -> None:
    plain, coded = segments(4, data[4]), segments(4, data[4], mixture_codec=MixtureCodec(1.0, (64, 64), RATE))
    torch.testing.assert_close(coded[0][1], plain[0][1])
    assert not torch.equal(coded[0][0], plain[0][0])


def test_random_lengths_are_the_same_within_a_batch_and_within_bounds(data: dict[int, list[Path]]) -> None:
    reader = segments(4, data[4], lengths=(50, 200), batch=4)
    by_batch = [{reader[index][0].shape[-1] for index in range(start, start + 4)} for start in range(0, 80, 4)]
    assert all(len(lengths) == 1 for lengths in by_batch)
    lengths = {length for each in by_batch for length in each}
    assert len(lengths) > 10
    assert all(50 <= length <= 200 for length in lengths)


def test_everything_of_a_segment_depends_on_its_number_alone(data: dict[int, list[Path]]) -> None:
    augment = Augmentations({"all": {"gaussian_noise": 0.5, "gaussian_noise_min_amplitude": 0.01,
                                     "gaussian_noise_max_amplitude": 0.1, "random_polarity": 0.5}}, RATE)  # fmt: skip
    settings: dict[str, Any] = {"augment": augment, "mixup": (0.5,), "lengths": (50, 200), "gains": (0.5, 1.5)}
    forward = [segments(1, data[1], **settings)[index] for index in range(6)]
    reader = segments(1, data[1], **settings)
    backward = [reader[index] for index in reversed(range(6))][::-1]
    for one, other in zip(forward, backward, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


# ---- configurations

REQUIRED = {
    "audio": {"chunk_size": 4096},
    "training": {"instruments": ["vocals"], "num_steps": 4, "lr": 1.0},
}


def changed(section: str, **values: Any) -> dict[str, Any]:
    return {**REQUIRED, section: {**REQUIRED.get(section, {}), **values}}


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        (changed("training", dataset_type=5), "dataset_type=5 is not read: take 4 for 5"),
        (changed("training", scheduler="step"), "scheduler='step' is unknown: choose one of cosine"),
        (changed("losses", l3_loss=1), "losses has 'l3_loss', which is unknown"),
        (changed("losses", l1_loss="much"), "must be a section with a number for each name"),
        (changed("training", gradient_accumulation_steps=5), "there would be no update"),
        (changed("validation", metrics=["sdr", "snr"]), "metrics has 'snr', which is unknown"),
        (changed("validation", metric_for_best="si_sdr"), "metric_for_best='si_sdr' is none of metrics"),
        (changed("augmentations", all={"echo": 1}), "augmentations.all has 'echo'"),
        (changed("augmentations", chunk_size_augm=True, chunk_size_min=9, chunk_size_max=5000), "chunk_size_max=5000"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(configuration: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_from(configuration)


def test_what_is_not_read_is_named_with_what_to_do_instead() -> None:
    assert explain({"audio.dim_t": 256, "training.augmentation_mix": True, "training.other_fix": False}) == {}
    assert explain({"inference.normalize": True, "lora.r": 8, "lora.enable_lora": [True], "training.foo": False}) == {
        "inference.normalize": INSTEAD["inference.normalize"],
        "lora": INSTEAD["lora"],
        "training.foo": "it is unknown: see docs/training.md",
    }


PUBLIC = Path(__file__).resolve().parents[2] / "shared" / "configs_public"
PUBLIC = PUBLIC if PUBLIC.is_dir() else PUBLIC.parent.parent.parent / "shared" / "configs_public"
needs_public = pytest.mark.skipif(not PUBLIC.is_dir(), reason="public configurations are not part of the repository")


def said_about(name: str) -> tuple[Settings | None, list[str]]:
    """Return the settings of a public configuration, if it is one for training, and what was said about it."""
    configuration = read_configuration(PUBLIC / name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Those of pure inference programs have no learning rate.
        settings = settings_from(configuration) if "lr" in configuration.get("training", {}) else None
    return settings, [str(each.message) for each in caught]


@needs_public
@pytest.mark.parametrize("name", [path.name for path in sorted(PUBLIC.glob("*.yaml"))])
def test_every_line_about_a_public_configuration_says_what_to_do(name: str) -> None:
    settings, lines = said_about(name)
    assert all(" has no effect here: " in line and "it is unknown" not in line for line in lines)
    assert settings is None or settings.schedule == "ReduceLROnPlateau"


@needs_public
@pytest.mark.parametrize(("name", "named"), [("bs_roformer_with_lora", ["lora"]), ("mel_band_roformer_all_stems", [])])
def test_all_that_matters_of_public_configurations_with_augmentations_is_read(name: str, named: list[str]) -> None:
    settings, lines = said_about(f"ZFTurbo_Music-Source-Separation-Training__config_musdb18_{name}.yaml")
    assert [line.partition(" has no effect")[0] for line in lines] == named
    assert settings is not None
    assert settings.augment() is not None
    assert settings.mixup_probs == (0.2, 0.02)
