"""Checkpoints by name: the table, and the real client of the Hub against a server on the loopback address."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.catalogue import Entry, entries, recognise
from hunterFormsBS.checkpoint import CheckpointError, facts, from_checkpoint, from_configuration, save_checkpoint
from hunterFormsBS.songs.settings import find_configuration
from tests.conftest import TINY

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@cache
def parameters_of(model: str) -> tuple[int, int]:
    """Return the numbers of parameters and of stems of the model with these arguments, as JSON."""
    with torch.device("meta"):
        built = from_configuration({"model": json.loads(model)})
    return sum(parameter.numel() for parameter in built.parameters()), built.num_stems


OF_ANOTHER_SIZE: dict[str, str] = {}
"""Checkpoints whose file has room for more, or fewer, parameters than their model has, and why."""


@pytest.mark.parametrize("name", entries())
def test_every_checkpoint_builds_with_as_many_parameters_as_its_file_has_room_for(name: str) -> None:
    entry = entries()[name]
    # Many are of the same model.
    parameters, num_stems = parameters_of(json.dumps(entry.configuration["model"], sort_keys=True))
    assert num_stems == len(entry.stems)
    if entry.size:
        bytes_each = entry.size / parameters
        fits = 1.98 < bytes_each < 2.1 or 3.97 < bytes_each < 4.2
        assert fits is (name not in OF_ANOTHER_SIZE)


def test_facts_are_whole() -> None:
    assert len(entries()) > 100
    digests = [entry.sha256 for entry in entries().values() if entry.sha256]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 for digest in digests)
    assert all(bool(entry.repository) == bool(entry.file) for entry in entries().values())


def made() -> BandSplitRotator:
    torch.manual_seed(0)
    return BandSplitRotator(**TINY | {"stereo": True, "zero_dc": False, "stft_hop_length": 8}).eval()


def in_msst_s_words() -> dict[str, Any]:
    model = {name: TINY[name] for name in TINY if name != "mask_estimator_depth"}
    return {"model": {**model, "stereo": True, "zero_dc": False, "stft_hop_length": 8, "mask_estimator_depth": 2}}


def test_a_file_that_is_here_is_recognised_and_needs_no_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "renamed.ckpt"
    torch.save(made().state_dict(), path)
    entry = Entry(
        name="x",
        stems=("vocals",),
        configuration=in_msst_s_words(),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        size=path.stat().st_size,
    )
    monkeypatch.setattr(facts, "entries", lambda: {"x": entry})
    assert recognise(path) == entry
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = from_checkpoint(path)
    assert model.configuration["stft_hop_length"] == 8
    assert not model.zero_dc
    torch.save({**made().state_dict(), "a": torch.zeros(1)}, tmp_path / "other.ckpt")
    assert recognise(tmp_path / "other.ckpt") is None
    monkeypatch.setattr(facts, "entries", dict)
    with pytest.warns(UserWarning, match="nothing determines these arguments"):
        from_checkpoint(path)


def test_a_file_without_a_known_digest_is_recognised_by_its_size_and_its_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "renamed.ckpt"
    torch.save(made().state_dict(), path)
    entry = Entry(name="x", stems=("vocals",), configuration=in_msst_s_words(), size=path.stat().st_size)
    monkeypatch.setattr(facts, "entries", lambda: {"x": entry})
    assert recognise(path) == entry
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert from_checkpoint(path).configuration["stft_hop_length"] == 8
    # Another size, other shapes, no weights at all, and a size that is of two.
    (tmp_path / "longer.ckpt").write_bytes(path.read_bytes() + b"0")
    assert recognise(tmp_path / "longer.ckpt") is None
    narrower = {**in_msst_s_words()["model"], "dim": 8}
    monkeypatch.setattr(facts, "entries", lambda: {"x": replace(entry, configuration={"model": narrower})})
    assert recognise(path) is None
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.ckpt")
    other = replace(entry, size=(tmp_path / "other.ckpt").stat().st_size)
    monkeypatch.setattr(facts, "entries", lambda: {"x": other})
    assert recognise(tmp_path / "other.ckpt") is None
    monkeypatch.setattr(facts, "entries", lambda: {"x": entry, "y": replace(entry, name="y")})
    assert recognise(path) is None
    # One whose digest is known is not taken for one whose digest is not.
    monkeypatch.setattr(facts, "entries", lambda: {"x": entry, "y": replace(entry, name="y", sha256="0" * 64)})
    assert recognise(path) is None


@pytest.mark.parametrize("read", [from_checkpoint, lambda name: find_configuration(Path(name), None)])
@pytest.mark.parametrize(
    ("name", "hint"),
    [("bs_roformer-unwa-reviv", "; the catalogue has bs_roformer-unwa-revive"), ("model.ckpt", "")],
)
def test_a_misspelt_name_is_answered_with_the_right_one(read: Callable[[str], object], name: str, hint: str) -> None:
    with pytest.raises(FileNotFoundError) as error:
        read(name)
    assert (error.value.filename, error.value.strerror) == (name, f"No such file or directory{hint}")


@pytest.mark.parametrize("name", ["hub:owner", "hub:owner/repository", "hub:", "hub://x"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match="neither a name of the catalogue nor hub:OWNER/REPOSITORY/FILE"):
        from_checkpoint(name)


def test_a_checkpoint_that_is_not_on_the_hub_says_what_to_do() -> None:
    name = next(name for name, entry in entries().items() if not entry.repository)
    with pytest.raises(CheckpointError, match="not on the Hugging Face Hub: download it by hand"):
        from_checkpoint(name)


# With the real client, in a process of its own, because it reads its settings when it is imported.


class Hub(ThreadingHTTPServer):
    """The routes of the Hub that fetching and uploading need."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Route)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.files = files
        self.uploaded: dict[str, bytes] = {}
        self.asked: list[str] = []


