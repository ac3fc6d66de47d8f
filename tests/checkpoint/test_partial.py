"""`from_checkpoint(partial=True)`: takes what fits, and says what it took, made and left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import CheckpointError, from_checkpoint, save_checkpoint
from tests.models import TINY

TWO: dict[str, Any] = {**TINY, "num_stems": 2}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = BandSplitRotator(**TWO)
    save_checkpoint(tmp_path / "two.ckpt", model)
    return tmp_path / "two.ckpt", model.state_dict()


def loaded(path: Path, match: str, **arguments: Any) -> dict[str, torch.Tensor]:
    with pytest.warns(UserWarning, match=match):
        return from_checkpoint(path, partial=True, **arguments).state_dict()


def test_heads_are_taken_made_and_left_out(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, old = saved
    new = loaded(path, r"new: mask_estimators\.1 \(\d+\), mask_estimators\.2 \(\d+\); left", stems=[1], num_stems=3)
    for key, tensor in new.items():
        if key.startswith("mask_estimators.0."):
            assert torch.equal(tensor, old[key.replace("estimators.0.", "estimators.1.")])
        elif not key.startswith("mask_estimators."):
            assert torch.equal(tensor, old[key])
    assert any(key.startswith("mask_estimators.2.") for key in new)
    one = loaded(path, r"new: none; left out: mask_estimators\.1 \(\d+\)$", num_stems=1)
    assert all(torch.equal(tensor, old[key]) for key, tensor in one.items())


def test_layers_are_added_with_new_weights(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, old = saved
    depth = TINY["depth"]
    new = loaded(path, rf"new: layers\.{depth} \(\d+\); left out: none", depth=depth + 1)
    assert all(torch.equal(new[key], tensor) for key, tensor in old.items())
    assert any(key.startswith(f"layers.{depth}.") for key in new)


def test_other_shapes_are_refused_unless_asked_for(saved: tuple[Path, dict[str, torch.Tensor]]) -> None:
    with pytest.raises(CheckpointError, match="num_stems"):
        from_checkpoint(saved[0], num_stems=3)
