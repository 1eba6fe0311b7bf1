"""How long a step takes in rows of PyTorch runs: torchtitan, llm-foundry, torchtune, torchao, TinyLlama."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from parallelism.simulator.case_plan import case_plan
from parallelism.simulator.collective_time import message_seconds
from parallelism.simulator.engine import run
from parallelism.simulator.kernel_time import GpuPricing, Rates
from parallelism.simulator.program import program_of
from parallelism.simulator.stack import Execution, Flash, Losses, Norms, Reruns, Rotary, Stack
from reports.published.answers import CannotModel
from reports.published.models import refuse_what_no_run_models
from reports.published.step_time import Flops, StepTime
from reports.published.time_constants import FittedSet
from reports.published.torch_runs import DescribedCase, torch_case
from suite.case import Case
from suite.float8 import Scaling
from suite.hardware import device
from suite.hardware.achieved import speeds_of
from suite.hardware.links import fabric_of
from suite.hardware.speeds import Speeds
from suite.hardware.training_rates import FITTED, training_speeds
from suite.layout import Layout, ReduceType, Reduction
from suite.models.ledgers import ledger_of
from suite.published import PublishedRow
from suite.spec import Cluster, OptimizerKernel, Precision, Workload
from suite.tape import FP32, Backend

FAMILIES = ("torchtitan", "llm_foundry", "fms_fsdp", "dlrover", "torchao", "torchtune", "tinyllama")
#: devices of a node where a row does not say: what every one of these sources ran on
USUAL_NODE = 8


@dataclass(frozen=True)
class TimedCase:
    """A case with the kernels of the framework that ran it."""

    case: Case
    stack: Stack
    assumed: tuple[str, ...]


def torch_step(row: PublishedRow, sets: Mapping[str, FittedSet]) -> StepTime:
    """A row's step. CannotModel, UnreadableCell or SpecError with the reason where there is none. No set is read: what
    is fitted stands in suite/hardware/training_rates.py, for `estimate` needs it too."""
    timed = timed_case(row)
    case = timed.case
    found = device(case.cluster.device)
    speeds = training_speeds(found) or speeds_of(found)
    fitted = FITTED[found.name].rows if found.name in FITTED else ()
    if row.text("split") == "fit":
        fitted += (row.row_id,)  # another figure of such a run
    return StepTime(
        seconds=step_seconds(timed, speeds),
        sequences=case.global_batch,
        seq_len=case.workload.seq_len,
        gpus=case.layout.world_size,
        basis=f"case {case.label}, {timed.stack.execution}, simulated",
        flops=_flops(case),
        assumed=timed.assumed,
        fitted_on=fitted,
    )


def step_seconds(timed: TimedCase, speeds: Speeds) -> float:
    """Seconds of one step."""
    case = timed.case
    rates = Rates(device(case.cluster.device), speeds)
    fabric = fabric_of(case)
    plan = case_plan(
        case,
        GpuPricing(rates, timed.stack),
        lambda message: message_seconds(message, case, fabric, 0),
        rates.speeds.slowdown,
    )
    program = program_of(plan)
    return run(program.graph, program.sharing).total


def timed_case(row: PublishedRow) -> TimedCase:
    """The case of a row, on nodes, with what its framework is known to run."""
    refuse_what_no_run_models(row)
    if row.says("extra", "async"):
        raise CannotModel("asynchronous tensor parallelism: not modelled yet")
    if row.says("gpu_type", "power") or row.says("locator", "power-limited"):
        raise CannotModel(f"{row.text('gpu_type')}: what its power limit leaves is not known")
    cells = dict(row.cells)
    assumed: list[str] = []
    scaling = _divided_float8(row, cells, assumed)
    if (row.count("cp") or 1) > 1 and (row.count("fsdp") or 1) == 1:
        cells["zero"] = ""
        assumed.append("parameters sharded over context ranks; timed as whole on each, their gradients averaged")
    found = torch_case(replace(row, cells=cells))
    assumed += [text for text in found.assumed if not text.startswith("compiled")]
    case = _on_nodes(row, replace(found.case, layout=_layout(row, found), workload=_workload(row, found.case)))
    stack = replace(_stack(row, case, assumed), casts_blocks=scaling)
    return TimedCase(case, stack, tuple(assumed))


def _divided_float8(row: PublishedRow, cells: dict[str, str], assumed: list[str]) -> Scaling | None:
    """fp8 under tensor parallelism, which no case can say: a bf16 one whose blocks' products run in fp8."""
    if not row.text("precision_kind").startswith("fp8") or (row.count("tp") or 1) == 1:
        return None
    cells["precision_kind"] = "bf16-mixed"
    assumed.append("fp8 in the products alone: what tensor parallelism sends is timed in bf16")
    return Scaling.ROWWISE if row.says("precision", "rowwise") else Scaling.TENSORWISE


