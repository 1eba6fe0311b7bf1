"""Case: model x layout x workload x cluster (x recipe, serving, cache), frozen; its id hashes its canonical JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from suite.cache import CacheSpec
from suite.case_rules import check_case
from suite.layout import Layout, degrees
from suite.links import Level
from suite.models import ModelSpec, model_from
from suite.models.decoder import DecoderSpec
from suite.parse import SpecError, from_mapping, nearest, require, shown, to_mapping
from suite.serving import Serving
from suite.serving_rules import check_serving
from suite.spec import Cluster, Recipe, Workload

#: the workload's settings that every case's id names
NAMED_ALWAYS = ("seq_len", "micro_batch", "micro_batches", "precision", "optimizer", "attention", "loss")
#: the model's later settings, which ids name only where they are given
NAMED_WITH_EXPERTS = ("dense_layers", "mtp")
NAMED_WHERE_GIVEN = ("window", "latent", "experts")
#: and those which ids name only where they are not what every model was before there was a choice
NAMED_UNLESS = {"mixing": "softmax"}


@dataclass(frozen=True)
class Case:
    """One run, fully described: training, or with `serving.new_tokens` answering prompts. Building it checks that its
    parts fit each other; a served case has no sequence parallelism, since a step has one token of a sequence."""

    model: ModelSpec
    layout: Layout = field(default_factory=Layout)
    workload: Workload = field(default_factory=Workload)
    cluster: Cluster = field(default_factory=Cluster)
    recipe: Recipe = field(default_factory=Recipe)
    serving: Serving = field(default_factory=Serving)
    cache: CacheSpec = field(default_factory=CacheSpec)

    def __post_init__(self) -> None:
        if self.serves:
            object.__setattr__(self, "layout", replace(self.layout, sequence_parallel=False))
        seq_len, positions = self.workload.seq_len, self.model.max_positions
        require(
            seq_len <= positions or self.serves,  # whose own rule counts the answer too
            f"workload.seq_len: {seq_len} is beyond the model's max_positions({positions}) of {self.model.name}",
        )
        ranks, nodes = self.layout.world_size, self.cluster.nodes
        if not self.cluster.per_node:
            require(ranks % nodes == 0, f"cluster.nodes: {nodes} does not divide the layout's {ranks} ranks")
            object.__setattr__(self, "cluster", replace(self.cluster, per_node=ranks // nodes))
        have = nodes * self.cluster.per_node
        require(
            ranks == have,
            f"layout: {degrees(self.layout)} = {ranks} ranks"
            f" != nodes({nodes}) * per_node({self.cluster.per_node}) = {have}; per_node 0 takes what the layout needs",
        )

        check_case(self)
        check_serving(self)

    @cached_property
    def case_id(self) -> str:
        """Twelve hex digits of the SHA-256 of the canonical JSON, without the layout's settings, and the workload's
        later ones, and those of links, that are at their defaults: what is added later renames no case."""
        data = self.to_mapping()
        usual, late = to_mapping(Layout()), to_mapping(Workload())
        data["layout"] = {key: value for key, value in data["layout"].items() if value != usual[key]}
        data["workload"] = {
            key: value for key, value in data["workload"].items() if key in NAMED_ALWAYS or value != late[key]
        }
        links, bare = data["cluster"].pop("links"), to_mapping(Level("", 0, 1.0))
        if links:
            data["cluster"]["links"] = [
                {key: value for key, value in link.items() if value != bare[key]} for link in links
            ]
        data["model"] = {
            key: value
            for key, value in data["model"].items()
            if (key not in NAMED_WHERE_GIVEN or value is not None)
            and (key not in NAMED_WITH_EXPERTS or value)
            and (key not in NAMED_UNLESS or value != NAMED_UNLESS[key])
        }
        for part, unset in (("serving", to_mapping(Serving())), ("cache", to_mapping(CacheSpec()))):
            given = {key: value for key, value in data.pop(part).items() if value != unset[key]}
            data |= {part: given} if given else {}
        text = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def decoder(self) -> DecoderSpec:
        """The model, for what is built for decoders alone. SpecError for another family."""
        if isinstance(self.model, DecoderSpec):
            return self.model
        raise SpecError(f"model.family: {self.model.family!r} of {self.model.name} has none of this; give a decoder")

    @property
    def serves(self) -> bool:
        """Does the model answer prompts, rather than learn?"""
        return self.serving.new_tokens is not None

    @property
    def label(self) -> str:
        """A short name for tables: model, layout, and the workload's choices; of a served case, its cache's too."""
        if self.serves:
            return self._serving_label
        parts = [self.model.name, str(self.layout), self.workload.precision.value, self.workload.attention.value]
        if self.workload.optimizer.value != "adamw":
            parts.append(self.workload.optimizer.value)
        if self.workload.optimizer_kernel.value != "auto":
            parts.append(self.workload.optimizer_kernel.value)
        if self.workload.loss.value != "plain":
            parts.append(f"{self.workload.loss.value}-loss")
        if self.workload.micro_batches > 1:
            parts.append(f"x{self.workload.micro_batches}")
        return " ".join(parts)

    @property
    def _serving_label(self) -> str:
        batch, tokens = self.workload.micro_batch, f"{self.workload.seq_len}+{self.serving.new_tokens}"
        layout = replace(self.layout, sequence_parallel=True)  # its default: nothing to say
        parts = [self.model.name, str(layout), self.workload.precision.value, f"{batch} x {tokens}"]
        if self.serving.sampling.value != "greedy":
            parts.append(self.serving.sampling.value)
        return " ".join([*parts, f"cache {self.cache}"])

    @property
    def global_batch(self) -> int:
        """Sequences an optimizer step: micro_batch x micro_batches x dp x fsdp."""
        return self.workload.micro_batch * self.workload.micro_batches * self.layout.data_ranks

    @property
    def tokens_per_step(self) -> int:
        """Tokens an optimizer step, over all ranks."""
        return self.global_batch * self.workload.seq_len

    def to_mapping(self) -> dict[str, Any]:
        """The case as JSON-ready data; `case_from` reads it back."""
        return to_mapping(self)


PARTS: dict[str, type] = {
    "layout": Layout, "workload": Workload, "cluster": Cluster, "recipe": Recipe, "serving": Serving,
    "cache": CacheSpec,
}  # fmt: skip


def case_from(data: Mapping[str, Any]) -> Case:
    """A Case from its JSON form (docs: the machine-readable contract). Left-out keys take their defaults, seq_len at
    most the model's max_positions."""
    if not isinstance(data, Mapping):
        raise SpecError(f"case: expected an object with keys, got {shown(data)}")
    for key in data:
        if key not in ("model", *PARTS):
            raise SpecError(f"case.{key}: unknown key; {nearest(str(key), ['model', *PARTS])}")
    require("model" in data, "case.model: missing; give a preset's name or an object")
    parts: dict[str, Any] = {key: from_mapping(kind, data[key], key) for key, kind in PARTS.items() if key in data}
    model = model_from(data["model"])
    work = parts.get("workload", Workload())
    if "seq_len" not in data.get("workload", {}):
        parts["workload"] = replace(work, seq_len=min(work.seq_len, model.max_positions))
    return Case(model=model, **parts)
