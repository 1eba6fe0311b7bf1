"""The test of two samples: hand-worked examples, published tables, and how often it errs and finds."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from suite.two_samples import adjusted, difference_interval, least_p, rank_test, ratio_interval

pytestmark = pytest.mark.unit

#: two-tailed critical values of U at 0.05: the largest U that is still significant (Mann & Whitney 1947; Milton,
#: J. Am. Stat. Assoc. 59, 1964, table 2)
CRITICAL = {
    (3, 5): 0, (4, 4): 0, (4, 7): 3, (5, 5): 2, (5, 8): 6, (6, 9): 10, (7, 7): 8, (8, 8): 13, (9, 9): 17,
    (10, 10): 23, (10, 20): 55, (12, 12): 37, (13, 17): 63, (15, 15): 64, (20, 20): 127,
}  # fmt: skip


def with_u(first: int, second: int, u: int) -> tuple[list[float], list[float]]:
    """Samples of these sizes without ties of which the second's U is that."""
    ones = list(range(first))
    wins = [min(first, max(0, u - place * first)) for place in range(second)]
    return [float(one) for one in ones], [won - 0.5 + place * 1e-3 for place, won in enumerate(sorted(wins))]


@pytest.mark.parametrize("sizes, critical", CRITICAL.items())
def test_the_critical_values_of_the_published_table(sizes: tuple[int, int], critical: int) -> None:
    for u, is_significant in ((critical, True), (critical + 1, False)):
        for first, second in (sizes, sizes[::-1]):
            found = rank_test(*with_u(first, second, u))
            assert found
            assert (found.u, found.is_exact) == (u, True)
            assert (found.p <= 0.05) is is_significant


def test_three_against_three_by_hand() -> None:
    found = rank_test([1, 2, 3], [4, 5, 6])  # of 20 divisions this one and its mirror image are as far apart
    assert found
    assert (found.u, found.pairs, found.p, found.delta) == (9, 9, 0.1, 1)
    mirrored = rank_test([4, 5, 6], [1, 2, 3])
    assert mirrored
    assert (mirrored.u, mirrored.p, mirrored.delta) == (0, 0.1, -1)
    assert least_p(3, 3) == 0.1


def test_ties_by_hand() -> None:
    """Ranks 1.5 1.5 3.5 | 3.5 5.5 5.5: four of the twenty sums of three are as far from their mean as 14.5."""
    found = rank_test([1, 1, 2], [2, 3, 3])
    assert found
    assert (found.u, found.p) == (8.5, 0.2)
    equal = rank_test([7, 7], [7, 7, 7])
    assert equal
    assert (equal.u, equal.p, equal.delta) == (3, 1, 0)


@pytest.mark.parametrize("seed", range(6))
def test_p_is_the_part_of_all_divisions(seed: int) -> None:
    """Against every division written out, with ties."""
    draw = random.Random(seed)
    first, second = ([float(draw.randrange(5)) for _ in range(count)] for count in (4, 5))

    def u_of(one: list[float], other: list[float]) -> float:
        return sum((b > a) + (b == a) / 2 for a in one for b in other)

    everything = first + second
    apart = abs(u_of(first, second) - 10)
    divisions = [set(chosen) for chosen in itertools.combinations(range(9), 5)]
    far = 0
    for chosen in divisions:
        one = [value for place, value in enumerate(everything) if place not in chosen]
        other = [value for place, value in enumerate(everything) if place in chosen]
        far += abs(u_of(one, other) - 10) >= apart
    found = rank_test(first, second)
    assert found
    assert found.u == u_of(first, second)
    assert found.p == pytest.approx(far / len(divisions), abs=1e-12)


def test_the_normal_form_goes_on_where_counting_ends() -> None:
    """30 and 30 readings are counted, 31 and 30 are not; the normal form of both by hand."""
    draw = random.Random(5)
    first, second = [draw.gauss(0, 1) for _ in range(31)], [draw.gauss(0.5, 1) for _ in range(30)]
    for count, is_exact, nearness in ((30, True, 0.1), (31, False, 1e-12)):
        found = rank_test(first[:count], second)
        assert found
        assert found.is_exact is is_exact
        deviation = math.sqrt(count * 30 / 12 * (count + 31))
        by_hand = math.erfc((abs(found.u - count * 15) - 0.5) / deviation / math.sqrt(2))
        assert found.p == pytest.approx(by_hand, rel=nearness)
    rounded = [[float(round(value * 2)) for value in side] for side in (first, second)]  # with ties, by hand:
    joint = sorted(rounded[0] + rounded[1])
    ties = sum(joint.count(value) ** 3 - joint.count(value) for value in set(joint))
    deviation = math.sqrt(31 * 30 / 12 * (62 - ties / (61 * 60)))
    found = rank_test(*rounded)
    assert found
    assert found.p == pytest.approx(math.erfc((abs(found.u - 465) - 0.5) / deviation / math.sqrt(2)), rel=1e-12)
    assert rank_test([3.0] * 40, [3.0] * 40) == rank_test([1.0] * 40, [1.0] * 40)


