"""Who may look and change: whoever knows the token, as with Jupyter. All else gets a page that says how."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A page runs the scripts that come with it and gets nothing from another host. plotly styles what it draws.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HOW = (
    "This page needs the token that mft-ray dashboard printed: open the whole address, with ?token=..., once in this "
    "browser."
)


class Guard:
    """Let through who has shown the token, in the address once and then by a cookie.

    A cookie is sent from any port of a host, so its name has the port in it. Nothing that changes anything is taken
    from another site's page.

    Args:
        app: what is guarded.
        token: the token.
        port: port that the server listens on.
        own: beginnings of the paths of our own pages, which the policy is sent with; another program's has its own.
    """

    def __init__(self, app: ASGIApp, token: str, port: int, own: tuple[str, ...]) -> None:
        self.app, self.token, self.own = app, token, own
        self.cookie = f"mft-ray-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        answer = self._answer(request)
        await (answer or self.app)(scope, receive, self._with_policy(send, request.url.path))

    def _answer(self, request: Request) -> Response | None:
        given = request.query_params.get("token")
        if given is not None and self._is_token(given):
            left = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
            clean = request.url.replace_query_params(**dict(left))
            answer = RedirectResponse(f"{clean.path}?{clean.query}" if clean.query else clean.path, 303)
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict")
            return answer
        if not self._is_token(request.cookies.get(self.cookie, "")):
            return PlainTextResponse(_HOW, 403)
        if request.method not in ("GET", "HEAD") and not self._same_site(request):
            return PlainTextResponse("This was asked for by a page of another site.", 403)
        return None

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())

    def _same_site(self, request: Request) -> bool:
        origin = request.headers.get("origin")
        return origin is None or urlsplit(origin).netloc == request.headers.get("host")

    def _with_policy(self, send: Send, path: str) -> Send:
        if path != "/" and not path.startswith(self.own):
            return send

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        return with_headers
