"""What torchrun starts on every rank: `python -m parallelism.worker CASES.json --out FOLDER`.

Builds the case's model, applies its strategies, trains, and writes what it measured to rank-<R>.jsonl. Three passes:
the training pass is timed and carries no probes; the memory pass runs a few steps of a fresh model under the
allocator's recorder; the traffic pass counts a step's collectives. A served case has one of its own, the serve pass.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from parallelism.batches import Batch, batch_of, held_out
from parallelism.building import make_trainer
from parallelism.expert.recording import Recording
from parallelism.expert_loads import load_samples
from parallelism.group import Place, facts_of, gather_rows, meet, process_group
from parallelism.memory_pass import cpu_memory, cuda_memory
from parallelism.mesh import build_mesh
from parallelism.serving.losses import Losses
from parallelism.serving.serve_pass import ServePass
from parallelism.traffic_pass import measure_traffic
from parallelism.training import StepResult, Trainer
from suite.case import Case, case_from
from suite.data import case_data, train_windows, validation_windows
from suite.documents import read_json
from suite.environment import environment
from suite.parse import SpecError, require
from suite.passes import Pass, check_passes, passes_for, passes_of
from suite.ranklog import FailureKind, RankWriter, rows_path
from suite.received import received_samples
from suite.record import Quantity, Sample
from suite.tasks.table import task_of
from suite.trivial import trivial_nats

VALIDATION_POINTS = 10


class Worker:
    """One rank's run of one case."""

    def __init__(
        self, case: Case, rank: int, device: torch.device, writer: RankWriter, losses: Losses | None = None
    ) -> None:
        self.losses = Losses() if losses is None else losses
        self.case = case
        self.rank = rank
        self.writer = writer
        self.device = device
        self.mesh = build_mesh(case.layout, self.device.type)
        self.data = case_data(case)
        self.task = task_of(case.model)
        self.windows = train_windows(self.data, case.recipe, self.task.window(case))

    def batch(self, step: int) -> Batch:
        """This rank's part of a step's global batch."""
        examples = self.task.examples(self.case, self.windows, step, self.case.global_batch)
        return batch_of(self.case, self.rank, step, examples, self.device)

    def trainer(self, mark: Callable[[str], None] = lambda name: None) -> Trainer:
        """A fresh model, parallelized, with its optimizer."""
        return make_trainer(self.case, self.mesh, self.device, mark)

    # --- the training pass ------------------------------------------------------------------------------

    def train(self) -> None:
        """Every step of the recipe, timed without probes; losses are gathered once it is over."""
        trainer = self.trainer()
        held_out = self._validation_batches()
        every = max(1, self.case.recipe.steps // VALIDATION_POINTS)
        results: list[StepResult] = []
        for step in range(self.case.recipe.steps):
            if held_out and step % every == 0:
                self._validate(trainer, step, held_out)
            batch = self.batch(step)
            self._barrier()
            start = time.perf_counter()
            results.append(trainer.step(step, batch))
            self._synchronize()
            seconds = time.perf_counter() - start
            self.writer.sample(Sample(Quantity.STEP_TIME, seconds, self.rank, step))
        if held_out:
            self._validate(trainer, self.case.recipe.steps, held_out)
        self._write(*load_samples(trainer.model, [result.routed for result in results], self.case, self.rank))
        trainer.close()
        self._report(results)

    def _report(self, results: list[StepResult]) -> None:
        losses = self._mean_over_ranks(torch.stack([result.loss for result in results]))
        if self.rank:
            return
        for step, (loss, result) in enumerate(zip(losses.tolist(), results, strict=True)):
            self.writer.sample(Sample(Quantity.LOSS, loss, self.rank, step))
            self.writer.sample(Sample(Quantity.GRADIENT_NORM, result.gradient_norm.item(), self.rank, step))
        self.writer.sample(Sample(Quantity.UNIGRAM_ENTROPY, trivial_nats(self.case, self.data), self.rank))

    def _validation_batches(self) -> list[Batch]:
        count = self.case.recipe.validation_batches
        if not count:
            return []
        size = self.case.workload.micro_batch * self.case.layout.data_ranks
        windows = validation_windows(self.data, self.case.recipe, self.task.window(self.case), size)
        batches = (self.task.examples(self.case, windows, index, size) for index in range(count))
        return [held_out(self.case, self.rank, examples, self.device) for examples in batches]

    def _validate(self, trainer: Trainer, step: int, batches: list[Batch]) -> None:
        loss = self._mean_over_ranks(trainer.evaluate(batches))
        if self.rank == 0:
            self.writer.sample(Sample(Quantity.VALIDATION_LOSS, loss.item(), self.rank, step))

    def _mean_over_ranks(self, losses: Tensor) -> Tensor:
        """Losses averaged over the ranks that have one: of a pipeline's, one; the others give 0."""
        if self.mesh is not None:
            dist.all_reduce(losses)
            losses /= self.case.layout.world_size // self.case.layout.pp
        return losses

    # --- the memory pass --------------------------------------------------------------------------------

    def measure_memory(self) -> None:
        """A few steps of a fresh model with every allocation accounted for."""
        measure = cuda_memory if self.device.type == "cuda" else cpu_memory
        with Recording(self.case) as recording:
            samples = measure(recording.of(self.trainer), self.batch, self.rank, self.writer.heartbeat)
        self._write(*samples, *received_samples(recording.rows, self.rank, Pass.MEMORY))

    # --- the traffic pass -------------------------------------------------------------------------------

    def count_traffic(self) -> None:
        """One steady step of a fresh model with every collective counted; a rank alone sends nothing."""
        if self.mesh is None:
            return
        with Recording(self.case) as recording:
            trainer = recording.of(self.trainer)()
            samples = measure_traffic(lambda step: trainer.step(step, self.batch(step)), self.rank)
        trainer.close()
        self._write(*samples, *received_samples(recording.rows, self.rank, Pass.TRAFFIC))

    # --- the serve pass ---------------------------------------------------------------------------------

    def serve(self) -> None:
        """Prompts answered through the case's cache, and held to the same model without one."""
        ServePass(self.case, self.rank, self.device, self.mesh, self.windows, self.writer, self.losses).run()

    # --- small things -----------------------------------------------------------------------------------

    def _write(self, *samples: Sample) -> None:
        for sample in samples:
            self.writer.sample(sample)

    def _barrier(self) -> None:
        if self.mesh is not None:
            dist.barrier()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _device(case: Case) -> torch.device:
    """This machine's device for the case: its CPU for `cpu`, else the CUDA device of this rank."""
    if case.cluster.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SpecError(f"cluster.device: {case.cluster.device!r} needs CUDA, which this machine has not; use cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _threads() -> dict[str, object]:
    """How the framework's threads work, which step times depend on."""
    return {"threads": torch.get_num_threads(), "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default")}


def _failure_kind(error: BaseException) -> FailureKind:
    """Out of memory, or anything else. The CPU allocator's refusal is a plain RuntimeError."""
    refused = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
    return FailureKind.OOM if refused else FailureKind.ERROR


def run(
    case: Case, rank: int, writer: RankWriter, passes: Collection[Pass] | None = None, losses: Losses | None = None
) -> None:
    """The passes of one case on one rank (None: all it has), in an initialised process group if it has several;
    `losses` are those of the cases before it in the same launch."""
    passes = passes_for(case.serves) if passes is None else passes
    worker = Worker(case, rank, _device(case), writer, losses)
    for each, method in (
        (Pass.TRAIN, worker.train),
        (Pass.MEMORY, worker.measure_memory),
        (Pass.TRAFFIC, worker.count_traffic),
        (Pass.SERVE, worker.serve),
    ):
        if each in passes:
            method()
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    writer.sample(Sample(Quantity.RESIDENT, peak_kib * 1024, rank))


def main(arguments: list[str]) -> int:
    """The rank's life: read the cases, meet the other ranks, run one case after another; the exit status.

    Each case of a list has a folder under --out, named by its id. The first that fails ends the launch (its process
    group is not to be trusted), and those after it are skipped. A failure is one line on standard error.
    """
    options = _options(arguments)
    place, timeout = Place.from_environment(), timedelta(seconds=options.timeout)
    cases, refusal = _cases(options.case, options.out, place.world, options.passes)
    writers = [_writer(folder, place.rank) for folder in cases or [options.out]]
    try:
        _import_engines(tuple(cases.values()))
        writers[0].heartbeat("meets the other ranks")
        store = meet(place, refusal or facts_of(tuple(cases.values())), timeout)
    except Exception as error:
        return _fail(error, place.rank, writers)
    losses = Losses()
    gathers = options.rows == "gathered" and place.nodes > 1
    for number, (writer, (folder, case)) in enumerate(zip(writers, cases.items(), strict=True), start=1):
        try:
            if place.rank == 0:
                writer.environment(environment() | _threads())
            with process_group(place, store, case, timeout):
                run(case, place.rank, writer, options.passes, losses)
                if store is not None:
                    dist.barrier()
                writer.done()
                if gathers:
                    gather_rows(place, folder)
        except Exception as error:
            for skipped in writers[number:]:
                skipped.skipped(f"case {number} of {len(cases)}, before it in the same launch, failed")
            return _fail(error, place.rank, [writer])
    return 0


def _import_engines(cases: Collection[Case]) -> None:
    """DeepSpeed before torch's pipelines, whichever case comes first: the other way round it cannot be imported."""
    if engines := [case for case in cases if case.layout.is_deepspeed]:
        from parallelism.zero.trainer import import_deepspeed

        import_deepspeed(_device(engines[0]).type)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="parallelism.worker", allow_abbrev=False)
    parser.add_argument("case", type=Path, metavar="CASES", help="a Case, or a list of Cases of one size, as JSON")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for rank-<R>.jsonl")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="of one collective [600]")
    text = "of several machines: to rank 0 at the end, or left where they were written [gathered]"
    parser.add_argument("--rows", choices=("gathered", "local"), default="gathered", help=text)
    text = "what is done with each case, with commas [train,memory,traffic; of a served case serve]"
    parser.add_argument("--passes", type=passes_of, metavar="PASSES", help=text)
    return parser.parse_args(arguments)