def test_how_often_it_errs_on_samples_of_one_distribution() -> None:
    """Two-sided at 0.05, of skewed readings as step times are: exact, so no more than that but for chance (3 sigma)."""
    draw, errors, trials = random.Random(20), 0, 600
    for _ in range(trials):
        first, second = ([draw.lognormvariate(0, 0.3) for _ in range(8)] for _ in range(2))
        found = rank_test(first, second)
        assert found
        errors += found.p < 0.05
    assert errors <= trials * 0.05 + 3 * math.sqrt(trials * 0.05 * 0.95)
    assert errors >= trials * 0.05 - 3 * math.sqrt(trials * 0.05 * 0.95)


def test_how_often_it_finds_a_shift() -> None:
    """Twelve and twelve readings 1.5 standard deviations apart: a t-test finds 94 %, this test 0.955 as efficient."""
    draw, hits, trials = random.Random(21), 0, 300
    for _ in range(trials):
        found = rank_test([draw.gauss(0, 1) for _ in range(12)], [draw.gauss(1.5, 1) for _ in range(12)])
        assert found
        hits += found.p < 0.05
    assert hits >= trials * 0.88


def test_the_interval_holds_what_the_test_does_not_find() -> None:
    draw = random.Random(3)
    for sizes in ((5, 5), (4, 9), (12, 10)):
        first, second = ([draw.lognormvariate(0, 0.2) for _ in range(count)] for count in sizes)
        found = ratio_interval(first, second, 0.05)
        assert found
        for factor, is_within in ((found.low, True), (found.high, True), (found.low, False), (found.high, False)):
            away = 1 if is_within else -1  # a hair inside, a hair outside
            inside = factor * (1 + away * 1e-9) if factor == found.low else factor * (1 - away * 1e-9)
            test = rank_test(first, [value / inside for value in second])
            assert test
            assert (test.p > 0.05) is is_within
    assert ratio_interval([1, 2, 3], [4, 5, 6], 0.05) is None  # no test of three and three finds anything
    assert ratio_interval([0.0, 1.0] * 4, [1.0, 2.0] * 4, 0.05) is None


def test_an_interval_by_hand() -> None:
    """Five and five: U up to 2 is found, so two of the 25 differences are cut from each end."""
    first, second = [0.0, 1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0, 50.0]
    found = difference_interval(first, second, 0.05)
    assert found  # 6 7 | 8 9 10 16 ... 38 44 ... 48 | 49 50
    assert (found.value, found.low, found.high) == (28, 8, 48)


def test_the_interval_covers_the_true_ratio() -> None:
    draw, held, trials = random.Random(22), 0, 400
    for _ in range(trials):
        first = [draw.lognormvariate(0, 0.25) for _ in range(9)]
        second = [1.1 * draw.lognormvariate(0, 0.25) for _ in range(11)]
        found = ratio_interval(first, second, 0.05)
        assert found
        held += found.low <= 1.1 <= found.high
    assert held >= trials * 0.95 - 3 * math.sqrt(trials * 0.95 * 0.05)
    many = ratio_interval([draw.gauss(10, 1) for _ in range(200)], [draw.gauss(11, 1) for _ in range(200)], 0.05)
    assert many
    # the pseudo-median's standard error is sqrt(pi/3 * 2/200) = 0.102 of a deviation; the ratio's about 1 %
    assert many.low < 1.1 < many.high
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.0102 * 1.05, rel=0.25)


def test_holm_by_hand() -> None:
    """Sorted 0.005 0.01 0.03 0.04 times 4 3 2 1, never falling."""
    assert adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert adjusted([0.9, 0.8]) == (1.0, 1.0)
    assert adjusted([]) == ()


def test_nothing_to_compare() -> None:
    assert rank_test([], [1.0]) is None
    assert ratio_interval([1.0], [], 0.05) is None
    assert difference_interval([], [], 0.05) is None
