"""`hunterforms separate`: its defaults, and what it refuses."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from hunterFormsBS.checkpoint.facts import presets
from hunterFormsBS.program.dispatch import main, understand
from hunterFormsBS.program.purposes import Purpose, purposes
from hunterFormsBS.recipes import shipped
from hunterFormsBS.songs import batch
from hunterFormsBS.songs.options import Options

REQUIRED = ["song.wav", "--checkpoint", "model.ckpt", "--output", "out"]


def test_the_options_have_the_documented_defaults() -> None:
    options = understand(REQUIRED).options
    assert options.mixtures == [Path("song.wav")]
    assert options.checkpoint == [Path("model.ckpt")]
    assert options.configuration == []
    assert understand(["song.wav"]).options.output == Path("separated")
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
        ([], "arguments are required: MIXTURE"),
        ([__file__], "such as hunterforms song.wav --recipe vocals: .* `hunterforms models`"),
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


class Terminal(io.StringIO):
    """A standard stream at which somebody sits."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def separated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Options]:
    """Go to a folder with a song, and return the options of what would be separated."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "song.wav").touch()
    found: list[Options] = []

    def separate_all(options: Options, *_: object) -> int:
        found.append(options)
        return 0

    monkeypatch.setattr(batch, "separate_all", separate_all)
    return found


def at_terminal(monkeypatch: pytest.MonkeyPatch, typed: str) -> Terminal:
    shown = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    monkeypatch.setattr(sys, "stderr", shown)
    return shown


def test_every_recipe_and_preset_is_offered_with_what_it_fetches() -> None:
    offered = purposes()
    assert {each.name for each in offered} == {*shipped(), *presets()}
    assert all(each.summary and each.size > 50e6 for each in offered)
    assert offered[0] == min(offered, key=lambda each: (each.option != "recipe", each.size))


@pytest.mark.parametrize("named", purposes(), ids=lambda each: each.name)
def test_a_song_alone_asks_for_the_purpose_and_takes_its_number_or_name(
    named: Purpose, separated: list[Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    number = purposes().index(named) + 1
    for typed in (f"{number}\n", f"99\nnonsense\n {named.name} \n"):
        shown = at_terminal(monkeypatch, typed).getvalue
        assert main(["song.wav"]) == 0
        assert str(named) in shown()
        assert shown().endswith(f"(without the question: hunterforms SONG --{named.option} {named.name})\n")
        assert shown().count("nor a name above") == typed.count("\n") - 1
    by_question, by_name = separated
    assert by_question == by_name
    assert main(["song.wav", f"--{named.option}", named.name]) == 0
    assert separated[2] == by_question


def test_the_first_purpose_is_taken_where_nothing_is_typed(
    separated: list[Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_terminal(monkeypatch, "\n")
    assert main(["song.wav"]) == 0
    assert separated[0].recipe == purposes()[0].name


@pytest.mark.parametrize(("typed", "environment"), [("", {}), ("1\n", {"RANK": "0", "WORLD_SIZE": "2"})])
def test_nobody_is_asked_who_cannot_answer(
    typed: str, environment: dict[str, str], separated: list[Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    shown = at_terminal(monkeypatch, typed)
    with pytest.raises(SystemExit, match="2"):
        main(["song.wav"])
    assert "such as hunterforms song.wav --recipe vocals" in shown.getvalue()
    assert separated == []


def test_a_song_that_is_not_there_is_said_before_the_question(
    separated: list[Options], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = at_terminal(monkeypatch, "1\n")
    assert main(["snog.wav"]) == 1
    assert shown.getvalue() == "hunterFormsBS: error: snog.wav: No such file or directory\n"
    assert separated == []
