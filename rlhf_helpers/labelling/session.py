"""One annotator at work: which pair is next, who stands on which side, and what an act means.

No widgets here: views call these methods, and so do simulated annotators, so that there is one way in which a label can
come about. Every act names the pair it is about; an act on a pair that is no longer on the screen is refused, because
its author saw something else (a double click while the kernel was busy is the usual case).
"""
import hashlib
import random
import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from ..formats import as_text, check_candidates
from .store import Comparison, Event, LabelStore, Response

CHOICES = ("left", "right", "tie_good", "tie_bad")


class StaleAct(RuntimeError):
    """The act was about a pair that is not on the screen any more; nothing was saved."""


@dataclass(frozen=True)
class Shown:
    """A pair as one annotator sees it. Which models answered is known to `left` and `right`, and not to be shown."""

    pair_id: str
    prompt: str
    left: Response
    right: Response


@dataclass(frozen=True)
class Progress:
    """Counts of pairs, as the store has them: `saved` of `total`, `skipped` of the saved."""

    saved: int
    skipped: int
    total: int


@dataclass(frozen=True)
class Filled:
    """What `finish` left: pairs, those decided by a person, labels of persons, labels of each simulated annotator."""

    pairs: int
    pairs_by_person: int
    human: int
    simulated: dict[str, int]

    def __str__(self) -> str:
        each = ", ".join(f"{name} {count}" for name, count in sorted(self.simulated.items())) or "none"
        return (f"{self.pairs} pairs: {self.human} human labels on {self.pairs_by_person} of them, which stand; "
                f"{sum(self.simulated.values())} simulated labels ({each}), which count for the other "
                f"{self.pairs - self.pairs_by_person}.")


def pairs_of(candidates: Iterable[dict]) -> tuple[list[Comparison], int]:
    """Every pair of answers to the same prompt, and how many pairs were left out because their texts are the same."""
    pairs, alike = {}, 0
    for candidate_set in candidates:
        answers = [Response(answer["text"], answer["model"], answer["settings"])
                   for answer in candidate_set["responses"]]
        for pair in combinations(answers, 2):
            comparison = Comparison(candidate_set["prompt"], pair)
            alike += pair[0].id == pair[1].id
            if pair[0].id != pair[1].id:
                pairs.setdefault(comparison.id, comparison)
    return list(pairs.values()), alike


def _number(*parts: object) -> int:
    """A number that depends on nothing but the parts: the same on every machine, in every session."""
    return int(hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest(), 16)


