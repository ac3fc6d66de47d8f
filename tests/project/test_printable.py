"""What strangers wrote is shown on one bounded line that cannot steer a terminal."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from hunterFormsBS.printable import printable, short_repr


@pytest.mark.parametrize(
    "character", ["\x00", "\x1b", "\n", "\r", "\x7f", "\x9b", "\u202e", "\u2066", "\u2028", "\ud800"]
)
def test_no_character_that_steers_a_terminal_is_left(character):
    for shown in (printable(f"a{character}b"), short_repr({f"a{character}b": [character]})):
        assert not any(unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp") for each in shown)
        assert shown.isprintable()


def test_ordinary_text_of_any_language_stays_as_it_is():
    assert printable("Björk – Jóga (日本語) ♥.wav") == "Björk – Jóga (日本語) ♥.wav"


@pytest.mark.parametrize("limit", [20, 300])
def test_long_text_loses_its_middle(limit):
    shown = printable("<" + "x" * 100_000 + ">", limit)
    assert len(shown) <= limit
    assert shown.startswith("<")
    assert shown.endswith(">")


def test_escapes_count_towards_the_limit():
    assert len(printable("\x1b" * 1000, 100)) <= 100


class Hostile:
    def __repr__(self):
        raise AssertionError("asked for its own repr")


def holds_itself():
    value = {}
    value.update(dict.fromkeys("abcdefgh", value))
    return value


@pytest.mark.parametrize(
    "value",
    [10**4999, list(range(10**6)), {"x" * 10**6: "y" * 10**6}, holds_itself(), Hostile(), [Hostile()], b"\x1b" * 10**6],
    ids=["integer", "list", "dictionary", "cycle", "object", "objects", "bytes"],
)
def test_a_repr_is_bounded_whatever_it_shows(value):
    assert 0 < len(short_repr(value)) <= 300


def test_small_values_are_shown_as_python_shows_them():
    for value in (1, -2.5, True, None, "a", [1, "b"], {"k": (1, 2)}, b"abc", sys.maxsize):
        assert short_repr(value) == repr(value)
