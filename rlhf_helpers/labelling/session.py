"""One annotator at work: which pair or set is next, who stands where, and what an act means.

No widgets here: views call these methods, and so do simulated annotators, so that there is one way in which a label can
come about. Every act names the pair it is about; an act on a pair that is no longer on the screen is refused, because
its author saw something else (a double click while the kernel was busy is the usual case).
"""
import hashlib
import random
import re
import textwrap
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

from ..formats import as_text, check_candidates, check_preferences
from .history import AGAIN, History, Queue, showing
from .selection import Active
from .store import FLAGS, STRENGTHS, Comparison, Event, LabelStore, Response, pairs_in
from .strip import Figure, figures

CHOICES = ("left", "right", "tie_good", "tie_bad")
REPEAT_GAP = 8                      # so many acts lie at least between a pair and its hidden repeat
GOLD_EVERY = 10                     # one act in so many is a gold pair, as long as there are some


class StaleAct(RuntimeError):
    """The act was about a pair that is not on the screen any more; nothing was saved."""


class BadAct(ValueError):
    """What was entered says nothing that could be saved; the message says what to enter."""


class Unconfirmed(BadAct):
    """The ranking is the order in which the answers were shown, which needs a second press; nothing was saved."""


@dataclass(frozen=True)
class Shown:
    """A pair, or a set to rank, as one annotator sees it; the models of its `answers` are not to be shown. `pair_id`
    names this showing: it is the comparison's id, with "+1" behind it for a hidden repeat."""

    pair_id: str
    prompt: str
    answers: tuple[Response, ...]

    @property
    def left(self) -> Response:
        """The first of the answers."""
        return self.answers[0]

    @property
    def right(self) -> Response:
        """The second of the answers."""
        return self.answers[1]


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
        return (f"{self.pairs} pairs: {self.human} human labels on {self.pairs_by_person} of them, which stand;\n"
                f"{sum(self.simulated.values())} simulated labels, which count for the other {self.pairs - self.pairs_by_person}:\n"
                + textwrap.fill(each, 110))


def sets_of(candidates: Iterable[dict]) -> tuple[list[Comparison], int]:
    """The different answers to each prompt as one set, and how many answers were left out because their text was there
    already. Sets of fewer than two make nothing."""
    sets, alike = {}, 0
    for row in candidates:
        answers = {answer.id: answer for answer in
                   reversed([Response(each["text"], each["model"], each["settings"]) for each in row["responses"]])}
        alike += len(row["responses"]) - len(answers)
        if len(answers) > 1:
            comparison = Comparison(row["prompt"], tuple(reversed(answers.values())))
            sets.setdefault(comparison.id, comparison)
    return list(sets.values()), alike


def pairs_of(candidates: Iterable[dict]) -> tuple[list[Comparison], int]:
    """Every pair of answers to the same prompt, and how many pairs were left out because their texts are the same."""
    pairs, alike = {}, 0
    for row in candidates:
        answers = [Response(answer["text"], answer["model"], answer["settings"]) for answer in row["responses"]]
        for pair in combinations(answers, 2):
            comparison = Comparison(row["prompt"], pair)
            alike += pair[0].id == pair[1].id
            if pair[0].id != pair[1].id:
                pairs.setdefault(comparison.id, comparison)
    return list(pairs.values()), alike


def parse_ranking(text: str, answers: int) -> list[list[int]]:
    """The groups of `3 1=2 4`: numbers on the screen, best first, = for a tie. Raises BadAct, with what to type, if
    a number is missing, double or unknown."""
    groups = [[int(number) for number in group.split("=")] for group in
              re.sub(r"\s*=\s*", "=", text.strip()).split() if re.fullmatch(r"\d+(=\d+)*", group)]
    said = [number for group in groups for number in group]
    if sorted(said) != list(range(1, answers + 1)) or re.search(r"[^\d=\s]", text):
        raise BadAct(f"write each number from 1 to {answers} once, the best first, with = between equals: "
                         f"{' '.join(map(str, range(answers, 2, -1)))} 1=2")
    return groups


