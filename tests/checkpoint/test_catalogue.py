"""Checkpoints by name: the table of facts, and files that are here."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.catalogue import Entry, entries, recognise
from hunterFormsBS.checkpoint import CheckpointError, facts, from_checkpoint, from_configuration
from hunterFormsBS.checkpoint.byName import find_configuration
from tests.conftest import TINY


@cache
def parameters_of(model: str) -> tuple[int, int]:
    """Return the numbers of parameters and of stems of the model with these arguments, as JSON."""
    with torch.device("meta"):
        built = from_configuration({"model": json.loads(model)})
    return sum(parameter.numel() for parameter in built.parameters()), built.num_stems


OF_ANOTHER_SIZE: dict[str, str] = {}
"""Checkpoints whose file has room for more, or fewer, parameters than their model has, and why."""


@pytest.mark.parametrize("name", entries())
def test_every_checkpoint_builds_with_as_many_parameters_as_its_file_has_room_for(name: str) -> None:
    entry = entries()[name]
    # Many are of the same model.
    parameters, num_stems = parameters_of(json.dumps(entry.configuration["model"], sort_keys=True))
    assert num_stems == len(entry.stems)
    if entry.size:
        bytes_each = entry.size / parameters
        fits = 1.98 < bytes_each < 2.1 or 3.97 < bytes_each < 4.2
        assert fits is (name not in OF_ANOTHER_SIZE)


def test_facts_are_whole() -> None:
    assert len(entries()) > 100
    digests = [entry.sha256 for entry in entries().values() if entry.sha256]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 for digest in digests)
    assert all(bool(entry.repository) == bool(entry.file) for entry in entries().values())


def made() -> BandSplitRotator:
    torch.manual_seed(0)
    return BandSplitRotator(**TINY | {"stereo": True, "zero_dc": False, "stft_hop_length": 8}).eval()


def in_msst_s_words() -> dict[str, Any]:
    model = {name: TINY[name] for name in TINY if name != "mask_estimator_depth"}
    return {"model": {**model, "stereo": True, "zero_dc": False, "stft_hop_length": 8, "mask_estimator_depth": 2}}


def test_a_file_that_is_here_is_recognised_and_needs_no_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "renamed.ckpt"
    torch.save(made().state_dict(), path)
    entry = Entry(
        name="x",
        stems=("vocals",),
        configuration=in_msst_s_words(),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        size=path.stat().st_size,
    )
    monkeypatch.setattr(facts, "entries", lambda: {"x": entry})
    assert recognise(path) == entry
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = from_checkpoint(path)
    assert model.configuration["stft_hop_length"] == 8
    assert not model.zero_dc
    torch.save({**made().state_dict(), "a": torch.zeros(1)}, tmp_path / "other.ckpt")
    assert recognise(tmp_path / "other.ckpt") is None
    monkeypatch.setattr(facts, "entries", dict)
    with pytest.warns(UserWarning, match="nothing determines these arguments"):
        from_checkpoint(path)


def test_a_file_without_a_known_digest_is_recognised_by_its_size_and_its_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "renamed.ckpt"
    torch.save(made().state_dict(), path)
    entry = Entry(name="x", stems=("vocals",), configuration=in_msst_s_words(), size=path.stat().st_size)
    monkeypatch.setattr(facts, "entries", lambda: {"x": entry})
    assert recognise(path) == entry
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert from_checkpoint(path).configuration["stft_hop_length"] == 8
    # Another size, other shapes, no weights at all, and a size that is of two.
    (tmp_path / "longer.ckpt").write_bytes(path.read_bytes() + b"0")
    assert recognise(tmp_path / "longer.ckpt") is None
    narrower = {**in_msst_s_words()["model"], "dim": 8}
    monkeypatch.setattr(facts, "entries", lambda: {"x": replace(entry, configuration={"model": narrower})})
    assert recognise(path) is None
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.ckpt")
    other = replace(entry, size=(tmp_path / "other.ckpt").stat().st_size)
    monkeypatch.setattr(facts, "entries", lambda: {"x": other})
    assert recognise(tmp_path / "other.ckpt") is None
    monkeypatch.setattr(facts, "entries", lambda: {"x": entry, "y": replace(entry, name="y")})
    assert recognise(path) is None
    # One whose digest is known is not taken for one whose digest is not.
    monkeypatch.setattr(facts, "entries", lambda: {"x": entry, "y": replace(entry, name="y", sha256="0" * 64)})
    assert recognise(path) is None


@pytest.mark.parametrize("read", [from_checkpoint, lambda name: find_configuration(Path(name), None)])
@pytest.mark.parametrize(
    ("name", "hint"),
    [("bs_roformer-unwa-reviv", "; the catalogue has bs_roformer-unwa-revive"), ("model.ckpt", "")],
)
def test_a_misspelt_name_is_answered_with_the_right_one(read: Callable[[str], object], name: str, hint: str) -> None:
    with pytest.raises(FileNotFoundError) as error:
        read(name)
    assert (error.value.filename, error.value.strerror) == (name, f"No such file or directory{hint}")


@pytest.mark.parametrize("name", ["hub:owner", "hub:owner/repository", "hub:", "hub://x"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="neither a name of the catalogue nor hub:OWNER/REPOSITORY/FILE"):
        from_checkpoint(name)


def test_a_checkpoint_that_is_not_on_the_hub_says_what_to_do() -> None:
    name = next(name for name, entry in entries().items() if not entry.repository)
    with pytest.raises(CheckpointError, match="not on the Hugging Face Hub: download it by hand"):
        from_checkpoint(name)
