"""A network that can be told to fail: an HTTP proxy on loopback before a real server."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Mode = Literal["pass", "down", "slow", "refuse", "cut"]
SLOW_SEC = 0.7
HOP_HEADERS = ("transfer-encoding", "connection", "content-length", "keep-alive")


class Proxy:
    """Passes requests on to `upstream` under an address that stays, in a `mode`:

    pass    as they are
    down    the connection closes without a word, as that of a killed server
    slow    each request waits SLOW_SEC first
    refuse  each request is answered with `status`
    cut     the connection closes in the middle: of the request's body where it has one, else of
            the answer's
    """

    def __init__(self, upstream: str, *, status: int = 503):
        self.upstream, self.status, self.mode = upstream, status, "pass"
        self.struck = 0  # requests that did not pass as they were
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed in mid-sentence is what this is for."""


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            mode, length = proxy.mode, int(self.headers.get("Content-Length") or 0)
            proxy.struck += mode != "pass"
            if mode == "down":
                return self._hang_up()
            if mode == "cut" and length > 1:
                self.rfile.read(length // 2)
                return self._hang_up()
            body = self._body(length)
            if mode == "refuse":
                return self._answer(proxy.status, [("Retry-After", "1")], b"told to refuse")
            if mode == "slow":
                time.sleep(SLOW_SEC)
            try:
                status, headers, content = self._passed_on(body)
            except (OSError, http.client.HTTPException):  # the server itself is gone
                return self._hang_up()
            if mode == "cut" and len(content) > 1:
                self._head(status, headers, len(content))
                self.wfile.write(content[: len(content) // 2])
                return self._hang_up()
            return self._answer(status, headers, content)

        do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET

        def _body(self, length: int) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(length)
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return body

        def _passed_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            target = urlsplit(proxy.upstream)
            connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
            # The client's own Host stays: an S3 request is signed with it.
            drop = ("transfer-encoding", "content-length", "connection", "expect")
            headers = {k: v for k, v in self.headers.items() if k.lower() not in drop}
            if body or self.command in ("PUT", "POST"):
                headers["Content-Length"] = str(len(body))
            try:
                connection.request(self.command, self.path, body or None, headers)
                answer = connection.getresponse()
                content = answer.read()
                told = answer.getheaders()
                if self.command == "HEAD":
                    told = [(k, v) for k, v in told if k.lower() != "content-length"]
                    told.append(("Content-Length", answer.getheader("Content-Length") or "0"))
                return answer.status, told, content
            finally:
                connection.close()

        def _head(self, status: int, headers: list[tuple[str, str]], length: int) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if self.command == "HEAD" or name.lower() not in HOP_HEADERS:
                    self.send_header(name, value)
            if self.command != "HEAD" and status != 204:
                self.send_header("Content-Length", str(length))
            self.end_headers()

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            try:
                self._head(status, headers, len(content))
                if self.command != "HEAD":
                    self.wfile.write(content)
            except OSError:  # the client did not wait
                self.close_connection = True

        def _hang_up(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
