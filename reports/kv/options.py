"""What `kv` is asked, from its flags: a served case at a context and a batch, and how much of the device it may use."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memory.published_inference import resized
from memory.serving_limits import MOST_SEQUENCES
from reports.calibrated import calibration_given
from reports.kv.flags import ANSWER_TOKENS, MEMORY_SHARE, STEP_TOKENS
from suite.cache_choices import Choice, parse_choices
from suite.case import Case
from suite.flags import case_of
from suite.hardware.calibration import Calibration
from suite.models import PRESETS, model_from
from suite.models.served import SERVED_MODELS
from suite.parse import from_text, nearest, require, shown, to_mapping
from suite.spec import Recipe

#: flags beside a recipe's that only training has
TRAINING = ("global_batch", "micro_batches", "optimizer", "optimizer_kernel", "loss")


@dataclass(frozen=True)
class Asked:
    """A served case, what may be used of its device, and what it is to be compared with."""

    case: Case
    step_tokens: int | None  # of all prompts in one forward pass; None: the case's own prefill_tokens of each
    memory_share: float
    calibration: Calibration | None
    choices: tuple[Choice, ...]

    @property
    def context(self) -> int:
        """Tokens of a sequence when its answer is whole."""
        return self.case.workload.seq_len + (self.case.serving.new_tokens or 0)

    @property
    def batch(self) -> int:
        """Sequences a replica."""
        return self.case.workload.micro_batch


def asked_of(options: argparse.Namespace) -> Asked:
    """What the flags ask. SpecError for what cannot be answered, in one line."""
    choices = () if options.compare is None else parse_choices(options.compare)
    share = MEMORY_SHARE if options.memory_share is None else memory_share(options.memory_share)
    model = options.model
    if isinstance(model, str):
        require(
            model in PRESETS or model in SERVED_MODELS,
            f"model: {shown(model)} is not a preset; {nearest(model, [*PRESETS, *SERVED_MODELS])}",
        )
    refuse_training(options)
    case = case_of(options, lambda data: _settle(data, options))
    batch = case.workload.micro_batch
    require(
        batch <= MOST_SEQUENCES, f"--batch: {batch} sequences a replica are beyond the {MOST_SEQUENCES} counted here"
    )
    step_tokens = None if case.serving.prefill_tokens else STEP_TOKENS
    case = resized(case, batch, case.workload.seq_len + (case.serving.new_tokens or 0), step_tokens)
    return Asked(case, step_tokens, share, calibration_given(options.calibration), choices)


def memory_share(text: str) -> float:
    """What --memory-share says. SpecError for what is no share."""
    share: float = from_text(text, float, "--memory-share")
    require(0 < share <= 1, f"--memory-share: must be above 0 and at most 1, got {shown(text)}")
    return share


def refuse_training(options: argparse.Namespace) -> None:
    """Refuse flags that change nothing of a model that answers."""
    names = [*(field.name for field in dataclasses.fields(Recipe)), *TRAINING]
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None]
    require(not given, f"{', '.join(given)}: of training, and kv asks about answering; leave it out")


def _settle(data: dict[str, Any], options: argparse.Namespace) -> None:
    """Fill in prompt, answer and batch of a case that may say nothing of being served."""
    if isinstance(data.get("model"), str) and data["model"] in SERVED_MODELS:
        data["model"] = to_mapping(SERVED_MODELS[data["model"]].spec)
    require("model" in data, "case.model: missing; give a preset's name or an object")
    parts = {name: data.get(name, {}) for name in ("workload", "serving", "cache")}
    for name, part in parts.items():
        require(isinstance(part, Mapping), f"{name}: expected an object with keys")
    require(
        parts["cache"].get("cache_tokens") is None,
        "cache.cache_tokens: kv asks how many tokens there is room for; give --context instead",
    )
    prompt, answer = lengths(
        parts["workload"].get("seq_len"), parts["serving"].get("new_tokens"), options.context_tokens,
        model_from(data["model"]).max_positions,
    )  # fmt: skip
    if options.batch is not None:
        said = parts["workload"].get("micro_batch", options.batch)
        require(said == options.batch, f"--batch: {options.batch} beside a micro_batch of {said}; give one of them")
        parts["workload"] = {**parts["workload"], "micro_batch": options.batch}
    data["workload"] = {**parts["workload"], "seq_len": prompt}
    data["serving"] = {**parts["serving"], "new_tokens": answer}


def lengths(prompt: Any, answer: Any, context: int | None, positions: int) -> tuple[Any, Any]:
    """(tokens of a prompt, tokens of its answer). What is no number is left for the case's own check to refuse."""
    if not all(value is None or type(value) is int for value in (prompt, answer)):
        return prompt, answer
    if prompt is not None and answer is not None:
        require(
            context in (None, prompt + answer),
            f"--context: {context} != seq_len({prompt}) + new_tokens({answer}); leave one of the three out",
        )
        return prompt, answer
    if prompt is not None:
        rest = min(ANSWER_TOKENS, max(1, positions - prompt)) if context is None else context - prompt
        require(rest >= 1, f"--context: {context} leaves no token for an answer to a prompt of seq_len({prompt})")
        return prompt, rest
    whole = positions if context is None else context
    require(whole >= 2, f"--context: {whole} is too short for a prompt and an answer; give at least 2")
    answer = min(ANSWER_TOKENS, whole // 2) if answer is None else answer
    require(answer < whole, f"--context: {whole} leaves no token for a prompt beside new_tokens({answer})")
    return whole - answer, answer
