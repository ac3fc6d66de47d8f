"""Many songs, with small models of this package: what the command line promises around a separation."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mutagen
import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.__main__ import main
from hunterFormsBS.catalogue import Preset
from hunterFormsBS.checkpoint import CheckpointError, from_checkpoint, save_checkpoint
from hunterFormsBS.checkpoint.facts import entries, presets
from hunterFormsBS.ensemble import ENSEMBLES, combine
from hunterFormsBS.program.commands import separate as command
from hunterFormsBS.separation import separate
from hunterFormsBS.songs import batch, plan, progress
from hunterFormsBS.songs.levels import loudness, sounding_parts
from hunterFormsBS.songs.reading import probe_audio, read_audio
from tests.models import STEREO, STEREO_AT

RATE = 8000
SIZES = {"chunk_size": 2000, "num_overlap": 2}

# The program's warnings are its messages, not those of the tests.
pytestmark = pytest.mark.filterwarnings("default::UserWarning", "default::RuntimeWarning")


def write_model(path: Path, names: Sequence[str], seed: int = 0, *, named: bool = True) -> None:
    torch.manual_seed(seed)
    model = BandSplitRotator(**STEREO | {"num_stems": len(names)})
    training = {"training": {"instruments": list(names)}} if named else {}
    save_checkpoint(path, model, configuration=STEREO_AT | training)


def write_song(path: Path, length: int = 5001, *, level: float = 0.5, channels: int = 2, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(length).uniform(-level, level, (length, channels))
    soundfile.write(path, samples, rate, subtype="FLOAT" if path.suffix == ".wav" else None)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with small checkpoints."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "model.ckpt", ["voice", "band"])
    write_model(folder / "other.ckpt", ["band", "voice"], seed=1)
    write_model(folder / "solo.ckpt", ["voice"], seed=2)
    write_model(folder / "nameless.ckpt", ["voice", "band"], named=False)
    return folder


@pytest.fixture
def run(models: Path, tmp_path: Path) -> Callable[..., int]:
    """Return a function that runs the program with a model, into the folder `out`."""

    def run_program(*arguments: object, model: str = "model") -> int:
        fixed = ["--checkpoint", models / f"{model}.ckpt", "--output", tmp_path / "out"]
        return main([str(argument) for argument in [*arguments, *fixed]])

    return run_program


def written(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# What is printed -----------------------------------------------------------------------------------------------------


def test_a_record_for_each_song_says_what_became_of_it(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, cut, text = write_song(tmp_path / "good.wav"), write_song(tmp_path / "cut.wav"), tmp_path / "text.wav"
    cut.write_bytes(cut.read_bytes()[:20000])
    text.write_text("Dear diary")
    assert run(good, cut, text, "--json") == 1
    failed, separated, shortened = records(capsys.readouterr().out)
    assert (failed["song"], failed["status"], failed["outputs"]) == (str(text), "failed", {})
    assert "is not audio" in failed["error"]
    assert separated["outputs"] == {name: str(tmp_path / f"out/good/{name}.wav") for name in ("voice", "band")}
    assert (separated["status"], separated["warnings"], separated["error"]) == ("separated", [], None)
    assert separated["duration"] == pytest.approx(5001 / RATE)
    assert separated["seconds"] > 0
    assert "cut.wav ends after" in shortened["warnings"][0]
    assert run(good, cut, "--json", "--skip-existing") == 0
    assert [record["status"] for record in records(capsys.readouterr().out)] == ["skipped", "skipped"]


def test_what_a_checkpoint_is_can_be_read_by_people_and_programs(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--info", str(models / "model.ckpt")]) == 0
    text = capsys.readouterr().out
    assert "stems: voice, band\n" in text
    assert "sample_rate: 8000\n" in text
    assert "  stft_hop_length: 16\n" in text
    assert main(["--info", str(models / "nameless.ckpt"), "--json"]) == 0
    (record,) = records(capsys.readouterr().out)
    assert record["stems"] == ["stem_1", "stem_2"]
    assert record["arguments"]["num_stems"] == 2
    model = from_checkpoint(models / "nameless.ckpt")
    assert record["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    with pytest.raises(SystemExit, match="2"):
        main(["--info", str(models / "model.ckpt"), "song.wav"])


def test_what_nothing_determines_is_said_with_the_information(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(from_checkpoint(models / "model.ckpt").state_dict(), tmp_path / "bare.ckpt")
    assert main(["--info", str(tmp_path / "bare.ckpt"), "--json"]) == 0
    (record,) = records(capsys.readouterr().out)
    assert any("stft_hop_length" in warning for warning in record["warnings"])
    assert record["chunk_size"] is None


def test_a_line_of_progress_comes_now_and_then_where_there_is_no_terminal(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    song = write_song(tmp_path / "a.wav")
    assert run(song) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    assert run(song, "--overwrite") == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert re.fullmatch(rf"hunterFormsBS: {song}: 5 of 5 chunks, about 0 s left", lines[-1])
    assert run(song, "--overwrite", "--quiet") == 0
    assert capsys.readouterr().err == ""


# What is written -----------------------------------------------------------------------------------------------------


def test_names_follow_the_template_and_the_residual_its_own_name(run: Callable[..., int], tmp_path: Path) -> None:
    write_song(tmp_path / "cd" / "1" / "a.wav")
    template = "{model}/{number} {song} - {stem}"
    assert run(tmp_path / "cd", "--residual", "rest", "--name-template", template) == 0
    assert written(tmp_path / "out") == [f"1/model/{name}.wav" for name in ("1 a - voice", "2 a - band", "3 a - rest")]


def test_a_template_that_makes_two_songs_one_file_is_refused(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    songs = [write_song(tmp_path / name) for name in ("a.wav", "b.wav")]
    with pytest.raises(SystemExit, match="2"):
        run(*songs, "--name-template", "{stem}")
    assert "would both be written to" in capsys.readouterr().err
    assert run(songs[0], "--name-template", "{stem}") == 0
    assert written(tmp_path / "out") == ["band.wav", "voice.wav"]


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_all_stems_of_a_song_are_lowered_by_one_factor_where_asked(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    song = write_song(tmp_path / "a.wav", level=3.0)
    assert run(song, "--residual", "--bit-depth", 24, "--format", kind, "--clip", "scale", "--json") == 0
    (record,) = records(capsys.readouterr().out)
    stems = torch.stack([read_audio(Path(path))[0] for path in record["outputs"].values()])
    assert len(stems) == 3
    assert 0.999 < float(stems.abs().max()) <= 1
    assert record["factor"] < 0.5
    mixture, _ = read_audio(song)
    torch.testing.assert_close(stems.sum(0), mixture * record["factor"], rtol=0, atol=1e-6)
    assert record["warnings"] == []
    assert len(written(tmp_path / "out")) == 3


@pytest.mark.parametrize("arguments", [("--clip", "scale"), ("--bit-depth", 24, "--clip", "scale")])
def test_what_fits_is_not_scaled(run: Callable[..., int], tmp_path: Path, arguments: tuple[object, ...]) -> None:
    song = write_song(tmp_path / "a.wav", level=0.01)
    assert run(song, "--residual", *arguments) == 0
    parts = [read_audio(tmp_path / "out" / "a" / f"{name}.wav")[0] for name in ("voice", "band", "residual")]
    torch.testing.assert_close(sum(parts), read_audio(song)[0], rtol=0, atol=1e-6)


def test_tags_go_with_the_stems(run: Callable[..., int], tmp_path: Path) -> None:
    song = write_song(tmp_path / "a.flac")
    tags = mutagen.File(song)
    tags["title"], tags["artist"] = "A Song", ["One", "Two"]
    tags.save()
    assert run(song, "--residual", "--format", "mp3") == 0
    for name in ("voice", "band", "residual"):
        frames = mutagen.File(tmp_path / "out" / "a" / f"{name}.mp3").tags
        assert (frames["TIT2"].text, frames["TPE1"].text) == (["A Song"], ["One", "Two"])


@pytest.mark.parametrize(
    ("names", "folders", "said"),
    [
        (("a.wav", "a.flac", "b.wav"), {"a.wav", "a.flac", "b"}, "a.flac, .*a.wav"),
        (("A.wav", "a.mp3"), {"A.wav", "a.mp3"}, "A.wav, .*a.mp3"),
        (("a.wav", "a.flac", "a.flac.wav"), {"a.wav", "a.flac", "a.flac.wav"}, "a.flac.wav"),
        (("1/a.wav", "2/a.wav"), {"1/a", "2/a"}, ""),
    ],
)
def test_songs_that_would_be_one_are_named_with_their_suffixes(
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    names: Sequence[str],
    folders: set[str],
    said: str,
) -> None:
    for name in names:
        write_song(tmp_path / "in" / name)
    assert run(tmp_path / "in", "--stems", "voice") == 0
    assert {path.removesuffix("/voice.wav") for path in written(tmp_path / "out")} == folders
    lines = [line for line in capsys.readouterr().err.splitlines() if "to tell songs apart" in line]
    assert len(lines) == bool(said)
    assert not said or re.search(said, lines[0])
    assert run(tmp_path / "in", "--stems", "voice", "--skip-existing", "--json") == 0
    assert {record["status"] for record in records(capsys.readouterr().out)} == {"skipped"}


def test_templates_have_the_fields_of_msst_and_those_of_files(run: Callable[..., int], tmp_path: Path) -> None:
    write_song(tmp_path / "cd" / "1" / "a.flac")
    for template, name in (
        ("{dir_name}/{file_name}/{instr}", "1/a/voice.wav"),
        ("x/{dir_name}/{source} {stem}", "x/1/a.flac voice.wav"),
        ("{dir} {song}.{ext_source}.{model_type}", "1/1 a.flac.bs_roformer.wav"),
    ):
        assert run(tmp_path / "cd", "--stems", "voice", "--name-template", template) == 0
        assert (tmp_path / "out" / name).exists()
    before = int(time.time())
    assert run(tmp_path / "cd" / "1" / "a.flac", "--stems", "voice", "--name-template", "{dir_name}/{start_time}") == 0
    (name,) = {path for path in written(tmp_path / "out") if "/" not in path}
    assert before <= int(name.removesuffix(".wav")) <= int(time.time())


@pytest.mark.parametrize(
    ("arguments", "name", "without"),
    [
        (("--also-rest",), "no_voice", (0,)),
        (("--also-rest", "Band", "--residual"), "no_band", (1,)),
        (("--also-rest", "voice", "--stems", "band,voice"), "no_voice", (1,)),
        (("--also-rest", "--stems", "band"), "no_band", (0,)),
    ],
)
def test_the_mixture_without_one_stem_is_written_as_well(
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    name: str,
    without: tuple[int, ...],
) -> None:
    song = write_song(tmp_path / "a.wav")
    assert run(song, *arguments, "--json") == 0
    (record,) = records(capsys.readouterr().out)
    files = {stem: read_audio(Path(path))[0] for stem, path in record["outputs"].items()}
    assert name in files
    mixture = read_audio(song)[0]
    expected = mixture - sum(list(files.values())[number] for number in without)
    torch.testing.assert_close(files[name], expected, rtol=0, atol=1e-6)


def test_a_model_with_vocals_has_an_instrumental(run: Callable[..., int], models: Path, tmp_path: Path) -> None:
    write_model(models / "vocal.ckpt", ["bass", "Vocals"])
    assert run(write_song(tmp_path / "a.wav"), "--also-rest", model="vocal") == 0
    assert written(tmp_path / "out") == [f"a/{name}.wav" for name in ("Vocals", "bass", "instrumental")]


@pytest.mark.parametrize(("wanted", "unit"), [("peak=-3", "peak"), ("lufs=-23", "lufs")])
def test_all_stems_get_one_level_and_the_record_has_the_factor(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], wanted: str, unit: str
) -> None:
    song = write_song(tmp_path / "a.wav", 30_000)
    assert run(song, "--residual", "--normalize", wanted, "--json") == 0
    (record,) = records(capsys.readouterr().out)
    stems = torch.stack([read_audio(Path(path))[0] for path in record["outputs"].values()])
    mixture, _ = read_audio(song)
    torch.testing.assert_close(stems.sum(0), mixture * record["factor"], rtol=0, atol=1e-5)
    if unit == "peak":
        assert float(stems.abs().max()) == pytest.approx(10 ** (-3 / 20), rel=1e-5)
    else:
        assert max(loudness([stem], RATE, 2) for stem in stems) == pytest.approx(-23, abs=0.1)


def test_records_say_where_each_stem_sounds_in_the_song(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    song = tmp_path / "a.wav"
    samples = np.zeros((6 * RATE, 2), dtype=np.float32)
    samples[2 * RATE : 4 * RATE] = np.random.default_rng(0).uniform(-0.5, 0.5, (2 * RATE, 2))
    soundfile.write(song, samples, RATE, subtype="FLOAT")
    assert run(song, "--residual", "--json", "--start", 1, "--activity", -40) == 0
    (record,) = records(capsys.readouterr().out)
    assert set(record["activity"]) == {"voice", "band", "residual"}
    for stem, parts in record["activity"].items():
        audio, _ = read_audio(Path(record["outputs"][stem]))
        expected = [(start + 1, end + 1, level) for start, end, level in sounding_parts([audio], RATE, -40.0)]
        assert [tuple(part) for part in parts] == [pytest.approx(part) for part in expected]
    ((start, end, _level),) = record["activity"]["residual"]
    assert (start, end) == (pytest.approx(2, abs=0.11), pytest.approx(4, abs=0.11))


def test_pictures_appear_with_the_stems(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    song = write_song(tmp_path / "a.wav", 20_000)
    assert run(song, "--spectrograms", "--format", "flac", "--json") == 0
    (record,) = records(capsys.readouterr().out)
    assert record["pictures"] == {name: str(tmp_path / f"out/a/{name}.png") for name in ("voice", "band")}
    for name in ("voice", "band"):
        assert (tmp_path / "out" / "a" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "out" / "a" / "band.png").unlink()
    assert run(song, "--spectrograms", "--format", "flac", "--skip-existing") == 0
    assert len(written(tmp_path / "out")) == 4


@pytest.mark.parametrize("arguments", [(), ("--bit-depth", 16), ("--residual", "rest"), ("--normalize", "peak=-1")])
def test_a_song_becomes_one_file_for_dj_programs(
    run: Callable[..., int],
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
) -> None:
    song = write_song(tmp_path / "a.flac", 40_000)
    tags = mutagen.File(song)
    tags["title"] = "A Song"
    tags.save()
    assert run(song, "--format", "stem.mp4", *arguments, "--json") == 0
    (record,) = records(capsys.readouterr().out)
    path = tmp_path / "out" / "a.stem.mp4"
    assert set(record["outputs"].values()) == {str(path)}
    assert [*record["outputs"]] == ["mixture", "voice", "band", *(["rest"] if "--residual" in arguments else [])]
    assert written(tmp_path / "out") == ["a.stem.mp4"]
    assert mutagen.File(path)["\xa9nam"] == ["A Song"]
    assert b'{"name": "voice", "color": "#' in path.read_bytes()
    if "--bit-depth" in arguments:
        tracks = [torch.cat(list(probe_audio(path, stream=n).blocks()), dim=-1) for n in (1, 2, 3)]
        torch.testing.assert_close(tracks[0], read_audio(song)[0], rtol=0, atol=2**-15)
        stems = separate(from_checkpoint(models / "model.ckpt"), read_audio(song)[0], **SIZES)  # type: ignore[arg-type]
        torch.testing.assert_close(torch.stack(tracks[1:]), stems, rtol=0, atol=2**-14)
    assert run(song, "--format", "stem.mp4", "--skip-existing", "--json") == 0
    assert records(capsys.readouterr().out)[0]["status"] == "skipped"


# What is read --------------------------------------------------------------------------------------------------------


def test_a_song_can_come_from_standard_input(models: Path, tmp_path: Path) -> None:
    song = write_song(tmp_path / "a.flac")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "hunterFormsBS",
            "-",
            "--checkpoint",
            models / "model.ckpt",
            "--output",
            tmp_path / "out",
        ],
        input=song.read_bytes(),
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert written(tmp_path / "out") == ["stdin/band.wav", "stdin/voice.wav"]
    stems = torch.stack([read_audio(tmp_path / "out" / "stdin" / f"{name}.wav")[0] for name in ("voice", "band")])
    expected = separate(from_checkpoint(models / "model.ckpt"), read_audio(song)[0], chunk_size=2000)
    torch.testing.assert_close(stems, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("channels", "arguments", "status"), [(6, ("--downmix",), 0), (6, (), 1), (2, ("--downmix",), 0)]
)
def test_surround_is_mixed_down_when_asked(
    run: Callable[..., int], tmp_path: Path, channels: int, arguments: tuple[str, ...], status: int
) -> None:
    song = write_song(tmp_path / "a.wav", channels=channels)
    assert run(song, *arguments) == status
    if status == 0:
        assert soundfile.info(tmp_path / "out" / "a" / "voice.wav").channels == 2


# Several models ------------------------------------------------------------------------------------------------------


def estimates(models: Path, song: Tensor, name: str, order: Sequence[int]) -> Tensor:
    return separate(from_checkpoint(models / f"{name}.ckpt"), song, **SIZES)[list(order)]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ENSEMBLES)
def test_an_ensemble_combines_stems_of_the_same_names(
    run: Callable[..., int], models: Path, tmp_path: Path, kind: Any
) -> None:
    song = write_song(tmp_path / "a.wav", 9001)
    assert run(song, "--checkpoint", models / "other.ckpt", "--ensemble", kind, "--residual") == 0
    got = torch.stack([read_audio(tmp_path / "out" / "a" / f"{name}.wav")[0] for name in ("band", "voice")])
    mixture, _ = read_audio(song)
    parts = [estimates(models, mixture, "other", (0, 1)), estimates(models, mixture, "model", (1, 0))]
    torch.testing.assert_close(got, combine(parts, kind), rtol=0, atol=2e-6)
    rest, _ = read_audio(tmp_path / "out" / "a" / "residual.wav")
    torch.testing.assert_close(got.sum(0) + rest, mixture, rtol=0, atol=1e-6)


def test_weights_belong_to_the_checkpoints_in_their_order(
    run: Callable[..., int], models: Path, tmp_path: Path
) -> None:
    song = write_song(tmp_path / "a.wav", rate=11025)
    assert run(song, "--checkpoint", models / "other.ckpt", "--weights", "3,1", "--stems", "voice") == 0
    got, _ = read_audio(tmp_path / "out" / "a" / "voice.wav")
    assert run(song, "--stems", "voice", "--overwrite") == 0
    model, _ = read_audio(tmp_path / "out" / "a" / "voice.wav")
    assert run(song, "--stems", "voice", "--overwrite", model="other") == 0
    other, _ = read_audio(tmp_path / "out" / "a" / "voice.wav")
    torch.testing.assert_close(got, 0.75 * other + 0.25 * model, rtol=0, atol=1e-6)


def test_a_preset_separates_as_its_checkpoints_do(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    song = write_song(tmp_path / "a.wav", rate=11025)
    files = [str(models / f"{name}.ckpt") for name in ("model", "solo")]
    preset = Preset("mine", "uvr_max_spec", tuple(files), ("voice",), "nobody")
    monkeypatch.setattr(command, "presets", lambda: {"mine": preset})
    assert main([str(song), "--preset", "mine", "--output", str(tmp_path / "one")]) == 0
    by_hand = ["--checkpoint", files[0], "--checkpoint", files[1], "--ensemble", "uvr_max_spec", "--stems", "voice"]
    assert main([str(song), *by_hand, "--output", str(tmp_path / "two")]) == 0
    assert [path.name for path in (tmp_path / "one" / "a").iterdir()] == ["voice.wav"]
    one, two = (read_audio(tmp_path / folder / "a" / "voice.wav")[0] for folder in ("one", "two"))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert one.abs().max() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--checkpoint", "solo"), "different stems (voice; voice, band): choose with --stems voice"),
        (("--checkpoint", "other", "--weights", "1"), "1 --weights for 2 --checkpoint"),
        (("--checkpoint", "other", "--weights", "1,1", "--ensemble", "max_fft"), "--ensemble max_fft has no --weights"),
        (("--ensemble", "max_fft"), "are for several"),
        (("--checkpoint", "nameless"), "different stems (stems without names; voice, band)"),
        (("--checkpoint", "other", *(["--configuration", "a.yaml"] * 3)), "2 --checkpoint and 3 --configuration"),
        (("--checkpoint", "other", "--lora", "x"), "--lora is for one --checkpoint"),
        (("--chunk-size", "63"), "--chunk-size 63 is less than one window of the model's transform, 64 samples"),
        (("--num-overlap", "2001"), "--num-overlap 2001 is more than the 2000 samples of a chunk"),
        (("--residual", "Voice"), "--residual Voice would overwrite the stem"),
        (("--audio-stream", "0"), "must be an integer from 1 to"),
        (("--also-rest", "drums"), "--also-rest drums: this is not among the stems, voice, band"),
        (("--also-rest", "--residual", "no_voice"), "--residual no_voice and --also-rest would be written as one file"),
        (("--format", "stem.mp4", "--name-template", "{song}-{stem}"), "leave {stem} and {number} out"),
        (("--format", "stem.mp4", "--residual", "mixture"), "--residual mixture"),
        (("--format", "stem.mp4", "--spectrograms"), "is one file for all of them"),
        (("--normalize", "peak"), "must be a number from -70 to 0"),
        (("--normalize", "rms=-3"), "must be peak=DB or lufs=LUFS"),
        (("--format", "mp3", "--quality", "321k"), "has no --quality 321k"),
        (("--format", "mp3", "--sample-rate", "96000"), "mp3 has no --sample-rate 96000: use 48000"),
    ],
)
def test_options_that_cannot_work_together_are_status_2_before_a_model_is_loaded(
    run: Callable[..., int],
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr(plan, "from_checkpoint", None)
    song = write_song(tmp_path / "a.wav")
    known = [models / f"{one}.ckpt" if one in ("solo", "other", "nameless") else one for one in arguments]
    with pytest.raises(SystemExit, match="2"):
        run(song, *known)
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_chunks_shorter_than_in_training_are_warned_about(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write_song(tmp_path / "a.wav"), "--chunk-size", 1000) == 0
    assert "warning: --chunk-size 1000 is less than the 2000 samples" in capsys.readouterr().err


def test_adapters_are_merged_before_the_separation(run: Callable[..., int], models: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = from_checkpoint(models / "model.ckpt")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["to_qkv"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    adapted.save_pretrained(str(tmp_path / "adapters"))
    song = write_song(tmp_path / "a.wav")
    expected = separate(adapted.merge_and_unload().eval(), read_audio(song)[0], **SIZES)[1]  # type: ignore[arg-type]
    assert run(song, "--lora", tmp_path / "adapters", "--stems", "band") == 0
    got, _ = read_audio(tmp_path / "out" / "a" / "band.wav")
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert written(tmp_path / "out") == ["a/band.wav"]
    # Of a run with other heads: the checkpoint's second one under another name, and that alone.
    configuration = tmp_path / "adapters" / "adapter_config.json"
    configuration.write_text(json.dumps({**json.loads(configuration.read_text()), "stem_heads": {"choir": 1}}))
    assert run(song, "--lora", tmp_path / "adapters") == 0
    torch.testing.assert_close(read_audio(tmp_path / "out" / "a" / "choir.wav")[0], expected, rtol=0, atol=1e-6)
    assert written(tmp_path / "out") == ["a/band.wav", "a/choir.wav"]


def test_a_folder_without_adapters_is_one_line(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(plan.Source, "load")  # Which would take long.
    assert run(write_song(tmp_path / "a.wav"), "--lora", tmp_path) == 1
    assert "holds no adapters: choose a folder with adapter_config.json" in capsys.readouterr().err


@pytest.mark.parametrize("rate", [8000, 44100, 192_000])
@pytest.mark.parametrize("length", [1, 2, 10])
def test_songs_of_a_few_samples_are_separated(
    length: int, rate: int, run: Callable[..., int], models: Path, tmp_path: Path
) -> None:
    song = write_song(tmp_path / "a.wav", length, rate=rate)
    both = ["--checkpoint", models / "other.ckpt", "--ensemble", "max_fft"]
    assert run(song, "--residual", "--tta", *both) == 0
    stems = [read_audio(tmp_path / "out" / "a" / f"{name}.wav")[0] for name in ("voice", "band", "residual")]
    torch.testing.assert_close(sum(stems), read_audio(song)[0], rtol=0, atol=1e-6)


# Nothing lost --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", ["cut", "scale"])
def test_of_a_song_that_lacks_a_stem_only_what_is_missing_appears(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], clip: str
) -> None:
    song = write_song(tmp_path / "a.wav", level=3.0)
    arguments = [song, "--format", "flac", "--clip", clip]
    assert run(*arguments) == 0
    voice, band = (tmp_path / "out" / "a" / f"{name}.flac" for name in ("voice", "band"))
    expected = voice.read_bytes()
    voice.unlink()
    before = band.stat()
    capsys.readouterr()
    assert run(*arguments) == 1
    assert "band.flac exists: pass --overwrite to replace it, --skip-existing to keep it" in capsys.readouterr().err
    assert run(*arguments, "--skip-existing") == 0
    printed = capsys.readouterr()
    assert printed.out == f"{voice}\n"
    assert str(band) not in printed.err
    assert voice.read_bytes() == expected
    assert (band.stat().st_ino, band.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert run(*arguments, "--skip-existing", "--json") == 0
    assert [each["status"] for each in records(capsys.readouterr().out)] == ["skipped"]


@pytest.mark.skipif(sys.platform == "win32", reason="few users may make links there")
def test_the_folder_of_a_song_that_is_a_link_out_of_the_output_is_refused_before_the_model_is_loaded(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    leftover = ".0123456789abcdef.0123456789abcdef.hunterFormsBS.wav"
    for name in ("out", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere" / leftover).touch()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(plan, "from_checkpoint", None)
    assert run(write_song(tmp_path / "a.wav"), "--overwrite") == 1
    assert f"{tmp_path / 'out' / 'a'} is, or is below, a link that leads out of" in capsys.readouterr().err
    assert written(tmp_path / "elsewhere") == [leftover]


def test_what_a_kill_left_of_a_song_that_was_complete_goes_although_the_song_is_left_out(
    run: Callable[..., int], tmp_path: Path
) -> None:
    song = write_song(tmp_path / "a.wav")
    assert run(song) == 0
    (tmp_path / "out" / "a" / ".0123456789abcdef.0123456789abcdef.hunterFormsBS.wav").hardlink_to(
        tmp_path / "out" / "a" / "band.wav"
    )
    assert run(song, "--skip-existing") == 0
    assert written(tmp_path / "out") == ["a/band.wav", "a/voice.wav"]


def test_existing_songs_are_left_out_also_where_only_the_model_tells_how_many_stems_there_are(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    songs = [write_song(tmp_path / name) for name in ("a.wav", "b.wav")]
    assert run(songs[0], model="nameless") == 0
    before = (tmp_path / "out" / "a" / "stem_1.wav").stat().st_mtime_ns
    assert run(*songs, "--skip-existing", model="nameless") == 0
    assert (tmp_path / "out" / "a" / "stem_1.wav").stat().st_mtime_ns == before
    assert len(written(tmp_path / "out")) == 4
    capsys.readouterr()
    assert run(*songs, write_song(tmp_path / "c.wav"), "--skip-existing", "--json", model="nameless") == 0
    became = [(Path(each["song"]).stem, each["status"]) for each in records(capsys.readouterr().out)]
    assert became == [("a", "skipped"), ("b", "skipped"), ("c", "separated")]


def test_a_song_that_another_process_has_separated_meanwhile_is_left_out(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    songs = [write_song(tmp_path / name) for name in ("a.wav", "b.wav")]
    separate_song = batch.separate_song

    def with_another(*arguments: Any, **keywords: Any) -> Any:
        monkeypatch.setattr(batch, "separate_song", separate_song)
        assert run(songs[1]) == 0
        capsys.readouterr()
        return separate_song(*arguments, **keywords)

    monkeypatch.setattr(batch, "separate_song", with_another)
    assert run(*songs, "--skip-existing", "--json") == 0
    became = [(Path(each["song"]).stem, each["status"]) for each in records(capsys.readouterr().out)]
    assert became == [("a", "separated"), ("b", "skipped")]


def test_processes_of_one_job_share_the_songs_out(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = {"a": 9000, "b": 2500, "c": 2600, "d": 4000}
    songs = [write_song(tmp_path / f"{name}.wav", length) for name, length in lengths.items()]
    bad = tmp_path / "bad.wav"
    bad.write_text("no music")
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares, statuses = [], []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        statuses.append(run(bad, *songs, "--json", "--skip-existing"))
        shares.append({Path(each["song"]).stem: each["status"] for each in records(capsys.readouterr().out)})
    assert not set(shares[0]) & set(shares[1])
    assert {**shares[0], **shares[1]} == {**dict.fromkeys("abcd", "separated"), "bad": "failed"}
    assert list(shares[1]) == ["d", "c", "b"]  # the longest first, and together about as long as the other's
    assert sorted(statuses) == [0, 1]
    assert len(written(tmp_path / "out")) == 8


def test_processes_of_one_job_cannot_share_a_pipe(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit, match=r"^2$"):
        run("-")
    assert "several processes cannot share the contents of a pipe" in capsys.readouterr().err


@pytest.mark.parametrize("fails", [False, True])
def test_a_process_that_fails_as_a_whole_waits_for_the_others(
    fails: bool, run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_arguments: object) -> None:
        raise MemoryError

    waited: list[bool] = []
    monkeypatch.setattr(batch, "wait_for_others", lambda _place, *, failed: waited.append(failed))
    if fails:
        monkeypatch.setattr(plan.Source, "load", load)
    assert run(write_song(tmp_path / "a.wav")) == int(fails)
    assert waited == [fails]


@pytest.mark.skipif(sys.platform == "win32", reason="PyTorch is built there without what torchrun needs")
def test_torchrun_lets_the_songs_of_the_others_end_although_one_process_failed(models: Path, tmp_path: Path) -> None:
    long = write_song(tmp_path / "songs" / "long.wav", 400_000)
    short = write_song(tmp_path / "songs" / "short.wav", 2000)
    (tmp_path / "songs" / "bad.wav").write_text("no music")
    launcher, program = ["-m", "torch.distributed.run", "--nproc-per-node", "2"], ["-m", "hunterFormsBS", "--json"]
    files = [tmp_path / "songs", "--checkpoint", models / "model.ckpt", "--output", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, *launcher, *program, *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode != 0
    results = {Path(each["song"]): each["status"] for each in records(done.stdout)}
    assert results == {long: "separated", short: "separated", tmp_path / "songs" / "bad.wav": "failed"}, done.stderr
    assert len(written(tmp_path / "out")) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="shells are others there")
@pytest.mark.parametrize("closed", [">&- 2>&-", "<&- >&- 2>&-"])
def test_what_libraries_print_does_not_get_into_stems_where_streams_are_closed(
    closed: str, models: Path, tmp_path: Path
) -> None:
    song = write_song(tmp_path / "a.mp3", 40_000)
    song.write_bytes(song.read_bytes()[:-4000])  # of which libmpg123 says something on standard error
    files = {}
    for streams in ("", closed):
        arguments = f"-m hunterFormsBS {song} --checkpoint {models / 'model.ckpt'} --output {tmp_path / 'out'}"
        subprocess.run(
            ["bash", "-c", f"{sys.executable} {arguments} --format flac --overwrite {streams}"],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        files[streams] = [(tmp_path / "out" / "a" / name).read_bytes() for name in ("voice.flac", "band.flac")]
    assert files[""] == files[closed]


@pytest.mark.parametrize(
    ("kind", "clip"),
    [("wav", "cut"), ("flac", "cut"), ("flac", "scale"), ("mp3", "cut"), ("ogg", "cut"), ("opus", "cut")],
)
def test_a_disk_that_is_full_stops_the_batch_and_loses_nothing(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, clip: str
) -> None:
    resource = pytest.importorskip("resource")
    songs = [write_song(tmp_path / f"{name}.wav", 200_000) for name in "abc"]
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, usual[1]))
    try:
        fast = ["--stems", "band", "--chunk-size=50000", "--num-overlap=1"]
        assert run(*songs, "--format", kind, "--clip", clip, *fast, "--json") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    printed = capsys.readouterr()
    assert f"{tmp_path / 'out' / 'a' / 'band'}.{kind}: File too large: 2 more are not separated" in printed.err
    became = [(each["song"], each["status"]) for each in records(printed.out)]
    assert became == [(str(song), "failed") for song in songs]
    assert not (tmp_path / "out").exists()


SLOW = """
    import sys, time
    from hunterFormsBS import BandSplitRotator
    from hunterFormsBS.__main__ import run

    forward = BandSplitRotator.forward
    calls = []

    def slow(self, *arguments, **keywords):
        calls.append(1)
        if len(calls) == 3:
            print("computing", flush=True)
            time.sleep(60)
        return forward(self, *arguments, **keywords)

    BandSplitRotator.forward = slow
    run()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such signals")
