"""The program from its arguments to its files: with a stand-in for the model, and with a real one."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.__main__ import main
from hunterFormsBS.checkpoint import save_checkpoint
from hunterFormsBS.songs import plan as program
from hunterFormsBS.songs import together
from hunterFormsBS.songs.reading import read_audio
from hunterFormsBS.songs.together import appearing_together
from hunterFormsBS.songs.writing import StemFile, WritingError
from tests.models import STEREO, STEREO_AT

RATE = 8000
CONFIGURATION = """\
audio: {chunk_size: 1000, sample_rate: 8000, dim_t: 9, hop_length: 441}
model: {num_stems: 2, stereo: true}
training: {instruments: [vocals, other], target_instrument: null}
inference: {batch_size: 3, num_overlap: 4, dim_t: 11}
"""

# The program's warnings are its messages, not those of the tests.
pytestmark = pytest.mark.filterwarnings("default::UserWarning", "default::RuntimeWarning")


class Model:
    """Return the mixture at half level, at a quarter, at an eighth, and so on."""

    def __init__(self, num_stems: int = 2, stereo: bool = True) -> None:
        self.num_stems = num_stems
        self.stereo = stereo
        self.batches: list[Tensor] = []

    def __call__(self, audio: Tensor) -> Tensor:
        self.batches.append(audio.clone())
        return torch.stack([audio / 2 ** (number + 1) for number in range(self.num_stems)], dim=1)


class Bench:
    """A folder with a checkpoint, a configuration and a song, and a stand-in that is loaded from the checkpoint."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.output = folder / "out"
        self.model = Model()
        self.loaded: list[dict[str, Any]] = []
        self.configuration = folder / "model.yaml"
        self.configuration.write_text(CONFIGURATION)
        torch.save({"weight": torch.zeros(1)}, folder / "model.ckpt")
        self.song = self.write("song.wav", 5000)
        monkeypatch.setattr(program, "from_checkpoint", self.load)

    def load(self, path: Path, configuration: Path | None, **keywords: Any) -> Model:
        self.loaded.append({"path": path, "configuration": configuration, **keywords})
        if keywords["stems"] is not None:
            self.model.num_stems = len(keywords["stems"])
        return self.model

    def write(self, name: str, length: int, channels: int = 2, sample_rate: int = RATE) -> Path:
        """Write music without content, and return its path."""
        samples = np.random.default_rng(length).uniform(-0.9, 0.9, (length, channels))
        soundfile.write(self.folder / name, samples, sample_rate, subtype="PCM_24")
        return self.folder / name

    def run(self, *arguments: object, configuration: bool = True) -> int:
        """Run the program on the song, or on the mixtures that the arguments begin with."""
        mixtures = [] if arguments and isinstance(arguments[0], Path) else [self.song]
        files = [*mixtures, *arguments, "--checkpoint", self.folder / "model.ckpt", "--output", self.output]
        if configuration:
            files += ["--configuration", self.configuration]
        return main([str(argument) for argument in files])

    def written(self) -> list[str]:
        """List all files below the output folder."""
        return sorted(str(path.relative_to(self.output)) for path in self.output.rglob("*") if path.is_file())


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_each_stem_is_a_file_named_by_the_configuration_in_a_folder_named_after_the_song(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.run("--residual") == 0
    files = [bench.output / "song" / f"{name}.wav" for name in ("vocals", "other", "residual")]
    mixture, _ = read_audio(bench.song)
    for file, level in zip(files, (1 / 2, 1 / 4, 1 / 4), strict=True):
        assert soundfile.info(file).subtype == "FLOAT"
        audio, sample_rate = read_audio(file)
        assert sample_rate == RATE
        torch.testing.assert_close(audio, mixture * level, rtol=0, atol=1e-6)
    assert bench.written() == ["song/other.wav", "song/residual.wav", "song/vocals.wav"]
    assert capsys.readouterr() == ("".join(f"{file}\n" for file in files), "")


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("sample_rate", [8000, 44100, 48000])
def test_stems_have_the_rate_the_length_and_the_channels_of_the_mixture(
    bench: Bench, sample_rate: int, channels: int
) -> None:
    bench.configuration.write_text(CONFIGURATION.replace("8000", "44100"))
    t = np.arange(12345) / sample_rate
    tone = np.stack([np.sin(2 * np.pi * frequency * t) / 2 for frequency in (440, 1000)[:channels]], axis=1)
    soundfile.write(bench.song, tone, sample_rate, subtype="FLOAT")
    assert bench.run("--residual") == 0
    vocals, rate = read_audio(bench.output / "song" / "vocals.wav")
    assert (rate, *vocals.shape) == (sample_rate, channels, 12345)
    inner = slice(2000, -2000)
    expected = torch.as_tensor(tone.T / 2, dtype=torch.float32)
    torch.testing.assert_close(vocals[:, inner], expected[:, inner], rtol=0, atol=1e-4)
    parts = [read_audio(bench.output / "song" / f"{name}.wav")[0] for name in ("vocals", "other", "residual")]
    torch.testing.assert_close(sum(parts), torch.as_tensor(tone.T, dtype=torch.float32), rtol=0, atol=1e-6)
    assert {batch.shape[1:] for batch in bench.model.batches} == {(2, 1000)}
    chunks = sum(len(batch) for batch in bench.model.batches)
    assert chunks == -(-(-(-12345 * 44100 // sample_rate) - 1000) // 250) + 1


def test_a_part_of_a_song_has_the_names_and_the_samples_of_the_whole(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    mixture, _ = read_audio(bench.song)
    for part, first, last in (
        (("--start", "0:00.25", "--duration", "0.1"), 2000, 2800),
        (("--end", "0.1"), 0, 800),
        (("--preview",), 0, 5000),
    ):
        bench.model.batches.clear()
        assert bench.run("--residual", "--overwrite", "--json", *part) == 0
        audio, _ = read_audio(bench.output / "song" / "vocals.wav")
        torch.testing.assert_close(audio, mixture[:, first:last] / 2, rtol=0, atol=1e-6)
        assert bench.written() == ["song/other.wav", "song/residual.wav", "song/vocals.wav"]
        record = json.loads(capsys.readouterr().out)
        assert (record["start"], record["duration"]) == (first / RATE, (last - first) / RATE)
    assert bench.run("--overwrite", "--start", "5") == 1
    assert "the part begins at 0:05, but the song ends at 0:00.62" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        bench.run("--overwrite", "--end", "5", "--preview")


def test_shifts_and_blend_reach_the_separation(bench: Bench) -> None:
    counts: list[int] = []
    for arguments in ((), ("--shifts", 3), ("--blend", "msst")):
        bench.model.batches.clear()
        assert bench.run("--overwrite", *arguments) == 0
        counts.append(sum(map(len, bench.model.batches)))
    once, thrice, with_borders = counts
    assert 3 * once <= thrice <= 3 * once + 2 * 4  # four chunks reach over the seam of each of two shifted songs
    assert with_borders == -(-(5000 + 750) // 250)  # up to the end of the song within its two borders


def test_sizes_come_from_the_command_line_then_from_the_inference_and_audio_sections(bench: Bench) -> None:
    def shapes() -> tuple[int, int, int]:
        """Return the chunks of the longest batch, the samples of a chunk, and the number of chunks."""
        sizes = [len(batch) for batch in bench.model.batches]
        samples = bench.model.batches[0].shape[-1]
        bench.model.batches.clear()
        return max(sizes), samples, sum(sizes)

    assert bench.run() == 0
    assert shapes() == (3, 1000, 17)
    assert bench.run("--overwrite", "--chunk-size", 500, "--num-overlap", 1, "--batch-size", 2) == 0
    assert shapes() == (2, 500, 10)
    bench.configuration.write_text(CONFIGURATION.replace("inference: {", "inference: {chunk_size: 2000, "))
    assert bench.run("--overwrite") == 0
    assert shapes() == (3, 2000, 7)
    assert bench.run("--overwrite", "--stems", "stem_1", configuration=False) == 0
    assert shapes() == (1, 352800, 1)


@pytest.mark.parametrize("sample_rate", [8000, 16000])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_song_is_normalised_for_the_model_and_its_stems_scaled_back_where_the_configuration_says_so(
    bench: Bench, channels: int, sample_rate: int
) -> None:
    bench.configuration.write_text(CONFIGURATION.replace("dim_t: 11", "dim_t: 11, normalize: true"))
    samples = np.random.default_rng(1).normal(0.1, 0.03, (999, channels)) * [1, 0.5][:channels]
    soundfile.write(bench.song, samples, sample_rate, subtype="FLOAT")
    assert bench.run("--chunk-size", 1000) == 0  # one chunk, longer than the song
    (received,) = bench.model.batches
    length = -(-999 * RATE // sample_rate)
    mono = received[0, :, :length].mean(0)
    assert float(mono.mean()) == pytest.approx(0, abs=1e-5)
    assert float(mono.square().mean()) == pytest.approx(1, abs=1e-5)
    if sample_rate == RATE:
        # The stand-in halves what it gets, deviations from the mean alone, and the mean comes back in every stem.
        vocals, _ = soundfile.read(bench.output / "song" / "vocals.wav", always_2d=True)
        mean = samples.mean()
        np.testing.assert_allclose(vocals, mean + (samples - mean) / 2, atol=1e-6)
        np.testing.assert_allclose(
            received[0].T[:999], ((samples - mean) / samples.mean(1).std()).repeat(3 - channels, axis=1), atol=1e-4
        )


def test_silence_is_not_normalised(bench: Bench) -> None:
    bench.configuration.write_text(CONFIGURATION.replace("dim_t: 11", "dim_t: 11, normalize: true"))
    soundfile.write(bench.song, np.zeros((3000, 2)), RATE)
    assert bench.run() == 0
    assert not read_audio(bench.output / "song" / "vocals.wav")[0].any()


def test_only_the_stems_asked_for_are_loaded_and_written_in_that_order(bench: Bench) -> None:
    bench.configuration.write_text(
        CONFIGURATION.replace("[vocals, other]", "[a, b, c, d]").replace("num_stems: 2", "num_stems: 4")
    )
    assert bench.run("--stems", "d,b", "--upstream", "msst", "--device", "cpu") == 0
    assert bench.loaded == [
        {
            "path": bench.folder / "model.ckpt",
            "configuration": bench.configuration,
            "upstream": "msst",
            "device": torch.device("cpu"),
            "stems": [3, 1],
        }
    ]
    assert bench.written() == ["song/b.wav", "song/d.wav"]
    assert read_audio(bench.output / "song" / "d.wav")[0].std() > read_audio(bench.output / "song" / "b.wav")[0].std()


@pytest.mark.parametrize(
    ("change", "num_stems", "expected"),
    [
        (("target_instrument: null", "target_instrument: other"), 2, ["vocals", "other"]),
        (("num_stems: 2", "num_stems: 1"), 1, ["stem_1"]),
        (("training", "weighting"), 2, ["stem_1", "stem_2"]),
        (("[vocals, other]", "[../../vocals, '..']"), 2, ["_.._vocals", "_"]),
        (("[vocals, other]", "[1, 2]"), 3, ["stem_1", "stem_2", "stem_3"]),
    ],
)
def test_stems_that_the_configuration_does_not_name_are_numbered(
    bench: Bench, change: tuple[str, str], num_stems: int, expected: list[str]
) -> None:
    bench.configuration.write_text(CONFIGURATION.replace(*change))
    bench.model.num_stems = num_stems
    assert bench.run() == 0
    assert bench.written() == sorted(f"song/{name}.wav" for name in expected)


@pytest.mark.parametrize(
    ("training", "wanted", "names"),
    [
        ("{instruments: [vocals, other], target_instrument: null}", "other", ["other"]),
        ("{instruments: [vocals, other], target_instrument: other}", "other", ["other"]),
    ],
)
def test_stems_have_their_names_where_the_configuration_leaves_their_number_out(
    bench: Bench, training: str, wanted: str, names: list[str]
) -> None:
    lines = CONFIGURATION.replace("num_stems: 2, ", "").splitlines()
    lines[2] = f"training: {training}"
    bench.configuration.write_text("\n".join(lines))
    assert bench.run("--stems", wanted) == 0
    assert bench.written() == [f"song/{name}.wav" for name in names]


def test_a_model_of_one_stem_gives_the_target_instrument(bench: Bench) -> None:
    bench.configuration.write_text(
        CONFIGURATION.replace("num_stems: 2, ", "").replace("target_instrument: null", "target_instrument: other")
    )
    bench.model.num_stems = 1
    assert bench.run() == 0
    assert bench.written() == ["song/other.wav"]


@pytest.mark.parametrize(
    ("arguments", "subtype"),
    [
        (("--bit-depth", 16), "PCM_16"),
        (("--bit-depth", 24), "PCM_24"),
        (("--format", "flac"), "PCM_24"),
        (("--format", "flac", "--bit-depth", 16), "PCM_16"),
    ],
)
def test_format_and_bit_depth_can_be_chosen(bench: Bench, arguments: tuple[object, ...], subtype: str) -> None:
    assert bench.run(*arguments) == 0
    container = "flac" if "flac" in arguments else "wav"
    assert bench.written() == [f"song/other.{container}", f"song/vocals.{container}"]
    info = soundfile.info(bench.output / "song" / f"vocals.{container}")
    # WAV begins as RF64, so that it can become longer than 4 GiB, and keeps the extensible header of that.
    assert (info.format.lower().removesuffix("ex"), info.subtype, info.frames) == (container, subtype, 5000)


@pytest.mark.parametrize("kind", ["mp3", "ogg", "opus"])
def test_lossy_formats_are_written_with_a_quality_and_at_a_rate_that_they_can_have(bench: Bench, kind: str) -> None:
    song = bench.write("long.wav", 22050, sample_rate=11025)
    assert bench.run(song, "--format", kind, "--quality", 8, "--residual") == 0
    assert bench.written() == [f"long/{name}.{kind}" for name in ("other", "residual", "vocals")]
    info = soundfile.info(bench.output / "long" / f"vocals.{kind}")
    assert info.samplerate == {"mp3": 11025, "ogg": 11025, "opus": 12000}[kind]
    assert info.duration == pytest.approx(2, abs=0.2)


def test_a_full_disk_stops_the_batch_and_is_named_once(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: StemFile, block: Tensor) -> None:
        raise WritingError(errno.ENOSPC, "No space left on device", str(self.path))

    monkeypatch.setattr(StemFile, "write", full)
    others = [bench.write(f"{number}.wav", 100) for number in range(3)]
    assert bench.run(bench.song, *others) == 1
    full = f"{bench.output / 'song' / 'vocals.wav'}: No space left on device"
    assert capsys.readouterr().err == f"hunterFormsBS: error: {bench.song}: {full}: 3 more are not separated\n"
    assert not bench.output.exists()


def test_a_second_process_on_the_same_songs_leaves_them_to_the_first(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    with appearing_together(bench.output, [bench.output / "song" / "vocals.wav"]) as (file,):
        assert bench.run() == 1
        assert "vocals.wav is being written by another process" in capsys.readouterr().err
        file.write(b"first")
    assert bench.written() == ["song/vocals.wav"]


def test_what_is_cut_off_at_full_scale_is_said(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(bench.song, np.array([[3.0, 0], [0, -4], [1, 1]]), RATE, subtype="FLOAT")
    assert bench.run("--format", "flac") == 0
    line = capsys.readouterr().err
    assert f"warning: 2 values of {bench.output / 'song' / 'vocals.flac'} were beyond full scale" in line
    assert line.count("\n") == 1
    assert bench.run() == 0
    assert capsys.readouterr().err == ""


def test_nothing_is_printed_when_quiet(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run("--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert len(bench.written()) == 2


def test_the_progress_bar_is_shown_on_a_terminal_and_names_the_song(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert bench.run() == 0
    err = capsys.readouterr().err
    assert err.startswith(f"{bench.song}\n")
    assert "17/17" in err
    assert bench.run("--quiet", "--overwrite") == 0
    assert capsys.readouterr().err == ""


# Several songs ------------------------------------------------------------------------------------------------------


def test_bad_files_are_named_in_one_line_each_and_the_others_are_separated(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    last = bench.write("last.flac", 3000, channels=1)
    surround = bench.write("surround.wav", 10, channels=3)
    text = bench.folder / "text.wav"
    text.write_text("Dear diary")
    empty = bench.folder / "empty.wav"
    empty.touch()
    poisoned = bench.folder / "poisoned.wav"
    soundfile.write(poisoned, np.full((9, 2), np.nan), RATE, subtype="FLOAT")
    missing = bench.folder / "missing.wav"

    assert bench.run(poisoned, text, bench.song, empty, missing, bench.folder, surround, last) == 1
    assert bench.written() == ["last/other.wav", "last/vocals.wav", "song/other.wav", "song/vocals.wav"]
    assert len(bench.loaded) == 1
    left_out, *lines = capsys.readouterr().err.splitlines()
    assert left_out.endswith("files left out: 2 not audio")  # the checkpoint and its configuration
    expected = {
        missing: "No such file or directory",  # noticed before the checkpoint is fetched
        text: "is not audio",
        empty: "is empty",
        surround: "has 3 channels",
        poisoned: "has NaN or infinity at 9 samples",
    }
    assert len(lines) == len(expected)
    for line, (path, message) in zip(lines, expected.items(), strict=True):
        assert line.startswith(f"hunterFormsBS: error: {path}")
        assert message in line


def test_the_model_is_not_loaded_when_no_song_can_be_read(bench: Bench) -> None:
    assert bench.run(bench.folder / "missing.wav") == 1
    assert bench.loaded == []
    assert not bench.output.exists()


def test_two_songs_of_one_name_are_refused_before_one_overwrites_the_other(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    other = bench.write("song.flac", 100)
    with pytest.raises(SystemExit, match=r"^2$"):
        bench.run(bench.song, other, "--name-template", "same/{stem}")
    assert f"{bench.song} and {other} would both be written to {bench.output / 'same'}" in capsys.readouterr().err
    assert bench.loaded == []


def test_stems_that_exist_are_replaced_only_when_asked(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    precious = bench.output / "song" / "vocals.wav"
    precious.parent.mkdir(parents=True)
    precious.write_bytes(b"precious")
    other = bench.write("b.wav", 50)
    assert bench.run(bench.song, other) == 1
    assert precious.read_bytes() == b"precious"
    assert bench.written() == ["b/other.wav", "b/vocals.wav", "song/vocals.wav"]
    assert capsys.readouterr().err == (
        f"hunterFormsBS: error: {bench.song}: {precious} exists: pass --overwrite to replace it, "
        "--skip-existing to keep it, or another --output\n"
    )
    assert bench.run("--stems", "other") == 0
    bench.model = Model()
    assert bench.run("--overwrite") == 0
    assert read_audio(precious)[0].shape == (2, 5000)


# What fails before and within the computation -----------------------------------------------------------------------


def usage_cases() -> list[tuple[tuple[object, ...], bool, str]]:
    return [
        (("--format", "flac", "--bit-depth", 32), True, "--format flac has no --bit-depth 32: use 16 or 24"),
        (("--format", "mp3", "--bit-depth", 16), True, "--format mp3 has no --bit-depth 16: leave it out"),
        (("--format", "wav", "--quality", 5), True, "has no --quality"),
        (("--stems", "vocals,piano"), True, "the model has no stem piano, but vocals, other"),
        (("--stems", "vocals,vocals"), True, "names a stem twice"),
        (("--stems", "vocals"), False, "Pass --configuration, or call them stem_1"),
        (("--stems", "stem_0"), False, "Pass --configuration, or call them stem_1"),
        (("--device", "abacus"), True, "--device abacus cannot be used here"),
        (("--device", "meta"), True, "--device meta cannot be used here: it does not compute"),
        (("--device", "cuda:99"), True, "--device cuda:99 cannot be used here"),
        (("--device", "hpu"), True, "--device hpu cannot be used here"),
    ]


@pytest.mark.parametrize(("arguments", "configuration", "message"), usage_cases())
def test_a_command_line_that_cannot_be_used_is_one_line_and_status_2(
    bench: Bench,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    configuration: bool,
    message: str,
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        bench.run(*arguments, configuration=configuration)
    out, line = capsys.readouterr()
    assert out == ""
    assert line.startswith("hunterFormsBS: error: ")
    assert line.count("\n") == 1
    assert message in line
    assert bench.loaded == []
    assert not bench.output.exists()


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        (CONFIGURATION.replace("num_overlap: 4", "num_overlap: four"), "num_overlap in the configuration must be"),
        (CONFIGURATION.replace("chunk_size: 1000", "chunk_size: 0"), "chunk_size in the configuration must be"),
        ("inference: {normalize: 2}", "normalize in the configuration must be true or false, but is 2"),
        ("audio: 44100", "the section audio of the configuration must be a mapping, but is 44100"),
        ("- a list", "must hold a mapping"),
        ("a: !!python/object/apply:os.getcwd []", "run code"),
        (None, "model.yaml: No such file or directory"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_line_and_status_1(
    bench: Bench, capsys: pytest.CaptureFixture[str], configuration: str | None, message: str
) -> None:
    if configuration is None:
        bench.configuration.unlink()
    else:
        bench.configuration.write_text(configuration)
    assert bench.run() == 1
    line = capsys.readouterr().err
    assert line.startswith("hunterFormsBS: error: ")
    assert line.count("\n") == 1
    assert message in line
    assert bench.loaded == []


def test_a_checkpoint_that_is_not_there_is_one_line_before_anything_else(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    (bench.folder / "model.ckpt").unlink()
    assert bench.run() == 1
    assert capsys.readouterr().err == (
        f"hunterFormsBS: error: {bench.folder / 'model.ckpt'}: No such file or directory\n"
    )
    assert not bench.output.exists()


@pytest.mark.parametrize(
    ("output", "in_the_way"), [("song.wav", "song.wav"), ("song.wav/below", "song.wav"), ("occupied", "occupied/song")]
)
def test_an_output_folder_that_cannot_be_written_is_one_line_before_the_model_is_loaded(
    bench: Bench, capsys: pytest.CaptureFixture[str], output: str, in_the_way: str
) -> None:
    bench.output = bench.folder / output
    if output == "occupied":
        bench.output.mkdir()
        (bench.output / "song").write_text("a file where the folder of the song would be")
    assert bench.run() == 1
    line = capsys.readouterr().err
    assert line.startswith("hunterFormsBS: error: ")
    assert f"{bench.folder / in_the_way} is a file where" in line
    assert line.count("\n") == 1
    assert bench.loaded == []


def test_an_output_folder_that_takes_no_files_is_found_before_the_model_is_loaded(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, _mode: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)

    # Not by permissions, which do not stop an administrator.
    monkeypatch.setattr(together, "FileIO", refuse)
    assert bench.run() == 1
    assert capsys.readouterr().err == f"hunterFormsBS: error: {bench.output}: Permission denied\n"
    assert bench.loaded == []


def test_each_channel_of_a_stereo_song_goes_through_a_mono_model_by_itself(bench: Bench) -> None:
    bench.model.stereo = False
    assert bench.run("--batch-size", 1) == 0
    assert {batch.shape for batch in bench.model.batches} == {(2, 1, 1000)}
    mixture, _ = read_audio(bench.song)
    torch.testing.assert_close(read_audio(bench.output / "song" / "vocals.wav")[0], mixture / 2, rtol=0, atol=1e-6)


class Lopsided(Model):
    """Give each channel of each stem a level of its own, so that none stands for another."""

    def __call__(self, audio: Tensor) -> Tensor:
        levels = torch.tensor([[0.5, 0.1], [0.2, 0.3]])
        return super().__call__(audio)[:, :1] * 2 * levels[: self.num_stems, :, None]


def test_a_mono_song_gets_the_mean_of_what_a_stereo_model_makes_of_it(bench: Bench) -> None:
    bench.model = Lopsided()
    song = bench.write("mono.wav", 5000, channels=1)
    assert bench.run(song) == 0
    mixture, _ = read_audio(song)
    for name, level in (("vocals", 0.3), ("other", 0.25)):
        stem, _ = read_audio(bench.output / "mono" / f"{name}.wav")
        torch.testing.assert_close(stem, level * mixture, rtol=0, atol=1e-6)


def test_stems_and_channels_are_not_exchanged_and_the_residual_is_the_rest(bench: Bench) -> None:
    bench.model = Lopsided()
    assert bench.run("--residual") == 0
    mixture, _ = read_audio(bench.song)
    levels = {"vocals": (0.5, 0.1), "other": (0.2, 0.3), "residual": (0.3, 0.6)}
    for name, each in levels.items():
        stem, _ = read_audio(bench.output / "song" / f"{name}.wav")
        torch.testing.assert_close(stem, torch.tensor(each)[:, None] * mixture, rtol=0, atol=1e-6)


@pytest.mark.parametrize("number", [1, 2, 7])
def test_numbered_stems_are_the_heads_of_those_numbers(bench: Bench, number: int) -> None:
    assert bench.run("--stems", f"stem_{number}", configuration=False) == 0
    assert bench.loaded[-1]["stems"] == [number - 1]
    assert bench.written() == [f"song/stem_{number}.wav"]


def test_a_sample_rate_that_the_model_section_alone_states_counts(bench: Bench) -> None:
    bench.configuration.write_text("model: {num_stems: 2, sample_rate: 4000}\naudio: {chunk_size: 1000}\n")
    assert bench.run() == 0
    assert sum(len(batch) for batch in bench.model.batches) == 4  # of 2500 samples, one every 500


def test_augmentation_and_fractions_of_overlap_reach_the_separation(bench: Bench) -> None:
    assert bench.run("--num-overlap", "1.25", "--batch-size", 1, "--tta") == 0
    assert len(bench.model.batches) == 3 * 6  # 5000 samples, one chunk of 1000 every 800


def test_folders_are_searched_and_their_tree_is_kept(bench: Bench) -> None:
    (bench.folder / "album" / "disc 1").mkdir(parents=True)
    for name in ("album/a.wav", "album/disc 1/a.wav", "album/disc 1/.hidden.wav"):
        bench.write(name, 2000)
    (bench.folder / "album" / "cover.jpg").write_bytes(b"x")
    album = bench.folder / "album"
    assert bench.run(album, album / "a.wav", album / "disc 1" / ".." / "a.wav", "--stems", "vocals") == 0
    assert bench.written() == ["a/vocals.wav", "disc 1/a/vocals.wav"]


def test_a_folder_without_audio_is_refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    (bench.folder / "empty").mkdir()
    with pytest.raises(SystemExit, match="2"):
        bench.run(bench.folder / "empty")
    assert "is a folder without audio files" in capsys.readouterr().err


def test_songs_whose_stems_all_exist_are_left_out_when_asked(bench: Bench) -> None:
    other = bench.write("second.wav", 2000)
    assert bench.run() == 0
    before = (bench.output / "song" / "vocals.wav").stat().st_mtime_ns
    assert bench.run(bench.song, other, "--skip-existing") == 0
    assert len(bench.written()) == 4
    assert (bench.output / "song" / "vocals.wav").stat().st_mtime_ns == before
    bench.loaded.clear()
    assert bench.run(bench.song, other, "--skip-existing") == 0
    assert bench.loaded == []


@pytest.mark.parametrize(
    ("instruments", "residual"),
    [
        ("[vocals, vocals]", False),
        ("[a/b, 'a:b']", False),
        ("['', '']", False),
        ("[a., a]", False),
        ("[Vocals, vocals]", False),
        ("['caf\\u00e9', 'cafe\\u0301']", False),
        ("[vocals, Residual]", True),
    ],
)
def test_stems_of_one_file_name_are_refused_before_the_model_is_loaded(
    instruments: str, residual: bool, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    text = CONFIGURATION.replace("[vocals, other]", instruments.replace("'caf", '"caf').replace("e9'", 'e9"'))
    bench.configuration.write_text(text.replace("0301'", '0301"'))
    with pytest.raises(SystemExit, match="2"):
        bench.run(*(["--residual"] if residual else []))
    assert re.search("two stems would be written as one|would overwrite", capsys.readouterr().err)
    assert bench.loaded == []
    assert not bench.output.exists()


@pytest.mark.parametrize("name", ["...wav", "..wav", ". .wav"])
def test_a_song_of_any_name_stays_below_the_output_folder(name: str, bench: Bench) -> None:
    song = bench.write("x.wav", 2000).rename(bench.folder / name)
    before = {path for path in bench.folder.rglob("*") if path.is_file()}
    assert bench.run(song, "--stems", "vocals") == 0
    new = {path for path in bench.folder.rglob("*") if path.is_file()} - before
    assert [path.relative_to(bench.output).parts[-1] for path in new] == ["vocals.wav"]
    assert all(len(path.relative_to(bench.output).parts) == 2 for path in new)


def test_names_that_no_file_system_takes_are_found_before_the_model_is_loaded(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.configuration.write_text(CONFIGURATION.replace("vocals", "v" * 252))
    assert bench.run() == 1
    assert "and file systems take 255: rename" in capsys.readouterr().err
    assert bench.loaded == []


def test_a_song_is_never_replaced_by_its_own_stem(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    song = bench.folder / "out" / "vocals" / "vocals.wav"
    song.parent.mkdir(parents=True)
    content = bench.song.read_bytes()
    song.write_bytes(content)
    assert bench.run(song, "--overwrite") == 1
    assert f"the song {song} would be replaced by a stem" in capsys.readouterr().err
    assert song.read_bytes() == content


def test_a_song_is_never_replaced_by_a_stem_of_another(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    other = bench.output / "song" / "vocals.wav"
    other.parent.mkdir(parents=True)
    other.write_bytes(bench.write("other.wav", 700).read_bytes())
    content = other.read_bytes()
    assert bench.run(bench.song, other, "--overwrite") == 1
    assert f"the song {other} would be replaced by a stem" in capsys.readouterr().err
    assert other.read_bytes() == content
    assert bench.written() == ["song/vocals.wav", "vocals/other.wav", "vocals/vocals.wav"]


def test_a_folder_where_a_stem_would_be_is_found_before_the_separation(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    (bench.output / "song" / "other.wav").mkdir(parents=True)
    assert bench.run("--overwrite") == 1
    assert "is a folder where a stem would be" in capsys.readouterr().err
    assert bench.loaded == []


@pytest.mark.parametrize("argument", ["--version", "--list-models"])
def test_what_only_prints_needs_nothing_else(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        sys.exit(main([argument]))
    printed = capsys.readouterr().out
    assert re.search(r"^hunterFormsBS \d+\.\d+|^bs_roformer-unwa-revive ", printed, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much memory a process held")
def test_memory_does_not_grow_with_the_length_of_a_song(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BandSplitRotator(dim=8, depth=1, stereo=True, num_stems=4, heads=1, dim_head=8, stft_hop_length=1024)
    sections = {"training": {"instruments": list("abcd")}, "audio": {"chunk_size": 44100}}
    save_checkpoint(tmp_path / "model.ckpt", model, configuration=sections)
    held = []
    for blocks in (1, 8):
        block = np.random.default_rng(0).uniform(-0.5, 0.5, (48000 * 30, 2)).astype("float32")
        with soundfile.SoundFile(tmp_path / f"{blocks}.flac", "w", 48000, 2) as file:
            for _ in range(blocks):
                file.write(block)
        command = (
            "import re, sys; from hunterFormsBS.__main__ import main; status = main(sys.argv[1:])\n"
            "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]); sys.exit(status)"
        )
        arguments = [tmp_path / f"{blocks}.flac", "--checkpoint", tmp_path / "model.ckpt", "--residual", "--quiet"]
        arguments += ["--output", tmp_path / "out", "--num-overlap", 1, "--format", "flac"]
        done = subprocess.run(
            [sys.executable, "-c", command, *map(str, arguments)], capture_output=True, text=True, check=True
        )
        held.append(int(done.stdout.split()[-1]))
    assert held[1] < 1.05 * held[0]


def interrupted_after(count: int, error: BaseException) -> Callable[..., None]:
    """Return a `SoundFile.write` that works `count` times and then raises."""
    write = soundfile.SoundFile.write
    calls: list[int] = []

    def fail(self: soundfile.SoundFile, data: Any) -> None:
        calls.append(1)
        write(self, data)
        if len(calls) > count:
            raise error

    return fail


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (AssertionError(), 1, r"error: .*out/song/\w+\.wav: cannot be written"),  # what soundfile raises then
    ],
)
def test_interrupted_writing_leaves_nothing(
    bench: Bench,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    error: BaseException,
    status: int,
    message: str,
) -> None:
    monkeypatch.setattr(soundfile.SoundFile, "write", interrupted_after(count, error))
    assert bench.run("--residual") == status
    assert not bench.output.exists()
    out, line = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"hunterFormsBS: {message}.*\n", line)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_ctrl_c_in_the_middle_leaves_nothing_and_ends_with_the_status_of_shells(
    bench: Bench, number: signal.Signals, status: int
) -> None:
    slow = """
        import runpy, signal, sys, time
        import hunterFormsBS.checkpoint

        # A shell that starts the tests in the background has its children ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)

        class Slow:
            stereo, num_stems = True, 2
            def __call__(self, audio):
                print("computing", flush=True)
                time.sleep(60)
                return audio[:, None]

        hunterFormsBS.checkpoint.from_checkpoint = lambda *_, **__: Slow()
        runpy.run_module("hunterFormsBS", run_name="__main__")
    """
    arguments = [bench.song, "--checkpoint", bench.folder / "model.ckpt", "--output", bench.output]
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(slow), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "computing\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert process.returncode == status
    assert out == ""
    assert err == ("hunterFormsBS: interrupted\n" if number == signal.SIGINT else "")
    assert not bench.output.exists()


def test_warnings_take_one_line_without_code(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    class ShortOfMemory(Model):
        def __call__(self, audio: Tensor) -> Tensor:
            if len(audio) > 1:
                raise torch.OutOfMemoryError
            return super().__call__(audio)

    bench.model = ShortOfMemory()
    assert bench.run() == 0
    err = capsys.readouterr().err
    assert re.fullmatch(r"hunterFormsBS: warning: out of memory .* `batch_size` 1\.\n", err)


# A real model -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small model's checkpoint and a song."""
    folder = tmp_path_factory.mktemp("real")
    model = BandSplitRotator(**STEREO)
    sections = STEREO_AT | {
        "training": {"instruments": ["voice", "band"]},
        "inference": {"num_overlap": 2, "batch_size": 2},
    }
    save_checkpoint(folder / "model.ckpt", model, configuration=sections)
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (5001, 2))
    soundfile.write(folder / "song.flac", samples, 11025)
    return folder


def run_program(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hunterFormsBS", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_what_steers_a_terminal_is_escaped_in_everything_that_is_printed(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "\x1b[2J\u202e\x9bsong"
    song = bench.write(f"{name}.wav", 2000)
    bench.configuration.write_text(CONFIGURATION.replace("vocals", '"vo\\u202ecals"'))
    assert bench.run(song, bench.folder / f"{name} missing.wav") == 1
    with pytest.raises(SystemExit):
        bench.run(song, "--stems", f"{name}")
    printed = capsys.readouterr()
    assert "\\x1b[2J\\u202e\\x9bsong" in printed.out
    assert printed.err.count("\\x1b[2J\\u202e\\x9bsong") >= 2
    assert not set("\x1b\x9b\u202e") & set(printed.out + printed.err)


@pytest.mark.skipif(sys.platform == "win32", reason="names of files and shells are others there")
@pytest.mark.parametrize("shell", ["{} > /dev/full", "{} | true", "{} >&-", "{} 2>&-", "{} >&- 2>&-"])
def test_a_song_does_not_fail_because_nobody_reads(shell: str, real: Path, tmp_path: Path) -> None:
    song = tmp_path / "\u97f3\u697d.wav"
    soundfile.write(song, np.random.default_rng(0).uniform(-0.5, 0.5, (9000, 2)), 8000)
    program = (
        f"{sys.executable} -m hunterFormsBS '{song}' --checkpoint '{real / 'model.ckpt'}' --output '{tmp_path / 'out'}'"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = f"set -o pipefail; {shell.format(program)}"
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").rglob("*.wav"))


def test_a_checkpoint_that_holds_its_configuration_separates_a_song_from_the_shell(real: Path, tmp_path: Path) -> None:
    result = run_program(real / "song.flac", "--checkpoint", real / "model.ckpt", "--output", tmp_path, "--residual")
    files = [tmp_path / "song" / f"{name}.wav" for name in ("voice", "band", "residual")]
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split() == [str(file) for file in files]
    parts = [read_audio(file)[0] for file in files]
    mixture, _ = read_audio(real / "song.flac")
    torch.testing.assert_close(sum(parts), mixture, rtol=0, atol=1e-6)
    assert parts[0].abs().max() > 0


def test_one_stem_alone_is_the_same_as_among_all(real: Path, tmp_path: Path) -> None:
    files = [str(real / "song.flac"), "--checkpoint", str(real / "model.ckpt"), "--output", str(tmp_path)]
    assert main([*files, "--stems", "band"]) == 0
    alone, _ = read_audio(tmp_path / "song" / "band.wav")
    assert main([*files, "--overwrite"]) == 0
    torch.testing.assert_close(alone, read_audio(tmp_path / "song" / "band.wav")[0], rtol=0, atol=1e-6)


class Hostile:
    """What a pickle needs to run code."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "hostile", "hostile pickle"])
def test_a_checkpoint_that_cannot_be_used_is_one_line_and_runs_no_code(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.undo()  # Not the stand-in is loaded here.
    path, marker = tmp_path / "bad.ckpt", tmp_path / "ran"
    if kind == "hostile":
        torch.save({"state_dict": Hostile(marker)}, path)
    elif kind == "hostile pickle":
        path.write_bytes(pickle.dumps({"state_dict": Hostile(marker)}, protocol=2))
    elif kind == "cut":
        torch.save({"state_dict": {"weight": torch.zeros(100_000)}}, path)
        os.truncate(path, 200_000)
    else:
        path.write_bytes(b"" if kind == "empty" else b"not weights\n")
    assert main([str(bench.song), "--checkpoint", str(path), "--output", str(bench.output)]) == 1
    out, line = capsys.readouterr()
    assert out == ""
    assert line.startswith(f"hunterFormsBS: error: {path}")
    assert line.count("\n") == 1
    assert not marker.exists()
    assert not bench.output.exists()
