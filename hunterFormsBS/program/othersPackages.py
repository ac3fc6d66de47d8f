"""Packages that training and validation need, and their warnings."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager

from hunterFormsBS.installation import how_to_install, is_installed

__all__ = ["packages_of_training"]


@contextmanager
def packages_of_training(purpose: str) -> Generator[None]:
    """Show only this package's warnings: Fabric and PyTorch advise on decisions that were made here.

    Raises
    ------
    ImportError
        If the packages of the extra `train` are not installed.
    """
    if not is_installed("train"):
        raise ImportError(f"{purpose} needs more packages: {how_to_install('train')}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"__main__|hunterFormsBS")
        yield
