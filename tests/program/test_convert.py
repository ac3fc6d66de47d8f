"""`hunterforms convert`: what it writes, and what it says when it cannot."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import from_checkpoint, save_checkpoint
from hunterFormsBS.program.dispatch import main
from tests.models import TINY

ARGUMENTS: dict[str, Any] = TINY | {"stereo": True, "num_stems": 2, "stft_hop_length": 8}
STEMS = {"training": {"instruments": ["vocals", "drums"]}, "audio": {"chunk_size": 800}}


@pytest.fixture
def model() -> BandSplitRotator:
    made = BandSplitRotator(**ARGUMENTS).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1 * parameter.requires_grad)
    return made


@pytest.fixture
def own(model: BandSplitRotator, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "own.ckpt", model, configuration=STEMS)
    return tmp_path / "own.ckpt"


def audio_of(model: BandSplitRotator) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.randn(1, 2, 800, generator=torch.Generator().manual_seed(1)))


def test_the_pair_is_written_from_one_file_and_back(
    own: Path, model: BandSplitRotator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = tmp_path / "pair.ckpt"
    assert main(["convert", str(own), "--layout", "msst", "--output", str(pair)]) == 0
    assert capsys.readouterr() == (f"{pair}\n{tmp_path / 'pair.yaml'}\n", "")
    sections = yaml.load((tmp_path / "pair.yaml").read_text(), yaml.FullLoader)
    assert sections["training"]["instruments"] == ["vocals", "drums"]
    assert sections["audio"]["chunk_size"] == 800
    back = tmp_path / "back.safetensors"
    assert main(["convert", str(pair), "--configuration", str(tmp_path / "pair.yaml"), "--output", str(back)]) == 0
    assert capsys.readouterr() == (f"{back}\n", "")
    torch.testing.assert_close(audio_of(from_checkpoint(back)), audio_of(model), rtol=0, atol=0)


def test_names_of_stems_can_be_given_where_no_configuration_has_them(
    model: BandSplitRotator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "a.ckpt", model)
    command = [str(tmp_path / "a.ckpt"), "--layout", "msst", "--output", str(tmp_path / "b.ckpt")]
    assert main(["convert", *command]) == 1
    assert "has 2 stems, and training.instruments names 0" in capsys.readouterr().err
    assert main(["convert", *command, "--stems", "a"]) == 1
    assert capsys.readouterr().err.endswith("--stems names 1, and the model has 2 stems\n")
    assert main(["convert", *command, "--stems", "piano, other"]) == 0
    assert yaml.load((tmp_path / "b.yaml").read_text(), yaml.FullLoader)["training"]["instruments"] == [
        "piano",
        "other",
    ]


def test_weights_are_written_in_the_type_that_is_asked_for(own: Path, tmp_path: Path) -> None:
    assert main(["convert", str(own), "--dtype", "float16", "--output", str(tmp_path / "half.ckpt")]) == 0
    tensors = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
    # Positions need more precision than weights.
    assert {tensor.dtype for key, tensor in tensors.items() if "rotary" not in key} == {torch.float16}


@pytest.mark.parametrize("exists", ["a.ckpt", "a.yaml"])
def test_nothing_is_replaced_unless_asked(
    exists: str, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / exists).write_text("mine")
    command = [str(own), "--layout", "msst", "--output", str(tmp_path / "a.ckpt")]
    assert main(["convert", *command]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{exists} would be replaced: pass --overwrite" in error
    assert (tmp_path / exists).read_text() == "mine"
    assert main(["convert", *command, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (["nothing.ckpt", "--output", "b.ckpt"], 1, "nothing.ckpt: No such file or directory"),
        (["text.ckpt", "--output", "b.ckpt"], 1, "text.ckpt is not a weights file"),
        (["own.ckpt", "--output", "nowhere/b.ckpt"], 1, "No such file or directory"),
        (["own.ckpt", "--configuration", "text.ckpt", "--output", "b.ckpt"], 1, "text.ckpt"),
        (["hub:a", "--output", "b.ckpt"], 1, "neither a name of the catalogue nor hub:"),
        (["own.ckpt", "--output", "b.yaml"], 2, "is the name of a configuration"),
        (["own.ckpt"], 2, "--output"),
        (["own.ckpt", "--output", "b.onnx", "--layout", "msst"], 2, "--layout and --dtype are for checkpoints"),
        (["own.ckpt", "--output", "b.ckpt", "--lora", "text.ckpt"], 1, "text.ckpt"),
        (["own.ckpt", "--output", "b.ckpt", "--lora", "nowhere"], 1, "nowhere"),
        ([".", "--output", "b.ckpt"], 1, "it is a folder. Name one of its checkpoints, or pass --layout msst"),
        ([".", "--output", "b.ckpt", "--layout", "msst"], 1, "has no state: choose the folder of another run"),
        ([".", "--output", "b.ckpt", "--layout", "msst", "--lora", "x"], 2, "--lora is for checkpoints"),
        ([".", "--output", "b.ckpt", "--layout", "msst", "--dtype", "float16"], 2, "--dtype is for checkpoints"),
        (["own.ckpt", "--output", "b.ckpt", "--layout", "uvr"], 2, "invalid choice"),
        (["own.ckpt", "--output", "b.ckpt", "--stems", "a,,b"], 2, "names separated by commas"),
    ],
)
def test_what_fails_is_one_line(
    arguments: list[str],
    status: int,
    named: str,
    own: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.ckpt").write_text("some text")
    before = sorted(tmp_path.iterdir())
    if status == 2:
        with pytest.raises(SystemExit) as ended:
            main(["convert", *arguments])
        assert ended.value.code == 2
    else:
        assert main(["convert", *arguments]) == status
    error = capsys.readouterr().err
    assert error.startswith("hunterFormsBS: error: ")
    assert error.count("\n") == 1
    assert named in error
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_adapters_are_merged(dtype: str, own: Path, model: BandSplitRotator, tmp_path: Path) -> None:
    settings = peft.LoraConfig(r=2, target_modules=["to_qkv", "net.1"], init_lora_weights=False)
    adapted: Any = peft.get_peft_model(copy.deepcopy(model), settings).eval()
    adapted.save_pretrained(str(tmp_path / "lora"))
    command = [str(own), "--lora", str(tmp_path / "lora"), "--dtype", dtype, "--output", str(tmp_path / "merged.ckpt")]
    assert main(["convert", *command]) == 0
    merged = from_checkpoint(tmp_path / "merged.ckpt")
    expected = adapted.merge_and_unload().state_dict()
    tolerance = {"float32": 1e-6, "float16": 1e-3}[dtype]
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor.float(), expected[name].float(), rtol=tolerance, atol=tolerance)
    tensors = torch.load(tmp_path / "merged.ckpt", weights_only=True)["state_dict"]
    assert {str(one.dtype) for key, one in tensors.items() if "rotary" not in key} == {f"torch.{dtype}"}
    assert {str(one.dtype) for key, one in tensors.items() if "rotary" in key} <= {"torch.float32"}


@pytest.mark.process
def test_its_former_name_runs_and_says_the_present_one(model: BandSplitRotator, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "bare.ckpt")
    command = [sys.executable, "-m", "hunterFormsBS.checkpoint", "bare.ckpt", "--output", "whole.ckpt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "whole.ckpt\n")
    renamed, undetermined = done.stderr.splitlines()
    assert renamed.endswith(
        "DeprecationWarning: python -m hunterFormsBS.checkpoint is a former name: run hunterforms convert."
    )
    assert undetermined.startswith("hunterFormsBS: warning: nothing determines these arguments for bare.ckpt")
