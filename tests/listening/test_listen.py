"""The page in the browser: songs go up, stems come down to whom they belong to, and nothing else gets in or is left."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import soundfile
import torch

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

import uvicorn

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import from_checkpoint, save_checkpoint
from hunterFormsBS.choices import FORMATS
from hunterFormsBS.console import Console
from hunterFormsBS.listening import access, uploads
from hunterFormsBS.listening import application as application_module
from hunterFormsBS.listening import serving as serving_module
from hunterFormsBS.listening.access import Door, Keys
from hunterFormsBS.listening.application import application
from hunterFormsBS.listening.offers import offers
from hunterFormsBS.listening.separating import Separating
from hunterFormsBS.listening.work import FULL_DISK, Limits, Song, Wish, Work
from hunterFormsBS.program.dispatch import main
from hunterFormsBS.separation import separate
from hunterFormsBS.songs.reading import read_audio

ROOT = Path(__file__).resolve().parents[2]
SECRET = "a secret"
LENGTH, CHUNK = 30000, 8192
SECTIONS = {
    "audio": {"sample_rate": 44100, "chunk_size": CHUNK},
    "training": {"instruments": ["lead/voice", "other"]},
    "inference": {"num_overlap": 2},
}
Answer = tuple[int, http.client.HTTPMessage, bytes]


class Client:
    """What a browser does, and what others try."""

    def __init__(self, port: int, headers: dict[str, str] | None = None) -> None:
        self.port = port
        self.headers = {"Authorization": f"Bearer {SECRET}"} if headers is None else headers

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, self.headers | headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def get(self, path: str) -> Any:
        return json.loads(self.ask("GET", path)[2])

    def enter(self) -> Client:
        """Return another browser, which came by the address with the secret."""
        cookie = Client(self.port, {}).ask("GET", f"/?{urlencode({'token': SECRET})}")[1]["Set-Cookie"]
        return Client(self.port, {"Cookie": cookie.partition(";")[0]})

    @property
    def model(self) -> str:
        return str(self.get("/api/options")["models"][0]["id"])

    def send(self, song: bytes, **query: str) -> tuple[int, dict[str, Any]]:
        status, _, body = self.ask("POST", f"/api/songs?{urlencode({'model': self.model} | query)}", song)
        return status, json.loads(body)

    def begin(self, model: str, size: int, body: bytes = b"") -> socket.socket:
        """Send the head of an upload and some of its body."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        head = f"POST /api/songs?model={model} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        connection.sendall(f"{head}\r\n".encode() + body)
        return connection

    def song(self, identity: str) -> dict[str, Any]:
        song: dict[str, Any] = self.get(f"/api/songs/{identity}")
        return song

    def wait(self, identity: str) -> dict[str, Any]:
        wait_until(lambda: self.song(identity)["state"] in {"done", "failed", "stopped"})
        return self.song(identity)


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.02)


@contextmanager
def serving(work: Work, models: Path, *, password: bool = False, **limits: Any) -> Iterator[Client]:
    keys = Keys(SECRET, work.limits.hours, is_password=password)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        door = Door(application(work, models, **limits), keys, port, ["music.example"])
        options: dict[str, Any] = {"http": "h11", "ws": "none", "lifespan": "off", "log_config": None}
        server = uvicorn.Server(uvicorn.Config(door, log_level="critical", timeout_graceful_shutdown=1, **options))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield Client(port)
        finally:
            work.close(60)
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    model = BandSplitRotator(8, depth=1, stereo=True, num_stems=2, heads=1, freqs_per_bands=(25, 1000))
    save_checkpoint(folder / "model.ckpt", model, configuration=SECTIONS)
    return folder


@pytest.fixture(scope="module")
def song() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, torch.rand(LENGTH, 2).numpy() - 0.5, 44100, format="FLAC")
    return file.getvalue()


