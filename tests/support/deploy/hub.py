"""A Hugging Face Hub of one repository at one commit: what `hf download` and `hf cache verify` ask for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0ffee" * 6 + "c0ff"


def blob(content: bytes) -> str:
    """Git's hash of a file, which the Hub tells of those that are not in its large storage."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Hub:
    """Where it is, what was taken of it, and which files come damaged."""

    address: str = ""
    taken: list[str] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)


@contextmanager
def hub(repository: str, files: dict[str, bytes], token: str) -> Iterator[Hub]:
    """Serves ``files`` to whoever has the token; those of 64 bytes or more are in the large storage."""
    state = Hub()

    def entry(path: str, content: bytes) -> dict[str, Any]:
        found = {"type": "file", "path": path, "size": len(content), "oid": blob(content)}
        if len(content) >= 64:
            found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return found

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            api, resolve = f"/api/models/{repository}", f"/{repository}/resolve/"
            if self.headers.get("Authorization") != f"Bearer {token}":
                self._answer(401, b"{}")
            elif path.startswith(f"{api}/tree/"):
                self._answer(200, json.dumps([entry(*each) for each in files.items()]).encode())
            elif path.startswith(f"{api}/revision/") or path == api:
                siblings = [{"rfilename": name} for name in files]
                self._answer(200, json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode())
            elif path.startswith(resolve) and (name := path.removeprefix(resolve).partition("/")[2]) in files:
                content = files[name]
                if self.command == "GET":
                    state.taken.append(name)
                about = entry(name, content)
                etag = about.get("lfs", about)["oid"]
                sent = content[::-1] if name in state.damaged else content
                self._answer(200, sent, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
            else:
                self._answer(404, b"{}")

        def _answer(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