def _cases(path: Path, out: Path, world: int, passes: Collection[Pass] | None) -> tuple[dict[Path, Case], str]:
    """The cases by the folder that each writes to, or none and why they are refused."""
    try:
        data = read_json(str(path), "cases")
        cases = [case_from(item) for item in (data if isinstance(data, list) else [data])]
        require(bool(cases), f"cases: {str(path)!r} holds none")
        for number, case in enumerate(cases, start=1):
            which = f"case {number}: " if len(cases) > 1 else ""
            size = case.layout.world_size
            require(size == world, f"{which}layout: {size} ranks, but torchrun started {world}")
            check_passes(case.serves, passes_for(case.serves) if passes is None else passes, which)
    except SpecError as error:
        return {}, str(error)
    return {out / case.case_id if isinstance(data, list) else out: case for case in cases}, ""


def _writer(folder: Path, rank: int) -> RankWriter:
    """For this rank's rows in a folder, without those of an earlier launch."""
    folder.mkdir(parents=True, exist_ok=True)
    rows_path(folder, rank).unlink(missing_ok=True)
    return RankWriter(folder, rank)


def _fail(error: Exception, rank: int, writers: Sequence[RankWriter]) -> int:
    """Say what stopped this rank."""
    message = str(error).strip().splitlines() or [""]
    for writer in writers:
        writer.failure(_failure_kind(error), f"{type(error).__name__}: {message[0]}"[:500])
    print(f"rank {rank}: {type(error).__name__}: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: a thread of torch that wants the interpreter while it is taken down aborts the whole rank, after
    # its last row. Every row has been flushed.
    os._exit(status)
