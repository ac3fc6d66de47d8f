"""Messages about missing packages end with a command that installs them."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from hunterFormsBS import installation
from hunterFormsBS.installation import how_to_install, is_installed

ROOT = Path(__file__).resolve().parents[2]
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]


def packages_of(extra: str) -> set[str]:
    found = map(Requirement, EXTRAS[extra])
    return {
        name
        for one in found
        for name in (set().union(*map(packages_of, one.extras)) if one.name == "hunterFormsBS" else {one.name.lower()})
    }


def packages(command: str) -> set[str]:
    return {Requirement(part).name.lower() for part in shlex.split(command)[4:]}


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_command_names_every_package_of_an_extra_that_is_missing(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_but_pip(name: str) -> object:
        if name != "pip":
            raise PackageNotFoundError
        return name

    monkeypatch.setattr(installation, "distribution", nothing_but_pip)
    command = how_to_install(extra)
    assert shlex.split(command)[:4] == [sys.executable, "-m", "pip", "install"]
    assert packages(command) == packages_of(extra)
    assert not is_installed(extra)


def test_packages_that_are_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_but_one(name: str) -> object:
        if name == "soxr":
            raise PackageNotFoundError
        return distribution("torch")

    monkeypatch.setattr(installation, "distribution", all_but_one)
    assert packages(how_to_install("separation", "listen")) == {"soxr"}


def test_all_are_named_where_each_is_installed_since_one_is_too_old() -> None:
    assert is_installed("separation")
    assert packages(how_to_install("separation")) == packages_of("separation")


def test_no_module_is_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a search for pip, setuptools leaves distutils to Python, and torch.compile fails with Python 3.11."""
    searched: list[str] = []
    finder = SimpleNamespace(find_spec=lambda name, *_: searched.append(name))
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    how_to_install("hub")
    assert searched == []


def test_an_interpreter_in_a_folder_with_spaces_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/my songs/é/python")
    assert shlex.split(how_to_install("hub"))[0] == "/my songs/é/python"


def test_every_extra_that_messages_name_exists() -> None:
    calls = [
        call
        for path in (ROOT / "hunterFormsBS").rglob("*.py")
        for call in re.findall(r"how_to_install\(([^)]*)\)", path.read_text(encoding="utf-8"))
    ]
    named = {name for call in calls for name in re.findall(r"['\"](\w+)['\"]", call)}
    assert named
    assert named <= set(EXTRAS)
