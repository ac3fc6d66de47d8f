"""Names that packages hand on: everybody who asks for them gets the same ones, and nothing is imported before."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import hunterFormsBS
import hunterFormsBS.checkpoint
import hunterFormsBS.recipes

PACKAGES: list[Any] = [hunterFormsBS, hunterFormsBS.checkpoint, hunterFormsBS.recipes]
every_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
PROMISED = {
    *("BandSplitRotator", "BSRoformer", "MelBandRoformer", "from_checkpoint", "from_configuration", "save_checkpoint"),
    *("separate", "separate_stream", "reference", "filter_bank_non_overlapping", "librosa_filters_mel"),
    *("plot_band_masks", "plot_mask_filter_bank", "plot_separation"),
}


def seen_by_type_checkers(package: ModuleType) -> dict[str, str]:
    """Return the names that the block for type checkers imports, and from where; each is marked as handed on."""
    tree = ast.parse(Path(str(package.__file__)).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    found: dict[str, str] = {}
    for node in blocks[0].body:
        assert isinstance(node, ast.ImportFrom)
        assert node.module is not None
        for alias in node.names:
            assert alias.asname == alias.name
            found[alias.name] = node.module
    return found


@every_package
def test_type_checkers_all_dir_star_import_and_attributes_agree(package: ModuleType) -> None:
    names = seen_by_type_checkers(package)
    assert sorted(names) == package.__all__
    assert set(names) <= set(dir(package))
    starred: dict[str, object] = {}
    exec(f"from {package.__name__} import *", starred)
    assert set(starred) - {"__builtins__"} == set(names)
    for name, module in names.items():
        assert hasattr(package, name)
        assert starred[name] is getattr(package, name) is getattr(importlib.import_module(module), name)
    offered = {name for name in dir(package) if not name.startswith("_")} - set(names)
    assert all(isinstance(getattr(package, name), ModuleType) for name in offered)


@every_package
def test_unknown_names_are_no_attributes(package: ModuleType) -> None:
    assert not hasattr(package, "sepparate")
    with pytest.raises(ImportError, match="cannot import name 'sepparate'"):
        exec(f"from {package.__name__} import sepparate")
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'sepparate'"):
        package.sepparate  # noqa: B018


def test_the_package_hands_on_what_users_need() -> None:
    assert set(hunterFormsBS.__all__) >= PROMISED


def test_the_package_knows_its_version() -> None:
    assert hunterFormsBS.__version__ == version("hunterFormsBS")
    assert "__version__" in dir(hunterFormsBS)


@pytest.mark.process
def test_importing_and_looking_import_no_pytorch_and_modules_are_attributes() -> None:
    program = (
        "import sys, hunterFormsBS, hunterFormsBS.checkpoint, hunterFormsBS.recipes\n"
        "dir(hunterFormsBS), dir(hunterFormsBS.checkpoint), dir(hunterFormsBS.recipes), hunterFormsBS.__version__\n"
        "hunterFormsBS.recipes.Recipe, hunterFormsBS.recipes.shipped()\n"
        "assert 'torch' not in sys.modules\n"
        "assert hunterFormsBS.separation.separate is hunterFormsBS.separate\n"
        "assert hunterFormsBS.kernels.seam.reference is hunterFormsBS.reference\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
