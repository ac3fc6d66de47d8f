"""Releasing: one command changes every file that has the version, and a release is made once, whole or not at all."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SECTION = "## [9.8.7] - not released yet\n\n- Something.\n\n"


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the script, for a checkout with the files that it changes, where builds are only noted."""
    path = ROOT / ".ci" / "release.py"
    specification = importlib.util.spec_from_file_location("release", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    for name in module.LINES:
        shutil.copy(ROOT / name, tmp_path / name)
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text(re.sub(r"^(?=## \[)", SECTION, changelog.read_text("utf-8"), count=1, flags=re.M), "utf-8")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    for name, value in (("NAME", "A"), ("EMAIL", "a@example.org")):
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", value)
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return module


@pytest.fixture
def call(release: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, ...]]]:
    """Return a function that runs the script, and returns the commands that it would have run."""

    def run(*arguments: str) -> list[tuple[str, ...]]:
        commands: list[tuple[str, ...]] = []
        monkeypatch.setattr(release, "run", lambda *command: commands.append(command))
        monkeypatch.setattr(sys, "argv", ["release.py", *arguments])
        release.main()
        return commands

    return run


def log(folder: Path) -> list[str]:
    said = subprocess.run(["git", "log", "--format=%s %D"], cwd=folder, check=True, capture_output=True, text=True)
    return said.stdout.splitlines()


pytestmark = pytest.mark.process


def test_a_release_is_built_and_checked_committed_with_its_version_and_date_and_tagged_once(
    release: ModuleType, call: Callable[..., list[tuple[str, ...]]], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"not those of release 9\.8\.7: pyproject\.toml, README\.md, CITATION\.cff"):
        call("9.8.7", "--check")
    kinds = [command[1:4] for command in call("9.8.7")]
    assert [kind[:2] for kind in kinds[:2]] == [("-m", "build"), ("-m", "twine")]
    assert kinds[2][1] == "archives"
    assert re.fullmatch(r"Version 9\.8\.7 HEAD -> \w+, tag: v9\.8\.7", log(tmp_path)[0])
    assert len(log(tmp_path)) == 2
    citation = yaml.safe_load((tmp_path / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == "9.8.7"
    date = citation["date-released"]
    assert f"## [9.8.7] - {date}\n" in (tmp_path / "CHANGELOG.md").read_text("utf-8")
    assert 'version = "9.8.7"' in (tmp_path / "pyproject.toml").read_text("utf-8")
    assert "  version = {9.8.7},\n" in (tmp_path / "README.md").read_text("utf-8")
    with pytest.raises(SystemExit, match=r"^0$"):
        call("9.8.7", "--check")
    with pytest.raises(SystemExit, match=r"there is a tag v9\.8\.7 already"):
        call("9.8.7")
    # A later day changes nothing.
    assert release.released(tmp_path, "9.8.7", "2099-01-01")["CHANGELOG.md"] == (
        (tmp_path / "CHANGELOG.md").read_text("utf-8")
    )


def test_a_dry_run_builds_what_a_release_would_and_leaves_the_checkout_as_it_was(
    call: Callable[..., list[tuple[str, ...]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert len(call("9.8.7", "--dry-run")) == 3
    assert "9.8.7 could be released; it changes pyproject.toml" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert len(log(tmp_path)) == 1
    assert "tag:" not in log(tmp_path)[0]


@pytest.mark.parametrize(
    ("version", "change", "said"),
    [
        ("9.9.9", None, r"CHANGELOG.md has no section ## \[9\.9\.9\] - not released yet"),
        ("9.8.7", ("pyproject.toml", 'version = "', 'version= "'), "pyproject.toml must have one line that matches"),
        (
            "9.8.7",
            ("CHANGELOG.md", "[9.8.7] - not released yet", "[9.8.7] - soon"),
            "dates the section of 9.8.7 'soon'",
        ),
        ("9.8.7", ("README.md", "hunterFormsBS", "hunterFormsXY"), "git status lists changes"),
        ("v9.8.7", None, "2"),
        ("9.8", None, "2"),
    ],
)
def test_what_cannot_be_released_is_refused_and_nothing_changes(
    version: str,
    change: tuple[str, str, str] | None,
    said: str,
    call: Callable[..., list[tuple[str, ...]]],
    tmp_path: Path,
) -> None:
    if change is not None:
        name, old, new = change
        path = tmp_path / name
        path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(SystemExit, match=said):
        call(version)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert len(log(tmp_path)) == 1


def test_the_workflow_that_publishes_asks_whether_the_tag_is_a_release_and_stores_no_token() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text("utf-8"))
    build, publish = workflow["jobs"]["build"]["steps"], workflow["jobs"]["publish"]
    assert [step["run"] for step in build if "release.py" in step.get("run", "")] == [
        'python .ci/release.py "${GITHUB_REF_NAME#v}" --check'
    ]
    assert workflow[True] == {"push": {"tags": ["v*"]}}
    assert publish["needs"] == "build"
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["environment"] == "release"
    assert publish["steps"][-1]["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert "with" not in publish["steps"][-1]
    assert "secrets" not in (ROOT / ".github" / "workflows" / "publish.yml").read_text("utf-8")
