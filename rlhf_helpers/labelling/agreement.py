"""How far annotators agree with each other, and what each of them leans to.

Estimates are dicts with `estimate`, `low`, `high` (95 %) and `n`, as in `statistics`; None where too few labels, or
labels that are all alike, leave a figure without meaning. `as_table` shows them.

A verdict on a pair is one of five: the first response, the second (in an order by hash, which has nothing to do with
sides or models), both good, both bad, equal (in a ranking). Skips say nothing and are left out.
"""
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import evalica
import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from ..statistics import show
from .store import FLAGS, Label

CATEGORIES = {"first": 0, "second": 1, "tie_good": 2, "tie_bad": 3, "tie": 4}


@dataclass(frozen=True)
class Majority:
    """The verdict with the most votes on a pair: a response id, tie_good or tie_bad; None when two have equally many.
    `share` is its share of all votes, `voters` the annotators who gave it."""

    verdict: str | None
    share: float
    votes: int
    voters: tuple[str, ...]


def _by_pair(labels: Iterable[Label]) -> dict[str, list[Label]]:
    pairs = defaultdict(list)
    for label in labels:
        if label.choice != "skip":
            pairs[label.comparison_id].append(label)
    return pairs


def _shared(labels: Iterable[Label]) -> dict[str, list[Label]]:
    return {pair_id: given for pair_id, given in _by_pair(labels).items() if len(given) > 1}


def _category(label: Label) -> int:
    order = sorted(label.shown_order)
    return CATEGORIES[("first", "second")[order.index(label.preferred)] if label.preferred else label.choice]


def _wilson(successes: float, n: int) -> dict | None:
    """A share with its interval (Wilson, 1927), for which `successes` that are not whole are rounded."""
    if n == 0:
        return None
    interval = binomtest(round(successes), n).proportion_ci(method="wilson")
    return _estimate(successes / n, interval.low, interval.high, n)


def _estimate(estimate: float, low: float, high: float, n: int) -> dict:
    return {"estimate": float(estimate), "low": float(low), "high": float(high), "n": n}


def percent_agreement(labels: Iterable[Label]) -> dict | None:
    """The chance that two annotators of a pair say the same, a mean over the n pairs with two labels or more.

    The Wilson interval counts each pair of answers once, however many annotators it has.
    """
    shares = []
    for given in _shared(labels).values():
        verdicts = [label.verdict for label in given]
        shares.append(np.mean([one == other for one, other in combinations(verdicts, 2)]))
    return _wilson(sum(shares), len(shares))


def krippendorff_alpha(labels: Iterable[Label], seed: int = 0) -> dict | None:
    """`alpha_of` the verdicts of the annotators: 1 is perfect agreement, 0 what chance gives."""
    return alpha_of(pd.DataFrame({pair_id: {label.annotator: _category(label) for label in given}
                                  for pair_id, given in _by_pair(labels).items()}, dtype="float64"), seed)


def alpha_of(ratings: pd.DataFrame, seed: int = 0) -> dict | None:
    """Krippendorff's nominal alpha (2018, chapter 12) with the bootstrap interval of his algorithm of 2006, by evalica.

    `ratings` has an annotator a row, a unit a column, numbers for categories and NaN where nothing was said. n counts
    the units with two ratings or more. None when those are all alike: no disagreement could then be expected.
    """
    shared = ratings.loc[:, ratings.notna().sum() > 1]
    if shared.stack().nunique() < 2:
        return None
    result = evalica.alpha_bootstrap(shared, distance="nominal", n_resamples=2000, random_state=seed)
    return _estimate(result.alpha, result.low, result.high, shared.shape[1])


def cohen_kappa(labels: Iterable[Label], one: str, other: str, seed: int = 0) -> dict | None:
    """Cohen's kappa (1960) of two annotators, by scikit-learn, over the n pairs that both labelled; its interval is a
    percentile bootstrap. None when both always say the same one thing."""
    rated = defaultdict(dict)
    for label in labels:
        if label.choice != "skip" and label.annotator in (one, other):
            rated[label.comparison_id][label.annotator] = _category(label)
    both = np.array([(given[one], given[other]) for given in rated.values() if len(given) == 2]).reshape(-1, 2)
    estimate, n = _kappa(both), len(both)
    if not np.isfinite(estimate):
        return None
    draws = np.random.default_rng(seed).integers(0, n, size=(400, n))
    low, high = np.nanquantile([_kappa(both[draw]) for draw in draws], [0.025, 0.975])
    return _estimate(estimate, low, high, n)


