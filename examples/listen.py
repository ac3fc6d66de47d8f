"""Separate songs in the browser: drop them, choose a checkpoint, hear the stems beside the mixture, download them.

python examples/listen.py --models outputs
"""

from __future__ import annotations

from hunterFormsBS.listening.program import run

if __name__ == "__main__":
    run()
