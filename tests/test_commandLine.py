"""The command line: what it explains, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hunterFormsBS.commandLine import Options, parser

REQUIRED = ["song.wav", "--checkpoint", "model.ckpt", "--output", "out"]


def test_help_explains_every_option_and_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        parser().parse_args(["--help"])
    text = capsys.readouterr().out
    assert text.count("python -m hunterFormsBS ") >= 4
    for action in parser()._actions:  # pyright: ignore[reportPrivateUsage]
        assert action.help
        assert all(name in text for name in action.option_strings)


def test_the_options_have_the_documented_defaults() -> None:
    options = parser().parse_args(REQUIRED, Options())
    assert options.mixtures == [Path("song.wav")]
    assert (options.format, options.bit_depth, options.device, options.dtype) == ("wav", None, "auto", "float32")
    for name in ("configuration", "upstream", "stems", "chunk_size", "num_overlap", "batch_size"):
        assert getattr(options, name) is None
    for name in ("residual", "overwrite", "quiet"):
        assert getattr(options, name) is False


def test_stems_are_given_with_commas() -> None:
    assert parser().parse_args([*REQUIRED, "--stems", "vocals, bass"], Options()).stems == ["vocals", "bass"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "MIXTURE, --checkpoint, --output"),
        (["song.wav", "--output", "out"], "--checkpoint"),
        ([*REQUIRED, "--chunk-size", "0"], "argument --chunk-size: must be an integer of at least 1, but is '0'"),
        ([*REQUIRED, "--num-overlap", "-2"], "argument --num-overlap: .*'-2'"),
        ([*REQUIRED, "--batch-size", "1.5"], "argument --batch-size: .*'1.5'"),
        ([*REQUIRED, "--dtype", "float64"], "argument --dtype: .*'float64'"),
        ([*REQUIRED, "--format", "aac"], "argument --format: .*'aac'"),
        ([*REQUIRED, "--quality", "11"], "argument --quality: .*'11'"),
        ([*REQUIRED, "--quality", "nan"], "argument --quality: .*'nan'"),
        ([*REQUIRED, "--stems", "vocals,,bass"], "argument --stems: .*'vocals,,bass'"),
        ([*REQUIRED, "--upstream", "spleeter"], "argument --upstream: .*'spleeter'"),
        ([*REQUIRED, "--no-such-option"], "--no-such-option"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        parser().parse_args(arguments, Options())
    out, line = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"hunterFormsBS: error: .*{message}.*\n", line)
