"""A case as torchtitan's configuration: the Python function that its release 0.3.0 takes by --module and --config."""

from __future__ import annotations

import json

from reports.handover.base import Handover
from reports.handover.python_call import WIDTH
from reports.handover.ranks import grid_lines, summary, torchrun
from reports.handover.torchtitan_gaps import check_layout, unsaid
from reports.handover.torchtitan_model import HELPERS, SHAPE_IMPORTS, check_form, flavor_of, shape_lines
from reports.handover.torchtitan_trainer import policy, trainer_call
from suite.case import Case
from suite.layout import RecomputeKind
from suite.models import DecoderSpec
from suite.parse import require
from suite.spec import LossKernel, Precision

#: what the file is called, and the function in it
FILENAME, FUNCTION = "config_registry.py", "shardscope"


def torchtitan(case: Case) -> Handover:
    """The file, with a comment for each setting that torchtitan cannot express.

    A shape that is a flavor of torchtitan's llama3 is named, another of that form is written out. SpecError for a
    model of another form, and for a layout that torchtitan has no engine for. Keywords: torchtitan/config/configs.py
    of 0.3.0.
    """
    require(
        isinstance(case.model, DecoderSpec),
        f"model.family: {case.model.family!r} of {case.model.name} to torchtitan, whose llama3 is a decoder; give a"
        " decoder, or take another target",
    )
    check_form(case.decoder)
    check_layout(case)
    left, where = unsaid(case), ", on every machine" if case.cluster.nodes > 1 else ""
    program = f"-m torchtitan.train --module config_registry --config {FUNCTION}"
    command = torchrun(case, "HOST:PORT", case.case_id, program)
    lines = [
        f"# {summary(case)}",
        *(f"# {line}" for line in grid_lines(case.layout)),
        "#",
        f"# For torchtitan 0.3.0, saved as {FILENAME}. In its folder{where}:",
        f"#   {command}",
        "# Its attention is FlexAttention: scores are not stored, and documents in a sequence do not see each other.",
        *(["#", "# What torchtitan cannot express of the case, and what it does instead:"] if left else []),
        *(f"# - {line}" for line in left),
        "",
        *_imports(case),
        *_every_nth(case),
        *_model(case),
    ]
    text = "\n".join(lines) + f"\n    return {trainer_call(case).source(4, 7)}\n"
    return Handover(text, FILENAME, left, command)


def _imports(case: Case) -> list[str]:
    """Standard library and torch, then torchtitan's in order; only what is used."""
    chunked, helpers = case.workload.loss is LossKernel.CHUNKED, ["decoder_vocab_size"]
    titan = {
        "components.loss": ["ChunkedLossWrapper", "CrossEntropyLoss"] if chunked else ["CrossEntropyLoss"],
        "components.optimizer": ["LRSchedulersContainer", "OptimizersContainer", "ParamGroupConfig"],
        "config": ["DebugConfig", "ParallelismConfig", "TrainingConfig"],
        "hf_datasets.text_datasets": ["HuggingFaceTextDataLoader"],
        "models.common.config_utils": helpers,
        "models.llama3": ["model_registry"],
        "trainer": ["Trainer"],
    }
    if _is_fp8(case):
        titan["components.quantization"] = ["Float8LinearConverter"]
    if name := policy(case):
        titan["distributed.activation_checkpoint"] = [name if name != "EveryNthAC" else "FullAC"]
    if case.recipe.validation_batches:
        titan["components.validate"] = ["Validator"]
    own = ["dataclass"] if _has_own_policy(case) else []
    first: list[str] = []
    if flavor_of(case.decoder) is None:
        helpers += HELPERS
        titan |= SHAPE_IMPORTS
        own.append("replace")
        first = ["from functools import partial", "", "from torch import nn"]
        if case.model.tied:
            titan["models.common.param_init"] = ["skip_param_init"]
    if own:
        first = [f"from dataclasses import {', '.join(own)}", *first, ""]
    return [*first, *(_from(f"torchtitan.{module}", names) for module, names in sorted(titan.items()))]


def _from(module: str, names: list[str]) -> str:
    """An import, over several lines where one is too long."""
    line = f"from {module} import {', '.join(sorted(names))}"
    return line if len(line) <= WIDTH else f"from {module} import (\n    " + ",\n    ".join(sorted(names)) + ",\n)"


def _is_fp8(case: Case) -> bool:
    return case.workload.precision in (Precision.FP8, Precision.FP8_ROWWISE)


def _has_own_policy(case: Case) -> bool:
    return case.layout.recompute.kind is RecomputeKind.EVERY


def _every_nth(case: Case) -> list[str]:
    """The class of recompute every-<n>, which torchtitan leaves to its user."""
    if not _has_own_policy(case):
        return []
    return f"""

class EveryNthAC(FullAC):
    @dataclass(kw_only=True, slots=True)
    class Config(FullAC.Config):
        pass

    def _wrap_block(self, module, *, base_fqn=None):
        if int(base_fqn.rsplit(".", 1)[1]) % {case.layout.recompute.every}:
            return module
        return FullAC._wrap_block(self, module, base_fqn=base_fqn)
""".rstrip().splitlines()


def _model(case: Case) -> list[str]:
    """What makes `model_spec`, up to the first lines of the function."""
    flavor = flavor_of(case.decoder)
    converter = 'Float8LinearConverter.Config(recipe_name="rowwise", filter_fqns=["lm_head"])'
    start = ["", "", f"def {FUNCTION}() -> Trainer.Config:"]
    if flavor is not None:
        converters = f", converters=[{converter}]" if _is_fp8(case) else ""
        return [*start, f'    model_spec = model_registry("{flavor}"{converters})']
    built = f"{converter}.build().convert(model())" if _is_fp8(case) else "model()"
    return [
        "",
        *shape_lines(case.decoder),
        *start,
        f'    model_spec = replace(model_registry("8B"), flavor={json.dumps(case.model.name)}, model={built})',
    ]
