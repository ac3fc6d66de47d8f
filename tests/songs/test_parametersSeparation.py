"""How a song is separated: one record, whose fields are keywords wherever songs are separated."""

from __future__ import annotations

import dataclasses
import inspect
import pydoc
from typing import Any, get_type_hints

import pytest
import torch

from hunterFormsBS.ensemble import separate_ensemble_stream
from hunterFormsBS.parametersSeparation import KeywordsSeparation, ParametersSeparation
from hunterFormsBS.program.dispatch import understand
from hunterFormsBS.separation import separate, separate_stream
from hunterFormsBS.songs.options import Options

FIELDS = [field.name for field in dataclasses.fields(ParametersSeparation)]


def test_keywords_are_the_fields_of_the_record_with_the_same_types() -> None:
    assert get_type_hints(KeywordsSeparation) == get_type_hints(ParametersSeparation)


@pytest.mark.parametrize("function", [separate, separate_stream, separate_ensemble_stream])
def test_signature_and_help_have_every_field_with_its_type_default_and_explanation(function: Any) -> None:
    parameters = inspect.signature(function).parameters
    hints = get_type_hints(ParametersSeparation)
    for field in dataclasses.fields(ParametersSeparation):
        parameter = parameters[field.name]
        assert (parameter.kind, parameter.default) == (parameter.KEYWORD_ONLY, field.default)
        assert parameter.annotation == hints[field.name]
    described = pydoc.render_doc(function, renderer=pydoc.plaintext)
    assert all(f"\n    {name} : " in described for name in FIELDS)
    assert "**keywords" not in described


def test_the_record_explains_every_field_and_nothing_else() -> None:
    section = inspect.cleandoc(ParametersSeparation.__doc__ or "").partition("Raises")[0]
    assert [line.partition(" : ")[0] for line in section.splitlines() if " : " in line] == FIELDS


def test_every_field_is_an_option_of_the_command_line() -> None:
    options = Options(**vars(understand([]).options))
    assert {name for name in FIELDS if not hasattr(options, name)} == set()
    assert options.separation().get("dtype") is torch.float32


@pytest.mark.parametrize("function", [separate, separate_stream, separate_ensemble_stream])
def test_an_unknown_keyword_is_answered_with_the_nearest(function: Any) -> None:
    models: Any = [len] if function is separate_ensemble_stream else len
    with pytest.raises(TypeError, match="no argument 'chunksize': the nearest is 'chunk_size'"):
        list(function(models, [], chunksize=3))


@pytest.mark.parametrize("value", ["False", 1, None])
def test_what_is_not_a_boolean_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="`tta` must be True or False: received"):
        ParametersSeparation(tta=value)


def test_the_record_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ParametersSeparation().chunk_size = 1  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
