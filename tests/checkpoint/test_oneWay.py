"""A checkpoint's one way: no room of `hunterFormsBS/checkpoint` is entered twice, and none imports in a circle."""

from __future__ import annotations

import ast
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import torch

from hunterFormsBS import BandSplitRotator, checkpoint
from hunterFormsBS.checkpoint import from_checkpoint, loading, save_checkpoint
from hunterFormsBS.checkpoint.arguments import DEFAULTS
from hunterFormsBS.checkpoint.facts import recognise_file
from hunterFormsBS.checkpoint.variants import VARIANTS
from tests.models import TINY

FOLDER = Path(checkpoint.__file__).parent
PACKAGE = checkpoint.__name__


def steps() -> Iterator[Callable[..., Any]]:
    """Find the functions of this package that the loader itself calls."""
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(loading.load))) if isinstance(node, ast.Call)]
    for name in (call.func.id for call in calls if isinstance(call.func, ast.Name)):
        function = getattr(loading, name, None)
        if inspect.isfunction(function) and function.__module__.startswith(PACKAGE):
            yield function


def calls_during(action: Callable[[], object]) -> Counter[CodeType]:
    calls: Counter[CodeType] = Counter()

    def count(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            calls[frame.f_code] += 1

    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(None)
    return calls


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    model = BandSplitRotator(**TINY)
    save_checkpoint(folder / "described.ckpt", model)
    torch.save(model.state_dict(), folder / "bare.ckpt")
    return folder


@pytest.mark.filterwarnings("ignore:nothing determines", "ignore:of the tensors, by parts")
@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("described", {}),
        ("described", {"stems": [0]}),
        ("described", {"partial": True, "num_stems": 3}),
        ("bare", {"configuration": {**TINY}, "upstream": "hunterFormsBS"}),
        ("bare", {}),
    ],
    ids=["described", "stems", "partial", "configuration", "bare"],
)
def test_each_step_is_taken_once_in_a_load(saved: Path, file: str, options: dict[str, Any]) -> None:
    calls = calls_during(lambda: from_checkpoint(saved / f"{file}.ckpt", **options))
    taken = {step.__name__: calls[step.__code__] for step in steps()}
    assert {"read_contents", "recognise", "to_plain_keys", "infer", "decide", "fit", "assign"} <= taken.keys()
    assert taken == dict.fromkeys(taken, 1)
    asked = calls[recognise_file.__code__]  # only where no configuration was found
    assert asked == (file == "bare" and not options)
    assert calls[BandSplitRotator.__init__.__code__] == 1


def test_rooms_of_checkpoints_do_not_import_each_other_in_a_circle() -> None:
    rooms = {
        f"{PACKAGE}.{path.stem}": path for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "__main__")
    }
    imports: dict[str, set[str]] = {}
    for room, path in rooms.items():
        named: set[str] = set()
        # Imports within functions, and those for types alone, count too.
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.module is not None, f"{room} imports relatively"
                assert node.module != PACKAGE or {f"{PACKAGE}.{alias.name}" for alias in node.names} <= rooms.keys()
                named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        imports[room] = named & rooms.keys()
    assert len(list(TopologicalSorter(imports).static_order())) == len(rooms)


@pytest.mark.parametrize("variant", VARIANTS, ids=[variant.name for variant in VARIANTS])
def test_a_row_names_arguments_of_the_model_or_none(variant: Any) -> None:
    named = {*variant.switches, *variant.readings, *variant.defaults}
    assert named <= DEFAULTS.keys()
    assert bool(named) <= bool(variant.options)
