"""Which pair is worth a person's time: those that a reward model is unsure about.

A model that picks its own lessons sees a slanted sample of the world. So a fixed share of the pairs is drawn at random
all the same, and the probability with which each pair was picked is stored with its label: with 1 / probability as
weights, figures over all labels speak of all pairs again.
"""
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, pstdev

from ..formats import as_text
from .store import Comparison

Score = float | Sequence[float]


@dataclass(frozen=True)
class Active:
    """Show first what `score` is unsure about, and every so often (`random_share`, 0 to 1) any pair.

    `score(prompts, answers)` gives for each answer a number, or a number from each member of an ensemble. `by` is
    "margin" (the two answers have nearly the same score; of an ensemble, on average) or "disagreement" (the members of
    the ensemble differ about the margin). Raises ValueError for other settings.
    """

    score: Callable[[list[str], list[str]], Sequence[Score]]
    by: str = "margin"
    random_share: float = 0.25

    def __post_init__(self):
        if self.by not in ("margin", "disagreement"):
            raise ValueError(f'by={self.by!r} is not known: use "margin" or "disagreement"')
        if not 0 < self.random_share <= 1:
            raise ValueError(f"random_share={self.random_share} is not above 0 and at most 1: without a random share, "
                             "no figure over the labels can speak of all pairs")

    def interest(self, comparisons: Iterable[Comparison]) -> dict[str, float]:
        """{id: how much a label would tell}, the mean over its pairs where more than two answers are ranked."""
        comparisons = list(comparisons)
        prompts = [as_text(each.prompt) for each in comparisons for _ in each.responses]
        scores = list(self.score(prompts, [answer.text for each in comparisons for answer in each.responses]))
        if len(scores) != len(prompts):
            raise ValueError(f"the score function gave {len(scores)} scores for {len(prompts)} answers: give one each")
        rows = iter(_members(score) for score in scores)
        return {each.id: fmean(map(self._of_pair, combinations([next(rows) for _ in each.responses], 2)))
                for each in comparisons}

    def _of_pair(self, members: tuple[list[float], list[float]]) -> float:
        margins = [one - other for one, other in zip(*members, strict=True)]
        if self.by == "margin":
            return -abs(fmean(margins))
        if len(margins) == 1:
            raise ValueError('by="disagreement" needs an ensemble: a score function that gives a list for each answer')
        return pstdev(margins)


def _members(score: Score) -> list[float]:
    return [float(score)] if getattr(score, "ndim", 0) == 0 and not isinstance(score, Sequence) else [float(s) for s in score]
