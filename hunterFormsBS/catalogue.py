"""Public checkpoints by name: where they are, how to recognise them, and what their files do not say.

model = from_checkpoint("bs_roformer-unwa-revive")            # fetched once, then from the cache
model = from_checkpoint("hub:pcunwa/BS-Roformer-Revive/bs_roformer_revive.ckpt")
recognise("anything.ckpt")                                    # a file that is here, by size and SHA-256

The facts are in `catalogue.json`; `checkpoint/facts.py` says how to add a checkpoint.
"""

from hunterFormsBS.checkpoint.byName import fetch, publish, recognise
from hunterFormsBS.checkpoint.facts import Entry, entries

__all__ = ["Entry", "entries", "fetch", "publish", "recognise"]
