"""Rewards made of other rewards, biased labels, best-of-n without sampling anew, and Gao's curve, each against a second derivation."""

import itertools

import numpy as np
import pytest
from transformers import TrainerControl, TrainerState

from rlhf_helpers.rewards import best_of_n_curve, biased_labels, ensemble, gao_fit, gao_terms, plus, words_outside
from rlhf_helpers.rl import KeepBest

PROMPTS, ANSWERS = ["a", "b"], ["one two three", "one"]


def long_ones(prompts, completions):
    return [float(len(c)) for c in completions]


def test_a_reward_plus_a_feature():
    assert plus(long_ones, -2.0, words_outside(2, 2))(PROMPTS, ANSWERS) == [13 - 2.0, 3 - 2.0]
    assert plus(long_ones, 1.0, len)(PROMPTS, ANSWERS) == [26, 6]


@pytest.mark.parametrize("number, outside", [(0, 3), (3, 0), (5, 0), (9, 4)])
def test_words_outside_a_range(number, outside):
    assert words_outside(3, 5)("word " * number) == outside


def test_an_ensemble_takes_the_worst_or_the_mean():
    members = [long_ones, lambda prompts, completions: [0.0, 9.0]]
    assert ensemble(members)(PROMPTS, ANSWERS) == [0, 3]
    assert ensemble(members, np.mean)(PROMPTS, ANSWERS) == [6.5, 6]


def test_biased_labels_turn_only_what_the_weakness_prefers():
    rows = [{"prompt": f"{k}", "chosen": "x" * (k % 3), "rejected": "xx"} for k in range(300)]
    turned = biased_labels(rows, len, 1.0)
    assert all(len(row["chosen"]) >= len(row["rejected"]) for row in turned) and biased_labels(rows, len, 0.0) == rows
    share = np.mean([row["chosen"] == "xx" for row in biased_labels(rows, len, 0.5)])
    assert share == pytest.approx(2 / 3, abs=0.08)  # a third was so before, half of the others are turned


def test_best_of_n_against_all_draws():
    """Every way to draw n of five answers, tried."""
    dice = np.random.default_rng(1)
    scores, values = dice.normal(size=(3, 5)), dice.normal(size=(3, 5))
    found = best_of_n_curve(scores, values, [1, 2, 3, 5])
    for column, n in enumerate([1, 2, 3, 5]):
        draws = [list(draw) for draw in itertools.combinations(range(5), n)]
        expected = [np.mean([v[max(draw, key=s.__getitem__)] for draw in draws]) for s, v in zip(scores, values)]
        np.testing.assert_allclose(found[:, column], expected)


def test_best_of_many_does_not_overflow():
    scores = np.arange(500.0)[None]
    assert best_of_n_curve(scores, scores, [1, 499, 500])[0] == pytest.approx([249.5, 499 - 1 / 500, 499])


@pytest.mark.parametrize("method, peak", [("best_of_n", 2.0 / (2 * 0.5)), ("rl", np.exp(2.0 / 0.5 - 1))])
def test_gaos_curve_is_found_again(method, peak):
    """The weights that made a noisy curve lie in their intervals; its highest point is where the formula says."""
    grid = np.linspace(0.01, 40, 100_000)
    assert grid[(gao_terms(grid, method) @ [2.0, 0.5]).argmax()] == pytest.approx(peak, abs=1e-3)
    distance = np.tile(np.linspace(0.1, 1.5 * peak, 8), (50, 1))
    gain = gao_terms(distance, method) @ [2.0, 0.5] + np.random.default_rng(0).normal(0, 0.5, distance.shape)
    found = gao_fit(distance, gain, method)
    for name, truth in (("alpha", 2.0), ("beta", 0.5), ("peak", peak)):
        assert found[name]["low"] < truth < found[name]["high"] and found[name]["n"] == 50
    assert found["turns"] > 0.99


def test_a_curve_that_only_rises_has_no_peak():
    distance = np.linspace(0.1, 2, 9)[:, None]
    found = gao_fit(distance, distance + distance**2, "best_of_n")
    assert found["peak"]["estimate"] == np.inf and found["turns"] == 0


def test_early_stopping_keeps_the_weights_of_the_best_running_mean():
    """By hand: the means of two neighbours are 1, 2, 4, 3.5; the third step's is highest."""
    import torch
    model, keep, state = torch.nn.Linear(1, 1, bias=False), KeepBest("held_out", window=2), TrainerState()
    for step, value in enumerate([1.0, 3.0, 5.0, 2.0], 1):
        state.global_step = step
        torch.nn.init.constant_(model.weight, step)
        keep.on_log(None, state, TrainerControl(), logs={"held_out": value}, model=model)
    keep.on_log(None, state, TrainerControl(), logs={"train_runtime": 1.0}, model=model)
    assert keep.step == 3 and keep.weights["weight"].item() == 3
