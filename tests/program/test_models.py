"""`hunterforms models` and `hunterforms presets`: what is listed, in which order, and how it fits a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hunterFormsBS.catalogue import Entry, entries, presets
from hunterFormsBS.checkpoint import facts
from hunterFormsBS.failures import UsageError
from hunterFormsBS.program.commands import models, separate
from hunterFormsBS.program.dispatch import main, understand
from hunterFormsBS.program.tables import Column, table

MADE = {
    name: Entry(name=name, stems=stems, configuration={}, scores=scores, memory=memory, created=created, purpose="x")
    for name, stems, scores, memory, created in (
        ("good", ("vocals",), {"musdb18/9": {"vocals": {"sdr": 8.0}}}, 3 * 10**9, "2025-01-01"),
        ("better", ("vocals", "instrum"), {"musdb18/9": {"vocals": {"sdr": 9.0}}}, 5 * 10**9, "2024-01-01"),
        ("elsewhere", ("instrum",), {"unstated": {"vocals": {"sdr": 99.0}, "instrum": {"sdr": 7.0}}}, 0, ""),
        ("another", ("vocals",), {"musdb18/8": {"vocals": {"sdr": 50.0}}}, 2 * 10**9, "2023-01-01"),
        ("silent", ("vocals",), {"mvsep/1": {}}, 1 * 10**9, "2022-01-01"),
    )
}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a catalogue of five."""
    for module in (facts, models):
        monkeypatch.setattr(module, "entries", lambda: MADE)


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Return a function that runs the program, and returns what it prints."""

    def run(*arguments: str) -> list[str]:
        assert main(list(arguments)) == 0
        return capsys.readouterr().out.splitlines()

    return run


def names(rows: list[str]) -> list[str]:
    """Return which of the five begin a line, or come after a score."""
    found = [re.match(r"\s*(?:[\d.]+\s+)?(\w+)", row) for row in rows]
    return [match[1] for match in found if match and match[1] in MADE]


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["another", "better", "elsewhere", "good", "silent"]),
        (["oo"], ["good"]),
        (["VOCALS", "bet"], ["better"]),
        (["--stem", "instrumental"], ["better", "elsewhere"]),
        (["--by", "date", "--stem", "vocals"], ["silent", "another", "better", "good"]),
        (["--by", "memory", "--fits", "3GB"], ["silent", "another", "good"]),
        (["--fits", "2999MB"], ["another", "silent"]),
        # Of each test set its own list; what cannot be compared is in the order of names.
        (["--by", "sdr"], ["elsewhere", "better", "good", "another", "elsewhere"]),
        (["--by", "sdr", "--stem", "vocals"], ["better", "good", "another"]),
    ],
)
def test_checkpoints_are_found_and_ordered(
    lines: Callable[..., list[str]], arguments: list[str], expected: list[str]
) -> None:
    assert names(lines("models", *arguments)) == expected
    # The same as JSON, each once.
    records = [json.loads(line) for line in lines("models", *arguments, "--json")]
    assert {record["name"] for record in records} >= set(expected)
    assert len(records) == len({record["name"] for record in records})


@pytest.mark.usefixtures("made")
def test_scores_of_different_test_sets_are_never_in_one_list(lines: Callable[..., list[str]]) -> None:
    headings = [line for line in lines("models", "--by", "sdr", "--stem", "vocals") if line.startswith("vocals: ")]
    assert [re.search(r"\d+(?= results)", heading) and heading.split()[1] for heading in headings] == ["9", "8"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["xyzzy"], "no checkpoint has xyzzy in its names, stems or purpose"),
        (["bs_roformer-unwa-reviv3"], "is bs_roformer-unwa-revive"),
        (["--stem", "vocls"], "no checkpoint has a stem vocls; is vocals meant?"),
        (["--fits", "1MB"], "no checkpoint matches all of this"),
    ],
)
def test_where_nothing_is_found_a_line_says_so(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["models", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("size", ["4XB", "GB", "0GB", "-1GB", "1e9GB", "", "4"])
def test_a_size_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], size: str) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["models", f"--fits={size}"])
    assert "must be a size such as 4GB or 800MB, but is" in capsys.readouterr().err


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("arguments", [["models"], ["models", "--by", "sdr"], ["presets"]], ids=" ".join)
def test_tables_fit_the_terminal_and_names_are_whole(
    lines: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, width: int, arguments: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    printed = lines(*arguments)
    rows = [
        line for line in printed if re.match(r"(?:\s*[\d.]+\s\s)?(?:bs|mel)_roformer|(?:NAME|\s+SDR|PRESET)\b", line)
    ]
    assert rows or arguments == ["presets"]
    # A name of 47 characters and what is beside it at the least take more than 60.
    assert max(map(len, rows), default=0) <= max(width, 80)
    listed = {name for line in printed for name in entries() if name in line.split()}
    assert len(listed) == (120 if arguments == ["models"] else len(listed))
    assert listed


def test_a_file_gets_every_column_whole(lines: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    heading, *rows = lines("models")
    assert heading.split() == ["NAME", "STEMS", "PURPOSE", "BY", "DATE", "MB", "GFLOP", "GB"]
    assert not any("..." in row for row in rows)


@pytest.mark.parametrize("name", entries())
def test_everything_about_one_is_shown_by_any_of_its_names(lines: Callable[..., list[str]], name: str) -> None:
    entry = entries()[name]
    shown = "\n".join(lines("models", name))
    for fact in (*entry.stems, *entry.authors, entry.created, entry.page, entry.sha256, *entry.known_as):
        assert fact in shown
    values = [value for stems in entry.scores.values() for scores in stems.values() for value in scores.values()]
    assert all(f"{value:.2f}" in shown for value in values)
    for other in entry.known_as:
        assert "\n".join(lines("models", *other.split())) == shown
    (record,) = (json.loads(line) for line in lines("models", name, "--json"))
    assert record["name"] == name
    assert all(score["source"] for score in record["scores"])


def test_presets_are_listed_with_members_and_sources(lines: Callable[..., list[str]]) -> None:
    printed = [line.strip() for line in lines("presets")]
    records = [json.loads(line) for line in lines("presets", "--json")]
    assert [record["name"] for record in records] == list(presets())
    for record, preset in zip(records, presets().values(), strict=True):
        members = [entries()[name] for name in preset.checkpoints]
        assert record["flop_per_second"] == sum(entry.flop_per_second for entry in members)
        assert {*preset.checkpoints, f"from {preset.source}"} <= set(printed)


def test_columns_that_matter_least_go_first() -> None:
    columns = [
        Column("NAME", ["a" * 20]),
        Column("SHRINKS", ["b" * 30], may_shrink=True),
        Column("SECOND", ["c" * 10], priority=1),
        Column("FIRST", ["d" * 10], priority=2),
    ]
    for width, expected in (
        (100, f"{'a' * 20}  {'b' * 30}  {'c' * 10}  {'d' * 10}"),
        (60, f"{'a' * 20}  {'b' * 11}...  {'c' * 10}  {'d' * 10}"),
        (50, f"{'a' * 20}  {'b' * 13}...  {'c' * 10}"),
        (40, f"{'a' * 20}  {'b' * 15}..."),
        (10, f"{'a' * 20}  {'b' * 9}..."),
    ):
        assert list(table(columns, width))[1] == expected


# ---- what `separate --preset` makes of one


def expanded(*arguments: str) -> dict[str, object]:
    options = understand(["song.wav", "--output", "out", *arguments]).options
    return vars(separate._with_ensemble(options))  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("name", presets())
def test_a_preset_stands_for_its_checkpoints(name: str) -> None:
    preset = presets()[name]
    given = [word for one in preset.checkpoints for word in ("--checkpoint", one)]
    by_hand = expanded(*given, "--ensemble", preset.ensemble, "--stems", ",".join(preset.stems))
    assert expanded("--preset", name) == {**by_hand, "preset": name}
    assert by_hand["checkpoint"] == [Path(one) for one in preset.checkpoints]


def test_without_a_preset_samples_are_averaged() -> None:
    assert expanded("--checkpoint", "x")["ensemble"] == "avg_wave"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--checkpoint", "model.ckpt"],
        ["--configuration", "model.yaml"],
        ["--ensemble", "avg_wave"],
        ["--weights", "1,1"],
        ["--upstream", "msst"],
        ["--lora", "folder"],
    ],
)
def test_what_a_preset_decides_is_not_given_as_well(arguments: list[str]) -> None:
    with pytest.raises(UsageError, match=f"leave out {arguments[0]}, or name the checkpoints"):
        expanded("--preset", "vocal_full", *arguments)


def test_a_preset_that_is_unknown_is_answered_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["song.wav", "--preset", "vocal_balance", "--output", "out"])
    assert "vocal_balanced" in capsys.readouterr().err