def _number(*parts: object) -> int:
    """A number that depends on nothing but the parts: the same on every machine, in every session."""
    return int(hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest(), 16)


def reopened(store: LabelStore, pair_id: str, annotator: str) -> "LabellingSession":
    """A session on the one comparison that `pair_id` shows, for an act that waited while its own session went away.
    Raises StaleAct if the store has no such comparison."""
    comparison = next((each for each in store.comparisons() if each.id == pair_id.removesuffix(AGAIN)), None)
    if comparison is None:
        raise StaleAct("That act was about a pair which is not in this store, so it was not saved.")
    answers = [{"id": answer.id, "text": answer.text, "model": answer.model or "unknown", "settings": answer.settings}
               for answer in comparison.responses]
    return LabellingSession(store, [{"prompt": comparison.prompt, "responses": answers}], annotator,
                            task="rank" if len(answers) > 2 else "pairs")


def _gold_pairs(rows: Sequence[dict], ordinary: set[str]) -> list[Comparison]:
    check_preferences([{"annotator": "gold", "strength": 1} | row for row in rows], "gold")
    pairs = []
    for number, row in enumerate(rows, 1):
        better, worse = Response(as_text(row["chosen"]), "gold"), Response(as_text(row["rejected"]), "gold")
        pairs.append(Comparison(row["prompt"], (better, worse), gold=better.id))
        if pairs[-1].id in ordinary:
            raise ValueError(f"gold, row {number}: the same pair is among the candidates. Take it out of one of them")
    return pairs


