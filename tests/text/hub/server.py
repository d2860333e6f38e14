"""A local replacement of the Hugging Face Hub that serves folders under real ids.

It answers the requests of huggingface_hub, transformers, datasets and SAELens: repository data,
tree listings and files, with the status codes and error headers of the real Hub. It also takes
uploads: a new repository, files (those of tensors over Git LFS) and a commit. The repositories are
``root/models/OWNER/NAME`` and ``root/datasets/OWNER/NAME``, each with one branch, ``main``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

MEMBER, STRANGER = "hf_member", "hf_stranger"  # tokens with and without access to gated files
KINDS = ("models", "datasets")
OWNER = "me"  # the owner of the repositories that MEMBER may write


class _Repo(NamedTuple):
    kind: str
    id: str
    folder: Path
    n_commits: int

    @property
    def commit(self) -> str:
        return hashlib.sha1(f"{self.kind}/{self.id}/{self.n_commits}".encode()).hexdigest()


class _Refused(Exception):
    """An error answer: the status, and the code and message that the Hub sends in headers."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: str) -> None:
        super().__init__(message)
        self.status, self.code, self.more = status, code, more


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
        broken: part of the paths that are answered with status 503; empty for none.
        private: ids of the repositories that only :data:`MEMBER` sees.
        commits: number of commits to each repository.
        stored: the files of Git LFS by their SHA-256.
    """

    def __init__(self, root: Path, gated: Iterable[str] = ()) -> None:
        self.root, self.gated = root, set(gated)
        self.cut: set[str] = set()
        self.silent = False
        self.status: int | None = None
        self.requests: list[str] = []
        self.broken = ""
        self.private: set[str] = set()
        self.commits: Counter[str] = Counter()
        self.stored: dict[str, bytes] = {}
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
        name = "/".join(parts[:2])
        repo = _Repo(kind, name, self.root.joinpath(kind, *parts[:2]), self.commits[name])
        hidden = name in self.private and token != MEMBER
        if len(parts) < 2 or hidden or not repo.folder.is_dir():
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
            "private": repo.id in self.private,
            "gated": "manual" if repo.id in self.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "cardData": _front_matter(repo.folder / "README.md"),
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

    # ------------------------------------------------------------------ uploads

    def check_writer(self, owner: str, token: str | None) -> None:
        if token is None:
            raise _Refused(401, "Invalid username or password.")
        if token != MEMBER or owner != OWNER:
            raise _Refused(403, f"You don't have the rights to write to {owner}")

    def create(self, asked: dict[str, Any], token: str | None) -> dict[str, Any]:
        owner, name = asked["organization"] or OWNER, asked["name"]
        self.check_writer(owner, token)
        folder = self.root / "models" / owner / name
        if folder.is_dir():
            raise _Refused(
                409, "You already created this model repo", url=f"{self.url}/{owner}/{name}"
            )
        folder.mkdir(parents=True)
        (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
        if asked.get("private") or asked.get("visibility") == "private":
            self.private.add(f"{owner}/{name}")
        return {"url": f"{self.url}/{owner}/{name}", "name": f"{owner}/{name}"}

    def check_card(self, text: str) -> dict[str, Any]:
        """The hub's judgement of the front matter of a model card."""
        licence = _front_matter(text).get("license", "other")
        known = licence in ("apache-2.0", "mit", "other")
        message = '"license" must be one of [apache-2.0, mit, other]'
        return {"errors": [] if known else [{"message": message}], "warnings": []}

    def upload_modes(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in asked["files"]
            ]
        }

    def lfs_batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Where each file is to be uploaded; nowhere if its content is known."""
        found = []
        for file in asked["objects"]:
            upload = {"actions": {"upload": {"href": f"{self.url}/lfs/{file['oid']}"}}}
            found.append(file | ({} if file["oid"] in self.stored else upload))
        return {"transfer": "basic", "objects": found}

    def store(self, oid: str, content: bytes) -> dict[str, Any]:
        if hashlib.sha256(content).hexdigest() != oid:
            raise _Refused(400, "content does not match the oid")
        self.stored[oid] = content
        return {}

    def commit(self, repo: _Repo, lines: bytes) -> dict[str, Any]:
        """Write the files of a commit: all of them, or none."""
        written: dict[str, bytes] = {}
        for line in map(json.loads, lines.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                written[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                written[value["path"]] = self.stored[value["oid"]]
        for name, content in written.items():
            (repo.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (repo.folder / name).write_bytes(content)
        self.commits[repo.id] += 1
        oid = repo._replace(n_commits=self.commits[repo.id]).commit
        return {"commitUrl": f"{self.url}/{repo.id}/commit/{oid}", "commitOid": oid}


def _front_matter(card: Path | str) -> dict[str, Any]:
    """The front matter of a model card; empty if there is no card."""
    if isinstance(card, Path):
        card = card.read_text() if card.is_file() else ""
    parts = card.split("---\n", 2)
    return yaml.safe_load(parts[1]) if len(parts) == 3 else {}


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
                if hub.broken and hub.broken in self.path:
                    raise _Refused(503, "Something is wrong here.")
                self._answer(body, token if scheme == "Bearer" else None)
            except _Refused as error:
                headers = {"X-Error-Message": str(error)}
                if error.code:
                    headers["X-Error-Code"] = error.code
                self._send(
                    error.status, json.dumps({"error": str(error), **error.more}).encode(), headers
                )

        do_GET = do_HEAD = do_POST = do_PUT = handle_request

        def _answer(self, body: bytes, token: str | None) -> None:
            url = urlsplit(self.path)
            parts = [unquote(part) for part in url.path.strip("/").split("/")]
            if parts == ["api", "repos", "create"]:
                return self._json(hub.create(json.loads(body), token))
            if parts == ["api", "validate-yaml"]:
                found = hub.check_card(json.loads(body)["content"])
                return self._json(found, 400 if found["errors"] else 200)
            if parts[2:] == ["info", "lfs", "objects", "batch"]:
                hub.check_writer(parts[0], token)
                return self._json(hub.lfs_batch(json.loads(body)))
            if parts[0] == "lfs":
                return self._json(hub.store(parts[1], body))
            if parts[0] == "api" and len(parts) > 3 and parts[1] in KINDS:
                repo, rest = hub.repo(parts[1], parts[2:], token)
                if rest[:1] in (["preupload"], ["commit"]):
                    hub.check_writer(parts[2], token)
                return self._api(repo, rest, body, url.query)
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
            if what == "preupload":
                return self._json(hub.upload_modes(json.loads(body)))
            if what == "commit":
                return self._json(hub.commit(repo, body))
            if what == "paths-info":
                paths = [repo.folder / name for name in parse_qs(body.decode())["paths"]]
                return self._json([hub.entry(repo, path) for path in paths if path.exists()])
            raise _Refused(404, f"no such page: {what} {under}")

        def _json(self, value: object, status: int = 200) -> None:
            self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

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
