"""Ratings of models: known strengths, a second derivation, what order does, and what labels become which games."""
from itertools import combinations

import evalica
import numpy as np
import pandas as pd
import pytest
from evalica import Winner
from scipy.optimize import minimize

from rlhf_helpers.labelling import ratings
from rlhf_helpers.labelling.session import LabellingSession
from rlhf_helpers.labelling.store import LabelStore


def played(strengths, number, seed=0):
    """Games of models whose true ratings are known, in equal numbers for each two."""
    rng, rows = np.random.default_rng(seed), []
    for x, y in combinations(strengths, 2):
        chance = 1 / (1 + 10 ** ((strengths[y] - strengths[x]) / 400))
        rows += [(x, y, Winner.X if win else Winner.Y) for win in rng.random(number) < chance]
    return table(*rows).sample(frac=1, random_state=seed)


def table(*games):
    """Games that are each about a prompt of its own."""
    return pd.DataFrame(games, columns=["x", "y", "winner"]).assign(prompt=range(len(games)))


TRUE = {"dpo": 1150, "sft": 1000, "base": 850}


def test_bradley_terry_finds_known_strengths_within_its_intervals():
    rated = ratings.bradley_terry(played(TRUE, 400), resamples=300)
    assert list(rated) == ["dpo", "sft", "base"]
    for name, true in TRUE.items():
        assert rated[name]["low"] < true < rated[name]["high"] and rated[name]["high"] - rated[name]["low"] < 80
        assert rated[name]["n"] == 800


def test_bradley_terry_is_the_most_probable_strength():
    """Minimise the negative log-likelihood directly; a draw is half a win each, and every two models drew once more."""
    games = pd.concat([played(TRUE, 20), table(*[("dpo", "base", Winner.Draw)] * 3)])
    share = ratings.wins(games) + 0.5 * (1 - np.eye(3))
    names = list(share.index)

    def surprise(points):
        points = np.append(points, -points.sum())
        return -sum(share.iloc[i, j] * np.log(1 / (1 + 10 ** ((points[j] - points[i]) / 400)))
                    for i in range(3) for j in range(3) if i != j)
    best = minimize(surprise, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-9}).x
    rated = ratings.bradley_terry(games, resamples=10)
    assert [rated[name]["estimate"] - 1000 for name in names] == pytest.approx([*best, -best.sum()], abs=0.1)


def test_a_model_that_never_lost_is_good_and_not_infinitely_so():
    games = table(*[("a", "b", Winner.X)] * 9, *[("b", "c", Winner.X)] * 9)
    rated = ratings.bradley_terry(games, resamples=50)
    assert list(rated) == ["a", "b", "c"] and 1000 < rated["a"]["estimate"] < 2500
    with pytest.raises(ValueError, match="no games: label pairs"):
        ratings.bradley_terry(games.iloc[:0])


def test_elo_by_hand():
    """Equal players, k 16: the winner gains 8. Then 1008 meets 1000: expected 1 / (1 + 10 ** (-8 / 400))."""
    games = table(("a", "b", Winner.X), ("a", "c", Winner.Y))
    rated = ratings.elo(games, resamples=10)
    loss = 16 / (1 + 10 ** (-8 / 400))
    assert {name: value["estimate"] for name, value in rated.items()} == pytest.approx({"a": 1008 - loss, "b": 992, "c": 1000 + loss})


def width(rated):
    return np.array([value["high"] - value["low"] for _, value in sorted(rated.items())])


def test_the_interval_counts_prompts_and_not_games():
    """With one game a prompt it is evalica's own bootstrap of games; the same games said four times make it no narrower, as
    they do if each is taken for news."""
    games = played(TRUE, 20)
    once, plain = ratings.bradley_terry(games, resamples=400), evalica.bootstrap(
        ratings._bradley_terry, *(list(games[name]) for name in ("x", "y", "winner")), n_resamples=400, bootstrap_method="percentile",
        random_state=np.random.default_rng(0))
    for name, value in once.items():
        assert (value["low"], value["high"]) == pytest.approx((plain.low[name], plain.high[name]))
    repeated = pd.concat([games] * 4, ignore_index=True)
    as_news = ratings.bradley_terry(repeated.assign(prompt=range(len(repeated))), resamples=400)
    assert width(ratings.bradley_terry(repeated, resamples=400)) == pytest.approx(width(once), rel=0.2)
    assert np.all(width(as_news) < 0.65 * width(once))


def test_one_prompt_says_nothing_of_others():
    rated = ratings.bradley_terry(played(TRUE, 5).assign(prompt="the same"))
    assert all((value["low"], value["high"]) == (-np.inf, np.inf) for value in rated.values())


def test_order_changes_elo_and_not_bradley_terry():
    spread = ratings.over_orders(played(TRUE, 30), orders=40)
    assert (spread["elo high"] - spread["elo low"]).min() > 10
    assert (spread["bradley_terry high"] - spread["bradley_terry low"]).max() < 0.1


def test_wins_add_up():
    games = played(TRUE, 10)
    won = ratings.wins(pd.concat([games, table(("dpo", "sft", Winner.Draw))]))
    assert won.to_numpy().sum() == len(games) + 1 and (won + won.T).loc["dpo", "sft"] == 11 and np.trace(won) == 0


def test_labels_become_games(tmp_path):
    store = LabelStore(tmp_path / "labels.sqlite")
    answers = [{"id": model, "text": f"{model} says", "model": model, "settings": {}} for model in ("sft", "dpo + grpo", "base")]
    session = LabellingSession(store, [{"prompt": "p", "responses": answers}], "ann", task="rank")
    shown = [answer.model for answer in session.current.answers]
    session.rank(session.current.pair_id, [[shown.index("dpo + grpo") + 1], sorted([shown.index("sft") + 1, shown.index("base") + 1])])
    found = ratings.games(store)
    won = ratings.wins(found)
    assert set(found["prompt"]) == {"p"}
    assert len(found) == 5 and won.loc["dpo", "sft"] == won.loc["grpo", "base"] == 1 and won.loc["sft", "base"] == 0.5
    assert won.loc["dpo", "grpo"] == 0
