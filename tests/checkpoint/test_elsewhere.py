"""Files that are published outside the Hub: fetched from servers on the loopback address, good ones and bad ones."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest

from hunterFormsBS.catalogue import Entry
from hunterFormsBS.checkpoint import CheckpointError, byName, connection, facts

BODY = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(BODY).hexdigest()
NAME = "model_bs_roformer_ep_317_sdr_12.9755.ckpt"


class Server(ThreadingHTTPServer):
    """Serves one file; `behaviour` says how badly, and `asked` what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Route)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.behaviour = "good"
        self.asked: list[tuple[str, str | None]] = []
        self.headers: list[str] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing about clients that hang up."""


class Route(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        behaviour, wanted = self.server.behaviour, self.headers.get("Range")
        self.server.asked.append((self.command, wanted))
        self.server.headers += [f"{name}: {value}" for name, value in self.headers.items()]
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if behaviour.isdigit():
            self.send_response(int(behaviour))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = {"another": BODY[::-1], "shorter": BODY[:-1000]}.get(behaviour, BODY)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and behaviour != "no ranges" else 0  # type: ignore[index]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if self.command == "GET":
            cut = {"cut": 300_000, "cut at once": 0}.get(behaviour, len(body))
            self.wfile.write(body[start : start + cut])
            self.close_connection = start + cut < len(body)


@pytest.fixture(scope="module")
def serving() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(serving: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Return the server, with an empty cache, and with the client's own attempts following at once."""
    for name, value in {
        "HF_ASSETS_CACHE": str(tmp_path / "assets"),
        "HF_HUB_OFFLINE": False,
        "DOWNLOAD_CHUNK_SIZE": 50_000,  # What is received is kept in pieces of this size.
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    huggingface_hub.close_session()
    serving.behaviour = "good"
    serving.asked.clear()
    serving.headers.clear()
    yield serving
    huggingface_hub.close_session()


def enter(monkeypatch: pytest.MonkeyPatch, server: Server, folder: str = "releases", **fields: Any) -> None:
    """Put a checkpoint of this server into the catalogue."""
    known: dict[str, Any] = {
        "url": f"{server.address}/{folder}/download/{NAME}",
        "page": "https://github.com/owner/name",
        "authors": ("somebody",),
        "sha256": DIGEST,
        "size": len(BODY),
    }
    entry = Entry(name="x", stems=("vocals",), configuration={"model": {}}, **known | fields)
    monkeypatch.setattr(facts, "entries", lambda: {"x": entry})


def failure(load: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as error:
        load()
    message = str(error.value)
    assert message.isprintable()
    assert "secret" not in message
    return message


@pytest.mark.parametrize("known", [{}, {"sha256": ""}, {"sha256": "", "size": 0}], ids=str)
@pytest.mark.parametrize("folder", ["releases", "moved/releases"])
def test_a_file_is_fetched_once_with_a_line_on_whose_it_is_and_found_without_a_connection(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: str,
    known: dict[str, Any],
) -> None:
    enter(monkeypatch, server, folder, **known)
    path, configuration = byName.fetch("x")
    assert path.read_bytes() == BODY
    assert path.is_relative_to(tmp_path / "assets" / "hunterFormsBS")
    assert configuration == {"model": {}}
    line = "x: weights by somebody; their terms of use, if stated, are at https://github.com/owner/name\n"
    assert capsys.readouterr().err == line
    assert "hf_secret" not in " ".join(server.headers)  # A token for the Hub is nobody else's business.
    asked = len(server.asked)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert byName.fetch(NAME)[0] == path
    assert len(server.asked) == asked
    assert capsys.readouterr().err == ""
    assert sorted(file.name for file in path.parent.iterdir() if file.suffix != ".lock") == [NAME, f"{NAME}.sha256"]


def test_what_was_cut_off_is_continued_where_it_ended(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, server)
    server.behaviour = "cut at once"
    assert "breaks off" in failure(lambda: byName.fetch("x"))
    server.behaviour = "cut"
    assert byName.fetch("x")[0].read_bytes() == BODY
    starts = [int(wanted.removeprefix("bytes=")[:-1]) for _, wanted in server.asked if wanted]
    assert starts == sorted({300_000, 600_000, 900_000})


@pytest.mark.parametrize("known", [{}, {"sha256": "", "size": 0}], ids=str)
def test_a_later_call_continues_what_an_earlier_one_left(
    server: Server, monkeypatch: pytest.MonkeyPatch, known: dict[str, Any]
) -> None:
    enter(monkeypatch, server, **known)
    whole = byName.fetch("x")[0]
    for behaviour, left in (("good", BODY[:1000]), ("no ranges", BODY[:1000]), ("good", BODY), ("good", BODY * 2)):
        whole.unlink()
        whole.with_name(f"{NAME}.incomplete").write_bytes(left)
        server.behaviour = behaviour
        assert byName.fetch("x")[0].read_bytes() == BODY


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("404", "no longer there: see https://github.com/owner/name"),
        ("500", "status 500: try again later"),
        ("403", "you may not read https://github.com/owner/name"),
        ("another", "is not the file of the catalogue: its SHA-256 is"),
        ("shorter", f"is not the file of the catalogue: it has {len(BODY) - 1000} bytes, not {len(BODY)}"),
        ("cut at once", "cannot be reached or breaks off: check the connection, HTTPS_PROXY, and try again"),
    ],
)
def test_every_failure_is_one_line_and_leaves_nothing_that_looks_whole(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str, said: str
) -> None:
    enter(monkeypatch, server)
    server.behaviour = behaviour
    message = failure(lambda: byName.fetch("x"))
    assert message.startswith(NAME)
    assert said in message
    assert not list(tmp_path.rglob(NAME))
    server.behaviour = "good"
    assert byName.fetch("x")[0].read_bytes() == BODY


def test_without_a_connection_a_line_names_the_server_and_the_switch(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, server, url=f"http://127.0.0.1:1/download/{NAME}")
    assert "http://127.0.0.1:1 cannot be reached or breaks off" in failure(lambda: byName.fetch("x"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids asking for it" in failure(lambda: byName.fetch("x"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(connection, "PATIENCE", 0.2)
    monkeypatch.setattr(Route, "do_HEAD", lambda _route: threading.Event().wait(1))
    enter(monkeypatch, server)
    assert re.search("no answer within 0.2 s|timed out", failure(lambda: byName.fetch("x")))


@pytest.mark.parametrize("known", [{}, {"sha256": ""}], ids=str)
def test_one_bit_that_changed_in_the_cache_is_found(
    server: Server, monkeypatch: pytest.MonkeyPatch, known: dict[str, Any]
) -> None:
    enter(monkeypatch, server, **known)
    path = byName.fetch("x")[0]
    path.write_bytes(BODY[:-1] + bytes([BODY[-1] ^ 1]))
    assert f"is damaged in the cache, its SHA-256 is {hashlib.sha256(path.read_bytes()).hexdigest()}" in failure(
        lambda: byName.fetch("x")
    )
