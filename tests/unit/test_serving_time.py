"""Times of served cases: on GPUs held to datasheets, on the CPU to a calibration in which everything is known."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from memory.caches.model import cache_terms
from parallelism.simulator.serving_cpu import CpuServing, serving_wanted
from parallelism.simulator.serving_messages import serving_messages
from parallelism.simulator.serving_time import ServingTime, roofline_of, serving_time, tokens_per_second
from parallelism.simulator.serving_work import decode_work, middle_of, prefill_work
from reports.calibrated import calibration_for
from suite.case import Case, case_from
from suite.collectives import Collective
from suite.hardware import device
from suite.hardware.calibration import Calibration, Machine, readable
from suite.hardware.collective_times import CollectiveTime
from suite.hardware.operator_times import OperatorTime, Timed
from suite.hardware.serving_times import SERVED_BLOCK, SERVED_PASS, CoreTime
from suite.parse import SpecError

pytestmark = pytest.mark.unit

US = 1e-6
#: microseconds of everything in the made-up calibration
LAYER, ONCE, BLOCK, PASS, SAID = 10, 5, 2, 3, 100
#: of llama-1m: 2 norms, 7 products, 2 sums and the gated unit in each of 4 blocks; embedding, norm and head
OPERATORS, BLOCKS = 4 * 12 + 3, 4


def case_of(model: str = "llama-1m", name: str = "cpu", batch: int = 2, seq_len: int = 64, **parts: Any) -> Case:
    work = {"seq_len": seq_len, "micro_batch": batch, "precision": "bf16"}
    serving = {"new_tokens": 16} | parts.pop("serving", {})
    return case_from({"model": model, "workload": work, "cluster": {"device": name}, "serving": serving, **parts})


def time_of(case: Case, calibration: Calibration | None = None) -> ServingTime:
    middle = middle_of(case)
    return serving_time(middle, cache_terms(middle), calibration)


def calibration_of(*cases: Case) -> Calibration:
    wanted = serving_wanted(cases, 2)
    operators, cores = set(), set()
    for crowd, passes in wanted.passes.items():
        for each in passes:
            uses = {*each.ends, *each.before, *each.after}
            operators |= {(use.operator, use.shape, each.core.format, crowd.ranks, crowd.threads) for use in uses}
            cores.add((each.core, crowd.ranks, crowd.threads))
    return Calibration(
        Machine("a CPU", 2, "2.13", "passive"),
        collectives=tuple(
            CollectiveTime(
                each.collective, each.form, each.ranks, each.groups, each.payload_bytes, SAID * US, 0.0, 9, 0.0
            )
            for each in wanted.exchanges
        ),
        overheads={SERVED_BLOCK: BLOCK * US, SERVED_PASS: PASS * US},
        served=tuple(OperatorTime(*key, US, 0.0, 0.0, 0.0, 9) for key in sorted(operators)),
        cores=tuple(CoreTime(*key, LAYER * US, ONCE * US, 0.0, 9) for key in cores),
    )


PASS_US = OPERATORS + BLOCKS * (LAYER + BLOCK) + ONCE + PASS


def test_a_pass_on_the_cpu_is_its_operators_its_attention_and_what_is_around_them() -> None:
    case = case_of()
    time = time_of(case, calibration_of(case))
    assert (time.prefill_seconds, time.decode_seconds) == pytest.approx((PASS_US * US, PASS_US * US))
    assert "not at their own shape" not in time.basis


def test_chunks_of_a_prompt_are_passes_of_their_own() -> None:
    case = case_of(serving={"prefill_tokens": 20})  # 20, 20, 20 and 4 tokens
    assert time_of(case, calibration_of(case)).prefill_seconds == pytest.approx(4 * PASS_US * US)


def test_tensor_parallel_ranks_wait_for_nine_sums_and_the_logits() -> None:
    case = case_of(layout={"tp": 2})
    calibration = calibration_of(case)
    assert time_of(case, calibration).decode_seconds == pytest.approx((PASS_US + (2 * BLOCKS + 1 + 1) * SAID) * US)
    with pytest.raises(SpecError, match=r"all_gather|all_reduce"):
        time_of(case, replace(calibration, collectives=()))


def test_another_context_is_taken_from_those_around_it_and_says_so() -> None:
    short, long, between = (case_of(seq_len=tokens) for tokens in (32, 128, 64))
    calibration = calibration_of(short, long)
    slower = [
        replace(time, layer=time.layer * time.core.pairs) if time.core.queries == 1 else time
        for time in calibration.cores
    ]
    time = time_of(between, replace(calibration, cores=tuple(slower)))
    pairs = 2 * (64 + 16 // 2)  # the middle step's entries of two sequences
    assert time.decode_seconds == pytest.approx((PASS_US + BLOCKS * LAYER * (pairs - 1)) * US)
    assert "not at their own shape" in time.basis


def test_another_batch_is_taken_from_those_around_it_and_a_token_never_from_a_prompt() -> None:
    few, many, between = (case_of(batch=batch) for batch in (1, 16, 4))
    calibration = calibration_of(few, many)
    layers = {1: 10 * US, 16: 40 * US}  # at four sequences, half way in the logs, twice the first
    calibration = replace(
        calibration, cores=tuple(replace(each, layer=layers[each.core.sequences]) for each in calibration.cores)
    )
    time = time_of(between, calibration)
    assert time.decode_seconds == pytest.approx((PASS_US + BLOCKS * (20 - LAYER)) * US)
    prompts = tuple(each for each in calibration.cores if each.core.queries > 1)
    with pytest.raises(SpecError, match="was not measured"):
        time_of(between, replace(calibration, cores=prompts))


def test_what_was_not_measured_has_no_time() -> None:
    case = case_of()
    calibration = calibration_of(case)
    with pytest.raises(SpecError, match=r"cluster\.device: 'cpu': times rest on a calibration"):
        time_of(case)
    with pytest.raises(SpecError, match=r"int8 cache in bf16.* was not measured"):
        time_of(case_of(cache={"cache_dtype": "int8"}), calibration)
    with pytest.raises(SpecError, match=r"layout\.pp: 2: a pipeline that answers is not timed"):
        CpuServing(case_of(layout={"pp": 2}), calibration)
    with pytest.raises(SpecError, match="'cpu' has no roofline"):
        roofline_of(case)


def test_a_calibration_is_read_back_and_older_ones_still_are() -> None:
    calibration = calibration_of(case_of(), case_of("gpt-1m", cache={"window": 32}), case_of(layout={"tp": 2}))
    data = json.loads(readable(calibration.to_mapping()))
    assert Calibration.from_mapping(data) == calibration
    older = {key: value for key, value in data.items() if key not in ("served", "cores")}
    assert Calibration.from_mapping(older).served == ()


def test_caches_of_one_model_share_its_operators_and_have_cores_of_their_own() -> None:
    wanted = serving_wanted([case_of(), case_of(cache={"window": 32}), case_of(cache={"cache_dtype": "int8"})], 2)
    (passes,) = wanted.passes.values()
    assert len(passes) == len({each.core for each in passes}) == 6  # a prompt and a token of each
    products = {use.shape for each in passes for use in each.before if use.operator is Timed.LINEAR}
    assert products == {(2 * tokens, 128, width) for tokens in (64, 1) for width in (128, 64)}
    assert not wanted.exchanges


def test_a_file_that_is_named_is_what_served_cases_are_timed_from(tmp_path: Any) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(readable(calibration_of(case_of()).to_mapping()))
    found = calibration_for([case_of()], str(path))
    assert found is not None
    assert time_of(case_of(), found).decode_seconds == pytest.approx(PASS_US * US)


# --- GPUs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a100-80gb-sxm", "h100-sxm", "h200-sxm", "mi300x"])
def test_no_gpu_is_faster_than_its_datasheet(name: str) -> None:
    case = case_of("llama-7b", name, batch=4, seq_len=512)
    bandwidth, peak = device(name).memory_bandwidth_bytes_per_second.value, device(name).peak("bf16").value
    assert bandwidth is not None
    assert peak is not None
    time, step = time_of(case), decode_work(middle_of(case), cache_terms(middle_of(case)))
    assert step.nbytes / bandwidth < time.decode_seconds < 2.5 * step.nbytes / bandwidth
    assert prefill_work(case).flops / peak < time.prefill_seconds < 2.5 * prefill_work(case).flops / peak
    assert roofline_of(case).bytes_per_second <= bandwidth


def test_more_sequences_and_longer_ones_take_longer_and_a_batch_pays() -> None:
    gpu = "h100-sxm"
    times = [time_of(case_of("llama-7b", gpu, batch, seq_len)) for batch, seq_len in ((1, 64), (1, 1024), (64, 1024))]
    assert times[0].decode_seconds < times[1].decode_seconds < times[2].decode_seconds
    assert times[0].prefill_seconds < times[1].prefill_seconds < times[2].prefill_seconds
    one, many = case_of("llama-7b", gpu, 1, 1024), case_of("llama-7b", gpu, 64, 1024)
    assert tokens_per_second(many, times[2]) > 5 * tokens_per_second(one, times[1])
    twice = case_of("llama-7b", gpu, 1, 1024, layout={"dp": 2})
    assert tokens_per_second(twice, time_of(twice)) == 2 * tokens_per_second(one, times[1])


def test_tensor_parallel_gpus_say_two_sums_a_block_one_of_the_embedding_and_the_logits() -> None:
    case = case_of("llama-7b", "h100-sxm", batch=4, layout={"tp": 2})
    sums, logits = serving_messages(case, 1)
    assert (sums.collective, sums.count, sums.payload) == (Collective.ALL_REDUCE, 65, 4 * 4096 * 2)
    assert (logits.collective, logits.count, logits.payload) == (Collective.ALL_GATHER, 1, 4 * 32000 * 2)
    alone = time_of(case_of("llama-7b", "h100-sxm", batch=4))
    assert alone.decode_seconds / 2 < time_of(case).decode_seconds < alone.decode_seconds
