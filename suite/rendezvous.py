"""Where the launchers of several machines meet: HOST:PORT, and links that carry JSON lines both ways.

It carries rows and orders between launchers only; ranks meet through torchrun. What arrives is read as data: a
machine that is told to run a case runs its own case of that id, and no path or command ever comes over a link.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from suite.parse import SpecError, require, shown

#: seconds between two attempts to reach the recording machine
RETRY_S = 0.5
#: seconds that a write may wait for a machine that reads no more
SEND_S = 10.0
#: a line longer than this is nobody's
LONGEST_LINE = 64 * 1024 * 1024
#: how the end of a connection is told, whatever the kernel calls it
CLOSED = "connection closed"
#: a machine that has lost its power says nothing: probed after 5 s of silence, given up 15 s later
KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


@dataclass(frozen=True)
class Endpoint:
    """A host's name or address, and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, where: str) -> Endpoint:
        """From HOST:PORT, or [ADDRESS]:PORT for IPv6. SpecError names `where`."""
        host, _, port = text.rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        is_port = port.isascii() and port.isdecimal() and 0 < int(port) < 65536
        require(
            bool(bare) and is_port and (bare != host or ":" not in bare),
            f"{where}: {shown(text)} is not HOST:PORT; give the recording machine's name or address and a free port",
        )
        return cls(bare, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def addresses(self) -> list[tuple[socket.AddressFamily, Any]]:
        """What the host's name stands for, as (family, socket address). SpecError where it stands for nothing."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise SpecError(f"--rdzv: {self.host!r} is no host's name or address ({error.strerror or error})") from None
        return [(family, address) for family, _, _, _, address in found]

    def is_here(self) -> bool:
        """Is the host this machine: by its name, or because one of its addresses is an address of this machine?"""
        if self.host == socket.gethostname():
            return True
        mine = {address.address.partition("%")[0] for found in psutil.net_if_addrs().values() for address in found}
        return any(address[0] in mine for _, address in self.addresses())


class Link:
    """A connection between two launchers: JSON objects, one a line. ConnectionError where the other has gone."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        connection.settimeout(SEND_S)
        self._connection = connection
        self._pending = b""
        self._come: deque[dict[str, Any]] = deque()
        self.local_address: str = connection.getsockname()[0]
        self.remote_address: str = connection.getpeername()[0]

    def fileno(self) -> int:
        """For select."""
        return self._connection.fileno()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one object."""
        try:
            self._connection.sendall(json.dumps(message).encode("ascii") + b"\n")
        except OSError as error:
            raise ConnectionError(_why(error)) from None

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """The next object, waiting so long at most; None where none came. One call may read what the next returns."""
        if not self._come and select.select([self], [], [], max(0.0, seconds))[0]:
            self._read()
        return self._come.popleft() if self._come else None

    def _read(self) -> None:
        """Take what has arrived; the objects that are whole."""
        try:
            data = self._connection.recv(1 << 20)
        except OSError as error:
            raise ConnectionError(_why(error)) from None
        if not data:
            raise ConnectionError(CLOSED)
        *lines, self._pending = (self._pending + data).split(b"\n")
        if len(self._pending) > LONGEST_LINE:
            raise ConnectionError("it sends something else than rows")
        self._come.extend(map(_object, lines))

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


@contextlib.contextmanager
def listening(endpoint: Endpoint) -> Iterator[socket.socket]:
    """A socket that others can reach at the endpoint. OSError names it where that cannot be had."""
    family, address = endpoint.addresses()[0]
    if endpoint.host == socket.gethostname():  # which can stand for loopback here, and for another address elsewhere
        address = ("", endpoint.port)
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise OSError(f"--rdzv: cannot listen at {endpoint} ({error.strerror or error})") from None
        listener.listen()
        yield listener


def accept(listener: socket.socket, deadline: float) -> Link | None:
    """The next machine that connects, None where none does before `deadline` (of time.monotonic)."""
    listener.settimeout(max(0.01, deadline - time.monotonic()))
    try:
        return Link(listener.accept()[0])
    except OSError:  # nobody came, or whoever did has gone already
        return None


def connect(endpoint: Endpoint, wait_s: float) -> Link:
    """Reach the recording machine, which may start later. OSError where it is not there within `wait_s`."""
    deadline = time.monotonic() + wait_s
    while True:
        for family, address in endpoint.addresses():
            connection = socket.socket(family, socket.SOCK_STREAM)
            connection.settimeout(max(RETRY_S, deadline - time.monotonic()))
            try:
                connection.connect(address)
                return Link(connection)
            except OSError as error:
                connection.close()
                why = _why(error)
        if time.monotonic() + RETRY_S > deadline:
            raise OSError(f"--rdzv: no machine records at {endpoint} within {wait_s:g} s ({why})")
        time.sleep(RETRY_S)


def free_port(address: str) -> int:
    """A port that is free at an address of this machine now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as found:
        found.bind((address, 0))
        return int(found.getsockname()[1])


def _why(error: OSError) -> str:
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return CLOSED
    return str(error.strerror or error).lower()


def _object(line: bytes) -> dict[str, Any]:
    """One line as its object."""
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise ConnectionError(f"it sends something else than rows: {line[:40]!r}")
    return message
