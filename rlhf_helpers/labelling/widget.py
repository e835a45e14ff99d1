"""The labelling session in the browser: `widget.js` draws what `state` says, and this end takes its acts.

Every act comes with its own id and is answered with what became of it: saved (it is on the disk), refused (it never will
be, and why), confirm (it needs a second press) or failed (it could not be saved now; the browser keeps it and offers to try
again). Callbacks may come on any thread and ipywidgets swallows what they raise, so there is a lock, and every error is
shown before it goes on its way.
"""
import hashlib
import threading
from pathlib import Path

import anywidget
import traitlets

from .chat import Chat
from .plain_view import REASONS, saved_text, visible
from .session import BadAct, LabellingSession, Shown, StaleAct, Unconfirmed, reopened
from .store import FLAGS, STRENGTHS, LabelStore, StoreError

NOTHING = {"id": None, "kind": "saved", "text": ""}


class LabelWidget(anywidget.AnyWidget):
    """A LabellingSession with keyboard and buttons. The last expression of a cell shows it; running the cell again goes on
    where the store stands. `goal` is how many to do by hand (default: all); one may go on beyond it."""

    _esm = Path(__file__).with_name("widget.js")
    _css = Path(__file__).with_name("widget.css")
    state = traitlets.Dict().tag(sync=True)

    def __init__(self, session: LabellingSession, goal: int | None = None):
        self.session, self.goal = session, goal
        self._start(session.store, session.annotator)

    def _start(self, store: LabelStore, annotator: str) -> None:
        self.store, self.annotator, self._lock = store, annotator, threading.RLock()
        super().__init__(state=self._state(NOTHING))
        self.on_msg(lambda _, message, buffers: self.take(message))

    def take(self, message: dict) -> None:
        """Carry out an act of the browser and show what came of it."""
        with self._lock:
            answer, unforeseen = {"id": message.get("id"), "kind": "saved", "text": ""}, None
            try:
                self._carry_out(dict(message))
            except StoreError as error:
                answer |= {"kind": "failed", "text": str(error)}
            except Unconfirmed as error:
                answer |= {"kind": "confirm", "text": str(error)}
            except (StaleAct, BadAct) as error:
                answer |= {"kind": "refused", "text": str(error)}
            except Exception as error:
                answer |= {"kind": "failed", "text": f"This went wrong: {type(error).__name__}: {error}"}
                unforeseen = error
            self.state = self._state(answer)
            if unforeseen:
                raise unforeseen

    def _carry_out(self, message: dict) -> None:
        about = {"act_id": message["id"], "resent": message["resent"], "ui": "widget", "flags": message.get("flags", ()),
                 "note": message.get("note", "")}
        pair_id, session = message["pair"], self.session
        if session is None or not session.knows(pair_id):
            session = reopened(self.store, pair_id or "", self.annotator)
        match message["act"]:
            case "choose":
                session.choose(pair_id, message["choice"], message["ms"], message["strength"], **about)
            case "rank":
                session.rank(pair_id, message["groups"], message["ms"], message["confirmed"], **about)
            case "skip":
                session.skip(pair_id, message["reason"], **about)
            case "undo":
                session.undo(pair_id, message["id"])
            case unknown:
                raise BadAct(f"the act {unknown!r} is not known: reload the page")

    def _state(self, answer: dict) -> dict:
        """Everything that the browser needs, and nothing about the models."""
        shown, progress = self.session.current, self.session.progress()
        goal = min(self.goal or progress.total, progress.total)
        figures = [vars(figure) for figure in self.session.figures()]
        text = saved_text(progress, self.goal) + ("" if shown else " All done.")
        return self._frame(answer) | {
            "kind": self.session.task, "shown": _drawn(shown), "text": text, "saved": progress.saved,
            "goal": goal, "figures": figures, "can_undo": self.session.can_undo(), "done": False}

    def _frame(self, answer: dict) -> dict:
        return {"answer": answer, "box": self._box(), "flags": FLAGS, "strengths": list(STRENGTHS), "reasons": REASONS,
                "chat": False, "working": False}

    def _box(self) -> str:
        """Names the place in the browser where acts wait: acts for one store must never reach another."""
        return hashlib.sha256(f"{self.store.path.resolve()} {self.annotator}".encode()).hexdigest()[:16]


def _drawn(shown: Shown | None, titles: list[str] | None = None) -> dict | None:
    if shown is None:
        return None
    names = ["Left", "Right"] if len(shown.answers) == 2 else [f"Answer {number}" for number in range(1, 10)]
    return {"id": shown.pair_id, "prompt": visible(shown.prompt), "titles": titles or names[:len(shown.answers)],
            "answers": [visible(answer.text) or "(empty answer)" for answer in shown.answers]}


class ChatWidget(LabelWidget):
    """A Chat with several models: ask all of them, compare what they say. The last expression of a cell shows it."""

    def __init__(self, chat: Chat):
        self.talk, self.session = chat, None
        self._start(chat.store, chat.annotator)

    def _carry_out(self, message: dict) -> None:
        if message["act"] != "ask":
            return super()._carry_out(message)
        self._working("Asking ...", message["id"])
        self.session = self.talk.ask(message["prompt"], lambda text: self._working(text, message["id"]))

    def _working(self, text: str, act_id: str) -> None:
        self.state = self.state | {"working": True, "text": text, "answer": {"id": act_id, "kind": "saved", "text": ""}}

    def _state(self, answer: dict) -> dict:
        done = self.session is None or self.session.current is None
        shown = self.talk.last if done else self.session.current
        rank = shown is not None and len(shown.answers) > 2
        return self._frame(answer) | {
            "chat": True, "kind": "rank" if rank else "pairs", "shown": _drawn(shown, self.talk.titles(shown, reveal=done)),
            "text": self.talk.status(), "saved": 0, "goal": 1, "figures": [], "done": done,
            "can_undo": self.session is not None and self.session.can_undo()}
