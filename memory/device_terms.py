"""What a rank takes of a GPU beside its tensors: the driver's context, matrix libraries' workspaces, and communicators.

None of this was measured here. The workspaces are torch's own constants; context and communicators are published
measurements, each with its source, and stand for what other devices and versions take: estimates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from suite.collectives import Collective, Message
from suite.hardware import Device, DeviceKind

MIB = 2**20

#: Threads that multiply matrices: the caller's, and autograd's, which runs the backward pass. Each has a handle.
BLAS_HANDLES = 2
#: A communicator's buffers after its first all-reduce on 4 A100 with NVLink: of two ranks, of more.
PAIR_BYTES, GROUP_BYTES = 544 * MIB, 688 * MIB
#: What send and receive among all of 8 ranks add to that on H100: 4.34 GB - 1.06 GB, to each of 7 others.
PEER_BYTES = (4_340_000_000 - 1_060_000_000) // 7
#: The most that was reported: 6 GB for three communicators.
COMMUNICATOR_UPPER_BYTES = 2_000_000_000
#: The most that was reported with modules loaded lazily: all that is outside torch's allocator on 8 H100 before the
#: first all-to-all.
CONTEXT_UPPER_BYTES = 1_060_000_000
_NCCL = "https://github.com/NVIDIA/nccl/issues/"


class Place(StrEnum):
    """Whose memory it is."""

    ALLOCATOR = "allocator"  # torch's: part of what is reserved
    DEVICE = "device"  # beside it


@dataclass(frozen=True)
class DeviceTerm:
    """So many bytes of the device, why, and by whose word. `nbytes` None: not known, and taken for nothing."""

    name: str
    place: Place
    nbytes: int | None
    upper_bytes: int
    formula: str
    source: str


def device_terms(device: Device, messages: Iterable[Message]) -> tuple[DeviceTerm, ...]:
    """The terms of a rank that sends these messages in a step; none on a CPU.

    Counted: context; one workspace for each thread that multiplies; the buffers of a communicator for each group of
    ranks that talks, and of connections to every peer where one does all-to-alls. Not counted: the group of all ranks,
    if no message of a step goes through it; what kernels take besides (printf buffers, stacks).
    """
    if device.kind is DeviceKind.CPU:
        return ()
    return (_context(device), _workspaces(device), *_communicators(tuple(messages)))


def _context(device: Device) -> DeviceTerm:
    figure = device.context_bytes
    nbytes = None if figure.value is None else int(figure.value)
    return DeviceTerm(
        "context", Place.DEVICE, nbytes, max(nbytes or 0, CONTEXT_UPPER_BYTES), "the driver's, and loaded kernels",
        f"{figure.source}; at most: {_NCCL}1685",
    )  # fmt: skip


def _workspaces(device: Device) -> DeviceTerm:
    figure = device.blas_workspace_bytes
    nbytes = None if figure.value is None else BLAS_HANDLES * int(figure.value)
    formula = f"{BLAS_HANDLES} threads * a workspace a handle"
    return DeviceTerm("matrix library workspaces", Place.ALLOCATOR, nbytes, nbytes or 0, formula, figure.source)


def _communicators(messages: tuple[Message, ...]) -> Iterable[DeviceTerm]:
    groups = sorted({(message.axis, message.ranks) for message in messages if message.ranks > 1})
    for axis, ranks in groups:
        nbytes = PAIR_BYTES if ranks == 2 else GROUP_BYTES
        yield DeviceTerm(
            f"communicator {axis}({ranks})", Place.DEVICE, nbytes, COMMUNICATOR_UPPER_BYTES, "buffers of its channels",
            f"estimate, measured on 4 A100: {_NCCL}964; at most: {_NCCL}864",
        )  # fmt: skip
    exchanges = {(item.axis, item.ranks) for item in messages if item.collective is Collective.ALL_TO_ALL}
    for axis, ranks in sorted(exchanges):
        nbytes = (ranks - 1) * PEER_BYTES
        yield DeviceTerm(
            f"connections {axis}({ranks})", Place.DEVICE, nbytes, nbytes, "(n-1) peers * buffers of their channels",
            f"estimate, measured on 8 H100: {_NCCL}1685",
        )  # fmt: skip
