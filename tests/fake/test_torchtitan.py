"""Exports to torchtitan, read by torchtitan 0.3.0's own parser, models and checks: each setting is the case's."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest

from parallelism.training import learning_rate
from reports.handover.torchtitan import torchtitan
from suite.case import Case, case_from
from suite.cases import suite_of
from suite.environment import ROOT
from suite.models.presets import PRESETS
from suite.parse import SpecError

pytestmark = pytest.mark.fake

SMALL = {
    "layers": 8, "hidden": 64, "heads": 4, "kv_heads": 2, "ffn": 160, "vocab": 512, "head_dim": 32, "norm_eps": 1e-6,
}  # fmt: skip
#: of SMALL: query, key, value and output projections, the MLP's three, two norms; embedding, head, final norm
SMALL_BLOCK = 64 * 128 + 2 * 64 * 64 + 128 * 64 + 3 * 64 * 160 + 2 * 64
SMALL_PARAMETERS = 8 * SMALL_BLOCK + 2 * 512 * 64 + 64
GPU = {"device": "h100-sxm"}

CASES: dict[str, dict[str, Any]] = {
    # llama3-70b as torchtitan's own config has it, but for steps
    "flavor": {
        "model": "llama3-70b",
        "layout": {"fsdp": 32, "tp": 8, "recompute": "full"},
        "workload": {"seq_len": 8192, "micro_batch": 8, "loss": "chunked"},
        "cluster": {**GPU, "nodes": 32},
        "recipe": {"steps": 1000, "warmup_steps": 200, "learning_rate": 1.5e-4, "seed": 7, "validation_batches": 3},
    },
    "hybrid": {
        "model": SMALL,
        "layout": {"dp": 2, "fsdp": 4, "cp": 2, "tp": 2, "sequence_parallel": False, "reshard_after_forward": False,
                   "recompute": "every-3", "offload": "parameters"},
        "workload": {"seq_len": 64, "micro_batch": 3, "micro_batches": 5, "precision": "fp32",
                     "optimizer_kernel": "foreach"},
        "cluster": GPU,
        "recipe": {"clip_norm": math.inf, "weight_decay": 0.0},
    },
    "pipeline": {
        "model": SMALL,
        "layout": {"pp": 2, "dp": 2, "schedule": "interleaved-1f1b", "virtual_stages": 2,
                   "stage_split": "3-2-2-1",
                   "recompute": "selective-op"},
        "workload": {"seq_len": 64, "micro_batch": 2, "micro_batches": 4, "precision": "bf16",
                     "optimizer_kernel": "loop"},
        "cluster": GPU,
    },
    "vee": {
        "model": SMALL,
        "layout": {"pp": 2, "fsdp": 2, "schedule": "zbv", "virtual_stages": 2, "reshard_after_forward": False,
                   "stage_split": "even"},
        "workload": {"seq_len": 64, "micro_batches": 4},
        "cluster": GPU,
    },
    "fp8": {
        "model": "llama3.2-1b",
        "layout": {"fsdp": 8, "cp": 2, "load_balance": False},
        "workload": {"precision": "fp8-rowwise"},
        "cluster": GPU,
    },
    "fp8-flavor": {"model": "llama3-8b", "layout": {"fsdp": 8}, "workload": {"precision": "fp8-rowwise"},
                   "cluster": GPU},
    "single": {"model": "llama3-405b", "cluster": GPU},
}  # fmt: skip


def case_named(name: str) -> Case:
    return case_from(CASES[name])


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What torchtitan takes from each case's file; one process, which loads torch's compiler once."""
    home, words = tmp_path_factory.mktemp("torchtitan"), []
    for name in CASES:
        case = case_named(name)
        made = torchtitan(case)
        (home / name).mkdir()
        (home / name / made.filename).write_text(made.text)
        words += [str(home / name), str(case.layout.world_size)]
    command = [sys.executable, "-m", "tests.fake.torchtitan_reader", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


@pytest.mark.parametrize("name", CASES)
def test_degrees_batches_and_formats_are_the_cases(taken: dict[str, Any], name: str) -> None:
    """torchtitan's own check that the degrees make up the ranks has passed."""
    case, training, degrees = case_named(name), taken[name]["training"], taken[name]["parallelism"]
    layout = case.layout
    assert [
        degrees[f"{axis}_degree"]
        for axis in ("data_parallel_replicate", "data_parallel_shard", "context_parallel", "tensor_parallel",
                     "pipeline_parallel")
    ] == [layout.dp, layout.fsdp, layout.cp, layout.tp, layout.pp]  # fmt: skip
    assert degrees["enable_sequence_parallel"] == layout.sequence_parallel
    assert (training["seq_len"], training["steps"]) == (case.workload.seq_len, case.recipe.steps)
    assert training["global_batch_size"] == case.global_batch
    # torchtitan's accumulation steps, and a pipeline's micro-batches: trainer.py's two quotients
    steps = training["global_batch_size"] // (training["local_batch_size"] * layout.dp * layout.fsdp)
    micro = training["local_batch_size"] // degrees["pipeline_parallel_microbatch_size"] if layout.pp > 1 else 1
    assert steps * micro == case.workload.micro_batches
    assert (steps == 1) or layout.pp == 1
    assert training["disable_cuda_graphs"]
    assert taken[name]["seed"] == case.recipe.seed
    assert taken[name]["kernel"] == "FlexAttention.Config"


def test_a_flavor_is_named(taken: dict[str, Any]) -> None:
    got = taken["flavor"]
    assert (got["flavor"], got["parameters"]) == ("70B", 70_553_706_496)  # Hugging Face's count of Llama-3.1-70B
    assert got["wrapped"] == [str(block) for block in range(80)]
    assert got["policy"] == "FullAC.Config"
    assert got["training"]["local_batch_size"] == 8
    assert got["training"]["mixed_precision_param"] == "bfloat16"
    assert got["training"]["dtype"] == "float32"
    assert not got["training"]["enable_cpu_offload"]
    assert got["parallelism"]["fsdp_reshard_after_forward"] == "always"
    assert got["loss"][0] == "ChunkedLossWrapper.Config"
    assert got["loss"][1] == {"num_chunks": 8, "loss_fn": {"global_vocab_size": 128256}}
    schedule = got["lr_scheduler"]
    assert (schedule["warmup_steps"], schedule["decay_type"], schedule["min_lr_factor"]) == (200, "cosine", 0.1)
    assert schedule["decay_ratio"] is None
    assert got["validator"] == [True, 100, 3]
    assert taken["single"]["flavor"] == "405B"
    assert taken["single"]["parameters"] == 405_853_388_800
    assert taken["single"]["wrapped"] == []
    assert taken["single"]["validator"][0] is False
    assert taken["single"]["loss"][0] == "CrossEntropyLoss.Config"


def test_norms_do_not_decay_and_the_kernel_is_the_cases(taken: dict[str, Any]) -> None:
    optimizer = taken["flavor"]["optimizer"]
    assert optimizer["implementation"] == "fused"
    words = {"lr": 1.5e-4, "betas": [0.9, 0.95]}
    assert optimizer["param_groups"] == [
        {"pattern": "norm", "optimizer_name": "AdamW", "optimizer_kwargs": {**words, "weight_decay": 0.0}},
        {"pattern": ".*", "optimizer_name": "AdamW", "optimizer_kwargs": {**words, "weight_decay": 0.1}},
    ]
    assert taken["hybrid"]["optimizer"]["implementation"] == "foreach"
    assert taken["pipeline"]["optimizer"]["implementation"] == "for-loop"
    assert taken["pipeline"]["groups"] == [[[1], 0.0], [[2], 0.1]]  # of dimensions: vectors, and matrices
    assert taken["hybrid"]["groups"] == [[[1], 0.0], [[2], 0.0]]


def test_its_learning_rates_are_ours(taken: dict[str, Any]) -> None:
    recipe = case_named("hybrid").recipe
    ours = [learning_rate(recipe, step) for step in range(recipe.steps)]
    assert taken["hybrid"]["rates"] == pytest.approx(ours, rel=1e-12)


def test_another_shape_is_written_out(taken: dict[str, Any]) -> None:
    got = taken["hybrid"]
    assert (got["flavor"], got["parameters"], got["eps"]) == ("custom", SMALL_PARAMETERS, 1e-6)
    assert (got["rope"]["dim"], got["rope"]["theta"], got["rope"]["scaling"]) == (32, 10000.0, "none")
    # tied; Hugging Face's count of Llama-3.2-1B, and its config.json's rotation
    assert taken["fp8"]["parameters"] == 1_235_814_400
    assert (taken["fp8"]["rope"]["scaling"], taken["fp8"]["rope"]["scaling_factor"]) == ("llama", 32.0)


def test_the_rest_of_a_hybrid_layout(taken: dict[str, Any]) -> None:
    got = taken["hybrid"]
    assert got["parallelism"]["fsdp_reshard_after_forward"] == "never"
    assert got["parallelism"]["context_parallel_load_balancer"] == "headtail"
    assert got["wrapped"] == ["0", "3", "6"]
    assert got["training"]["enable_cpu_offload"]
    assert got["training"]["mixed_precision_param"] == "float32"
    assert got["training"]["max_norm"] == math.inf
    assert [group["optimizer_kwargs"]["weight_decay"] for group in got["optimizer"]["param_groups"]] == [0.0, 0.0]
    assert taken["fp8"]["parallelism"]["context_parallel_load_balancer"] is None


def test_stages_hold_the_cases_blocks(taken: dict[str, Any]) -> None:
    got = taken["pipeline"]["parallelism"]
    assert got["module_fqns_per_model_part"] == [
        ["tok_embeddings", "layers.0", "layers.1", "layers.2"],
        ["layers.3", "layers.4"],
        ["layers.5", "layers.6"],
        ["layers.7", "norm", "lm_head"],
    ]
    assert sorted(name for part in got["module_fqns_per_model_part"] for name in part) == sorted(
        taken["pipeline"]["modules"]
    )
    assert got["schedule_class"] == "ScheduleInterleaved1F1B"
    assert (got["pipeline_parallel_microbatch_size"], taken["pipeline"]["training"]["local_batch_size"]) == (2, 8)
    assert taken["pipeline"]["policy"] == "SelectiveAC.Config"
    assert taken["pipeline"]["training"]["dtype"] == "bfloat16"
    assert got["fsdp_reshard_after_forward"] == "never"  # no rank frees what it does not shard
    vee = taken["vee"]["parallelism"]
    assert vee["schedule_class"] == "ScheduleZBVZeroBubble"
    assert [len(part) for part in vee["module_fqns_per_model_part"]] == [3, 2, 2, 4]


def test_fp8_leaves_the_head(taken: dict[str, Any]) -> None:
    for name in ("fp8", "fp8-flavor"):
        [converter] = taken[name]["fp8"]
        assert (converter["recipe_name"], converter["filter_fqns"]) == ("rowwise", ["lm_head"])
    assert taken["fp8-flavor"]["flavor"] == "8B"
    assert taken["flavor"]["fp8"] == []


# --- what it cannot say, and what it cannot train ------------------------------------------------------------


def unsaid(**parts: Any) -> tuple[str, ...]:
    """The lines, each of which is a comment in the file too."""
    made = torchtitan(case_from({"model": SMALL, "cluster": GPU, **parts}))
    for line in made.unsaid:
        assert f"# - {line}\n" in made.text
    return made.unsaid


@pytest.mark.parametrize(
    "parts, start",
    [
        ({"layout": {"dp": 2}}, "layout.dp(2) with fsdp(1), DDP: torchtitan replicates with FSDP2"),
        ({"layout": {"fsdp": 4, "reshard_after_forward": 2}}, "layout.reshard_after_forward(2): always"),
        ({"layout": {"fsdp": 2, "forward_prefetch": 1}}, "layout.forward_prefetch(1), backward_prefetch(1): "),
        ({"layout": {"fsdp": 2, "reduce_type": "bf16"}}, "layout.reduce_type(bf16): "),
        ({"layout": {"fsdp": 2}, "workload": {"micro_batches": 2}}, "layout.reduction(step) with micro_batches(2): "),
        ({"layout": {"fsdp": 2, "recompute": "selective"}}, "layout.recompute(selective), "),
        ({"workload": {"precision": "fp16-mixed"}}, "workload.precision(fp16-mixed): bf16-mixed"),
        ({"workload": {"precision": "fp8"}}, "workload.precision(fp8), a scale a tensor: a scale a row"),
        ({"workload": {"optimizer": "muon"}}, "workload.optimizer(muon): AdamW"),
        ({"workload": {"attention": "eager"}}, "workload.attention(eager): FlexAttention"),
        ({"model": {**SMALL, "dropout": 0.1}}, "model.dropout(0.1): nothing is dropped"),
        ({"recipe": {"stride": 7}}, "recipe.data(''), tokenizer(bpe), stride(7): "),
        ({"cluster": {"device": "cpu"}}, "cluster.device(cpu): torchtitan trains on accelerators"),
    ],
)
def test_one_line_says_what_torchtitan_cannot(parts: dict[str, Any], start: str) -> None:
    [line] = unsaid(**parts)
    assert line.startswith(start)


def test_several_lines_and_none() -> None:
    assert unsaid(layout={"fsdp": 2, "tp": 2}) == ()
    assert unsaid(layout={"fsdp": 2, "reduction": "micro-batch"}, workload={"micro_batches": 2}) == ()
    assert unsaid(layout={"pp": 2}, workload={"micro_batches": 2}) == ()
    context, kind = unsaid(layout={"cp": 2, "context": "ulysses"})
    assert context == "layout.cp(2) with fsdp(1): torchtitan shards parameters over the context ranks"
    assert kind.startswith("layout.context(ulysses): torchtitan gathers the keys and values")
    replicas, bucket = unsaid(layout={"dp": 2, "bucket_mib": 8})
    assert replicas.startswith("layout.dp(2)")
    assert bucket.startswith("layout.bucket_mib(8): ")


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"model": "gpt-1m"}, "model: gpt-1m has layernorm, gelu, learned positions, biases; torchtitan's dense"),
        ({"model": "qwen2.5-7b"}, "model: qwen2.5-7b has biases; "),
        ({"model": "chatglm2-6b"}, "model: chatglm2-6b has biases, rope_fraction(0.5); "),
        ({"model": "mla-1m"}, "model: mla-1m has latent attention; "),
        ({"layout": {"dp": 2, "zero": 2}}, "layout.zero: 2 on engine deepspeed; torchtitan shards with FSDP2 alone"),
        ({"layout": {"dp": 2, "zero": 1, "engine": "torch"}}, "layout.zero: 1 on engine torch; "),
        ({"layout": {"dp": 2, "engine": "deepspeed"}}, "layout.zero: 0 on engine deepspeed; "),
        (
            {"model": {**SMALL, "tied": True}, "layout": {"pp": 2}, "workload": {"micro_batches": 2}},
            "layout.pp: 2 with a tied head (model custom); ",
        ),
        (
            {"layout": {"fsdp": 2, "cp": 2, "load_balance": False}, "workload": {"seq_len": 6}},
            "workload.seq_len: 6 % 4 != 0; torchtitan cuts a sequence into 2 cp(2) parts",
        ),
    ],
)  # fmt: skip
def test_what_torchtitan_cannot_train_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as refused:
        torchtitan(case_from({"model": SMALL, **parts}))
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_a_window_that_hides_nothing_is_no_obstacle() -> None:
    case = case_from({"model": "mistral-7b", "workload": {"seq_len": 4096}, "cluster": GPU})
    assert torchtitan(case).unsaid == ()


def test_a_models_name_stays_a_name() -> None:
    """A comment ends where the line does."""
    name = 'x"\nimport os\rimport os; """'
    made = torchtitan(case_from({"model": {**SMALL, "name": name}}))
    compile(made.text, "config_registry.py", "exec")
    assert "import os" not in [line.strip() for line in made.text.splitlines()]


def test_every_model_and_layout_is_a_file_or_one_line() -> None:
    """Every preset, and every pair of settings of the memory matrix: Python that compiles, or a refusal in one line."""
    files, refusals = 0, []
    for case in (*(case_from({"model": name}) for name in PRESETS), *suite_of("memory-pairs")):
        try:
            made = torchtitan(case)
        except SpecError as refused:
            refusals.append(str(refused))
        else:
            compile(made.text, made.filename, "exec")
            files += 1
    assert files > 20
    assert not [line for line in refusals if "\n" in line]
