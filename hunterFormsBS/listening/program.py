"""Separate songs in the browser: drop them, choose a checkpoint, hear the stems beside the mixture, download them.

The page is on the loopback address of this machine. What it makes is in a temporary folder that goes with the program.
"""

from __future__ import annotations

import argparse
import ipaddress
import re
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from hunterFormsBS.console import Console, keep_standard_streams, one_line
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.printable import say
from hunterFormsBS.songs.commandLine import UsageError
from hunterFormsBS.songs.signals import ending_on_signals, uninterrupted

__all__ = ["main", "parser", "run"]

LOOPBACK = "127.0.0.1"
SHORTEST_PASSWORD = 12
INTERRUPTED = 130
SECONDS_TO_END = 30.0
"""How long the end of the program waits for the chunk that is being computed."""

SECONDS_FOR_ANSWERS = 2
"""How long it waits for answers that are being sent."""


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
    reader = _Parser(description=(__doc__ or "").partition("\n")[0])
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
        _serve(options, console)
    except UsageError as error:
        reader.error(one_line(error))
    except KeyboardInterrupt:
        console.tell("ended")
        return INTERRUPTED
    except (ImportError, OSError, ValueError) as error:
        console.tell(f"error: {one_line(error)}")
        return 1
    return 0


def run() -> NoReturn:
    """Be the program of this process."""
    keep_standard_streams()
    with ending_on_signals():
        sys.exit(main())


def _serve(options: Options, console: Console) -> None:
    """Serve the page until a signal raises an exception. After it nothing goes on, and nothing is left."""
    if not options.models.is_dir():
        raise UsageError(f"--models {options.models} is not a folder: name one that has checkpoints in it")
    try:
        import uvicorn

        from hunterFormsBS.listening.access import Door, Keys
        from hunterFormsBS.listening.application import application
        from hunterFormsBS.listening.separating import Separating, find_device
        from hunterFormsBS.listening.work import Limits, Work
    except ImportError as error:
        raise ImportError(f"{one_line(error)}: {how_to_install('listen')}") from error
    device = find_device(options.device)
    limits = Limits(waiting=options.max_waiting, kept=options.keep, hours=options.keep_hours)
    password = _password(options)
    secret = password or secrets.token_urlsafe(32)
    keys = Keys(secret, options.keep_hours, is_password=password is not None)
    with ExitStack() as stack:
        listener = stack.enter_context(_listener(options.host, options.port))
        port = int(listener.getsockname()[1])
        with uninterrupted():
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="hunterFormsBS-", ignore_cleanup_errors=True)))
        work = Work(folder, Separating(device, options.max_minutes, console), limits)
        stack.callback(work.close, SECONDS_TO_END)
        served = application(
            work,
            options.models,
            options.checkpoint,
            max_bytes=int(1e6 * options.max_mb),
            max_minutes=options.max_minutes,
        )
        server = uvicorn.Server(
            uvicorn.Config(
                Door(served, keys, port, [*options.name, options.host]),
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",  # the door says what went wrong
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=SECONDS_FOR_ANSWERS,
            )
        )
        ended = threading.Event()

        def serve() -> None:
            try:
                server.run([listener])
            finally:
                ended.set()

        def end() -> None:
            server.should_exit = True
            ended.wait()

        # Signals come to the main thread, which so stays free to end everything in order.
        threading.Thread(target=serve, name="serving", daemon=True).start()
        stack.callback(end)
        address = f"http://{_reachable(options.host)}:{port}/" + ("" if password else f"?token={secret}")
        say(f"{address} (Ctrl-C ends it)", sys.stdout)
        if not options.no_browser:
            _open_in_browser(address, folder)
        while not ended.wait(0.5):
            pass  # Without a limit, Windows would not notice Ctrl-C.


def _open_in_browser(address: str, folder: Path) -> None:
    """Have a browser go to an address, by a file: all users of the machine see what a program is started with."""
    page = folder / "open.html"
    page.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={address}">', encoding="ascii")
    webbrowser.open(page.as_uri())


def _password(options: Options) -> str | None:
    """Return the password, None if the secret in the address is enough: where only this machine can connect."""
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


def _reachable(host: str) -> str:
    """Return an address for the browser of this machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return LOOPBACK
    return f"[{address}]" if address.version == 6 else host


def _listener(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(f"--host {host} --port {port} cannot be used ({error}): try --port 0") from error


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


if __name__ == "__main__":
    run()
