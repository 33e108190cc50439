"""A proxy on loopback that breaks what passes it, in front of an S3 store or an MLflow server.

    with FaultyProxy("http://127.0.0.1:9000", seed=3) as proxy:
        ...                      # clients talk to proxy.uri
        proxy.mode, proxy.share = "cut", 0.3   # at any time, from the test
        ...
        proxy.mode = None        # whole again

Modes, each for `share` of the requests (drawn from `seed`, in the order they come):
- None      all pass
- "503"     answered 503 SlowDown; the server never hears of it
- "cut"     the connection breaks: in the middle of the answer's body (before it, where it is
            short), or, for half of the large uploads, in the middle of what is sent
- "lost"    the server does what is asked, and the connection closes without an answer
- "slow"    passed on after `slow_sec`
- "silent"  swallowed: the connection stays open and nothing comes

`applies` narrows the faults to some requests: `proxy.applies = lambda method, path: ...`.
`faults` counts what was done to whom: (mode, method, path).
"""

from __future__ import annotations

import http.client
import random
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Mode = Literal["503", "cut", "lost", "slow", "silent"]
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}
PIECE = 64 * 1024
BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>busy</Message></Error>"


@dataclass
class FaultyProxy:
    """See above."""

    upstream: str
    seed: int = 0
    mode: Mode | None = None
    share: float = 1.0
    slow_sec: float = 1.0
    applies: Callable[[str, str], bool] = lambda method, path: True
    faults: list[tuple[str, str, str]] = field(default_factory=list)
    passed: int = 0
    uri: str = ""

    def __enter__(self) -> FaultyProxy:
        self._dice, self._lock = random.Random(self.seed), threading.Lock()
        self._closing = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 120

            def do_GET(self) -> None:
                try:
                    proxy._serve(self)
                except OSError:  # the client went, or the server is away
                    proxy._hang_up(self)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a connection that a client dropped

        self._server = Server(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _fault(self, method: str, path: str) -> tuple[Mode | None, bool]:
        """What to do to a request, and a coin."""
        with self._lock:
            mode = self.mode
            if mode is None or not self.applies(method, path):
                return None, False
            hit, coin = self._dice.random() < self.share, self._dice.random() < 0.5
            if not hit:
                return None, False
            self.faults.append((mode, method, urlsplit(path).path))
            return mode, coin

    def _serve(self, client: BaseHTTPRequestHandler) -> None:
        fault, coin = self._fault(client.command, client.path)
        length = int(client.headers.get("Content-Length") or 0)
        if fault == "silent":
            self._closing.wait(600)
            self._hang_up(client)
            return
        if fault == "cut" and coin and length > PIECE:
            client.rfile.read(length // 2)
            self._hang_up(client)
            return
        body = client.rfile.read(length)
        if fault == "slow":
            self._closing.wait(self.slow_sec)
        if fault == "503":
            client.send_response(503)
            client.send_header("Content-Length", str(len(BUSY)))
            client.end_headers()
            if client.command != "HEAD":
                client.wfile.write(BUSY)
            return
        self._pass_on(client, body, fault)

    def _pass_on(self, client: BaseHTTPRequestHandler, body: bytes, fault: Mode | None) -> None:
        target = urlsplit(self.upstream)
        server = http.client.HTTPConnection(target.hostname or "", target.port, timeout=120)
        try:
            # Host is signed, so the server must see the one that the client meant.
            server.putrequest(
                client.command, client.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in client.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    server.putheader(name, value)
            if body or client.command in ("PUT", "POST", "PATCH"):
                server.putheader("Content-Length", str(len(body)))
            server.endheaders(body)
            answer = server.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            self._hang_up(client)  # the server is away: so are we
            return
        finally:
            server.close()
        if fault == "lost" or (fault == "cut" and len(content) < 2):
            self._hang_up(client)
            return
        client.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP_BY_HOP:
                client.send_header(name, value)
        length = answer.getheader("Content-Length") if client.command == "HEAD" else None
        client.send_header("Content-Length", length or str(len(content)))
        client.end_headers()
        if fault == "cut":
            client.wfile.write(content[: len(content) // 2])
            client.wfile.flush()
            self._hang_up(client)
            return
        client.wfile.write(content)
        self.passed += 1

    def _hang_up(self, client: BaseHTTPRequestHandler) -> None:
        client.close_connection = True
        with suppress(OSError):
            client.connection.shutdown(socket.SHUT_RDWR)
