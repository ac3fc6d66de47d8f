"""The real client of the Hub against servers on the loopback address, good ones and bad ones."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import logging
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.catalogue import Entry, publish
from hunterFormsBS.checkpoint import CheckpointError, facts, from_checkpoint, read_configuration, save_checkpoint
from hunterFormsBS.checkpoint import connection as client
from tests.models import TINY

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "hub:owner/repository/model.ckpt"


def made() -> BandSplitRotator:
    torch.manual_seed(0)
    return BandSplitRotator(**TINY | {"stereo": True, "zero_dc": False, "stft_hop_length": 8}).eval()


def total(model: BandSplitRotator) -> float:
    return sum(parameter.sum().item() for parameter in model.parameters())


class Hub(ThreadingHTTPServer):
    """The routes of the Hub that fetching and uploading need; the repository says how badly it behaves."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Route)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.files = files
        self.uploaded: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.closing = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing about clients that hang up or speak TLS."""


class Route(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        self.server.asked.append(f"{self.command} {self.path}")

    def answer(self, status: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        size = str(len(body) if length is None else length)
        for name, value in {"Content-Length": size, "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.close_connection = len(body) < int(size)

    def answer_json(self, content: object) -> None:
        self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self.answer_json({"id": "owner/repository", "sha": COMMIT, "siblings": siblings, "private": False})
            return
        behaviour, body = path.split("/")[2], self.server.files.get(path.rpartition("/")[2])
        if behaviour in BAD:
            BAD[behaviour][0](self, body or b"")
        elif body is None:
            self.answer(404, b"", X_Error_Code="EntryNotFound")
        else:
            self.answer(200, body, ETag=f'"{hashlib.sha256(body).hexdigest()}"')

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "/preupload/" in self.path:
            named = [entry["path"] for entry in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in named]
            self.answer_json({"files": modes})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.uploaded[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"{self.server.address}/owner/repository/commit/{COMMIT}"
            self.answer_json({"success": True, "commitOid": COMMIT, "commitUrl": address})
        elif self.path.startswith("/api/validate-yaml"):
            self.answer_json({"errors": [], "warnings": []})
        else:
            self.answer_json({"url": f"{self.server.address}/owner/repository", "name": "owner/repository"})


def say_nothing(route: Route, _body: bytes) -> None:
    route.server.closing.wait(20)


def drip(route: Route, _body: bytes) -> None:
    route.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not route.server.closing.wait(0.05):
        route.wfile.write(b"x")


def hang_up(route: Route, _body: bytes) -> None:
    route.close_connection = True


def speak_otherwise(route: Route, _body: bytes) -> None:
    route.wfile.write(b"220 mail.example ESMTP\r\n")
    route.close_connection = True


def show_a_page(route: Route, _body: bytes) -> None:
    page = b"<html>Welcome to our airport</html>"
    route.send_response(200)
    route.send_header("Content-Length", str(len(page)))
    route.end_headers()
    if route.command != "HEAD":
        route.wfile.write(page)


def refuse(status: int, **headers: str) -> Callable[[Route, bytes], None]:
    return lambda route, _body: route.answer(status, b"", **headers)


def send_round(route: Route, _body: bytes) -> None:
    route.answer(302, b"", Location=route.path)


def break_off(*, resumes: bool, share: float = 0.5) -> Callable[[Route, bytes], None]:
    def answer(route: Route, body: bytes) -> None:
        tag, whole = f'"{hashlib.sha256(body).hexdigest()}"', len(body)
        wanted = route.headers.get("Range")
        if resumes and wanted and route.command == "GET":
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            route.answer(206, b"", whole - start, ETag=tag, Content_Range=f"bytes {start}-{whole - 1}/{whole}")
        else:
            route.answer(200, body if route.command == "HEAD" else body[: int(share * whole)], whole, ETag=tag)

    return answer


def send_less(route: Route, body: bytes) -> None:
    tag = f'"{hashlib.sha256(body).hexdigest()}"'
    route.answer(200, body if route.command == "HEAD" else body[:-100], ETag=tag)


def send_another(route: Route, body: bytes) -> None:
    tag = f'"{hashlib.sha256(body).hexdigest()}"'
    route.answer(200, body if route.command == "HEAD" else bytes(len(body)), ETag=tag)


BAD: dict[str, tuple[Callable[[Route, bytes], None], str]] = {
    "silent": (say_nothing, "cannot be reached or breaks off: check the connection"),
    "dripping": (drip, "cannot be reached or breaks off: check the connection"),
    "hanging-up": (hang_up, "cannot be reached or breaks off: check the connection"),
    "otherwise": (speak_otherwise, "cannot be reached or breaks off: check the connection"),
    "page": (show_a_page, "cannot be reached or breaks off: check the connection"),
    "round": (send_round, "cannot be reached or breaks off: check the connection"),
    "gated": (refuse(403, X_Error_Code="GatedRepo"), "terms must be accepted: do so on"),
    "private": (refuse(404, X_Error_Code="RepoNotFound"), "or it is private: check the name"),
    "no-revision": (refuse(404, X_Error_Code="RevisionNotFound"), "no such revision"),
    "no-entry": (refuse(404, X_Error_Code="EntryNotFound"), "no such file"),
    "unauthorised": (refuse(401), "your token is wrong"),
    "forbidden": (refuse(403), "your token is wrong"),
    "busy": (refuse(429), "too many requests: wait"),
    "broken": (refuse(500), "status 500: try again later"),
    "teapot": (refuse(418), "status 418: try again later"),
    "closing": (break_off(resumes=False), "breaks off: check the connection"),
    "closing-at-once": (break_off(resumes=False, share=0), "breaks off: check the connection"),
    "ending": (break_off(resumes=True), "breaks off: check the connection"),
    "short": (send_less, "breaks off: check the connection"),
    "another": (send_another, "is damaged in the cache"),
}
"""What a server can do, and what the line says."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("served")
    torch.save(made().state_dict(), folder / "model.ckpt")
    save_checkpoint(folder / "model.safetensors", made())
    save_checkpoint(folder / "model.ckpt", made(), layout="msst", configuration={"training": {"instruments": ["a"]}})
    server = Hub({path.name: path.read_bytes() for path in folder.iterdir()} | {"other.yaml": b"model: {}"})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Return the server, with the client set to it, to an empty cache, and to little patience."""
    settings = {
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_ASSETS_CACHE": str(tmp_path / "assets"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    for name, value in settings.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    set_endpoint(monkeypatch, served.address)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr(client, "PATIENCE", 0.7)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    huggingface_hub.close_session()
    served.asked.clear()
    yield served
    huggingface_hub.close_session()


def set_endpoint(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        set_endpoint(monkeypatch, f"http://127.0.0.1:{free.getsockname()[1]}")


def silently(name: str, **arguments: Any) -> BandSplitRotator:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return from_checkpoint(name, **arguments)


def downloads(hub: Hub) -> list[str]:
    return [line.rpartition("/")[2] for line in hub.asked if line.startswith("GET /owner/")]


def test_a_checkpoint_and_the_configuration_beside_it_are_fetched_once(hub: Hub) -> None:
    model = silently(NAME)
    assert (model.configuration["stft_hop_length"], model.zero_dc, total(model)) == (8, False, total(made()))
    assert sorted(downloads(hub)) == ["model.ckpt", "model.yaml"]
    hub.asked.clear()
    assert total(silently(NAME)) == total(model)
    assert downloads(hub) == []


@pytest.mark.parametrize("cut", [offline, unreachable])
@pytest.mark.parametrize("name", [NAME, "hub:owner/repository/model.safetensors", f"{NAME}@{COMMIT}"])
def test_what_was_fetched_together_is_found_together_without_a_connection(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str, cut: Callable[[pytest.MonkeyPatch], None]
) -> None:
    before = silently(name)
    hub.asked.clear()
    cut(monkeypatch)
    after = silently(name)
    assert after.configuration == before.configuration
    assert hub.asked == []


def test_the_only_configuration_of_a_folder_is_not_taken_for_that_of_another_file(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(hub.files, "second.ckpt", hub.files["model.ckpt"])
    silently(NAME)
    with pytest.warns(UserWarning, match="nothing determines"):
        from_checkpoint("hub:owner/repository/second.ckpt")
    offline(monkeypatch)
    # Of two configurations on the Hub, the cache has that of the first file alone.
    with pytest.warns(UserWarning, match="nothing determines"):
        from_checkpoint("hub:owner/repository/second.ckpt")


def test_without_a_connection_a_line_says_that_the_configuration_was_never_looked_for(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface_hub.hf_hub_download("owner/repository", "model.ckpt")
    offline(monkeypatch)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        from_checkpoint(NAME)
    first, second = (str(warning.message) for warning in said if warning.category is UserWarning)
    assert first.startswith(f"no configuration is looked for beside {NAME}: ")
    assert "HF_HUB_OFFLINE forbids" in first
    assert second.startswith("nothing determines")


def test_a_name_of_the_catalogue_whose_file_is_in_the_cache_asks_nobody_and_tells_nothing(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    digest = hashlib.sha256(hub.files["model.ckpt"]).hexdigest()
    silently(NAME)
    configuration = read_configuration(next((tmp_path / "cache").rglob("model.yaml")))
    shutil.rmtree(tmp_path / "cache")
    place = {"repository": "owner/repository", "file": "model.ckpt", "sha256": digest}
    about = {"page": f"{hub.address}/owner/repository", "authors": ("one", "two")}
    entry = Entry(name="x", stems=("a",), configuration=configuration, **place, **about)
    monkeypatch.setattr(facts, "entries", lambda: {"x": entry})
    capfd.readouterr()
    assert total(silently("x")) == total(made())
    line = f"x: weights by one and two; their terms of use, if stated, are at {about['page']}\n"
    assert capfd.readouterr().err == line
    hub.asked.clear()
    assert total(silently("x")) == total(made())
    assert hub.asked == []
    assert capfd.readouterr().err == ""


def test_another_file_than_the_catalogue_s_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"repository": "owner/repository", "file": "model.ckpt", "sha256": "0" * 64}
    monkeypatch.setattr(facts, "entries", lambda: {"x": Entry(name="x", stems=("a",), configuration={}, **place)})
    with pytest.raises(CheckpointError, match="is not the file of the catalogue: its SHA-256 is"):
        from_checkpoint("x")


@pytest.mark.parametrize("cut", [offline, unreachable, None])
@pytest.mark.parametrize("file", ["model.ckpt", "model.yaml"])
def test_one_bit_that_changed_in_the_cache_is_found(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, cut: Callable[[pytest.MonkeyPatch], None]
) -> None:
    # Git names small files by another digest.
    data = hub.files["model.yaml"]
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    silently(NAME)
    (link,) = (tmp_path / "cache").rglob(file)
    kept = link.resolve()
    if file == "model.yaml":
        kept = kept.rename(kept.with_name(git))
        link.unlink()
        link.symlink_to(kept)
        silently(NAME)
    damaged = bytearray(kept.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    kept.write_bytes(damaged)
    if cut is not None:
        cut(monkeypatch)
    with pytest.raises(CheckpointError, match=f"{file} of owner/repository is damaged in the cache") as error:
        from_checkpoint(NAME)
    assert f"delete {kept} " in str(error.value)


def one_line(load: Callable[[], object], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> str:
    """Return the message of a failure, which must be one line of text, and nothing besides."""
    logger = logging.getLogger("huggingface_hub")
    logger.addHandler(caplog.handler)  # for this one does not propagate
    try:
        with caplog.at_level(logging.WARNING), pytest.raises(CheckpointError) as error:
            load()
    finally:
        logger.removeHandler(caplog.handler)
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 800
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    return message


@pytest.mark.parametrize("behaviour", BAD)
def test_every_failure_of_a_server_is_one_line_with_the_remedy(
    hub: Hub,
    behaviour: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # between the client's own attempts
    message = one_line(lambda: from_checkpoint(f"hub:owner/{behaviour}/model.ckpt"), capfd, caplog)
    assert message.startswith(f"model.ckpt of owner/{behaviour} ")
    assert sum(line.startswith("GET") for line in hub.asked) < 10
    assert BAD[behaviour][1] in message


def self_signed(folder: Path) -> str:
    """Return the address of a server whose certificate nobody vouches for, and that answers one connection."""
    files = [str(folder / name) for name in ("key.pem", "certificate.pem")]
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -keyout"
    subprocess.run([*command.split(), files[0], "-out", files[1]], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[1], files[0])
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with server:
            connection = server.accept()[0]
            try:
                context.wrap_socket(connection, server_side=True)
            except (ssl.SSLError, OSError):
                connection.close()

    threading.Thread(target=serve, daemon=True).start()
    return f"https://127.0.0.1:{server.getsockname()[1]}"


def asking_proxy() -> str:
    """Return the address of a proxy that asks for a name and a password."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with server, server.accept()[0] as connection:
            connection.recv(10_000)
            connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

    threading.Thread(target=serve, daemon=True).start()
    return f"http://name:secret@127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("surroundings", "remedy"),
    [
        ("offline", "it is not in the cache, and HF_HUB_OFFLINE forbids asking"),
        ("refused", "cannot be reached or breaks off: check the connection"),
        ("no such host", "cannot be reached or breaks off: check the connection"),
        ("certificate", "the certificate of the server is not trusted"),
        ("no TLS", "the certificate of the server is not trusted"),
        ("proxy refuses", "cannot be reached through the proxy http://127.0.0.1:1"),
        ("proxy asks", "the proxy requires authentication"),
        ("proxy is none", "cannot be reached through the proxy"),
        ("token of other letters", "HF_TOKEN, and try again"),
        ("endpoint with a password", "check the connection"),
        ("cache is a file", "cannot be written: make it writable"),
        (errno.ENOSPC, "is full: free some space"),
        (errno.EDQUOT, "is full: free some space"),
        (errno.EROFS, "cannot be written: make it writable"),
        (errno.EACCES, "cannot be written: make it writable"),
    ],
)
def test_every_failure_of_the_surroundings_is_one_line_with_the_remedy(
    hub: Hub,
    surroundings: str | int,
    remedy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    if surroundings == "offline":
        offline(monkeypatch)
    elif surroundings == "refused":
        unreachable(monkeypatch)
    elif surroundings == "no such host":
        set_endpoint(monkeypatch, "http://nowhere.invalid")
    elif surroundings == "certificate":
        if shutil.which("openssl") is None:
            pytest.skip("makes a certificate with openssl")
        set_endpoint(monkeypatch, self_signed(tmp_path))
    elif surroundings == "no TLS":
        set_endpoint(monkeypatch, hub.address.replace("http:", "https:"))
    elif surroundings == "proxy refuses":
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    elif surroundings == "proxy asks":
        monkeypatch.setenv("HTTP_PROXY", asking_proxy())
    elif surroundings == "proxy is none":
        monkeypatch.setenv("HTTP_PROXY", "carrier-pigeon://x")
    elif surroundings == "token of other letters":
        monkeypatch.setenv("HF_TOKEN", "secret\u00fc")
    elif surroundings == "endpoint with a password":
        set_endpoint(monkeypatch, "http://name:secret@127.0.0.1:1")
    elif surroundings == "cache is a file":
        (tmp_path / "cache").write_bytes(b"")
    else:

        def fail(*_arguments: object, **_keywords: object) -> None:
            raise OSError(surroundings, os.strerror(int(surroundings)))

        monkeypatch.setattr(os, "makedirs", fail)
    monkeypatch.setenv("NO_PROXY", "")
    message = one_line(lambda: from_checkpoint(NAME), capfd, caplog)
    assert remedy in message
    assert "secret" not in message
    assert message.startswith("model.ckpt of owner/repository cannot be fetched: ")


def test_a_published_model_is_found_again(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    model = silently(NAME)
    address = publish(model, "owner/repository", configuration={"training": {"instruments": ["vocals"]}})
    assert COMMIT in address
    monkeypatch.setitem(hub.files, "model.safetensors", hub.uploaded["model.safetensors"])
    assert total(BandSplitRotator.from_pretrained("owner/repository")) == total(model)


def test_the_level_of_the_client_s_messages_is_as_before(hub: Hub) -> None:
    level = logging.getLogger("huggingface_hub").level
    silently(NAME)
    assert logging.getLogger("huggingface_hub").level == level
