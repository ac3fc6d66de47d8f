"""Low-rank adapters: merged as peft and loralib merge them, and refused in one line where they cannot be.

`merge_and_unload` of peft and the formulas of loralib's documentation are what is compared with.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import random
import re
import shutil
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import CheckpointError, lora
from hunterFormsBS.checkpoint.adapters import read_adapters
from hunterFormsBS.checkpoint.lora import HARMLESS, LoraConfiguration
from tests.checkpoint.test_fuzz import mutate, outcome

Build = Callable[..., BandSplitRotator]

TARGETS = ["to_qkv", "to_gates", "net.1"]


@pytest.fixture(scope="module")
def base(tiny_model: Build) -> BandSplitRotator:
    torch.manual_seed(0)
    return tiny_model(num_stems=2)


@pytest.fixture
def model(base: BandSplitRotator) -> BandSplitRotator:
    return copy.deepcopy(base)


def adapted_by_peft(model: nn.Module, randomise: Callable[[nn.Module], None], **arguments: Any) -> Any:
    """Return peft's model around a copy of a model, with adapters away from their initial values."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(**{"r": 2, "target_modules": TARGETS, **arguments}))
    randomise(adapted)
    return adapted


def merged_by_peft(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Return the weights that peft makes of a copy of a model and saved adapters."""
    from peft import PeftModel

    merged = PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).merge_and_unload()
    return dict(merged.state_dict())


@pytest.fixture(scope="module")
def saved_once(
    base: BandSplitRotator, randomise: Callable[[nn.Module], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder: Path = tmp_path_factory.mktemp("adapters")
    adapted_by_peft(base, randomise).save_pretrained(str(folder))
    return folder


@pytest.fixture
def saved(saved_once: Path, tmp_path: Path) -> Path:
    """Return a folder of adapters that fit the model."""
    return shutil.copytree(saved_once, tmp_path / "adapters")


def restate(folder: Path, **fields_: Any) -> None:
    """State something else in the configuration of adapters."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields_}))


def reweigh(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the weights of adapters."""
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


# ---- merged as peft does


@pytest.mark.filterwarnings("ignore:fan_in_fan_out|Adapter 'default'")
@pytest.mark.parametrize(
    "arguments",
    [
        {"lora_alpha": 3},
        {"lora_alpha": 3, "use_rslora": True},
        {"use_dora": True, "lora_alpha": 3},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_bias": True, "target_modules": ["to_gates", "net.1"]},
        {"modules_to_save": ["mask_estimators.1", "layers.0.1.layers.0.1"]},
        {"modules_to_save": ["mask_estimators.1"], "bias": "all", "use_dora": True},
        {"rank_pattern": {"to_qkv": 3, r"^layers\.1\.0\..*net\.1": 1}, "alpha_pattern": {"layers.0.0.*to_qkv": 5}},
        {"alpha_pattern": {"to_gates": 5, "layers.0.0.layers.0.0.to_gates": 7}, "use_rslora": True},
        {"target_modules": r"layers\.\d\.1\..*(to_qkv|net\.[14])"},
        {"target_modules": "all-linear"},
        {"target_modules": "all-linear", "exclude_modules": r".*mask_estimators.*"},
        {"exclude_modules": ["layers.0.0.layers.0.0.to_gates"]},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
        {"layers_to_transform": 0},
        {"layers_to_transform": [1], "layers_pattern": ["nowhere", "layers"]},
        {"target_modules": ["layers.0.0.layers.0.0.to_qkv", "to_gates"], "layers_to_transform": [1]},
        {"fan_in_fan_out": True, "lora_dropout": 0.5, "init_lora_weights": "gaussian"},
    ],
    ids=lambda arguments: ", ".join(arguments),
)
def test_adapters_are_merged_as_peft_merges_them(
    arguments: Mapping[str, Any], model: BandSplitRotator, tmp_path: Path, randomise: Callable[[nn.Module], None]
) -> None:
    adapted = adapted_by_peft(model, randomise, **arguments)
    adapted.save_pretrained(str(tmp_path))
    before = copy.deepcopy(model.state_dict())
    expected = merged_by_peft(model, tmp_path)
    merged = read_adapters(tmp_path).merge_into(model.train())
    assert merged is model
    assert not merged.training
    assert any(not torch.equal(tensor, before[key]) for key, tensor in expected.items())
    torch.testing.assert_close(dict(merged.state_dict()), expected, rtol=0, atol=1e-6)


CONVOLUTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "Conv1d": ({"mask_fno_modes": 4, "mlp_expansion_factor": 4}, r".*(fcs\.0|\.conv)"),
    "Conv2d": ({"use_hyperACE": True}, r".*(final_conv|shortcut|\.4\.out_conv\..*pwconv)"),
}


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_adapters_of_convolutions_are_merged_as_peft_merges_them(
    kind: str, dora: bool, tiny_model: Build, tmp_path: Path, randomise: Callable[[nn.Module], None]
) -> None:
    options, targets = CONVOLUTIONS[kind]
    model = tiny_model(**options)
    adapted_by_peft(model, randomise, target_modules=targets, use_dora=dora).save_pretrained(str(tmp_path))
    expected = merged_by_peft(model, tmp_path)
    layers = LoraConfiguration(target_modules=targets).scales(model)
    assert {type(model.get_submodule(name)).__name__ for name in layers} == {kind}
    torch.testing.assert_close(
        dict(read_adapters(tmp_path).merge_into(model).state_dict()), expected, rtol=0, atol=1e-6
    )


def test_adapters_of_grouped_convolutions_are_refused(saved: Path, tiny_model: Build) -> None:
    restate(saved, target_modules=["dwconv"])
    with pytest.raises(CheckpointError, match=r"dwconv is a convolution in .* groups, which has no adapters to merge"):
        read_adapters(saved).merge_into(tiny_model(use_hyperACE=True))


@pytest.mark.parametrize("arguments", [{}, {"bias": "lora_only"}, {"bias": "all"}], ids=str)
def test_biases_that_all_layers_share_are_merged_as_peft_merges_them(
    arguments: Mapping[str, Any], tiny_model: Build, tmp_path: Path, randomise: Callable[[nn.Module], None]
) -> None:
    model = tiny_model(use_shared_bias=True)
    adapted_by_peft(model, randomise, **arguments).save_pretrained(str(tmp_path))
    expected = merged_by_peft(model, tmp_path)
    merged = read_adapters(tmp_path).merge_into(model)
    torch.testing.assert_close(dict(merged.state_dict()), expected, rtol=0, atol=1e-6)
    assert merged.layers[0][0].layers[0][0].to_qkv.bias is merged.shared_qkv_bias


@pytest.mark.parametrize(
    "arguments",
    [{"modules_to_save": ["layers.0.0.layers.0.0"]}, {"lora_bias": True, "target_modules": ["to_qkv"]}],
    ids=str,
)
def test_a_shared_parameter_that_would_need_several_values_is_refused_by_its_name(
    arguments: Mapping[str, Any], tiny_model: Build, tmp_path: Path, randomise: Callable[[nn.Module], None]
) -> None:
    model = tiny_model(use_shared_bias=True)
    with pytest.warns() if "lora_bias" in arguments else contextlib.nullcontext():
        adapted_by_peft(model, randomise, **arguments).save_pretrained(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"\.bias belongs to several layers, and the adapters change it for some"):
        read_adapters(tmp_path).merge_into(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_stay_in_the_dtype_of_the_model_and_are_rounded_once(
    dtype: torch.dtype, model: BandSplitRotator, saved: Path
) -> None:
    model.to(dtype)
    expected = merged_by_peft(copy.deepcopy(model).double(), saved)
    own = {key: tensor.dtype for key, tensor in model.state_dict().items()}
    expected = {key: tensor.to(own[key]) for key, tensor in expected.items()}
    merged = dict(read_adapters(saved).merge_into(model).state_dict())
    assert {key: tensor.dtype for key, tensor in merged.items()} == own
    torch.testing.assert_close(merged, expected, rtol=torch.finfo(dtype).eps if dtype.itemsize < 4 else 1e-6, atol=1e-6)


# ---- as loralib does


class Imitation(nn.Module):
    """A linear layer beside which loralib adds low-rank products to the parts of its output that are enabled."""

    def __init__(self, linear: nn.Linear, enabled: Sequence[bool], r: int, scale: float) -> None:
        super().__init__()
        self.linear, self.enabled, self.scale = linear, enabled, scale
        self.lora_A = torch.randn(r * sum(enabled), linear.in_features)
        self.lora_B = torch.randn(linear.out_features // len(enabled) * sum(enabled), r)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.linear(x).chunk(len(self.enabled), dim=-1))
        chosen = [number for number, enabled in enumerate(self.enabled) if enabled]
        low, up = (x @ self.lora_A.T).chunk(len(chosen), dim=-1), self.lora_B.chunk(len(chosen))
        for place, number in enumerate(chosen):
            parts[number] = parts[number] + self.scale * low[place] @ up[place].T
        return torch.cat(parts, dim=-1)


def adapted_by_loralib(model: nn.Module, enabled: Sequence[bool], r: int, scale: float) -> dict[str, Tensor]:
    """Put an imitation in place of linear layers of the transformers, and return the weights as loralib names them."""
    weights: dict[str, Tensor] = {}
    for name, linear in [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]:
        if name.startswith("layers.") and linear.out_features % len(enabled) == 0:
            parent, _, own = name.rpartition(".")
            imitation = Imitation(linear, enabled, r, scale)
            setattr(model.get_submodule(parent), own, imitation)
            weights |= {f"{name}.lora_A": imitation.lora_A, f"{name}.lora_B": imitation.lora_B}
    return weights


@pytest.mark.parametrize("enabled", [None, [True], [True, False, True], [True, True, True], [False, True]], ids=str)
def test_files_of_loralib_are_merged_as_its_layers_compute(
    enabled: list[bool] | None, model: BandSplitRotator, tmp_path: Path
) -> None:
    adapted = copy.deepcopy(model).eval()
    weights = adapted_by_loralib(adapted, enabled or [True], r=2, scale=1.5)
    content = {
        "epoch": 3,
        "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(2)}}},
        "model_state_dict": weights,
    }
    torch.save(content, tmp_path / "last.ckpt")
    section = {"r": 2, "lora_alpha": 3, "lora_dropout": 0.05, "merge_weights": False, "fan_in_fan_out": False}
    section |= {} if enabled is None else {"enable_lora": enabled}
    merged = read_adapters(tmp_path / "last.ckpt", {"lora": section}).merge_into(model)
    audio = torch.randn(1, 400)
    torch.testing.assert_close(merged(audio), adapted(audio), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (None, "only the section lora of their configuration states"),
        ({"lora_alpha": math.nan}, "states lora_alpha: nan, and it must be a finite number"),
        ({"r": 3}, r"its adapters are .* states r: 3"),
        ({"enable_lora": [True, "x"]}, "must be a list of true and false"),
        ({"fan_in_fan_out": True}, "states fan_in_fan_out: True, which is not supported"),
    ],
)
def test_sections_that_do_not_fit_files_of_loralib_are_refused(
    section: object, message: str, model: BandSplitRotator, tmp_path: Path
) -> None:
    torch.save(adapted_by_loralib(copy.deepcopy(model), [True], 2, 1.0), tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=message):
        read_adapters(tmp_path / "last.ckpt", {"lora": section}).merge_into(model)


# ---- refused, or harmless


def refusal(folder: Path, model: BandSplitRotator) -> str:
    """Return the line with which adapters are refused, after which the model is as it was."""
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((CheckpointError, OSError)) as raised:
        read_adapters(folder, {"lora": {}}).merge_into(model)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    line = str(raised.value)
    assert len(line) < 1500
    assert line.isprintable()
    return line


def test_every_field_of_peft_is_checked_harmless_or_refused_by_its_name(model: BandSplitRotator, saved: Path) -> None:
    from peft import LoraConfig

    ours = {each.name for each in fields(LoraConfiguration)}
    theirs = {each.name for each in fields(LoraConfig)}
    assert ours - theirs == {"stem_heads"}
    assert ours.isdisjoint(HARMLESS)
    assert theirs >= HARMLESS
    for name in theirs - ours - HARMLESS:
        restate(saved, **{name: {"a": 1}})
        assert f"states {name}: {{'a': 1}}, which is not supported" in refusal(saved, model)
        restate(saved, **{name: None})
    restate(saved, **dict.fromkeys(HARMLESS - {"peft_type"}, "\x1b[2J"))
    read_adapters(saved).merge_into(model)


WRONG: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2**31,
        10**400,
        0.5,
        math.nan,
        math.inf,
        -math.inf,
        1e300,
        "",
        "x",
        "(",
        "\x1b[2J",
        "a" * 501,
    ),
    *(
        [],
        [1],
        [True],
        ["x"],
        ["("],
        [["x"]],
        [None],
        {},
        {"a": 1},
        {"": 1},
        {"(": 1},
        {"to_qkv": math.nan},
        {"a": "b"},
    ),
)


@pytest.mark.parametrize("name", [each.name for each in fields(LoraConfiguration)])
def test_a_field_of_any_type_ends_in_a_model_or_in_one_line(name: str, model: BandSplitRotator, saved: Path) -> None:
    for value in WRONG:
        restate(saved, **{name: value})
        result = outcome(lambda: read_adapters(saved).merge_into(copy.deepcopy(model)))
        assert result in ("BandSplitRotator", "CheckpointError", "model"), f"{value!r}: {result}"


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_damaged_files_end_in_a_model_or_in_one_line(name: str, model: BandSplitRotator, saved: Path) -> None:
    whole = (saved / name).read_bytes()
    for seed in range(40):
        (saved / name).write_bytes(mutate(whole, random.Random(seed)))
        result = outcome(lambda: read_adapters(saved).merge_into(copy.deepcopy(model)))
        assert not result.startswith("wrong"), f"{seed}: {result}"


WEIGHTS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing": (lambda weights: weights.pop(KEY), "to_qkv.lora_A.weight is missing"),
    "of no layer": (lambda weights: weights.update({"base_model.model.x.lora_A.weight": torch.ones(1)}), "x.lora_A"),
    "of a layer without": (
        lambda weights: weights.update({f"{OTHER}.lora_A.weight": torch.ones(2, 12)}),
        "to_out.0.lora_A",
    ),
    "of another shape": (lambda weights: weights.update({KEY: torch.ones(2, 13)}), r"shape \(2, 13\), and it must be"),
    "of another rank": (lambda weights: weights.update({KEY: torch.ones(3, 12)}), r"shape \(3, 12\), and it must be"),
    "integers": (lambda weights: weights.update({KEY: torch.ones(2, 12).int()}), "lora_A.weight in it is torch.int32"),
    "not finite": (lambda weights: weights.update({KEY: torch.full((2, 12), math.nan)}), "would not be finite"),
}
KEY = "base_model.model.layers.0.0.layers.0.0.to_qkv.lora_A.weight"
OTHER = "base_model.model.layers.0.0.layers.0.0.to_out.0"


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"a": -1}, "it must be numbers of heads by names"),
        ({"a": True}, "it must be numbers of heads by names"),
        (["a"], "it must be numbers of heads by names"),
        ({}, "it must be numbers of heads by names"),
        ({str(number): 0 for number in range(257)}, "by names of at most 256 stems"),
        ({"a": 0, "b": 2}, "b started from head 2, and it has the heads 0 to 1"),
        ({"a": 0, "choir": None}, "the head of choir is new, and modules_to_save lacks it"),
    ],
    ids=str,
)
def test_heads_that_do_not_fit_are_refused(heads: object, message: str, model: BandSplitRotator, saved: Path) -> None:
    restate(saved, stem_heads=heads)
    assert message in refusal(saved, model)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_that_do_not_fit_are_refused_by_their_name(kind: str, model: BandSplitRotator, saved: Path) -> None:
    change, message = WEIGHTS[kind]
    reweigh(saved, change)
    assert re.search(message, refusal(saved, model))


def test_what_half_precision_cannot_hold_is_refused(model: BandSplitRotator, saved: Path) -> None:
    reweigh(saved, lambda weights: weights.update({KEY: torch.full((2, 12), 1e6)}))
    assert "would not be finite in torch.float16" in refusal(saved, model.half())


@pytest.mark.parametrize("kind", ["PREFIX_TUNING", "XLORA", "IA3", None, 3])
def test_other_kinds_of_adapters_are_refused_by_their_name(kind: object, model: BandSplitRotator, saved: Path) -> None:
    restate(saved, peft_type=kind)
    assert f"states peft_type: {kind!r}, and only LORA can be merged" in refusal(saved, model)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda path: path.unlink(), "has a adapter_config.json and no adapter_model.safetensors"),
    "a pickle instead": (
        lambda path: path.rename(path.with_suffix(".bin")),
        "A .bin is not read: save .* safe_serialization",
    ),
    "a pickle of this name": (lambda path: torch.save({KEY: torch.ones(1)}, path), "is not a file of safetensors"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "no tensors": (lambda path: save_file({}, path), "holds no weights"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "it is a device or a pipe, not a file"),
    "a link to a device": (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "it is a device or a pipe"),
    "a link to nowhere": (lambda path: (path.unlink(), path.symlink_to("nowhere")), "no adapter_model.safetensors"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names, and /dev/zero")
@pytest.mark.parametrize("kind", FILES)
def test_weights_that_are_no_file_of_safetensors_are_refused(kind: str, model: BandSplitRotator, saved: Path) -> None:
    change, message = FILES[kind]
    change(saved / "adapter_model.safetensors")
    assert re.search(message, refusal(saved, model))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names, and /dev/zero")
@pytest.mark.parametrize("name", ["", "adapter_config.json"])
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "/dev/stdin"])
def test_pipes_and_devices_are_refused_unread(kind: str, name: str, model: BandSplitRotator, tmp_path: Path) -> None:
    path = tmp_path / (name or "adapters")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(kind)
    assert "it is a device or a pipe, not a file" in refusal(tmp_path if name else path, model)


def test_a_file_without_adapters_and_a_part_of_adapters_are_told_apart(
    model: BandSplitRotator, saved: Path, tmp_path: Path
) -> None:
    torch.save(model.state_dict(), tmp_path / "model.ckpt")
    assert "holds no adapters: its keys are" in refusal(tmp_path / "model.ckpt", model)
    assert "pass its folder, with adapter_config.json" in refusal(saved / "adapter_model.safetensors", model)
    with pytest.raises(CheckpointError, match=r"holds no adapters: choose a folder with adapter_config\.json"):
        read_adapters(tmp_path)


def test_nothing_is_imported_or_fetched(model: BandSplitRotator, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (saved / "evil.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(saved)
    monkeypatch.setattr(socket, "socket", None)
    for package in ("peft", "huggingface_hub", "regex"):
        monkeypatch.setitem(sys.modules, package, None)
    restate(saved, megatron_core="evil", base_model_name_or_path="someone/something", auto_mapping={"a": "evil"})
    read_adapters(saved).merge_into(model)
    restate(saved, megatron_config={"a": 1})
    assert "states megatron_config: {'a': 1}, which is not supported" in refusal(saved, model)
    restate(saved, megatron_config=None)
    (saved / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors" in refusal(saved, model)


def test_regular_expressions_end_in_time(model: BandSplitRotator, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "LONGEST_MATCHING", 0.1)
    for stated in ({"target_modules": "(?R)?(a|a?)+l"}, {"alpha_pattern": {"(?R)?(a|a?)+l": 1}}):
        restate(saved, **stated)
        assert "take over 0 seconds to compare with the names of the layers" in refusal(saved, model)
        restate(saved, target_modules=TARGETS)


def test_regular_expressions_without_their_package_ask_for_it(
    model: BandSplitRotator, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "regex", None)
    restate(saved, target_modules=".*to_qkv")
    with pytest.raises(ImportError, match="to read patterns of adapters, install regex"):
        read_adapters(saved).merge_into(model)
