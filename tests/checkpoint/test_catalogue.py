"""Checkpoints by name: the table of facts, and files that are here.

The facts are compared with `shared/catalogue` beside the checkout, or the folder that HUNTERFORMSBS_CATALOGUE names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.__main__ import main
from hunterFormsBS.catalogue import Entry, entries, presets, recognise, score_source
from hunterFormsBS.checkpoint import CheckpointError, byName, facts, from_checkpoint, from_configuration
from hunterFormsBS.checkpoint.byName import find_configuration, is_remote
from hunterFormsBS.choices import ENSEMBLES
from tests.conftest import ROOT, TINY

sys.path.insert(0, str(ROOT))  # The benchmarks are run from the checkout, and are not installed.

from benchmarks import costs

FACTS = Path(os.environ.get("HUNTERFORMSBS_CATALOGUE") or ROOT.parent / "shared" / "catalogue") / "roformer_scores.json"
BUILDABLE = [name for name, entry in entries().items() if entry.configuration]


@cache
def parameters_of(model: str) -> tuple[int, int]:
    """Return the numbers of parameters and of stems of the model with these arguments, as JSON."""
    with torch.device("meta"):
        built = from_configuration({"model": json.loads(model)})
    return sum(parameter.numel() for parameter in built.parameters()), built.num_stems


OF_ANOTHER_SIZE: dict[str, str] = {}
"""Checkpoints whose file has room for more, or fewer, parameters than their model has, and why."""


@pytest.mark.parametrize("name", BUILDABLE)
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
    assert len(entries()) == 120
    digests = [entry.sha256 for entry in entries().values() if entry.sha256]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 for digest in digests)
    for entry in entries().values():
        assert bool(entry.repository) == bool(entry.file)
        ways = (entry.repository, entry.url, entry.configuration_page, entry.parts)
        assert len([way for way in ways if way]) == 1
        is_recognised = entry.sha256 or (entry.size and entry.configuration)
        assert is_recognised or entry.configuration_page or entry.parts
        assert entry.page.startswith("https://")
        assert entry.authors
        assert entry.purpose in ("separation", "dereverb", "denoise", "decrowd", "debleed")
        assert bool(entry.configuration) == bool(entry.flop_per_second) == bool(entry.memory)
    assert all(stems for stems in (preset.stems for preset in presets().values()))
    assert {preset.ensemble for preset in presets().values()} <= set(ENSEMBLES)


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    if not FACTS.exists():
        pytest.skip(f"{FACTS} has the facts to compare with")
    content: dict[str, Any] = json.loads(FACTS.read_text(encoding="utf-8"))
    return content


def test_who_made_what_when_for_what_and_its_scores_are_those_that_were_published(published: dict[str, Any]) -> None:
    assert set(entries()) == set(published["registry"])
    for name, fact in published["registry"].items():
        entry = entries()[name]
        assert (list(entry.authors), entry.created or None, entry.purpose) == (
            fact["authors"], fact["created"], fact["purpose"],
        )  # fmt: skip
        addresses = fact.get("metrics_source", [])
        found: dict[str, dict[str, float]] = {}
        for key, stems in entry.scores.items():
            source = score_source(key)
            if source.source.startswith("audio-separator"):
                continue
            assert source.source in (addresses or ["registry of splifft 0.0.9"])
            assert not source.compares
            found |= {stem: dict(values) for stem, values in stems.items()}
        assert found == fact.get("metrics", {})
        assert not addresses or set(addresses) <= {score_source(key).source for key in entry.scores}


def test_names_and_scores_of_audio_separator_are_its_own(published: dict[str, Any]) -> None:
    names, scores = {name: set[str]() for name in entries()}, {name: dict[str, Any]() for name in entries()}
    for file, fact in published["audio_separator"].items():
        if (name := fact.get("catalogue")) is None:
            assert facts.find_entry(file) is None
            continue
        names[name] |= {file, fact["title"].removeprefix("Roformer Model: ")}
        for stem, values in fact.get("median_scores_musdb18", {}).items():
            stem = {"instrumental": "instrum"}.get(stem, stem)
            scores[name][f"musdb18/{fact['tracks']}", stem] = {metric.lower(): x for metric, x in values.items()}
    for name, entry in entries().items():
        own = (entry.file or entry.url).rpartition("/")[2]
        assert {*entry.known_as} == names[name] - {own}
        assert all(facts.find_entry(other) is entry for other in (name, *names[name]))
        measured = {key: stems for key, stems in entry.scores.items() if score_source(key).compares}
        assert {(key, stem): dict(values) for key, stems in measured.items() for stem, values in stems.items()} == (
            scores[name]
        )


def test_presets_are_those_whose_models_are_all_in_the_catalogue(published: dict[str, Any]) -> None:
    expected = {
        name: (fact["algorithm"], tuple(model["catalogue"] for model in fact["models"]))
        for name, fact in published["presets"].items()
        if all(model["catalogue"] for model in fact["models"])
    }
    assert {name: (preset.ensemble, preset.checkpoints) for name, preset in presets().items()} == expected
    assert not any(fact["weights"] for fact in published["presets"].values())
    for name, preset in presets().items():
        assert preset.source == f"audio-separator 0.47.1, after the {published['presets'][name]['after']}"
        assert all(set(preset.stems) <= set(entries()[one].stems) for one in preset.checkpoints)


def unlike() -> list[str]:
    """Return names of one checkpoint of each configuration."""
    by_configuration: dict[str, str] = {}
    for name in BUILDABLE:
        by_configuration.setdefault(json.dumps(entries()[name].configuration, sort_keys=True), name)
    return list(by_configuration.values())


@pytest.mark.slow(reason="models of full size, though only their shapes: some seconds each")
@pytest.mark.parametrize("name", unlike())
def test_costs_are_those_that_a_configuration_gives(name: str) -> None:
    entry = entries()[name]
    # Versions of PyTorch allocate a little more or less.
    assert (entry.flop_per_second, entry.memory) == pytest.approx(costs.cost_of(entry.configuration), rel=0.02)


def test_checkpoints_of_one_model_cost_the_same() -> None:
    known: dict[str, tuple[int, int]] = {}
    for name in BUILDABLE:
        entry = entries()[name]
        cost = (entry.flop_per_second, entry.memory)
        # Names of stems cost nothing.
        key = json.dumps([entry.configuration["model"], entry.configuration["audio"]], sort_keys=True)
        assert known.setdefault(key, cost) == cost


def test_costs_are_those_of_the_formulas() -> None:
    with torch.device("meta"):
        model = BandSplitRotator(**TINY | {"stereo": True}).eval()
    samples = 1600
    cost = costs.cost(model, samples, 1600)
    frames, bands, dim, inner, heads, e = samples // 16 + 1, 6, 12, 8, 2, 4
    tokens = frames * bands
    layers = 2 * TINY["depth"]
    products = tokens * layers * (dim * inner * 3 + dim * heads + inner * dim + 2 * dim * 4 * dim)
    attention = 2 * heads * e * tokens * (frames + bands) * TINY["depth"]
    widths = [2 * 2 * bins for bins in TINY["freqs_per_bands"]]
    split = frames * dim * sum(widths)
    hidden = dim * TINY["mlp_expansion_factor"]
    masks = frames * sum(dim * hidden + hidden * 2 * width for width in widths)
    operations = 2 * (products + attention + split + masks)
    assert cost.flop_per_second == pytest.approx(operations, rel=0.02)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    least = weights + 4 * tokens * dim * 5  # tokens, their norm, and four times as many features within a layer
    assert least < cost.memory < 4 * least


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
    [
        ("bs_roformer_unwa-reviv", "; the catalogue has bs_roformer-unwa-revive"),
        ("BS_Roformer-fruit-SW", "; the catalogue has bs_roformer-fruit-sw"),
        ("voc_fv4", "; the catalogue has mel_roformer-gabox-voc_fv4"),
        ("model.ckpt", ""),
    ],
)
def test_a_misspelt_name_is_answered_with_the_right_one(read: Callable[[str], object], name: str, hint: str) -> None:
    with pytest.raises(FileNotFoundError) as error:
        read(name)
    assert (error.value.filename, error.value.strerror) == (name, f"No such file or directory{hint}")


@pytest.mark.parametrize("name", ["hub:owner", "hub:owner/repository", "hub:", "hub://x"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="neither a name of the catalogue nor hub:OWNER/REPOSITORY/FILE"):
        from_checkpoint(name)


@pytest.mark.parametrize("name", [name for name, entry in entries().items() if not (entry.repository or entry.url)])
def test_a_checkpoint_that_cannot_be_fetched_loads_by_its_name_once_that_was_done_which_its_error_asks_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path))
    entry = entries()[name]
    with pytest.raises(CheckpointError, match=f"^{name} cannot be fetched by its name: ") as error:
        from_checkpoint(name)
    remedy = str(error.value).partition("name: ")[2]
    assert main(["models", name]) == 0
    assert f"  address    {remedy}\n" in capsys.readouterr().out
    if entry.parts:
        assert len(entry.parts) == len(entry.stems)
        assert all(facts.find_entry(part) is None and is_remote(part) and part in remedy for part in entry.parts)
        return
    asked = re.search(
        rf"save {re.escape(entry.page)} as (.*\.ckpt) and .* {re.escape(entry.configuration_page)}, as (.*\.yaml);",
        remedy,
    )
    assert asked is not None
    checkpoint, configuration = map(Path, asked.groups())
    checkpoint.parent.mkdir(parents=True)
    torch.save(made().state_dict(), checkpoint)
    with pytest.raises(CheckpointError, match="cannot be fetched by its name"):
        from_checkpoint(name)
    configuration.write_text(json.dumps(in_msst_s_words()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert from_checkpoint(name).configuration["stft_hop_length"] == 8


def test_a_name_that_two_go_by_is_that_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    named = {name: Entry(name=name, stems=(), configuration={}, known_as=("both", name * 2)) for name in "ab"}
    monkeypatch.setattr(facts, "entries", lambda: named)
    assert (facts.find_entry("aa"), facts.find_entry("b")) == (named["a"], named["b"])
    assert facts.find_entry("both") is None
    assert facts.find_entry("") is None


def test_a_file_that_is_here_comes_before_a_name_that_others_give_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "model_bs_roformer_ep_317_sdr_12.9755.ckpt"
    assert byName.is_remote(name)
    assert not byName.is_remote(f"models/{name}")
    torch.save(made().state_dict(), name)
    assert not byName.is_remote(name)
    assert byName.find(name) == (Path(name), None)
