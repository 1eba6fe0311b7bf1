"""Our training step beside transformers': `python -m parallelism.speed --json`.

For both forms and both precisions, one process times whole steps in turn (forward, loss, backward, clipping, fused
AdamW, zeroing): ours, as the worker runs it; transformers' model of the same configuration, weights, batch, kernel
and optimizer; and our model in a bare loop, which shows what the harness adds. Rows go to standard output as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from parallelism.batches import Batch
from parallelism.hf_reference import CLASSES, reference_model
from parallelism.optimizers import build_optimizer
from parallelism.speed_report import BY_HAND, FUSED, OURS, REFERENCE, SCHEMA, Overhead, Race, SpeedReport, lines
from parallelism.training import Trainer, build_model, learning_rate
from suite.case import Case
from suite.environment import package_version
from suite.interleaved import interleave, median_difference, ratio_of_medians
from suite.models import preset
from suite.models.decoder import Activation
from suite.models.hf_family import reference_family
from suite.parse import SpecError, require, to_mapping
from suite.ranklog import RankWriter
from suite.record import Quantity, Sample
from suite.spec import AttentionKernel, Precision, Workload
from suite.stats import summarize

FORMS = ("gpt", "llama")
SCALES = ("1m", "10m", "50m")
WARMUP = 4
#: two implementations' first losses may differ by rounding alone
LOSS_TOLERANCE = {Precision.FP32: 1e-4, Precision.BF16_MIXED: 1e-2}
#: what the harness adds does not depend on the model, so it is measured where a step is short
SHORT_STEP = Workload(seq_len=16, micro_batch=1, precision=Precision.FP32)
SHORT_ROUNDS = 20  # for each round of the races

Step = Callable[[int], object]


class SpeedError(Exception):
    """The two models do not compute the same, so their times do not compare."""


class Contestants:
    """The steps of one race. Each model has its own copy of the weights, but the bare loop shares ours."""

    def __init__(self, case: Case, writer: RankWriter) -> None:
        self.case = case
        self.writer = writer
        self.device = torch.device("cpu")
        self.model = build_model(case, self.device)
        self.start = {name: item.clone() for name, item in self.model.state_dict().items()}
        self.trainer = Trainer(case, self.model, build_optimizer(self.model, case), self.device)
        tokens = torch.randint(
            case.model.vocab,
            (case.workload.micro_batch, case.workload.seq_len + 1),
            generator=torch.Generator().manual_seed(case.recipe.seed),
        )
        self.ids, self.labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def ours(self, index: int) -> Tensor:
        """A step as the worker runs it: timed, its reading written down."""
        start = time.perf_counter()
        result = self.trainer.step(index, Batch(self.ids[None], self.labels[None]))
        self.writer.sample(Sample(Quantity.STEP_TIME, time.perf_counter() - start, 0, index))
        return result.loss

    def by_hand(self) -> Step:
        """Our model and optimizer in the loop that one would write without this project."""
        return self._loop(self.model, self.trainer.optimizer, lambda: self.model(self.ids, self.labels))

    def reference(self, fused_gelu: bool = False) -> Step:
        """transformers' model in the same loop. It is given the labels shifted, as ours is, so it need not shift."""
        model = reference_model(self.case.decoder, self.case.workload.attention, self.start, fused_gelu)
        model.train()
        batch = {"input_ids": self.ids, "labels": self.labels, "shift_labels": self.labels}
        return self._loop(model, build_optimizer(model, self.case), lambda: model(**batch).loss)

    def _loop(self, model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]) -> Step:
        recipe, is_mixed = self.case.recipe, self.case.workload.precision is Precision.BF16_MIXED

        def step(index: int) -> Tensor:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, index)
            with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
                loss = loss_of()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        return step


