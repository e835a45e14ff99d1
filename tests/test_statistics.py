"""Estimates and their intervals, each against a second derivation: a formula, a count of all cases, or a known truth."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rlhf_helpers.statistics import difference_of_pairs, mean, over_seeds, share, show, win_rate

Z = stats.norm.ppf(0.975)


def same(estimate, expected, low, high, n):
    assert estimate["n"] == n
    assert [estimate[part] for part in ("estimate", "low", "high")] == pytest.approx([expected, low, high], abs=1e-9)


def wilson(successes, n):
    """The roots of (p - p0)^2 = z^2 p0 (1 - p0) / n in p0: the values that a score test would not reject."""
    p = successes / n
    return np.sort(np.roots([1 + Z**2 / n, -(2 * p + Z**2 / n), p**2]).real)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_share_is_wilsons(case):
    successes, n = case
    same(share([True] * successes + [False] * (n - successes)), successes / n, *np.clip(wilson(successes, n), 0, 1), n)


def test_share_of_nothing_seen_still_has_a_width():
    assert share([False] * 300)["high"] == pytest.approx(Z**2 / (300 + Z**2))


def test_mean_against_all_resamples():
    """Of five values 5^5 resamples exist; 2,000 drawn ones find nearly the same percentiles."""
    values = [0, 1, 3, 7, 20]
    means = [np.mean(pick) for pick in itertools.product(values, repeat=5)]
    found = mean(values)
    assert (found["estimate"], found["n"]) == (pytest.approx(6.2), 5)
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.5)


def test_mean_is_near_the_normal_interval_for_many_values():
    values = np.random.default_rng(3).normal(5, 2, size=400)
    half = Z * values.std() / 20
    same_enough = pytest.approx([values.mean() - half, values.mean() + half], abs=0.03)
    assert [mean(values)["low"], mean(values)["high"]] == same_enough


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    """Skewed values with mean 1, 100 samples of 60: about 93 of 100 intervals hold it (the percentile method runs low)."""
    random = np.random.default_rng(1)
    intervals = [mean(random.exponential(size=60)) for _ in range(100)]
    assert 86 <= sum(i["low"] <= 1 <= i["high"] for i in intervals) <= 99


def test_mean_is_the_same_each_time_and_equal_values_need_no_resamples():
    assert mean([1, 2, 5]) == mean([1, 2, 5])
    same(mean([3, 3, 3]), 3, 3, 3, 3)
    same(mean([7]), 7, 7, 7, 1)


@pytest.mark.parametrize("figure", [mean, share])
def test_no_values_make_no_estimate(figure):
    with pytest.raises(ValueError, match="no values"):
        figure([])


def test_win_rate_counts_ties_half():
    found = win_rate([3, 5, 2, 4], [1, 5, 6, 4])  # won, tie, lost, tie
    assert (found["estimate"], found["n"]) == (0.5, 4)
    assert win_rate([1, 2], [1, 2])["estimate"] == 0.5
    assert win_rate([0.1 + 0.2], [0.3])["estimate"] == 0.5  # a difference of rounding is a tie


SCORES = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=1, max_size=30)


@settings(max_examples=15, deadline=None)
@given(SCORES)
def test_two_rivals_win_rates_add_to_one(scores):
    own, other = zip(*scores)
    there, back = win_rate(own, other), win_rate(other, own)
    assert there["estimate"] + back["estimate"] == pytest.approx(1)
    assert there["low"] + back["high"] == pytest.approx(1, abs=0.03)  # percentiles fall between the same resamples


def test_win_rate_needs_scores_of_the_same_prompts():
    with pytest.raises(ValueError):
        win_rate([1, 2, 3], [1, 2])


def test_difference_of_pairs_by_hand():
    """Four pairs: one only left, none only right. With half a pair more in each outcome: n 6, b 1.5, c 0.5."""
    half = Z * math.sqrt((1.5 + 0.5) - (1.5 - 0.5) ** 2 / 6) / 6
    same(difference_of_pairs([1, 1, 0, 0], [0, 1, 0, 0]), 0.25, 1 / 6 - half, 1 / 6 + half, 4)


def test_difference_of_pairs_covers_the_truth():
    """Left true in 20 % and right in 5 % of the cases, drawn apart from each other: the difference is 0.15."""
    random = np.random.default_rng(2)
    drawn = [difference_of_pairs(random.random(80) < 0.2, random.random(80) < 0.05) for _ in range(1000)]
    assert 0.93 <= np.mean([d["low"] <= 0.15 <= d["high"] for d in drawn]) <= 0.98


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_difference_of_pairs_holds_its_estimate_and_never_claims_certainty(pairs):
    left, right = zip(*pairs)
    found, turned = difference_of_pairs(left, right), difference_of_pairs(right, left)
    assert -1 <= found["low"] <= found["estimate"] <= found["high"] <= 1 and found["low"] < found["high"]
    assert [found["low"], found["high"]] == pytest.approx([-turned["high"], -turned["low"]])


def test_over_seeds_by_hand():
    """Means 1, 2, 3: mean 2, standard error 1 / sqrt(3), and 4.3027 is the 97.5 % point of t with two degrees of freedom."""
    figures = [{"estimate": value, "low": 0, "high": 9, "n": 300} for value in (1, 2, 3)]
    same(over_seeds(figures), 2, 2 - 4.302652729911275 / math.sqrt(3), 2 + 4.302652729911275 / math.sqrt(3), 3)
    assert over_seeds(figures[:1]) == figures[0]


def test_show():
    assert show({"estimate": 0.834, "low": 0.78, "high": 0.866, "n": 300}) == "0.83 (0.78 to 0.87, n 300)"
    rare = {"estimate": 0.0106, "low": -0.0002, "high": 0.0184, "n": 940}
    assert show(rare) == "0.011 (0.000 to 0.018, n 940)" and show(rare, 1, with_n=False) == "0.0 (0.0 to 0.0)"
    assert show(rare | {"high": 0.104}) == "0.01 (0.00 to 0.10, n 940)"
