"""What a rank holds when a model answers whose operators are not modelled yet: its published weights, and its cache."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from memory.inference import InferenceModel, InferenceTerm, Phase
from suite.case import Case
from suite.models.served import ServedModel, served_model_of
from suite.operators import Ledger
from suite.parse import require


@dataclass(frozen=True)
class PublishedInference(InferenceModel):
    """As InferenceModel, of a model of suite/models/served.py.

    Counted: the published total of the parameters over the ranks of tensor parallelism, in the bytes a parameter of the
    released checkpoint, and every term of the cache. Not counted: what ranks hold twice (norms, routers), the forward
    pass's own tensors. SpecError for a pipeline, whose stages are not known.
    """

    published: ServedModel

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.case.layout.pp == 1,
            f"layout.pp: {self.case.layout.pp} with {self.published.name}, of whose stages only the sum is known"
            f" ({self.published.why}); use tp",
        )

    def _weights(self, rank: int) -> list[InferenceTerm]:
        model, tp = self.published, self.case.layout.tp
        nbytes = math.ceil(model.parameters * model.weight_bytes / tp)
        said = f"published parameters*{model.weight_bytes:g}" + (" / tp" if tp > 1 else "")
        return [InferenceTerm(Phase.LOADED, "weights", nbytes, said, model.source)]

    def _passing(self, rank: int, phase: Phase) -> list[InferenceTerm]:
        return []

    def _ledger(self, rank: int, length: int, batch: int) -> Ledger:
        raise NotImplementedError(f"{self.published.name}: {self.published.why}")


def inference_of(case: Case) -> InferenceModel:
    """The memory of a served case, by its ledger or by what was published of it."""
    published = served_model_of(case.decoder)
    return InferenceModel(case) if published is None else PublishedInference(case, published)


def fullest_rank(model: InferenceModel) -> tuple[int, int]:
    """The rank that holds most, and its bytes: the first of a pipeline's place, whose shares are the largest."""
    layout = model.case.layout
    peaks = {rank: model.peak_bytes(rank) for rank in range(0, layout.world_size, layout.world_size // layout.pp)}
    rank = max(peaks, key=lambda rank: peaks[rank])
    return rank, peaks[rank]


def resized(case: Case, batch: int, context: int, step_tokens: int | None) -> Case:
    """The case with so many sequences of so many tokens, prompt and answer together; `step_tokens` None keeps the
    case's own prefill_tokens, else each prompt has its part of so many tokens in a forward pass, at least one."""
    new = min(case.serving.new_tokens or 1, context - 1)
    chunk = case.serving.prefill_tokens if step_tokens is None else max(1, step_tokens // batch)
    shortest = min(case.serving.shortest_prompt, context - new)
    return replace(
        case,
        workload=replace(case.workload, micro_batch=batch, seq_len=context - new),
        serving=replace(case.serving, new_tokens=new, prefill_tokens=chunk, shortest_prompt=shortest),
    )
