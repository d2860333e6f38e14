"""A local replacement of the Hugging Face Hub that serves folders under real ids.

It answers the requests of huggingface_hub, transformers, datasets and SAELens: repository data,
tree listings and files, with the status codes and error headers of the real Hub. The repositories
are ``root/models/OWNER/NAME`` and ``root/datasets/OWNER/NAME``, each with one branch, ``main``.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

MEMBER, STRANGER = "hf_member", "hf_stranger"  # tokens with and without access to gated files
KINDS = ("models", "datasets")


class _Repo(NamedTuple):
    kind: str
    id: str
    folder: Path

    @property
    def commit(self) -> str:
        return hashlib.sha1(f"{self.kind}/{self.id}".encode()).hexdigest()


class _Refused(Exception):
    """An error answer: the status, and the code and message that the Hub sends in headers."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Hub:
    """The server, a context manager that yields itself while it listens.

    Args:
        root: folder of the repositories.
        gated: ids whose files only :data:`MEMBER` may read.

    Attributes:
        cut: names of files of which only the first half is sent.
        silent: if true, accept connections but never answer.
        status: error status of all answers; None for normal answers.
        requests: method and path of each request so far.
    """

    def __init__(self, root: Path, gated: Iterable[str] = ()) -> None:
        self.root, self.gated = root, set(gated)
        self.cut: set[str] = set()
        self.silent = False
        self.status: int | None = None
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def repo(self, kind: str, parts: list[str], token: str | None) -> tuple[_Repo, list[str]]:
        """The repository at the start of a path, and the rest of the path."""
        if token not in (None, MEMBER, STRANGER):
            raise _Refused(401, "Invalid credentials in Authorization header")
        repo = _Repo(kind, "/".join(parts[:2]), self.root.joinpath(kind, *parts[:2]))
        if len(parts) < 2 or not repo.folder.is_dir():
            # An anonymous visitor gets the same answer for missing and for private repositories.
            if token is None:
                raise _Refused(401, "Invalid username or password.", "RepoNotFound")
            raise _Refused(404, "Repository not found", "RepoNotFound")
        return repo, parts[2:]

    def facts(self, repo: _Repo) -> dict[str, Any]:
        files = [{"rfilename": entry["path"]} for entry in self.tree(repo) if "oid" in entry]
        return {
            "_id": repo.commit[:24],
            "id": repo.id,
            "sha": repo.commit,
            "private": False,
            "gated": "manual" if repo.id in self.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "lastModified": "2025-01-01T00:00:00.000Z",
            "createdAt": "2025-01-01T00:00:00.000Z",
            "siblings": files,
        }

    def tree(self, repo: _Repo, under: str = "", recursive: bool = True) -> list[dict[str, Any]]:
        folder = repo.folder / under
        if not folder.is_dir():
            raise _Refused(404, f"{under} does not exist", "EntryNotFound")
        paths = folder.rglob("*") if recursive else folder.iterdir()
        return [self.entry(repo, path) for path in sorted(paths)]

    def entry(self, repo: _Repo, path: Path) -> dict[str, Any]:
        name = path.relative_to(repo.folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "size": 0, "oid": repo.commit}
        oid = hashlib.sha1(path.read_bytes()).hexdigest()
        return {"type": "file", "path": name, "size": path.stat().st_size, "oid": oid}

    def file(self, repo: _Repo, name: str, token: str | None) -> Path:
        if repo.id in self.gated and token != MEMBER:
            status = 401 if token is None else 403
            raise _Refused(status, f"Access to {repo.id} is restricted.", "GatedRepo")
        path = repo.folder / name
        if not path.is_file():
            raise _Refused(404, "Entry not found", "EntryNotFound")
        return path


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def handle_request(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            while hub.silent:
                threading.Event().wait(0.1)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
            try:
                if hub.status is not None:
                    raise _Refused(hub.status, "Something is wrong here.")
                self._answer(body, token if scheme == "Bearer" else None)
            except _Refused as error:
                headers = {"X-Error-Message": str(error)}
                if error.code:
                    headers["X-Error-Code"] = error.code
                self._send(error.status, json.dumps({"error": str(error)}).encode(), headers)

        do_GET = do_HEAD = do_POST = handle_request

        def _answer(self, body: bytes, token: str | None) -> None:
            url = urlsplit(self.path)
            parts = [unquote(part) for part in url.path.strip("/").split("/")]
            if parts[0] == "api" and len(parts) > 3 and parts[1] in KINDS:
                return self._api(*hub.repo(parts[1], parts[2:], token), body, url.query)
            kind = "datasets" if parts[0] == "datasets" else "models"
            parts = parts[kind == "datasets" :]
            if parts[2:3] != ["resolve"] or len(parts) < 5:
                raise _Refused(404, "no such page")
            repo, rest = hub.repo(kind, parts, token)
            self._check_revision(repo, rest[1])
            return self._send_file(repo, hub.file(repo, "/".join(rest[2:]), token))

        def _check_revision(self, repo: _Repo, revision: str) -> None:
            if revision not in ("main", repo.commit):
                raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

        def _api(self, repo: _Repo, rest: list[str], body: bytes, query: str) -> None:
            what, revision, under = [*rest, "", "", ""][:3]
            if revision:
                self._check_revision(repo, revision)
            if what in ("", "revision"):
                return self._json(hub.facts(repo))
            if what == "tree":
                under = "/".join(rest[2:])
                return self._json(hub.tree(repo, under, "recursive=true" in query.lower()))
            if what == "paths-info":
                paths = [repo.folder / name for name in parse_qs(body.decode())["paths"]]
                return self._json([hub.entry(repo, path) for path in paths if path.exists()])
            raise _Refused(404, f"no such page: {what} {under}")

        def _json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send_file(self, repo: _Repo, path: Path) -> None:
            content = path.read_bytes()
            size, start, stop = len(content), 0, len(content)
            headers = {
                "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                "X-Repo-Commit": repo.commit,
                "Accept-Ranges": "bytes",
            }
            status = 200
            if wanted := self.headers.get("Range"):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, stop = int(first), min(size, int(last) + 1 if last else size)
                if start >= size:
                    headers["Content-Range"] = f"bytes */{size}"
                    return self._send(416, b"", headers)
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
                status = 206
            sent = content[start : min(stop, size // 2)] if path.name in hub.cut else None
            return self._send(status, content[start:stop], headers, sent)

        def _send(
            self, status: int, body: bytes, headers: dict[str, str], sent: bytes | None = None
        ) -> None:
            """Send ``body``; with ``sent``, send only this part and close the connection."""
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body if sent is None else sent)
                self.close_connection |= sent is not None

    return Handler
