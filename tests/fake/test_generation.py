"""Generation: how tokens are chosen, beams, and answers through a cache held to those without one."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from suite.caches.build import build_cache
from suite.case import Case, case_from
from suite.generation.loop import answered, generate, generate_without_cache
from suite.generation.sampling import chooser, greedy, top_k, top_p
from suite.generation.texts import logits_of
from suite.models.decoder_module import Decoder
from suite.serving import Sampling, Serving
from suite.serving_lengths import prompt_lengths

pytestmark = pytest.mark.fake

CPU, MINUS = torch.device("cpu"), float("-inf")
MODEL = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "vocab": 61, "max_positions": 64, "ffn": 48}
LEARNED = MODEL | {"norm": "layernorm", "activation": "gelu", "position": "learned", "bias": True}


def logs(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities]).log()


def support(logits: Tensor) -> list[int]:
    """Tokens that can be drawn."""
    return logits.isfinite().nonzero()[:, 1].tolist()


# --- how a token is chosen -----------------------------------------------------------------------------------


def test_the_likeliest_of_several_is_the_first_in_the_vocabulary() -> None:
    assert greedy(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])).tolist() == [1, 0]


@pytest.mark.parametrize(("k", "kept"), [(1, [1]), (2, [1, 2]), (3, [0, 1, 2]), (4, [0, 1, 2, 3])])
def test_top_k_keeps_exactly_k_of_tokens_equally_likely(k: int, kept: list[int]) -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 1.0]])
    assert support(top_k(logits, k)) == kept
    assert top_k(logits, k)[0, kept].equal(logits[0, kept])


@pytest.mark.parametrize(
    ("p", "kept"),
    [(0.01, [2]), (0.49, [2]), (0.51, [0, 2]), (0.74, [0, 2]), (0.76, [0, 1, 2]), (0.99, [0, 1, 2, 3]), (1.0, None)],
)
def test_top_p_keeps_the_fewest_tokens_whose_probabilities_reach_p(p: float, kept: list[int] | None) -> None:
    """1/2 first, then 1/4, then the first of the two with 1/8; at p = 1 whatever is possible at all."""
    logits = logs(1 / 4, 1 / 8, 1 / 2, 1 / 8, 1e-30)
    assert support(top_p(logits, p)) == (kept or [0, 1, 2, 3, 4])


@pytest.mark.parametrize(
    ("serving", "kept"),
    [
        (Serving(sampling=Sampling.TOP_K, top_k=2), {0, 2}),
        (Serving(sampling=Sampling.TOP_P, top_p=0.7), {0, 2}),
        # squared and normed: 16/22, 4/22, 1/22, 1/22
        (Serving(sampling=Sampling.TOP_P, top_p=0.7, temperature=0.5), {2}),
        (Serving(sampling=Sampling.TOP_P, top_p=1.0), {0, 1, 2, 3}),
    ],
)
def test_what_is_drawn_is_all_of_the_support_and_nothing_else(serving: Serving, kept: set[int]) -> None:
    draw = chooser(serving, torch.Generator().manual_seed(1))
    assert set(draw(logs(1 / 4, 1 / 8, 1 / 2, 1 / 8).expand(400, -1)).tolist()) == kept


def test_the_seed_decides_what_is_drawn() -> None:
    serving, logits = Serving(sampling=Sampling.TOP_K, top_k=40), torch.zeros(20, 40)
    drawn = [chooser(serving, torch.Generator().manual_seed(seed))(logits).tolist() for seed in (5, 5, 6)]
    assert drawn[0] == drawn[1] != drawn[2]


# --- beams ---------------------------------------------------------------------------------------------------


class Table:
    """A text whose next token depends on all of its tokens, by a table: a whole model of a few words."""

    def __init__(self, vocab: int, beginnings: int) -> None:
        self.vocab, self.rows = vocab, [()] * beginnings
        self.rows: list[tuple[int, ...]]

    def logits(self, row: tuple[int, ...]) -> Tensor:
        return torch.randn(self.vocab, generator=torch.Generator().manual_seed(hash(row) % 10_000))

    def read(self, ids: Tensor) -> Tensor:
        self.rows = [row + tuple(new) for row, new in zip(self.rows, ids.tolist(), strict=True)]
        return torch.stack([self.logits(row) for row in self.rows])

    def reorder(self, rows: Tensor) -> None:
        self.rows = [self.rows[row] for row in rows.tolist()]

    def best(self, prompt: tuple[int, ...], length: int) -> tuple[float, list[int]]:
        """The likeliest answer of all there are, and the sum of its log-probabilities."""
        found = []
        for answer in itertools.product(range(self.vocab), repeat=length):
            steps = [self.logits(prompt + answer[:at]).log_softmax(-1)[answer[at]] for at in range(length)]
            found.append((torch.stack(steps).sum().item(), list(answer)))
        return max(found)


def test_beams_that_hold_every_beginning_find_what_a_search_of_all_answers_does() -> None:
    """Three words, answers of three: 3^2 beams hold every beginning, so that none is lost."""
    prompts = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    answer = answered(Table(3, 9 * 9), case_of({"new_tokens": 3, "sampling": "beam", "beams": 9}), prompts)
    assert answer.scores is not None
    for place, prompt in enumerate(prompts.tolist()):
        score, tokens = Table(3, 1).best(tuple(prompt), 3)
        assert answer.tokens[place].tolist() == tokens
        assert answer.scores[place].item() == pytest.approx(score, abs=1e-5)


def case_of(serving: dict[str, Any], model: dict[str, Any] = MODEL, **cache: Any) -> Case:
    workload = {"seq_len": 12, "micro_batch": 3, "precision": "fp32"}
    return case_from({"model": model, "workload": workload, "serving": {"new_tokens": 6} | serving, "cache": cache})


def test_one_beam_is_greedy() -> None:
    prompts = torch.randint(3, (3, 4), generator=torch.Generator().manual_seed(0))
    tiny = MODEL | {"vocab": 5}
    greedily = answered(Table(5, 3), case_of({}, tiny), prompts)
    one, more = (
        answered(Table(5, 3 * beams), case_of({"sampling": "beam", "beams": beams}, tiny), prompts) for beams in (1, 5)
    )
    assert one.tokens.equal(greedily.tokens)
    assert greedily.logits is not None
    steps = greedily.logits.log_softmax(-1).gather(-1, greedily.tokens.unsqueeze(-1))
    torch.testing.assert_close(one.scores, steps[..., 0].sum(1))
    assert not more.tokens.equal(one.tokens)  # else this says nothing


# --- answers through a cache ---------------------------------------------------------------------------------


def model_of(case: Case) -> Decoder:
    torch.manual_seed(3)
    model = Decoder(case.model)
    model.reset_parameters()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 6  # so that the answers are not one token again and again
    return model.eval()


@pytest.mark.parametrize("model", [MODEL, LEARNED], ids=["rope", "learned"])
@pytest.mark.parametrize(
    "serving",
    [
        {},
        {"shortest_prompt": 3, "prefill_tokens": 5},
        {"shortest_prompt": 1, "sampling": "top-k", "top_k": 7},
        {"sampling": "top-p", "top_p": 0.8, "temperature": 1.3},
        {"shortest_prompt": 4, "sampling": "beam", "beams": 3},
    ],
    ids=lambda serving: serving.get("sampling", "greedy"),
)
def test_answers_through_a_cache_are_those_of_the_whole_text_read_again(
    serving: dict[str, Any], model: dict[str, Any]
) -> None:
    case = case_of(serving, model, allocation="growing")
    decoder, ids = model_of(case), torch.randint(61, (3, 12), generator=torch.Generator().manual_seed(7))
    lengths = prompt_lengths(case)
    found = generate(decoder, case, build_cache(case, CPU), ids, lengths)
    expected = generate_without_cache(decoder, case, ids, lengths)
    assert found.tokens.equal(expected.tokens)
    assert found.tokens.shape == (3, 6)
    assert found.is_whole
    assert all(len(row.unique()) > 1 for row in found.tokens)  # else this says little
    pairs = [(found.logits, expected.logits), (found.scores, expected.scores)]
    for mine, theirs in pairs:
        if mine is not None:
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)


def test_one_pass_over_the_whole_text_gives_the_logits_that_every_token_was_chosen_of() -> None:
    case = case_of({"shortest_prompt": 3})
    decoder, ids, lengths = model_of(case), torch.randint(61, (3, 12)), prompt_lengths(case)
    answer = generate_without_cache(decoder, case, ids, lengths)
    whole = torch.cat((ids, answer.tokens[:, :-1]), dim=1)
    with torch.no_grad():
        again = logits_of(decoder, whole, torch.tensor([12 - length for length in lengths]), 6)
    torch.testing.assert_close(again, answer.logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampling", ["greedy", "beam"])
def test_a_cache_that_fills_up_gives_back_what_was_made_and_says_so(sampling: str) -> None:
    """Room for 12 + 2 tokens: the third's logits are there, the fourth's are not."""
    case = case_of({"sampling": sampling, "beams": 2}, cache_tokens=14)
    decoder, ids = model_of(case), torch.randint(61, (3, 12))
    answer = generate(decoder, case, build_cache(case, CPU), ids, [12] * 3)
    assert (answer.made, answer.asked, answer.is_whole) == (3, 6, False)
    assert answer.full == "the cache has room for 14 tokens of a sequence, and 15 are there"
    if sampling == "greedy":
        assert answer.tokens.equal(generate_without_cache(decoder, case, ids, [12] * 3).tokens[:, :3])


def test_prompts_that_do_not_fit_are_answered_by_nothing() -> None:
    case = case_of({}, cache_tokens=12)
    answer = generate(model_of(case), case, build_cache(case, CPU), torch.randint(61, (3, 13)), [13] * 3)
    assert (answer.made, answer.logits) == (0, None)
    assert "room for 12" in answer.full