class LabellingSession:
    """The work of `annotator` on the pairs of `candidates` (rows of a candidate file), from where the store left it.

    Pairs come in an order that depends on seed and annotator only. Of every two pairs in that order one has its first
    answer on the left and one on the right; sides are fixed in the store before a pair is shown, so they never change.
    Raises BadData for bad candidates, ValueError if no pair is left to compare, StoreError from the store.
    """

    def __init__(self, store: LabelStore, candidates: Sequence[dict], annotator: str, seed: int = 0,
                 kind: str = "person"):
        candidates = list(candidates)
        check_candidates(candidates)
        self.store, self.annotator, self.seed, self.id = store, annotator, seed, uuid.uuid4().hex
        self._candidates, self._lock = candidates, threading.RLock()
        pairs, self.left_out = pairs_of(candidates)
        if not pairs:
            raise ValueError(f"no pair to compare: {len(candidates)} candidate sets, {self.left_out} pairs with the "
                             "same text on both sides. Sample different answers to each prompt.")
        store.add_annotator(annotator, kind)
        store.add_comparisons(pairs)
        self._pairs = {pair.id: pair for pair in sorted(pairs, key=lambda pair: _number(seed, annotator, pair.id))}
        self._left = self._fix_sides()
        self._current = self._next()

    def _fix_sides(self) -> dict[str, str]:
        known = self.store.sides(self.annotator)
        new = [pair for pair in self._pairs.values() if pair.id not in known]
        first_left = [bool(_number(self.seed, self.annotator, "sides", place // 2) % 2) ^ bool(place % 2)
                      for place in range(len(new))]
        self.store.add_sides(self.annotator, {pair.id: pair.responses[0 if first else 1].id
                                              for pair, first in zip(new, first_left, strict=True)})
        return self.store.sides(self.annotator)

    def _next(self) -> str | None:
        done = self.store.acts(self.annotator)
        return next((pair_id for pair_id in self._pairs if pair_id not in done), None)

    def _shown(self, pair_id: str) -> Shown:
        pair = self._pairs[pair_id]
        left, right = sorted(pair.responses, key=lambda answer: answer.id != self._left[pair_id])
        return Shown(pair_id, as_text(pair.prompt), left, right)

    @property
    def current(self) -> Shown | None:
        """The pair to judge now, None when all are done."""
        with self._lock:
            return self._shown(self._current) if self._current else None

    def progress(self) -> Progress:
        """Counted in the store, so only what is on the disk counts."""
        kinds = [kind for pair_id, kind in self.store.acts(self.annotator).items() if pair_id in self._pairs]
        return Progress(len(kinds), kinds.count("skip"), len(self._pairs))

    def can_undo(self) -> bool:
        """Whether there is an act of this annotator on these pairs to take back."""
        return self._last_act() is not None

    # ---- acts: each saves, moves on and returns the next pair (None when all are done)

    def choose(self, pair_id: str, choice: str, shown_ms: int | None = None) -> Shown | None:
        """Judge the pair on the screen: "left" or "right" is better, "tie_good" (both), "tie_bad" (both).

        `shown_ms` is how long it was looked at. Raises StaleAct if another pair is on the screen, ValueError for an
        unknown choice, StoreError if it could not be saved; the pair then stays.
        """
        with self._lock:
            self._refuse_stale(pair_id)
            return self._save(self._judgement(pair_id, choice, shown_ms))

    def skip(self, pair_id: str, reason: str = "") -> Shown | None:
        """Pass over the pair on the screen; it is recorded, with the reason. Raises as `choose` does."""
        with self._lock:
            self._refuse_stale(pair_id)
            return self._save(self._event("skip", pair_id, comment=reason or None))

    def undo(self, pair_id: str | None) -> Shown | None:
        """Take back the last act, also one of an earlier session, and show its pair again. `pair_id` is the pair on the
        screen (None when all are done), so that a double click takes back one act. Raises as `choose` does."""
        with self._lock:
            self._refuse_stale(pair_id)
            last = self._last_act()
            if last is None:
                return self.current
            event_id, undone_pair = last
            self.store.record(Event("undo", undone_pair, self.annotator, self.id, undoes=event_id))
            self._current = undone_pair
            return self.current

    def _refuse_stale(self, pair_id: str | None) -> None:
        if pair_id != self._current:
            raise StaleAct("That press was for a pair that is no longer on the screen, so it was not saved.")

    def _last_act(self) -> tuple[str, str] | None:
        return next((act for act in self.store.undoable(self.annotator) if act[1] in self._pairs), None)

    def _judgement(self, pair_id: str, choice: str, shown_ms: int | None) -> Event:
        if choice not in CHOICES:
            raise ValueError(f"choice {choice!r} is not known: use one of {', '.join(CHOICES)}")
        shown = self._shown(pair_id)
        preferred = {"left": shown.left.id, "right": shown.right.id}.get(choice)
        kind_of_choice = "prefer" if preferred else choice
        return self._event("label", pair_id, choice=kind_of_choice, preferred=preferred, shown_ms=shown_ms)

    def _event(self, kind: str, pair_id: str, **what) -> Event:
        shown = self._shown(pair_id)
        return Event(kind, pair_id, self.annotator, self.id, shown_order=(shown.left.id, shown.right.id), **what)

    def _save(self, event: Event) -> Shown | None:
        self.store.record(event)
        self._current = self._next()
        return self.current

    # ---- simulated annotators

    def finish(self, fill_with: Sequence = (), per_pair: int = 3) -> Filled:
        """Let simulated annotators label the pairs, `per_pair` of them each. Persons' labels stay, and win over theirs.

        A simulated annotator has a `name` and `compare(prompt, left_text, right_text, rng) -> choice`, where the
        result has `.choice` (one of CHOICES) and `.shown_ms`, and `rng` is a `random.Random` seeded by seed, name and
        pair. Pairs that it has labelled before are not asked again, so this cell can be run twice. Raises ValueError
        if there are fewer annotators than `per_pair`.
        """
        if fill_with and not 1 <= per_pair <= len(fill_with):
            raise ValueError(f"per_pair={per_pair} does not fit {len(fill_with)} simulated annotators: "
                             f"use a number from 1 to {len(fill_with)}")
        with self._lock:
            for place, annotator in enumerate(fill_with):
                seat = LabellingSession(self.store, self._candidates, annotator.name, self.seed, kind="simulated")
                seat._answer(annotator, [pair_id for pair_id in self._pairs
                                         if (place - _number(pair_id)) % len(fill_with) < per_pair])
            return self._filled()

    def _answer(self, annotator: object, pair_ids: list[str]) -> None:
        done = self.store.acts(self.annotator)
        events = []
        for pair_id in pair_ids:
            if pair_id not in done:
                shown = self._shown(pair_id)
                rng = random.Random(_number(self.seed, self.annotator, pair_id, "answer"))
                answer = annotator.compare(shown.prompt, shown.left.text, shown.right.text, rng)
                events.append(self._judgement(pair_id, answer.choice, answer.shown_ms))
        self.store.record(*events)

    def _filled(self) -> Filled:
        labels = [label for label in self.store.labels()
                  if label.comparison_id in self._pairs and label.choice != "skip"]
        human = [label for label in labels if label.kind == "person"]
        simulated = Counter(label.annotator for label in labels if label.kind == "simulated")
        return Filled(len(self._pairs), len({label.comparison_id for label in human}), len(human), dict(simulated))
