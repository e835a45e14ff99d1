"""What one annotator did, folded from the log as it grows, so that the thousandth act costs as little as the first."""
from collections.abc import Container

from .store import Event, LabelStore

AGAIN = "+1"                        # ends the name of a showing that is a hidden repeat


class History:
    """The acts of one annotator that stand. `standing` is {showing: the last act on it that was not undone}, in the order
    of the log, where a showing is a comparison's id, with "+1" behind it for a hidden repeat."""

    def __init__(self, store: LabelStore, annotator: str):
        self._store, self._annotator, self._seen = store, annotator, 0
        self.known: dict[str, Event] = {}
        self._undone: set[str] = set()
        self.standing: dict[str, Event] = {}

    def update(self) -> "History":
        """Read what is new in the log, also what other notebooks wrote there."""
        new = self._store.history(self._annotator, self._seen)
        for number, event in new:
            self._seen = number
            self.known[event.id] = event
            if event.kind == "undo":
                target = self.known[event.undoes]
                self._undone ^= {target.undoes or target.id}         # an undo that is undone brings the act back
            else:
                self._stand(event)
        if any(event.kind == "undo" for _, event in new):
            self.standing = {}
            for event in filter(self._counts, self.known.values()):
                self._stand(event)
        return self

    def _stand(self, event: Event) -> None:
        self.standing.pop(showing(event), None)
        self.standing[showing(event)] = event

    def _counts(self, event: Event) -> bool:
        return event.kind != "undo" and event.id not in self._undone

    def last(self, among: Container[str]) -> Event | None:
        """The last act that stands on one of these comparisons."""
        return next((event for event in filter(self._counts, reversed(self.known.values())) if event.comparison_id in among), None)


def showing(event: Event) -> str:
    """The name of the showing that an event is about."""
    return event.comparison_id + (AGAIN if event.round else "")