@pytest.fixture(scope="module")
def client(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Return a client of a server that separates."""
    console = Console("test")
    work = Work(tmp_path_factory.mktemp("work"), Separating("cpu", 0.1, console), Limits())
    with serving(work, models, max_bytes=1_000_000) as client:
        yield client


class Idle:
    """A server that separates nothing until it is told to."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.go = threading.Event()
        self.separated: list[Song] = []
        self.work = Work(folder, self.separate, limits)
        self.client = Client(0)

    def separate(self, song: Song) -> None:
        while not self.go.is_set():
            song.report(1, 2)
            time.sleep(0.01)
        song.folder.mkdir()
        (song.folder / "other.wav").write_bytes(b"stem")
        song.tracks = {"other": song.folder / "other.wav"}
        self.separated.append(song)

    @property
    def files(self) -> list[Path]:
        return sorted(self.work.folder.iterdir())


@pytest.fixture
def idle(tmp_path: Path, models: Path, request: pytest.FixtureRequest) -> Iterator[Idle]:
    """Return a server with the limits that the test is parametrised with."""
    folder = tmp_path / "work"
    folder.mkdir()
    idle = Idle(folder, getattr(request, "param", Limits()))
    with serving(idle.work, models, max_bytes=1_000_000) as idle.client:
        yield idle


# ---- what is separated


@pytest.mark.parametrize("form", FORMATS)
def test_a_song_goes_up_and_the_stems_that_separate_gives_come_down(
    form: str, client: Client, models: Path, song: bytes, tmp_path: Path
) -> None:
    status, sent = client.send(song, name="a song.flac", format=form)
    assert status == 201
    done = client.wait(sent["id"])
    assert done["state"] == "done", done["message"]
    assert done["tracks"] == ["mixture", "lead_voice", "other"]
    assert done["done"] == done["total"] > 1

    (tmp_path / "again.flac").write_bytes(song)
    mixture = torch.from_numpy(soundfile.read(tmp_path / "again.flac", dtype="float32")[0].T)
    expected = separate(from_checkpoint(models / "model.ckpt"), mixture, chunk_size=CHUNK, num_overlap=2)
    tracks = {}
    for name, audio in zip(done["tracks"], [mixture, *expected], strict=True):
        status, headers, body = client.ask("GET", f"/api/songs/{sent['id']}/tracks/{name}")
        assert status == 200
        assert headers["Content-Disposition"] == f"attachment; filename*=utf-8''a%20song%20-%20{name}.{form}"
        tracks[f"a song - {name}.{form}"] = body
        (tmp_path / f"got.{form}").write_bytes(body)
        got, _ = read_audio(tmp_path / f"got.{form}")
        if form in {"wav", "flac"}:
            torch.testing.assert_close(got, audio, rtol=0, atol=1e-6)
    with zipfile.ZipFile(io.BytesIO(client.ask("GET", f"/api/songs/{sent['id']}/zip")[2])) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == tracks
    assert client.ask("GET", f"/api/songs/{sent['id']}/pictures/masks")[2][:4] == b"\x89PNG"
    assert client.ask("DELETE", f"/api/songs/{sent['id']}")[0] == 204
    assert client.ask("GET", f"/api/songs/{sent['id']}")[0] == 404


def test_stems_have_the_rate_the_channels_and_the_length_of_the_song(client: Client) -> None:
    file = io.BytesIO()
    soundfile.write(file, torch.randn(9001).mul(0.1).numpy(), 22050, format="WAV")
    done = client.wait(client.send(file.getvalue())[1]["id"])
    for name in done["tracks"]:
        got = soundfile.info(io.BytesIO(client.ask("GET", f"/api/songs/{done['id']}/tracks/{name}")[2]))
        assert (got.samplerate, got.channels, got.frames) == (22050, 1, 9001)


def test_what_the_package_warns_of_is_shown_beside_each_song_that_it_is_about(
    client: Client, models: Path, song: bytes
) -> None:
    bare = models / "bare.ckpt"
    torch.save(from_checkpoint(models / "model.ckpt").state_dict(), bare)
    try:
        identity = next(one["id"] for one in client.get("/api/options")["models"] if one["name"] == bare.name)
        for _ in range(2):
            done = client.wait(client.send(song, model=identity)[1]["id"])
            assert done["state"] == "done", done["message"]
            assert any("stft_hop_length" in warning for warning in done["warnings"])
    finally:
        bare.unlink()
    assert client.wait(client.send(song)[1]["id"])["warnings"] == []
    loud = io.BytesIO()
    soundfile.write(loud, torch.full((9000, 2), 2.0).numpy(), 44100, format="WAV", subtype="FLOAT")
    (warning,) = client.wait(client.send(loud.getvalue(), format="flac")[1]["id"])["warnings"]
    assert warning == "all files are multiplied by 0.5000, to stay in full scale"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nonsense", r"^the name\.wav is not audio"),
        ("long", r"^the name\.wav is longer than 0\.1 minutes: start the program with --max-minutes"),
    ],
)
def test_what_cannot_be_separated_is_said_in_one_line_about_the_song(client: Client, kind: str, message: str) -> None:
    long = io.BytesIO()
    soundfile.write(long, torch.zeros(8000 * 10, 1).numpy(), 8000, format="WAV")
    body = {"nonsense": b"nonsense" * 100, "long": long.getvalue()}[kind]
    done = client.wait(client.send(body, name="the name.wav")[1]["id"])
    assert done["state"] == "failed"
    assert re.search(message, done["message"])
    assert "\n" not in done["message"]
    assert "/" not in done["message"].replace("and/or", "")


# ---- who gets in


STRANGERS: dict[str, dict[str, str]] = {
    "nothing": {},
    "a guessed token": {"Authorization": "Bearer guessed", "X-Token": "guessed"},
    "letters beyond ASCII": {"Authorization": "Bearer \xe9", "X-Token": "\xe9", "Cookie": "hunterforms-{port}=\xe9"},
    "a guessed cookie": {"Cookie": "hunterforms-{port}=guessed"},
    "a name that leads here from elsewhere": {"Authorization": f"Bearer {SECRET}", "Host": "attacker.example:{port}"},
    "a page of another site": {"Authorization": f"Bearer {SECRET}", "Origin": "http://attacker.example"},
    "a page of another port": {"Authorization": f"Bearer {SECRET}", "Origin": "http://127.0.0.1:1"},
    "a broken origin": {"Authorization": f"Bearer {SECRET}", "Origin": "http://["},
    "a broken host": {"Authorization": f"Bearer {SECRET}", "Host": "[:"},
    "no host": {"Authorization": f"Bearer {SECRET}", "Host": ""},
    "a page without a site": {"Authorization": f"Bearer {SECRET}", "Origin": "null"},
}
ROUTES = [
    (method, route.path.format(name="page.js", song="x"))
    for route in application(None, Path()).routes  # type: ignore[arg-type]
    for method in sorted(route.methods or ())  # type: ignore[attr-defined]
]


