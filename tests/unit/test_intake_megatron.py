"""Megatron-LM's arguments as a case: scripts as people write them, logs, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from reports.intake.base import Taken
from reports.intake.megatron.read import is_megatron, taken_from
from suite.case import case_from
from suite.parse import SpecError

pytestmark = pytest.mark.unit

#: the form that Megatron-LM's own examples have
SCRIPT = """#!/bin/bash
GPUS_PER_NODE=8
NUM_NODES=${{NUM_NODES:-4}}
LAUNCH=(
    --nproc_per_node $GPUS_PER_NODE
    --nnodes $NUM_NODES
    --master_addr $MASTER_ADDR
)
MODEL_ARGS=(
    --num-layers 8
    --hidden-size 128 # wide
    --num-attention-heads 8
    --seq-length 256 --max-position-embeddings 256
    --vocab-size 1024
    {model}
)
TRAINING_ARGS="
    --micro-batch-size 2
    --global-batch-size=64
    --lr 6.0e-5 --min-lr 6.0e-6 --lr-decay-style cosine
    --train-iters 1000
    --lr-warmup-fraction .01
    --bf16
    {training}
"
if [ -n "${{WANDB_API_KEY}}" ]; then
    MODEL_ARGS+=(--wandb-project x)
fi
torchrun ${{LAUNCH[@]}} pretrain_gpt.py \\
    "${{MODEL_ARGS[@]}}" \\
    ${{TRAINING_ARGS}} \\
    --data-path $1 --log-interval 10
