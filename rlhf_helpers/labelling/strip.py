"""The figures that an annotator sees at work, and a kind word when one of them looks wrong.

Plain counts, so that they cost nothing after every act; `agreement` has the same figures with intervals.
"""
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from ..formats import as_text
from .store import Comparison, Event

READING = 240           # words a minute, silent reading of English: Brysbaert (2019), Journal of Memory and Language 109
LETTERS_A_WORD = 6      # with the space after it
LATELY = 20             # pace is that of the last so many


@dataclass(frozen=True)
class Figure:
    """A figure in words, such as `chose left` and `7 of 12`, and a hint where there is reason for one."""

    name: str
    value: str
    hint: str = ""


def figures(acts: Iterable[Event], comparisons: dict[str, Comparison]) -> list[Figure]:
    """Pace, sides, length, agreement with oneself and with the gold pairs, of one annotator's standing acts."""
    labels = [act for act in acts if act.kind == "label"]
    first = [act for act in labels if act.round == 0]
    preferences = [act for act in first if act.preferred]
    found = [_pace(first[-LATELY:], comparisons), _left(preferences), _longer(preferences, comparisons),
             _self_agreement(labels), _gold(first, comparisons)]
    return [figure for figure in found if figure]


def _pace(acts: list[Event], comparisons: dict[str, Comparison]) -> Figure | None:
    timed = [(act.shown_ms / 1000, _words(comparisons[act.comparison_id])) for act in acts if act.shown_ms]
    if not timed:
        return None
    seconds, rate = median(time for time, _ in timed), median(60 * words / time for time, words in timed)
    hint = (f"That is about {rate:.0f} words a minute; most people read {READING}. No hurry: a label that was not "
            "read for costs more than it gives.") if len(timed) >= 10 and rate > 2.5 * READING else ""
    return Figure("pace", f"{seconds:.0f} s each", hint)


def _words(comparison: Comparison) -> float:
    texts = [as_text(comparison.prompt), *(answer.text for answer in comparison.responses)]
    return sum(map(len, texts)) / LETTERS_A_WORD


def _left(preferences: list[Event]) -> Figure | None:
    left, n = sum(act.preferred == act.shown_order[0] for act in preferences), len(preferences)
    leans = n >= 20 and abs(2 * left - n) > 2 * n**0.5           # about two standard errors from one half
    side = "left" if 2 * left > n else "right"
    hint = f"You chose the {side} answer unusually often, and sides are drawn by lot. Try reading the other one first."
    return Figure("chose left", f"{left} of {n}", hint if leans else "") if n else None


def _longer(preferences: list[Event], comparisons: dict[str, Comparison]) -> Figure | None:
    known = [(act.preferred, comparisons[act.comparison_id].longer) for act in preferences]
    longer = [preferred == longest for preferred, longest in known if longest]
    hint = ("You nearly always chose the longer answer. It may well have been better; ask what you would say if both "
            "had the same length.") if len(longer) >= 20 and sum(longer) > 0.8 * len(longer) else ""
    return Figure("chose longer", f"{sum(longer)} of {len(longer)}", hint) if longer else None


def _self_agreement(labels: list[Event]) -> Figure | None:
    said = {(act.comparison_id, act.round): (act.choice, act.preferred) for act in labels}
    same = [verdict == said[pair_id, 0] for (pair_id, again), verdict in said.items() if again and (pair_id, 0) in said]
    hint = ("Some pairs came twice, with the sides swapped, and you often said something else. Close calls do that; "
            "Both good and Both bad are there for them.")
    return Figure("same when asked again", f"{sum(same)} of {len(same)}", _if_low(same, hint)) if same else None


def _gold(labels: list[Event], comparisons: dict[str, Comparison]) -> Figure | None:
    right = [act.preferred == gold for act in labels if (gold := comparisons[act.comparison_id].gold)]
    hint = "Some pairs have a known better answer, and you often chose the other. Perhaps read the guideline once more."
    return Figure("known answers", f"{sum(right)} of {len(right)}", _if_low(right, hint)) if right else None


def _if_low(hits: list[bool], hint: str) -> str:
    return hint if len(hits) >= 4 and sum(hits) < 0.7 * len(hits) else ""
