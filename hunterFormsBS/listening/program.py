"""Separate songs in the browser: drop them, choose a checkpoint, hear the stems beside the mixture, download them.

The page is on the loopback address of this machine. What it makes is in a temporary folder that goes with the program.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from hunterFormsBS.console import Console, keep_standard_streams, one_line
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.listening.commandLine import Options, parser
from hunterFormsBS.songs.commandLine import UsageError
from hunterFormsBS.songs.signals import ending_on_signals

__all__ = ["main", "run"]

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until a signal ends it.

    Parameters
    ----------
    argv : Sequence[str] | None, default None
        Arguments without the program's name. `None`: those of the process.

    Returns
    -------
    status : int
        1 if it cannot be served, 130 after Ctrl-C.

    Raises
    ------
    SystemExit
        With 2 if the arguments cannot be used, with 0 after `--help`, with 128 and its number after another signal.
    """
    reader = parser()
    options = reader.parse_args(argv, Options())
    console = Console(reader.prog)
    try:
        from hunterFormsBS.listening.serving import serve
    except ImportError as error:
        console.tell(f"error: {one_line(error)}: {how_to_install('listen')}")
        return 1
    try:
        serve(options, console)
    except UsageError as error:
        reader.error(one_line(error))
    except KeyboardInterrupt:
        console.tell("ended")
        return INTERRUPTED
    except (OSError, ValueError) as error:
        console.tell(f"error: {one_line(error)}")
        return 1
    return 0


def run() -> NoReturn:
    """Be the program of this process."""
    keep_standard_streams()
    with ending_on_signals():
        sys.exit(main())


if __name__ == "__main__":
    run()
