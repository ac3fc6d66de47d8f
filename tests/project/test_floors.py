"""The plan of the package: every import goes down, and never in a circle. Imports for types alone count."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import hunterFormsBS

ROOT = Path(hunterFormsBS.__file__).parent

FLOORS = (
    (
        "theTypes",
        "printable",
        "installation",
        "optionRow",
        "variantRow",
        "containers",
        "parametersSeparation",
        "separationValues",
        "signature",
        "limits",
        "console",
        "choices",
        "failures",
        "lazyNames",
    ),
    ("operations",),
    ("kernels",),
    ("blocks", "attend"),
    ("heads", "bandSplit"),
    ("options", "checks"),
    ("bandSplitRotator", "plot", "make_static_mask_filter_bank"),
    ("checkpoint", "catalogue"),
    ("bs_roformer", "mel_band_roformer"),
    ("separation", "overlapAdd", "estimates", "devices"),
    ("ensemble",),
    ("songs",),
    ("recipes",),
    ("listening", "training"),
    ("program",),
    ("__main__",),
)
"""From the ground up. A module imports from its own floor and from those below."""

FACES = ("hunterFormsBS", "hunterFormsBS.formerNames")
"""They hand on names of all floors, and nothing imports them."""

IMPORTING = ("import_module", "__import__")
"""Functions that import a module by its name."""


def modules() -> dict[str, Path]:
    """Return every module of the package."""
    found: dict[str, Path] = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, names: set[str]) -> Iterator[str]:
    """Iterate over the modules of the package that a file imports, wherever in it, for whatever reason."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in names:
                    yield inner
                elif node.module in names:
                    yield node.module
        elif isinstance(node, ast.Call):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in IMPORTING:
                yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and arg.value in names)


def arrows() -> dict[str, set[str]]:
    found = modules()
    return {
        name: {other for other in imports_of(path, set(found)) if other != name}
        for name, path in found.items()
        if name not in FACES
    }


def floor_of(name: str) -> int:
    """Return the floor of a module."""
    room = name.split(".")[1]
    floors = [number for number, rooms in enumerate(FLOORS) if room in rooms]
    assert len(floors) == 1, f"{name} is on no floor, or on several: put {room} on one in {__name__}.FLOORS"
    return floors[0]


def test_every_import_goes_down_or_stays_on_its_floor() -> None:
    up = [
        f"{name} imports {other}"
        for name, others in arrows().items()
        for other in others
        if other in FACES or floor_of(other) > floor_of(name)
    ]
    assert up == []


def test_rooms_of_the_program_are_imported_by_nothing_else() -> None:
    users = [
        f"{name} imports {other}"
        for name, others in arrows().items()
        for other in others
        for room in [other.split(".")[1]]
        if room in {"listening", "program", "training"} and name.split(".")[1] not in {room, "program", "__main__"}
    ]
    assert users == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(arrows()).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


@pytest.mark.parametrize(
    "source",
    [
        "import hunterFormsBS.songs.names",
        "from hunterFormsBS.songs import names",
        "from hunterFormsBS.songs.names import safe_name",
        "def late():\n    from hunterFormsBS.songs.names import safe_name",
        "import_module('hunterFormsBS.songs.names')",
        "importlib.import_module('hunterFormsBS.songs.names').safe_name",
        "__import__('hunterFormsBS.songs.names')",
    ],
)
def test_an_import_is_seen_however_it_is_written(source: str, tmp_path: Path) -> None:
    (tmp_path / "any.py").write_text(source, encoding="utf-8")
    assert list(imports_of(tmp_path / "any.py", set(modules()))) == ["hunterFormsBS.songs.names"]
