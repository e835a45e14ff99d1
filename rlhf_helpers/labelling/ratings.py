"""How models stand against each other, from who won which comparison.

Elo (1978) reads games one after the other and moves two ratings after each, so its figures depend on the order; Bradley
and Terry (1952) look for the strengths that make all games together most probable, so theirs do not. Both are computed
by evalica and given on Elo's scale: 400 points more are ten wins to one loss, 1000 is the mean.

Intervals are bootstraps over prompts, not over games: games about one prompt say partly the same (all pairs of one ranking,
several annotators of one pair), and to count them as independent would make every interval too narrow.
"""
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import combinations, product

import evalica
import numpy as np
import pandas as pd
from evalica import Winner
from scipy.stats import bootstrap

from ..formats import as_text
from .store import BOTH, Label, LabelStore, pairs_in

Ratings = dict[str, dict]


def games(store: LabelStore, labels: Iterable[Label] | None = None) -> pd.DataFrame:
    """One row for each label (default: all of the store) and two models: `x`, `y`, `winner`, an evalica `Winner`, and the
    `prompt` it was about.

    Ties of all kinds are draws, skips are no games, and neither are two answers by the same model.
    """
    pairs = {pair.id: pair for comparison in store.comparisons() for pair in pairs_in(comparison)}
    rows = []
    for label in store.labels() if labels is None else labels:
        if label.choice != "skip":
            first, second = label.shown_order
            winner = Winner.Draw if label.preferred is None else Winner.X if label.preferred == first else Winner.Y
            pair = pairs[label.comparison_id]
            of = {answer.id: answer.model.split(BOTH) for answer in pair.responses}
            rows += [(x, y, winner, as_text(pair.prompt)) for x, y in product(of[first], of[second]) if x != y]
    return pd.DataFrame(rows, columns=["x", "y", "winner", "prompt"])


def wins(played: pd.DataFrame) -> pd.DataFrame:
    """How often the row's model beat the column's; a draw counts half for both."""
    names = sorted({*played["x"], *played["y"]})
    table = pd.DataFrame(0.0, index=names, columns=names)
    for x, y, winner in played[["x", "y", "winner"]].itertuples(index=False):
        share = {Winner.X: 1.0, Winner.Y: 0.0}.get(winner, 0.5)
        table.loc[x, y] += share
        table.loc[y, x] += 1 - share
    return table


def bradley_terry(played: pd.DataFrame, seed: int = 0, resamples: int = 1000) -> Ratings:
    """{model: rating with its 95 % bootstrap interval over prompts}, the best first; n is the number of its games. Games of
    one prompt only give no interval: it reaches from minus to plus infinity.

    One draw between every two models is added: without it a model that never lost would be infinitely good.
    Raises ValueError if there is no game.
    """
    return _rated(played, _bradley_terry, seed, resamples)


def elo(played: pd.DataFrame, k: float = 16, seed: int = 0, resamples: int = 1000) -> Ratings:
    """As `bradley_terry`, by Elo's rule with step `k` in the order of the rows; the interval is over resampled prompts
    in random order, so it holds the luck of the order too."""
    return _rated(played, evalica.elo, seed, resamples, k=k)


def over_orders(played: pd.DataFrame, orders: int = 200, k: float = 16, seed: int = 0) -> pd.DataFrame:
    """The lowest and highest rating of each model when the same games are read in `orders` different orders: columns
    `elo low`, `elo high`, `bradley_terry low` and `bradley_terry high`."""
    rng, rated = np.random.default_rng(seed), {"elo": [], "bradley_terry": []}
    for _ in range(orders):
        shuffled = played.iloc[rng.permutation(len(played))]
        given = {"xs": list(shuffled["x"]), "ys": list(shuffled["y"]), "winners": list(shuffled["winner"])}
        rated["elo"].append(evalica.elo(**given, k=k).scores)
        rated["bradley_terry"].append(_bradley_terry(**given).scores)
    spread = {f"{name} {end}": getattr(pd.DataFrame(scores), which)() for name, scores in rated.items()
              for end, which in (("low", "min"), ("high", "max"))}
    return pd.DataFrame(spread)


def _bradley_terry(xs: Iterable[str], ys: Iterable[str], winners: Iterable, weights: Iterable[float] | None = None,
                   **more) -> evalica.BradleyTerryResult:
    xs, ys, winners = list(xs), list(ys), list(winners)
    drawn = list(combinations(more["index"] if more.get("index") is not None else sorted({*xs, *ys}), 2))
    result = evalica.bradley_terry(
        xs + [x for x, _ in drawn], ys + [y for _, y in drawn], winners + [Winner.Draw] * len(drawn),
        weights=[*(weights if weights is not None else [1.0] * len(xs)), *[1.0] * len(drawn)], limit=1000, **more)
    logs = np.log10(result.scores)
    return replace(result, scores=1000 + 400 * (logs - logs.mean()))


def _rated(played: pd.DataFrame, method: Callable, seed: int, resamples: int, **settings) -> Ratings:
    if played.empty:
        raise ValueError("no games: label pairs of answers by different models first")
    names = sorted({*played["x"], *played["y"]})
    columns = [played[name].to_numpy(dtype=object) for name in ("x", "y", "winner")]
    of_prompt = list(played.groupby("prompt", sort=False).indices.values())

    def scores(rows: np.ndarray) -> np.ndarray:
        result = method(*(list(column[rows]) for column in columns), index=pd.Index(names), **settings)
        return result.scores.reindex(names).to_numpy()

    estimate = scores(np.arange(len(played)))
    low, high = np.full(len(names), -np.inf), np.full(len(names), np.inf)
    if len(of_prompt) > 1:
        low, high = bootstrap((range(len(of_prompt)),), lambda drawn: scores(np.concatenate([of_prompt[each] for each in drawn])),
                              n_resamples=resamples, vectorized=False, method="percentile", rng=seed).confidence_interval
    count = pd.concat([played["x"], played["y"]]).value_counts()
    return {names[place]: {"estimate": float(estimate[place]), "low": float(low[place]), "high": float(high[place]),
                           "n": int(count[names[place]])} for place in np.argsort(-estimate, kind="stable")}
