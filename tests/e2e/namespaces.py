"""Two hosts on one machine: network namespaces joined by a veth pair whose ends are shaped."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

BITS_A_SECOND = 150_000_000
ADDRESSES = ("10.77.0.1", "10.77.0.2")


@dataclass(frozen=True)
class Host:
    """One namespace."""

    name: str
    interface: str
    address: str

    def inside(self, *words: str) -> list[str]:
        """A command that runs there."""
        return ["ip", "netns", "exec", self.name, *words]

    def bytes_sent(self) -> int:
        """What has left by its interface."""
        path = f"/sys/class/net/{self.interface}/statistics/tx_bytes"
        return int(subprocess.run(self.inside("cat", path), capture_output=True, check=True).stdout)


class NoRight(Exception):
    """Why this machine makes no namespaces."""


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two namespaces that reach each other alone, at BITS_A_SECOND each way. NoRight says what is missing."""
    pid = os.getpid()
    hosts = tuple(Host(f"shardscope-{pid}-{end}", f"ss{pid}{end}", ADDRESSES[end]) for end in (0, 1))
    if missing := [program for program in ("ip", "tc") if shutil.which(program) is None]:
        raise NoRight(f"no program {missing[0]!r}")
    try:
        for host in hosts:
            _run("ip", "netns", "add", host.name)
        _run("ip", "link", "add", hosts[0].interface, "type", "veth", "peer", "name", hosts[1].interface)
        for host in hosts:
            _run("ip", "link", "set", host.interface, "netns", host.name)
            _run(*host.inside("ip", "address", "add", f"{host.address}/24", "dev", host.interface))
            _run(*host.inside("ip", "link", "set", "lo", "up"))
            _run(*host.inside("ip", "link", "set", host.interface, "up"))
            shape = ("rate", f"{BITS_A_SECOND}bit", "burst", "128kb", "latency", "100ms")
            _run(*host.inside("tc", "qdisc", "add", "dev", host.interface, "root", "tbf", *shape))
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "delete", host.name], capture_output=True)
        subprocess.run(["ip", "link", "delete", hosts[0].interface], capture_output=True)  # if it never moved


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise NoRight(f"{' '.join(words)}: {done.stderr.strip()}")