"""


def taken(model: str = "", training: str = "") -> Taken:
    """A script with these arguments beside the usual ones."""
    return taken_from(SCRIPT.format(model=model, training=training), "train.sh")


def refused(model: str = "", training: str = "") -> str:
    with pytest.raises(SpecError) as error:
        taken(model, training)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_script_with_megatrons_defaults() -> None:
    found = taken()
    model = found.case["model"]
    # arguments.py: ffn 4 h, learned positions, LayerNorm, gelu, biases, a tied head, dropout 0.1
    assert (model["ffn"], model["norm"], model["activation"]) == (512, "layernorm", "gelu")
    assert (model["position"], model["bias"], model["tied"], model["dropout"]) == ("learned", True, True, 0.1)
    assert found.case["cluster"] == {"nodes": 4, "per_node": 8}
    assert found.global_batch == 64
    assert found.case["workload"]["micro_batch"] == 2
    assert found.case["recipe"]["warmup_steps"] == 10
    assert found.ignored == ("--data-path $1", "--log-interval 10")
    assert [line.split(":")[0] for line in found.unmodelled] == ["--attention-dropout 0.1 (Megatron-LM's default)"]
    assert any("WANDB_API_KEY" in line for line in found.assumed)
    case_from({**found.case, "layout": {**found.case["layout"], "dp": 32}})  # its parts fit


@pytest.mark.parametrize(
    ("argument", "part", "expected"),
    [
        ("--swiglu", "model", {"activation": "swiglu", "ffn": 320}),  # 8 * 128 / 3 in whole 64s
        ("--disable-bias-linear --normalization RMSNorm", "model", {"bias": False, "norm": "rmsnorm"}),
        ("--group-query-attention --num-query-groups 2", "model", {"kv_heads": 2}),
        ("--use-rotary-position-embeddings --rotary-base 500", "model", {"position": "rope", "rope_theta": 500.0}),
        ("--window-size 127,0", "model", {"window": 128}),
        ("--tensor-model-parallel-size 4 --sequence-parallel", "layout", {"tp": 4, "sequence_parallel": True}),
        ("--context-parallel-size 2 --cp-comm-type a2a", "layout", {"cp": 2, "context": "ulysses"}),
        ("--use-distributed-optimizer", "layout", {"zero": 1}),
        ("--use-torch-fsdp2 --context-parallel-size 2", "layout", {"fsdp": 16, "dp": 1}),
        ("--use-megatron-fsdp --num-distributed-optimizer-instances 4", "layout", {"fsdp": 8, "dp": 4}),
        ("--use-megatron-fsdp --data-parallel-sharding-strategy optim", "layout", {"zero": 1}),
        ("--recompute-activations", "layout", {"recompute": "selective"}),
        (
            "--recompute-granularity full --recompute-method block --recompute-num-layers 4", "layout",
            {"recompute": "every-2"},
        ),
        (
            "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 2", "layout",
            {"pp": 2, "virtual_stages": 2, "schedule": "interleaved-1f1b"},
        ),
        (
            "--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout Ett|(tt|)*2,ttL", "layout",
            {"pp": 2, "virtual_stages": 2},
        ),
        (
            "--pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 1"
            " --decoder-last-pipeline-num-layers 1", "layout", {"pp": 4, "stage_split": "1-3-3-1"},
        ),
        ("--attention-backend unfused", "workload", {"attention": "eager"}),
        ("--optimizer sgd", "workload", {"optimizer": "sgd"}),
        ("--clip-grad 0", "recipe", {"clip_norm": "inf"}),
        ("--fp8-format hybrid --fp8-recipe tensorwise --use-torch-fsdp2", "workload", {"precision": "fp8"}),
    ],
)  # fmt: skip
def test_an_argument_becomes_a_setting(argument: str, part: str, expected: dict[str, Any]) -> None:
    found = taken(training=argument).case[part]
    assert {key: found.get(key) for key in expected} == expected


def test_account_for_embedding_and_loss_shortens_the_ends() -> None:
    ends = "--account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split --disable-bias-linear"
    found = taken(training=f"--pipeline-model-parallel-size 5 {ends}").case["layout"]
    assert found["stage_split"] == "1-2-2-2-1"


def test_sharded_state_that_no_layout_has_is_listed() -> None:
    found = taken(training="--use-distributed-optimizer --tensor-model-parallel-size 8 --overlap-grad-reduce")
    assert "zero" not in found.case["layout"]
    assert any(line.startswith("--use-distributed-optimizer: no ZeRO-1 with tp 8") for line in found.unmodelled)


def test_unknown_and_abbreviated_arguments_are_told() -> None:
    found = taken(training="--no-such-thing 3 --recompute-gran selective --tp-comm-overlap")
    assert found.case["layout"]["recompute"] == "selective"
    assert any(line.startswith("--recompute-gran: taken as --recompute-granularity") for line in found.assumed)
    assert any(line.startswith("--no-such-thing 3: no option of Megatron-LM's") for line in found.unmodelled)
    assert "--tp-comm-overlap" in found.unmodelled


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--num-experts 8 --moe-router-topk 9", "model.experts.top_k: 9 > 8 experts"),
        ("--num-experts 8", "model.experts: with model.activation(gelu)"),
        ("--num-experts 8 --swiglu --moe-layer-freq 2", "--moe-layer-freq: '2' is not modelled; accepted: 1, or"),
        (
            "--num-experts 8 --swiglu --moe-ffn-hidden-size 64 --moe-shared-expert-intermediate-size 96",
            "--moe-shared-expert-intermediate-size: 96 is no multiple of --moe-ffn-hidden-size(64)",
        ),
        ("--num-experts 8 --moe-router-score-function sqrtsoftplus", "'sqrtsoftplus' is not modelled; accepted: soft"),
        ("--hidden-size $WIDTH", "--hidden-size: WIDTH is not set in the file"),
        ("--hidden-size wide", "--hidden-size: expected a whole number, got 'wide'"),
        ("--num-layers", "--num-layers: no value follows it"),
        ("--num-layers 1e3", "--num-layers: expected a whole number"),
        ("--num-layers -4", "--num-layers: must be a whole number above zero"),
        ("--hidden-dropout nan", "--hidden-dropout: expected a number"),
        ("--swiglu yes", "--swiglu: is a switch"),
        ("--optimizer lion", "--optimizer: 'lion' is not modelled"),
        ("--attention-backend magic", "--attention-backend: 'magic' is not known"),
        ("--window-size 8,8", "--window-size: '8,8' is not modelled"),
        ("--pipeline-model-parallel-size 3", "--num-layers: 8 blocks make no equal stages"),
        ("--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout E|t*8,L", "a stage without blocks"),
        ("--use-torch-fsdp2 --tensor-model-parallel-size 3", "32 ranks are no multiple of tp * cp * pp * ep = 3"),
        ("--fp16", "--fp16: given beside --bf16"),
    ],
)
def test_what_makes_no_case_is_refused(argument: str, words: str) -> None:
    assert words in refused(training=argument)


def test_a_tokenizers_files_are_not_guessed() -> None:
    text = SCRIPT.format(model="--tokenizer-type HuggingFaceTokenizer", training="").replace("--vocab-size 1024", "")
    with pytest.raises(SpecError, match="--vocab-size: missing, and the files of HuggingFaceTokenizer are not read"):
        taken_from(text, "train.sh")


LOG = """[default0]:setting up
------------------------ arguments ------------------------
  add_bias_linear ................................. False
  attention_backend ............................... AttnBackend.flash
  attention_dropout ............................... 0.0
  bf16 ............................................ True
  consumed_train_samples .......................... 0
  context_parallel_size ........................... 1
  cp_comm_type .................................... ['p2p']
  data_parallel_size .............................. 4
  ffn_hidden_size ................................. 320
  global_batch_size ............................... 32
  hidden_dropout .................................. 0.0
  hidden_size ..................................... 128
  kv_channels ..................................... 16
  log_interval .................................... 7
  max_position_embeddings ......................... 256
  micro_batch_size ................................ 2
  normalization ................................... RMSNorm
  num_attention_heads ............................. 8
  num_layers ...................................... 4
  padded_vocab_size ............................... 1024
  params_dtype .................................... torch.bfloat16
  position_embedding_type ......................... rope
  seq_length ...................................... 256
  swiglu .......................................... True
  tensor_model_parallel_size ...................... 2
  tp_comm_overlap ................................. True
  untie_embeddings_and_output_weights ............. True
  vocab_size ...................................... None
  world_size ...................................... 8