class Route(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        self.server.asked.append(f"{self.command} {self.path}")

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, content: object) -> None:
        self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if "/tree/" in path:
            tree = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in self.server.files.items()
            ]
            self.answer_json(tree)
            return
        if path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self.answer_json({"id": "owner/repository", "sha": COMMIT, "siblings": siblings, "private": False})
            return
        body = self.server.files.get(path.rpartition("/")[2])
        if body is None:
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


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    import yaml

    torch.save(made().state_dict(), tmp_path / "model.ckpt")
    text = yaml.safe_dump(json.loads(json.dumps(in_msst_s_words())))
    save_checkpoint(tmp_path / "model.safetensors", made())
    server = Hub(
        {
            "model.ckpt": (tmp_path / "model.ckpt").read_bytes(),
            "model.yaml": text.encode(),
            "other.yaml": b"model: {}",
            "model.safetensors": (tmp_path / "model.safetensors").read_bytes(),
        }
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def run(hub: Hub, folder: Path, program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_none",
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        **environment,
    }
    head = "import warnings; warnings.simplefilter('error', UserWarning)\n"
    return subprocess.run(
        [sys.executable, "-c", head + program],
        env={**os.environ, **settings},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


LOAD = (
    "from hunterFormsBS.checkpoint import from_checkpoint\n"
    "model = from_checkpoint('hub:owner/repository/model.ckpt')\n"
    "print(model.configuration['stft_hop_length'], model.zero_dc, sum(p.sum().item() for p in model.parameters()))"
)


def test_a_checkpoint_and_the_configuration_beside_it_are_fetched_once(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, LOAD)
    assert done.returncode == 0, done.stderr
    expected = f"8 False {sum(p.sum().item() for p in made().parameters())}"
    assert done.stdout.strip() == expected
    assert any(line.startswith("GET") and line.endswith("model.ckpt") for line in hub.asked)
    hub.asked.clear()
    again = run(hub, tmp_path, LOAD)
    assert again.stdout == done.stdout
    assert not any(line.startswith("GET") and line.endswith("model.ckpt") for line in hub.asked)


def test_a_model_that_is_in_the_cache_needs_no_connection(hub: Hub, tmp_path: Path) -> None:
    program = (
        "from hunterFormsBS import BandSplitRotator\n"
        "model = BandSplitRotator.from_pretrained('owner/repository')\n"
        "print(model.configuration['stft_hop_length'])"
    )
    assert run(hub, tmp_path, program).stdout.strip() == "8"
    hub.asked.clear()
    assert run(hub, tmp_path, program, HF_HUB_OFFLINE="1").stdout.strip() == "8"
    assert hub.asked == []


def test_a_file_that_is_not_there_is_one_line(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, LOAD.replace("model.ckpt", "nothing.ckpt"))
    assert done.stderr.splitlines()[-1].startswith(
        "hunterFormsBS.checkpoint.errors.CheckpointError: nothing.ckpt of owner/repository cannot be fetched"
    )


def test_another_file_than_the_catalogue_s_is_refused(hub: Hub, tmp_path: Path) -> None:
    program = (
        "from hunterFormsBS.checkpoint import facts\n"
        "entry = facts.Entry(name='x', stems=('a',), configuration={'model': {}}, repository='owner/repository',\n"
        "                    file='model.ckpt', sha256='0' * 64)\n"
        "facts.entries = lambda: {'x': entry}\n"
        "from hunterFormsBS.checkpoint import from_checkpoint\n"
        "from_checkpoint('x')"
    )
    done = run(hub, tmp_path, program)
    assert "is not the file of the catalogue: its SHA-256 is" in done.stderr.splitlines()[-1]


def test_a_published_model_is_found_again(hub: Hub, tmp_path: Path) -> None:
    program = (
        "import torch\n"
        "from hunterFormsBS.catalogue import publish\n"
        "from hunterFormsBS.checkpoint import from_checkpoint\n"
        "model = from_checkpoint('hub:owner/repository/model.ckpt')\n"
        "print(publish(model, 'owner/repository', configuration={'training': {'instruments': ['vocals']}}))"
    )
    done = run(hub, tmp_path, program)
    assert done.returncode == 0, done.stderr[-3000:]
    assert COMMIT in done.stdout
    hub.files["model.safetensors"] = hub.uploaded["model.safetensors"]
    program = (
        "from hunterFormsBS import BandSplitRotator\n"
        "model = BandSplitRotator.from_pretrained('owner/repository')\n"
        "print(sum(p.sum().item() for p in model.parameters()))"
    )
    assert float(run(hub, tmp_path, program).stdout) == sum(p.sum().item() for p in made().parameters())
