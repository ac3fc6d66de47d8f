"""Access control: every request needs the secret, or a cookie issued for it; all others get 403."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import secrets
import sys
import time
import traceback
from collections.abc import Iterable
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Door", "Keys"]

REFUSAL = "This page opens with the address that the program printed when it started."
BEARER = "Bearer "
ENTRANCE = """<!doctype html>
<html lang="en"><link rel="icon" href="data:,"><title>Separate songs</title><a href="/">Separate songs</a></html>
"""

FORM = """<!doctype html>
<html lang="en"><meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,"><title>Separate songs</title>
<main><h1>Separate songs</h1><form method="post" action="/">
<label>Password <input type="password" name="password" autocomplete="current-password" required autofocus></label>
<button>Enter</button></form>{}</main></html>
"""
WRONG = '<p role="alert">This is not the password.</p>'
LONGEST_FORM = 5000
"""Limit of the password form in bytes."""

SECONDS_UNREAD = 60.0
"""A client that stops reading a response for this long is disconnected."""

SECONDS_FOR_A_GUESS = 1.0
GUESSES_WAITING = 20
"""Limit of password attempts in the queue; further ones are refused."""

HEADERS = {
    "Cache-Control": "no-store",
    # The page loads from and sends to no other origin, runs only its own file, and cannot be framed.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class Keys:
    """The secret, and the cookies issued for it.

    Parameters
    ----------
    secret : str
    hours : float
        A cookie expires this long after its last request.
    is_password : bool
        Whether a person chose the secret, so that it can be guessed: attempts are slowed down.
    """

    def __init__(self, secret: str, hours: float, *, is_password: bool = False) -> None:
        self.is_password = is_password
        self._secret = secret.encode()
        self._seconds = 3600 * hours
        self._seen: dict[str, float] = {}
        self._trying = asyncio.Lock()
        self._waiting = 0

    async def fits(self, given: str) -> bool:
        """Return whether this is the secret. Passwords are compared one at a time, with a delay after a wrong one."""
        if not self.is_password:
            return self._is_secret(given)
        if self._waiting >= GUESSES_WAITING:
            return False
        self._waiting += 1
        try:
            async with self._trying:
                fits = self._is_secret(given)
                if not fits:
                    await asyncio.sleep(SECONDS_FOR_A_GUESS)
                return fits
        finally:
            self._waiting -= 1

    def _is_secret(self, given: str) -> bool:
        return secrets.compare_digest(given.encode("utf-8", "surrogatepass"), self._secret)

    def new_cookie(self) -> str:
        """Issue a cookie."""
        now = time.monotonic()
        self._seen = {owner: seen for owner, seen in self._seen.items() if now - seen < self._seconds}
        cookie = secrets.token_urlsafe(32)
        self._seen[_owner(cookie)] = now
        return cookie

    def owner_of(self, cookie: str) -> str | None:
        """Return the owner identity of a cookie, None if the cookie is unknown or expired."""
        owner, now = _owner(cookie), time.monotonic()
        if now - self._seen.get(owner, -self._seconds) >= self._seconds:
            return None
        self._seen[owner] = now
        return owner


class Door:
    """ASGI middleware: authenticates every request, and adds security headers and a timeout to every response.

    Parameters
    ----------
    application : ASGIApp
        Gets the owner of the request in `request.state.owner`.
    keys : Keys
    port : int
        Part of the cookie's name: browsers share cookies among all ports of a host.
    names : Iterable[str]
        Host names to accept, apart from IP addresses and `localhost`.
    """

    def __init__(self, application: ASGIApp, keys: Keys, port: int, names: Iterable[str] = ()) -> None:
        self._application = application
        self._keys = keys
        self._cookie = f"hunterforms-{port}"
        self._names = {"localhost", *(name.casefold() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_in_time(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            try:
                async with asyncio.timeout(SECONDS_UNREAD):
                    await send(message)
            except Exception as error:  # exceptions of a broken connection, or of one that nobody reads
                raise ClientDisconnect from error

        try:
            answer = await self._answer(Request(scope, receive))
            await answer(scope, receive, send_in_time)
        except ClientDisconnect:
            pass  # The connection is closed, so that half of a response is not taken for the whole.
        except Exception:
            traceback.print_exc(file=sys.stderr)
            raise

    async def _answer(self, request: Request) -> ASGIApp:
        """Return the response, or the application if the request is authenticated."""
        if not self._is_addressed_here(request):
            return PlainTextResponse(REFUSAL, 403)
        owner = await self._owner(request)
        at_door = request.url.path == "/"
        token = request.query_params.get("token")
        if at_door and token is not None and not self._keys.is_password and await self._keys.fits(token):
            return self._let_in(known=owner is not None)
        if owner is not None:
            request.state.owner = owner
            return self._application
        if at_door and self._keys.is_password:
            typed = request.method == "POST"
            if typed and await self._keys.fits(await _password(request)):
                return self._let_in(known=False)
            return HTMLResponse(FORM.format(WRONG if typed else ""), 403)
        return PlainTextResponse(REFUSAL, 403)

    def _is_addressed_here(self, request: Request) -> bool:
        """Check the Host header, against DNS rebinding, and the Origin header, against requests from other sites."""
        host = request.headers.get("host", "")
        origin = request.headers.get("origin")
        try:
            if origin is not None and urlsplit(origin).netloc.casefold() != host.casefold():
                return False
            name = urlsplit(f"//{host}").hostname or ""
            if name not in self._names:
                ipaddress.ip_address(name)  # DNS rebinding needs a name.
        except ValueError:
            return False
        return True

    async def _owner(self, request: Request) -> str | None:
        stated = request.headers.get("authorization", "")
        if stated.startswith(BEARER) and await self._keys.fits(stated.removeprefix(BEARER)):
            return "programs"
        return self._keys.owner_of(request.cookies.get(self._cookie, ""))

    def _let_in(self, *, known: bool) -> Response:
        """Issue a cookie, unless the browser has one, and redirect to the address without the secret.

        A Refresh header, not a redirect: after a link from another site, browsers withhold `SameSite=Strict` cookies
        from redirects.
        """
        answer = HTMLResponse(ENTRANCE)
        answer.headers["Refresh"] = "0; url=/"
        if not known:
            answer.set_cookie(self._cookie, self._keys.new_cookie(), httponly=True, samesite="strict")
        return answer


async def _password(request: Request) -> str:
    """Return the password of the form; empty if the form is too long or too slow."""
    body = b""
    try:
        async with asyncio.timeout(SECONDS_UNREAD):
            async for block in request.stream():
                body += block
                if len(body) > LONGEST_FORM:
                    return ""
    except TimeoutError:
        return ""
    return parse_qs(body.decode("ascii", "replace")).get("password", [""])[0]


def _owner(cookie: str) -> str:
    return hashlib.sha256(cookie.encode("utf-8", "surrogatepass")).hexdigest()
