"""Rows that their authors computed: the formulas they state, ours where ours say the same. Never a measurement."""

from __future__ import annotations

import re
from dataclasses import replace

from memory.megatron.activations import block_bytes
from memory.textbook import deepspeed_zero2, deepspeed_zero3, zero_activations, zero_model_states
from parallelism.megatron.run import AttentionCore, MegatronRun, PipelineMemory
from reports.published.answers import CannotModel, Prediction
from reports.published.bubbles import bubble_rate
from suite.layout import RecomputeKind
from suite.models.decoder import Activation, DecoderSpec, Norm, Position
from suite.published import PublishedRow, UnreadableCell

_SCALES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_LABEL = re.compile(r"(\d+(?:\.\d+)?)([KMBT])", flags=re.ASCII)
_LARGEST = re.compile(r"largest[ _]layer ?=?(\d+(?:\.\d+)?(?:e\d+)?)(M?)", flags=re.ASCII)


def predict_analytic(row: PublishedRow) -> Prediction:
    """A computed figure. CannotModel for rules of thumb."""
    metric = row.text("metric")
    if row.says("notes", "rule of thumb"):
        raise CannotModel("a rule of thumb, as its authors say: there is no formula to hold")
    if metric == "bubble_rate":
        return bubble_rate(row)
    if row.says("framework", "DeepSpeed"):
        return _deepspeed(row)
    if metric == "model_states_per_gpu":
        stage = row.text("zero_stage")[:1]
        if stage not in ("0", "1", "2", "3"):
            raise UnreadableCell(f"zero_stage {row.text('zero_stage')!r} is not a stage")
        value = zero_model_states(parameters_of(row), int(stage), row.need("dp"))
        return Prediction(value, "2 + 2 + 12 bytes a parameter, divided by stage")
    if row.says("framework", "Megatron"):
        return _korthikanti(row)
    if row.says("source", "1910.02054") and metric == "activations":
        tokens = row.need("seq_len") * row.need("micro_batch")
        return Prediction(zero_activations(row.need("layers"), row.need("hidden"), tokens), "12*h*tokens*L*2 bytes")
    if metric in ("weights", "adam_states_plus_gradients"):
        size = {"weights": 2, "adam_states_plus_gradients": 6}[metric]
        return Prediction(size * parameters_of(row), f"{size} bytes a parameter, all in 16 bits")
    raise CannotModel(f"{metric}: how the figure was computed is not stated")


def parameters_of(row: PublishedRow) -> float:
    """A model's parameters as its label says: '2851M (2,851,598,336)', '7.5B', '737,668,096'."""
    label = row.text("params_label") or row.text("model")
    cold = re.search(r"total_params=(\d+(?:e\d+)?)", row.text("extra"))
    if cold:
        return float(cold[1])
    exact = re.search(r"\d{1,3}(?:,\d{3})+", label)
    if exact:
        return float(exact[0].replace(",", ""))
    rounded = _LABEL.search(label)
    if rounded is None:
        raise UnreadableCell(f"params_label {label!r} is not a count")
    return float(rounded[1]) * _SCALES[rounded[2]]


def _deepspeed(row: PublishedRow) -> Prediction:
    """DeepSpeed's own estimator, as its documentation states it; all ranks on one machine."""
    ranks, offload, parameters = row.need("gpus"), row.text("offload"), parameters_of(row)
    on_host = "cpu" in offload
    stage = row.text("zero_stage")[:1]
    if stage == "2":
        gpu, host = deepspeed_zero2(parameters, ranks, 1, on_host)
    elif stage == "3":
        is_init = "zero_init=0" not in row.text("extra")
        gpu, host = deepspeed_zero3(
            parameters, _largest_layer(row), ranks, 1, on_host, on_host and "param" in offload, is_init
        )
    else:
        raise CannotModel(f"zero_stage {row.text('zero_stage')!r}: its estimator knows 2 and 3")
    value = {"model_states_per_gpu": gpu, "model_states_per_cpu_node": host}.get(row.text("metric"))
    if value is None:
        raise CannotModel(f"{row.text('metric')}: not a figure of its estimator")
    return Prediction(value, "DeepSpeed's estimator as its documentation states it", ("one machine",))


def _largest_layer(row: PublishedRow) -> float:
    """Parameters of the largest layer: the embedding where the shape is given, else as the row says in words."""
    is_cold = "cold" in row.text("extra")
    if row.text("vocab") and row.text("hidden") and not is_cold:
        return float(row.need("vocab") * row.need("hidden"))
    words = _LARGEST.search(row.text("extra")) or _LARGEST.search(row.text("notes"))
    if words is None:
        raise UnreadableCell("the largest layer's size is not stated")
    return float(words[1]) * (1e6 if words[2] else 1)


def _korthikanti(row: PublishedRow) -> Prediction:
    """arXiv:2205.05198: activations of the first stage, and 18 bytes a parameter of its blocks."""
    run = _run(row)
    metric = row.text("metric")
    if metric == "params_plus_optimizer":
        blocks = 12 * run.model.layers * run.model.hidden**2 / (run.tp * run.pp)
        return Prediction(18 * blocks, "18 bytes x 12*L*h^2 / (t*p)", ("blocks alone, without biases and norms",))
    said = "what the Megatron ledger's blocks in flight keep"
    if metric == "activations":
        return Prediction(_activations(run), said)
    if metric == "activation_pct_of_tp_baseline":
        bare = replace(run, sequence_parallel=False, recompute=RecomputeKind.NONE)
        return Prediction(100 * _activations(run) / _activations(bare), f"{said}, over the same without")
    raise CannotModel(f"{metric}: not a figure that a formula here gives")


def _activations(run: MegatronRun) -> float:
    """Section 4.2.3 of the paper: L layers' worth on the first stage, times 1 + (p - 1) / (p v) with interleaving."""
    layers = run.model.layers * (1 + (run.pp - 1) / (run.pp * run.chunks) if run.chunks > 1 else 1)
    return block_bytes(run) * layers


def _run(row: PublishedRow) -> MegatronRun:
    """The paper's model: GPT, dropout, attention that is not fused. Its stages are never uneven."""
    hidden = row.need("hidden")
    layers, pp = row.need("layers"), row.need("pp")
    model = DecoderSpec(
        layers=layers, hidden=hidden, heads=row.need("heads"), ffn=row.count("ffn") or 4 * hidden,
        vocab=row.count("vocab") or 51200, norm=Norm.LAYERNORM, activation=Activation.GELU,
        position=Position.LEARNED, bias=True, max_positions=row.need("seq_len"),
    )  # fmt: skip
    kinds = {"none": RecomputeKind.NONE, "selective": RecomputeKind.SELECTIVE, "full": RecomputeKind.FULL}
    kind = kinds.get(row.text("recompute").partition(" ")[0])
    if kind is None:
        raise CannotModel(f"recompute {row.text('recompute')!r}: none, selective and full are modelled")
    return MegatronRun(
        model, row.need("seq_len"), row.need("micro_batch"), row.count("grad_accum") or 1, tp=row.need("tp"), pp=pp,
        sequence_parallel=bool(row.flag("sp")), chunks=row.count("vp") or 1, recompute=kind,
        schedule=PipelineMemory.INTERLEAVED, attention=AttentionCore.UNFUSED, dropout=True,
    )  # fmt: skip