def race(case: Case, rounds: int, writer: RankWriter) -> Race:
    """Time one case's contestants in turn. SpeedError where the first losses differ."""
    made = Contestants(case, writer)
    steps: dict[str, Step] = {OURS: made.ours, REFERENCE: made.reference()}
    if case.decoder.activation is Activation.GELU:
        steps[FUSED] = made.reference(fused_gelu=True)
    losses = {name: float(step(0)) for name, step in steps.items()}  # type: ignore[arg-type]
    tolerance = LOSS_TOLERANCE[case.workload.precision]
    for name, loss in losses.items():
        if not abs(loss - losses[OURS]) <= tolerance:
            raise SpeedError(
                f"{case.label}: first loss {losses[OURS]} but {loss} by {name}; expected within {tolerance}"
            )
    steps[BY_HAND] = made.by_hand()
    seconds = interleave(steps, rounds, WARMUP, lambda done: _tell(f"{case.label}: round {done} of {WARMUP + rounds}"))
    return Race(
        model=case.model.name,
        precision=case.workload.precision,
        attention=case.workload.attention,
        reference=CLASSES[reference_family(case.decoder)],
        parameters=sum(item.numel() for item in made.model.parameters()),
        losses=losses,
        seconds=seconds,
        ratios={name: ratio_of_medians(seconds[OURS], theirs) for name, theirs in seconds.items() if name != OURS},
    )


def overhead(races: tuple[Race, ...], rounds: int, writer: RankWriter) -> Overhead:
    """What the harness adds, measured on short steps, as a part of every race's step."""
    case = Case(preset("gpt-1m"), workload=SHORT_STEP)
    made = Contestants(case, writer)
    seconds = interleave({OURS: made.ours, BY_HAND: made.by_hand()}, rounds * SHORT_ROUNDS, WARMUP)
    added = median_difference(seconds[OURS], seconds[BY_HAND])
    fraction = {}
    for row in races:
        step = summarize(row.seconds[BY_HAND])
        assert step is not None
        fraction[f"{row.model} {row.precision} {row.attention}"] = added.value / step.median
    return Overhead(case.model.name, seconds, added, fraction)


def measure(scale: str, rounds: int, workload: Workload, kernels: tuple[AttentionKernel, ...]) -> SpeedReport:
    """Every form in both precisions under each kernel, then the harness' own share."""
    with tempfile.TemporaryDirectory() as folder:
        writer = RankWriter(Path(folder), 0)
        try:
            races = tuple(
                race(Case(preset(f"{form}-{scale}"), workload=_with(workload, precision, kernel)), rounds, writer)
                for kernel in kernels
                for form in FORMS
                for precision in LOSS_TOLERANCE
            )
            share = overhead(races, rounds, writer)
        finally:
            writer.close()
    versions = {name: package_version(name) for name in ("torch", "transformers")}
    threads = torch.get_num_threads()
    return SpeedReport(SCHEMA, threads, versions, workload.seq_len, workload.micro_batch, races, share)


def _with(workload: Workload, precision: Precision, kernel: AttentionKernel) -> Workload:
    return replace(workload, precision=precision, attention=kernel)


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main(arguments: list[str]) -> int:
    """Exit status 0 with the rows, 1 where the models disagree, 2 for bad input; one line on standard error then."""
    parser = argparse.ArgumentParser(prog="parallelism.speed")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each contestant")
    parser.add_argument("--model-scale", choices=SCALES, default="10m", help="size of the tiny presets")
    parser.add_argument("--seq-len", type=int, default=256, help="tokens in a sequence")
    parser.add_argument("--micro-batch", type=int, default=4, help="sequences in the batch")
    parser.add_argument("--attention", choices=list(AttentionKernel), nargs="+", default=[AttentionKernel.FLASH])
    options = parser.parse_args(arguments)
    try:
        require(options.rounds >= 1, f"rounds: must be at least 1, got {options.rounds}")
        workload = Workload(seq_len=options.seq_len, micro_batch=options.micro_batch)
        kernels = tuple(AttentionKernel(name) for name in options.attention)
        report = measure(options.model_scale, options.rounds, workload, kernels)
    except (SpecError, SpeedError) as error:
        _tell(str(error))
        return 2 if isinstance(error, SpecError) else 1
    text = json.dumps(to_mapping(report)) if options.json else "\n".join(lines(report))
    sys.stdout.write(f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
