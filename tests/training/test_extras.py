"""What training takes from other packages: each that is missing is asked for by the extra that has it."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import nn

from hunterFormsBS.console import Console
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.program.commands import train, validate
from hunterFormsBS.training import engine
from hunterFormsBS.training.adapters import add_adapters
from hunterFormsBS.training.augmentations import Augmentations, MixtureCodec
from hunterFormsBS.training.losses import Losses
from hunterFormsBS.training.metrics import measure
from hunterFormsBS.training.optimizers import make_optimizer

SHIFT = {"all": {"pitch_shift": 1.0, "pitch_shift_min_semitones": -1, "pitch_shift_max_semitones": 1}}
AUDIO = torch.ones(1, 1, 8)


def fabric() -> object:
    return engine.make_fabric(
        accelerator="cpu", devices="1", num_nodes=1, strategy="auto", precision=None, use_amp=False
    )


@pytest.mark.parametrize(
    ("module", "extra", "use"),
    [
        ("peft", "lora", lambda: add_adapters(nn.Linear(2, 2), {})),
        ("pedalboard", "augmentations", lambda: Augmentations(SHIFT, 44100)),
        ("pedalboard", "augmentations", lambda: MixtureCodec(0.5, (32, 320), 44100)),
        ("pytorch_optimizer", "optimizers", lambda: make_optimizer(nn.Linear(2, 2), "prodigy", lr=1.0)),
        ("auraloss.freq", "losses", lambda: Losses({"multistft_loss": 1.0}, sample_rate=44100)),
        ("torchmetrics.functional.audio", "train", lambda: measure(["si_sdr"], AUDIO, AUDIO, AUDIO[0], 44100)),
        ("lightning_fabric", "train", fabric),
    ],
)
def test_a_package_that_is_missing_is_asked_for_by_its_extra(
    module: str, extra: str, use: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=re.escape(how_to_install(extra))):
        use()


@pytest.mark.parametrize("command", [train, validate])
def test_commands_ask_for_their_extra_before_they_read_a_file(
    command: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    named = ["--songs", "nowhere", *("--output", "nowhere"), "--configuration", "nowhere", "--checkpoint", "nowhere"]
    monkeypatch.setattr("hunterFormsBS.program.othersPackages.is_installed", lambda _extra: False)
    with pytest.raises(ImportError, match=f"needs more packages: {re.escape(how_to_install('train'))}"):
        command.run(parser.parse_args(named), Console("test"))
