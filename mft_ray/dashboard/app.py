"""The dashboard as an ASGI application: pages, their parts, and what changes a search."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import plotly
import plotly.graph_objects as go
from a2wsgi import WSGIMiddleware
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from mft_ray.dashboard import pages
from mft_ray.dashboard.access import Guard
from mft_ray.dashboard.asked import try_next
from mft_ray.dashboard.cluster import cluster
from mft_ray.dashboard.optuna_page import StudyApp
from mft_ray.dashboard.side_by_side import compared, compared_examples
from mft_ray.dashboard.watched import Watched
from mft_ray.errors import UserError
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.live.snapshot import Live
from mft_ray.runs.live.steering import stop, take_back
from mft_ray.runs.picked import picked

# How long events may take to end when the server does.
EVENTS_END_S = 2
HERE = Path(__file__).parent
# Beginnings of the paths of our own pages; the rest is optuna-dashboard's, whose addresses are fixed.
OWN = ("/part", "/figures", "/trial", "/compare", "/form", "/try", "/stop", "/queue", "/events", "/assets", "/optuna")
_PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
_PARTS = {"state": pages.state, "board": pages.board, "log": pages.log, "cluster": cluster}


def build(root: Path, token: str, port: int) -> Guard:
    """Return the application.

    Args:
        root: run folder.
        token: what lets in.
        port: port that it is served at.
    """
    pages_of = _Pages(root.resolve())
    study: Any = StudyApp(root / "study.db", pages_of.watched.now)
    optuna: Any = WSGIMiddleware(study)
    routes = [
        Route("/", pages_of.whole),
        Route("/part/{name}", pages_of.part),
        Route("/figures", pages_of.figures),
        Route("/trial/{trial}", pages_of.trial),
        Route("/trial/{trial}/figures", pages_of.trial_figures),
        Route("/trial/{trial}/stop", pages_of.stop, methods=["POST"]),
        Route("/trial/{trial}/pick", pages_of.pick, methods=["POST"]),
        Route("/compare", pages_of.compare),
        Route("/compare/figures", pages_of.compare_figures),
        Route("/compare/examples", pages_of.compare_examples),
        Route("/form", pages_of.form),
        Route("/try", pages_of.ask, methods=["POST"]),
        Route("/stop", pages_of.stop, methods=["POST"]),
        Route("/queue/{name}/remove", pages_of.remove, methods=["POST"]),
        Route("/events", pages_of.events),
        Route("/report", pages_of.report),
        Route("/optuna", pages_of.optuna),
        Route("/assets/plotly.js", lambda request: FileResponse(_PLOTLY, media_type="text/javascript")),
        Mount("/assets", StaticFiles(directory=HERE / "assets")),
        Mount("/", optuna),
    ]
    return Guard(Starlette(routes=routes, exception_handlers={UserError: _mistake}), token, port, OWN)


class _Pages:
    """What each address answers with. What reads files does so in a thread, so that no page waits for another's."""

    def __init__(self, root: Path) -> None:
        self.root, self.watched = root, Watched(root, self._judging)
        self.judging: subprocess.Popen[bytes] | None = None
        self._drawing = threading.Lock()
        self._drawn: tuple[Live, Response] | None = None

    def whole(self, request: Request) -> Response:
        run = self.watched.now().run
        return _page("page.html", name=run.name, product=run.product)

    def part(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _PARTS:
            return Response(status_code=404)
        content = _PARTS[name](self.watched.now())
        return _page(f"{name}.html", **content, judging=self._judging())

    def figures(self, request: Request) -> Response:
        live = self.watched.now()
        # Every page asks at once when the run has changed, and fANOVA alone takes a while.
        with self._drawing:
            if self._drawn is None or self._drawn[0] is not live:
                self._drawn = live, _drawn(pages.drawn(live))
            return self._drawn[1]

    def trial(self, request: Request) -> Response:
        return _page("trial.html", **pages.trial(self.watched.now(), request.path_params["trial"]))

    def trial_figures(self, request: Request) -> Response:
        with self._drawing:
            return _drawn(pages.trial_figures(self.watched.now(), [request.path_params["trial"]]))

    def compare(self, request: Request) -> Response:
        ids = request.query_params.getlist("trial")
        return _page("compare.html", **compared(self.watched.now(), ids), query=request.url.query)

    def compare_figures(self, request: Request) -> Response:
        with self._drawing:
            return _drawn(pages.trial_figures(self.watched.now(), request.query_params.getlist("trial")))

    def compare_examples(self, request: Request) -> Response:
        ids = request.query_params.getlist("trial")
        # Whoever reads prepared data first imports pandas, and plotly fails where it finds half of that.
        with self._drawing:
            return _page("examples.html", **compared_examples(self.watched.now(), ids))

    def form(self, request: Request) -> Response:
        return _page("form.html", **pages.form(self.watched.now(), request.query_params.get("like")))

    async def ask(self, request: Request) -> Response:
        given = {name: str(value) for name, value in (await request.form()).items()}
        asked = await run_in_threadpool(self._ask, given)
        return _page("said.html", said=f"To be tried next: {asked.described}. {asked.when}")

    def _ask(self, given: Mapping[str, str]) -> Any:
        return try_next(self.root, pages.asked_point(self.watched.now(), dict(given)))

    def stop(self, request: Request) -> Response:
        return _page("said.html", said=stop(self.root, request.path_params.get("trial")))

    def remove(self, request: Request) -> Response:
        take_back(RunFolder(self.root), request.path_params["name"])
        return _page("said.html", said="Taken out of the queue.")

    def pick(self, request: Request) -> Response:
        """Judge a trial in a process of its own, as the command does: it needs a Ray, which this one does not."""
        live = self.watched.now()
        if live.working or self._judging():
            raise UserError("The search is at work. Wait for its end, or end it, and pick then.")
        trial = picked(self.root, request.path_params["trial"]).trial.trial_id
        command = [sys.executable, "-m", "mft_ray", "pick", str(self.root), trial]
        out = (RunFolder(self.root).work / "pick.txt").open("wb")
        with out:
            self.judging = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        return _page("said.html", said=f"Trial {trial} is being judged; the log says how far it is.")

    def _judging(self) -> str:
        """Say how the process that judges a picked trial is; empty where there is none, or it has ended well."""
        if self.judging is None:
            return ""
        status = self.judging.poll()
        if status is None:
            return "A picked trial is being judged."
        if status == 0:
            return ""
        lines = (RunFolder(self.root).work / "pick.txt").read_text(errors="replace").strip().splitlines()
        return f"Judging the picked trial failed: {lines[-1] if lines else f'exit status {status}'}"

    def events(self, request: Request) -> Response:
        over = anyio.Event()
        return EventSourceResponse(self.watched.changes(over), shutdown_event=over, shutdown_grace_period=EVENTS_END_S)

    def report(self, request: Request) -> Response:
        path = self.root / "report.html"
        if not path.exists():
            raise UserError("The report is written when trials have ended.")
        return FileResponse(path, media_type="text/html")

    def optuna(self, request: Request) -> Response:
        return RedirectResponse("/dashboard/studies/1")  # the only one of its file


def _page(template: str, **content: Any) -> HTMLResponse:
    return HTMLResponse(_templates.get_template(template).render(**content))


def _drawn(made: Mapping[str, go.Figure]) -> Response:
    for figure in made.values():
        figure.update_layout(uirevision="kept")  # zoom, and what was hidden, stay as a person left them
    whole = {name: json.loads(figure.to_json()) for name, figure in made.items()}
    return Response(json.dumps(whole), media_type="application/json")


def _mistake(request: Request, error: Exception) -> Response:
    """A person's mistake in a sentence, where what was asked for would stand."""
    part = "HX-Request" in request.headers
    text = _templates.get_template("said.html" if part else "mistake.html").render(said=str(error), wrong=True)
    # htmx puts nothing into a page that is not a success.
    return HTMLResponse(text, 200 if part else 404)


_templates = Environment(
    loader=FileSystemLoader([HERE / "templates", HERE.parent / "report"]),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
