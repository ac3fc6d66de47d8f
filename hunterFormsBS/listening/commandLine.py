"""The command line of the page in the browser: its options and their explanation."""

from __future__ import annotations

import argparse
import ipaddress
import re
import sys
from pathlib import Path
from typing import NoReturn

from hunterFormsBS.printable import say
from hunterFormsBS.songs.commandLine import UsageError

__all__ = ["LOOPBACK", "Options", "parser", "password_of"]

LOOPBACK = "127.0.0.1"
SHORTEST_PASSWORD = 12


class Options(argparse.Namespace):
    """The command line."""

    models: Path
    checkpoint: list[Path]
    host: str
    name: list[str]
    password_file: Path | None
    port: int
    device: str
    max_mb: float
    max_minutes: float
    max_waiting: int
    keep: int
    keep_hours: float
    no_browser: bool


class _Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2."""
        say(f"{self.prog}: error: {message} (--help explains the options)", sys.stderr)
        self.exit(2)


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    reader = _Parser(description="Separate songs in the browser.")
    add = reader.add_argument
    add("--models", type=Path, default=Path(), metavar="DIR", help="folder whose checkpoints are offered (default: .)")
    add(
        "--checkpoint",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="offer this as well: a file, or hub:OWNER/REPOSITORY/FILE; may be given several times",
    )
    add("--port", type=_port, default=7860, help="0 for any that is free (default: 7860)")
    add("--host", default=LOOPBACK, help=f"address to listen on; others than {LOOPBACK} need --password-file")
    add(
        "--password-file",
        type=Path,
        metavar="FILE",
        help="its first line opens the page in place of a secret in the address",
    )
    add(
        "--name",
        action="append",
        default=[],
        metavar="NAME",
        help="a name of this machine under which the page is asked for; addresses and localhost are known",
    )
    add("--device", default="auto", help="cpu, cuda, mps, ... (default: a GPU if there is one)")
    add("--max-mb", type=_positive, default=200, help="size of a song's file at most (default: 200)")
    add("--max-minutes", type=_positive, default=10, help="length of a song at most (default: 10)")
    add("--max-waiting", type=_count, default=10, help="songs in the queue at most (default: 10)")
    add("--keep", type=_count, default=10, help="songs kept for each browser (default: 10)")
    add("--keep-hours", type=_positive, default=24, help="how long they are kept (default: 24)")
    add("--no-browser", action="store_true", help="only print the address")
    return reader


def password_of(options: Options) -> str | None:
    """Return the password, None for a random secret.

    Raises
    ------
    UsageError
        If other machines can connect and there is no password, or if it is too short.
    """
    if options.password_file is None:
        if not _is_loopback(options.host):
            raise UsageError(
                f"--host {options.host} lets other machines connect: give --password-file, whose first line they "
                "have to know"
            )
        return None
    with options.password_file.open(encoding="utf-8") as file:
        password = file.readline(1000).strip()
    if len(password) < SHORTEST_PASSWORD:
        raise UsageError(
            f"the first line of --password-file {options.password_file} has {len(password)} characters: use at least "
            f"{SHORTEST_PASSWORD}"
        )
    return password


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _port(text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text, re.ASCII) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 65535, but is {text!r}")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"must be a number above 0, but is {text!r}")
    return value


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, but is {text!r}")
    return int(text)
