"""The probe hears every collective, whoever calls it: torch.distributed, functional collectives, DTensor, DDP's C++
reducer, FSDP2, pipelining's batched sends. Expectations are the sizes that the calls below hand over."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _coalescing_manager
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from parallelism.traffic_probe import NAMESPACES, RULES, SILENT, UncountedCollective, calls_of, record_traffic
from suite.collectives import Call, Collective
from tests.distributed.ranks import run_on_ranks

pytestmark = pytest.mark.distributed

RANKS = 3
ELEMENTS = 6  # of fp32: 24 bytes, a third of it 8
PART, WHOLE = 24, 72

AR, AG, RS = Collective.ALL_REDUCE, Collective.ALL_GATHER, Collective.REDUCE_SCATTER
A2A, SEND = Collective.ALL_TO_ALL, Collective.SEND

#: what each job below hands over, in order
EXPECTED: dict[str, list[tuple[Collective, int]]] = {
    "all_reduce": [(AR, PART)],
    "all_reduce in bf16": [(AR, PART // 2)],
    "all_reduce coalesced": [(AR, 2 * PART)],
    "broadcast": [(Collective.BROADCAST, PART)],
    "reduce": [(Collective.REDUCE, PART)],
    "gather": [(Collective.GATHER, WHOLE)],
    "scatter": [(Collective.SCATTER, WHOLE)],
    "all_gather": [(AG, WHOLE)],
    "all_gather into one": [(AG, WHOLE)],
    "reduce_scatter": [(RS, WHOLE)],
    "reduce_scatter of one": [(RS, PART)],
    "all_to_all": [(A2A, WHOLE)],
    "all_to_all of one": [(A2A, PART)],
    "barrier": [],
    "isend and irecv in a batch": [(SEND, PART)],
    "send and receive": [(SEND, PART)],
    # lengths as int64 first, then every rank's bytes padded to the longest: pickles of this dictionary have 21
    "object": [(AG, 3 * 8), (AG, 3 * 21)],
    "functional all_reduce": [(AR, PART)],
    "functional all_gather coalesced": [(AG, 2 * WHOLE)],
    "functional all_to_all and its backward": [(A2A, PART), (A2A, PART)],
    "DTensor all_reduce": [(AR, PART * 3)],
    "DTensor reduce_scatter": [(RS, PART * 3)],
    "DTensor all_gather": [(AG, PART * 3)],
    # 10 * 10 weights and 10 biases, in one bucket
    "DDP": [(AR, 440)],
    # rows padded to 12: 120 weights and 12 biases
    "FSDP2": [(AG, 528), (RS, 528)],
    # two norms, reduced together
    "clipping under FSDP2": [(AR, 8)],
    "another group": [(AR, PART)],
}


def jobs(rank: int, mesh: DeviceMesh) -> dict[str, Callable[[], object]]:
    """The calls, by name. All ranks run all of them in this order."""
    mine, parts = torch.ones(ELEMENTS), [torch.ones(ELEMENTS) for _ in range(RANKS)]
    partial = DTensor.from_local(torch.ones(RANKS, ELEMENTS), mesh, [Partial()])
    shard = DTensor.from_local(torch.ones(1, ELEMENTS), mesh, [Shard(0)])
    pair = dist.new_group([0, 1])
    replica = nn.parallel.DistributedDataParallel(nn.Linear(10, 10))
    sharded = fully_shard(nn.Linear(10, 10), mesh=mesh)
    step(replica), step(replica)  # DDP settles its buckets in the second
    after, before = (rank + 1) % RANKS, (rank - 1) % RANKS

    def batch() -> None:
        operations = [dist.P2POp(dist.isend, mine, after), dist.P2POp(dist.irecv, torch.empty(ELEMENTS), before)]
        for work in dist.batch_isend_irecv(operations):
            work.wait()

    def exchange() -> None:
        work = dist.isend(mine, after)
        dist.recv(torch.empty(ELEMENTS), before)
        assert work is not None
        work.wait()

    def coalesced() -> None:
        with _coalescing_manager():
            dist.all_reduce(mine)
            dist.all_reduce(mine)

    def to_all() -> None:
        leaf = torch.ones(ELEMENTS, requires_grad=True)
        functional.all_to_all_single_autograd(leaf, None, None, mesh).sum().backward()

    return {
        "all_reduce": lambda: dist.all_reduce(mine),
        "all_reduce in bf16": lambda: dist.all_reduce(mine.bfloat16()),
        "all_reduce coalesced": coalesced,
        "broadcast": lambda: dist.broadcast(mine, 0),
        "reduce": lambda: dist.reduce(mine, 0),
        "gather": lambda: dist.gather(mine, parts if rank == 0 else None, 0),
        "scatter": lambda: dist.scatter(torch.empty(ELEMENTS), parts if rank == 0 else None, 0),
        "all_gather": lambda: dist.all_gather(parts, mine),
        "all_gather into one": lambda: dist.all_gather_into_tensor(torch.empty(RANKS * ELEMENTS), mine),
        "reduce_scatter": lambda: dist.reduce_scatter(torch.empty(ELEMENTS), parts),
        "reduce_scatter of one": lambda: dist.reduce_scatter_tensor(torch.empty(ELEMENTS // RANKS), mine),
        "all_to_all": lambda: dist.all_to_all([torch.empty(ELEMENTS) for _ in parts], parts),
        "all_to_all of one": lambda: dist.all_to_all_single(torch.empty(ELEMENTS), mine),
        "barrier": dist.barrier,
        "isend and irecv in a batch": batch,
        "send and receive": exchange,
        "object": lambda: dist.all_gather_object([None] * RANKS, {"a": rank}),
        "functional all_reduce": lambda: settled(functional.all_reduce(mine, "sum", mesh)),
        "functional all_gather coalesced": lambda: [
            settled(tensor) for tensor in functional.all_gather_into_tensor_coalesced([mine, mine], mesh)
        ],
        "functional all_to_all and its backward": to_all,
        "DTensor all_reduce": lambda: settled(partial.redistribute(placements=[Replicate()]).to_local()),
        "DTensor reduce_scatter": lambda: settled(partial.redistribute(placements=[Shard(0)]).to_local()),
        "DTensor all_gather": lambda: settled(shard.full_tensor()),
        "DDP": lambda: step(replica),
        "FSDP2": lambda: step(sharded),
        "clipping under FSDP2": lambda: nn.utils.clip_grad_norm_(sharded.parameters(), 1.0).full_tensor(),  # type: ignore[attr-defined]
        "another group": lambda: dist.all_reduce(mine, group=pair) if rank < 2 else None,
    }


def step(model: nn.Module) -> None:
    """Forward and backward."""
    model(torch.ones(2, 10)).sum().backward()


def settled(tensor: Tensor) -> float:
    """Wait for a functional collective."""
    return tensor.sum().item()


def hear(rank: int) -> dict[str, list[Call]]:
    """What the probe heard of each job."""
    warnings.simplefilter("ignore")  # deprecated spellings are part of what must be heard
    heard = {}
    for name, job in jobs(rank, init_device_mesh("cpu", (RANKS,))).items():
        with record_traffic() as calls:
            job()
        heard[name] = list(calls)
    return heard


def hear_a_pipeline(rank: int) -> list[Call]:
    """Two micro-batches of [1, 10], a stage a rank; the first step, in which stages tell their shapes, unheard."""
    stage = PipelineStage(nn.Linear(10, 10), rank, RANKS, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, n_microbatches=2, loss_fn=lambda output, target: (output - target).sum())
    inputs = (torch.ones(2, 10),) if rank == 0 else ()
    goals = {"target": torch.ones(2, 10)} if rank == RANKS - 1 else {}
    schedule.step(*inputs, **goals)
    with record_traffic() as calls:
        schedule.step(*inputs, **goals)
    return list(calls)


def test_a_pipeline_sends_activations_on_and_gradients_back() -> None:
    """40 bytes each: the first stage two activations, the last two gradients, the middle one both."""
    sends = [(SEND, 40)] * 2
    for calls, expected in zip(run_on_ranks(RANKS, hear_a_pipeline), (sends, 2 * sends, sends), strict=True):
        assert [(call.collective, call.payload) for call in calls] == expected


@pytest.fixture(scope="module")
def heard() -> tuple[dict[str, list[Call]], ...]:
    return run_on_ranks(RANKS, hear)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_call_is_heard(name: str, heard: tuple[dict[str, list[Call]], ...]) -> None:
    ranks = 2 if name == "another group" else RANKS
    for rank, mine in enumerate(heard):
        expected = EXPECTED[name] if rank < ranks else []
        assert [(call.collective, call.payload) for call in mine[name]] == expected, f"rank {rank}"
        assert {call.ranks for call in mine[name]} <= {ranks}


def test_the_type_is_told(heard: tuple[dict[str, list[Call]], ...]) -> None:
    assert [call.dtype for call in heard[0]["all_reduce in bf16"]] == ["bfloat16"]
    assert [call.dtype for call in heard[0]["object"]] == ["int64", "uint8"]


def test_nothing_is_heard_outside(heard: tuple[dict[str, list[Call]], ...]) -> None:
    """The list is the caller's, and ends with the block."""
    assert sum(len(calls) for calls in heard[0].values()) == sum(len(calls) for calls in EXPECTED.values())


def test_every_operator_of_torch_has_a_rule() -> None:
    """What takes a group is counted or known to be silent. A collective that a later torch adds fails here first."""
    takes_a_group = {"process_group", "group_name"}
    known = {
        schema.name.split("::")[1]
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.split("::")[0] in NAMESPACES and takes_a_group & {item.name for item in schema.arguments}
    }
    assert len(known) > 30
    assert known <= RULES.keys() | SILENT


def test_an_operator_without_a_rule_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, "all_reduce")
    with pytest.raises(UncountedCollective, match=r"_c10d_functional\.all_reduce\.default is not counted"):
        calls_of(torch.ops._c10d_functional.all_reduce.default, (torch.ones(2), "sum", "0"), {})
