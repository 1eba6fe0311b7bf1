"""Exported arguments in megatron-core's own classes: its configuration takes them, its model has our parameters, its
pipeline our stages. Its argument parser is in no package; the options' names, types and choices stand in options.csv.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from parallelism.schedules.stages import block_counts
from reports.handover.megatron.script import megatron_arguments
from reports.intake.megatron.options import Option, Takes, options
from suite.case import Case, case_from
from suite.models.decoder_module import Decoder

pytest.importorskip("megatron.core", reason="megatron-core is not installed")
pytestmark = [pytest.mark.fake, pytest.mark.filterwarnings("ignore")]

LLAMA = {"layers": 6, "hidden": 64, "heads": 8, "kv_heads": 4, "ffn": 160, "vocab": 512, "max_positions": 64}
GPT = {
    "layers": 2, "hidden": 32, "heads": 4, "ffn": 128, "vocab": 128, "max_positions": 64, "norm": "layernorm",
    "activation": "gelu", "position": "learned", "bias": True, "tied": True,
}  # fmt: skip
LATENT = {"kv_rank": 32, "rope_dim": 8, "nope_dim": 16, "v_dim": 16}


class Core(nn.Module):
    """Attention's core, which has no parameters."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()


def case_of(model: Any, layout: Any = None, **workload: Any) -> Case:
    """A small case."""
    return case_from({"model": model, "layout": layout or {}, "workload": {"seq_len": 64, **workload}})


def parser() -> argparse.ArgumentParser:
    """An argument parser with every option of Megatron-LM."""
    made = argparse.ArgumentParser(allow_abbrev=False)
    kinds: dict[str, Any] = {"int": int, "float": float, "": str}
    actions = {Takes.SET: "store_true", Takes.CLEAR: "store_false"}
    for option in options().values():
        if option.takes in actions:
            made.add_argument(*option.flags, dest=option.name, action=actions[option.takes])
        elif option.takes is Takes.EITHER:
            made.add_argument(option.flags[0], dest=option.name, action=argparse.BooleanOptionalAction)
        else:
            made.add_argument(
                *option.flags, dest=option.name, type=kinds[option.kind], choices=option.choices or None,
                nargs="+" if option.takes is Takes.SOME else None, default=_default(option, kinds[option.kind]),
            )  # fmt: skip
    return made


def _default(option: Option, kind: Any) -> Any:
    values = [kind(part) for part in option.default.split()]
    return values if option.takes is Takes.SOME else values[0] if values else None


