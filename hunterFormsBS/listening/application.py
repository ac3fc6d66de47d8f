"""The Starlette application: the page, and the API for uploads, progress and results."""

from __future__ import annotations

import asyncio
import functools
import io
import json
import re
import time
import zipfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from hunterFormsBS.choices import FORMATS
from hunterFormsBS.listening.offers import offers
from hunterFormsBS.listening.uploads import RefusedError, receive, stated_size
from hunterFormsBS.listening.work import FULL_DISK, FullError, Song, Wish, Work
from hunterFormsBS.printable import printable
from hunterFormsBS.songs.encodings import DEPTHS, Encoding
from hunterFormsBS.songs.names import safe_name, song_name
from hunterFormsBS.songs.writing import FULL

__all__ = ["application"]

PAGE = {
    "index.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "player.js": "text/javascript",
    "timeline.js": "text/javascript",
}
"""The files of the page, and their media types."""

AUDIO = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
    "m4a": "audio/mp4",
}
ENCODINGS: dict[str, Encoding] = {form: Encoding(form, DEPTHS[form]) for form in FORMATS}
LONGEST_NAME = 150
"""Limit of a song's name in bytes; the end of a longer one is kept."""

SECONDS_BETWEEN_EVENTS = 0.25
SECONDS_BETWEEN_SIGNS = 15.0
"""Interval of keep-alive comments in the event stream."""

BLOCK = 1 << 18


def application(
    work: Work, models: Path, checkpoints: Sequence[Path] = (), *, max_bytes: int = 200_000_000, max_minutes: float = 10
) -> Starlette:
    """Return the application. It relies on `Door` for authentication: `request.state.owner` is the owner.

    Parameters
    ----------
    work : Work
    models : Path
        Folder whose checkpoints are offered.
    checkpoints : Sequence[Path]
        Further checkpoints to offer.
    max_bytes : int
        Limit of an upload.
    max_minutes : float
        Limit to report; `Separating` enforces it.
    """
    answers = _Answers(work, models, checkpoints, max_bytes, max_minutes)
    routes = [
        Route("/", answers.page),
        Route("/{name}", answers.page),
        Route("/api/options", answers.options),
        Route("/api/songs", answers.songs),
        Route("/api/songs", answers.send, methods=["POST"]),
        Route("/api/songs/{song}", answers.song),
        Route("/api/songs/{song}", answers.remove, methods=["DELETE"]),
        Route("/api/songs/{song}/stop", answers.stop, methods=["POST"]),
        Route("/api/songs/{song}/tracks/{name}", answers.track),
        Route("/api/songs/{song}/pictures/{name}", answers.picture),
        Route("/api/songs/{song}/zip", answers.archive),
        Route("/api/events", answers.events),
        Route("/api/openapi.json", answers.description),
    ]
    handlers: dict[Any, Callable[..., Awaitable[Response]]] = {
        RefusedError: _refused,
        HTTPException: _not_here,
        Exception: _went_wrong,
    }
    return Starlette(routes=routes, exception_handlers=handlers)


