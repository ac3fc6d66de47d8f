"""Settings are checked as a whole before anything starts, and a file of MSST means what it means there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hunterFormsBS.checkpoint import read_configuration
from hunterFormsBS.training.bounds import is_of
from hunterFormsBS.training.optimizers import make_optimizer
from hunterFormsBS.training.resuming import REASONS, kept, refuse_changes
from hunterFormsBS.training.schedules import learning_rate_factor
from hunterFormsBS.training.sections import FIELDS, STATED, settings_from
from hunterFormsBS.training.settings import Settings

NEEDED: dict[str, dict[str, Any]] = {
    "audio": {"chunk_size": 4096},
    "training": {"instruments": ["vocals", "other"], "num_steps": 100, "lr": 1.0},
}


def settings_with(section: str, name: str, value: Any) -> Settings:
    """Return settings of which one is stated, in its section."""
    stated = value if name == section else {**NEEDED.get(section, {}), name: value}
    return settings_from({**NEEDED, section: stated})


MAY_BE_ZERO = {
    *("min_mean_abs", "weight_decay", "warmup_steps", "num_warmup_steps", "grad_clip", "ema_momentum", "patience"),
    *("remix", "loudness_min", "mixup_loudness_min", "mp3_compression_on_mixture", "num_workers", "seed"),
}
NUMBERS = [(*place, field) for place, field in FIELDS.items() if is_of(1, STATED[field][0])]


@pytest.mark.parametrize(("section", "name", "field"), NUMBERS)
def test_every_number_has_bounds(section: str, name: str, field: str) -> None:
    label = rf"({section}\.\w+|{field})="
    for wrong in (-1, math.nan, "x", 10**30, math.inf, True, [1]):
        with pytest.raises(ValueError, match=label) as caught:
            settings_with(section, name, wrong)
        assert repr(wrong)[:20] in str(caught.value) or str(float(wrong)) in str(caught.value)  # type: ignore[arg-type]
    if name in MAY_BE_ZERO:
        assert getattr(settings_with(section, name, 0), field) == 0
    else:
        with pytest.raises(ValueError, match=label):
            settings_with(section, name, 0)


OTHERS = [(*place, field) for place, field in FIELDS.items() if (*place, field) not in NUMBERS]


@pytest.mark.parametrize(("section", "name", "field"), OTHERS)
def test_every_other_setting_has_a_type(section: str, name: str, field: str) -> None:
    for wrong in (-1, math.nan, 10**30, "x" if name == "lora" else {"x": -1}):
        with pytest.raises(ValueError, match=name):
            settings_with(section, name, wrong)


@pytest.mark.parametrize("section", ["losses", "optimizer", "loss_multistft", "training", "inference"])
@pytest.mark.parametrize("value", [3, "x", ["x"], None])
def test_a_section_holds_settings(section: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{section}=.* must be a section of settings"):
        settings_from({**NEEDED, section: value})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"warmup_steps": 100}}, "warmup_steps=100 is not less than the 100 updates of the run"),
        ({"training": {"dataset_type": 2, "remix": 0.5}}, r"remix=0\.5 would leave most segments of dataset_type=2"),
        ({"training": {"dataset_type": 3, "remix": 0.0}}, r"remix=0\.0 would leave most segments of dataset_type=3"),
        (
            {"training": {"dataset_type": 6}, "augmentations": {"all": {"random_polarity": 0.5}}},
            "dataset_type=6 the mixture is the song's own",
        ),
        ({"augmentations": {"loudness_min": 2}}, "loudness_min=2.0 is more than loudness_max=1.0"),
        ({"augmentations": {"mixup_probs": [0.2, 2]}}, r"mixup_probs=\(0\.2, 2\.0\) must be"),
        ({"losses": {"l1_loss": 0}}, "weighs all with 0"),
        ({"losses": {"l1_loss": -1}}, r"losses=.* must be at least 0"),
        ({"training": {"instruments": ["vocals", "Vocals"]}}, "has a name twice"),
        ({"training": {"instruments": []}}, "instruments is empty"),
        ({"training": {"precision": "bf16"}}, "choose one of 32-true, bf16-mixed, 16-mixed"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(sections: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_from({**NEEDED, **{name: {**NEEDED.get(name, {}), **each} for name, each in sections.items()}})


def test_mixup_without_stems_drawn_by_themselves_is_said_to_have_no_effect() -> None:
    with pytest.warns(UserWarning, match="mixup has no effect here: with dataset_type=4"):
        settings_from(
            {**NEEDED, "augmentations": {"mixup": True}, "training": {**NEEDED["training"], "dataset_type": 4}}
        )


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_example_is_within_the_bounds(path: Path) -> None:
    assert settings_from(read_configuration(path)).updates > 0


# ---- what a file of Music-Source-Separation-Training means


def of_msst(**training: Any) -> dict[str, Any]:
    return {**NEEDED, "model": {"dim": 8}, "training": {**NEEDED["training"], "num_epochs": 3, **training}}


@pytest.mark.parametrize(
    ("upstream", "model", "expected"),
    [
        ({}, True, True),
        ({"upstream": "msst"}, True, True),
        ({"upstream": "msst_experimental"}, False, True),
        ({"upstream": "hunterFormsBS"}, True, False),
        ({"upstream": "lucidrains"}, True, False),
        ({}, False, False),  # recipes, whose model is that of a checkpoint
    ],
)
def test_which_files_are_of_msst(upstream: dict[str, str], model: bool, expected: bool) -> None:
    configuration = {**of_msst(), **upstream}
    if not model:
        del configuration["model"]
    settings = settings_from(configuration)
    assert settings.as_msst == expected
    assert settings.validation_every == (100 if expected else 2000)
    assert settings.probability_of_remixing == (1.0 if expected else 0.5)
    assert settings.ema_momentum == (0.0 if expected else 0.999)


def test_what_is_stated_counts_in_a_file_of_msst_too() -> None:
    stated = {**of_msst(dataset_type=4, ema_momentum=0.5, remix=0.25), "validation": {"every": 7}}
    settings = settings_from(stated)
    assert (settings.validation_every, settings.ema_momentum, settings.probability_of_remixing) == (7, 0.5, 0.25)


@pytest.mark.parametrize(("num_steps", "accumulated"), [(10, 1), (10, 2), (10, 4), (10, 11), (1, 1)])
def test_a_file_of_msst_has_the_updates_of_its_train_program_between_validations(
    num_steps: int, accumulated: int
) -> None:
    def updates_of_an_epoch() -> int:  # the condition of train_one_epoch there
        return sum((i + 1) % accumulated == 0 or i == num_steps - 1 for i in range(num_steps))

    settings = settings_from(of_msst(num_steps=num_steps, gradient_accumulation_steps=accumulated))
    assert settings.validation_every == updates_of_an_epoch()
    assert settings.updates == 3 * updates_of_an_epoch()
    assert [settings.epochs_in(settings.updates_in(epochs)) for epochs in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("accumulated", [1, 4])
@pytest.mark.parametrize("warmup", [0, 5])
def test_the_line_of_msst_is_that_of_transformers(accumulated: int, warmup: int) -> None:
    # get_linear_schedule_with_warmup, stepped once an update, with the batches of the run as its length.
    def expected(step: int, length: int) -> float:
        if step < warmup:
            return float(step) / float(max(1, warmup))
        return max(0.0, float(length - step) / float(max(1, length - warmup)))

    stated = of_msst(scheduler="linear_scheduler", num_warmup_steps=warmup, gradient_accumulation_steps=accumulated)
    settings = settings_from(stated)
    factors = [learning_rate_factor(update, settings) for update in range(settings.updates)]
    assert factors == pytest.approx([expected(step, 300) for step in range(settings.updates)])


def test_the_warm_up_that_msst_does_not_read_is_not_read() -> None:
    with pytest.warns(UserWarning, match="num_warmup_steps has no effect here: nothing: Music-Source"):
        settings = settings_from(of_msst(num_warmup_steps=9, patience=2))
    assert (settings.warmup_steps, settings.schedule) == (0, "ReduceLROnPlateau")
    assert settings_from(of_msst(warmup_steps=9, patience=2)).warmup_steps == 9


@pytest.mark.parametrize(
    ("name", "arguments", "decay"),
    [("adamw", {}, 0.01), ("adamw", {"weight_decay": 0.2}, 0.2), ("adam", {}, 0.0), ("rmsprop", {}, 0.0)],
)
def test_all_parameters_are_decayed_as_there(name: str, arguments: dict[str, Any], decay: float) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    (group,) = make_optimizer(model, name, lr=0.1, arguments=arguments, as_msst=True).param_groups
    assert len(group["params"]) == 4
    assert group["weight_decay"] == decay
    stated = make_optimizer(model, name, lr=0.1, weight_decay=0.3, as_msst=True)
    assert stated.param_groups[0]["weight_decay"] == 0.3


# ---- resuming


@pytest.mark.parametrize(
    ("name", "section", "change"),
    [
        ("training.instruments", "training", {"instruments": ["other", "vocals"]}),
        ("training.instruments", "training", {"target_instrument": "vocals"}),
        ("training.optimizer", "training", {"optimizer": "rmsprop"}),
        ("fine_tuning.heads", "fine_tuning", {"heads": {"vocals": 1, "other": None}}),
        ("fine_tuning.lora", "fine_tuning", {"lora": {"r": 4}}),
    ],
)
def test_a_resumed_run_may_not_change_what_its_state_depends_on(
    name: str, section: str, change: dict[str, Any], tmp_path: Path
) -> None:
    before = settings_from(NEEDED)
    torch.save(kept(before), tmp_path / "recorded")
    recorded = torch.load(tmp_path / "recorded", weights_only=True)
    refuse_changes(recorded, before, tmp_path)
    refuse_changes({}, before, tmp_path)  # of a version that recorded nothing
    after = settings_from({**NEEDED, section: {**NEEDED.get(section, {}), **change}})
    with pytest.raises(ValueError, match=rf"has {name} .*: {REASONS[name]}\. Change it back, or start another run"):
        refuse_changes(recorded, after, tmp_path)


def test_a_resumed_run_may_change_the_rest(tmp_path: Path) -> None:
    changes = {"lr": 0.1, "num_steps": 900, "batch_size": 3, "warmup_steps": 5, "scheduler": "constant", "seed": 4}
    after = settings_from({**NEEDED, "training": {**NEEDED["training"], **changes}})
    refuse_changes(kept(settings_from(NEEDED)), after, tmp_path)
