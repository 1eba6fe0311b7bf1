"""What vLLM's start-up gave its cache, from first principles: share of the device - weights - pass - outside torch.

Which version wrote a row, and so what its pass did and what it counted, follows from the thread that the row cites.
`worker.py` counted torch's allocated peak (to 0.2.4), then what the device had given out (0.2.5, pull request 2031),
then by how much that had grown since before the model was loaded (0.3.1 on), then allocated peak and the rest apart
(0.6.5, pull request 10511).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from memory.engine_pass import FEWEST_TOKENS, EnginePass, Reduced, Sampler
from reports.published.answers import CannotModel, Prediction
from reports.published.served_models import Served, served_model
from suite.hardware import Device, device
from suite.published import PublishedRow
from suite.units import GIB, bytes_text

#: what a process on one GPU grew by outside torch, by vLLM's own log on an H100: libraries, kernels, a communicator
LIBRARY_BYTES = 0.16 * GIB
LIBRARIES = "https://github.com/vllm-project/vllm/pull/12126 (non_torch_memory)"
#: all that is outside torch on an H100, by ranks: rows of this table, their own figures
NON_TORCH = {1: (1.79 * GIB, "kv-038"), 2: (3.58 * GIB, "kv-042")}

_THREAD = re.compile(r"(PR|issue)#(\d+)(?: \((before|after)\))?", flags=re.ASCII)
_SHARE = re.compile(r"(0?\.\d+|1(?:\.0+)?)(?: \(default\))?", flags=re.ASCII)
_PRINTED_GIB = re.compile(r"\(([\d.]+) GiB\)", flags=re.ASCII)
#: words of gpu_type -> device; 79.22 GiB is what pull request 12126 prints of an H100
_DEVICES = {"A6000": "rtx-a6000", "A100-80GB": "a100-80gb-sxm", "H100-80GB": "h100-sxm", "79.22 GiB": "h100-sxm"}


class Counts(StrEnum):
    """What is taken off the device's share, beside the weights."""

    ALLOCATED = "highest allocated"
    USED = "reserved, context and libraries"
    GROWTH = "reserved and libraries"
    APART = "highest allocated and all that is outside torch"


@dataclass(frozen=True)
class Engine:
    """A version's pass, and what it counted."""

    name: str
    sampler: Sampler
    counts: Counts
    reduced: Reduced = Reduced.FREED


_ENGINES = {
    "PR#2031 (before)": Engine("vLLM 0.2.4", Sampler.ARGSORT, Counts.ALLOCATED, Reduced.HELD),
    "PR#2031 (after)": Engine("vLLM 0.2.5", Sampler.ARGSORT, Counts.USED, Reduced.HELD),
    "PR#4454": Engine("vLLM 0.4.1", Sampler.INVERSE, Counts.GROWTH),
    "PR#10511": Engine("vLLM 0.6.5", Sampler.FLOAT, Counts.APART),
}


@dataclass(frozen=True)
class Startup:
    """One start of an engine: version, model, ranks, device (None: not known), its total, and the engine's share."""

    engine: Engine
    model: Served
    tp: int
    device: Device | None
    total_bytes: float
    share: float
    context: int

    @property
    def run(self) -> EnginePass:
        """The pass by which it found what the cache may have."""
        workspace = self.device.blas_workspace_bytes.value if self.device else None
        return EnginePass(
            self.model.spec, max(self.context, FEWEST_TOKENS), self.engine.sampler, self.tp,
            is_packed=self.model.form.is_unpacked, reduced=self.engine.reduced, workspace=int(workspace or 0),
        )  # fmt: skip

    def pool(self) -> tuple[float, tuple[str, ...], tuple[str, ...]]:
        """(bytes left for a rank's cache, what was assumed, rows that a figure of it comes from)."""
        counts, rest = self.engine.counts, self.total_bytes * self.share - self.model.weight_bytes(self.tp)
        if counts is Counts.ALLOCATED:
            return rest - self.run.allocated_peak(), (), ()
        if counts is Counts.APART:
            if self.tp not in NON_TORCH:
                raise CannotModel(f"{self.tp} ranks: what lives outside torch was measured for {[*NON_TORCH]} alone")
            beside, row = NON_TORCH[self.tp]
            return rest - self.run.allocated_peak() - beside, (f"outside torch as in {row}",), (row,)
        beside, assumed = LIBRARY_BYTES, [f"libraries {bytes_text(LIBRARY_BYTES)}, as on an H100 ({LIBRARIES})"]
        if counts is Counts.USED:
            context = self.device.context_bytes.value if self.device else None
            beside += context or 0
            assumed += [] if context else ["the context's size is not known: left out"]
        if self.tp > 1:
            assumed.append("communicators left out: no measured figure on this device")
        if self.tp > 1 and self.engine.reduced is Reduced.HELD:
            assumed.append(
                f"{bytes_text(self.run.held_bytes())} of summed tensors held to the end of the pass, the most there can"
                " be; missing: what of them was done with, and used again, while the host still ran ahead"
            )
        return rest - self.run.reserved_peak() - beside, tuple(assumed), ()


def startup_of(row: PublishedRow) -> Startup:
    """The start that a row describes. CannotModel where the version, the model or the device is not known."""
    thread = _THREAD.search(row.text("source"))
    engine = _ENGINES.get(thread[0]) if thread else None
    if engine is None or not row.says("engine", "vllm"):
        raise CannotModel(f"{row.text('source') or 'no source'}: not known which version ran, so neither is its pass")
    model = served_model(row.text("model"))
    found, total = _device(row.text("gpu_type"))
    return Startup(
        engine,
        model,
        row.count("tp") or 1,
        found,
        total,
        stated_share(row),
        row.count("max_model_len") or model.context,
    )


def stated_share(row: PublishedRow) -> float:
    """The share of the device that the engine may use: gpu_memory_utilization, be it given or its default."""
    share = _SHARE.fullmatch(row.text("gpu_mem_util"))
    if share is None:
        raise CannotModel("gpu_mem_util is not stated")
    return float(share[1])


def _device(said: str) -> tuple[Device | None, float]:
    """A device by a row's words, and its total as torch sees it: as printed, else the device's own."""
    found = next((device(name) for words, name in _DEVICES.items() if words in said), None)
    printed = _PRINTED_GIB.search(said)
    total = float(printed[1]) * GIB if printed else found.memory_bytes.value if found else None
    if total is None:
        raise CannotModel(f"gpu_type {said!r}: the device's total is not known here")
    return found, total


def predict_pool(row: PublishedRow) -> Prediction:
    """Bytes that a rank's cache may have."""
    start = startup_of(row)
    nbytes, assumed, rows = start.pool()
    basis = f"total*{start.share:g} - weights - pass - outside torch, as {start.engine.name} counts it"
    return Prediction(nbytes, basis, assumed, rows)


def predict_profile(row: PublishedRow) -> Prediction:
    """What the pass was found to take: weights, or the activations' peak."""
    metric = row.text("metric")
    if metric == "profile_weights":
        tp = row.count("tp") or 1
        model = served_model(row.text("model"))
        return Prediction(model.weight_bytes(tp), "ledger's weights and the table of rotations")
    if metric == "profile_activation_peak":
        start = startup_of(row)
        return Prediction(start.run.allocated_peak(), f"the pass of {start.engine.name}, allocated")
    raise CannotModel(f"{metric}: measured outside torch; other rows' predictions start from it")
