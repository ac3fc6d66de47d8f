"""From a checkpoint to another: what is taken, made new, frozen and adapted, and every recipe of the page."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import from_checkpoint, save_checkpoint
from hunterFormsBS.checkpoint.adapters import read_adapters
from hunterFormsBS.training.adapters import add_adapters, linear_layers_of_transformers
from hunterFormsBS.training.sections import settings_from
from hunterFormsBS.training.starting import describe, freeze, start_from, summary, with_heads

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def three_heads(tiny_model: Callable[..., BandSplitRotator], tmp_path: Path) -> tuple[Path, BandSplitRotator]:
    model = tiny_model(num_stems=3, stereo=True)
    save_checkpoint(tmp_path / "three.ckpt", model)
    return tmp_path / "three.ckpt", model.eval()


def test_heads_are_taken_in_the_order_that_is_asked_for_and_others_are_new(
    three_heads: tuple[Path, BandSplitRotator],
) -> None:
    path, old = three_heads
    stems = ("vocals", "choir", "drums", "more drums")
    heads = {"drums": 2, "more drums": 2, "vocals": 0, "choir": None}
    model, origin = start_from(path, stems=stems, heads=heads)
    assert {name.split(".")[1] for name in origin.made} == {"1"}
    assert {name.split(".")[0] for name in origin.made} == {"mask_estimators"}
    audio = torch.randn(1, 2, 400)
    ours, theirs = model(audio), old(audio)
    torch.testing.assert_close(ours[:, [0, 2, 3]], theirs[:, [0, 2, 2]], rtol=0, atol=0)
    assert not torch.allclose(ours[:, 1], theirs[:, 1])


def test_a_checkpoint_of_upstream_is_read_with_its_configuration_whatever_its_number_of_stems(
    three_heads: tuple[Path, BandSplitRotator], tmp_path: Path
) -> None:
    path, old = three_heads
    torch.save(old.state_dict(), tmp_path / "msst.ckpt")
    section = torch.load(path, weights_only=True)["configuration"]["model"]
    section |= {"mask_estimator_depth": 2, "num_stems": 2}
    settings = {"stems": ("a", "b"), "heads": {"a": 1, "b": 2}, "upstream": "msst"}
    model, origin = start_from(tmp_path / "msst.ckpt", {"model": section}, **settings)
    assert not origin.made
    expected = with_heads(old.state_dict(), [1, 2])
    torch.testing.assert_close(dict(model.state_dict()), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stems": ("a", "b")}, r"has 3 heads for 2 stems, a, b: say in fine_tuning\.heads .* \{a: 0, b: null\}"),
        ({"stems": ("a",), "heads": {"b": 0}}, "fine_tuning.heads has b, and the stems are a"),
        ({"stems": ("a",), "heads": {"a": 3}}, "has a: 3, and the heads are 0 to 2"),
        ({"stems": ("a",), "heads": {"a": True}}, "has a: True, and the heads are 0 to 2"),
        ({"stems": ("a",), "configuration": {"model": {"num_stems": 2}}}, "has num_stems=2, and .* names 1 stems"),
    ],
)
def test_heads_that_do_not_fit_are_refused(
    three_heads: tuple[Path, BandSplitRotator], arguments: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        start_from(three_heads[0], **arguments)


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_what_matches_one_list_and_not_the_other_is_frozen(tiny_model: Callable[..., BandSplitRotator]) -> None:
    model = tiny_model(num_stems=2)
    everything = trained(model)
    freeze(model, ["layers.*", "mask_estimators.*"], ["mask_estimators.1.*", "*.gamma"])
    kept = {name for name in everything if name.startswith(("band_split", "final_norm", "mask_estimators.1."))}
    assert trained(model) == kept | {name for name in everything if name.endswith(".gamma")}


@pytest.mark.parametrize(
    ("patterns", "but", "message"),
    [
        (["layer.*"], [], r"no parameter has a name like 'layer\.\*'"),
        (["*"], ["heads"], "no parameter has a name like 'heads'"),
        (["*"], [], "leaves nothing to train"),
    ],
)
def test_patterns_that_match_nothing_or_everything_are_refused(
    tiny_model: Callable[..., BandSplitRotator], patterns: list[str], but: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        freeze(tiny_model(), patterns, but)


def test_the_description_counts_every_parameter_where_it_belongs(three_heads: tuple[Path, BandSplitRotator]) -> None:
    path, old = three_heads
    model, origin = start_from(path, stems=("a", "b"), heads={"a": 0, "b": None})
    freeze(model, ["*"], ["mask_estimators.1.*"])
    head = sum(parameter.numel() for parameter in model.mask_estimators[1].parameters())
    rest = sum(parameter.numel() for parameter in model.parameters()) - head
    text = describe(model, origin)
    counts = [int(line.split()[0].replace(",", "")) for line in text.splitlines()]
    assert counts == [rest, head, head, rest]
    assert "made new: mask_estimators.1\n" in text
    assert "trained: mask_estimators.1\n" in text
    assert sum(parameter.numel() for parameter in old.parameters()) == rest + 2 * head


def test_summaries_name_ranges() -> None:
    names = ["layers.0.x", "layers.1.x", "layers.2.x", "layers.4.x", "final_norm.gamma", "layers.2.y"]
    assert summary(names) == "layers.0-2+4, final_norm"


def test_adapters_are_all_that_is_trained_and_merged_they_compute_the_same(
    three_heads: tuple[Path, BandSplitRotator], tmp_path: Path, randomise: Callable[[nn.Module], None]
) -> None:
    path, _ = three_heads
    model, origin = start_from(path, stems=("a", "b", "c"))
    count = len(linear_layers_of_transformers(model))
    adapted = add_adapters(model, {"r": 2, "lora_alpha": 4})
    assert len(trained(model)) == 2 * count
    assert all("lora_" in name for name in trained(model))
    randomise(model)
    made = int(describe(model, origin).splitlines()[1].split()[0].replace(",", ""))
    assert made == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    audio = torch.randn(1, 2, 400)
    expected = model.eval()(audio)
    adapted.save_pretrained(str(tmp_path / "adapters"))
    merged = read_adapters(tmp_path / "adapters").merge_into(from_checkpoint(path))
    assert type(merged) is BandSplitRotator
    torch.testing.assert_close(merged.eval()(audio), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"train": ["*"]}, "has no meaning without freeze"),
        ({"lora": {}, "freeze": ["*"]}, "name what to train in lora.modules_to_save"),
        ({"freeze": "*"}, r"freeze='\*' must be a list of names"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(section: Mapping[str, Any], message: str) -> None:
    needed = {"audio": {"chunk_size": 1}, "training": {"instruments": ["a"], "num_steps": 1, "lr": 1.0}}
    with pytest.raises(ValueError, match=message):
        settings_from({**needed, "fine_tuning": section})


# ---- the page


def scores(text: str) -> dict[str, float]:
    return {stem: float(score) for stem, score in re.findall(r"(\w+) (-?[\d.]+) dB", text)}


@pytest.mark.slow
def test_every_recipe_of_the_page_ends_with_scores_before_and_after(
    run_commands: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Word for word, with a smaller model and fewer steps."""
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    base = tmp_path / "examples" / "trainSmall.yaml"
    small = yaml.safe_load(base.read_text())
    small["model"] |= {"dim": 8, "heads": 2, "dim_head": 4, "depth": 1}
    for path, steps in ((base, 40), *((path, 20) for path in (tmp_path / "examples" / "recipes").glob("*.yaml"))):
        settings = small if path == base else yaml.safe_load(path.read_text())
        settings["audio"]["chunk_size"] = 16384
        settings["training"] |= {"num_steps": steps, "num_workers": 0, "warmup_steps": 0, "ema_momentum": 0.5}
        settings["validation"] = {"every": steps, "excerpt": 0.5}
        path.write_text(yaml.safe_dump(settings))
    page = (EXAMPLES.parent / "docs" / "finetuning.md").read_text()
    commands = re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    done = run_commands(["set -e", *(command.replace("base/best", "base/last") for command in commands)], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    before = [scores(line) for line in re.findall("^SDR before.*", done.stdout, re.MULTILINE)]
    after = [scores(line) for line in re.findall("^SDR after.*", done.stdout, re.MULTILINE)][1:]
    assert len(before) == len(after) == 6
    means = [[sum(each.values()) / len(each) for each in group] for group in (before, after)]
    assert all(second > first for first, second in zip(*means, strict=True))
    everything, heads, part, lora, two, new = after
    assert everything.keys() == heads.keys() == part.keys() == lora.keys()
    assert two.keys() == {"vocals", "other"}
    assert {stem: new[stem] for stem in two} == {stem: before[-1][stem] for stem in two}  # frozen
    assert {path.stem for path in (tmp_path / "separated" / "mixture").iterdir()} == lora.keys()
