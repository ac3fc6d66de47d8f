"""Modules under names of earlier versions: importing one works, and warns once with the present name."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, MappingProxyType, ModuleType
from typing import Final

__all__ = ["FORMER_NAMES", "GONE", "make_importable"]

FORMER_NAMES: Final = MappingProxyType(
    {
        # Of version 0.3.
        "bands": ("bandSplit",),
        "loss": ("bandSplit",),
        "mask": ("bandSplit",),
        "transform": ("attend",),
        # Of version 0.4.
        "blocks.convolutions": ("heads.hyperACE.convolutions",),
        "blocks.fourierOperator": ("heads.fourier",),
        "blocks.hypergraph": ("heads.hyperACE.hypergraph",),
        "blocks.maskHeads": ("heads.axial", "heads.fourier", "heads.hyperACE"),
        "blocks.recompute": ("kernels.recompute",),
        "blocks.segmentation": ("heads.hyperACE.branch",),
        "blocks.valueResidual": ("operations.valueResidual", "theTypes"),
        "checkpoint.limits": ("limits",),
        "kernels.fft": ("operations.fft",),
    }
)
"""Former names of modules, and where their contents are now."""

FORMER_PROGRAMS: Final = MappingProxyType({"checkpoint.__main__": "convert"})
"""Former programs (`python -m` and a module), and the commands that replace them."""

GONE: Final = MappingProxyType(
    {
        "hyperACE": "BandSplitRotator(use_hyperACE=True) builds the heads, and their layers are in "
        "hunterFormsBS.heads.hyperACE, with other names. docs/migration.md says what else moved."
    }
)
"""Modules of version 0.3 that are gone, and what to do instead."""


class _Finder(MetaPathFinder, Loader):
    """Makes a module of a former name when it is imported."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002  # the signature is importlib's
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        known = package == "hunterFormsBS" and any(name in names for names in (FORMER_NAMES, FORMER_PROGRAMS, GONE))
        return ModuleSpec(fullname, self, origin=__file__) if known else None

    def get_code(self, fullname: str) -> CodeType:
        """Return the program that `python -m` runs under a former name."""
        former, name = fullname.removesuffix(".__main__"), fullname.partition(".")[2]
        command = FORMER_PROGRAMS[name]
        advice = f"python -m {former} is a former name: run hunterforms {command}."
        lines = (
            "import hunterFormsBS.program.dispatch, warnings",
            f"warnings.warn({advice!r}, DeprecationWarning)",
            f"hunterFormsBS.program.dispatch.run({command!r})",
        )
        return compile("\n".join(lines), fullname, "exec")

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__.partition(".")[2]
        if name in GONE:
            raise ImportError(f"{module.__name__} was part of version 0.3: {GONE[name]}")
        homes = [f"hunterFormsBS.{home}" for home in FORMER_NAMES[name]]
        warnings.warn(
            f"{module.__name__} is a former name: import from {' or '.join(homes)}.", DeprecationWarning, stacklevel=2
        )
        for home in homes:
            vars(module).update(
                {name: value for name, value in vars(import_module(home)).items() if not name.startswith("_")}
            )


def make_importable() -> None:
    """Let `import` find modules under their former names."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
