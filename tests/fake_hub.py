"""A hub of models and data sets on the loopback, for tests: the part of its protocol that its clients use to download.

with FakeHub() as hub: set HF_ENDPOINT=hub.url in the client's environment.
"""

import contextlib
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Repository:
    """Commits of one model or data set: {40 digits: {path: bytes}}; `main` is the latest.

    gated   files want the hub's token (its description does not); private: everything does
    """

    commits: dict = field(default_factory=dict)
    main: str | None = None
    gated: bool = False
    private: bool = False

    def commit(self, files):
        """A new commit, on which main now stands; returns its 40 digits."""
        digits = hashlib.sha1(repr((self.main, sorted(files.items()))).encode()).hexdigest()
        self.commits[digits], self.main = files, digits
        return digits


class FakeHub:
    """`repositories` by ("models" or "datasets", name); `requests` is what was asked: (method, path, Authorization)."""

    def __init__(self, token="hf_open_sesame"):
        self.token, self.repositories, self.requests = token, {}, []
        self.failing = None  # a status that every request gets

    def model(self, name, **flags):
        return self.repositories.setdefault(("models", name), Repository(**flags))

    def dataset(self, name, **flags):
        return self.repositories.setdefault(("datasets", name), Repository(**flags))

    def asked_for(self, text):
        return [path for _, path, _ in self.requests if text in path]

    def __enter__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads, self.server.hub = True, self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        # Looks twenty times a second whether it has to end.
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Refused(Exception):
    def __init__(self, status, code):
        self.status, self.code = status, code


class Handler(BaseHTTPRequestHandler):
    """/api/<kind>/<org>/<name>[/revision/R | /tree/R/FOLDER | /paths-info/R] and /[datasets/]<org>/<name>/resolve/R/FILE."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_GET

    def answer(self):
        hub, address = self.server.hub, urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        hub.requests.append((self.command, self.path, self.headers.get("Authorization")))
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        try:
            if hub.failing:
                raise Refused(hub.failing, "Failing")
            if parts[0] == "api":
                self.send_json(self.describe(parts[1], "/".join(parts[2:4]), parts[4:], body, parse_qs(address.query)))
            else:
                kind = parts.pop(0) if parts[0] == "datasets" else "models"
                self.send_file(kind, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        except Refused as refused:
            self.send({"X-Error-Code": refused.code, "X-Error-Message": refused.code}, b"", refused.status)

    def repository(self, kind, name, files=False):
        """Raises Refused as the hub does: a private repository looks like one that is not there."""
        hub, given = self.server.hub, self.headers.get("Authorization")
        if given not in (None, f"Bearer {hub.token}"):
            raise Refused(401, "Invalid credentials in Authorization header")
        found = hub.repositories.get((kind, name))
        if found is None or (found.private and given is None):
            raise Refused(404 if given else 401, "RepoNotFound")
        if files and found.gated and given is None:
            raise Refused(401, "GatedRepo")
        return found

    def commit(self, repository, revision):
        digits = repository.main if revision in ("main", None) else revision
        if digits not in repository.commits:
            raise Refused(404, "RevisionNotFound")
        return digits, repository.commits[digits]

    def describe(self, kind, name, rest, body, query):
        repository = self.repository(kind, name)
        action, revision, folder = [*rest[:2], None, None][0], [*rest, None, None][1], "/".join(rest[2:])
        digits, files = self.commit(repository, revision)
        entries = [self.entry(path, data) for path, data in files.items()]
        folders = {"/".join(path.split("/")[:n]) for path in files for n in range(1, path.count("/") + 1)}
        if action == "tree":
            entries += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
            inside = [entry for entry in entries if not folder or entry["path"].startswith(f"{folder}/")]
            if query.get("recursive", ["false"])[0].lower() != "true":
                depth = folder.count("/") + 1 if folder else 0
                inside = [entry for entry in inside if entry["path"].count("/") == depth]
            if folder and not inside:
                raise Refused(404, "EntryNotFound")
            return inside
        if action == "paths-info":
            fields = parse_qs(body)
            with contextlib.suppress(json.JSONDecodeError):
                fields = json.loads(body)
            wanted = fields.get("paths", [])
            found = [entry for entry in entries if entry["path"] in wanted]
            return found + [
                {"type": "directory", "path": p, "oid": "0" * 40, "size": 0} for p in folders if p in wanted
            ]
        siblings = [{"rfilename": path} for path in files]
        return {"id": name, "sha": digits, "siblings": siblings, "private": repository.private, "gated": repository.gated,
                "tags": [], "downloads": 0, "likes": 0, "disabled": False}  # fmt: skip

    @staticmethod
    def entry(path, data):
        return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def send_file(self, kind, name, revision, path):
        digits, files = self.commit(self.repository(kind, name, files=True), revision)
        if path not in files:
            raise Refused(404, "EntryNotFound")
        etag = f'"{hashlib.sha1(files[path]).hexdigest()}"'
        self.send({"ETag": etag, "X-Repo-Commit": digits, "Accept-Ranges": "bytes"}, files[path])

    def send_json(self, value):
        self.send({"Content-Type": "application/json"}, json.dumps(value).encode())

    def send(self, headers, body, status=200):
        wanted = self.headers.get("Range")
        if status == 200 and wanted and self.command == "GET":
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            size, status, body = len(body), 206, body[int(start) : int(end) + 1 if end else None]
            headers = headers | {"Content-Range": f"bytes {start}-{int(start) + len(body) - 1}/{size}"}
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
