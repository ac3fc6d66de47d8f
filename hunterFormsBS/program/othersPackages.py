"""What commands that train or measure need of other packages, and what these say."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager

from hunterFormsBS.installation import how_to_install, is_installed

__all__ = ["packages_of_training"]


@contextmanager
def packages_of_training(purpose: str) -> Generator[None]:
    """Show the remarks of this package, and of no other: Fabric and PyTorch advise about what was decided here.

    Raises
    ------
    ImportError
        If the packages of the extra `train` are not installed, which the purpose needs.
    """
    if not is_installed("train"):
        raise ImportError(f"{purpose} needs more packages: {how_to_install('train')}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"__main__|hunterFormsBS")
        yield
