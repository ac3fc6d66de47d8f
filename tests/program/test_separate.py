"""`hunterforms separate`: its defaults, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hunterFormsBS.program.dispatch import main, understand

REQUIRED = ["song.wav", "--checkpoint", "model.ckpt", "--output", "out"]


def test_the_options_have_the_documented_defaults() -> None:
    options = understand(REQUIRED).options
    assert options.mixtures == [Path("song.wav")]
    assert options.checkpoint == [Path("model.ckpt")]
    assert options.configuration == []
    assert (options.name_template, options.clip) == ("{song}/{stem}.{ext}", "cut")
    assert (options.format, options.bit_depth, options.device, options.dtype) == ("wav", None, "auto", "float32")
    for name in (
        "preset",
        "ensemble",
        "upstream",
        "stems",
        "residual",
        "audio_stream",
        "chunk_size",
        "num_overlap",
        "batch_size",
        "info",
    ):
        assert getattr(options, name) is None
    for name in ("downmix", "overwrite", "skip_existing", "json", "quiet", "tta"):
        assert getattr(options, name) is False


def test_a_model_of_the_catalogue_may_be_called_a_model() -> None:
    options = understand(["song.wav", "--model", "one", "--checkpoint", "two.ckpt", "--output", "out"]).options
    assert options.checkpoint == [Path("one"), Path("two.ckpt")]


def test_stems_are_given_with_commas() -> None:
    assert understand([*REQUIRED, "--stems", "vocals, bass"]).options.stems == ["vocals", "bass"]


def test_the_residual_has_a_name_of_its_own_if_asked() -> None:
    assert understand([*REQUIRED, "--residual"]).options.residual == "residual"
    assert understand([*REQUIRED, "--residual", "instrumental"]).options.residual == "instrumental"


def test_information_needs_no_songs() -> None:
    assert understand(["--info", "model.ckpt"]).options.info == Path("model.ckpt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "MIXTURE, --checkpoint, --preset or --recipe, --output"),
        (["song.wav", "--output", "out"], "--checkpoint"),
        ([*REQUIRED, "--chunk-size", "0"], "argument --chunk-size: must be an integer from 1 to .*, but is '0'"),
        ([*REQUIRED, "--chunk-size", "9" * 30], "argument --chunk-size: must be an integer from 1 to"),
        ([*REQUIRED, "--batch-size", "9" * 5000], "argument --batch-size: must be an integer from 1 to"),
        ([*REQUIRED, "--num-overlap", "-2"], "argument --num-overlap: .*'-2'"),
        ([*REQUIRED, "--batch-size", "1.5"], "argument --batch-size: .*'1.5'"),
        ([*REQUIRED, "--dtype", "float64"], "argument --dtype: .*'float64'"),
        ([*REQUIRED, "--format", "aac"], "argument --format: .*'aac'"),
        ([*REQUIRED, "--quality", "11"], "argument --quality: .*'11'"),
        ([*REQUIRED, "--quality", "nan"], "argument --quality: .*'nan'"),
        ([*REQUIRED, "--stems", "vocals,,bass"], "argument --stems: .*'vocals,,bass'"),
        ([*REQUIRED, "--upstream", "spleeter"], "argument --upstream: .*'spleeter'"),
        ([*REQUIRED, "--name-template", "{song}/../{stem}"], "leads out of --output"),
        ([*REQUIRED, "--name-template", "{title}"], "has the field 'title'"),
        ([*REQUIRED, "--residual", "a/b"], "argument --residual: .*'a/b'"),
        ([*REQUIRED, "--residual", __file__], "argument --residual: .* put it before"),
        ([*REQUIRED, "--weights", "1,a"], "argument --weights: .*'1,a'"),
        ([*REQUIRED, "--weights", "0,0"], "argument --weights: .*'0,0'"),
        ([*REQUIRED, "--no-such-option"], "--no-such-option"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(arguments)
    out, line = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"hunterFormsBS: error: .*{message}.*\n", line)


@pytest.mark.parametrize(("given", "meant"), [("--formt", "--format"), ("--checkpont", "--checkpoint")])
def test_an_option_that_nearly_exists_is_answered_with_the_one_that_does(
    given: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["song.wav", "--output", "x", "--checkpoint", "y", given, "z"])
    error = capsys.readouterr().err
    assert f"is {meant} meant?" in error
    assert len(error.splitlines()) == 1
