"""What one annotator did, folded from the log as it grows, so that the ten-thousandth act costs as little as the first."""
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from .store import Comparison, Event, LabelStore
from .strip import count

AGAIN = "+1"                        # ends the name of a showing that is a hidden repeat


class History:
    """The acts of one annotator on these comparisons ({id: comparison}) that stand. `standing` is {showing: the last act
    on it that was not undone}, in the order of the log, where a showing is a comparison's id, with "+1" behind it for a
    hidden repeat; `counts` is what `strip.count` says of them all, `undos` the number of undos so far, and `known` holds
    every act of the annotator by its id."""

    def __init__(self, store: LabelStore, annotator: str, comparisons: Mapping[str, Comparison]):
        self._store, self._annotator, self._comparisons, self._seen = store, annotator, comparisons, 0
        self.known: dict[str, Event] = {}
        self.standing: dict[str, Event] = {}
        self.counts: Counter[str] = Counter()
        self.undos = 0
        self._number: dict[str, int] = {}                       # of each act in the log
        self._acts: dict[str, list[Event]] = defaultdict(list)  # on each showing, the undone ones too
        self._undoing: dict[str, list[str]] = defaultdict(list)

    def update(self) -> "History":
        """Read what is new in the log, also what other notebooks wrote there."""
        moved = False
        for number, event in self._store.history(self._annotator, self._seen):
            self._seen = number
            self.known[event.id], self._number[event.id] = event, number
            act = self._about(event)
            if event is not act:
                self._undoing[event.undoes].append(event.id)
                self.undos += 1
            if act.comparison_id in self._comparisons:
                if event is act:
                    self._acts[showing(act)].append(act)
                moved |= self._stand(act) and event is not act
        if moved:                                               # an earlier act stands again, in its old place
            self.standing = dict(sorted(self.standing.items(), key=lambda item: self._number[item[1].id]))
        return self

    def _about(self, event: Event) -> Event:
        """The label or skip that the event is, undoes or brings back."""
        return self._about(self.known[event.undoes]) if event.kind == "undo" else event

    def _stand(self, act: Event) -> bool:
        """Let the last act that counts stand for the showing of this one, and say whether there is one."""
        latest = next(filter(self._counts, reversed(self._acts[showing(act)])), None)
        self.counts.subtract(self._count(act.comparison_id))
        self.standing.pop(showing(act), None)
        if latest:
            self.standing[showing(act)] = latest
        self.counts.update(self._count(act.comparison_id))
        return latest is not None

    def _counts(self, act: Event) -> bool:
        """Whether the act is not undone; an undo that is undone brings it back."""
        return all(self._undoing.get(undo) for undo in self._undoing.get(act.id, ()))

    def _count(self, comparison_id: str) -> Counter[str]:
        acts = filter(None, map(self.standing.get, (comparison_id, comparison_id + AGAIN)))
        return count(list(acts), self._comparisons[comparison_id])

    @property
    def last(self) -> Event | None:
        """The last act that stands."""
        return next(reversed(self.standing.values()), None)


class Queue:
    """Showings in a fixed order, of which the first that is not done is found without going through all of them again."""

    def __init__(self, order: Iterable[str]):
        self._order, self._at, self._undos = list(order), 0, 0

    def first(self, history: History) -> str | None:
        """The first on which no act stands, None if there is none."""
        if self._undos != history.undos:                        # what was done may be open again
            self._at, self._undos = 0, history.undos
        while self._at < len(self._order) and self._order[self._at] in history.standing:
            self._at += 1
        return self._order[self._at] if self._at < len(self._order) else None


def showing(event: Event) -> str:
    """The name of the showing that an event is about."""
    return event.comparison_id + (AGAIN if event.round else "")
