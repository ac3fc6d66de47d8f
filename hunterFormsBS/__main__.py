"""Separate audio files: `python -m hunterFormsBS --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from hunterFormsBS.console import Console, keep_standard_streams, one_line
from hunterFormsBS.songs.batch import FAILURES, separate_all
from hunterFormsBS.songs.commandLine import PROGRAM, UsageError, parse
from hunterFormsBS.songs.information import show_information
from hunterFormsBS.songs.signals import ending_on_signals

INTERRUPTED = 130  # What shells report for a program that SIGINT ended.


def main(argv: Sequence[str] | None = None) -> int:
    """Separate the files that the arguments name.

    Parameters
    ----------
    argv : Sequence[str] | None = None
        Arguments without the program's name. `None`: those of the process.

    Returns
    -------
    status : int
        0, 1 or 130, as `--help` says.

    Raises
    ------
    SystemExit
        With 2 if the arguments cannot be used, with 0 after `--help`.
    """
    options, refuse = parse(argv)
    console = Console(PROGRAM)
    console.quiet, console.json = options.quiet, options.json
    with console.showing_warnings():
        try:
            if options.info is not None:
                return show_information(options, options.info, console)
            return separate_all(options, console)
        except UsageError as error:
            refuse(one_line(error))
        except KeyboardInterrupt:
            console.tell("interrupted")
            return INTERRUPTED
        except FAILURES as error:
            console.tell(f"error: {one_line(error)}")
            return 1


def run() -> NoReturn:
    """Be the program of this process."""
    keep_standard_streams()
    with ending_on_signals():
        sys.exit(main())


if __name__ == "__main__":
    run()
