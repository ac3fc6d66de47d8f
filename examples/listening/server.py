"""The server: on the loopback address, for the page that it serves and for nobody else."""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
import tempfile
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hunterFormsBS.catalogue import entries
from listening.separating import BusyError, Request, Separator

PAGE = Path(__file__).parent / "page.html"
SUFFIXES = (".ckpt", ".pt", ".pth", ".th", ".bin", ".safetensors")
BLOCK = 1 << 20
# Nothing comes from, or goes to, anywhere else.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"
)


class RefusedError(Exception):
    """A request that is answered with a status and one sentence."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server(ThreadingHTTPServer):
    """Serves the page and what it asks for.

    Parameters
    ----------
    separator : Separator
    models : Path
        Folder whose checkpoints the page offers.
    port : int
        0 for any that is free.
    max_bytes : int
        Larger uploads are refused before they are read.
    """

    daemon_threads = True

    def __init__(self, separator: Separator, models: Path, port: int, max_bytes: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.separator = separator
        self.models = models
        self.max_bytes = max_bytes
        # Pages of other sites can send requests to this address; they cannot read the page that has this.
        self.token = secrets.token_urlsafe(16)

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.server_port}/"

    def checkpoints(self) -> list[dict[str, str]]:
        """Return the checkpoints of the folder, each with the configuration of its name, if there is one."""
        found: list[dict[str, str]] = []
        for path in sorted(self.models.rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                beside = [path.with_suffix(suffix) for suffix in (".yaml", ".yml", ".json")]
                configuration = next((str(file) for file in beside if file.is_file()), "")
                found.append({"checkpoint": str(path), "configuration": configuration})
        return found


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Server
    timeout = 60
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Send the page, the state of the work, or a result."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Begin or stop a separation."""
        self._answer(self._post)

    def log_message(self, *arguments: Any) -> None:
        """Keep the terminal free."""

    def _answer(self, method: Callable[[str], None]) -> None:
        length = self.headers.get("Content-Length", "0")
        # What of the body was not read yet; nothing states such a length in earnest that is no number.
        self._unread = int(length) if length.isdecimal() and len(length) <= 15 else 0
        try:
            # A name that leads to this address from elsewhere is not one of these.
            if self.headers.get("Host", "").rpartition(":")[0] not in {"127.0.0.1", "localhost"}:
                raise RefusedError(HTTPStatus.FORBIDDEN, "This page is for the browser of this machine")
            method(urlsplit(self.path).path)
        except RefusedError as error:
            self.close_connection = True
            self._drain()
            self._send(json.dumps({"error": str(error)}).encode(), "application/json", error.status)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True

    def _drain(self) -> None:
        """Take what is still coming, within bounds, because a browser reads no answer before it has sent all."""
        left = min(self._unread, 4 * self.server.max_bytes)
        while left > 0 and (block := self.rfile.read(min(left, BLOCK))):
            left -= len(block)

    def _get(self, path: str) -> None:
        if path == "/":
            page = PAGE.read_text(encoding="utf-8").replace("{{token}}", self.server.token)
            self._send(page.encode(), "text/html; charset=utf-8")
        elif path == "/checkpoints":
            self._send(json.dumps(self.server.checkpoints()).encode(), "application/json")
        elif path == "/catalogue":
            self._send(json.dumps(list(entries())).encode(), "application/json")
        elif path == "/progress":
            self._send(json.dumps(dataclasses.asdict(self.server.separator.progress)).encode(), "application/json")
        else:
            parts = re.fullmatch(r"/results/(\w+)/([^/]+)", unquote(path))
            file = self.server.separator.file(parts[1], parts[2]) if parts else None
            if file is None or not file.is_file():
                raise RefusedError(HTTPStatus.NOT_FOUND, "There is nothing here")
            self._send_file(file)

    def _post(self, path: str) -> None:
        if not secrets.compare_digest(self.headers.get("X-Token", ""), self.server.token):
            raise RefusedError(HTTPStatus.FORBIDDEN, "Load the page again: the program was started anew")
        if path == "/stop":
            self.server.separator.stop()
            self._send(b"{}", "application/json")
        elif path == "/separate":
            query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            self._separate(query)
        else:
            raise RefusedError(HTTPStatus.NOT_FOUND, "There is nothing here")

    def _separate(self, query: dict[str, str]) -> None:
        if not query.get("checkpoint"):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "Choose a checkpoint")
        overlap = query.get("overlap", "")
        if overlap and not re.fullmatch(r"[1-9]|[1-4]\d|50", overlap):
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"Overlap is a number from 1 to 50, not {overlap[:20]}")
        if self.server.separator.is_busy():
            raise RefusedError(HTTPStatus.CONFLICT, "A song is being separated: wait, or stop it")
        song = self._receive()
        request = Request(
            song,
            query.get("name", "song")[:200],
            query["checkpoint"],
            query.get("configuration", ""),
            int(overlap) if overlap else None,
        )
        try:
            identity = self.server.separator.start(request)
        except BusyError as error:
            song.unlink(missing_ok=True)
            raise RefusedError(HTTPStatus.CONFLICT, "A song is being separated: wait, or stop it") from error
        self._send(json.dumps({"identity": identity}).encode(), "application/json")

    def _receive(self) -> Path:
        """Write the body to a temporary file, within the limit."""
        left = self._unread
        if left == 0:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "Choose a song: the file is empty")
        if left > self.server.max_bytes:
            limit = f"{self.server.max_bytes / 1e6:g} MB are the limit"
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The file has {left / 1e6:.0f} MB, and {limit}: --max-mb"
            )
        with tempfile.NamedTemporaryFile(dir=self.server.separator.folder, delete=False) as file:
            while left:
                block = self.rfile.read(min(left, BLOCK))
                if not block:
                    Path(file.name).unlink()
                    raise ConnectionResetError
                file.write(block)
                left -= len(block)
                self._unread = left
        return Path(file.name)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._head(status, kind, len(body))
        self.wfile.write(body)

    def _send_file(self, file: Path) -> None:
        kind = "audio/wav" if file.suffix == ".wav" else "image/png"
        with file.open("rb") as stream:
            self._head(HTTPStatus.OK, kind, file.stat().st_size, f"inline; filename*=UTF-8''{quote(file.name)}")
            while block := stream.read(BLOCK):
                self.wfile.write(block)

    def _head(self, status: HTTPStatus, kind: str, length: int, disposition: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", POLICY)
        if disposition is not None:
            self.send_header("Content-Disposition", disposition)
        self.end_headers()
