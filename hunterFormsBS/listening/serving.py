"""Start the server and the worker thread, and shut both down in order, whatever ends the program."""

from __future__ import annotations

import ipaddress
import secrets
import socket
import sys
import threading
import webbrowser
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import uvicorn
from starlette.applications import Starlette

from hunterFormsBS.console import Console
from hunterFormsBS.devices import find_device
from hunterFormsBS.failures import UsageError
from hunterFormsBS.listening.access import Door, Keys
from hunterFormsBS.listening.application import application
from hunterFormsBS.listening.options import LOOPBACK, Options, password_of
from hunterFormsBS.listening.separating import Separating
from hunterFormsBS.listening.work import Limits, Work
from hunterFormsBS.printable import say
from hunterFormsBS.songs.signals import uninterrupted

__all__ = ["serve"]

SECONDS_TO_END = 30.0
"""How long the shutdown waits for the current chunk."""

SECONDS_IN_SILENCE = 1.0
"""After this long the shutdown says that it waits."""

SECONDS_FOR_ANSWERS = 2
"""How long the shutdown waits for responses in progress."""


def serve(options: Options, console: Console) -> None:
    """Serve the page until a signal raises an exception, then stop the worker and remove the temporary folder.

    Raises
    ------
    UsageError
        If the options cannot be used.
    OSError
        If a file cannot be read or made.
    """
    if not options.models.is_dir():
        raise UsageError(f"--models {options.models} is not a folder: name one that has checkpoints in it")
    separate = Separating(find_device(options.device), options.max_minutes, console)
    limits = Limits(waiting=options.max_waiting, kept=options.keep, hours=options.keep_hours)
    password = password_of(options)
    secret = password or secrets.token_urlsafe(32)
    keys = Keys(secret, options.keep_hours, is_password=password is not None)
    with ExitStack() as stack:
        with uninterrupted():
            listener = stack.enter_context(_listener(options.host, options.port))
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="hunterFormsBS-", ignore_cleanup_errors=True)))
            work = Work(folder, separate, limits)
            stack.callback(_end, work, console)
            port = int(listener.getsockname()[1])
            server = _Server(Door(_application(options, work), keys, port, [*options.name, options.host]), listener)
            stack.callback(server.end)
        address = f"http://{_reachable(options.host)}:{port}/" + ("" if password else f"?token={secret}")
        say(f"{address} (Ctrl-C ends it)", sys.stdout)
        if not options.no_browser:
            open_in_browser(address, folder)
        server.wait()


def _end(work: Work, console: Console) -> None:
    if not work.close(SECONDS_IN_SILENCE):
        console.remark("ending after the current chunk")
        work.close(SECONDS_TO_END)


def _application(options: Options, work: Work) -> Starlette:
    return application(
        work,
        options.models,
        options.checkpoint,
        max_bytes=int(1e6 * options.max_mb),
        max_minutes=options.max_minutes,
    )


class _Server:
    """Uvicorn in a thread of its own: the main thread gets the signals, and shuts down in order."""

    def __init__(self, door: Door, listener: socket.socket) -> None:
        self._listener = listener
        self._ended = threading.Event()
        self._server = uvicorn.Server(
            uvicorn.Config(
                door,
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
        threading.Thread(target=self._run, name="serving", daemon=True).start()

    def wait(self) -> None:
        """Wait until the server has ended."""
        while not self._ended.wait(0.5):
            pass  # Without a limit, Windows would not notice Ctrl-C.

    def end(self) -> None:
        """End the server, and wait for that."""
        self._server.should_exit = True
        self._ended.wait()

    def _run(self) -> None:
        try:
            self._server.run([self._listener])
        finally:
            self._ended.set()


def open_in_browser(address: str, folder: Path) -> None:
    """Open an address through a local file: command lines, which contain the address, are visible to all users."""
    page = folder / "open.html"
    page.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={address}">', encoding="ascii")
    webbrowser.open(page.as_uri())


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
