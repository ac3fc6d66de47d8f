"""`examples/listen.py`: a song goes up, stems and pictures come down, and nothing else gets in."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import soundfile
import torch

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import from_checkpoint, save_checkpoint
from hunterFormsBS.separation import separate

ROOT = Path(__file__).resolve().parent.parent
LENGTH, CHUNK = 30000, 8192
SECTIONS = {
    "audio": {"sample_rate": 44100, "chunk_size": CHUNK},
    "training": {"instruments": ["lead/voice", "other"]},
    "inference": {"num_overlap": 2},
}


class Client:
    """What a browser does, and what others try."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.token = server.token

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=60)
        try:
            connection.request(method, path, body, {"X-Token": self.token, **headers})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def separate(self, song: bytes, **query: str) -> tuple[int, dict[str, Any]]:
        words = "&".join(f"{name}={value}" for name, value in query.items())
        status, _, body = self.ask("POST", f"/separate?{words}", song)
        return status, json.loads(body)

    def wait(self) -> dict[str, Any]:
        for _ in range(600):
            progress = json.loads(self.ask("GET", "/progress")[2])
            if progress["state"] != "working":
                return progress
            time.sleep(0.05)
        raise TimeoutError


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "examples")
    import listening.separating
    import listening.server

    return listening


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    model = BandSplitRotator(8, depth=1, stereo=True, num_stems=2, heads=1, freqs_per_bands=(25, 1000))
    save_checkpoint(folder / "model.ckpt", model, configuration=SECTIONS)
    return folder


@pytest.fixture
def song(tmp_path: Path) -> bytes:
    soundfile.write(tmp_path / "song.flac", torch.rand(LENGTH, 2).numpy() - 0.5, 44100)
    return (tmp_path / "song.flac").read_bytes()


@pytest.fixture
def client(listening: ModuleType, models: Path, tmp_path: Path) -> Iterator[Client]:
    results = tmp_path / "results"
    results.mkdir()
    separator = listening.separating.Separator(results, "cpu", max_minutes=0.1)
    with listening.server.Server(separator, models, 0, max_bytes=1_000_000) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Client(server)
        separator.stop(seconds=60)
        server.shutdown()


def test_a_song_goes_up_and_the_stems_that_separate_gives_come_down(
    client: Client, models: Path, song: bytes, tmp_path: Path
) -> None:
    (offered,) = json.loads(client.ask("GET", "/checkpoints")[2])
    assert offered == {"checkpoint": str(models / "model.ckpt"), "configuration": ""}
    assert "bs_roformer-unwa-revive" in json.loads(client.ask("GET", "/catalogue")[2])
    assert client.separate(song, name="a%20song.flac", checkpoint=offered["checkpoint"])[0] == 200
    progress = client.wait()
    assert progress["state"] == "done", progress["message"]
    assert progress["song"] == "a song.flac"
    assert progress["tracks"] == ["mixture", "lead_voice", "other"]
    assert progress["done"] == progress["total"] > 1

    (tmp_path / "again.flac").write_bytes(song)
    mixture = torch.from_numpy(soundfile.read(tmp_path / "again.flac", dtype="float32")[0].T)
    expected = separate(from_checkpoint(models / "model.ckpt"), mixture, chunk_size=CHUNK, num_overlap=2)
    for name, audio in zip(progress["tracks"], [mixture, *expected], strict=True):
        status, headers, body = client.ask("GET", f"/results/{progress['identity']}/{name}.wav")
        assert (status, headers["Content-Type"]) == (200, "audio/wav")
        (tmp_path / "got.wav").write_bytes(body)
        got = torch.from_numpy(soundfile.read(tmp_path / "got.wav", dtype="float32")[0].T)
        torch.testing.assert_close(got, audio, rtol=0, atol=1e-6)
    for picture in progress["pictures"]:
        assert client.ask("GET", f"/results/{progress['identity']}/{picture}.png")[2][:4] == b"\x89PNG"
    # The upload is gone.
    assert [path.name for path in client.server.separator.folder.iterdir()] == [progress["identity"]]


def test_stems_have_the_rate_the_channels_and_the_length_of_the_song(
    client: Client, models: Path, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "mono.wav", torch.randn(9001).mul(0.1).numpy(), 22050)
    assert client.separate((tmp_path / "mono.wav").read_bytes(), checkpoint=str(models / "model.ckpt"))[0] == 200
    progress = client.wait()
    assert progress["state"] == "done", progress["message"]
    for name in progress["tracks"]:
        (tmp_path / "got.wav").write_bytes(client.ask("GET", f"/results/{progress['identity']}/{name}.wav")[2])
        got = soundfile.info(tmp_path / "got.wav")
        assert (got.samplerate, got.channels, got.frames) == (22050, 1, 9001)


