"""A Megatron-LM run -> a ledger of Terms of each pipeline stage's rank. Torch-free."""

from __future__ import annotations

from memory.megatron.activations import block_backward, head_arrays, kept_arrays
from memory.megatron.state import held_bytes, stage_parameters, state_bytes
from parallelism.megatron.run import MegatronRun
from suite.record import Component, MemoryEstimate, Moment, Term
from suite.units import MIB

#: cuBLAS's and Transformer Engine's workspaces: 32 MiB each on Hopper and later, and about as much before
#: (transformer_engine/pytorch/module/base.py, get_cublas_workspace_size_bytes; torch's CUBLAS_WORKSPACE_CONFIG)
WORKSPACE_BYTES = 2 * 32 * MIB


def estimate_megatron(run: MegatronRun, stage: int = 0) -> MemoryEstimate:
    """Bytes of a rank of pipeline stage `stage` (the Terms' `rank`) at the moments of a step.

    Counted: weights, gradient buffer and optimizer as Megatron keeps them, what the blocks in flight keep, the head and
    the loss, the largest working set of a backward pass, library workspaces. Not counted: buffers between pipeline
    stages, communicators, the CUDA context, fragmentation.
    """
    held = held_bytes(run, stage)
    terms = []
    for moment in (Moment.STEADY, Moment.AFTER_FORWARD, Moment.LOSS, Moment.BACKWARD_PEAK, Moment.OPTIMIZER_PEAK):
        if moment is Moment.LOSS and stage != run.pp - 1:
            continue
        terms += [Term(part, moment, nbytes, formula, source, stage) for part, nbytes, formula, source in held]
        workspace = "workspaces of cuBLAS and Transformer Engine: 2*32 MiB"
        terms.append(Term(Component.TRANSIENTS, moment, WORKSPACE_BYTES, workspace, "held once allocated", stage))
        terms += _alive(run, stage, moment)
    return MemoryEstimate(tuple(terms), stage)


def _alive(run: MegatronRun, stage: int, moment: Moment) -> list[Term]:
    """What a moment adds to what is held."""
    if moment is Moment.STEADY:
        return []
    if moment is Moment.OPTIMIZER_PEAK:
        each = state_bytes(run).passing
        nbytes = round(each * sum(stage_parameters(run, stage).values()))
        formula = f"fp32 gradients of the partition: parameters*{each:g}"
        return [Term(Component.TRANSIENTS, moment, nbytes, formula, "optimizer step", stage)] if nbytes else []
    blocks = run.in_flight(stage) * run.stage_layers[stage]
    kept = [
        Term(
            Component.ACTIVATIONS, moment, round(blocks * array.nbytes),
            f"{array.name}: {blocks:g} blocks in flight x {array.formula}", array.source, stage,
        )
        for array in kept_arrays(run)
    ]  # fmt: skip
    passing = {Moment.LOSS: (Component.LOSS, head_arrays), Moment.BACKWARD_PEAK: (Component.TRANSIENTS, block_backward)}
    if moment not in passing:
        return kept
    part, arrays = passing[moment]
    return kept + [Term(part, moment, a.nbytes, f"{a.name}: {a.formula}", a.source, stage) for a in arrays(run)]


def megatron_peak(run: MegatronRun) -> MemoryEstimate:
    """The estimate of the stage that needs most."""
    return max((estimate_megatron(run, stage) for stage in range(run.pp)), key=lambda found: found.peak_bytes)
