"""`BandSplitRotator.from_pretrained`: fetching stands above the model, which is handed this function from here."""

from __future__ import annotations

from typing import Any

from hunterFormsBS.bandSplitRotator import BandSplitRotator

__all__ = ["BandSplitRotator", "from_pretrained"]


def from_pretrained(repository: str, *, revision: str = "main", **overrides: Any) -> BandSplitRotator:
    """Load a model that `hunterFormsBS.catalogue.publish` uploaded to the Hugging Face Hub.

    Parameters
    ----------
    repository : str
        `OWNER/REPOSITORY`.
    revision : str
        Branch, tag or commit.
    **overrides : Any
        Further arguments of `hunterFormsBS.checkpoint.from_checkpoint`, whose errors these are.
    """
    # Imported here, because who only builds models needs nothing of it.
    from hunterFormsBS.checkpoint.byName import MODEL, from_checkpoint

    return from_checkpoint(f"hub:{repository}/{MODEL}@{revision}", **overrides)


BandSplitRotator.from_pretrained = staticmethod(from_pretrained)
