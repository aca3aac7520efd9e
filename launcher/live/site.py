"""The live page's site: the page, its messages as server-sent events, and the faults that are asked for there.

Starlette and uvicorn speak HTTP (`pip install 'memcluster[web]'`). Nothing is given to anybody without the token, or to
a page of another site: a browser says whose page asks (Origin), and under which name it has found this one (Host, which
a hostile name server can choose).
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from memcluster.client.console import Failure
from memcluster.client.discover import DiscoverError
from memcluster.launcher.fault import fault
from memcluster.launcher.live.feed import Feed, Looker
from memcluster.launcher.log.timeline import drawing_page

MOST_WATCHERS = 32
MOST_BYTES = 4096
"""Of what is posted."""
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}


class FaultOrder(BaseModel):
    """What a click asks for."""

    model_config = ConfigDict(strict=True, extra="forbid")

    kind: str
    targets: list[str] = Field(min_length=1, max_length=2)
    seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class Guard:
    """Lets nobody in who is not meant."""

    def __init__(self, app: ASGIApp, token: str, host: str) -> None:
        self._app = app
        self._token = token
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if problem := self._problem(Request(scope)) if scope["type"] == "http" else "only HTTP is spoken here":
            await PlainTextResponse(problem + "\n", 403, HEADERS)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _problem(self, request: Request) -> str:
        if not secrets.compare_digest(request.query_params.get("token", "").encode(), self._token.encode()):
            return "this page needs the whole address that `memcluster watch --web` has printed, with its token"
        host = request.headers.get("host", "")
        if not _is_number(name := host.rpartition(":")[0]) and name not in ("localhost", self._host):
            return f"this page is not served under the name {name!r}"
        if (origin := request.headers.get("origin")) not in (None, f"http://{host}"):
            return f"a page of {origin!r} has no business here"
        return ""


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def site(file: Path, feed: Feed, token: str, host: str) -> ASGIApp:
    """The application."""
    text = drawing_page("memcluster.launcher.live", "live.html")

    async def page(_: Request) -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        headers = {**HEADERS, "Content-Security-Policy": POLICY.format(nonce=nonce)}
        return HTMLResponse(text.replace("<script>", f'<script nonce="{nonce}">'), headers=headers)

    async def events(_: Request) -> StreamingResponse | PlainTextResponse:
        if feed.watchers >= MOST_WATCHERS:
            return PlainTextResponse(f"{MOST_WATCHERS} watch already\n", 503, HEADERS)

        async def stream() -> AsyncIterator[str]:
            async for message in feed.messages():
                yield f"data: {message}\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream", headers=HEADERS)

    async def break_(request: Request) -> JSONResponse:
        try:
            order = FaultOrder.model_validate_json(await _body(request))
            done = await asyncio.to_thread(fault, file, order.kind, order.targets, order.seconds, None)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, one['loc'])) or 'it'}: {one['msg']}" for one in error.errors()]
            return JSONResponse({"error": f"no fault is asked for so: {'; '.join(problems)}"}, 400, HEADERS)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400, HEADERS)
        except (Failure, DiscoverError, OSError) as error:
            return JSONResponse({"error": str(error)}, 409, HEADERS)
        finally:
            feed.hurry()
        return JSONResponse({"done": done}, headers=HEADERS)

    routes = [Route("/", page), Route("/events", events), Route("/fault", break_, methods=["POST"])]
    return Guard(Starlette(routes=routes), token, host)


async def _body(request: Request) -> bytes:
    """Raises ValueError if it is longer than any order."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes are no order")
    return body


class _Server(uvicorn.Server):
    """Ends the messages, which would never end by themselves, before it waits for its connections."""

    feed: Feed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self.feed.close()
        await super().shutdown(sockets)


def serve(file: Path, listener: socket.socket, token: str, host: str) -> None:
    """Serve the page of the cluster of `file` until a signal comes."""
    settings: dict[str, Any] = {"log_level": "critical", "access_log": False, "lifespan": "off", "server_header": False}
    feed = Feed(Looker(file).look)
    server = _Server(uvicorn.Config(site(file, feed, token, host), timeout_graceful_shutdown=2, **settings))
    server.feed = feed
    server.run(sockets=[listener])
