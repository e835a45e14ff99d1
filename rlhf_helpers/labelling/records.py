"""What the label store holds: answers, comparisons of them, acts, and what these amount to."""
import hashlib
import json
import sqlite3
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import combinations

from ..formats import as_messages

STRENGTHS = {"slightly": 1, "clearly": 3}         # of the four grades that the store has room for
BOTH = " + "                        # between the names of models that gave the very same answer
FROM_CHAT = {"source": "chat"}      # settings of an answer that was given in a chat
FLAGS = ("unsafe", "wrong", "off topic", "other")


def _hash(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Response:
    """One answer, with the model that gave it and its sampling settings."""

    text: str
    model: str = ""
    settings: dict = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        return _hash(self.text)


def responses_of(texts: Mapping[str, str], settings: dict) -> list[dict]:
    """The answers of several models (name: text) as the responses of a candidate row; models that said the same share one."""
    said: dict[str, list[str]] = {}
    for name, text in texts.items():
        said.setdefault(text, []).append(name)
    return [{"id": str(number), "text": text, "model": BOTH.join(names), "settings": settings}
            for number, (text, names) in enumerate(said.items())]


@dataclass(frozen=True)
class Comparison:
    """A prompt (text or messages) and two answers to it, or more of them to rank. The same answers have the same `id` in
    any order. `gold` is the id of the answer that has to win, if the pair is a test of attention."""

    prompt: str | list[dict]
    responses: tuple[Response, ...]
    gold: str | None = None

    @cached_property
    def messages(self) -> list[dict]:
        return as_messages(self.prompt, "user")

    @property
    def is_test(self) -> bool:
        """Whether the pair or set tests somebody: an annotator, by a known better answer, or models, in a chat. No test
        becomes training data."""
        return self.gold is not None or self.from_chat

    @property
    def from_chat(self) -> bool:
        """Whether the answers were given in a chat."""
        return any(answer.settings.get("source") == FROM_CHAT["source"] for answer in self.responses)

    @cached_property
    def longer(self) -> str | None:
        """The id of the longest answer, None if all have the same length."""
        longest = max(self.responses, key=lambda response: len(response.text))
        return longest.id if len({len(response.text) for response in self.responses}) > 1 else None

    @cached_property
    def id(self) -> str:
        said = [[message["role"], message["content"]] for message in self.messages]
        return _hash(json.dumps(said), *sorted(response.id for response in self.responses))


@dataclass(frozen=True)
class Event:
    """One act of one annotator on one pair or set. `id` is made here, or by whoever acted; recording an event again
    changes nothing. `strength` is from 1 to 4 (see STRENGTHS), `ranking` groups of response ids, best first, `flags`
    {response id: some of FLAGS}, `round` 1 for a hidden repeat."""

    kind: str
    comparison_id: str
    annotator: str
    session: str
    choice: str | None = None
    preferred: str | None = None
    shown_order: tuple[str, ...] = ()
    shown_ms: int | None = None
    undoes: str | None = None
    comment: str | None = None
    strength: int | None = None
    ranking: tuple[tuple[str, ...], ...] | None = None
    flags: dict[str, tuple[str, ...]] = field(default_factory=dict)
    round: int = 0
    probability: float | None = None
    ui: str = ""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    at: str = field(default_factory=now)

    def row(self) -> dict:
        """The event as the table has it: lists and objects as JSON."""
        as_json = {name: json.dumps(getattr(self, name)) for name in ("shown_order", "flags")}
        return vars(self) | as_json | {"ranking": json.dumps(self.ranking) if self.ranking else None}

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> "Event":
        """The event of a row of the table."""
        ranking = tuple(map(tuple, json.loads(row["ranking"]))) if row["ranking"] else None
        parsed = {"shown_order": tuple(json.loads(row["shown_order"])), "flags": json.loads(row["flags"]) or {},
                  "ranking": ranking}
        return cls(**{name: row[name] for name in EVENT_FIELDS} | parsed)


EVENT_FIELDS = [item.name for item in fields(Event)]


@dataclass(frozen=True)
class Label:
    """What an annotator says of a pair now. `choice` is prefer, tie_good, tie_bad, tie (from a ranking) or skip;
    `shown_order` the response ids from left to right, `lengths` the number of characters of each; `kind` is the
    annotator's. `group` is the id of the ranked set that the pair comes from; such a pair has no `shown_ms` of its own."""

    comparison_id: str
    annotator: str
    kind: str
    choice: str
    preferred: str | None
    shown_order: tuple[str, ...]
    lengths: dict[str, int]
    shown_ms: int | None
    at: str
    strength: int | None = None
    flags: dict[str, list[str]] = field(default_factory=dict)
    comment: str | None = None
    probability: float | None = None
    group: str | None = None

    @property
    def verdict(self) -> str:
        """The response id that was preferred, else tie_good, tie_bad, tie or skip."""
        return self.preferred or self.choice


def pairs_in(comparison: Comparison) -> list[Comparison]:
    """The pairs of answers that a set holds; a pair holds itself."""
    if len(comparison.responses) == 2:
        return [comparison]
    return [Comparison(comparison.prompt, pair) for pair in combinations(comparison.responses, 2)]


def pair_label(pair: Comparison, ranked: Label, groups: list[list[str]]) -> Label:
    place = {answer_id: number for number, group in enumerate(groups) for answer_id in group}
    first, second = sorted((answer.id for answer in pair.responses), key=place.get)
    preferred = first if place[first] < place[second] else None
    ids = (first, second)
    return replace(ranked, comparison_id=pair.id, choice="prefer" if preferred else "tie", preferred=preferred,
                   shown_order=tuple(answer_id for answer_id in ranked.shown_order if answer_id in ids), shown_ms=None,
                   lengths={answer.id: len(answer.text) for answer in pair.responses}, group=ranked.comparison_id,
                   flags={answer_id: flags for answer_id, flags in ranked.flags.items() if answer_id in ids})