@pytest.mark.parametrize("stranger", STRANGERS)
def test_strangers_get_one_sentence_that_gives_nothing_away_whatever_they_ask_for(stranger: str, idle: Idle) -> None:
    port = idle.client.port
    client = Client(port, {name: value.format(port=port) for name, value in STRANGERS[stranger].items()})
    for method, path in [*ROUTES, ("GET", "/?token=guessed"), ("GET", "/?token=%C3%A9"), ("POST", "/x"), ("PUT", "/")]:
        status, headers, body = client.ask(method, path, b"x" if method == "POST" else None)
        assert (status, body.decode()) == (403, access.REFUSAL if method != "HEAD" else "")
        assert "Set-Cookie" not in headers
    assert idle.files == []


def test_the_secret_in_the_address_becomes_a_cookie_that_no_script_and_no_other_site_has(idle: Idle) -> None:
    stranger = Client(idle.client.port, {})
    status, headers, body = stranger.ask("GET", f"/?{urlencode({'token': SECRET})}")
    assert (status, headers["Refresh"]) == (200, "0; url=/")
    cookie, *attributes = headers["Set-Cookie"].split("; ")
    assert {name.casefold() for name in attributes} == {"httponly", "path=/", "samesite=strict"}
    browser = Client(idle.client.port, {"Cookie": cookie})
    status, headers, page = browser.ask("GET", "/")
    assert status == 200
    assert SECRET.encode() not in body + page
    # The same browser stays the same when it comes by the address again.
    assert "Set-Cookie" not in browser.ask("GET", f"/?{urlencode({'token': SECRET})}")[1]


def test_pages_load_nothing_from_elsewhere_and_run_nothing_but_their_own_files(idle: Idle) -> None:
    for name in ("", *(path.name for path in (ROOT / "hunterFormsBS" / "listening" / "page").iterdir())):
        status, headers, body = idle.client.ask("GET", f"/{name}")
        assert status == 200
        assert re.findall(rb"https?://|<script>|style=|\son\w+=", body) == []
        policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1234", "[::1]:7", "LOCALHOST", "music.example"])
def test_the_page_is_found_under_addresses_and_known_names_at_any_port_that_is_led_here(host: str, idle: Idle) -> None:
    assert idle.client.ask("GET", "/", Host=host)[0] == 200


