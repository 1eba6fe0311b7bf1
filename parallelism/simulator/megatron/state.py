"""Once a step: gradients reduced over the replicas, clipping, the update, and what a sharded optimizer gathers."""

from __future__ import annotations

from parallelism.megatron.parameters import norm_vectors, stage_parameters
from parallelism.megatron.run import MegatronOptimizer, MegatronRun
from parallelism.simulator.megatron.shape import gradient_bytes
from parallelism.simulator.megatron.work import Work, elementwise
from suite.collectives import Call, Collective

#: tensors of a block: two norms, four products
_MATRICES = 4
#: whose optimizer state is divided over the replicas
SHARDED = (MegatronOptimizer.DISTRIBUTED, MegatronOptimizer.DEEPSPEED_FP16, MegatronOptimizer.DEEPSPEED_BF16)
#: kernels of a fused update of many tensors: each takes so many at once (apex, multi_tensor_apply)
TENSORS_A_LAUNCH = 30


def block_tensors(run: MegatronRun) -> int:
    """Parameters that a block is made of."""
    m = run.model
    return _MATRICES + 2 * norm_vectors(run) + (2 * m.bias + m.projection_bias + m.bias)


def stage_tensors(run: MegatronRun, stage: int) -> int:
    """Tensors of a stage: those of its blocks, embedding, positions, final norm, head."""
    return run.stage_layers[stage] * block_tensors(run) + len(stage_parameters(run, stage)) - 1


def reduce_calls(run: MegatronRun, parameters: int, tensors: int = 1) -> tuple[Call, ...]:
    """Gradients over the replicas, in so many calls: all-reduced, or scattered to who updates them."""
    replicas = run.dp * run.cp
    if replicas == 1:
        return ()
    collective = Collective.REDUCE_SCATTER if run.optimizer is MegatronOptimizer.DISTRIBUTED else Collective.ALL_REDUCE
    payload = gradient_bytes(run) * parameters // tensors
    return (Call(collective, replicas, payload),) * tensors


def gather_calls(run: MegatronRun, parameters: int) -> tuple[Call, ...]:
    """16-bit weights that the replicas have updated in parts."""
    replicas = run.dp * run.cp
    return (Call(Collective.ALL_GATHER, replicas, 2 * parameters),) if run.optimizer in SHARDED and replicas > 1 else ()


def update_work(run: MegatronRun, stage: int) -> Work:
    """Unscaling into fp32, the norm, Adam, and the copy into 16 bits, by the bytes of a parameter.

    Adam reads gradient, weight and two moments in fp32 and writes three of them: 28 bytes; the rest: a gradient read
    and written in fp32, read for the norm, the weight read and written in 16 bits, the gradient cleared.
    """
    parameters, tensors = sum(stage_parameters(run, stage).values()), stage_tensors(run, stage)
    own = parameters // (run.dp * run.cp) if run.optimizer in SHARDED else parameters
    g = gradient_bytes(run)
    launches = -(-tensors // TENSORS_A_LAUNCH)
    passes = (
        ("unscale", (g + 4.0) * own),
        ("norm", 4.0 * own),
        ("adam", 28.0 * own),
        ("copy to 16 bits", 6.0 * own),
        ("clear", float(g) * parameters),
    )
    kernels = (elementwise(name, nbytes / launches) for name, nbytes in passes for _ in range(launches))
    return Work(tuple(kernels))


def tied_call(run: MegatronRun) -> tuple[Call, ...]:
    """The gradient of a tied embedding, summed over the first and the last stage (arXiv:2104.04473, section 3)."""
    if run.pp == 1 or not run.model.tied:
        return ()
    return (Call(Collective.ALL_REDUCE, 2, gradient_bytes(run) * run.vocab_rows * run.model.hidden),)
