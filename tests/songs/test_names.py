"""Names of files: safe everywhere, below the output folder, and never two of one name."""

from __future__ import annotations

import os
import string
import unicodedata
from pathlib import Path, PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hunterFormsBS.songs import names
from hunterFormsBS.songs.names import (
    FIELDS,
    TEMPLATE,
    check_apart,
    check_length,
    check_template,
    fill_in,
    key_of,
    safe_name,
    song_name,
)


@given(st.text(max_size=40))
def test_a_safe_name_is_a_name_on_every_system(text: str) -> None:
    name = safe_name(text)
    assert name
    assert not set(name) & set('\\/:*?"<>|')
    assert not any(unicodedata.category(one)[0] == "C" for one in name)
    assert name == name.strip(". ")
    assert unicodedata.is_normalized("NFC", name)
    assert safe_name(name) == name
    assert PurePath(name).parts == (name,)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("vocals", "vocals"),
        ("a/b", "a_b"),
        ("../../x", "_.._x"),
        ("..", "_"),
        ("", "_"),
        ("CON", "CON_"),
        ("lpt1.x", "lpt1.x_"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\x1b[2Jb", "a_[2Jb"),
        (3, "3"),
    ],
)
def test_what_is_not_safe_is_replaced(text: object, name: str) -> None:
    assert safe_name(text) == name


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a/song.wav", "song"),
        ("...wav", "_"),
        ("..wav", "_"),
        (". .wav", "_"),
        ("a.b.flac", "a.b"),
        ("song", "song"),
        (".hidden", ".hidden"),
    ],
)
def test_songs_are_called_after_their_files_and_never_by_dots_alone(file: str, name: str) -> None:
    assert song_name(Path(file)) == name


@pytest.mark.parametrize(
    ("one", "other"), [("Vocals", "vocals"), ("a.", "a"), ("caf\u00e9", "cafe\u0301"), ("x/A ", "X/a")]
)
def test_what_some_file_system_takes_for_one_has_one_key(one: str, other: str) -> None:
    assert key_of(one) == key_of(other)


def test_a_template_is_filled_in_and_gets_the_suffix() -> None:
    template = check_template("{model}/{song} ({number} {stem})")
    filled = fill_in(template, {"song": "a", "stem": "bass", "model": "m", "number": 2, "ext": "flac"})
    assert filled == PurePath("m/a (2 bass).flac")
    assert fill_in(check_template(TEMPLATE), {"song": "a", "stem": "b", "ext": "wav"}) == PurePath("a/b.wav")
    assert fill_in(check_template("{dir_name}/{stem}"), {"dir_name": "", "stem": "b", "ext": "wav"}) == PurePath(
        "b.wav"
    )


@pytest.mark.parametrize(
    "template",
    [
        "",
        "/{song}",
        "../{song}",
        "{song}/../{stem}",
        "{song}/",
        "{song}//{stem}",
        "{artist}",
        "{song!r}",
        "{song:9}",
        "{",
        "{0}",
    ],
)
def test_a_template_that_cannot_work_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"use \{song\}, \{file_name\}, \{stem\}"):
        check_template(template)


@given(st.lists(st.sampled_from([*string.ascii_letters, *"./\\{}", "{dir_name}", "{ext_source}", "..{dir_name}/"])))
def test_no_template_leads_out_of_the_output_folder(pieces: list[str]) -> None:
    try:
        template = check_template("".join(pieces) + "{stem}")
    except ValueError:
        return
    output = Path("/out")
    fields = {**dict.fromkeys(FIELDS, "x"), "stem": "t", "ext": "wav", "dir_name": "", "ext_source": ""}
    path = output / fill_in(template, fields)
    assert output in Path(os.path.normpath(path)).parents


def test_two_stems_two_songs_and_a_file_above_another_are_refused() -> None:
    out = Path("out")
    check_apart({Path("a.wav"): [out / "a/x.wav", out / "a/y.wav"], Path("b.wav"): [out / "b/x.wav"]})
    with pytest.raises(ValueError, match=r"two stems would be written as out/a/X\.wav"):
        check_apart({Path("a.wav"): [out / "a/x.wav", out / "a/X.wav"]})
    with pytest.raises(ValueError, match=r"a\.wav and b\.wav would both be written to out/A/x\.wav"):
        check_apart({Path("a.wav"): [out / "a/x.wav"], Path("b.wav"): [out / "A/x.wav"]})
    with pytest.raises(ValueError, match=r"a\.wav and b\.wav would both be written to out/x\.wav"):
        check_apart({Path("a.wav"): [out / "x.wav"], Path("b.wav"): [out / "x.wav/y.wav"]})


def test_names_are_measured_in_bytes_by_what_the_file_system_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "not" / "there"
    check_length(output / ("\u00e9" * 125) / "x.wav", output)
    with pytest.raises(ValueError, match="a name of 256 bytes, and file systems take 255"):
        check_length(output / ("\u00e9" * 128) / "x.wav", output)
    monkeypatch.setattr(names.os, "pathconf", lambda _path, _name: 143, raising=False)
    with pytest.raises(ValueError, match="a name of 144 bytes, and file systems take 143"):
        check_length(output / ("n" * 140 + ".wav"), output)
