"""A hub of our own on this machine, with what huggingface_hub's client asks of the real one to push and to fetch.

Repositories are in memory, each commit whole. What it does not do: pull requests, Xet, data sets, branches but main.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

WRITER, READER = "hf_writer", "hf_reader"
OWNER = "me"


@dataclass
class Repository:
    """One repository.

    Attributes:
        private: whether only the writer may read it.
        commits: contents by file, by hash of the commit, oldest first.
    """

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        digest = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[digest] = files
        return digest

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.head]


@dataclass
class StandInHub:
    """The server's state, for tests to look at.

    Attributes:
        url: its address, for HF_ENDPOINT.
        repositories: by id.
        objects: large files that have arrived, by SHA-256.
        asked: method and path of every request.
        takes: number of large files that it still takes.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    takes: int = 1_000

    def add(self, name: str, files: dict[str, bytes], private: bool = False) -> str:
        """Make a repository, or a commit of one, and return its hash."""
        return self.repositories.setdefault(name, Repository(private)).commit(files)


def _refused(status: int, code: str, message: str) -> Response:
    return JSONResponse({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _oid(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if _large(path) else _git_oid(content)


def _large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


class _App:
    def __init__(self, hub: StandInHub) -> None:
        self.hub = hub
        name = "{owner}/{name}"
        self.app = Starlette(
            routes=[
                Route("/api/whoami-v2", self.whoami),
                Route("/api/validate-yaml", self.validate, methods=["POST"]),
                Route("/api/repos/create", self.create, methods=["POST"]),
                Route(f"/api/models/{name}", self.info),
                Route(f"/api/models/{name}/revision/{{revision}}", self.info),
                Route(f"/api/models/{name}/tree/{{revision}}", self.tree),
                Route(f"/api/models/{name}/preupload/{{revision}}", self.preupload, methods=["POST"]),
                Route(f"/api/models/{name}/commit/{{revision}}", self.commit, methods=["POST"]),
                Route(f"/{name}.git/info/lfs/objects/batch", self.batch, methods=["POST"]),
                Route("/objects/{oid}", self.put, methods=["PUT"]),
                Route(f"/{name}/resolve/{{revision}}/{{path:path}}", self.resolve, methods=["GET", "HEAD"]),
            ]
        )

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        if scope["type"] == "http":
            self.hub.asked.append(f"{scope['method']} {scope['path']}")
        await self.app(scope, receive, send)

    @staticmethod
    def _token(request: Request) -> str:
        return request.headers.get("authorization", "").removeprefix("Bearer ")

    def _found(self, request: Request) -> Repository | Response:
        name = f"{request.path_params['owner']}/{request.path_params['name']}"
        repository = self.hub.repositories.get(name)
        token = self._token(request)
        if token not in ("", WRITER, READER):
            return _refused(401, "", "Invalid credentials in Authorization header")
        if repository is None or (repository.private and token != WRITER):
            return _refused(401 if not token else 404, "RepoNotFound", "Repository not found")
        return repository

    def _at(self, request: Request, repository: Repository) -> str | Response:
        revision = request.path_params.get("revision", "main")
        if revision == "main":
            return repository.head if repository.commits else ""
        if revision in repository.commits:
            return str(revision)
        return _refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    async def whoami(self, request: Request) -> Response:
        if self._token(request) not in (WRITER, READER):
            return _refused(401, "", "Invalid username or password.")
        return JSONResponse({"type": "user", "name": OWNER, "orgs": []})

    async def validate(self, request: Request) -> Response:
        content = (await request.json())["content"]
        return JSONResponse({"errors": [], "warnings": []} if content.startswith("---\n") else {"errors": ["none"]})

    async def create(self, request: Request) -> Response:
        given = await request.json()
        owner = given.get("organization") or OWNER
        name = f"{owner}/{given['name']}"
        if self._token(request) != WRITER or owner != OWNER:
            why = f'You don\'t have the rights to create a model under the namespace "{owner}"'
            return _refused(403, "", why)
        if name in self.hub.repositories:
            return JSONResponse({"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}, 409)
        self.hub.repositories[name] = Repository(given.get("visibility") == "private" or bool(given.get("private")))
        return JSONResponse({"url": f"{self.hub.url}/{name}", "name": name})

    async def info(self, request: Request) -> Response:
        repository = self._found(request)
        if isinstance(repository, Response):
            return repository
        commit = self._at(request, repository)
        if isinstance(commit, Response):
            return commit
        name = f"{request.path_params['owner']}/{request.path_params['name']}"
        files = repository.commits.get(commit, {})
        return JSONResponse(
            {
                "id": name,
                "sha": commit or None,
                "private": repository.private,
                "siblings": [{"rfilename": file} for file in files],
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
        )

    async def tree(self, request: Request) -> Response:
        repository = self._found(request)
        if isinstance(repository, Response):
            return repository
        commit = self._at(request, repository)
        if isinstance(commit, Response):
            return commit
        entries = []
        for file, content in repository.commits.get(commit, {}).items():
            entry = {"type": "file", "oid": _git_oid(content), "size": len(content), "path": file}
            if _large(file):
                oid = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
            entries.append(entry)
        return JSONResponse(entries)

    async def preupload(self, request: Request) -> Response:
        repository = self._found(request)
        if isinstance(repository, Response):
            return repository
        there = repository.files if repository.commits else {}
        modes = []
        for each in (await request.json())["files"]:
            path = each["path"]
            mode = {"path": path, "uploadMode": "lfs" if _large(path) else "regular", "shouldIgnore": False}
            modes.append({**mode, "oid": _oid(path, there[path])} if path in there else mode)
        return JSONResponse({"files": modes})

    async def batch(self, request: Request) -> Response:
        given = await request.json()
        objects = []
        for each in given["objects"]:
            answer = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/objects/{each['oid']}"}}
            objects.append(answer)
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def put(self, request: Request) -> Response:
        content = await request.body()
        if self.hub.takes < 1:
            return Response("the upload was cut off", 400)
        self.hub.takes -= 1
        assert hashlib.sha256(content).hexdigest() == request.path_params["oid"]
        self.hub.objects[request.path_params["oid"]] = content
        return Response()

    async def commit(self, request: Request) -> Response:
        repository = self._found(request)
        if isinstance(repository, Response):
            return repository
        if self._token(request) != WRITER:
            return _refused(403, "", "You have read access but not the required permissions for this operation")
        files = dict(repository.files) if repository.commits else {}
        for line in (await request.body()).decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        digest = repository.commit(files)
        name = f"{request.path_params['owner']}/{request.path_params['name']}"
        return JSONResponse(
            {"success": True, "commitOid": digest, "commitUrl": f"{self.hub.url}/{name}/commit/{digest}"}
        )

    async def resolve(self, request: Request) -> Response:
        repository = self._found(request)
        if isinstance(repository, Response):
            return repository
        commit = self._at(request, repository)
        if isinstance(commit, Response):
            return commit
        content = repository.commits.get(commit, {}).get(request.path_params["path"])
        if content is None:
            return Response("Entry not found", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        path = request.path_params["path"]
        return Response(content, headers={"ETag": f'"{_oid(path, content)}"', "X-Repo-Commit": commit})


@contextmanager
def stand_in_hub() -> Iterator[StandInHub]:
    """Serve a hub on a free port of this machine."""
    hub = StandInHub()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        hub.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(_App(hub), log_level="error", lifespan="off"))
        run: Callable[[], None] = lambda: server.run(sockets=[listening])  # noqa: E731
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.should_exit = True
            thread.join()
