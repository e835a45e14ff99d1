"""The figures that an annotator sees at work, and a kind word when one of them looks wrong.

Plain counts, so that they cost nothing after every act; `agreement` has the same figures with intervals.
"""
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
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


def count(acts: Sequence[Event], comparison: Comparison) -> Counter[str]:
    """What the standing acts on one comparison, the first and that on its hidden repeat, add to the figures. Sums of such
    counts are what `figures` and the progress of a session are made of."""
    said = {act.round: act for act in acts if act.kind == "label"}
    first, again = said.get(0), said.get(1)
    found = Counter(saved=len(acts), skipped=sum(act.kind == "skip" for act in acts), repeats=sum(act.round > 0 for act in acts),
                    done=sum(act.round == 0 and not comparison.gold for act in acts))
    if first and again:
        found.update(asked_again=1, same=(first.choice, first.preferred) == (again.choice, again.preferred))
    if first and comparison.gold:
        found.update(gold=1, gold_right=first.preferred == comparison.gold)
    if first and first.preferred:
        found.update(preferred=1, left=first.preferred == first.shown_order[0])
        found.update(unequal=bool(comparison.longer), longer=first.preferred == comparison.longer)
    return found


def figures(counts: Counter[str], acts: Iterable[Event], comparisons: dict[str, Comparison]) -> list[Figure]:
    """Pace, sides, length, agreement with oneself and with the gold pairs, from the sum of one annotator's counts and the
    standing `acts`, the last one first."""
    lately = islice((act for act in acts if act.kind == "label" and act.round == 0), LATELY)
    found = [_pace(lately, comparisons), _left(counts["left"], counts["preferred"]), _longer(counts["longer"], counts["unequal"]),
             _self_agreement(counts["same"], counts["asked_again"]), _gold(counts["gold_right"], counts["gold"])]
    return [figure for figure in found if figure]


def _pace(acts: Iterable[Event], comparisons: dict[str, Comparison]) -> Figure | None:
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


def _left(left: int, n: int) -> Figure | None:
    leans = n >= 20 and abs(2 * left - n) > 2 * n**0.5           # about two standard errors from one half
    side = "left" if 2 * left > n else "right"
    hint = f"You chose the {side} answer unusually often, and sides are drawn by lot. Try reading the other one first."
    return Figure("chose left", f"{left} of {n}", hint if leans else "") if n else None


def _longer(longer: int, n: int) -> Figure | None:
    hint = ("You nearly always chose the longer answer. It may well have been better; ask what you would say if both "
            "had the same length.") if n >= 20 and longer > 0.8 * n else ""
    return Figure("chose longer", f"{longer} of {n}", hint) if n else None


def _self_agreement(same: int, n: int) -> Figure | None:
    hint = ("Some pairs came twice, with the sides swapped, and you often said something else. Close calls do that; "
            "Both good and Both bad are there for them.")
    return Figure("same when asked again", f"{same} of {n}", _if_low(same, n, hint)) if n else None


def _gold(right: int, n: int) -> Figure | None:
    hint = "Some pairs have a known better answer, and you often chose the other. Perhaps read the guideline once more."
    return Figure("known answers", f"{right} of {n}", _if_low(right, n, hint)) if n else None


def _if_low(hits: int, n: int, hint: str) -> str:
    return hint if n >= 4 and hits < 0.7 * n else ""
