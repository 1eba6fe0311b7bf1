"""Step times of many cases: what they have in common is worked out once, and their steps together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from parallelism.simulator.case_plan import Planner
from parallelism.simulator.collective_time import collective_seconds, distinct_groups
from parallelism.simulator.kernel_time import GpuPricing, Rates
from parallelism.simulator.machine import Machine
from parallelism.simulator.many import Candidate, kept_of, step_seconds_of
from parallelism.simulator.on_cluster import cluster_simulator, machine_of
from parallelism.simulator.placement import Placement
from parallelism.simulator.plan import Unit
from parallelism.simulator.simulation import Simulation
from parallelism.simulator.stack import Execution, Stack
from parallelism.simulator.unit_messages import Seconds
from parallelism.simulator.work import Moved
from suite.case import Case
from suite.collectives import Message
from suite.layout import Layout
from suite.memo import Memo
from suite.operators import Ledger


@dataclass(frozen=True)
class StepSearch:
    """Answers for many cases on GPUs. They may be of any model, layout and device.

    Counted: what a simulation counts (parallelism/simulator/many.py says how long steps are cut short). Not counted:
    compute that slows down beside communication, and streams of communication that share a link. So run the few best
    whole.
    """

    execution: Execution = Execution.EAGER
    _benches: dict[object, _Bench] = field(default_factory=dict, compare=False, repr=False)

    def seconds(self, cases: Sequence[Case]) -> list[float]:
        """Seconds of each case's step, in their order. SpecError for a case that cannot be timed."""
        return step_seconds_of([self.candidate(case) for case in cases])

    def candidate(self, case: Case) -> Candidate:
        """A case's plan, equal units and stages one object, in other cases' plans too."""
        planner, count = self._bench(case).planner(case), case.workload.micro_batches
        return Candidate(planner.plan(kept_of(count, case.layout.pp)), count, planner.orders)

    def simulation(self, case: Case) -> Simulation:
        """The case's step simulated whole, as cluster_simulator does. SpecError for what cannot run."""
        bench = self._bench(case)
        plan = replace(bench.planner(case).named_plan(), slowdown=bench.machine.speeds.slowdown)
        return cluster_simulator(self.execution).run(case, plan, bench.machine)

    def units(self, case: Case) -> tuple[Unit, ...]:
        """Every segment's cost for one micro-batch on one rank, the whole model in forward order: what any plan of the
        case's model, precision, micro-batch, tensor and context ranks and recomputation has at least."""
        return self._bench(case).planner(case).bare_units()

    def ledger(self, case: Case) -> Ledger:
        """The operators of one micro-batch on one rank, were the whole model its own."""
        return self._bench(case).planner(case).ledger

    def slowdown(self, case: Case) -> float:
        """Time of the case's compute beside communication over its time alone, which whole simulations count."""
        return self._bench(case).machine.speeds.slowdown

    def moved_seconds(self, case: Case, nbytes: float) -> float:
        """What the case's device needs to read and write so many bytes in one go."""
        return self._bench(case).pricing.cost([Moved(nbytes)]).seconds

    def message_seconds(self, case: Case, layout: Layout) -> Seconds:
        """What one call of a message takes in a layout on the case's cluster."""
        return self._bench(case).seconds(layout)

    def _bench(self, case: Case) -> _Bench:
        cluster = case.cluster
        key = cluster.device, cluster.links, cluster.per_node, case.layout.world_size == 1
        found = self._benches.get(key)
        if found is None:
            machine = machine_of(case)
            pricing = GpuPricing(Rates(machine.device, machine.speeds), Stack(self.execution))
            found = self._benches[key] = _Bench(machine, pricing)
        return found


@dataclass(frozen=True)
class _Bench:
    """A machine, and what is known of cases on it."""

    machine: Machine
    pricing: GpuPricing
    memo: Memo = field(default_factory=Memo)

    def planner(self, case: Case) -> Planner:
        return Planner(case, self.pricing, self.seconds(case.layout), memo=self.memo)

    def seconds(self, layout: Layout) -> Seconds:
        """Of one call of a message of a layout, in the slowest group."""
        memo, fabric = self.memo, self.machine.fabric
        degrees = layout.pp, layout.dp, layout.fsdp, layout.cp, layout.tp

        def groups(message: Message) -> frozenset[Placement]:
            axis, size = message.axis, message.ranks
            return memo.once(
                ("groups", axis, size, degrees),
                lambda: memo.same(frozenset(distinct_groups(axis, size, layout, fabric))),
            )

        def seconds(message: Message) -> float:
            some, collective, payload = groups(message), message.collective, message.payload
            return memo.once(
                ("seconds", collective, payload, memo.name(some)),
                lambda: max(collective_seconds(collective, payload, group.ranks, fabric) for group in some),
            )

        return seconds
