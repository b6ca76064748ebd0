"""A real S3 server on loopback that counts what it is asked, and a wire to it that breaks when it is told to."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Asked(NamedTuple):
    method: str
    path: str
    """/bucket/key"""
    range: str | None


class Store:
    """moto's server, in this process. `put` makes what it needs; `url` is what AWS_ENDPOINT_URL should be."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
        from werkzeug.serving import make_server

        self.asked: list[Asked] = []
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, True, request_handler=MotoRequestHandler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        self.asked.append(Asked(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_RANGE")))
        return self._app(environ, start)

    def put(self, bucket: str, key: str, content: bytes | Path) -> str:
        """Returns its address."""
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        if bucket not in backend.buckets:
            backend.create_bucket(bucket, "us-east-1")
        backend.put_object(bucket, key, content if isinstance(content, bytes) else content.read_bytes())
        return f"s3://{bucket}/{key}"

    def put_folder(self, bucket: str, root: str, folder: Path) -> str:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(bucket, f"{root}/{path.relative_to(folder).as_posix()}".lstrip("/"), path)
        return f"s3://{bucket}/{root}"

    def gets(self, uri: str) -> list[str | None]:
        """The ranges that were asked of an object, in order; None for all of it."""
        path = "/" + uri.removeprefix("s3://")
        return [one.range for one in self.asked if one.method == "GET" and one.path == path]

    def heads(self, uri: str) -> int:
        return sum(one.method == "HEAD" and one.path == "/" + uri.removeprefix("s3://") for one in self.asked)

    def close(self) -> None:
        self._server.shutdown()


class Wire:
    """Carries connections to a port of this machine. `cuts`: after how many more bytes of answers the connection that
    carries them is closed (`resets`: so that what was on its way is lost too), one number after the other; `hold`:
    after how many all answers wait for `go_on`."""

    def __init__(self, port: int) -> None:
        self.cuts: list[int] = []
        self.resets = False
        self.hold: int | None = None
        self.carried = 0
        """Bytes of answers."""
        self._port, self._going, self._lock = port, threading.Event(), threading.Lock()
        self._going.set()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def go_on(self) -> None:
        self.hold = None
        self._going.set()

    def close(self) -> None:
        self.go_on()
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                threading.Thread(target=self._carry, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._carry, args=(server, client, True), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 15):
                passed = self._passed(len(data)) if answers else len(data)
                sink.sendall(data[:passed])
                if passed < len(data):
                    if self.resets:
                        sink.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        sink.shutdown(socket.SHUT_RD)  # wakes the thread of the other direction, which closes it too
                        source.close()
                        sink.close()
                        return
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _passed(self, size: int) -> int:
        """How many of so many bytes come through; the connection is to be cut where they are not all."""
        self._going.wait()
        with self._lock:
            if self.cuts and self.cuts[0] < size:
                size = self.cuts.pop(0)
            elif self.cuts:
                self.cuts[0] -= size
            self.carried += size
            if self.hold is not None:
                self.hold -= size
                if self.hold <= 0:
                    self._going.clear()
            return size


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def wire_to(store: Store) -> Iterator[Wire]:
    wire = Wire(store.port)
    try:
        yield wire
    finally:
        wire.close()
