"""The links that shipped devices come with: inside a node, and the network that such nodes usually have."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from suite.hardware.busbw import A100_ALL_REDUCE, H200_ALL_REDUCE, in_switch, ring_shares, scaled
from suite.hardware.fabric import Fabric
from suite.links import InSwitch, Level, Topology
from suite.parse import require

if TYPE_CHECKING:
    from suite.case import Case

#: NCCL's own latencies of one step of a ring: LL128 over NVLink, Simple over PCIe and over the network
NVLINK_LATENCY_S = 1.9e-6
PCIE_LATENCY_S = 5.7e-6
NETWORK_LATENCY_S = 9.6e-6
_NCCL = "latency: NCCL 2.8, src/graph/tuning.cc, hwLat of a ring"

_V100_SHEET = "NVIDIA V100 datasheet: 6 NVLinks of 25 GB/s a direction"
_A100_SHEET = "NVIDIA A100 datasheet: NVLink 600 GB/s both ways"
_H100_SHEET = "NVIDIA H100 datasheet: NVLink 900 GB/s both ways"
_B200_SHEET = "NVIDIA HGX B200 specifications: NVLink 1.8 TB/s a GPU both ways"
_PCIE = (
    "NCCL's figure for a x16 link is 24 GB/s of PCIe 4.0's 31.5 (its log in github.com/NVIDIA/nccl-tests/issues/307)"
)
_PER_ADAPTER = "46 to 49 of 50 GB/s: github.com/NVIDIA/nccl-tests/issues/290 and 267"


@dataclass(frozen=True)
class NodeLinks:
    """What joins a device's neighbours in its node, and what joins nodes. `inside` narrows to the nodes of a case."""

    inside: tuple[Level, ...]
    beyond: tuple[Level, ...] = ()

    def fabric(self, per_node: int) -> Fabric:
        """With nodes of so many devices; a node wider than its links can be is taken for several."""
        inside: list[Level] = []
        for level in self.inside if per_node > 1 else ():
            width = min(level.ranks, per_node)
            while inside and width % inside[-1].ranks:  # pairs in a node of 3: the wider level alone
                inside.pop()
            if not inside or width > inside[-1].ranks:
                inside.append(replace(level, ranks=width))
        width = inside[-1].ranks if inside else 1
        beyond = [replace(level, shared_by=min(level.shared_by, width)) for level in self.beyond]
        return Fabric((*inside, *beyond) or (replace(self.inside[0], ranks=1),))


def _network(adapter: str, bytes_per_second: float, efficiency: float, source: str) -> Level:
    return Level(
        "network", 0, bytes_per_second, NETWORK_LATENCY_S, efficiency, f"{adapter}, assumed; {source}; {_NCCL} (Simple)"
    )


_EDR = replace(
    _network(
        "DGX-1: 4 adapters of 100 Gbit/s a node",
        4 * 12.5e9,
        0.97,
        "48 of 50 GB/s: github.com/NVIDIA/nccl-tests/issues/29",
    ),
    shared_by=8,
)
_HDR = _network("an HDR adapter of 200 Gbit/s a GPU", 25e9, 0.96, "24 of 25 GB/s: github.com/NVIDIA/nccl/issues/412")
_NDR = _network("an NDR adapter of 400 Gbit/s a GPU", 50e9, 0.94, _PER_ADAPTER)
_ROCE = _network("Grand Teton: a RoCE adapter of 400 Gbit/s a GPU", 50e9, 0.94, _PER_ADAPTER)

_V100 = Level(
    "nvlink", 8, 150e9, NVLINK_LATENCY_S, 124.0875 / 150,
    f"{_V100_SHEET}; efficiency: hw_micro.csv hw-0113, 4 GPUs, 4 GB; {_NCCL} (LL128)",
)  # fmt: skip
_A100 = Level(
    "nvlink", 8, 300e9, NVLINK_LATENCY_S, 234.89 / 300,
    f"{_A100_SHEET}; by size: hw_micro.csv hw-0040 to hw-0059, 8 GPUs; {_NCCL} (LL128)",
    shares=ring_shares(A100_ALL_REDUCE, 8, 300e9, NVLINK_LATENCY_S),
)  # fmt: skip

#: hw-0101 over hw-0100: H200, the ring's plateau over the switch's
_RING_OVER_SWITCH = 367.2 / 480.0
_H200_RING = scaled(H200_ALL_REDUCE, _RING_OVER_SWITCH, above=2**21)
_H200_SWITCH = in_switch(H200_ALL_REDUCE, 8, 450e9, NVLINK_LATENCY_S, from_ranks=5, above=2**21)
_H200_SOURCE = (
    "by size: hw_micro.csv hw-0020 to hw-0039, 8 GPUs, NVLink SHARP from 2 MiB in groups of 5 (hw-0082); the ring there"
    f" is the same curve at its own plateau, 367.2 of 480 GB/s (hw-0100, hw-0101); {_NCCL} (LL128)"
)
_H200 = Level(
    "nvlink", 8, 450e9, NVLINK_LATENCY_S, 367.2 / 450, f"{_H100_SHEET}, H200 the same; {_H200_SOURCE}",
    shares=ring_shares(_H200_RING, 8, 450e9, NVLINK_LATENCY_S), in_switch=_H200_SWITCH,
)  # fmt: skip
_H100 = replace(
    _H200,
    source=f"{_H100_SHEET}; no curve of an H100 is published: the H200's stands in, whose links and switches are the "
    f"same; {_H200_SOURCE}",
)