-------------------- end of arguments ---------------------
"""


def test_a_log_says_the_same() -> None:
    assert is_megatron(LOG)
    found = taken_from(LOG, "train.log")
    assert found.case["layout"] == {"tp": 2, "cp": 1, "pp": 1, "sequence_parallel": False, "dp": 4}
    assert (found.case["model"]["vocab"], found.case["model"]["ffn"]) == (1024, 320)
    assert found.global_batch == 32
    assert found.unmodelled == ("tp_comm_overlap True",)
    assert found.ignored == ("log_interval 7",)


def test_a_list_of_arguments_is_enough() -> None:
    lines = "--num-layers 2\n--hidden-size 64\n--num-attention-heads 4\n--seq-length 32\n--micro-batch-size 1\n"
    found = taken_from(lines + "--max-position-embeddings 32 --vocab-size 64 --bf16", "arguments")
    assert found.case["model"]["layers"] == 2
    assert any(line.startswith("layout.dp") for line in found.assumed)


def test_a_batch_script_and_a_command_in_quotes() -> None:
    text = """#SBATCH --nodes=16
#SBATCH --ntasks-per-node 4
options=" \\
  --num-layers 2 --hidden-size 64 --num-attention-heads 4 --max-position-embeddings 32 \\
  --seq-length 32 --micro-batch-size 1 --vocab-size 64 --init-std-of-ours $(hostname -f; date)"
run="python -u /here/pretrain_gpt.py ${options}"
srun -l --output=x.log sh -c "cd /here; ${run}"
"""
    found = taken_from(text, "job.sh")
    assert found.case["cluster"] == {"nodes": 16, "per_node": 4}
    assert found.case["workload"]["precision"] == "fp32"
    assert found.unmodelled[1].startswith("--init-std-of-ours $(hostname -f; date): no option of Megatron-LM's")


@pytest.mark.parametrize("text", ["", "torchrun pretrain_gpt.py", "{}", "\0", "echo hi", "--num-layers 2"])
def test_what_holds_no_arguments_is_refused(text: str) -> None:
    with pytest.raises(SpecError) as error:
        taken_from(text, "file")
    assert str(error.value).startswith("file: ")
    assert not is_megatron(text)


def test_a_script_that_grows_without_end_is_refused() -> None:
    lines = ["A=xxxxxxxxxx", *['A="$A$A"'] * 60, "cmd --num-layers $A"]
    with pytest.raises(SpecError, match="too long"):
        taken_from("\n".join(lines), "file")
    with pytest.raises(SpecError, match="nested too deeply"):
        taken_from("if true; then " * 5000, "file")