@pytest.fixture
def guarded(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Return a client without a password of a server that has one."""
    monkeypatch.setattr(access, "SECONDS_FOR_A_GUESS", 0.05)
    work = Idle(tmp_path, Limits()).work
    with serving(work, models, password=True) as client:
        yield Client(client.port, {})


FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def test_with_a_password_the_page_asks_for_it_and_the_address_opens_nothing(guarded: Client) -> None:
    status, headers, body = guarded.ask("GET", f"/?{urlencode({'token': SECRET})}")
    assert (status, b'type="password"' in body, headers["Set-Cookie"]) == (403, True, None)
    assert guarded.ask("GET", "/api/songs")[0] == 403
    for wrong in (b"", b"password=guessed", b"password=%C3%A9", b"password=" + bytes(10_000), b"\xff"):
        assert guarded.ask("POST", "/", wrong, **FORM)[0] == 403
    status, headers, _ = guarded.ask("POST", "/", urlencode({"password": SECRET}).encode(), **FORM)
    assert status == 200
    browser = Client(guarded.port, {"Cookie": headers["Set-Cookie"].partition(";")[0]})
    assert browser.ask("GET", "/api/songs")[0] == 200
    assert guarded.ask("GET", "/api/songs", Authorization=f"Bearer {SECRET}")[0] == 200


def test_passwords_are_tried_one_after_another_however_many_try(guarded: Client) -> None:
    def guess() -> None:
        assert guarded.ask("GET", "/api/songs", Authorization="Bearer guessed")[0] == 403

    guesses = [threading.Thread(target=guess) for _ in range(10)]
    begun = time.monotonic()
    for each in guesses:
        each.start()
    for each in guesses:
        each.join()
    assert time.monotonic() - begun >= 10 * access.SECONDS_FOR_A_GUESS


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "music.example"])
@pytest.mark.parametrize("password", [None, "short\nand more lines"])
def test_other_machines_are_served_only_with_a_password_that_is_long_enough(
    host: str, password: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["listen", "--no-browser", "--host", host]
    if password is not None:
        (tmp_path / "password").write_text(password)
        arguments += ["--password-file", str(tmp_path / "password")]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    expected = f"--host {host} lets other machines connect: pass --password-file" if password is None else "has 5 char"
    assert expected in capsys.readouterr().err


def test_songs_and_stems_belong_to_the_browser_that_sent_them(idle: Idle) -> None:
    idle.go.set()
    one, two = idle.client.enter(), idle.client.enter()
    first = one.send(b"song", name="one.wav")[1]["id"]
    assert one.wait(first)["state"] == "done"
    second = two.send(b"song", name="two.wav")[1]["id"]
    assert two.wait(second)["state"] == "done"
    assert [song["name"] for song in one.get("/api/songs")] == ["one.wav"]
    assert [song["name"] for song in two.get("/api/songs")] == ["two.wav"]
    for path in ("", "/tracks/other", "/zip", "/pictures/masks"):
        assert two.ask("GET", f"/api/songs/{first}{path}")[0] == 404
    assert two.ask("POST", f"/api/songs/{first}/stop")[0] == 404
    assert two.ask("DELETE", f"/api/songs/{first}")[0] == 404
    assert one.ask("GET", f"/api/songs/{first}/tracks/other")[2] == b"stem"


# ---- what requests can name


PATHS = ["/etc/shadow", "../model.ckpt", "model.ckpt", "hub:o/r/f", "", "\x00"]


@pytest.mark.parametrize("path", PATHS)
def test_no_request_names_a_path_of_this_machine(path: str, idle: Idle, models: Path) -> None:
    for query in ({"model": path}, {"checkpoint": path, "model": ""}):
        status, answer = idle.client.send(b"song", **query)
        assert (status, answer["error"]) == (400, "Choose one of the offered models")
    assert idle.files == []
    identity = idle.client.send(b"song", checkpoint=path, configuration=path, name=path, output=path)[1]["id"]
    song = idle.work.find("programs", identity)
    assert song is not None
    assert song.wish.offer in offers(models).values()
    assert song.folder.parent == song.upload.parent == idle.work.folder


def test_what_is_offered_is_below_the_folder_or_in_the_catalogue_or_was_named_at_the_start(
    models: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.ckpt").write_bytes(b"")
    (tmp_path / "other.yaml").write_bytes(b"")
    named, below, *catalogue = offers(models, [tmp_path / "other.ckpt"]).values()
    assert (named.checkpoint, named.configuration) == (tmp_path / "other.ckpt", tmp_path / "other.yaml")
    assert (below.checkpoint, below.configuration, below.name) == (models / "model.ckpt", None, "model.ckpt")
    assert "bs_roformer-unwa-revive" in {offer.name for offer in catalogue}
    assert all(offer.fetched for offer in catalogue)


@pytest.mark.parametrize("path", ["/x", "/page/index.html", "/..%2fwork.py", "/api/songs/../../x", "/api/songs/x/zip"])
def test_paths_that_are_no_results_lead_nowhere(path: str, idle: Idle) -> None:
    assert idle.client.ask("GET", path)[0] == 404


@pytest.mark.parametrize(
    ("query", "song", "status", "message"),
    [
        ({}, b"", 400, "The file is empty: choose another"),
        ({}, bytes(1_000_001), 413, "The file has 1 MB, and 1 MB are the limit: start the program with --max-mb, or "),
        ({"overlap": "1000"}, b"x", 400, "Overlap is a number from 1 to 50, not 1000"),
        ({"format": "aiff"}, b"x", 400, "The format is one of wav, flac, mp3, ogg, opus"),
    ],
)
def test_requests_that_cannot_be_are_answered_with_one_sentence(
    idle: Idle, query: dict[str, str], song: bytes, status: int, message: str
) -> None:
    answered, answer = idle.client.send(song, **query)
    assert (answered, answer["error"][: len(message)]) == (status, message)
    assert idle.files == []


# ---- limits


def status_of(connection: socket.socket) -> int:
    with connection, connection.makefile("rb") as answer:
        return int(answer.readline().split()[1])


def test_a_song_that_says_it_is_too_large_is_refused_before_it_comes(idle: Idle) -> None:
    assert status_of(idle.client.begin(idle.client.model, 10**9)) == 413
    assert idle.files == []


def test_a_song_that_does_not_say_how_large_it_is_is_cut_off_at_the_limit(idle: Idle) -> None:
    def blocks() -> Iterator[bytes]:
        for _ in range(1100):
            yield bytes(1000)

    status, _, body = idle.client.ask("POST", f"/api/songs?model={idle.client.model}", blocks())  # type: ignore[arg-type]
    assert status == 413
    assert "1 MB are the limit" in body.decode()
    assert idle.files == []


def opened_files(folder: Path) -> list[Path]:
    """Return the files of a folder that this process has open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if link.readlink().is_relative_to(folder):
                found.append(link.readlink())
    return found


def test_an_archive_whose_files_were_removed_meanwhile_does_not_look_whole(
    idle: Idle, capsys: pytest.CaptureFixture[str]
) -> None:
    idle.go.set()
    identity = idle.client.send(b"song")[1]["id"]
    idle.client.wait(identity)
    (song,) = idle.separated
    song.tracks["other"].unlink()
    with pytest.raises(http.client.IncompleteRead):
        idle.client.ask("GET", f"/api/songs/{identity}/zip")
    assert idle.client.ask("GET", f"/api/songs/{identity}/tracks/other")[0] == 404
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="only Linux tells which files are open")
def test_an_answer_that_nobody_reads_ends(
    idle: Idle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def separate(song: Song) -> None:
        song.folder.mkdir()
        (song.folder / "other.wav").write_bytes(bytes(50_000_000))  # more than connections hold on their way
        song.tracks = {"other": song.folder / "other.wav"}

    monkeypatch.setattr(idle.work, "_separate", separate)
    monkeypatch.setattr(access, "SECONDS_UNREAD", 0.5)
    identity = idle.client.send(b"song")[1]["id"]
    idle.client.wait(identity)
    head = f"GET /api/songs/{identity}/tracks/other HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {SECRET}\r\n"
    with socket.create_connection(("127.0.0.1", idle.client.port), timeout=60) as connection:
        connection.sendall(f"{head}\r\n".encode())
        wait_until(lambda: opened_files(idle.work.folder))
        wait_until(lambda: not opened_files(idle.work.folder))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "request_",
    [
        b"\x00\xff\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"POST /api/songs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/songs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /api/songs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"GET /%ff%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://elsewhere/?token=%ff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_and_the_next_is_answered(
    request_: bytes, idle: Idle, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection(("127.0.0.1", idle.client.port), timeout=60) as connection:
        connection.sendall(request_)
        assert status_of(connection) in {400, 403}
    assert idle.client.ask("GET", "/")[0] == 200
    assert capsys.readouterr().err == ""
    assert idle.files == []


def test_an_upload_that_stalls_is_ended_and_removed(idle: Idle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "SECONDS_SILENT", 0.2)
    assert status_of(idle.client.begin(idle.client.model, 1000, b"some")) == 408
    assert idle.files == []


def test_an_upload_that_breaks_off_is_removed(idle: Idle) -> None:
    with idle.client.begin(idle.client.model, 1000, b"some"):
        wait_until(lambda: idle.files)
    wait_until(lambda: not idle.files)


@pytest.mark.parametrize("idle", [Limits(uploads=3)], indirect=True)
def test_of_twenty_uploads_at_once_those_beyond_the_limit_are_refused_before_a_byte_is_stored(idle: Idle) -> None:
    model = idle.client.model
    begun = [idle.client.begin(model, 1000, b"some") for _ in range(3)]
    wait_until(lambda: len(idle.files) == 3)
    refused = [idle.client.begin(model, 1000, b"some") for _ in range(17)]
    assert {status_of(connection) for connection in refused} == {429}
    assert len(idle.files) == 3
    for connection in begun:
        connection.sendall(bytes(996))
    assert {status_of(connection) for connection in begun} == {201}


@pytest.mark.parametrize("idle", [Limits(waiting=2)], indirect=True)
def test_a_full_queue_refuses_songs_until_one_is_done(idle: Idle) -> None:
    first, second = (idle.client.send(b"song")[1] for _ in range(2))
    wait_until(lambda: idle.client.song(first["id"])["state"] == "working")
    assert idle.client.song(second["id"])["before"] == 1
    status, answer = idle.client.send(b"song")
    assert (status, answer["error"]) == (429, "Too many songs are waiting: send this one when some are done")
    idle.go.set()
    idle.client.wait(second["id"])
    assert idle.client.send(b"song")[0] == 201


def test_a_song_is_stopped_at_its_next_chunk_and_one_that_waits_at_once(idle: Idle) -> None:
    first, second = (idle.client.send(b"song")[1]["id"] for _ in range(2))
    wait_until(lambda: idle.client.song(first)["done"] == 1)
    for identity in (second, first):
        assert idle.client.ask("POST", f"/api/songs/{identity}/stop")[0] == 200
        assert idle.client.wait(identity)["state"] == "stopped"
    assert idle.files == []


@pytest.mark.parametrize("idle", [Limits(kept=2)], indirect=True)
def test_each_browser_keeps_its_newest_songs_and_the_files_of_older_ones_go(idle: Idle) -> None:
    idle.go.set()
    other = idle.client.enter()
    others = other.send(b"song")[1]["id"]
    other.wait(others)
    sent = []
    for _ in range(3):
        sent.append(idle.client.send(b"song")[1]["id"])
        idle.client.wait(sent[-1])
    assert [song["id"] for song in idle.client.get("/api/songs")] == sent[1:]
    assert [song["id"] for song in other.get("/api/songs")] == [others]
    assert len(idle.files) == 3


@pytest.mark.parametrize("idle", [Limits(hours=0.3 / 3600)], indirect=True)
def test_results_and_cookies_go_when_they_are_old(idle: Idle) -> None:
    idle.go.set()
    browser = idle.client.enter()
    first = idle.client.send(b"song")[1]["id"]
    idle.client.wait(first)
    time.sleep(0.4)
    second = idle.client.send(b"song")[1]["id"]
    wait_until(lambda: [song["id"] for song in idle.client.get("/api/songs")] == [second])
    assert browser.ask("GET", "/api/songs")[0] == 403


def test_a_bug_is_answered_and_the_next_song_is_separated(
    idle: Idle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    idle.go.set()
    monkeypatch.setattr(Path, "mkdir", lambda *_: 1 / 0)
    assert idle.client.wait(idle.client.send(b"song")[1]["id"])["state"] == "failed"
    monkeypatch.undo()
    assert idle.client.wait(idle.client.send(b"song")[1]["id"])["state"] == "done"
    monkeypatch.setattr(Work, "find", lambda *_: 1 / 0)
    status, _, body = idle.client.ask("GET", "/api/songs/x")
    assert (status, json.loads(body)["error"]) == (500, "Something went wrong: the terminal of the program says what")
    said = ""

    def is_said() -> bool:
        nonlocal said
        said += capsys.readouterr().err
        return said.count("ZeroDivisionError") == 2

    wait_until(is_said)


def test_the_end_waits_for_the_chunk_that_is_being_computed(models: Path, tmp_path: Path) -> None:
    computed = threading.Event()
    work = Work(tmp_path, lambda _song: computed.wait(), Limits())
    with work.uploading() as upload:
        upload.touch()
        song = work.add("owner", Wish("song", next(iter(offers(models).values()))), upload)
    wait_until(lambda: song.state == "working")
    assert not work.close(0.05)
    computed.set()
    assert work.close(60)
    assert list(tmp_path.iterdir()) == []


# ---- the description for programs

DESCRIPTION = json.loads((ROOT / "hunterFormsBS" / "listening" / "openapi.json").read_text("utf-8"))
METHODS = ("get", "post", "put", "delete", "patch")


def test_the_description_has_every_route_of_programs_and_no_other() -> None:
    described = {
        (method.upper(), path) for path, item in DESCRIPTION["paths"].items() for method in item if method in METHODS
    }
    served = {
        (method, route.path)  # type: ignore[attr-defined]
        for route in application(None, Path()).routes  # type: ignore[arg-type]
        for method in route.methods or ()  # type: ignore[attr-defined]
        if route.path.startswith("/api/") and method != "HEAD"  # type: ignore[attr-defined]
    }
    assert described == served


def test_every_answer_is_as_the_description_says(idle: Idle, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema, which ray brings")
    monkeypatch.setattr(uploads, "SECONDS_SILENT", 0.2)
    assert idle.client.get("/api/openapi.json") == DESCRIPTION
    model = idle.client.model
    idle.client.send(b"song")
    done = idle.client.send(b"song")[1]["id"]
    asked: dict[str, list[tuple[str, bytes | None]]] = {
        "send": [("?model=x", b"x"), (f"?model={model}", b"x"), (f"?model={model}", bytes(1_000_001))],
        "stop": [("", None)],
        "remove": [("", None)],
    }
    seen: set[tuple[str, str]] = set()
    for path, item in DESCRIPTION["paths"].items():
        for method in [method for method in METHODS if method in item]:
            operation = item[method]
            if operation["operationId"] == "events":
                continue  # The stream does not end; its data is that of `songs`.
            for query, body in asked.get(operation["operationId"], [("", None)]):
                for song in dict.fromkeys((done, "unknown")) if "{song}" in path else ("",):
                    address = path.format(song=song, name="other")
                    status, headers, content = idle.client.ask(method.upper(), address + query, body)
                    seen.add((operation["operationId"], str(status)))
                    answer = operation["responses"][str(status)].get("content", {})
                    if "application/json" in answer:
                        assert headers["Content-Type"] == "application/json"
                        schema = answer["application/json"]["schema"] | {"components": DESCRIPTION["components"]}
                        jsonschema.validate(json.loads(content), schema)
    assert {("send", "201"), ("send", "400"), ("send", "413"), ("song", "200"), ("song", "404")} <= seen


def test_events_tell_what_changes_until_the_song_is_done(idle: Idle) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", idle.client.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", "/api/events", headers=idle.client.headers)
        answer = connection.getresponse()
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        sent = idle.client.send(b"song")[1]["id"]
        states: list[str] = []
        while "done" not in states:
            line = answer.readline()
            if line.startswith(b"data: "):
                states += [song["state"] for song in json.loads(line[6:]) if song["id"] == sent]
                if states[-1:] == ["working"]:
                    idle.go.set()
    assert list(dict.fromkeys(states)) in (["waiting", "working", "done"], ["working", "done"])


def test_what_nobody_follows_any_more_is_not_told(idle: Idle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def is_quiet() -> bool:
        asked.clear()
        time.sleep(0.2)
        return not asked

    status = idle.work.status
    monkeypatch.setattr(application_module, "SECONDS_BETWEEN_EVENTS", 0.01)
    monkeypatch.setattr(idle.work, "status", lambda owner: [asked.append(owner), *status(owner)][1:])
    for method in ("GET", "HEAD"):
        head = f"{method} /api/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {SECRET}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", idle.client.port)) as connection:
            connection.sendall(head.encode())
            assert status_of(connection) == 200
        wait_until(is_quiet, 10)


# ---- the program


class Program:
    """The program in a process of its own, with a folder for temporary files."""

    def __init__(self, folder: Path, models: Path, *, limit: int | None = None, terminal: int | None = None) -> None:
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        self.output = folder / "output.txt"

        def prepare() -> None:
            if limit is not None:
                import resource

                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            if terminal is not None:
                import fcntl
                import termios

                os.setsid()
                fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hunterFormsBS", "listen", "--no-browser", "--port", "0", "--models", models],
                stdout=output,
                stderr=subprocess.STDOUT if terminal is None else terminal,
                env=environment,
                preexec_fn=prepare,
                pass_fds=() if terminal is None else (terminal,),
            )
        wait_until(lambda: "token=" in self.output.read_text() or self.process.poll() is not None)
        found = re.search(r":(\d+)/\?token=(\S+)", self.output.read_text())
        assert found is not None, self.output.read_text()
        self.client = Client(int(found[1]), {"Authorization": f"Bearer {found[2]}"})

    @property
    def left(self) -> list[Path]:
        return [path for path in self.temporary.rglob("*") if path.is_file()]

    @property
    def uploads(self) -> list[Path]:
        return [path for path in self.temporary.glob("*/*") if path.is_file()]

    def end(self) -> int:
        return self.process.wait(timeout=60)


@contextmanager
def program(folder: Path, models: Path, **options: int | None) -> Iterator[Program]:
    running = Program(folder, models, **options)
    try:
        yield running
    finally:
        running.process.kill()
        running.end()


@pytest.fixture(scope="module")
def long_song() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, torch.randn(44100 * 120, 2).mul(0.1).numpy(), 44100, format="FLAC")
    return file.getvalue()


