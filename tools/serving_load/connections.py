"""Requests over connections that stay open, with little work for each, so that the client is not what is measured."""

import asyncio
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Address:
    """Where a service listens.

    Attributes:
        host: Name or number of the host.
        port: Port.
    """

    host: str
    port: int


@dataclass(frozen=True)
class Reply:
    """A reply.

    Attributes:
        status: The HTTP status; 0 if the connection failed before there was one.
        body: The content.
    """

    status: int
    body: bytes

    @property
    def value(self):
        """The content as JSON."""
        return json.loads(self.body)


NO_REPLY = Reply(0, b"")


def encoded_request(method: str, path: str, key: str, body: object = None, headers: str = "") -> bytes:
    """Return a request as it goes over the wire.

    Args:
        method: GET, POST or DELETE.
        path: The path.
        key: The API key.
        body: What JSON can hold, or None.
        headers: Further headers, each with its line end.
    """
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: service\r\nAuthorization: Bearer {key}\r\n{headers}"
    if body is not None:
        head += "Content-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


class Connection:
    """A connection, which is opened again after a failure.

    Args:
        address: Where the service listens.
    """

    def __init__(self, address: Address):
        self.address = address
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> Reply:
        """Send a request and return its reply; NO_REPLY if the connection fails."""
        try:
            if self._streams is not None and self._streams[0].at_eof():  # the service closes what is idle for long
                self.close()
            if self._streams is None:
                self._streams = await asyncio.open_connection(self.address.host, self.address.port, limit=2**22)
            reader, writer = self._streams
            writer.write(request)
            return await self._read_reply(reader)
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return NO_REPLY

    async def _read_reply(self, reader: asyncio.StreamReader) -> Reply:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        start = head.find(b"content-length:")
        length = 0 if start < 0 else int(head[start + 15 : head.index(b"\r\n", start)])
        body = await reader.readexactly(length) if length else b""
        if b"connection: close" in head:
            self.close()
        return Reply(int(head[9:12]), body)

    def close(self) -> None:
        """Close the connection; the next request opens it again."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Connections:
    """Several connections; a request takes one that is free.

    Args:
        address: Where the service listens.
        count: How many.
    """

    def __init__(self, address: Address, count: int):
        self._all = [Connection(address) for _ in range(count)]
        self._free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        for connection in self._all:
            self._free.put_nowait(connection)

    async def send(self, request: bytes) -> Reply:
        """Send a request by a free connection, and return its reply."""
        connection = await self._free.get()
        try:
            return await connection.send(request)
        finally:
            self._free.put_nowait(connection)

    async def __aenter__(self) -> "Connections":
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._all:
            connection.close()
