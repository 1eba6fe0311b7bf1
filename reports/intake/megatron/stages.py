"""Which blocks Megatron-LM's arguments give each pipeline stage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from parallelism.schedules.stages import balanced_split, block_costs, even_split
from reports.intake.megatron.settings import Settings
from suite.case import case_from
from suite.layout import StageSplit
from suite.parse import SpecError, require, shown

#: of a layout text: a repeated bracket, a repeated letter
_BRACKET, _LETTER = re.compile(r"\(([^()]+)\)\*(\d{1,3})", flags=re.ASCII), re.compile(r"(.)\*(\d{1,3})")
#: characters of a layout text, its repetitions written out
LONGEST = 20_000


def pipeline_of(settings: Settings) -> dict[str, Any]:
    """pp, schedule, virtual_stages and stage_split of the layout. SpecError for blocks that make no equal stages where
    Megatron-LM would want them."""
    pp, layers = settings.whole("pipeline_model_parallel_size"), settings.whole("num_layers")
    text = settings.text("pipeline_model_parallel_layout")
    counts = _of_text(settings, text, pp) if text is not None else _of_numbers(settings, pp, layers)
    if pp == 1:
        for name in ("num_virtual_stages_per_pipeline_rank", "num_layers_per_virtual_pipeline_stage"):
            settings.taken.add(name)
        return {"pp": 1}
    virtual = len(counts) // pp
    require(
        sum(counts) == layers and min(counts) > 0,
        f"--pipeline-model-parallel-size: {pp} ranks of {virtual} stages with {'-'.join(map(str, counts))} blocks are"
        f" not --num-layers {layers}",
    )
    schedule = "interleaved-1f1b" if virtual > 1 else "1f1b"
    split = "even" if all(count == counts[0] for count in counts) else "-".join(map(str, counts))
    return {"pp": pp, "schedule": schedule, "virtual_stages": virtual, "stage_split": split}


def _of_text(settings: Settings, text: str, pp: int) -> list[int]:
    """Blocks of each stage of --pipeline-model-parallel-layout: E embedding, t block, L loss, stages between |."""
    plain = text.replace(",", "").replace(" ", "").strip("'\"")
    for pattern in (_BRACKET, _LETTER):
        require(len(plain) <= LONGEST, f"--pipeline-model-parallel-layout: {shown(text)} is too long")
        plain = pattern.sub(lambda match: match[1] * int(match[2]), plain)
    stages = plain.split("|")
    unknown = set(plain) - set("EtL|")
    if unknown == {"m"}:
        settings.leave("pipeline_model_parallel_layout", "m, multi-token prediction, is left out")
    elif unknown:
        raise SpecError(f"--pipeline-model-parallel-layout: {shown(text)}: {shown(min(unknown))} is none of E, t, m, L")
    require(
        len(stages) % pp == 0,
        f"--pipeline-model-parallel-layout: {len(stages)} stages on --pipeline-model-parallel-size {pp}",
    )
    ends = ["E" in stages[0], "L" in stages[-1], plain.count("E") == 1, plain.count("L") == 1]
    if not all(ends) or min(stage.count("t") for stage in stages) == 0:
        raise SpecError(
            f"--pipeline-model-parallel-layout: {shown(text)}: a stage without blocks is not modelled; give each stage"
            " some, the embedding to the first, the loss to the last"
        )
    return [stage.count("t") for stage in stages]


def _of_numbers(settings: Settings, pp: int, layers: int) -> list[int]:
    """Even stages, but for what the first and the last give up: to the embedding and the loss, or as said."""
    early, late = (settings.is_on(f"account_for_{end}_in_pipeline_split") for end in ("embedding", "loss"))
    first, last = (settings.number(f"decoder_{end}_pipeline_num_layers") for end in ("first", "last"))
    each, count = settings.number("num_layers_per_virtual_pipeline_stage"), layers + early + late
    said = [int(size) for size in (first, last) if size is not None]
    ranks = pp - len(said)
    rest = count - sum(said)
    if rest == 0 and ranks == 0:
        return said
    require(
        ranks > 0 and rest > 0 and rest % ranks == 0,
        f"--num-layers: {layers} blocks make no equal stages on --pipeline-model-parallel-size {pp}, as Megatron-LM"
        " wants them; give --pipeline-model-parallel-layout",
    )
    virtual = int(settings.number("num_virtual_stages_per_pipeline_rank") or 1)
    if each:
        virtual = max(1, rest // ranks // int(each))
    counts = [*([int(first)] if first is not None else []), *[rest // ranks] * ranks]
    counts += [int(last)] if last is not None else []
    require(
        virtual >= 1 and all(count % virtual == 0 for count in counts),
        f"--num-virtual-stages-per-pipeline-rank: {virtual} do not divide the blocks of each rank, "
        f"{'-'.join(map(str, counts))}",
    )
    stages = [count // virtual for _ in range(virtual) for count in counts]
    stages[0] -= early
    stages[-1] -= late
    return stages


def with_usual_split(model: Mapping[str, Any], layout: dict[str, Any], workload: Mapping[str, Any]) -> dict[str, Any]:
    """The layout without its stage_split where that has the very blocks of the split that a case takes by itself."""
    if "stage_split" not in layout:
        return layout
    parts = {"seq_len": workload["seq_len"], "micro_batch": workload["micro_batch"], "attention": workload["attention"]}
    whole = case_from({"model": model, "layout": {"recompute": layout.get("recompute", "none")}, "workload": parts})
    stages = layout["pp"] * layout["virtual_stages"]
    usual = balanced_split(block_costs(whole), stages)
    said = StageSplit.parse(layout["stage_split"]).layers or even_split(whole.model.layers, stages)
    return {key: value for key, value in layout.items() if key != "stage_split" or usual != said}