on_posix = pytest.mark.skipif(os.name == "nt", reason="Windows has neither these signals nor limits of files")
ENDS = {
    "SIGTERM": (143, [signal.SIGTERM]),
    "SIGHUP": (129, [getattr(signal, "SIGHUP", None)]),
    "Ctrl-C": (130, [signal.SIGINT]),
    "Ctrl-C twice": (130, [signal.SIGINT, signal.SIGINT]),
    "a closed terminal": (129, []),
}


@on_posix  # a process each: what is tested is how it ends
@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_left_after_any_end_of_the_program(end: str, tmp_path: Path, models: Path, long_song: bytes) -> None:
    status, signals = ENDS[end]
    ours, theirs = os.openpty() if not signals else (None, None)
    with program(tmp_path, models, terminal=theirs) as running:
        assert running.client.send(long_song)[0] == 201
        with running.client.begin(running.client.model, 1000, b"some"):
            wait_until(lambda: any(song["done"] for song in running.client.get("/api/songs")))
            wait_until(lambda: len(running.uploads) == 2)
            for each in signals:
                running.process.send_signal(each)
            if ours is not None and theirs is not None:
                os.close(theirs)
                os.close(ours)
            assert running.end() == status
        assert list(running.temporary.iterdir()) == []
        assert "Traceback" not in running.output.read_text(), running.output.read_text()


