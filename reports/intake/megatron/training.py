"""Workload and recipe that Megatron-LM's arguments describe."""

from __future__ import annotations

from typing import Any

from reports.intake.megatron.settings import Settings
from suite.parse import SpecError, shown
from suite.spec import MIN_LEARNING_RATE

OPTIMIZERS = {"adam": "adamw", "sgd": "sgd", "muon": "muon", "dist_muon": "muon"}
TENSORWISE = ("tensorwise", "delayed")


def workload_of(settings: Settings, layout: dict[str, Any]) -> dict[str, Any]:
    """The workload as `case_from` takes it, without micro_batches, which the global batch and dp make."""
    settings.taken |= {"accumulate_allreduce_grads_in_fp32", "use_flash_attn"}
    workload = {
        "seq_len": settings.whole("seq_length"),
        "micro_batch": settings.whole("micro_batch_size"),
        "precision": _precision(settings, layout),
        "optimizer": _optimizer(settings),
        "attention": "eager" if settings.word("attention_backend") in ("unfused", "local") else "flash",
    }
    if settings.is_on("cross_entropy_loss_fusion"):
        settings.leave("cross_entropy_loss_fusion", "the loss is not fused here: it keeps one more array of logits")
    return workload


def _precision(settings: Settings, layout: dict[str, Any]) -> str:
    is_half, is_bf16 = settings.is_on("fp16"), settings.is_on("bf16")
    if is_half and is_bf16:
        raise SpecError("--fp16: given beside --bf16; give one of them")
    plain = "fp16-mixed" if is_half else "bf16-mixed" if is_bf16 else "fp32"
    if is_half and (layout["tp"] > 1 or layout["pp"] > 1):
        settings.leave("fp16", "fp16-mixed is not trained with tp or pp here: taken as bf16-mixed, of the same bytes")
        plain = "bf16-mixed"
    if settings.text("fp8") is None:
        return plain
    recipe = settings.word("fp8_recipe")
    if recipe not in TENSORWISE or layout["tp"] > 1:
        why = f"with tp {layout['tp']}" if recipe in TENSORWISE else f"with scales of {recipe}"
        settings.leave("fp8", f"fp8 {why} is not modelled: taken as {plain}")
        return plain
    if recipe == "delayed":
        settings.assumed.append("workload.precision: fp8 with scales of the tensor at hand, not of earlier steps")
    settings.taken |= {"fp8_amax_history_len", "fp8_amax_compute_algo", "fp8_margin", "fp8_interval"}
    return "fp8"


def _optimizer(settings: Settings) -> str:
    name = settings.word("optimizer")
    if name not in OPTIMIZERS:
        raise SpecError(f"--optimizer: {shown(name)} is not modelled; accepted: {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]


def recipe_of(settings: Settings, global_batch: int | None) -> dict[str, Any]:
    """The recipe as `case_from` takes it: what the file says of it."""
    clip = settings.share("clip_grad")
    recipe: dict[str, Any] = {
        "weight_decay": settings.share("weight_decay"),
        "clip_norm": clip if clip > 0 else "inf",
        "seed": int(settings.share("seed")),
    }
    rate, steps = settings.number("lr"), _steps(settings, global_batch)
    if rate is not None:
        recipe["learning_rate"] = float(rate)
    if steps is not None:
        recipe["steps"] = steps
        batches = int(settings.share("eval_iters")) if settings.says("eval_iters") else 0
        recipe["validation_batches"] = batches
    recipe["warmup_steps"] = _warmup(settings, steps, global_batch)
    _decay(settings, rate)
    return recipe


def _steps(settings: Settings, global_batch: int | None) -> int | None:
    if settings.says("train_iters"):
        return settings.whole("train_iters")
    if settings.says("train_samples") and global_batch:
        return max(1, settings.whole("train_samples") // global_batch)
    return None


def _warmup(settings: Settings, steps: int | None, global_batch: int | None) -> int:
    fraction, samples = settings.number("lr_warmup_fraction"), settings.share("lr_warmup_samples")
    last = settings.number("lr_decay_iters") or steps
    if fraction is not None and last:
        return int(fraction * last)
    if samples and global_batch:
        return int(samples) // global_batch
    return int(settings.share("lr_warmup_iters"))


def _decay(settings: Settings, rate: float | None) -> None:
    """Tell where the rate ends elsewhere than our recipe's: it changes what is learned, and no time."""
    style, last = settings.text("lr_decay_style"), settings.share("min_lr")
    is_ours = style == "cosine" and rate and abs(last - rate * MIN_LEARNING_RATE) <= 1e-9 * rate
    if rate and not is_ours:
        settings.assumed.append(f"recipe: the rate falls to a tenth by a cosine, not to {last:g} by {style}")
