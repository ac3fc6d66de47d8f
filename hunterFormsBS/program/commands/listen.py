"""Separate songs in the browser, and hear the stems."""

from __future__ import annotations

import argparse
from pathlib import Path

from hunterFormsBS.console import Console
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.listening.options import LOOPBACK, Options
from hunterFormsBS.program.values import integer, number

EXAMPLES = """\
  hunterforms listen --models checkpoints
      opens a page on this machine that offers the checkpoints of a folder, and those of the catalogue

  hunterforms listen --host 0.0.0.0 --password-file secret.txt --no-browser
      serves other machines too, to whoever knows the first line of the file

The page is on the loopback address of this machine. What it makes is in a temporary folder that goes with the program.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("--models", type=Path, default=Path(), metavar="DIR", help="offer the checkpoints in this folder (default: .)")
    add(
        "--checkpoint",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="also offer this: a file, or hub:OWNER/REPOSITORY/FILE; may be repeated",
    )
    add("--port", type=integer(0, 65535), default=7860, help="0: any free port (default: 7860)")
    add("--host", default=LOOPBACK, help=f"address to listen on; others than {LOOPBACK} need --password-file")
    add(
        "--password-file",
        type=Path,
        metavar="FILE",
        help="its first line is the password, instead of a secret in the address",
    )
    add(
        "--name",
        action="append",
        default=[],
        metavar="NAME",
        help="another host name of this machine to accept; IP addresses and localhost are accepted",
    )
    add("--device", default="auto", help="cpu, cuda, mps, ... (default: a GPU if there is one)")
    add("--max-mb", type=number(above=0, highest=1e9), default=200, help="limit of a song's file size (default: 200)")
    add("--max-minutes", type=number(above=0, highest=1e9), default=10, help="limit of a song's length (default: 10)")
    add("--max-waiting", type=integer(1, 999_999_999), default=10, help="limit of the queue (default: 10)")
    add("--keep", type=integer(1, 999_999_999), default=10, help="songs kept for each browser (default: 10)")
    add("--keep-hours", type=number(above=0, highest=1e9), default=24, help="how long they are kept (default: 24)")
    add("--no-browser", action="store_true", help="only print the address")


def run(options: argparse.Namespace, console: Console) -> int:
    """Serve the page until a signal ends it."""
    try:
        from hunterFormsBS.listening.serving import serve
    except ImportError as error:
        raise ImportError(f"{error}: {how_to_install('listen')}") from error
    serve(Options(**vars(options)), console)
    return 0
