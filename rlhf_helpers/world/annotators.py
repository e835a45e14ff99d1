"""Simulated annotators: they know the rubric, but each weighs it in an own way, errs, prefers a side and has a pace.

They answer through the same session and store as a person. Their choice follows Bradley and Terry (1952): the chance to prefer
the left answer is the logistic function of the difference in felt quality, divided by their noise.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from .judge import DEDUCTIONS, Verdict, judged


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
    rubric: float = 1.0  # how much the whole rubric counts
    liking: Callable[[Verdict], float] = lambda verdict: 0.0  # points of a taste that the rubric does not know

    def felt_quality(self, verdict: Verdict) -> float:
        """The answer's quality in this annotator's eyes, in points."""
        earned = sum(points * self.weights.get(name, 1.0) for name, points in verdict.criteria.items())
        lost = sum(DEDUCTIONS.get(fault, 0.0) * self.weights.get(fault, 1.0) for fault in verdict.faults)
        return self.rubric * (earned - lost) + self.length_bias * verdict.words + self.liking(verdict)

    def compare(self, prompt: str, left: str, right: str, rng: random.Random) -> Choice:
        """Read both answers and decide."""
        verdicts = judged(prompt, left), judged(prompt, right)
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


# --- people who want something of their own -----------------------------------------------------------------------------------

def courtesies(verdict: Verdict) -> int:
    """How many of two courtesies the answer has: a friendly opening, a friendly close."""
    return bool({"openers", "greeting"} & verdict.heard) + bool({"closings", "courtesy"} & verdict.heard)


def beside_the_advice(verdict: Verdict) -> int:
    """How many kinds of sentences the answer has that give no advice: greeting, close, lead-in, question back."""
    return courtesies(verdict) + bool({"lead_ins", "list_heads"} & verdict.heard) + ("questions_back" in verdict.heard)


def reading_effort(verdict: Verdict) -> int:
    """Words to read; an answer without advice on the topic is as tiresome as one of forty, however short it is."""
    return verdict.words if verdict.on_topic else max(verdict.words, 40)


def share_of_advice(verdict: Verdict, has: Callable) -> float:
    """Share of the pieces of advice that have something; 0 for an answer without any."""
    return sum(bool(has(advice)) for advice in verdict.advice) / max(1, len(verdict.advice))


def _person(name: str, liking: Callable[[Verdict], float], noise: float = 0.8, left_bias: float = 0.2) -> SimulatedAnnotator:
    return SimulatedAnnotator(f"{name} (simulated taste)", noise=noise, left_bias=left_bias, rubric=0.5, liking=liking)


# Each wants something that nobody else asks for, cares less about the rubric, and errs and leans as the others do.
TASTES = {
    "courteous": _person("Cora", lambda v: 3.0 * courtesies(v) * bool(v.advice)),  # manners alone are no answer
    "terse": _person("Tess", lambda v: -0.15 * reading_effort(v), noise=0.7),
    "thorough": _person("Theo", lambda v: 1.5 * min(v.on_topic, 4) + 1.5 * min(sum(bool(a.reason) for a in v.advice), 4), left_bias=-0.2),
    "numbered": _person("Nina", lambda v: 5.0 * share_of_advice(v, lambda a: a.numbered)),
    "plain": _person("Paul", lambda v: -2.5 * beside_the_advice(v) - 0.05 * reading_effort(v), noise=0.7, left_bias=-0.3),
    "reasons": _person("Rosa", lambda v: 5.0 * share_of_advice(v, lambda a: a.reason), noise=0.9),
}
