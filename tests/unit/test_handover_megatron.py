"""A case as Megatron-LM's arguments, and back: the same case, and what cannot be said is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallelism.schedules.stages import block_counts
from reports.handover.megatron.script import megatron_arguments, megatron_script
from reports.intake.megatron.options import Takes, by_flag
from reports.intake.megatron.read import is_megatron, taken_from
from suite.case import Case, case_from
from suite.models.decoder import DecoderSpec
from suite.parse import SpecError, to_mapping

pytestmark = pytest.mark.unit

LLAMA = {"layers": 6, "hidden": 64, "heads": 8, "kv_heads": 4, "ffn": 160, "vocab": 500, "max_positions": 128}
GPT = {
    "layers": 4, "hidden": 32, "heads": 4, "ffn": 128, "vocab": 96, "max_positions": 64, "norm": "layernorm",
    "activation": "gelu", "position": "learned", "bias": True, "tied": True,
}  # fmt: skip


def case_of(layout: dict[str, Any], model: Any = None, recipe: Any = None, **workload: Any) -> Case:
    """A small case."""
    parts = {"seq_len": 64, **workload}
    data = {"model": model or LLAMA, "layout": layout, "workload": parts, "recipe": recipe or {}}
    return case_from(data)


def back(case: Case) -> Case:
    """The case that the exported script makes, on the same device and machines."""
    taken = taken_from(megatron_script(case).text, "script")
    data = {key: dict(value) for key, value in taken.case.items()}
    layout, workload, cluster = data["layout"], data["workload"], data["cluster"]
    ranks = cluster["nodes"] * cluster["per_node"]
    layout.setdefault("dp", ranks // (layout["tp"] * layout["cp"] * layout["pp"]))
    assert taken.global_batch == case.global_batch
    assert not taken.unmodelled
    each = workload["micro_batch"] * layout["dp"] * layout.get("fsdp", 1)
    workload["micro_batches"] = taken.global_batch // each
    cluster["device"] = case.cluster.device
    return case_from(data)


def written(case: Case) -> dict[str, Any]:
    """The case with the blocks of each stage written out: an even split may be the balanced one."""
    return {**to_mapping(case), "layout": {**to_mapping(case.layout), "stage_split": block_counts(case)}}


def switches(case: Case) -> set[str]:
    return {word for word in megatron_arguments(case) if word.startswith("--")}


def value(case: Case, flag: str) -> str:
    words = megatron_arguments(case)
    return words[words.index(flag) + 1]


MODELS = st.one_of(
    st.sampled_from(["llama3.2-1b", "mla-1m", "gpt-1m"]),
    st.builds(
        lambda size, theta, eps, **other: to_mapping(
            DecoderSpec(**{**LLAMA, **size, **other}, rope_theta=float(theta), norm_eps=eps)
        ),
        st.sampled_from([{}, {"kv_heads": 8}, {"head_dim": 16}, {"window": 64}]),
        st.integers(100, 10**7), st.floats(1e-8, 1e-3), qkv_bias=st.booleans(), tied=st.booleans(),
        dropout=st.sampled_from([0.0, 0.1, 0.15]), vocab=st.integers(1, 10**6),
        rope_fraction=st.sampled_from([1.0, 0.5]),
    ),
)  # fmt: skip
LAYOUTS = st.sampled_from(
    [
        {}, {"dp": 8}, {"dp": 4, "zero": 1}, {"fsdp": 4}, {"fsdp": 2, "dp": 2}, {"tp": 2}, {"pp": 2, "dp": 2},
        {"tp": 2, "pp": 2, "dp": 2, "sequence_parallel": False}, {"cp": 2, "context": "ulysses"}, {"cp": 2, "tp": 2},
        {"fsdp": 2, "tp": 2, "reshard_after_forward": False},
        {"pp": 2, "schedule": "interleaved-1f1b", "virtual_stages": 2},
        {"pp": 2, "stage_split": "even"}, {"dp": 2, "bucket_mib": 40}, {"dp": 2, "zero": 2}, {"fsdp": 2, "pp": 2},
        {"dp": 4, "zero": 1, "offload": "optimizer"}, {"pp": 2, "dp": 2, "zero": 1},
    ]
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    model=MODELS, layout=LAYOUTS, recompute=st.sampled_from(["none", "selective", "full"]),
    nodes=st.sampled_from([1, 2]), micro=st.integers(1, 3), count=st.sampled_from([4, 8]),
    precision=st.sampled_from(["bf16-mixed", "fp32", "fp16-mixed"]), attention=st.sampled_from(["flash", "eager"]),
    rate=st.floats(1e-6, 1.0), clip=st.sampled_from([1.0, 0.3, float("inf")]), decay=st.floats(0, 1),
)  # fmt: skip
def test_export_and_import_give_the_same_case(
    model: Any, layout: dict[str, Any], recompute: str, nodes: int, micro: int, count: int, precision: str,
    attention: str, rate: float, clip: float, decay: float,
) -> None:  # fmt: skip
    data = {
        "model": model, "layout": {**layout, "recompute": recompute}, "cluster": {"nodes": nodes},
        "workload": {
            "seq_len": 64, "micro_batch": micro, "micro_batches": count, "precision": precision, "attention": attention,
        },
        "recipe": {
            "learning_rate": rate, "clip_norm": "inf" if clip == float("inf") else clip, "weight_decay": decay,
            "steps": 77, "warmup_steps": 5, "seed": 3, "validation_batches": 2,
        },
    }  # fmt: skip
    try:
        case = case_from(data)
    except SpecError:
        return  # a layout that the model or the format does not take
    if any(line.startswith("layout.reshard_after_forward") for line in megatron_script(case).unsaid):
        return  # Megatron-FSDP has no such switch
    assert written(back(case)) == written(case)


def test_a_preset_on_a_pipeline_keeps_its_name_and_id() -> None:
    layout = {"tp": 2, "pp": 4, "dp": 2, "schedule": "interleaved-1f1b", "virtual_stages": 2}
    case = case_of(layout, "llama3.2-1b", micro_batches=8, seq_len=8192)
    assert back(case).case_id == case.case_id


@pytest.mark.parametrize(
    "layout",
    [
        {"pp": 2, "stage_split": "4-2"},
        {"pp": 3, "schedule": "interleaved-1f1b", "virtual_stages": 2, "stage_split": "1-1-1-1-1-1"},
        {"pp": 2, "schedule": "interleaved-1f1b", "virtual_stages": 2, "stage_split": "2-2-1-1"},
    ],
)
def test_every_stage_gets_its_blocks(layout: dict[str, Any]) -> None:
    case = case_of(layout, micro_batches=6)
    assert block_counts(back(case)) == block_counts(case)
    assert back(case).layout.virtual_stages == case.layout.virtual_stages


def test_every_option_is_one_of_megatrons_and_takes_what_follows() -> None:
    cases = [
        case_of({"dp": 2, "zero": 1}, GPT), case_of({"fsdp": 4, "tp": 2}),
        case_of({"fsdp": 2, "dp": 2}, precision="fp8"),
        case_of({"pp": 2, "cp": 2, "recompute": "every-2"}, micro_batches=2), case_of({}, "mla-1m", optimizer="muon"),
    ]  # fmt: skip
    for case in cases:
        words = megatron_arguments(case)
        for place, word in enumerate(words):
            if not word.startswith("--"):
                continue
            option = by_flag()[word]
            after = [item for item in words[place + 1 : place + 2] if not item.startswith("--")]
            assert bool(after) == (option.takes in (Takes.ONE, Takes.SOME)), word
            assert not option.choices or after[0] in option.choices, word


def test_the_script_has_a_line_for_each_thing_unsaid() -> None:
    case = case_of({"pp": 2, "schedule": "gpipe", "fsdp": 2, "forward_prefetch": 1}, micro_batches=4, loss="chunked")
    made = megatron_script(case)
    assert is_megatron(made.text)
    for line in made.unsaid:
        assert f"# not said: {line}\n" in made.text
    said = "\n".join(made.unsaid)
    for what in ("layout.schedule gpipe", "forward_prefetch", "workload.loss chunked", "device cpu", "recipe.data"):
        assert what in said


@pytest.mark.parametrize("name", ["mixtral-1m", "mixtral-8x7b", "deepseek-v2-lite", "deepseek-v3-1m", "deepseek-v3"])
def test_experts_come_back_as_they_went(name: str) -> None:
    """`back` also says that nothing of the arguments was left: every routing setting is one that was read."""
    case = case_of({"fsdp": 2}, name)
    assert back(case).model == case.model
    assert back(case).case_id == case.case_id


def test_experts_that_drop_tokens_come_back_and_what_differs_is_told() -> None:
    mixture = {"count": 8, "top_k": 3, "ffn": 32, "dispatch": "capacity", "capacity_factor": 1.5, "groups": 4}
    case = case_of({}, {**LLAMA, "experts": {**mixture, "top_groups": 3, "shared": 2, "scale": 0.5}, "dense_layers": 2})
    assert back(case).model == case.model
    assert value(case, "--moe-shared-expert-intermediate-size") == "64"
    assert value(case, "--moe-layer-freq") == "([0]*2+[1]*4)"
    assert any(
        line.startswith("model.experts.capacity_factor: of each sequence") for line in megatron_script(case).unsaid
    )


def test_a_group_s_score_is_told_where_megatrons_is_another() -> None:
    """Megatron-LM sums topk / group_topk scores of a group: 6 / 3 of DeepSeek-V2, whose paper takes the best one; of
    DeepSeek-V3 8 / 4, the best two, as here."""
    said = {name: megatron_script(case_of({}, name)).unsaid for name in ("deepseek-v2", "deepseek-v3")}
    assert any(line.startswith("model.experts.groups: a group's score is its best 1") for line in said["deepseek-v2"])
    assert not any("model.experts" in line for line in said["deepseek-v3"])


@pytest.mark.parametrize(
    ("layout", "workload", "words"),
    [
        ({"pp": 2, "schedule": "zbv", "virtual_stages": 2}, {"micro_batches": 4}, "layout.schedule: zbv"),
        ({"pp": 2, "schedule": "dualpipev", "virtual_stages": 2}, {"micro_batches": 4}, "layout.schedule: dualpipev"),
        ({}, {"optimizer": "adafactor"}, "workload.optimizer: adafactor"),
        ({"dp": 2, "zero": 3, "offload": "parameters"}, {}, "layout.offload: parameters"),
    ],
)
def test_what_megatron_cannot_train_is_refused(layout: dict[str, Any], workload: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words) as error:
        megatron_script(case_of(layout, **workload))
    assert "\n" not in str(error.value)
    assert "; use" in str(error.value)


def test_vocabulary_is_padded_only_where_it_would_be_slow() -> None:
    # 128256 = 2^8 * 501: over 8 ranks each has a multiple of 32 rows; 50257 is odd
    assert value(case_of({"tp": 4}, {**LLAMA, "vocab": 128256}), "--make-vocab-size-divisible-by") == "64"
    odd = case_of({}, {**LLAMA, "vocab": 50257})
    assert value(odd, "--make-vocab-size-divisible-by") == "128"
    assert any("50304 rows, 47 more" in line for line in megatron_script(odd).unsaid)


def test_sharding_is_handed_to_who_can_do_it() -> None:
    assert "--use-torch-fsdp2" in switches(case_of({"fsdp": 2}))
    for case in (
        case_of({"fsdp": 2, "dp": 2}),
        case_of({"fsdp": 2}, {**LLAMA, "tied": True}),
        case_of({"dp": 2, "zero": 3}),
    ):
        assert "--use-megatron-fsdp" in switches(case)
        assert "--use-torch-fsdp2" not in switches(case)
    assert value(case_of({"dp": 2, "zero": 2}), "--data-parallel-sharding-strategy") == "optim_grads"


def test_megatrons_own_memory_is_told() -> None:
    # GPT of 2 layers, h 32, V 96, 64 positions: 18 bytes for each of
    # 96*32 + 64*32 + 2 (12*32^2 + 13*32) + 2*32 parameters, and more while it runs
    case = case_of({}, {**GPT, "layers": 2})
    line = next(line for line in megatron_script(case).unsaid if line.startswith("memory"))
    assert "2 + 4 + 12 bytes a parameter" in line
    sharded = megatron_script(case_of({"dp": 4, "zero": 1}, GPT)).unsaid
    assert any("2 + 4 + 3 bytes a parameter" in line for line in sharded)
    assert any("not modelled" in line for line in megatron_script(case_of({"fsdp": 2})).unsaid)
