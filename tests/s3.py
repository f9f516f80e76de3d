"""A real S3 API for tests, and a proxy before it that breaks what it is told to break."""

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOPS = {"connection", "transfer-encoding", "keep-alive", "content-length"}


@dataclass
class Fault:
    """What happens to requests of a method whose path holds a text, so many times."""

    method: str
    text: str
    how: str
    """error: answered 500; cut: the connection ends amid the request; stall: no answer; truncate:
    the connection ends amid the answer; short: half the answer, as if it were all; flip: a byte of
    the answer is another; shut: the answer never arrives, though the request was obeyed."""
    times: int = 10**9
    met: int = 0


@dataclass
class Proxy:
    """Passes requests on to a server, but for its `faults`; `seen` are (method, path, bytes of
    request and answer)."""

    target: tuple[str, int]
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str, int]] = field(default_factory=list)
    stall: float = 8.0
    lock: threading.Lock = field(default_factory=threading.Lock)
    port: int = 0

    def start(self) -> ThreadingHTTPServer:
        proxy = self

        class Handler(_Handler):
            def respond(self) -> None:
                proxy.pass_on(self)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    @contextmanager
    def failing(self, method: str, text: str, how: str, times: int = 10**9) -> Iterator[Fault]:
        fault = Fault(method, text, how, times)
        self.faults.append(fault)
        try:
            yield fault
        finally:
            self.faults.remove(fault)

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method == method and fault.text in path and fault.met < fault.times:
                    fault.met += 1
                    return fault
        return None

    def pass_on(self, request: "_Handler") -> None:
        fault = self.fault(request.command, request.path)
        how = fault.how if fault else ""
        if how == "cut":
            request.rfile.read(min(100, int(request.headers.get("Content-Length", 100))))
            return request.hang_up()
        body = request.body()
        if how == "stall":
            time.sleep(self.stall)
            return request.hang_up()
        if how == "error":
            return request.answer(500, [], b"<Error><Code>InternalError</Code></Error>")
        status, headers, data = self.ask(request, body)
        self.seen.append((request.command, request.path, len(body) + len(data)))
        if how == "shut":
            return request.hang_up()
        if how == "short":
            data = data[: len(data) // 2]
        if how == "flip" and data:
            data = data[:-1] + bytes([data[-1] ^ 1])
        request.answer(status, headers, data, cut=how == "truncate")
        return None

    def ask(self, request: "_Handler", body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self.target, timeout=60)
        dropped = HOPS | {"expect"}
        headers = {k: v for k, v in request.headers.items() if k.lower() not in dropped}
        connection.request(request.command, request.path, body, headers)
        answer = connection.getresponse()
        found = answer.status, answer.getheaders(), answer.read()
        connection.close()
        return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def respond(self) -> None:
        raise NotImplementedError

    def do_GET(self) -> None:
        self.respond()

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def body(self) -> bytes:
        """The request's body, however it is framed."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        length = str(len(data))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            if name.lower() not in HOPS:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.wfile.flush()
            self.hang_up()


class Bucket:
    """A bucket of its own, reached through a proxy of its own."""

    def __init__(self, name: str, server: tuple[str, int]) -> None:
        self.name, self.server = name, server
        self.proxy = Proxy(server)
        self._listening = self.proxy.start()

    def uri(self, path: str = "", direct: bool = False) -> str:
        port = self.server[1] if direct else self.proxy.port
        place = f"s3://{self.name}/{path}".rstrip("/")
        return f"{place}?endpoint_override=127.0.0.1:{port}&scheme=http"

    def objects(self, prefix: str = "") -> dict[str, int]:
        """Sizes of the objects, asked with another client; without markers of folders."""
        pages = self.client().get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=self.name, Prefix=prefix)
        return {o["Key"]: o["Size"] for page in found for o in page.get("Contents", [])
                if not o["Key"].endswith("/")}  # fmt: skip

    def client(self):
        import boto3

        host, port = self.server
        return boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")

    def close(self) -> None:
        self._listening.shutdown()
        self._listening.server_close()
