"""Simulated annotators: they know the rubric, but each weighs it in an own way, errs, prefers a side and has a pace.

They answer through the same session and store as a person. Their choice follows Bradley and Terry (1952): the chance to prefer
the left answer is the logistic function of the difference in felt quality, divided by their noise.
"""

import math
import random
from dataclasses import dataclass, field

from .judge import DEDUCTIONS, Verdict, judge


@dataclass(frozen=True)
class Choice:
    """What an annotator decided: `left`, `right`, `tie_good` or `tie_bad`, after `shown_ms` milliseconds."""

    choice: str
    shown_ms: int


@dataclass(frozen=True)
class SimulatedAnnotator:
    """One simulated person. `weights` scale criteria and deductions of the rubric by name; `noise` is in points of score."""

    name: str
    noise: float = 1.0
    left_bias: float = 0.0  # points that the left answer gets for being left
    words_per_minute: float = 220
    weights: dict[str, float] = field(default_factory=dict)
    length_bias: float = 0.0  # points for each word more

    def felt_quality(self, verdict: Verdict) -> float:
        """The answer's quality in this annotator's eyes, in points."""
        earned = sum(points * self.weights.get(name, 1.0) for name, points in verdict.criteria.items())
        lost = sum(DEDUCTIONS.get(fault, 0.0) * self.weights.get(fault, 1.0) for fault in verdict.faults)
        return earned - lost + self.length_bias * verdict.words

    def compare(self, prompt: str, left: str, right: str, rng: random.Random) -> Choice:
        """Read both answers and decide."""
        verdicts = judge(prompt, left), judge(prompt, right)
        difference = self.felt_quality(verdicts[0]) - self.felt_quality(verdicts[1])
        words = len(prompt.split()) + verdicts[0].words + verdicts[1].words
        shown_ms = int(60_000 * words / self.words_per_minute * rng.lognormvariate(0, 0.35)) + 800
        if abs(difference) < 0.05 and rng.random() < 0.7:
            return Choice("tie_good" if verdicts[0].score >= 5 else "tie_bad", shown_ms)
        chance = 1 / (1 + math.exp(-(difference + self.left_bias) / self.noise))
        return Choice("left" if rng.random() < chance else "right", shown_ms)


ANNOTATORS = (
    SimulatedAnnotator("Ada (simulated)", noise=0.6, words_per_minute=190),
    SimulatedAnnotator("Ben (simulated)", noise=0.9, left_bias=0.3, words_per_minute=260, weights={"warmth": 1.6, "reasons": 0.7}),
    SimulatedAnnotator("Cleo (simulated)", noise=0.7, words_per_minute=220, weights={"instructions": 1.4, "warmth": 0.6}),
    SimulatedAnnotator("Dev (simulated)", noise=1.2, words_per_minute=420, length_bias=0.02, weights={"reasons": 1.3}),
    SimulatedAnnotator("Eva (simulated)", noise=0.8, left_bias=-0.2, words_per_minute=240, weights={"unsafe": 1.5, "rudeness": 1.3}),
)