class _Answers:
    """One method for each route."""

    def __init__(
        self, work: Work, models: Path, checkpoints: Sequence[Path], max_bytes: int, max_minutes: float
    ) -> None:
        self._work = work
        self._models = models
        self._checkpoints = checkpoints
        self._max_bytes = max_bytes
        self._max_minutes = max_minutes

    async def page(self, request: Request) -> Response:
        """Send a file of the page."""
        name = request.path_params.get("name", "index.html")
        if name not in PAGE:
            raise HTTPException(404)
        return Response(_read(f"page/{name}"), media_type=PAGE[name])

    async def description(self, _request: Request) -> Response:
        """Send the OpenAPI description."""
        return Response(_read("openapi.json"), media_type="application/json")

    async def options(self, _request: Request) -> Response:
        """List models, formats and limits."""
        offered = await run_in_threadpool(offers, self._models, self._checkpoints)
        limits = self._work.limits
        return JSONResponse(
            {
                "models": [
                    {"id": offer.identity, "name": offer.name, "fetched": offer.fetched} for offer in offered.values()
                ],
                "formats": FORMATS,
                "limits": {
                    "bytes": self._max_bytes,
                    "minutes": self._max_minutes,
                    "waiting": limits.waiting,
                    "kept": limits.kept,
                    "hours": limits.hours,
                },
            }
        )

    async def songs(self, request: Request) -> Response:
        """List the songs of the owner."""
        return JSONResponse(self._work.status(request.state.owner))

    async def send(self, request: Request) -> Response:
        """Receive a song and queue it. It is refused before its body is read if a limit is reached."""
        wish = await self._wish(request)
        stated_size(request, self._max_bytes)
        try:
            with self._work.uploading() as upload:
                with upload.open("xb") as file:
                    await receive(request, file, self._max_bytes)
                song = self._work.add(request.state.owner, wish, upload)
        except FullError as error:
            raise RefusedError(429, "Too many songs are waiting: send this one when some are done") from error
        except OSError as error:
            if error.errno in FULL:
                raise RefusedError(507, FULL_DISK) from error
            raise
        return self._status(request, song, 201)

    async def song(self, request: Request) -> Response:
        """Send the status of a song."""
        return self._status(request, self._song(request))

    async def stop(self, request: Request) -> Response:
        """End a separation, or take a song out of the queue."""
        song = self._song(request)
        self._work.stop(song)
        return self._status(request, song)

    async def remove(self, request: Request) -> Response:
        """Delete a song and its stems."""
        await run_in_threadpool(self._work.remove, self._song(request))
        return Response(status_code=204)

    async def track(self, request: Request) -> Response:
        """Send a stem or the mixture, named `SONG - STEM`."""
        song, name = self._song(request), request.path_params["name"]
        return _download(song.tracks.get(name), AUDIO[song.wish.encoding.format], _called(song, name))

    async def picture(self, request: Request) -> Response:
        """Send a picture."""
        song, name = self._song(request), request.path_params["name"]
        return _download(song.pictures.get(name), "image/png", f"{_title(song)} - {name}.png")

    async def archive(self, request: Request) -> Response:
        """Stream a zip archive of all tracks."""
        song = self._song(request)
        if not song.tracks:
            raise HTTPException(404)
        members = {_called(song, name): path for name, path in song.tracks.items()}
        name = quote(f"{_title(song)}.zip")
        headers = {"Content-Disposition": f"attachment; filename*=utf-8''{name}"}
        return StreamingResponse(zipped(members), media_type="application/zip", headers=headers)

    async def events(self, request: Request) -> Response:
        """Stream the songs of the owner as server-sent events, after every change."""
        return StreamingResponse(self._events(request.state.owner), media_type="text/event-stream")

    async def _events(self, owner: str) -> AsyncGenerator[str]:
        told, silent = "", 0.0
        while not self._work.is_closing:
            now = json.dumps(self._work.status(owner))
            if now != told:
                yield f"event: songs\ndata: {now}\n\n"
                told, silent = now, 0.0
            elif silent >= SECONDS_BETWEEN_SIGNS:
                yield ": still here\n\n"
                silent = 0.0
            await asyncio.sleep(SECONDS_BETWEEN_EVENTS)
            silent += SECONDS_BETWEEN_EVENTS

    async def _wish(self, request: Request) -> Wish:
        query = request.query_params
        offered = await run_in_threadpool(offers, self._models, self._checkpoints)
        offer = offered.get(query.get("model", ""))
        if offer is None:
            raise RefusedError(400, "Choose one of the offered models")
        overlap = query.get("overlap", "")
        if overlap and not re.fullmatch(r"[1-9]|[1-4]\d|50", overlap, re.ASCII):
            raise RefusedError(400, f"Overlap is a number from 1 to 50, not {printable(overlap, 20)}")
        encoding = ENCODINGS.get(query.get("format", "wav"))
        if encoding is None:
            raise RefusedError(400, f"The format is one of {', '.join(FORMATS)}")
        name = safe_name(query.get("name", "song")).encode()[-LONGEST_NAME:].decode(errors="ignore")
        return Wish(name, offer, int(overlap) if overlap else None, encoding)

    def _song(self, request: Request) -> Song:
        song = self._work.find(request.state.owner, request.path_params["song"])
        if song is None:
            raise HTTPException(404)
        return song

    def _status(self, request: Request, song: Song, status: int = 200) -> Response:
        known = self._work.status(request.state.owner)
        return JSONResponse(next((each for each in known if each["id"] == song.identity), None), status)


class _Sink(io.RawIOBase):
    """A write-only buffer between `zipfile` and the response."""

    def __init__(self) -> None:
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._written += data
        return len(data)

    def take(self) -> bytes:
        """Return and forget the buffered bytes."""
        taken, self._written = bytes(self._written), bytearray()
        return taken


def zipped(members: dict[str, Path]) -> Generator[bytes]:
    """Yield an uncompressed zip archive of the files, block by block.

    Raises
    ------
    ClientDisconnect
        If a file was removed meanwhile: the connection must be closed, so that a part is not taken for the whole.
    """
    sink, now = _Sink(), time.localtime()[:6]
    with zipfile.ZipFile(sink, "w") as archive:
        for name, path in members.items():
            try:
                source = path.open("rb")
            except FileNotFoundError as error:
                raise ClientDisconnect from error
            with source, archive.open(zipfile.ZipInfo(name, now), "w", force_zip64=True) as member:
                while block := source.read(BLOCK):
                    member.write(block)
                    yield sink.take()
    yield sink.take()


@functools.cache
def _read(name: str) -> bytes:
    """Return a file that comes with the package."""
    return files("hunterFormsBS.listening").joinpath(name).read_bytes()


def _title(song: Song) -> str:
    return song_name(PurePath(song.wish.name))


def _called(song: Song, track: str) -> str:
    return f"{_title(song)} - {track}.{song.wish.encoding.format}"


def _download(path: Path | None, kind: str, name: str) -> Response:
    if path is None or not path.is_file():
        raise HTTPException(404)
    return FileResponse(path, media_type=kind, filename=name)


async def _refused(_request: Request, error: RefusedError) -> Response:
    return JSONResponse({"error": str(error)}, error.status)


async def _not_here(_request: Request, error: HTTPException) -> Response:
    sentence = {404: "Not found", 405: "This method is not allowed here"}
    return JSONResponse({"error": sentence.get(error.status_code, error.detail)}, error.status_code)


async def _went_wrong(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"error": "Something went wrong: the terminal of the program says what"}, 500)
