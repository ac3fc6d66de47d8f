"""Options of the page in the browser."""

from __future__ import annotations

import argparse
import ipaddress
from pathlib import Path

from hunterFormsBS.failures import UsageError

__all__ = ["LOOPBACK", "Options", "password_of"]

LOOPBACK = "127.0.0.1"
SHORTEST_PASSWORD = 12


class Options(argparse.Namespace):
    """The arguments of `hunterforms listen`."""

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
                f"--host {options.host} lets other machines connect: pass --password-file, a file "
                "whose first line is the password"
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
