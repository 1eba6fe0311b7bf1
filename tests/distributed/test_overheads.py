"""The probes of overheads run on forked ranks: what they find has every name that a calibration needs."""

import math

import pytest

from parallelism.overheads.asking import exact_families, families, measure_overheads
from suite.hardware.overheads import ContextCore, Kept, Overhead, ShardedUnit, TensorHalf

pytestmark = pytest.mark.distributed


def test_host_work_and_exact_shapes_are_measured() -> None:
    core, unit = ContextCore("ring", "flash", True, 2, 1, 1, 8, 2, 2, 8), ShardedUnit(2, 1, 2, 2048, True)
    halves = [TensorHalf(2, 1, 2, 8, 8, sequence_parallel) for sequence_parallel in (True, False)]
    some = [family for family in families() if family.name in ("divided", "checkpoints", "pipeline", "messages")]
    found, _ = measure_overheads((*some, *exact_families([core], [unit], [], halves)), 0.1, readings=1)
    host = {str(name) for name in Overhead if name.startswith(("divided", "checkpoint", "pipeline"))}
    exact = {each.name(whole) for each in (core, *halves) for whole in (False, True)}
    assert set(found) == host | {unit.name(kind) for kind in Kept} | exact
    assert all(math.isfinite(summary.median) for summary in found.values())
    assert all(found[each.name(whole=True)].median > 0 for each in halves)
    assert found[core.name(whole=True)].median > 0  # a ring's messages alone take longer than nothing