@on_posix
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, models: Path, song: bytes) -> None:
    # Files of more bytes cannot be written, as on a disk that is full: the song fits, and its stems do not.
    with program(tmp_path, models, limit=len(song) + 1000) as running:
        path = f"/api/songs?model={running.client.model}"
        status, _, body = running.client.ask("POST", path, bytes(len(song) * 2))
        assert (status, json.loads(body)["error"]) == (507, FULL_DISK)
        assert running.left == []
        done = running.client.wait(running.client.send(song)[1]["id"])
        assert (done["state"], done["message"]) == ("failed", FULL_DISK)
        assert running.left == []
        running.process.terminate()
        assert running.end() == 143
        assert list(running.temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "nowhere"], "--models nowhere is not a folder: name one that has checkpoints in it"),
        (["--device", "nothing"], "--device nothing cannot be used here: "),
        (["--port", "99999"], "argument --port: must be an integer from 0 to 65535, but is '99999'"),
        (["--max-mb", "-1"], "argument --max-mb: must be a number above 0, but is '-1'"),
        (["--keep", "0"], "argument --keep: must be an integer from 1 to 999999999, but is '0'"),
    ],
)
def test_options_that_cannot_be_end_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["listen", "--no-browser", *arguments])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"error: {message}" in line


def test_a_port_that_is_taken_is_named_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit):
        main(["listen", "--no-browser", "--port", str(taken.getsockname()[1])])
    assert re.search(r"--port \d+ cannot be used \(.+\): try --port 0", capsys.readouterr().err)