def test_one_song_at_a_time_and_it_can_be_stopped(
    client: Client, models: Path, song: bytes, listening: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(*_arguments: object, report: Any) -> None:
        while True:
            report(0, 1, 2)
            time.sleep(0.01)

    monkeypatch.setattr(listening.separating, "separate_song", endless)
    checkpoint = str(models / "model.ckpt")
    assert client.separate(song, checkpoint=checkpoint)[0] == 200
    status, answer = client.separate(song, checkpoint=checkpoint)
    assert (status, answer) == (409, {"error": "A song is being separated: wait, or stop it"})
    assert client.ask("POST", "/stop")[0] == 200
    assert client.wait()["state"] == "stopped"
    assert list(client.server.separator.folder.iterdir()) == []
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("query", "song", "status", "message"),
    [
        ({}, b"x", 400, "Choose a checkpoint"),
        ({"checkpoint": "m"}, b"", 400, "Choose a song: the file is empty"),
        ({"checkpoint": "m"}, bytes(1_000_001), 413, "The file has 1 MB, and 1 MB are the limit: --max-mb"),
        ({"checkpoint": "m", "overlap": "1000"}, b"x", 400, "Overlap is a number from 1 to 50, not 1000"),
    ],
)
def test_requests_that_cannot_be_are_answered_with_one_sentence(
    client: Client, query: dict[str, str], song: bytes, status: int, message: str
) -> None:
    assert client.separate(song, **query) == (status, {"error": message})
    assert list(client.server.separator.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("song", "checkpoint", "message"),
    [
        ("nonsense", "{}/model.ckpt", r"^song is not audio that FFmpeg"),
        ("long", "{}/model.ckpt", r"^The song is longer than 0\.1 minutes: --max-minutes"),
        ("song", "{}/none.ckpt", r"none\.ckpt: No such file or directory$"),
        ("song", "bs_roformer-unwa-reviv", r"bs_roformer-unwa-revive"),
    ],
)
def test_what_cannot_be_separated_is_said_in_one_line(
    client: Client, models: Path, song: str, checkpoint: str, message: str, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "song.wav", torch.zeros(1000, 2).numpy(), 44100)
    soundfile.write(tmp_path / "long.wav", torch.zeros(8000 * 10, 1).numpy(), 8000)
    (tmp_path / "nonsense.wav").write_bytes(b"nonsense" * 100)
    assert client.separate((tmp_path / f"{song}.wav").read_bytes(), checkpoint=checkpoint.format(models))[0] == 200
    progress = client.wait()
    assert progress["state"] == "failed"
    assert re.search(message, progress["message"])
    assert "\n" not in progress["message"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_names_that_lead_here_from_elsewhere_get_nothing(client: Client, method: str) -> None:
    status, _, body = client.ask(method, "/", Host=f"attacker.example:{client.server.server_port}")
    assert status == 403
    assert client.token.encode() not in body


def test_pages_of_other_sites_cannot_begin_or_stop_anything(client: Client) -> None:
    client.token = "guessed"
    assert client.ask("POST", "/stop")[0] == 403
    assert client.separate(b"song", checkpoint="m")[0] == 403
    assert list(client.server.separator.folder.iterdir()) == []


@pytest.mark.parametrize("path", ["/results/x/../../model.ckpt", "/results/x/%2e%2e%2fmodel.ckpt", "/results//x", "/x"])
def test_paths_that_are_no_results_lead_nowhere(client: Client, path: str) -> None:
    assert client.ask("GET", path)[0] == 404


def test_the_server_is_bound_to_the_loopback_address_and_lets_pages_load_nothing_from_elsewhere(client: Client) -> None:
    assert client.server.server_address[0] == "127.0.0.1"
    _, headers, page = client.ask("GET", "/")
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert re.findall(rb"https?://", page) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "nowhere"], "--models nowhere is no folder: name one that has checkpoints in it"),
        (["--device", "nothing"], "--device nothing cannot be used here: "),
        (["--port", "99999999"], "--port 99999999 cannot be used (bind(): port must be 0-65535.): try --port 0"),
    ],
)
def test_options_that_cannot_be_end_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "examples" / "listen.py", "--no-browser", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"listen.py: error: {message}")


def test_in_a_browser_a_song_is_separated_and_a_stem_is_heard(
    client: Client, models: Path, song: bytes, tmp_path: Path
) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    (tmp_path / "upload.flac").write_bytes(song)
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as programs:
        browser = programs.chromium.launch(executable_path=chromium, args=quiet)
        page = browser.new_page()
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(client.server.address)
        page.set_input_files("#file", tmp_path / "upload.flac")
        assert page.input_value("#checkpoint") == str(models / "model.ckpt")
        page.click("#go")
        page.wait_for_selector("#results:not([hidden])", timeout=60000)
        page.click("[aria-label='solo other']")
        page.click("#play")
        heard = page.evaluate(
            """async () => {
                const loudest = {};
                for (const track of tracks) { track.meter = context.createAnalyser(); track.gain.connect(track.meter); }
                for (let look = 0; look < 20; look++) {
                    await new Promise((resolve) => setTimeout(resolve, 20));
                    for (const {name, meter} of tracks) {
                        const wave = new Float32Array(meter.fftSize);
                        meter.getFloatTimeDomainData(wave);
                        loudest[name] = Math.max(loudest[name] || 0, ...wave.map(Math.abs));
                    }
                }
                return loudest;
            }"""
        )
        with page.expect_download() as download:
            page.click(".track:nth-child(3) a")
        assert download.value.suggested_filename == "other.wav"
        browser.close()
    assert heard.pop("other") > 0
    assert set(heard.values()) == {0}
    assert problems == []
