"""The memory suite: every decoder form with every strategy, checkpointing mode, precision, kernel and optimizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from suite.case import Case, case_from
from suite.pairwise import pairwise
from suite.parse import SpecError

#: a decoder that every layout of up to 8 ranks divides, in GPT-2's form and in LLaMA's
_SIZES: dict[str, Any] = {
    "family": "decoder", "layers": 4, "hidden": 64, "heads": 8, "vocab": 1024, "max_positions": 64,
}  # fmt: skip
_GPT = _SIZES | {"ffn": 256, "norm": "layernorm", "activation": "gelu", "position": "learned", "bias": True}
_LLAMA = _SIZES | {"ffn": 176, "kv_heads": 4}
FORMS: Mapping[str, dict[str, Any]] = {
    "gpt": _GPT,
    "gpt tied": _GPT | {"tied": True},
    "llama": _LLAMA,
    "llama tied": _LLAMA | {"tied": True},
}

LAYOUTS: Mapping[str, dict[str, Any]] = {
    "single": {},
    "ddp": {"dp": 2},
    "fsdp": {"fsdp": 2},
    "fsdp kept": {"fsdp": 2, "reshard_after_forward": False},
    "fsdp to 2": {"fsdp": 4, "reshard_after_forward": 2, "forward_prefetch": 1},
    "fsdp by micro-batch": {"fsdp": 2, "reduction": "micro-batch"},
    "hsdp": {"dp": 2, "fsdp": 2},
    "zero-0": {"dp": 2, "engine": "deepspeed"},
    "zero-1": {"dp": 2, "zero": 1, "bucket_mib": 4},
    "zero-1 torch": {"dp": 2, "zero": 1, "engine": "torch"},
    "zero-2": {"dp": 2, "zero": 2, "bucket_mib": 4},
    "zero-3": {"dp": 2, "zero": 3, "bucket_mib": 4},
    "tp": {"tp": 2},
    "tp 4": {"tp": 4},
    "tp without sp": {"tp": 2, "sequence_parallel": False},
    "tp x dp": {"tp": 2, "dp": 2},
    "tp x fsdp": {"tp": 2, "fsdp": 2},
    "tp x hsdp": {"tp": 2, "fsdp": 2, "dp": 2},
    "ring": {"cp": 2},
    "ring in order": {"cp": 2, "load_balance": False},
    "ulysses": {"cp": 2, "context": "ulysses"},
    "ring x fsdp": {"cp": 2, "fsdp": 2},
    "ring x tp": {"cp": 2, "tp": 2},
    "gpipe": {"pp": 2, "schedule": "gpipe"},
    "1f1b": {"pp": 2, "schedule": "1f1b"},
    "1f1b of 4": {"pp": 4, "schedule": "1f1b"},
    "1f1b uneven": {"pp": 2, "schedule": "1f1b", "stage_split": "3-1"},
    "interleaved": {"pp": 2, "schedule": "interleaved-1f1b", "virtual_stages": 2},
    "zero-bubble": {"pp": 2, "schedule": "interleaved-zero-bubble", "virtual_stages": 2},
    "zbv": {"pp": 2, "schedule": "zbv", "virtual_stages": 2},
    "dualpipev": {"pp": 2, "schedule": "dualpipev", "virtual_stages": 2},
    "1f1b x fsdp": {"pp": 2, "fsdp": 2},
    "1f1b x zero-1": {"pp": 2, "dp": 2, "zero": 1},
    "1f1b x tp": {"pp": 2, "tp": 2},
    "1f1b x tp x fsdp": {"pp": 2, "tp": 2, "fsdp": 2},
}  # fmt: skip

#: what each place of a combination chooses from
FACTORS: Mapping[str, Sequence[str]] = {
    "form": tuple(FORMS),
    "strategy": tuple(LAYOUTS),
    "recompute": ("none", "selective", "full"),
    "precision": ("fp32", "bf16-mixed"),
    "attention": ("flash", "eager"),
    "optimizer": ("adamw", "sgd"),
}
#: as many as DualPipeV needs on two ranks; elsewhere a step that adds gradients to gradients
_MICRO_BATCHES = {1: 2, 2: 4, 4: 4}

Choice = Mapping[str, str]


@dataclass(frozen=True)
class Matrix:
    """Combinations of the factors, those that make a case and those that are refused."""

    choices: tuple[Choice, ...]
    make: Callable[[Choice], Case | str]
    """a combination's case, or the reason why there is none"""

    @cached_property
    def cases(self) -> Mapping[Case, Choice]:
        """The cases that are legal, with what each chose."""
        return {found: choice for choice, found in self._found if isinstance(found, Case)}

    @cached_property
    def refused(self) -> Mapping[str, int]:
        """Why the others are refused -> how many are."""
        return Counter(found for _, found in self._found if isinstance(found, str))

    @cached_property
    def _found(self) -> tuple[tuple[Choice, Case | str], ...]:
        return tuple((choice, self.make(choice)) for choice in self.choices)


def whole_matrix() -> Matrix:
    """Every combination."""
    return Matrix(tuple(_combinations()), _case)


def pairs_matrix() -> Matrix:
    """A covering sample: every two values of every two factors meet in some combination."""
    order = {name: place for place, name in enumerate(LAYOUTS)}
    return Matrix(tuple(sorted(pairwise(FACTORS), key=lambda choice: order[choice["strategy"]])), _case)


def _combinations() -> Iterator[Choice]:
    """Strategy by strategy, so that cases of one size stand together."""
    for values in product(*FACTORS.values()):
        yield dict(zip(FACTORS, values, strict=True))


def _case(choice: Choice) -> Case | str:
    """The case of a combination, or the reason why there is none."""
    layout = LAYOUTS[choice["strategy"]] | {"recompute": choice["recompute"]}
    workload = {
        "seq_len": 64,
        "micro_batch": 2,
        "micro_batches": _MICRO_BATCHES[layout.get("pp", 1)],
        **{key: choice[key] for key in ("precision", "attention", "optimizer")},
    }
    model = FORMS[choice["form"]] | {"name": choice["form"].replace(" ", "-")}
    try:
        return case_from({"model": model, "layout": layout, "workload": workload, "recipe": {"steps": 3}})
    except SpecError as error:
        return str(error)
