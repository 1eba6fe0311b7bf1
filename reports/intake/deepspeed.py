"""A DeepSpeed JSON as parts of a case (https://www.deepspeed.ai/docs/config-json). It says nothing of the model."""

from __future__ import annotations

import json
from typing import Any

from parallelism.zero.config import DEFAULT_BUCKET_ELEMENTS, STAGE_3_SETTINGS, element_bytes
from reports.intake.base import Taken
from reports.intake.deepspeed_keys import HARMLESS, MODELLED, OPTIMIZERS, WARMUPS
from reports.intake.keys import AUTO, Keys, line
from suite.documents import read_json
from suite.parse import require, shown
from suite.spec import Precision

#: one of these in a JSON object shows a DeepSpeed configuration
_OWN = ("train_batch_size", "train_micro_batch_size_per_gpu", "zero_optimization")
_SECTIONS = ("bf16", "fp16", "optimizer", "scheduler", "activation_checkpointing")
_ZERO = "zero_optimization"


def is_deepspeed(head: str) -> bool:
    """Does a file that begins so hold a DeepSpeed configuration?"""
    if not any(f'"{key}"' in head for key in _OWN):
        return False
    try:
        document = json.loads(head)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and any(key in document for key in _OWN)


def read_deepspeed(path: str) -> Taken:
    """The configuration at a path; SpecError for what is none, and for values of a wrong kind."""
    document = read_json(path, "FILE")
    if isinstance(document, dict) and isinstance(document.get(_ZERO), bool):  # how DeepSpeed 0.2 had it
        document = document | {_ZERO: {"stage": int(document[_ZERO])}}
    keys = Keys(document, f"FILE: {shown(path)}")
    for section in (*_SECTIONS, _ZERO):
        require(
            section not in keys.left or keys.left[section] in ({}, None),
            f"{keys.where}: {section}: expected an object with keys",
        )
    return _Reading(keys).taken()


