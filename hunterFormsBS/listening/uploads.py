"""Receive an upload within limits of size and time."""

from __future__ import annotations

import asyncio
from typing import BinaryIO

from starlette.requests import Request

__all__ = ["RefusedError", "receive", "stated_size"]

SECONDS_SILENT = 30.0
"""An upload that sends nothing for this long is ended."""

SECONDS_ALTOGETHER = 3600.0
"""An upload that takes longer is ended."""


class RefusedError(Exception):
    """A refused request, with the HTTP status and a sentence for the user."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def stated_size(request: Request, max_bytes: int) -> None:
    """Refuse a request whose Content-Length is 0 or too large.

    Raises
    ------
    RefusedError
        With the size and the limit.
    """
    stated = request.headers.get("content-length", "")
    if stated == "0":
        raise RefusedError(400, "The file is empty: choose another")
    if stated.isdecimal() and (len(stated) > 18 or int(stated) > max_bytes):
        raise _too_large(f"{int(stated[:18]) / 1e6:,.0f} MB", max_bytes)


async def receive(request: Request, file: BinaryIO, max_bytes: int) -> None:
    """Write the body of a request to a file.

    Raises
    ------
    ClientDisconnect
        If it breaks off.
    OSError
        If it cannot be written.
    RefusedError
        If it is empty, or goes beyond a limit.
    """
    size = 0
    try:
        async with asyncio.timeout(SECONDS_ALTOGETHER), asyncio.timeout(SECONDS_SILENT) as silence:
            async for block in request.stream():
                size += len(block)
                if size > max_bytes:
                    raise _too_large("more", max_bytes)
                file.write(block)
                silence.reschedule(asyncio.get_running_loop().time() + SECONDS_SILENT)
    except TimeoutError as error:
        raise RefusedError(408, "The upload stalled and was removed: send the song again") from error
    if not size:
        raise RefusedError(400, "The file is empty: choose another")


def _too_large(size: str, max_bytes: int) -> RefusedError:
    limit = f"{max_bytes / 1e6:g} MB are the limit"
    return RefusedError(413, f"The file has {size}, and {limit}: start the program with --max-mb, or convert the song")
