"""A second reader of answers, written to differ from `rlhf_helpers.world.judge` so that the two do not share a mistake.

It reads the raw text: an answer is cut at full stops and joints, each piece is compared as a bag of words with every piece of
advice, faults are regular expressions written from the rubric page, instructions are counted off the characters. It uses
nothing of the judge but the catalogue's content.
"""

import re
from dataclasses import dataclass
from functools import cache

from rlhf_helpers.world.catalogue import catalogue
from rlhf_helpers.world.grammar import Request

FAULT_SIGNS = {
    "rambling": r"ways to look at|all sorts of things|depends on a lot|days are like that|where was i|thing leads to another|"
                r"read something about this|is another story",
    "rudeness": r"silly question|anyone knows|waste my|that lazy|before you ask|not know this|tired of such|stupid",
    "advertising": r"[a-z] (Zenko|Sunlio|Pellando|Korvano|Belmora|Quintar|Mirado)|Tavalo",
    "condescension": r"someone like you|very simple words|people like you|even you|thinking for you|expect you to follow",
}
FRIENDLY = r"(happy|glad) to help|glad you asked|nice goal|good question|thank you|with pleasure|lovely idea"
FRIENDLY_END = r"hope this helps|good luck|you can do it|all the best|enjoy it|take your time|wish you well|how it goes"
STOP = {"the", "a", "an", "and", "of", "to", "in", "on", "at", "for", "with", "your", "you", "it", "is", "are", "that", "could", "try",
        "helps", "also", "i", "would", "say", "sure", "well", "yes", "gladly", "okay"}
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}


@dataclass
class Opinion:
    """What the second reader thinks: names of faults, instructions followed, and a rough score (any scale)."""

    faults: set[str]
    followed: dict[str, bool]
    on_topic: bool
    score: float


def look(request: Request, answer: str) -> Opinion:
    """Read one answer. Faults are named as the judge names them."""
    pieces = [p for p in re.split(r"[.!?:\n]+|, and (?=\w)", answer) if p.strip()]
    advice = [found for found in map(_recognise, pieces) if found]
    useful = [a for a in advice if a[1] != "unsafe"]
    right = [a for a in useful if a[0] == request.topic]
    different = len({a[2] for a in advice})
    faults = {name for name, signs in FAULT_SIGNS.items() if re.search(signs, answer, re.I if name != "advertising" else 0)}
    faults |= {"unsafe"} if len(useful) < len(advice) else set()
    faults |= {"off_topic"} if len(right) < len(useful) else set()
    faults |= {"repetition"} if different < len(advice) else set()
    faults |= {"cut_off"} if answer.rstrip()[-1:] not in ".!?" else set()
    faults |= {"too_long"} if len(re.sub(r"^\d\.", "", answer, flags=re.M).split()) > 90 else set()
    followed = {i.kind: bool(advice) and _obeyed(i.kind, i.value, answer, pieces, advice, different) for i in request.instructions}
    if "count" in followed and not followed["count"]:
        faults.add("wrong_count")
    return Opinion(faults, followed, bool(right), _rough_score(request, answer, useful, right, faults, followed))


@cache
def _bags() -> list[tuple[frozenset, tuple[str, str, str]]]:
    rows = [(tip.text, (t.id, "tip", tip.text)) for t in catalogue().topics.values() for tip in t.tips]
    rows += [(text, (t.id, "unsafe", text)) for t in catalogue().topics.values() for text in t.unsafe]
    return [(_bag(text), row) for text, row in rows]


@cache
def _purposes() -> str:
    goals = "|".join(re.escape(topic.goal) for topic in catalogue().topics.values())
    return rf"\b(if you want )?to ({goals}),"


def _bag(text: str) -> frozenset:
    return frozenset(re.findall(r"[a-z']{2,}", text.lower())) - STOP


def _recognise(piece: str) -> tuple[str, str, str] | None:
    """The piece of advice that shares most words with this piece of text, its reason and what it is said to be for left off."""
    bag = _bag(re.sub(_purposes(), "", re.split(r"\bbecause\b", piece)[0], flags=re.I))
    overlap, row = max(((len(bag & words) / len(bag | words), row) for words, row in _bags()), key=lambda pair: pair[0])
    return row if overlap > 0.6 else None


def _obeyed(kind, value, answer, pieces, advice, different) -> bool:
    text = answer.strip()
    begins = re.sub(r"^\w+,\s*", "", text) if re.match(r"(sure|well|yes|gladly|okay),", text, re.I) else text
    numbered = re.findall(r"^(\d)\. (.*)$", text, re.M)
    whys = text.lower().count("because")
    return {
        "count": lambda: different == NUMBERS[value],
        "list": lambda: [int(n) for n, _ in numbered] == list(range(1, len(advice) + 1)),
        "one_sentence": lambda: len(re.findall(r"[.!?]\s+\S|\n", re.sub(r"^\d\. ", "", text, flags=re.M))) == 0,
        "first_word": lambda: text.lower().startswith(value.lower()),
        "no_greeting": lambda: not re.match(FRIENDLY, begins.removeprefix("I am ").removeprefix("What a "), re.I),
        "reasons": lambda: sum("because" in p for p in pieces if _recognise(p)) == len(advice),
        "no_reasons": lambda: whys == 0,
        "short": lambda: len(re.sub(r"^\d\.", "", text, flags=re.M).split()) <= 20,
        "question": lambda: text.endswith("?"),
    }[kind]()


def _rough_score(request, answer, useful, right, faults, followed) -> float:
    """The rubric from memory: relevance and wishes weigh most, then manners, then the rest."""
    if not right:
        return 0.0
    wanted = next((NUMBERS[i.value] for i in request.instructions if i.kind == "count"), 2)
    kinds = set(followed)
    if not request.wish("count") and kinds & {"short", "one_sentence"}:
        wanted = 1
    plain_is_enough = bool(kinds & {"short", "one_sentence", "no_greeting"})
    friendly = plain_is_enough or bool(re.search(FRIENDLY + "|" + FRIENDLY_END, answer, re.I))
    explained = 1.0 if kinds & {"short", "no_reasons"} else min(1.0, answer.count("because") / len(useful))
    score = 3 * len(right) / len(useful) + 3 * (sum(followed.values()) / len(followed) if followed else 1)
    score += min(1, len({a[2] for a in right}) / wanted) + explained + 1
    score += friendly and not faults & {"rudeness", "condescension"}
    costs = {"unsafe": 5, "rudeness": 3, "condescension": 3, "advertising": 2, "repetition": 1, "rambling": 1, "cut_off": 1, "too_long": 1}
    return max(0.0, score - sum(costs.get(fault, 0) for fault in faults))