def test_what_a_killed_run_leaves_is_removed_by_the_next_and_a_run_beside_another_notices(
    run: Callable[..., int], models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    song = write_song(tmp_path / "a.wav", 20_000)
    other = write_song(tmp_path / "b.wav")
    command = [song, "--checkpoint", models / "model.ckpt", "--output", tmp_path / "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLOW), *map(str, command)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "computing\n"
        assert run(song, other) == 1
        assert "is being written by another process" in capsys.readouterr().err
        process.send_signal(signal.SIGKILL)
    assert [path.name[0] for path in (tmp_path / "out" / "a").iterdir()] == [".", "."]
    assert run(song, other, "--skip-existing") == 0
    assert written(tmp_path / "out") == ["a/band.wav", "a/voice.wav", "b/band.wav", "b/voice.wav"]


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such signals")
def test_a_second_ctrl_c_does_not_interrupt_the_cleaning_up(models: Path, tmp_path: Path) -> None:
    song = write_song(tmp_path / "a.wav", 20_000)
    command = [song, "--checkpoint", models / "model.ckpt", "--output", tmp_path / "out"]
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLOW), *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "computing\n"
        for _ in range(20):
            process.send_signal(signal.SIGINT)
            time.sleep(0.005)
        _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "hunterFormsBS: interrupted\n")
    assert not (tmp_path / "out").exists()


MODELS = [
    ("--checkpoint", "hub:nobody/nothing/model.ckpt"),
    ("--checkpoint", next(name for name, entry in entries().items() if entry.repository)),
    ("--preset", next(iter(presets()))),
    ("--recipe", "dry-lead"),
]


@pytest.mark.parametrize("arguments", MODELS, ids=" ".join)
@pytest.mark.parametrize("also", [False, True], ids=["alone", "with another"])
def test_a_missing_song_is_told_before_anything_is_fetched(
    arguments: tuple[str, str],
    also: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said: list[str] = []

    def nothing(*_arguments: object) -> Path:
        said.append(capsys.readouterr().err)
        raise CheckpointError("there is no connection")

    for module in ("hub", "elsewhere"):
        monkeypatch.setattr(f"hunterFormsBS.checkpoint.{module}.download", nothing)
    songs = [tmp_path / "missing.wav", *([write_song(tmp_path / "a.wav")] if also else [])]
    assert main([*map(str, songs), *arguments, "--output", str(tmp_path / "out")]) == 1
    first = said[0] if also else capsys.readouterr().err
    assert "missing.wav: No such file or directory" in first
    assert "connection" not in first
    assert bool(said) is also
