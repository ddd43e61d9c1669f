"""Messages of the Android Debug Bridge, device side: one connection, many streams on it.

A message is six little-endian words (command, two arguments, length and sum of the data, the
command's complement) and the data. ``OPEN`` makes a stream for a named service; each ``WRTE`` on it
is answered with ``OKAY`` before the next may be sent; ``CLSE`` ends it. The protocol is Android's
own, described in its sources (packages/modules/adb/protocol.txt).
"""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
from collections.abc import Callable

__all__ = ["Connection", "Stream"]

_HEADER = struct.Struct("<6I")
_CNXN, _AUTH, _OPEN, _OKAY, _CLSE, _WRTE = (
    int.from_bytes(name, "little")
    for name in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"CLSE", b"WRTE")
)
_TOKEN, _SIGNATURE = 1, 2
_VERSION_WITHOUT_SUMS = 0x01000001
_OLDEST_VERSION = 0x01000000
_MOST_DATA = 256 * 1024
_ALL_BITS = 0xFFFFFFFF


class Connection:
    """One client's connection: reads its messages until it ends, and serves each stream it opens.

    Args:
        sock: The accepted socket; closed here.
        banner: What the device says of itself, as in ``device::ro.product.name=x;features=a,b``.
        serve: Carries a stream's service out, in a thread of its own; when it returns, the stream
            is closed.
        authorized: Whether it lets the client in; else it asks for a key that it never accepts.
    """

    def __init__(
        self,
        sock: socket.socket,
        banner: str,
        serve: Callable[[str, Stream], None],
        *,
        authorized: bool = True,
    ) -> None:
        self._authorized = authorized
        self._socket = sock
        self._banner = banner.encode()
        self._serve = serve
        self._lock = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._threads: list[threading.Thread] = []
        self._version = _OLDEST_VERSION
        self.most_data = _MOST_DATA
        self._thread = threading.Thread(target=self._run, name="adbd connection", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def drop(self) -> None:
        """Break it, as when the cable is pulled; what was serving it notices."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def send_raw(self, data: bytes) -> None:
        """Send what is no message."""
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(data)

    def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        """Send a message.

        Raises:
            OSError: The connection is broken.
        """
        total = 0 if self._version >= _VERSION_WITHOUT_SUMS else sum(data) & _ALL_BITS
        header = _HEADER.pack(command, first, second, len(data), total, command ^ _ALL_BITS)
        with self._lock:
            self._socket.sendall(header + data)

    def _run(self) -> None:
        try:
            while True:
                command, first, second, size, _, check = _HEADER.unpack(self._read(_HEADER.size))
                if check != command ^ _ALL_BITS or size > 2**24:
                    return
                self._handle(command, first, second, self._read(size))
        except (OSError, EOFError):
            pass
        finally:
            for stream in list(self._streams.values()):
                stream.end()
            for thread in self._threads:
                thread.join()
            self._socket.close()

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            block = self._socket.recv(size - len(data))
            if not block:
                raise EOFError
            data += block
        return bytes(data)

    def _handle(self, command: int, first: int, second: int, data: bytes) -> None:
        if not self._authorized:
            if command == _CNXN or (command == _AUTH and first == _SIGNATURE):
                self.send(_AUTH, _TOKEN, 0, bytes(20))
        elif command == _CNXN:
            self._version = min(first, _VERSION_WITHOUT_SUMS)
            self.most_data = min(second, _MOST_DATA)
            self.send(_CNXN, self._version, _MOST_DATA, self._banner)
        elif command == _OPEN:
            stream = Stream(self, len(self._threads) + 1, first)
            self._streams[stream.local] = stream
            service = data.rstrip(b"\0").decode(errors="surrogateescape")
            thread = threading.Thread(
                target=self._serve_stream, args=(service, stream), name="adbd stream", daemon=True
            )
            self._threads.append(thread)
            self.send(_OKAY, stream.local, stream.remote)
            thread.start()
        elif command in (_WRTE, _OKAY, _CLSE):
            stream_there = self._streams.get(second)
            if stream_there is not None:
                stream_there.take(command, data)
            elif command == _WRTE:
                self.send(_CLSE, 0, first)

    def _serve_stream(self, service: str, stream: Stream) -> None:
        try:
            self._serve(service, stream)
        except (OSError, EOFError, struct.error):
            pass
        finally:
            stream.end()
            self._streams.pop(stream.local, None)
            with contextlib.suppress(OSError):
                self.send(_CLSE, stream.local, stream.remote)


class Stream:
    """A service's two directions.

    Attributes:
        connection: That it belongs to.
        local: Its number here.
        remote: Its number at the client.
    """

    def __init__(self, connection: Connection, local: int, remote: int) -> None:
        self.connection = connection
        self.local = local
        self.remote = remote
        self._allowed = threading.Semaphore(0)
        self._ended = threading.Event()
        self._blocks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._rest = b""

    @property
    def ended(self) -> bool:
        """Whether the client closed it, or is gone."""
        return self._ended.is_set()

    def take(self, command: int, data: bytes) -> None:
        if command == _WRTE:
            self._blocks.put(data)
        elif command == _OKAY:
            self._allowed.release()
        else:
            self.end()

    def end(self) -> None:
        self._ended.set()
        self._blocks.put(None)
        self._allowed.release()

    def write(self, data: bytes) -> None:
        """Send data; each message waits until the client has taken it.

        Raises:
            EOFError: The client closed the stream.
            OSError: The connection is broken.
        """
        most = self.connection.most_data
        for begin in range(0, len(data), most):
            if self.ended:
                raise EOFError
            self.connection.send(_WRTE, self.local, self.remote, data[begin : begin + most])
            self._allowed.acquire()

    def read_some(self) -> bytes:
        """The next block; empty at the end. The client may send another from here on."""
        if self._rest:
            block, self._rest = self._rest, b""
            return block
        block_there = self._blocks.get()
        if block_there is None:
            self._blocks.put(None)
            return b""
        with contextlib.suppress(OSError):
            self.connection.send(_OKAY, self.local, self.remote)
        return block_there

    def read(self, size: int) -> bytes:
        """So many bytes.

        Raises:
            EOFError: There are fewer.
        """
        data, self._rest = bytearray(self._rest), b""
        while len(data) < size:
            block = self.read_some()
            if not block:
                raise EOFError
            data += block
        self._rest = bytes(data[size:])
        return bytes(data[:size])
