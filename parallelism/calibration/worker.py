"""What `parallelism.calibration.asking` starts: reads one JSON request on standard input, prints one JSON answer.

torch is imported once, and the ranks are forked from this process before it has threads.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from parallelism.calibration.ranks import Meeting, measure_on_ranks
from suite.hardware.operator_times import Format, Timed

#: rounds whose readings are dropped
WARMUP = 2
#: every so many rounds weights are frozen, and the backward pass is the inputs' alone
FROZEN_EVERY = 4

if TYPE_CHECKING:
    from torch import Tensor

    from parallelism.calibration.chains import Chain

T = TypeVar("T")
Readings = dict[str, list[float]]
#: of a round's number: seconds by name
Taker = Callable[[int], dict[str, float]]


def main() -> int:
    """Measure the request's operators with its number of ranks."""

    from parallelism.calibration.frames import frames_from

    request = json.load(sys.stdin)
    results, machine = measure_on_ranks(request, _measured)
    answer = {
        **machine,
        "rows": [_merged([result["rows"][index] for result in results]) for index in range(len(request["items"]))],
        "overheads": frames_from(_merged([result["frames"] for result in results])),
        "copies": _merged([result["copies"] for result in results]),
    }
    print(json.dumps(answer))
    return 0


def _merged(readings: list[Readings]) -> Readings:
    """Those of all ranks together."""
    return {name: [value for each in readings for value in each[name]] for name in readings[0]}


def _measured(request: dict[str, Any], meeting: Meeting, is_first: bool) -> dict[str, Any]:
    """Readings of every item, of frames and of copies, which take turns: a moment at which the machine is busy spoils
    few readings of each."""
    from parallelism.calibration.frames import copy_works, frame_works

    takers: list[Taker] = [taker(Timed(name), tuple(shape), Format(kind)) for name, shape, kind in request["items"]]
    for works in (frame_works(), copy_works(request["copies"])):
        takers.append(lambda index, works=works: {name: warm_clock(work, work) for name, work in works.items()})  # type: ignore[misc]
    rows: list[Readings] = [defaultdict(list) for _ in takers]
    for index in meeting.rounds(is_first, request["seconds"], WARMUP):
        if request["threads"] == 1:
            _forward(takers, index)
        for take, into in zip(takers, rows, strict=True):
            for name, seconds in take(index).items():
                if index >= WARMUP:
                    into[name].append(seconds)
    return {"rows": rows[:-2], "frames": rows[-2], "copies": rows[-1]}


def _forward(takers: list[Taker], index: int) -> None:
    """The chains' calls of a round, one of each chain in turn. With several threads they come in a row instead, as in a
    step: what is done between them would let the other threads fall asleep, and waking them is most of a call."""
    chains = [take for take in takers if isinstance(take, ChainTaker)]
    for chain in chains:
        chain.begin(index)
    for place in range(max((len(chain.chain) for chain in chains), default=0)):
        for chain in chains:
            chain.call(place)


def clock(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds of a call, and what it returns."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def warm_clock(before: Callable[[], object], work: Callable[[], object]) -> float:
    """Seconds of a call after another that is not timed: the interpreter's and the kernels' code is in the caches."""
    before()
    return clock(work)[0]


def _meeting(chain: Chain) -> float:
    """How much longer a backward pass takes to which every tensor gives two gradients."""
    outputs = chain.forward()
    chain.touch_gradients()
    alone, _ = clock(lambda: chain.backward(outputs))
    outputs = chain.forward()
    chain.touch_gradients()
    both, _ = clock(lambda: chain.backward(outputs * 2))
    return both - alone


def taker(operator: Timed, shape: tuple[int, ...], format: Format) -> Taker:
    """What takes one reading of an operator: seconds of a call by pass, and the calls of its chain."""
    from parallelism.calibration.chains import chain_of
    from parallelism.calibration.frames import FINISH, TENSORS, finish_work

    if operator in FINISH:
        one, many = (finish_work(operator, shape[0], count, format) for count in (1, TENSORS))
        return lambda index: {"length": 1, "forward": (warm_clock(one, many) - clock(one)[0]) / (TENSORS - 1)}
    chain = chain_of(operator, shape, format)
    if operator is Timed.MEET:
        return lambda index: {"length": len(chain), "forward": 0.0, "inputs": _meeting(chain) / len(chain)}
    return ChainTaker(chain)


class ChainTaker:
    """Takes readings of a chain: its calls one at a time, between those of other chains, then its backward pass whole.

    A step never calls one operator twice in a row, whose code and tables would still be in the caches then: a norm of
    256 rows took 19 us behind another norm and 30 us behind other operators. Backward, where the calls are the
    engine's, a chain in a row agrees with a step.
    """

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.outputs: list[Tensor] = []
        self.forward = 0.0
        self.makes_both = bool(chain.weights and chain.inputs)
        self.is_frozen = False

    def begin(self, index: int) -> None:
        """A round's start. Where a backward pass makes both kinds of gradients, weights are frozen now and then."""
        self.is_frozen = self.makes_both and index % FROZEN_EVERY == WARMUP % FROZEN_EVERY
        self.chain.freeze(self.is_frozen)
        self.outputs, self.forward = [], 0.0

    def call(self, place: int) -> None:
        """One forward call, if the chain is so long."""
        if place < len(self.chain):
            self.chain.touch_inputs(place)
            seconds, output = self.chain.timed(place)
            self.outputs.append(output)
            self.forward += seconds

    def __call__(self, index: int) -> dict[str, float]:
        """The round's reading, of calls in a row where nobody made them. A backward pass is `inputs` or `weights` where
        it makes gradients of nothing else."""
        chain = self.chain
        if not self.outputs:
            self.begin(index)
            for place in range(len(chain)):
                chain.touch_inputs(place)
            self.forward, self.outputs = clock(chain.forward)
        outputs = self.outputs
        chain.touch_gradients()
        backward, _ = clock(lambda: chain.backward(outputs))
        self.outputs = []
        name = "backward" if self.makes_both and not self.is_frozen else "inputs" if chain.inputs else "weights"
        return {"length": len(chain), "forward": self.forward / len(chain), name: backward / len(chain)}


if __name__ == "__main__":
    sys.exit(main())
