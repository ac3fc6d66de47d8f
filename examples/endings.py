"""How the examples end: user errors become one line, and warnings of other packages are hidden."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from hunterFormsBS.console import one_line

# Exceptions from invalid files and settings. Any other is a bug, and shows its traceback.
FAILURES = (ImportError, MemoryError, OSError, ValueError)


def run(main: Callable[[], None], *failures: type[Exception]) -> None:
    """Run a program.

    Parameters
    ----------
    main : callable
        The program.
    *failures : type
        Further exceptions for invalid files.
    """
    error_of_parsers = argparse.ArgumentParser.error
    argparse.ArgumentParser.error = _error  # type: ignore[method-assign]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # The package's warnings about files have the module that read them.
            warnings.filterwarnings("default", module=r"__main__|hunterFormsBS")
            warnings.showwarning = _show_warning
            main()
    except (*FAILURES, *failures) as error:
        raise SystemExit(f"{_program()}: error: {one_line(error)}") from None
    except SystemExit as end:
        # The program's own message.
        raise SystemExit(f"{_program()}: error: {end.code}" if isinstance(end.code, str) else end.code) from None
    except KeyboardInterrupt:
        print(f"{_program()}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        argparse.ArgumentParser.error = error_of_parsers  # type: ignore[method-assign]


def _error(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    parser.exit(2, f"{_program()}: error: {message} (--help explains)\n")


def _show_warning(message: Warning | str, *_place: object) -> None:
    print(f"{_program()}: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _program() -> str:
    return Path(sys.argv[0]).name