class _Reading:
    """One document on its way to a Taken: every method takes its keys, and notes what it assumes."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.assumed: list[str] = []
        self.unmodelled: list[str] = []
        self.layout: dict[str, Any] = {}
        self.workload: dict[str, Any] = {}
        self.recipe: dict[str, Any] = {}

    def taken(self) -> Taken:
        precision = self._precision()
        stage = self._stage(precision)
        self._offload(stage)
        batch = self._batch()
        self._optimizer()
        self._schedule()
        self._recompute()
        self._communication(precision)
        ignored = list(self.keys.skip(HARMLESS))
        self._modelled_at_one_value()
        self.unmodelled += list(self.keys.skip(frozenset(self.keys.left)))
        parts = {"layout": self.layout, "workload": self.workload, "recipe": self.recipe}
        assumed = (*self.assumed, *self.keys.automatic)
        case = {part: given for part, given in parts.items() if given}
        return Taken(case, tuple(self.unmodelled), assumed, tuple(ignored), batch)

    def _precision(self) -> Precision:
        take = self.keys.take
        old = self.keys.left.pop("bfloat16.enabled", None)
        if old is not None:
            self.keys.left.setdefault("bf16.enabled", old)
        is_bf16 = take("bf16.enabled", bool, meaning="bf16-mixed is taken where fp16 is not on")
        is_left_open = bool(self.keys.automatic)
        is_fp16 = take("fp16.enabled", bool, meaning="off is taken")
        require(not (is_bf16 and is_fp16), f"{self.keys.where}: bf16 and fp16 are both enabled; DeepSpeed takes one")
        if is_fp16:
            self.assumed.append(
                "fp16.enabled true: bf16-mixed, of the same bytes; the engine's loss scaling is not modelled"
            )
        precision = Precision.BF16_MIXED if is_bf16 or is_fp16 or is_left_open else Precision.FP32
        self.workload["precision"] = precision.value
        return precision

    def _stage(self, precision: Precision) -> int:
        stage = self.keys.take(f"{_ZERO}.stage", int, meaning="0 is taken") or 0
        require(0 <= stage <= 3, f"{self.keys.where}: {_ZERO}.stage: must be 0, 1, 2 or 3, got {stage}")
        self.layout["zero"] = stage
        if not stage:
            self.layout["engine"] = "deepspeed"
        size = self.keys.take(f"{_ZERO}.reduce_bucket_size", int, meaning="DeepSpeed's 5e8 elements are taken")
        if stage and size is not None and size != DEFAULT_BUCKET_ELEMENTS:
            require(size > 0, f"{self.keys.where}: {_ZERO}.reduce_bucket_size: must be positive, got {size}")
            self.layout["bucket_mib"] = self._bucket_mib(size * element_bytes(precision))
        overlaps = self.keys.take(f"{_ZERO}.overlap_comm", bool, meaning="DeepSpeed's default is taken")
        if overlaps is not None and overlaps is not (stage == 3):
            is_modelled = "in stage 3 alone reductions overlap backward"
            self.unmodelled.append(f"{line(f'{_ZERO}.overlap_comm', overlaps)}: modelled as its default: {is_modelled}")
        for key, value in STAGE_3_SETTINGS.items():
            self._stage_3_setting(f"{_ZERO}.{key}", value, stage)
        return stage

    def _bucket_mib(self, size: int) -> int:
        whole = max(1, round(size / 2**20))
        if whole * 2**20 != size:
            self.assumed.append(
                f"layout.bucket_mib {whole}: reduce_bucket_size is {size / 2**20:.2f} MiB, no whole number"
            )
        return whole

    def _stage_3_setting(self, path: str, value: int, stage: int) -> None:
        said = self.keys.take(path, int, meaning=f"modelled as {value}")
        if stage == 3 and said is None and not any(text.startswith(path) for text in self.keys.automatic):
            self.assumed.append(f"{path} {value}: the file leaves it at DeepSpeed's default, which is not modelled")
        elif said is not None and (said != value or stage != 3):
            self.unmodelled.append(
                f"{line(path, said)}: " + (f"modelled as {value}" if stage == 3 else "read in stage 3 alone")
            )

    def _offload(self, stage: int) -> None:
        devices = {part: self._device(part) for part in ("optimizer", "param")}
        if stage and self.keys.left.get(f"{_ZERO}.cpu_offload") is True:  # how it was called before 0.3.16
            self.keys.left.pop(f"{_ZERO}.cpu_offload")
            devices["optimizer"] = "cpu"
        is_on = {part: device not in (None, "none") for part, device in devices.items()}
        if is_on["param"] and stage == 3:
            self.layout["offload"] = "parameters"
            if not is_on["optimizer"]:
                self.assumed.append("layout.offload parameters: modelled with the optimizer in host memory too")
        elif is_on["optimizer"] and stage:
            self.layout["offload"] = "optimizer"
        for part, device in devices.items():
            if device == "nvme":
                self.unmodelled.append(f'{_ZERO}.offload_{part}.device "nvme": modelled as host memory')
            if is_on[part] and (not stage or (part == "param" and stage < 3)):
                self.unmodelled.append(f'{_ZERO}.offload_{part}.device "{device}": stage {stage} does not read it')

    def _device(self, part: str) -> str | None:
        path = f"{_ZERO}.offload_{part}"
        device = self.keys.take(f"{path}.device", str, meaning="none is taken")
        require(
            device in (None, "none", "cpu", "nvme"),
            f"{self.keys.where}: {path}.device: {shown(device)} is not known; known: none, cpu, nvme",
        )
        if self.keys.left.get(path, 0) in (None, {}):
            self.keys.left.pop(path)  # no offload
        pinned = self.keys.take(f"{path}.pin_memory", bool, meaning="true is taken")
        if pinned is False and device == "cpu":
            self.unmodelled.append(f"{path}.pin_memory false: on a GPU copies are modelled from pinned memory")
        return device

    def _batch(self) -> int | None:
        sizes: dict[str, int | None] = {}
        for key, name in (
            ("train_batch_size", "--global-batch"),
            ("train_micro_batch_size_per_gpu", "--micro-batch"),
            ("gradient_accumulation_steps", "--micro-batches"),
        ):
            sizes[key] = self.keys.take(key, int, meaning=f"{name} says it")
            require(
                sizes[key] is None or (sizes[key] or 0) >= 1,
                f"{self.keys.where}: {key}: must be at least 1, got {sizes[key]}",
            )
        whole, micro, count = sizes.values()
        if micro is not None:
            self.workload["micro_batch"] = micro
        if count is not None:
            self.workload["micro_batches"] = count
        if whole is None and micro is None:
            self.assumed.append("workload.micro_batch: the file does not say it; give --micro-batch")
        return whole

    def _optimizer(self) -> None:
        take = self.keys.take
        name = take("optimizer.type", str, meaning="adamw is taken")
        if name is None:
            self.assumed.append("workload.optimizer adamw: the file has none, so the training script makes its own")
        elif name.lower() in OPTIMIZERS:
            self.workload["optimizer"] = OPTIMIZERS[name.lower()]
        else:
            self.unmodelled.append(f"{line('optimizer.type', name)}: give --optimizer, or adamw stands for it")
        rate = take("optimizer.params.lr", float, meaning="--learning-rate says it")
        decay = take("optimizer.params.weight_decay", float, meaning="--weight-decay says it")
        clip = take("gradient_clipping", float, meaning="--clip-norm says it")
        self.recipe |= {
            key: value for key, value in (("learning_rate", rate), ("weight_decay", decay)) if value is not None
        }
        if clip is not None:
            self.recipe["clip_norm"] = clip or "inf"
        elif not any(text.startswith("gradient_clipping") for text in self.keys.automatic):
            self.recipe["clip_norm"] = "inf"
            self.assumed.append("recipe.clip_norm inf: the file does not say it, and DeepSpeed then clips nothing")

    def _schedule(self) -> None:
        take = self.keys.take
        name = take("scheduler.type", str, meaning="warm-up and cosine are taken")
        steps = take("scheduler.params.warmup_num_steps", int, meaning="--warmup-steps says it")
        total = take("scheduler.params.total_num_steps", int, meaning="--steps says it")
        peak = take("scheduler.params.warmup_max_lr", float, meaning="--learning-rate says it")
        if peak is not None:
            self.recipe.setdefault("learning_rate", peak)
        if steps is not None:
            self.recipe["warmup_steps"] = steps
        if total is not None:
            self.recipe["steps"] = total
        if name is not None and name not in WARMUPS:
            self.unmodelled.append(f"{line('scheduler.type', name)}: a warm-up and a cosine stand for it")
        elif name in WARMUPS[:2]:
            self.assumed.append(
                f"{line('scheduler.type', name)}: a cosine follows the warm-up here; bytes and seconds are the same"
            )

    def _recompute(self) -> None:
        if "activation_checkpointing" in self.keys.sections:
            self.layout["recompute"] = "full"
            self.assumed.append(
                "layout.recompute full: activation_checkpointing says how, and only the model's code whether; give"
                " --recompute none where it does not"
            )
            self.keys.left.pop("activation_checkpointing", None)

    def _communication(self, precision: Precision) -> None:
        own = "fp32" if precision is Precision.FP32 else "bf16"
        for path in ("communication_data_type", "data_types.grad_accum_dtype"):
            said = self.keys.take(path, str, meaning=f"{own} is taken")
            if said is not None and said.lower() not in (own, "bfloat16" if own == "bf16" else "float32"):
                self.unmodelled.append(f"{line(path, said)}: modelled as {own}")

    def _modelled_at_one_value(self) -> None:
        for path, value in MODELLED.items():
            if path not in self.keys.left:
                continue
            said = self.keys.left.pop(path)
            if said == AUTO:
                self.assumed.append(f"{path} auto: its trainer fills it in; modelled as {json.dumps(value)}")
            elif said is not None and said != value:
                self.unmodelled.append(f"{line(path, said)}: modelled as {json.dumps(value)}")