def _blackwell(name: str, ranks: int, product: str) -> Level:
    """NVLink 5: plateaus of its own, 682.2 GB/s the ring (hw-0099) and 838 the switch (hw-0098); sizes as the H200."""
    switched = scaled(_H200_SWITCH.shares, (838.0 / 900) / (480.0 / 450))
    return Level(
        name, ranks, 900e9, NVLINK_LATENCY_S, 682.2 / 900,
        f"{_B200_SHEET}; {product}: plateaus of hw_micro.csv hw-0090 to hw-0099; how shares fall with size is"
        f" the H200's (hw-0020 to hw-0039), for no curve of its own is published; {_NCCL} (LL128)",
        shares=scaled(_H200.shares, (682.2 / 900) / (367.2 / 450)), in_switch=InSwitch(6, switched),
    )  # fmt: skip


def _pcie(bytes_per_second: float, efficiency: float, note: str) -> Level:
    return Level("pcie", 8, bytes_per_second, PCIE_LATENCY_S, efficiency, f"{note}; {_NCCL} (Simple)")


_PCIE4 = _pcie(31.5e9, 24 / 31.5, f"PCIe 4.0 x16; {_PCIE}")
_PCIE4_STAGED = _pcie(
    31.5e9, 24 / 31.5, f"PCIe 4.0 x16, no peer to peer: by way of host memory, so an upper bound; {_PCIE}"
)
_PCIE5 = _pcie(63e9, 24 / 31.5, f"PCIe 5.0 x16; the share is PCIe 4.0's: {_PCIE}")


def _bridge(efficiency: float, latency_note: str) -> Level:
    return Level("nvlink-bridge", 2, 300e9, NVLINK_LATENCY_S, efficiency, latency_note)


_A100_BRIDGE = _bridge(
    234.89 / 300,
    f"A100 PCIe product brief: bridge of 600 GB/s both ways, assumed there; the share is the SXM's; {_NCCL}",
)
_H100_BRIDGE = _bridge(
    367.2 / 450,
    f"H100 PCIe product brief: bridge of 600 GB/s both ways, assumed there; the share is the SXM's; {_NCCL}",
)
_MI300X = Level(
    "infinity-fabric", 8, 64e9, NVLINK_LATENCY_S, 312.912 / 448,
    "AMD Instinct MI300X data sheet: 7 links of 64 GB/s a direction, one to each other device, 448 in all; efficiency:"
    " hw_micro.csv hw-0107 (8 GPUs, 4 GiB; a pair gets 47.7 of 64, hw-0106); latency: NVLink's, for none is published",
    topology=Topology.MESH,
)  # fmt: skip

_HGX_A100, _HGX_H100, _HGX_H200 = (
    NodeLinks((_A100,), (_HDR,)),
    NodeLinks((_H100,), (_NDR,)),
    NodeLinks((_H200,), (_NDR,)),
)
_HGX_B200 = NodeLinks((_blackwell("nvlink", 8, "B200"),), (_NDR,))
_HGX_B300 = NodeLinks((_blackwell("nvlink", 8, "B200's stand in for the B300's"),), (_NDR,))
_NVL72 = NodeLinks((), (_blackwell("nvlink", 72, "B200's, of 8 GPUs, stand in for those of 72"), _NDR))

#: by device; one that is not here has no known links
LINKS: dict[str, NodeLinks] = {
    "v100-16gb-sxm": NodeLinks((_V100,), (_EDR,)),
    "v100-32gb-sxm": NodeLinks((_V100,), (_EDR,)),
    "a100-40gb-pcie": NodeLinks((_A100_BRIDGE, _PCIE4)),
    "a100-80gb-pcie": NodeLinks((_A100_BRIDGE, _PCIE4)),
    "a100-40gb-sxm": _HGX_A100,
    "a100-80gb-sxm": _HGX_A100,
    "h100-pcie": NodeLinks((_H100_BRIDGE, _PCIE5)),
    "h100-sxm": _HGX_H100,
    "h100-96gb-500w": NodeLinks((_H100,), (_ROCE,)),
    "h200-sxm": _HGX_H200,
    "b200": _HGX_B200,
    "b300": _HGX_B300,
    "gb200": _NVL72,
    "gb300": _NVL72,
    "mi300x": NodeLinks((_MI300X,), (_NDR,)),
    "rtx-4090": NodeLinks((_PCIE4_STAGED,)),
    "l40s": NodeLinks((replace(_PCIE4_STAGED, source=_PCIE4.source),)),
}

#: of a rank that is alone
ALONE = Fabric((Level("alone", 1, 1.0, source="one rank talks to nobody"),))


def fabric_of(case: Case) -> Fabric:
    """The links of a case's cluster: those it states, else its device's own with nodes of `cluster.per_node`.

    SpecError where neither is known and ranks talk.
    """
    if case.cluster.links:
        return Fabric(case.cluster.links)
    if case.layout.world_size == 1:
        return ALONE
    from suite.hardware import device

    name = device(case.cluster.device).name
    require(
        name in LINKS,
        f"cluster.links: missing; no links are known for device {name!r}: give them, as in"
        " nvlink:8:300e9:3e-6,ib:*:25e9:8e-6",
    )
    return LINKS[name].fabric(case.cluster.per_node)


__all__ = ["ALONE", "LINKS", "InSwitch", "NodeLinks", "fabric_of"]
