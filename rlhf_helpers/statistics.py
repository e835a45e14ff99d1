"""Figures with their uncertainty. Every estimate is a dict with `estimate`, `low`, `high` (95 %) and `n`."""

import numpy as np
from scipy import stats

RESAMPLES = 2000


def mean(values) -> dict:
    """Mean with a percentile bootstrap interval (Efron, 1979)."""
    values = np.asarray(values, dtype=float)
    if len(values) == 0:
        raise ValueError("no values to take the mean of")
    if np.ptp(values) == 0:
        return estimate_of(values[0], values[0], values[0], len(values))
    interval = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile",
                               rng=np.random.default_rng(0)).confidence_interval
    return estimate_of(values.mean(), interval.low, interval.high, len(values))


def share(flags) -> dict:
    """Share of true values with a Wilson (1927) interval."""
    flags = [bool(flag) for flag in flags]
    if not flags:
        raise ValueError("no values to take the share of")
    interval = stats.binomtest(sum(flags), len(flags)).proportion_ci(method="wilson")
    return estimate_of(sum(flags) / len(flags), interval.low, interval.high, len(flags))


def difference_of_pairs(flags, other_flags) -> dict:
    """Share of true values in `flags` less that in `other_flags`, each a pair with the other's; n is the number of pairs.

    The interval of Agresti and Min (2005, Statistics in Medicine 24) adds half a pair to each of the four outcomes, and so has a
    width even if no pair differs, where a bootstrap has none.
    """
    difference = np.asarray(flags, dtype=float) - np.asarray(other_flags, dtype=float)
    if len(difference) == 0:
        raise ValueError("no pairs to compare")
    n, estimate = len(difference), difference.mean()
    centre, differing = difference.sum() / (n + 2), (np.abs(difference).sum() + 1) / (n + 2)
    half = stats.norm.ppf(0.975) * np.sqrt((differing - centre**2) / (n + 2))
    return estimate_of(estimate, min(estimate, max(centre - half, -1.0)), max(estimate, min(centre + half, 1.0)), n)


def win_rate(scores, rival_scores) -> dict:
    """Share of prompts on which `scores` beat `rival_scores`, a tie counting half, bootstrapped by prompt."""
    difference = np.asarray(scores, dtype=float) - np.asarray(rival_scores, dtype=float)
    return mean((np.sign(difference.round(9)) + 1) / 2)


def over_seeds(estimates: list[dict]) -> dict:
    """Mean of the same figure from several seeds, with a t interval between the seeds; n is the number of seeds."""
    values = np.array([e["estimate"] for e in estimates])
    if len(values) < 2:
        return dict(estimates[0])
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return estimate_of(values.mean(), values.mean() - half, values.mean() + half, len(values))


def show(estimate: dict, digits: int | None = None, with_n: bool = True) -> str:
    """An estimate in words: `0.83 (0.78 to 0.87, n 300)`; with three digits where all of it is below 0.1, if `digits` says nothing."""
    values = [estimate[name] for name in ("estimate", "low", "high")]
    digits = digits if digits is not None else 3 if max(map(abs, values)) < 0.1 else 2
    found, low, high = (f"{value:z.{digits}f}" for value in values)
    return f"{found} ({low} to {high}, n {estimate['n']})" if with_n else f"{found} ({low} to {high})"


def estimate_of(estimate, low, high, n) -> dict:
    return {"estimate": float(estimate), "low": float(low), "high": float(high), "n": int(n)}
