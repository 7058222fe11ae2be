"""A web server of files on the loopback that gives ranges, misbehaves where it is told to, and counts."""

import contextlib
import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

# Of the environment; the loopback is not to be asked for by them.
PROXIES = [name for lower in ("http_proxy", "https_proxy", "all_proxy") for name in (lower, lower.upper())]


class RangeServer:
    """Serve files by ranges.

    `misbehave(path, start)` returns what a request is answered with: None (as it should be), a status, the place of a
    redirect in a tuple, "whole", "silence", or a key of `CHANGES`.
    """

    def __init__(self, files=()):
        self.files = dict(files)
        self.requests = []
        self.sent = 0
        self.etags = True
        self.modified = None
        self.needs = None
        self.misbehave = lambda path, start: None
        self.release = threading.Event()
        self._port = 0
        self.start()

    def start(self):
        self._server = _Server(("127.0.0.1", self._port), Handler)
        self._server.owner = self
        self._port = self._server.server_address[1]
        self._open = set()
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(2)

    @property
    def url(self):
        return f"http://127.0.0.1:{self._port}"

    @property
    def host(self):
        return f"127.0.0.1:{self._port}"

    def ranges(self, path):
        """The ranges of a file that were asked for, in their order."""
        return [asked for one, asked in self.requests if urlsplit(one).path == path]

    def etag(self, content):
        return f'"{hashlib.sha256(content).hexdigest()[:16]}"'


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_):
        """Say nothing: clients hang up on what they do not take."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.server.owner._open.add(self.connection)

    def finish(self):
        self.server.owner._open.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_):
        pass

    def do_GET(self):
        owner = self.server.owner
        parts = urlsplit(self.path)
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = map(int, found.groups()) if found else (0, None)
        owner.requests.append((self.path, (first, last)))
        self.last_headers = dict(self.headers)
        action = owner.misbehave(self.path, first)
        if owner.needs is not None and not owner.needs(self):
            action = 401
        path = unquote(parts.path)
        if isinstance(action, int):
            self._say(action, b"secret words of the server")
        elif isinstance(action, tuple):
            self._head(302, {"Location": action[0], "Content-Length": "0"})
        elif path not in owner.files:
            self._say(404, b"")
        else:
            with contextlib.suppress(OSError):
                self._give(owner.files[path], first, last, action)

    def _say(self, status, body):
        self._head(status, {"Content-Length": str(len(body))})
        self.wfile.write(body)

    def _head(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _give(self, content, first, last, action):
        owner = self.server.owner
        marks = {"ETag": owner.etag(content)} if owner.etags else {}
        if owner.modified:
            marks["Last-Modified"] = owner.modified
        total = len(content)
        if action == "silence":
            owner.release.wait(20)
            self.close_connection = True
        elif action == "whole" or last is None:
            self._head(200, marks | {"Content-Length": str(total)})
            self._send(content)
        elif first >= total:
            self._head(416, marks | {"Content-Range": f"bytes */{total}", "Content-Length": "0"})
        else:
            last = min(last, total - 1)
            body = content[first : last + 1]
            said = {"Content-Range": f"bytes {first}-{last}/{total}", "Content-Length": str(len(body))}
            changes, body = CHANGES.get(action, lambda *_: ({}, body))(body, first, last, total)
            said = {name: value for name, value in (marks | said | changes).items() if value is not None}
            self.close_connection = self.close_connection or action in CLOSING
            self._head(206, said | ({"Connection": "close"} if self.close_connection else {}))
            self._send(body)

    def _send(self, body):
        for start in range(0, len(body), 2**16):
            part = body[start : start + 2**16]
            self.wfile.write(part)
            self.server.owner.sent += len(part)


# What is said and given otherwise than asked for.
CHANGES = {
    "shifted": lambda body, first, last, total: ({"Content-Range": f"bytes {first + 1}-{last + 1}/{total}"}, body),
    "no range": lambda body, *_: ({"Content-Range": None}, body),
    "no size": lambda body, first, last, _: ({"Content-Range": f"bytes {first}-{last}/*"}, body),
    "longer": lambda body, *_: ({"Content-Length": str(len(body) + 4)}, body + b"more"),
    # Without a length: more, and less, than the range.
    "endless": lambda body, *_: ({"Content-Length": None}, body + bytes(2**16)),
    "brief": lambda body, *_: ({"Content-Length": None}, body[: len(body) // 2]),
    "compressed": lambda body, *_: ({"Content-Encoding": "gzip"}, body),
    "cut": lambda body, *_: ({}, body[: len(body) // 2]),
}
CLOSING = ("endless", "brief", "cut")
