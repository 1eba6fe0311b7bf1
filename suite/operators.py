"""The operator ledger: a model described once, without torch, as operators and the kernels they run.

An Operator is what a reader would name (attention.wq, mlp_norm): it owns weights and FLOPs. A Kernel is
one thing the framework runs for it: what it reads, writes, keeps for the backward pass, which gradients it
makes and what it needs in passing. Memory is a walk over kernels, time and plans are sums over operators.
Nothing here knows of decoders: a family's ledger is a list of Segments built with a Tape (suite/tape.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from functools import cached_property


class DType(Enum):
    """Number formats and their bytes an element."""

    FP32 = ("fp32", 4)
    BF16 = ("bf16", 2)
    FP16 = ("fp16", 2)
    FP8 = ("fp8", 1)
    INT64 = ("int64", 8)
    BOOL = ("bool", 1)

    def __init__(self, label: str, nbytes: int) -> None:
        self.label = label  # its name in reports
        self.nbytes = nbytes  # an element


@dataclass(frozen=True, slots=True)
class Size:
    """A dimension: the letter that formulas use and its value on this rank, as in h = 4096."""

    symbol: str
    value: int

    def times(self, factor: int, symbol: str | None = None) -> Size:
        """This dimension `factor` times over."""
        return Size(symbol or f"{factor}{self.symbol}", self.value * factor)


@dataclass(frozen=True, eq=False)
class Array:
    """A tensor of the walk. Identity is the object: two arrays of one name are two allocations.

    A view is the same Array. `is_view` marks a gradient-receiving end that the framework reaches through a
    view, so that its first two contributions are summed into a new tensor instead of in place.
    """

    name: str
    shape: tuple[Size, ...]
    dtype: DType

    elements: int = field(init=False)  # on this rank
    nbytes: int = field(init=False)  # on this rank

    def __post_init__(self) -> None:
        elements = 1
        for size in self.shape:
            elements *= size.value
        object.__setattr__(self, "elements", elements)
        object.__setattr__(self, "nbytes", elements * self.dtype.nbytes)

    @cached_property
    def values(self) -> tuple[int, ...]:
        """The shape in numbers."""
        return tuple([size.value for size in self.shape])

    @property
    def formula(self) -> str:
        """The size in letters, as in b*s*h*4."""
        return "*".join([*(size.symbol for size in self.shape), str(self.dtype.nbytes)])


#: the kernel that takes a rank's parts of weights out of their DTensors; backward, where their gradients are wrapped
TO_LOCAL = "to_local"


class Split(StrEnum):
    """How tensor parallelism divides a weight."""

    NONE = "none"  # every rank holds it whole
    COLUMN = "column"  # output features: rows of the stored matrix
    ROW = "row"  # input features: columns of the stored matrix
    VOCAB = "vocab"  # rows of an embedding or head


@dataclass(frozen=True, eq=False)
class Weight(Array):
    """A parameter: its name in the nn.Module, its shape, how tensor parallelism divides it."""

    split: Split = Split.NONE
    tied_to: str | None = None  # name of the weight whose storage this one shares
    is_part: bool = False  # a part of it is on this rank, wrapped as a DTensor
    is_expert: bool = False  # expert parallelism divides it along its first dimension


@dataclass(frozen=True, eq=False)
class Kernel:
    """One thing the framework runs.

    Forward: `writes` are allocated, `forward_scratch` bytes live beside them while it runs, `saves` (of reads
    and writes) stay until its backward has run. Backward: a gradient the size of each array in `gradients` is
    allocated beside `backward_scratch` bytes; the arrays in `passes` receive the output's gradient itself.
    `through_view` gradients cannot be summed in place while they are the first (torch's InputBuffer rule).
    """

    name: str
    reads: tuple[Array, ...] = ()
    writes: tuple[Array, ...] = ()
    saves: tuple[Array, ...] = ()
    gradients: tuple[Array, ...] = ()
    passes: tuple[Array, ...] = ()
    forward_scratch: int = 0
    prepared_scratch: int = 0  # of forward_scratch, what is needed even if a rerun finds the result kept
    backward_scratch: int = 0
    derivative: Derivative | None = None  # makes the gradients by kernels of its own
    through_view: bool = False
    is_weight_cast: bool = False  # autocast's copy of a weight, cached until autocast ends
    is_view: bool = False  # its writes are parts of its first read: nothing is allocated
    saves_last: bool = False  # keeps them once it has run, as custom functions do: a rerun that stops at it has run it
    holds: tuple[Array, ...] = ()  # attributes of a custom function's context: kept even inside a region, never rerun


@dataclass(frozen=True, eq=False)
class Derivative:
    """The backward pass of a custom function: kernels that run forward, and what they make for `Kernel.gradients`.

    Their `saves`, `gradients` and backward scratch mean nothing here. What none of them made they need not read: the
    output's gradient and what was kept outlive them all.
    """

    kernels: tuple[Kernel, ...]
    gradients: tuple[Array, ...]


class OperatorKind(StrEnum):
    """What bounds an operator and whose rate table it is looked up in."""

    MATMUL = "matmul"
    ATTENTION = "attention"
    NORM = "norm"
    POINTWISE = "pointwise"
    EMBEDDING = "embedding"
    LOSS = "loss"


@dataclass(frozen=True)
class Flops:
    """Multiply-adds counted as two. Attention counts the full square; `causal_saving` of it is masked away."""

    forward: int = 0
    backward: int = 0
    causal_saving: float = 0.0

    def total(self, causal: bool = False) -> float:
        """Forward and backward together, the masked half left out if `causal`."""
        return (self.forward + self.backward) * (1 - self.causal_saving if causal else 1)

    def forward_only(self, causal: bool = False) -> float:
        """The forward pass alone, under the same convention."""
        return self.forward * (1 - self.causal_saving if causal else 1)


@dataclass(frozen=True)
class Operator:
    """A named operator: its weights, its FLOPs on this rank and the kernels it runs, in order."""

    name: str
    kind: OperatorKind
    kernels: tuple[Kernel, ...] = ()
    weights: tuple[Weight, ...] = ()
    flops: Flops = field(default_factory=Flops)

    @property
    def is_matrix_work(self) -> bool:
        """Do its FLOPs count as model FLOPs?"""
        return self.kind in (OperatorKind.MATMUL, OperatorKind.ATTENTION)


@dataclass(frozen=True)
class Region:
    """Operators that are rerun in the backward pass from `inputs`; nothing else of them is kept but `kept`, outputs of
    kernels that are then not run again (torch's selective checkpointing, whose cache holds them)."""

    name: str
    body: tuple[Operator | Region, ...]
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    kept: tuple[Array, ...] = ()


@dataclass(frozen=True, eq=False)
class Segment:
    """A run of operators with one input and one output: an embedding, a block, a head. What FSDP gathers together.

    `inputs` come from the segment before; `batch` arrays are the step's and outlive the segment. `makes` are read by
    later segments, whose `borrows` they are; the other fields say of a lent array what suite/lending.py finds out.
    """

    name: str
    body: tuple[Operator | Region, ...]
    inputs: tuple[Array, ...]
    batch: tuple[Array, ...]
    output: Array | None
    makes: tuple[Array, ...] = ()
    borrows: tuple[Array, ...] = ()
    opens: frozenset[Array] = frozenset()  # borrowed arrays whose gradient begins here: no later segment gives one
    closes: frozenset[Array] = frozenset()  # lent arrays that nothing outside holds once this segment lets go
    awaits: frozenset[Array] = frozenset()  # made arrays that receive a gradient

    def operators(self) -> Iterator[Operator]:
        """Every operator, those inside regions included, in order."""
        yield from _operators(self.body)

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        """The weights that its operators read, in order, each once."""
        return tuple(dict.fromkeys(weight for operator in self.operators() for weight in operator.weights))

    @cached_property
    def parameters(self) -> int:
        """Elements of its own weights; a tied one counts where it is first used."""
        return sum(weight.elements for weight in self.weights if not weight.tied_to)

    @cached_property
    def recomputed(self) -> tuple[Operator, ...]:
        """The operators that run twice: those of regions, but for what a region keeps."""
        regions = (part for part in self.body if isinstance(part, Region))
        return tuple(
            operator
            for region in regions
            for operator in _operators(region.body)
            if not any(array in region.kept for kernel in operator.kernels for array in kernel.writes)
        )


def _operators(body: tuple[Operator | Region, ...]) -> Iterator[Operator]:
    for part in body:
        if isinstance(part, Region):
            yield from _operators(part.body)
        else:
            yield part


@dataclass(frozen=True)
class Placed:
    """A segment where it stands in the model: its weights are named `prefix`.name there."""

    prefix: str
    segment: Segment

    def weight_name(self, weight: Weight) -> str:
        """The parameter's name in the nn.Module."""
        return f"{self.prefix}.{weight.name}" if self.prefix else weight.name


@dataclass(frozen=True)
class Ledger:
    """A model on one rank: its segments in forward order. Equal blocks are one Segment object, placed many times.

    `loss` names the segments that are the head and the loss; `buffers` are non-trained tensors; `batch` the
    arrays of one micro-batch; `shared` arrays are made once a micro-batch and read by many segments.
    """

    segments: tuple[Placed, ...]
    loss: frozenset[str]
    buffers: tuple[Array, ...] = ()
    batch: tuple[Array, ...] = ()
    shared: tuple[Array, ...] = ()

    @cached_property
    def counts(self) -> dict[Segment, int]:
        """How often each distinct segment is placed."""
        return Counter(placed.segment for placed in self.segments)

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        """The weights of its distinct segments, each once."""
        return tuple(weight for segment in self.counts for weight in segment.weights)

    @cached_property
    def blocks(self) -> range:
        """Places of the model's blocks among the segments, from the first to the last."""
        places = [index for index, placed in enumerate(self.segments) if placed.prefix]
        return range(places[0], places[-1] + 1)

    @cached_property
    def in_module_order(self) -> tuple[Placed, ...]:
        """The segments as a module registers them: what comes before its blocks, these, and everything else."""
        inside = [placed for placed in self.segments if placed.prefix]
        start = self.segments.index(inside[0]) if inside else 0
        rest = [placed for placed in self.segments if not placed.prefix]
        return (*rest[:start], *inside, *rest[start:])

    @cached_property
    def parameters(self) -> int:
        """Parameters on this rank, a tied one once."""
        return sum(count * segment.parameters for segment, count in self.counts.items())

    def flops(self, causal: bool = False) -> float:
        """Model FLOPs of one micro-batch, forward and backward (arXiv:2204.02311, appendix B).

        Counted: matrix products and attention, over the full square unless `causal`. Not counted:
        recomputation, norms, activation functions, softmax, the loss: under 1 % at any useful width.
        """
        return sum(
            count * sum(operator.flops.total(causal) for operator in segment.operators() if operator.is_matrix_work)
            for segment, count in self.counts.items()
        )

    def recompute_flops(self, causal: bool = False) -> float:
        """Forward FLOPs that checkpointing runs a second time in one micro-batch."""
        return sum(
            count * sum(item.flops.forward_only(causal) for item in segment.recomputed if item.is_matrix_work)
            for segment, count in self.counts.items()
        )
