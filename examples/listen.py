"""Separate songs in the browser: drop one, choose a checkpoint, hear the stems beside the mixture, download them.

    python examples/listen.py --models outputs

The page is on the loopback address of this machine. What it makes is in a temporary folder that goes with the program.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import webbrowser
from collections.abc import Sequence
from pathlib import Path

try:
    import torch
    from listening.separating import Separator
    from listening.server import Server

    from hunterFormsBS.estimates import unusable
except ImportError as problem:
    raise SystemExit(f'{problem}: python -m pip install -e ".[listen]" in a copy of the repository') from problem


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the page until Ctrl-C."""
    reader = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    reader.add_argument("--models", type=Path, default=Path(), help="folder whose checkpoints are offered (default: .)")
    reader.add_argument("--port", type=int, default=7860, help="0 for any that is free (default: 7860)")
    reader.add_argument("--device", help="cpu, cuda, mps, ... (default: a GPU if there is one)")
    reader.add_argument("--max-mb", type=float, default=200, help="size of a song's file at most (default: 200)")
    reader.add_argument("--max-minutes", type=float, default=10, help="length of a song at most (default: 10)")
    reader.add_argument("--no-browser", action="store_true", help="only print the address")
    options = reader.parse_args(arguments)
    if not options.models.is_dir():
        raise SystemExit(f"--models {options.models} is no folder: name one that has checkpoints in it")
    device = options.device or (
        "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    )
    if (reason := unusable(device)) is not None:
        raise SystemExit(f"--device {device} cannot be used here: {reason}")
    with tempfile.TemporaryDirectory(prefix="hunterFormsBS-") as folder:
        separator = Separator(Path(folder), device, options.max_minutes)
        try:
            server = Server(separator, options.models, options.port, int(1e6 * options.max_mb))
        except (OSError, OverflowError) as error:
            raise SystemExit(f"--port {options.port} cannot be used ({error}): try --port 0") from error
        with server:
            print(f"{server.address} (Ctrl-C ends it)", flush=True)
            if not options.no_browser:
                webbrowser.open(server.address)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print("ended", file=sys.stderr)
            finally:
                separator.stop(seconds=30)


if __name__ == "__main__":
    from endings import run

    run(main)