def _flags(shown: Shown, flags: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    if unknown := {flag for of_one in flags for flag in of_one} - set(FLAGS):
        raise BadAct(f"flags {sorted(unknown)} are not known: use {', '.join(FLAGS)}")
    return {answer.id: list(of_one) for answer, of_one in zip(shown.answers, flags) if of_one}


def _id(act_id: str | None) -> dict:
    return {"id": act_id} if act_id else {}


class LabellingSession:
    """The work of `annotator` on the pairs of `candidates` (rows of a candidate file), from where the store left it.

    Pairs come in an order that depends on seed and annotator only, or as `choose_next` says. Of every two new pairs one
    has its first answer on the left and one on the right; sides are fixed in the store before a pair is shown, so they
    never change. With `task="rank"` all answers to a prompt are ranked at once. `repeats` is the share of pairs that
    come again later, unannounced and with the sides swapped; `gold` are rows with `prompt`, `chosen` and `rejected`
    that come in between, to see whether the annotator is awake. Their labels train nothing.

    Raises BadData for bad candidates or gold, ValueError if nothing is left to compare, StoreError from the store.
    """

    def __init__(self, store: LabelStore, candidates: Sequence[dict], annotator: str, seed: int = 0,
                 kind: str = "person", task: str = "pairs", repeats: float = 0.0, gold: Sequence[dict] = (),
                 choose_next: Active | None = None):
        candidates = list(candidates)
        check_candidates(candidates)
        self.store, self.annotator, self.seed, self.id, self.task = store, annotator, seed, uuid.uuid4().hex, task
        self._candidates, self._lock = candidates, threading.RLock()
        pairs, self.left_out = self._comparisons(candidates)
        gold = _gold_pairs(gold, {pair.id for pair in pairs})
        store.add_annotator(annotator, kind)
        store.add_comparisons([*pairs, *gold])
        self._pairs, self._gold = self._shuffled(pairs), self._shuffled(gold)
        self._all = self._pairs | self._gold
        self._left = self._fix_sides()
        self._repeats = int(repeats * len(pairs)) if task == "pairs" and len(pairs) > REPEAT_GAP else 0
        self._repeat_share, self._random_share = repeats, choose_next.random_share if choose_next else 1
        self._by_repeat = sorted(self._pairs, key=lambda pair_id: _number(seed, "again", pair_id)) if self._repeats else []
        interest = choose_next.interest(pairs) if choose_next else {}
        self._queue, self._gold_queue = Queue(self._pairs), Queue(self._gold)
        self._by_interest = Queue(sorted(self._pairs, key=interest.get, reverse=True)) if interest else self._queue
        self._history = History(store, annotator, self._all)
        self._probability: dict[str, float | None] = {}
        self._current = self._next()

    def _comparisons(self, candidates: list[dict]) -> tuple[list[Comparison], int]:
        if self.task not in ("pairs", "rank"):
            raise ValueError(f'task={self.task!r} is not known: use "pairs" or "rank"')
        pairs, left_out = pairs_of(candidates) if self.task == "pairs" else sets_of(candidates)
        if not pairs:
            raise ValueError(f"no pair to compare: {len(candidates)} candidate sets, {left_out} pairs with the "
                             "same text on both sides. Sample different answers to each prompt.")
        if most := next((pair for pair in pairs if len(pair.responses) > 9), None):
            raise ValueError(f"{len(most.responses)} answers to one prompt are too many to rank, {as_text(most.prompt)!r}: "
                             "give at most nine")
        return pairs, left_out

    def _shuffled(self, pairs: list[Comparison]) -> dict[str, Comparison]:
        return {pair.id: pair for pair in sorted(pairs, key=lambda pair: _number(self.seed, self.annotator, pair.id))}

    def _fix_sides(self) -> dict[str, str]:
        known = self.store.sides(self.annotator)
        new = [pair for pair in self._all.values() if pair.id not in known and len(pair.responses) == 2]
        single = new[0].id if len(new) == 1 else ""         # of a chat, whose next sides the last ones must not give away
        first_left = [bool(_number(self.seed, self.annotator, "sides", single or place // 2) % 2) ^ bool(place % 2)
                      for place in range(len(new))]
        self.store.add_sides(self.annotator, {pair.id: pair.responses[0 if first else 1].id
                                              for pair, first in zip(new, first_left, strict=True)})
        return self.store.sides(self.annotator)

    # ---- what is on the screen

    def _next(self) -> str | None:
        """The `pair_id` to show now. It depends on what the store holds and on nothing else, so it survives a restart."""
        self._history.update()
        gold, new = (queue.first(self._history) for queue in (self._gold_queue, self._queue))
        place = self._history.counts["saved"]
        its_turn = place % GOLD_EVERY == _number(self.seed, self.annotator, "gold", place // GOLD_EVERY) % GOLD_EVERY
        return self._due_repeat() or (gold if gold and (its_turn or not new) else self._pick(new, place) if new else None)

    def _due_repeat(self) -> str | None:
        standing, counts = self._history.standing, self._history.counts
        if counts["repeats"] >= min(self._repeats, int(self._repeat_share * counts["done"])):
            return None
        late = set(islice(reversed(standing), REPEAT_GAP))
        return next((pair_id + AGAIN for pair_id in self._by_repeat if pair_id in standing and standing[pair_id].kind == "label"
                     and pair_id not in late and pair_id + AGAIN not in standing), None)

    def _pick(self, first: str, place: int) -> str:
        """One of the pairs that are left, of which `first` is the first in random order; the probability of its being this
        one is kept."""
        favourite = self._by_interest.first(self._history)
        by_lot = random.Random(_number(self.seed, self.annotator, "lot", place)).random() < self._random_share
        picked = first if by_lot else favourite
        self._probability[picked] = (self._random_share / (len(self._pairs) - self._history.counts["done"])
                                     + (1 - self._random_share) * (picked == favourite))
        return picked

    def _shown(self, pair_id: str) -> Shown:
        comparison = self._all[pair_id.removesuffix(AGAIN)]
        if len(comparison.responses) > 2:
            return Shown(pair_id, as_text(comparison.prompt), tuple(sorted(
                comparison.responses, key=lambda answer: _number(self.annotator, comparison.id, answer.id))))
        swapped = pair_id.endswith(AGAIN)
        left_first = sorted(comparison.responses,
                            key=lambda answer: (answer.id == self._left[comparison.id]) == swapped)
        return Shown(pair_id, as_text(comparison.prompt), tuple(left_first))

    @property
    def first(self) -> Shown:
        """The first pair or set in the order of this annotator."""
        return self._shown(next(iter(self._pairs)))

    @property
    def current(self) -> Shown | None:
        """What to judge now, None when all is done."""
        with self._lock:
            return self._shown(self._current) if self._current else None

    def knows(self, pair_id: str | None) -> bool:
        """Whether this is one of the pairs or sets of the session, or a repeat of one."""
        return pair_id is None or pair_id.removesuffix(AGAIN) in self._all

    def progress(self) -> Progress:
        """Counted in the store, so only what is on the disk counts. Hidden repeats and gold pairs count too."""
        with self._lock:
            counts = self._history.update().counts
            total = len(self._all) + max(self._repeats, counts["repeats"])
            return Progress(counts["saved"], counts["skipped"], total if self._current else counts["saved"])

    def figures(self) -> list[Figure]:
        """What an annotator may want to know of the own work so far, see `strip`."""
        with self._lock:
            history = self._history.update()
            return figures(history.counts, reversed(history.standing.values()), self._all)

    def can_undo(self) -> bool:
        """Whether there is an act of this annotator on these pairs to take back."""
        with self._lock:
            return self._history.update().last is not None

    # ---- acts: each saves, moves on and returns what is to be judged next (None when all is done)

    def choose(self, pair_id: str, choice: str, shown_ms: int | None = None, strength: str | None = None, **more) -> Shown | None:
        """Judge the pair on the screen: "left" or "right" is better, "tie_good" (both), "tie_bad" (both).

        `shown_ms` is how long it was looked at, `strength` one of STRENGTHS. `more`, in every act: `flags`, for each
        answer on the screen a list of FLAGS; `note`, any words; `ui`, the name of the view; `act_id`, an id made by the
        view, with which sending the act again changes nothing; `resent`, true for an act that waited in a view while
        there was nobody to take it, which is then taken as long as its pair has no label. Raises StaleAct if another
        pair is on the screen, BadAct for an unknown choice, strength or flag, StoreError if it could not be saved;
        the pair then stays.
        """
        with self._lock:
            return self._act(pair_id, lambda: self._judgement(pair_id, choice, shown_ms, strength), **more)

    def rank(self, pair_id: str, groups: Sequence[Sequence[int]], shown_ms: int | None = None, confirmed: bool = False,
             **more) -> Shown | None:
        """Rank the set on the screen: the numbers of the answers there (from 1), in groups, the best first; the answers
        of a group are equally good. Raises Unconfirmed for the order of the screen, unless it is `confirmed`,
        BadAct if not every number comes once, else as `choose` does, whose `more` it takes too."""
        with self._lock:
            return self._act(pair_id, lambda: self._ranking(pair_id, groups, shown_ms, confirmed), **more)

    def skip(self, pair_id: str, reason: str = "", **more) -> Shown | None:
        """Pass over what is on the screen; it is recorded, with the reason. Takes and raises as `choose` does."""
        with self._lock:
            note = ": ".join(filter(None, (reason, more.pop("note", ""))))
            return self._act(pair_id, lambda: {"kind": "skip"}, note=note, **more)

    def undo(self, pair_id: str | None, act_id: str | None = None) -> Shown | None:
        """Take back the last act, also one of an earlier session, and show its pair again. `pair_id` is the pair on the
        screen (None when all is done), so that a double click takes back one act. Raises as `choose` does."""
        with self._lock:
            if act_id in self._history.update().known:
                return self.current
            self._refuse_stale(pair_id)
            last = self._history.last
            if last is not None:
                self.store.record(Event("undo", last.comparison_id, self.annotator, self.id, undoes=last.id, **_id(act_id)))
                self._current = showing(last)
                self._probability[self._current] = last.probability
            return self.current

    def _act(self, pair_id: str, what: Callable[[], dict], flags: Sequence[Sequence[str]] = (), note: str = "", ui: str = "",
             act_id: str | None = None, resent: bool = False) -> Shown | None:
        if act_id in self._history.update().known:
            return self.current
        waited = resent and self.knows(pair_id) and pair_id not in self._history.standing
        if not waited:
            self._refuse_stale(pair_id)
        shown = self._shown(pair_id)
        self.store.record(self._event(shown, **what(), flags=_flags(shown, flags), comment=note or None, ui=ui, **_id(act_id)))
        self._current = self._next()
        return self.current

    def _refuse_stale(self, pair_id: str | None) -> None:
        if pair_id != self._current:
            raise StaleAct("That press was for a pair that is no longer on the screen, so it was not saved.")

    def _event(self, shown: Shown, **what) -> Event:
        comparison_id = shown.pair_id.removesuffix(AGAIN)
        return Event(comparison_id=comparison_id, annotator=self.annotator, session=self.id,
                     shown_order=tuple(answer.id for answer in shown.answers), round=int(shown.pair_id.endswith(AGAIN)),
                     probability=self._probability.get(shown.pair_id), **what)

    def _judgement(self, pair_id: str, choice: str, shown_ms: int | None, strength: str | None) -> dict:
        if choice not in CHOICES:
            raise BadAct(f"choice {choice!r} is not known: use one of {', '.join(CHOICES)}")
        if strength is not None and strength not in STRENGTHS:
            raise BadAct(f"strength {strength!r} is not known: use one of {', '.join(STRENGTHS)}, or None")
        shown = self._shown(pair_id)
        if len(shown.answers) > 2:
            raise BadAct(f"{len(shown.answers)} answers are on the screen: rank them")
        preferred = {"left": shown.left.id, "right": shown.right.id}.get(choice)
        return {"kind": "label", "choice": "prefer" if preferred else choice, "preferred": preferred,
                "shown_ms": shown_ms, "strength": STRENGTHS.get(strength) if preferred else None}

    def _ranking(self, pair_id: str, groups: Sequence[Sequence[int]], shown_ms: int | None, confirmed: bool) -> dict:
        answers = self._shown(pair_id).answers
        if sorted(number for group in groups for number in group) != list(range(1, len(answers) + 1)):
            raise BadAct(f"a ranking names each answer from 1 to {len(answers)} once, and this one says {groups}")
        if not confirmed and [list(group) for group in groups] == [[number + 1] for number in range(len(answers))]:
            raise Unconfirmed("This is the order in which the answers were shown. Press once more if you mean it.")
        ranking = tuple(tuple(answers[number - 1].id for number in group) for group in groups if group)
        return {"kind": "label", "ranking": ranking, "shown_ms": shown_ms}

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
            pair_ids = [pair.id for comparison in self._pairs.values() for pair in pairs_in(comparison)]
            for place, annotator in enumerate(fill_with):
                seat = LabellingSession(self.store, self._candidates, annotator.name, self.seed, kind="simulated")
                seat._answer(annotator, [pair_id for pair_id in pair_ids
                                         if (place - _number(pair_id)) % len(fill_with) < per_pair])
            return self._filled(set(pair_ids))

    def _answer(self, annotator: object, pair_ids: list[str]) -> None:
        done = self._history.update().standing
        events = []
        for pair_id in pair_ids:
            if pair_id not in done:
                shown = self._shown(pair_id)
                rng = random.Random(_number(self.seed, self.annotator, pair_id, "answer"))
                answer = annotator.compare(shown.prompt, shown.left.text, shown.right.text, rng)
                events.append(self._event(shown, **self._judgement(pair_id, answer.choice, answer.shown_ms, None)))
        self.store.record(*events)

    def _filled(self, pair_ids: set[str]) -> Filled:
        labels = [label for label in self.store.labels() if label.comparison_id in pair_ids and label.choice != "skip"]
        human = [label for label in labels if label.kind == "person"]
        simulated = Counter(label.annotator for label in labels if label.kind == "simulated")
        return Filled(len(pair_ids), len({label.comparison_id for label in human}), len(human), dict(simulated))
