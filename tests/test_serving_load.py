"""The load tool measures what it says: replies, failures, and latencies from the time at which a request was due."""

import asyncio
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from serving_load.connections import NO_REPLY, Address, Connections, encoded_request  # noqa: E402
from serving_load.measuring import offer, saturate  # noqa: E402

REQUEST = encoded_request("POST", "/v1/tasks", "ml_a", {"a": 1}, "Idempotency-Key: k\r\n")


class StandIn:
    """A server in this process that answers after a time, one request after the other; every `fails`-th it drops.

    With `keeps` it closes a connection after so many answers.
    """

    def __init__(self, seconds=0.0, fails=0, keeps=10**9):
        self.seconds, self.fails, self.keeps, self.requests = seconds, fails, keeps, []
        self._one_at_a_time = asyncio.Lock()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.address = Address(*self.server.sockets[0].getsockname()[:2])
        return self

    async def __aexit__(self, *error):
        self.server.close()

    async def serve(self, reader, writer):
        try:
            for _ in range(self.keeps):
                self.requests.append(await reader.readuntil(b"}"))
                if self.fails and len(self.requests) % self.fails == 0:
                    break
                async with self._one_at_a_time:
                    await asyncio.sleep(self.seconds)
                writer.write(b'HTTP/1.1 201 Created\r\nContent-Length: 7\r\nX-A: b\r\n\r\n{"a":2}')
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    def cpu_seconds(self):
        return 0.0

    def rss_mb(self):
        return 0.0


def test_a_request_and_its_reply():
    async def scenario():
        async with StandIn() as server, Connections(server.address, 1) as connections:
            return [await connections.send(REQUEST) for _ in range(2)], server.requests

    replies, requests = asyncio.run(scenario())
    assert [(reply.status, reply.value) for reply in replies] == [(201, {"a": 2})] * 2
    head, body = requests[0].split(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/tasks HTTP/1.1\r\n") and body == b'{"a": 1}'
    assert {b"Authorization: Bearer ml_a", b"Idempotency-Key: k", b"Content-Length: 8"} <= set(head.split(b"\r\n"))


def test_a_dropped_connection_is_opened_again():
    async def scenario():
        async with StandIn(fails=2) as server, Connections(server.address, 1) as connections:
            return [await connections.send(REQUEST) for _ in range(4)]

    assert [reply is NO_REPLY for reply in asyncio.run(scenario())] == [False, True, False, True]


def test_a_connection_that_the_service_has_closed_while_idle_is_no_error():
    async def scenario():
        async with StandIn(keeps=1) as server, Connections(server.address, 1) as connections:
            replies = []
            for _ in range(3):
                replies.append(await connections.send(REQUEST))
                await asyncio.sleep(0.05)
            return replies

    assert [reply.status for reply in asyncio.run(scenario())] == [201, 201, 201]


def test_a_late_service_is_seen_to_be_late():
    async def scenario():
        async with StandIn(seconds=0.02) as server:
            return await offer(server, lambda number: REQUEST, rate=200, seconds=0.2, clients=2)

    figures = asyncio.run(scenario())
    assert figures["requests"] == 40 and figures["errors"] == {}
    assert figures["p99_ms"] > 400  # 40 requests of 20 ms were due within 200 ms


def test_errors_are_counted_by_their_status():
    async def scenario():
        async with StandIn(fails=3) as server:
            return await saturate(server, lambda number: REQUEST, seconds=0.1, clients=1)

    figures = asyncio.run(scenario())
    assert figures["errors"]["0"] == pytest.approx(figures["requests"] / 3, abs=1)
