"""A hub of models on 127.0.0.1 that can misbehave in every way a real one can.

It speaks as much of the protocol as a client needs: the list of a repository's files with
their digests, `resolve` with ranges, etags and a redirect to a storage server (another
port, hence another host to whoever guards a token), and its errors.
"""

import hashlib
import http.server
import json
import threading
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

COMMIT = "5fa94a9e3b1d4b7f9e0c2d1a6b8c7d5e4f3a2b1c"


@dataclass
class Repository:
    files: dict[str, bytes]
    #: Files that lie on the storage server and have a sha256 in the list.
    large: set[str] = field(default_factory=set)
    token: str | None = None
    commit: str = COMMIT
    revision: str = "main"


class Hub:
    """Two servers: the hub and its storage."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        #: (server, path, headers) of every request, in order.
        self.seen: list[tuple[str, str, dict]] = []
        #: Per file: after how many bytes each of the next bodies is cut off.
        self.cuts: dict[str, list[int]] = {}
        #: Per file: other bytes than the list promises.
        self.wrong: dict[str, bytes] = {}
        #: Statuses that the next requests for a file get.
        self.statuses: list[int] = []
        self.knows_ranges = True
        self.redirect_target: str | None = None
        #: Set when a body was cut while its connection is kept open.
        self.stalled = threading.Event()
        self.stall = False
        self.release = threading.Event()
        self._servers = [self._serve("hub"), self._serve("storage")]
        self.url, self.storage_url = (
            f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers
        )

    def _serve(self, role: str) -> http.server.ThreadingHTTPServer:
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                headers = {k.lower(): v for k, v in self.headers.items()}
                hub.seen.append((role, self.path, headers))
                try:
                    hub.answer(self, role, headers)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def close(self):
        self.release.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def asked(self, word: str) -> list[tuple[str, str, dict]]:
        return [seen for seen in self.seen if word in seen[1]]

    # ---- answers ---------------------------------------------------------------------

    def answer(self, request, role: str, headers: dict):
        url = urlsplit(request.path)
        parts = url.path.strip("/").split("/")
        if role == "storage":
            return self.body(request, headers, "/".join(parts[:2]), "/".join(parts[2:]))
        if parts[:2] == ["api", "models"]:
            name, revision = "/".join(parts[2:4]), parts[5]
        else:
            name, revision = "/".join(parts[:2]), parts[3]
        repository = self.repositories.get(name)
        if repository is None:
            # As the real one: it does not say whether a repository is missing or private.
            return self.refuse(request, 401, "Invalid username or password.")
        if repository.token and headers.get("authorization") != f"Bearer {repository.token}":
            return self.refuse(request, 401, f"Access to model {name} is restricted.")
        if revision not in (repository.revision, repository.commit):
            return self.refuse(request, 404, f"Invalid rev id: {revision}")
        if parts[0] == "api":
            return self.listing(request, repository, parse_qs(url.query))
        file = "/".join(parts[4:])
        if file not in repository.files:
            return self.refuse(request, 404, "Entry not found")
        if self.statuses:
            return self.refuse(request, self.statuses.pop(0), "try again")
        if file in repository.large:
            return self.redirect(request, repository, name, file)
        return self.body(request, headers, name, file)

    def listing(self, request, repository: Repository, query: dict):
        siblings = []
        for file, content in repository.files.items():
            sibling = {"rfilename": file}
            if query.get("blobs") == ["true"]:
                sibling["size"] = len(content)
                if file in repository.large:
                    digest = hashlib.sha256(content).hexdigest()
                    sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 135}
            siblings.append(sibling)
        body = json.dumps({"sha": repository.commit, "private": False, "siblings": siblings})
        self.send(request, 200, {"content-type": "application/json"}, body.encode())

    def redirect(self, request, repository: Repository, name: str, file: str):
        digest = hashlib.sha256(repository.files[file]).hexdigest()
        headers = {"x-repo-commit": repository.commit, "x-linked-etag": f'"{digest}"'}
        target = self.redirect_target
        target = f"{self.storage_url}/{name}/{file}" if target is None else target
        if target:
            headers["location"] = target
        self.send(request, 302, headers, b"")

    def body(self, request, headers: dict, name: str, file: str):
        content = self.wrong.get(file, self.repositories[name].files[file])
        start, status, extra = 0, 200, {}
        if self.knows_ranges and (wanted := headers.get("range")):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            if start >= len(content):
                return self.send(request, 416, {"content-range": f"bytes */{len(content)}"}, b"")
            status = 206
            extra = {"content-range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        rest = content[start:]
        cuts = self.cuts.get(file)
        if not cuts:
            return self.send(request, status, extra, rest)
        self.send(request, status, extra, rest[: cuts.pop(0)], announced=len(rest))
        request.wfile.flush()
        if self.stall:
            self.stalled.set()
            self.release.wait()
        request.close_connection = True

    def refuse(self, request, status: int, message: str):
        self.send(request, status, {"x-error-message": message}, b"{}")

    def send(self, request, status: int, headers: dict, body: bytes, announced=None):
        request.send_response(status)
        length = len(body) if announced is None else announced
        for key, value in (headers | {"content-length": str(length)}).items():
            request.send_header(key, value)
        request.end_headers()
        request.wfile.write(body)
