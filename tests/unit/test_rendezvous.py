"""Endpoints as they are written, and links between launchers: whole lines, strangers, silence."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from suite.case import case_from
from suite.follow import Called, following
from suite.launch import Launcher
from suite.nodes import Follower, Others, recording
from suite.parse import SpecError
from suite.ranklog import read_rank
from suite.rendezvous import Endpoint, Link, free_port

pytestmark = pytest.mark.unit

CASE = case_from({"model": {"layers": 1}, "layout": {"dp": 2}, "cluster": {"nodes": 2}})


@contextlib.contextmanager
def joined() -> Iterator[tuple[Link, socket.socket]]:
    """A link, and the bare socket at its other end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        bare = socket.create_connection(server.getsockname())
        link = Link(server.accept()[0])
        with bare, contextlib.closing(link):
            yield link, bare


@pytest.mark.parametrize(
    "text, host, port", [("node7:29500", "node7", 29500), ("10.0.0.1:1", "10.0.0.1", 1), ("[::1]:65535", "::1", 65535)]
)
def test_endpoints(text: str, host: str, port: int) -> None:
    endpoint = Endpoint.parse(text, "--rdzv")
    assert (endpoint.host, endpoint.port, str(endpoint)) == (host, port, text)


@pytest.mark.parametrize("text", ["", "node7", ":29500", "node7:", "node7:0", "node7:65536", "node7:x", "::1:29500"])
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(SpecError, match=r"^--rdzv: .* is not HOST:PORT; give "):
        Endpoint.parse(text, "--rdzv")


@pytest.mark.parametrize("host, here", [("127.0.0.1", True), (socket.gethostname(), True), ("192.0.2.1", False)])
def test_whether_a_host_is_this_machine(host: str, here: bool) -> None:
    assert Endpoint(host, 29500).is_here() is here


def test_a_line_in_pieces_and_two_at_once() -> None:
    with joined() as (link, bare):
        bare.sendall(b'{"rows": ')
        assert link.receive(0.1) is None
        bare.sendall(b'{}}\n{"stop": true}\n{"b')
        assert link.receive(1) == {"rows": {}}
        assert link.receive(0) == {"stop": True}
        assert link.receive(0) is None
        bare.close()
        with pytest.raises(ConnectionError, match=r"^connection closed$"):
            link.receive(1)


@pytest.mark.parametrize("line", [b"GET / HTTP/1.1\n", b"[1]\n", b"\xff\n"])
def test_a_link_that_carries_something_else(line: bytes) -> None:
    with joined() as (link, bare):
        bare.sendall(line)
        with pytest.raises(ConnectionError, match=r"^it sends something else than rows: "):
            link.receive(1)


def test_a_stranger_is_passed_over_and_the_machine_that_comes_is_greeted() -> None:
    endpoint = Endpoint("127.0.0.1", free_port("127.0.0.1"))
    heard: list[tuple[int, int]] = []

    def come() -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with (
                contextlib.suppress(ConnectionRefusedError),
                socket.create_connection((endpoint.host, endpoint.port)) as bare,
            ):
                bare.sendall(b"GET / HTTP/1.1\r\n\r\n")
                break
        with following(endpoint, {CASE.case_id: CASE}, 10) as (link, node, nodes):
            heard.append((node, nodes))
            assert link.receive(10) == {"bye": True}

    visitor = threading.Thread(target=come)
    visitor.start()
    with recording(endpoint, 2, Launcher("none"), 10) as recorder:
        [follower] = recorder.followers
        assert (follower.node, follower.cases) == (1, (CASE.case_id,))
        assert abs(follower.clock_lead_s) < 1
    visitor.join(10)
    assert heard == [(1, 2)]


@pytest.mark.parametrize(
    "line, why",
    [
        (b'{"rows": {"7": "x"}}\n', "rank 7 of 2 is none of this case"),
        (b'{"rows": {"../x": "x"}}\n', "rows key: expected a whole number, got '../x'"),
        (b'{"rows": 3}\n', "rows: expected an object with keys, got 3"),
        (b'{"ended": {"code": 0}}\n', "ended.exits: missing; it has no default"),
        (b"", "connection closed"),
    ],
)
def test_a_machine_that_sends_nonsense_is_lost_and_nothing_is_written(line: bytes, why: str, tmp_path: Path) -> None:
    with joined() as (link, bare):
        others = Others([Follower(1, link, (), 0.0)], tmp_path, 2, settle_s=0.0)
        bare.sendall(line)
        if not line:
            bare.close()
        assert others.look(0.2)
        assert others.losses() == (f"no row of its ranks yet: node 1 (127.0.0.1) is gone ({why})",)
        assert list(tmp_path.iterdir()) == []


def test_rows_are_written_as_they_come_and_a_machine_that_goes_is_named_by_its_ranks(tmp_path: Path) -> None:
    with joined() as (link, bare):
        others = Others([Follower(1, link, (), 0.0)], tmp_path, 2, settle_s=60.0)
        bare.sendall(b'{"rows": {"1": "{\\"heartbeat\\": \\"step 3\\"}\\n"}}\n')
        assert not others.look(0.2)
        assert read_rank(tmp_path, 1).heartbeat == "step 3"
        bare.close()
        assert not others.look(0.2)  # the rest has its time to end
        assert others.losses() == ("rank 1: node 1 (127.0.0.1) is gone (connection closed)",)


def test_a_follower_sends_whole_rows_once(tmp_path: Path) -> None:
    rows = tmp_path / "rank-1.jsonl"
    with joined() as (link, bare):
        called, there = Called(link, tmp_path), bare.makefile()
        rows.write_text('{"heartbeat": "a"}\n{"hea')
        called.send_rows()
        with rows.open("a") as file:
            file.write('rtbeat": "b"}\n')
        called.send_rows()
        called.send_rows()
        link.send({"ended": True})
        sent = [json.loads(there.readline()) for _ in range(3)]
        assert sent == [
            {"rows": {"1": '{"heartbeat": "a"}\n'}},
            {"rows": {"1": '{"heartbeat": "b"}\n'}},
            {"ended": True},
        ]
