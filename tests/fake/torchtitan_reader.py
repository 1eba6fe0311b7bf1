"""Reads exported files as torchtitan does: `python -m tests.fake.torchtitan_reader FOLDER...`, an answer a folder.

A process of its own, since it makes modules up: triton, data sets and loggers, which torchtitan imports beside its
configuration, and torchao's converter, which wants a GPU. The parser, the configuration's classes, the models' shapes
and the checks of the parallel degrees are torchtitan's own.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import sys
import types
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

# torch asks for triton when these load, and takes any module of that name for the real one
import torch._functorch.partitioners
import torch.distributed.pipelining
import torch.nn.attention.flex_attention
import torch.utils.flop_counter
from torch.distributed.pipelining.schedules import get_schedule_class

#: torchtitan compiles its attention where it defines it, which alone would load torch's whole compiler
torch.compile = lambda function=None, **keywords: function

MADE_UP = ("triton", "datasets", "torchdata", "torch.utils.tensorboard")


class Anything:
    """Whatever a made-up module is asked for."""

    def __init__(self, *args: Any, **keywords: Any) -> None: ...

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self

    def __class_getitem__(cls, item: Any) -> Any:
        return cls


class Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Anything,), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the made-up modules."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        is_ours = any(name == root or name.startswith(f"{root}.") for root in MADE_UP)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if is_ours else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None: ...


def read(folder: str, world_size: int) -> dict[str, Any]:
    """What torchtitan takes from the file in a folder, and makes of it for so many ranks."""
    from torchtitan.components.quantization import Float8LinearConverter
    from torchtitan.config import ConfigManager
    from torchtitan.distributed import ParallelDims

    converted: list[dict[str, Any]] = []
    Float8LinearConverter.__init__ = lambda self, config: converted.append(config.to_dict())
    Float8LinearConverter.convert = lambda self, model: model
    sys.modules.pop("config_registry", None)
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    config = ConfigManager().parse_args(["--module", "config_registry", "--config", "shardscope"])
    sys.path.remove(folder)
    ParallelDims.from_config(config.parallelism, world_size)
    spec = config.model_spec
    spec.model.update_from_config(config=config)
    with torch.device("meta"):
        model = spec.model.build()
    schedule = get_schedule_class(config.parallelism.pipeline_parallel_schedule).__name__
    attention = spec.model.layers[0].attention
    answer = {
        "training": asdict(config.training),
        "parallelism": asdict(config.parallelism) | {"schedule_class": schedule},
        "loss": [type(config.loss).__qualname__, config.loss.to_dict()],
        "optimizer": config.optimizer.to_dict(),
        "lr_scheduler": asdict(config.lr_scheduler),
        "validator": [config.validator.enable, config.validator.freq, config.validator.steps],
        "seed": config.debug.seed,
        "flavor": spec.flavor,
        "parameters": sum(item.numel() for item in model.parameters()),
        "modules": [name for name, _ in model.named_children() if name != "layers"]
        + [f"layers.{name}" for name in model.layers],
        "rope": asdict(attention.rope),
        "kernel": type(attention.inner_attention).__qualname__,
        "eps": spec.model.norm.eps,
        "fp8": converted,
    }
    if config.optimizer.implementation != "fused":  # which meta tensors have not
        answer["groups"], answer["rates"] = _optimized(config, model)
    if config.activation_checkpoint is not None:
        config.activation_checkpoint.build(dump_folder="").apply(model)
        answer["policy"] = type(config.activation_checkpoint).__qualname__
    answer["wrapped"] = [name for name, block in model.layers.items() if type(block).__name__ == "CheckpointWrapper"]
    return answer


def _optimized(config: Any, model: torch.nn.Module) -> tuple[list[Any], list[float]]:
    """Each group's tensors by their dimensions, with its decay, and every step's learning rate."""
    optimizers = config.optimizer.build(model_parts=[model])
    [optimizer] = optimizers
    groups = [
        [sorted({item.dim() for item in group["params"]}), group["weight_decay"]] for group in optimizer.param_groups
    ]
    schedule = config.lr_scheduler.build(optimizers=optimizers, training_steps=config.training.steps)
    rates = []
    for _ in range(config.training.steps):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    return groups, rates


def main(words: Sequence[str]) -> None:
    """Pairs of a folder and its ranks; the answers as one JSON line, since torchtitan logs beside it."""
    sys.meta_path.insert(0, Finder())
    answers = {
        Path(folder).name: read(folder, int(ranks)) for folder, ranks in zip(words[::2], words[1::2], strict=True)
    }
    print(json.dumps(answers, default=str))


if __name__ == "__main__":
    main(sys.argv[1:])