def test_the_browser_is_not_started_with_the_secret_where_all_users_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(serving_module.webbrowser, "open", opened.append)
    serving_module.open_in_browser("http://127.0.0.1:1/?token=secret", tmp_path)
    (address,) = opened
    assert "secret" not in address
    assert "url=http://127.0.0.1:1/?token=secret" in Path(address.removeprefix("file://")).read_text()


def test_without_the_extra_one_line_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "hunterFormsBS.listening.serving", None)
    assert main(["listen", "--no-browser"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "-m pip install" in line
    assert "uvicorn" in line


def test_only_its_command_imports_the_page() -> None:
    package = ROOT / "hunterFormsBS"
    command = package / "program" / "commands" / "listen.py"
    elsewhere = [path for path in package.rglob("*.py") if path.parent.name != "listening" and path != command]
    assert [
        path for path in elsewhere if re.search(r"^\s*(from|import) .*listening", path.read_text("utf-8"), re.M)
    ] == []


# ---- in a browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as programs:
        browser = programs.chromium.launch(executable_path=path, args=quiet)
        yield browser
        browser.close()


class Reader:
    """Somebody with a browser of their own, who came by the file that the program has the browser open."""

    def __init__(self, browser: Any, client: Client, folder: Path, *, wait: bool = True, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.problems: list[str] = []
        opened = folder / "open.html"
        address = f"http://127.0.0.1:{client.port}/?{urlencode({'token': SECRET})}"
        opened.write_text(f'<meta http-equiv="refresh" content="0; url={address}">')
        self.page = self.tab(opened.as_uri(), wait=wait)

    def tab(self, address: str, *, wait: bool = True) -> Any:
        page = self.context.new_page()
        page.on("console", lambda message: self.problems.append(message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#model option" if wait else "[type=password]", state="attached")
        return page

    def send(self, *songs: Path) -> None:
        self.page.set_input_files("#files", songs)
        self.page.click("#send")

    def violations(self) -> list[tuple[str, list[str]]]:
        axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
        found = axe.run(self.page).response["violations"]
        return [(each["id"], [node["failureSummary"] for node in each["nodes"]]) for each in found]


LOUDEST = """async () => {
    const {player} = await import("/page.js");
    const loudest = {};
    for (const track of player.tracks) {
        track.meter = player.context.createAnalyser();
        track.gain.connect(track.meter);
    }
    for (let look = 0; look < 20; look++) {
        await new Promise((resolve) => setTimeout(resolve, 20));
        for (const {name, meter} of player.tracks) {
            const wave = new Float32Array(meter.fftSize);
            meter.getFloatTimeDomainData(wave);
            loudest[name] = Math.max(loudest[name] || 0, ...wave.map(Math.abs));
        }
    }
    return loudest;
}"""


# Seconds each: a browser of its own kind, in which a song is separated.
def test_in_a_browser_songs_are_separated_found_again_and_heard(
    chromium: Any, client: Client, song: bytes, tmp_path: Path
) -> None:
    for name in ("one.flac", "two.flac"):
        (tmp_path / name).write_bytes(song)
    reader = Reader(chromium, client, tmp_path)
    page = reader.page
    reader.send(tmp_path / "one.flac", tmp_path / "two.flac")
    page.wait_for_selector("#songs li:nth-child(2) >> text=Listen", timeout=60000)
    page.wait_for_selector("[aria-label='Solo other']", timeout=60000)
    page.click("[aria-label='Solo other']")
    page.locator("#listen-title").focus()
    page.keyboard.press("Space")
    heard = page.evaluate(LOUDEST)
    assert heard.pop("other") > 0
    assert set(heard.values()) == {0}
    page.click("#loop-end")  # from the beginning to here
    page.wait_for_timeout(1000)
    assert page.inner_text("#play") == "Pause"  # a song of less than a second goes on
    assert page.get_attribute("#position", "aria-valuetext").endswith(" of 0:00.6")
    page.click("#play")
    with page.expect_download() as download:
        page.click("[aria-label='Download other']")
    assert download.value.suggested_filename in {"one - other.wav", "two - other.wav"}
    with page.expect_download() as download:
        page.click("#zip")
    assert download.value.suggested_filename in {"one.zip", "two.zip"}
    page.click("#songs li:nth-child(1) >> text=Listen")
    page.wait_for_selector("#listen-title:focus")
    # Reloaded, and in a second tab, everything is there; another browser sees nothing of it.
    page.reload()
    page.wait_for_selector("[aria-label='Solo other']", timeout=60000)
    assert reader.tab(f"http://127.0.0.1:{client.port}/").locator("#songs li").count() == 2
    other = Reader(chromium, client, tmp_path)
    assert other.page.is_visible("#none")
    # What is removed takes nothing along, neither the focus.
    page.click("#songs li:nth-child(1) >> text=Remove")
    page.wait_for_selector("#songs-title:focus")
    assert page.locator("#songs li").count() == 1
    assert reader.problems + other.problems == []


@pytest.mark.parametrize(
    ("width", "scheme"), [(360, "light"), (400, "dark"), (1000, "light"), (1400, "dark")], ids=lambda value: str(value)
)
def test_the_page_has_no_barrier_that_axe_finds_and_fits_its_window(
    width: int, scheme: str, chromium: Any, client: Client, song: bytes, tmp_path: Path
) -> None:
    (tmp_path / "a song.flac").write_bytes(song)
    (tmp_path / "nonsense.wav").write_bytes(b"nonsense" * 100)
    viewport = {"width": width, "height": 800}
    reader = Reader(chromium, client, tmp_path, viewport=viewport, color_scheme=scheme)
    page = reader.page
    assert reader.violations() == []
    reader.send(tmp_path / "a song.flac", tmp_path / "nonsense.wav")
    page.wait_for_selector("[aria-label='Solo other']", timeout=60000)
    page.wait_for_selector("#songs .error", timeout=60000)
    page.click("#spectrograms")
    page.click("summary")
    assert reader.violations() == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("h1").count() == 1
    assert reader.problems == []


def test_the_password_is_typed_into_a_form_without_barriers(chromium: Any, guarded: Client, tmp_path: Path) -> None:
    reader = Reader(chromium, guarded, tmp_path, wait=False)
    assert reader.violations() == []
    reader.page.fill("input", "guessed")
    reader.page.keyboard.press("Enter")
    reader.page.wait_for_selector("[role=alert]")
    assert reader.violations() == []
    reader.page.fill("input", SECRET)
    reader.page.keyboard.press("Enter")
    reader.page.wait_for_selector("#model option", state="attached")