def _kappa(both: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")          # scikit-learn warns, and gives nan, where kappa is not defined
        return cohen_kappa_score(both[:, 0], both[:, 1]) if len(both) else float("nan")


def majority(labels: Iterable[Label]) -> dict[str, Majority]:
    """{pair id: the verdict with the most votes}; skips do not vote."""
    return {pair_id: _most(given) for pair_id, given in _by_pair(labels).items()}


def _most(given: list[Label]) -> Majority:
    (verdict, votes), *others = Counter(label.verdict for label in given).most_common()
    if others and others[0][1] == votes:
        return Majority(None, votes / len(given), len(given), ())
    voters = tuple(sorted(label.annotator for label in given if label.verdict == verdict))
    return Majority(verdict, votes / len(given), len(given), voters)


def dawid_skene(labels: Iterable[Label]) -> pd.DataFrame:
    """What each pair probably is, where votes of reliable annotators weigh more (Dawid and Skene, 1979, by crowd-kit).

    A row a pair (its id is the index), `verdict` (a response id, tie_good, tie_bad or tie) and `probability`. How
    reliable each one is follows from the labels alone: whoever agrees with the others on what they agree on. Empty if
    there are no labels.
    """
    from crowdkit.aggregation import DawidSkene  # slow to load, and seldom needed
    pairs = _by_pair(labels)
    rows = [(pair_id, label.annotator, _category(label)) for pair_id, given in pairs.items() for label in given]
    if not rows:
        return pd.DataFrame(columns=["verdict", "probability"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                      # it uses what pandas is about to give up
        found = DawidSkene(n_iter=200, tol=1e-6).fit_predict_proba(pd.DataFrame(rows, columns=["task", "worker", "label"]))
    names = dict(zip(CATEGORIES.values(), CATEGORIES, strict=True))
    verdicts = {pair_id: _verdict(names[category], pairs[pair_id][0]) for pair_id, category in found.idxmax(axis=1).items()}
    return pd.DataFrame({"verdict": verdicts, "probability": found.max(axis=1)}).loc[list(pairs)]


def _verdict(category: str, label: Label) -> str:
    order = sorted(label.shown_order)
    return {"first": order[0], "second": order[1]}.get(category, category)


def flag_agreement(labels: Iterable[Label], seed: int = 0) -> dict[str, dict | None]:
    """{flag: Krippendorff's alpha of whether it was set}, a unit for each answer of each pair; None for a flag that
    nobody set or that is on every answer. Persons only see whether to agree on a criterion if someone used it."""
    given = [label for pair in _by_pair(labels).values() for label in pair]
    table = {flag: defaultdict(dict) for flag in FLAGS}
    for label in given:
        for answer in label.shown_order:
            for flag in FLAGS:
                table[flag][f"{label.comparison_id} {answer}"][label.annotator] = float(flag in label.flags.get(answer, ()))
    return {flag: alpha_of(pd.DataFrame(units, dtype="float64"), seed) if units else None for flag, units in table.items()}


def per_annotator(labels: Iterable[Label]) -> list[dict]:
    """A row an annotator: `annotator`, `labels` (their number), the shares of the preferences that chose the `left` and
    the `longer` answer, `median_seconds` a pair was looked at, and how often they say what the majority of the others
    says (`with_majority`; even splits do not count)."""
    pairs, own = _by_pair(labels), defaultdict(list)
    for given in pairs.values():
        for label in given:
            own[label.annotator].append(label)
    return [_annotator_row(name, own[name], pairs) for name in sorted(own)]


def self_agreement(labels: Iterable[Label], repeats: Iterable[Label]) -> dict[str, dict]:
    """{annotator: how often a hidden repeat (`LabelStore.repeats`) got the same verdict as the pair the first time}."""
    first, same = {(label.comparison_id, label.annotator): label.verdict for label in labels}, defaultdict(list)
    for again in repeats:
        before = first.get((again.comparison_id, again.annotator), "skip")
        if "skip" not in (before, again.verdict):
            same[again.annotator].append(before == again.verdict)
    return {name: _wilson(sum(hits), len(hits)) for name, hits in sorted(same.items())}


def gold_accuracy(gold_labels: Iterable[tuple[Label, bool]]) -> dict[str, dict]:
    """{annotator: how often the answer known to be better was chosen}, of `LabelStore.gold_labels`."""
    right = defaultdict(list)
    for label, is_right in gold_labels:
        right[label.annotator].append(is_right)
    return {name: _wilson(sum(hits), len(hits)) for name, hits in sorted(right.items())}


def _annotator_row(name: str, own: list[Label], pairs: dict[str, list[Label]]) -> dict:
    preferences = [label for label in own if label.preferred]
    unequal = [label for label in preferences if len(set(label.lengths.values())) == 2]
    left = [label.preferred == label.shown_order[0] for label in preferences]
    longer = [label.lengths[label.preferred] == max(label.lengths.values()) for label in unequal]
    seconds = [label.shown_ms / 1000 for label in own if label.shown_ms is not None]
    agrees = [label.verdict == verdict for label in own
              if (verdict := _others_verdict(name, pairs[label.comparison_id]))]
    return {"annotator": name, "labels": len(own), "left": _wilson(sum(left), len(left)),
            "longer": _wilson(sum(longer), len(longer)), "with_majority": _wilson(sum(agrees), len(agrees)),
            "median_seconds": float(np.median(seconds)) if seconds else None}


def _others_verdict(name: str, given: list[Label]) -> str | None:
    others = [label for label in given if label.annotator != name]
    return _most(others).verdict if others else None


def as_table(rows: Iterable[dict]) -> pd.DataFrame:
    """The rows with estimates in words, such as `0.83 (0.78 to 0.87, n 300)`; what is not defined is an en dash."""
    return pd.DataFrame([{name: _in_words(value) for name, value in row.items()} for row in rows])


def _in_words(value: object) -> object:
    if value is None:
        return "–"
    if isinstance(value, dict):
        return show(value)
    return round(value, 1) if isinstance(value, float) else value