def config_of(case: Case) -> tuple[Any, argparse.Namespace]:
    """megatron-core's configuration of the exported arguments, by the names of its fields, and the arguments."""
    from megatron.core.transformer.enums import AttnBackend
    from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

    args = parser().parse_args(megatron_arguments(case))
    kind = MLATransformerConfig if args.multi_latent_attention else TransformerConfig
    fields = {field.name for field in dataclasses.fields(kind)}
    data = {name: value for name, value in vars(args).items() if name in fields and value is not None}
    stages = args.num_virtual_stages_per_pipeline_rank
    data |= {
        "attention_backend": AttnBackend[args.attention_backend], "pipeline_dtype": torch.bfloat16,
        "gated_linear_unit": args.swiglu, "activation_func": F.silu if args.swiglu else F.gelu,
        "num_query_groups": args.num_query_groups if args.group_query_attention else None,
        "virtual_pipeline_model_parallel_size": stages, "use_cpu_initialization": True, "perform_initialization": False,
        "apply_rope_fusion": False, "bias_activation_fusion": False, "masked_softmax_fusion": False,
        "cp_comm_type": args.cp_comm_type[0], "gradient_accumulation_fusion": False, "window_size": None,
        "params_dtype": torch.float32,
    }  # fmt: skip
    if args.multi_latent_attention and args.q_lora_rank is None:
        data["q_lora_rank"] = None
    if args.pipeline_model_parallel_layout:
        stages = args.pipeline_model_parallel_layout.count("|") + 1
        data["virtual_pipeline_model_parallel_size"] = stages // args.pipeline_model_parallel_size or None
    return kind(**data), args


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this one process, with Megatron's groups in it."""
    from megatron.core import parallel_state

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    yield
    for name in ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN"):  # which a model sets, and the next reads
        os.environ.pop(name, None)
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "model",
    [
        GPT, LLAMA, {**LLAMA, "qkv_bias": True, "head_dim": 16, "tied": True},
        {**LLAMA, "kv_heads": 8, "latent": LATENT},
        {**LLAMA, "kv_heads": 8, "latent": {**LATENT, "q_rank": 48}},
    ],
    ids=["gpt", "llama", "qwen", "latent", "latent-queries"],
)  # fmt: skip
def test_megatrons_model_has_our_parameters(
    model: dict[str, Any], group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel

    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")  # latent attention's rotation asks for it
    from megatron.core.transformer import multi_latent_attention

    monkeypatch.setattr(multi_latent_attention, "TELinear", Core)  # Transformer Engine's: None without it
    case = case_of(model)
    config, args = config_of(case)
    spec = get_gpt_layer_local_spec(
        qk_layernorm=args.qk_layernorm, multi_latent_attention=args.multi_latent_attention,
        normalization=args.normalization,
    )  # fmt: skip
    spec.submodules.self_attention.submodules.core_attention = Core  # Megatron's own takes no latent attention
    with warnings.catch_warnings(action="ignore"):
        theirs = GPTModel(
            config, spec, vocab_size=args.vocab_size, max_sequence_length=args.max_position_embeddings,
            position_embedding_type=args.position_embedding_type,
            share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        )  # fmt: skip
    with torch.device("meta"):
        ours = Decoder(case.model)
    assert args.vocab_size % (args.make_vocab_size_divisible_by * args.tensor_model_parallel_size) == 0
    assert _count(theirs) == _count(ours)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "layout",
    [
        {"pp": 2, "stage_split": "4-2"},
        {"pp": 3, "tp": 2, "schedule": "interleaved-1f1b", "virtual_stages": 2},
        {"pp": 2, "schedule": "interleaved-1f1b", "virtual_stages": 2, "stage_split": "1-2-2-1"},
    ],
)
def test_megatron_places_the_blocks_as_we_do(layout: dict[str, Any]) -> None:
    from megatron.core.transformer.enums import LayerType

    case = case_of(LLAMA, layout, micro_batches=6)
    config, args = config_of(case)
    counts, pp = block_counts(case), case.layout.pp
    placed = config.pipeline_model_parallel_layout
    if placed is None:
        assert set(counts) == {1}
        assert args.num_virtual_stages_per_pipeline_rank == case.layout.virtual_stages
        return
    theirs = [
        placed.layout[rank][turn].count(LayerType.decoder) for turn in range(len(counts) // pp) for rank in range(pp)
    ]
    assert tuple(theirs) == counts


@pytest.mark.parametrize(
    ("layout", "workload", "expected"),
    [
        (
            {"tp": 2, "cp": 2, "recompute": "full"}, {},
            {"tensor_model_parallel_size": 2, "sequence_parallel": True, "context_parallel_size": 2,
             "recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1, "bf16": True},
        ),
        ({"recompute": "selective"}, {"attention": "eager"}, {"recompute_granularity": "selective", "bf16": True}),
        (
            {"recompute": "every-2", "pp": 2}, {"micro_batches": 2},
            {"recompute_method": "block", "recompute_num_layers": 2},
        ),
        ({"fsdp": 4}, {"precision": "fp32"}, {"bf16": False, "fp16": False}),
    ],
)  # fmt: skip
def test_megatrons_configuration_takes_the_layout(
    layout: dict[str, Any], workload: dict[str, Any], expected: dict[str, Any]
) -> None:
    config, _ = config_of(case_of(LLAMA, layout, **workload))
    assert {name: getattr(config, name) for name in expected} == expected
