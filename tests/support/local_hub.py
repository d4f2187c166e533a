"""A small server that speaks the routes of the Hugging Face Hub that uploads and downloads of a repository use."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_a_token_of_the_local_hub"


@dataclass
class Repository:
    """The commits of a repository, and the revisions (branches) that name them."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], revision: str = "main") -> str:
        """Add files to those of a revision, and return the commit."""
        everything = self.commits.get(self.revisions.get(revision, ""), {}) | files
        content = repr((len(self.commits), sorted(everything.items()))).encode()
        name = hashlib.sha1(content).hexdigest()
        self.commits[name], self.revisions[revision] = everything, name
        return name

    def resolve(self, revision: str) -> str | None:
        """Return the commit of a revision; None if there is none."""
        name = self.revisions.get(revision, revision)
        return name if name in self.commits else None


class LocalHub:
    """Repositories by name, what was asked for, and the address of the server."""

    def __init__(self, address: str) -> None:
        self.address, self.repositories, self.requests = address, dict[str, Repository](), list[str]()

    def add(self, name: str, folder: Path, revision: str = "main", private: bool = False) -> str:
        """Put the files of a folder into a repository, and return the commit."""
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return self.repositories.setdefault(name, Repository(private)).commit(files, revision)


class Missing(Exception):
    """Why an answer is an error: its status, and the code that the Hub gives."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    """The routes; subclasses have a hub."""

    hub: LocalHub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.answer(self.get)

    def do_GET(self) -> None:
        self.answer(self.get)

    def do_POST(self) -> None:
        self.answer(self.post)

    def answer(self, route) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        try:
            route(path.strip("/").split("/"))
        except Missing as error:
            self.send(b"{}", error.status, {"X-Error-Code": error.code, "X-Error-Message": error.code})

    def send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, value: object) -> None:
        self.send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    @property
    def has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def files_of(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        """Return a commit and its files; without a token the Hub does not tell a private repository from none."""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self.has_token):
            raise Missing(404 if self.has_token else 401, "RepoNotFound")
        commit = repository.resolve(revision)
        if commit is None:
            raise Missing(404, "RevisionNotFound")
        return commit, repository.commits[commit]

    def get(self, parts: list[str]) -> None:
        match parts:
            case ["api", "models", owner, name]:
                self.send_info(f"{owner}/{name}", "main")
            case ["api", "models", owner, name, "revision", revision]:
                self.send_info(f"{owner}/{name}", revision)
            case ["api", "models", owner, name, "tree", revision, *_]:
                self.send_tree(f"{owner}/{name}", revision)
            case [owner, name, "resolve", revision, *file]:
                self.send_file(f"{owner}/{name}", revision, "/".join(file))
            case _:
                raise Missing(404, "EntryNotFound")

    def send_info(self, name: str, revision: str) -> None:
        commit, files = self.files_of(name, revision)
        self.send_json({"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]})

    def send_tree(self, name: str, revision: str) -> None:
        _, files = self.files_of(name, revision)
        rows = [{"type": "file", "path": path, "size": len(files[path]), "oid": digest(files[path])} for path in files]
        self.send_json(rows)

    def send_file(self, name: str, revision: str, path: str) -> None:
        commit, files = self.files_of(name, revision)
        if path not in files:
            raise Missing(404, "EntryNotFound")
        self.send(files[path], headers={"X-Repo-Commit": commit, "ETag": f'"{digest(files[path])}"'})

    def post(self, parts: list[str]) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if not self.has_token:
            raise Missing(401, "")
        match parts:
            case ["api", "repos", "create"]:
                self.create(json.loads(body))
            case ["api", "validate-yaml"]:
                self.send_json({"errors": [], "warnings": []})
            case ["api", "models", _, _, "preupload", _]:
                files = [file["path"] for file in json.loads(body)["files"]]
                self.send_json(
                    {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]}
                )
            case ["api", "models", owner, name, "commit", revision]:
                self.commit(f"{owner}/{name}", revision, [json.loads(line) for line in body.splitlines()])
            case _:
                raise Missing(404, "")

    def create(self, asked: dict[str, object]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        is_private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.repositories.setdefault(name, Repository(is_private)).revisions.setdefault("main", "")
        self.send_json({"url": f"{self.hub.address}/{name}", "name": name})

    def commit(self, name: str, revision: str, lines: list[dict]) -> None:
        if revision not in self.hub.repositories[name].revisions:
            raise Missing(404, "RevisionNotFound")
        entries = [line["value"] for line in lines if line["key"] == "file"]
        files = {entry["path"]: base64.b64decode(entry["content"]) for entry in entries}
        commit = self.hub.repositories[name].commit(files, revision)
        self.send_json({"commitUrl": f"{self.hub.address}/{name}/commit/{commit}", "commitOid": commit})


def digest(content: bytes) -> str:
    """Return what git calls the content of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Start a hub on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = LocalHub(f"http://127.0.0.1:{server.server_port}")
    server.RequestHandlerClass = type("HandlerOfHub", (Handler,), {"hub": hub})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown(), server.server_close(), thread.join()
