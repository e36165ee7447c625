"""Servers of buckets on loopback, and a proxy that throttles, refuses, cuts and hangs when told."""

from __future__ import annotations

import contextlib
import http.client
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

import requests

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your rate.</Message></Error>"
EXPIRED = (
    b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
)
DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@dataclass
class Fault:
    """What happens to the next `times` requests of a method whose path holds `where`."""

    method: str
    where: str
    action: str
    """`slow down`, `deny`, `expire`, `cut upload`, `cut download` or `hang`."""
    times: int = 10**9


@dataclass
class Proxy:
    """Stands between pyarrow and the S3 server, and breaks what it is told to."""

    target: int
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[float, str, str, str]] = field(default_factory=list)
    """(time, method, path, fault) of each request."""
    port: int = 0

    def fault(self, method: str, path: str) -> str:
        found = ""
        for fault in self.faults:
            if not found and fault.times and fault.method == method and fault.where in path:
                fault.times -= 1
                found = fault.action
        self.seen.append((time.monotonic(), method, path, found))
        return found

    def attempts(self, method: str, where: str) -> list[float]:
        """When requests of this kind came."""
        return [when for when, verb, path, _ in self.seen if verb == method and where in path]


def handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():  # trailers: checksums
                pass
            return b"".join(parts)

        def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = dict(headers).get("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def relay(self) -> None:
            fault = proxy.fault(self.command, self.path)
            if fault == "cut upload":
                self.rfile.read(50)  # some of it has arrived
                return self.hang_up()
            body = self.body()
            if fault == "slow down":
                return self.answer(503, [], SLOW_DOWN)
            if fault == "deny":
                return self.answer(403, [], DENIED)
            if fault == "expire":
                return self.answer(400, [], EXPIRED)
            if fault == "hang":
                time.sleep(30)
                return self.hang_up()
            server = http.client.HTTPConnection("127.0.0.1", proxy.target)
            skip = ("connection", "transfer-encoding", "content-length")
            headers = {k: v for k, v in self.headers.items() if k.lower() not in skip}
            server.request(self.command, self.path, body, headers)
            response = server.getresponse()
            data = response.read()
            if fault == "cut download":
                self.send_response_only(response.status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
                return self.hang_up()
            return self.answer(response.status, response.getheaders(), data)

        def hang_up(self) -> None:
            self.close_connection = True

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = relay  # noqa: N815 - names of http.server

    return Handler


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, *_: object) -> None:
        """A client that gave up is what these tests are about."""


S3_SERVER = ("-m", "moto.server", "-H", "127.0.0.1", "-p")


@contextlib.contextmanager
def serving(*command: str) -> Iterator[int]:
    """The port of a server that this Python runs, a process of its own."""
    with Server(("127.0.0.1", 0), BaseHTTPRequestHandler) as probe:
        port = int(probe.server_address[1])
    process = subprocess.Popen(
        [sys.executable, *command, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                requests.get(f"http://127.0.0.1:{port}/", timeout=5)
                break
            except requests.ConnectionError:
                assert process.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server did not come up"
                time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def standing_before(port: int) -> Iterator[Proxy]:
    """A proxy before an S3 server, which gets a bucket called `bucket`."""
    proxy = Proxy(port)
    with Server(("127.0.0.1", 0), handler(proxy)) as server:
        proxy.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        requests.put(f"http://127.0.0.1:{proxy.port}/bucket", timeout=30).raise_for_status()
        yield proxy
        server.shutdown()


def environment_of(proxy: Proxy) -> dict[str, str]:
    """What makes `s3://bucket` be behind a proxy: the endpoint and the keys."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