def _workload(row: PublishedRow, case: Case) -> Workload:
    """torchtitan updates an operation at a time; a row's text says whether fp8 has a scale a row."""
    workload = case.workload
    if row.family == "torchtitan":
        workload = replace(workload, optimizer_kernel=OptimizerKernel.FOREACH)
    if workload.precision is Precision.FP8 and row.says("precision", "rowwise"):
        workload = replace(workload, precision=Precision.FP8_ROWWISE)
    return workload


def _on_nodes(row: PublishedRow, case: Case) -> Case:
    ranks = case.layout.world_size
    per_node = min(ranks, row.count("per_node") or USUAL_NODE)
    return replace(case, cluster=Cluster(case.cluster.device, ranks // per_node, per_node))


def _layout(row: PublishedRow, found: DescribedCase) -> Layout:
    """Composer reduces in every micro-batch, in bf16 where its mixed precision is PURE; SHARD_GRAD_OP keeps what was
    gathered."""
    layout = found.case.layout
    if row.family != "llm_foundry":
        return layout
    is_pure = row.says("precision", "PURE") and found.case.workload.precision is Precision.BF16_MIXED
    return replace(
        layout,
        reduction=Reduction.MICRO_BATCH,
        reshard_after_forward=not row.says("zero_stage", "SHARD_GRAD_OP"),
        reduce_type=ReduceType.BF16 if is_pure else layout.reduce_type,
    )


def _stack(row: PublishedRow, case: Case, assumed: list[str]) -> Stack:
    """What each source ran, read off its repository at the time of its table."""
    execution = Execution.COMPILED if row.flag("compile") else Execution.EAGER
    if row.flag("compile") is None:
        assumed.append("not compiled, for nothing says so")
    is_hopper = case.cluster.device.startswith("h100")
    match row.family:
        case "llm_foundry":  # FlashAttention 1.0 in setup.py; torch 2.1, which stops reruns early, came with the H100s
            reruns = Reruns.EARLY_STOP if is_hopper else Reruns.WHOLE
            return Stack(execution, losses=Losses.FUSED, reruns=reruns, flash=Flash.ONE)
        case "tinyllama":  # flash-attn's and xFormers' fused norms, rotation, SwiGLU and loss
            return Stack(Execution.COMPILED)
        case "torchtitan" | "torchao":  # complex rotation; a Triton norm in 2024's tables of A100s, torch's own later
            norms = Norms.COMPOSITE if is_hopper else Norms.FUSED
            return Stack(execution, norms=norms, rotary=Rotary.COMPLEX)
        case "torchtune":
            return Stack(execution, norms=Norms.COMPOSITE)
        case _:
            return Stack(execution)


def _flops(case: Case) -> Flops:
    """Of a step on all ranks together, by the ledger of the whole model."""
    ledger = ledger_of(case.model, case.workload, case.layout.recompute, FP32, Backend.CUDA)
    count = case.workload.micro_batches * case.layout.data_ranks
    full = ledger.flops()
    return Flops(full * count, (full - ledger.flops(causal=True)) * count, ledger.recompute_flops() * count)
