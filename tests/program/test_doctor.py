"""`hunterforms doctor`: facts that are true, a remedy for whatever is missing, and no end without an answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch

import hunterFormsBS
from hunterFormsBS import installation
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.kernels.seam import KERNELS
from hunterFormsBS.program import diagnosis
from hunterFormsBS.program.diagnosis import diagnose
from hunterFormsBS.program.dispatch import main

GROUPS = ["program", "packages", "processor", "pytorch", "devices", "kernels", "caches", "environment", "extras"]


@pytest.fixture(scope="module")
def facts() -> dict[str, dict[str, Any]]:
    return diagnose()


@pytest.fixture
def without_the_model(monkeypatch: pytest.MonkeyPatch, facts: dict[str, dict[str, Any]]) -> None:
    """Spare the run of a model to tests that are about something else."""
    monkeypatch.setattr(diagnosis, "_kernels", lambda: facts["kernels"])


def test_the_facts_are_those_of_this_process(facts: dict[str, dict[str, Any]]) -> None:
    assert list(facts) == GROUPS
    assert [group for group in facts.values() if "error" in group] == []
    assert facts["program"]["folder"] == str(Path(hunterFormsBS.__file__).parent)
    assert facts["program"]["interpreter"] == sys.executable
    assert facts["packages"]["torch"] == version("torch")
    assert "hunterFormsBS" not in facts["packages"]
    assert facts["pytorch"]["threads"] == torch.get_num_threads()
    assert facts["devices"]["auto"] == facts["kernels"]["tried on"]


def test_the_kernels_in_use_are_found_by_running_a_model(facts: dict[str, dict[str, Any]]) -> None:
    assert facts["kernels"]["on"] is True
    assert set(facts["kernels"]["used"]) <= set(KERNELS)
    assert {"attention", "feed_forward"} <= set(facts["kernels"]["used"])
    assert 0 <= facts["kernels"]["difference from the formulas"] < 1e-5


@pytest.mark.usefixtures("without_the_model")
def test_text_and_json_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text, nothing = capsys.readouterr()
    assert main(["doctor", "--json"]) == 0
    line, _ = capsys.readouterr()
    assert (nothing, line.count("\n")) == ("", 1)
    groups = json.loads(line)
    assert [title for title in text.splitlines() if not title.startswith(" ")] == list(groups) == GROUPS
    for name, value in (groups["program"] | groups["devices"]).items():
        assert f"  {name}: {value}\n" in text


@pytest.mark.usefixtures("without_the_model")
def test_every_extra_is_complete_or_has_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def all_but_one(name: str) -> object:
        if name == "mutagen":
            raise PackageNotFoundError
        return object()

    monkeypatch.setattr(installation, "distribution", all_but_one)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert f"\n  tags: {how_to_install('tags')}\n" in text
    (complete,) = (line for line in text.splitlines() if line.startswith("  complete: "))
    assert "separation" in complete
    assert "tags" not in complete


@pytest.mark.usefixtures("without_the_model")
def test_caches_are_measured_and_files_with_two_names_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "a").write_bytes(bytes(30_000_000))
    (tmp_path / "second").hardlink_to(tmp_path / "blobs" / "a")
    (tmp_path / "third").symlink_to(tmp_path / "nothing")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert diagnose()["caches"]["checkpoints"] == f"{tmp_path}, 0.03 GB"


@pytest.mark.usefixtures("without_the_model")
def test_secrets_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    groups = diagnose()
    assert "secret" not in repr(groups)
    assert groups["environment"]["OMP_NUM_THREADS"] == "3"


def refuse(*_args: object, **_keywords: object) -> None:
    raise OSError("libcudart.so.12: cannot open\nshared object file")


def not_installed(_name: str) -> None:
    raise PackageNotFoundError("hunterFormsBS")


@pytest.mark.usefixtures("without_the_model")
@pytest.mark.parametrize(
    ("broken", "replacement", "group"),
    [
        ("import_module", refuse, "pytorch"),
        ("import_module", refuse, "devices"),
        ("version", not_installed, "program"),
        ("requires", not_installed, "packages"),
    ],
)
def test_whatever_is_broken_is_a_finding_and_the_rest_is_told(
    broken: str,
    replacement: Callable[..., None],
    group: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(diagnosis, broken, replacement)
    assert main(["doctor"]) == 1
    text, errors = capsys.readouterr()
    assert [line for line in text.splitlines() if not line.startswith(" ")] == GROUPS
    assert any(line.startswith(f"hunterFormsBS: error: {group}: ") for line in errors.splitlines())
    assert "processor" in text


def test_a_kernel_that_computes_something_else_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = KERNELS["complex_operator"]
    right = kernel.run
    monkeypatch.setattr(kernel, "run", lambda *args, **keywords: 1.5 * right(*args, **keywords))
    assert str(diagnose()["kernels"]["error"]).startswith("they differ from the formulas by 0.5 ")
