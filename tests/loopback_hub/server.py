"""The sockets: two origins on loopback, and a proxy that lets nothing out."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from loopback_hub.messages import CDN, HUB, Answer, Request

HOST = "127.0.0.1"
Responder = Callable[[Request], Answer | None]
"""Gives the answer to a request; None breaks the connection without one."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, origin: str, respond: Responder) -> None:
        super().__init__((HOST, 0), _Handler)
        self.origin, self.respond = origin, respond

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report errors but those of a client that has gone away."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One segment an answer: with an unbuffered header each would wait for a delayed ACK.
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _Server

    def _handle(self) -> None:
        answer = self.server.respond(self._read())
        if answer is None:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: answer.sent])
        self.wfile.flush()
        if answer.sent is not None:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_CONNECT = _handle  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing: the requests are kept."""

    def _read(self) -> Request:
        headers = {name.lower(): value for name, value in self.headers.items()}
        target, origin = self.path, self.server.origin
        if self.command == "CONNECT":
            origin = target
        elif not target.startswith("/"):
            # A client that takes this server for its proxy asks for another host.
            address = urlsplit(target)
            origin, target = address.netloc, address._replace(scheme="", netloc="").geturl()
        return Request(self.command, target, headers, self._read_body(headers), origin)

    def _read_body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(headers.get("content-length", "0")))
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


def serve(respond: Responder) -> tuple[str, str]:
    """Answer requests from threads that end with the process.

    Returns:
        The addresses of the Hub and of the CDN.
    """
    addresses = []
    for origin in (HUB, CDN):
        server = _Server(origin, respond)
        threading.Thread(
            target=server.serve_forever, name=f"loopback-{origin}", daemon=True
        ).start()
        addresses.append(f"http://{HOST}:{server.server_address[1]}")
    return addresses[0], addresses[1]
