"""Public checkpoints by name: their addresses, digests, and the settings that their files lack.

model = from_checkpoint("bs_roformer-unwa-revive")            # fetched once, then from the cache
model = from_checkpoint("model_bs_roformer_ep_317_sdr_12.9755.ckpt")  # a name that other programs give it
model = from_checkpoint("hub:pcunwa/BS-Roformer-Revive/bs_roformer_revive.ckpt")
recognise("anything.ckpt")                                    # a file that is here, by size and SHA-256

The facts are in `catalogue.json`; `checkpoint/facts.py` says how to add a checkpoint.
"""

from hunterFormsBS.checkpoint.byName import fetch, publish, recognise
from hunterFormsBS.checkpoint.facts import Costs, Entry, Preset, ScoreSource, entries, find_entry, presets, score_source

__all__ = [
    "Costs",
    "Entry",
    "Preset",
    "ScoreSource",
    "entries",
    "fetch",
    "find_entry",
    "presets",
    "publish",
    "recognise",
    "score_source",
]
