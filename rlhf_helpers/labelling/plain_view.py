"""Forms of plain ipywidgets (7.7.1, as on Colab, and 8): comparing and ranking answers, a chat, writing instructions.

Three things here are easy to get wrong. Button presses may arrive on any thread, so every handler takes a lock.
ipywidgets swallows what a handler raises, so every handler shows its errors. And a press can be late: buttons are made
anew for each pair and hold that pair's id, so that a late press is refused by the session instead of labelling a pair
that nobody saw. Model text is shown as text: escaped, with its own line breaks, never interpreted.
"""
import html
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import ipywidgets as widgets
from IPython.display import display

from ..formats import BadData, as_text, read_instructions, to_conversational, to_plain, write_instructions
from .chat import Chat
from .session import BadAct, LabellingSession, Progress, Shown, StaleAct, Unconfirmed, parse_ranking
from .store import FLAGS, STRENGTHS, StoreError

STYLE = """<style>
.rl-view { max-width: 60rem; padding: .25rem; }
.rl-view .rl-text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; line-height: 1.5;
  font-size: var(--jp-content-font-size1, 14px); color: var(--jp-content-font-color1, inherit); padding: .6rem .8rem;
  border: 1px solid var(--jp-border-color1, rgba(128,128,128,.6)); border-radius: 6px; margin-bottom: .3rem; }
.rl-view .rl-prompt { border-left: 4px solid #4a90c2; background: var(--jp-layout-color2, transparent); }
.rl-view .rl-name { line-height: 1.6; font-weight: 600; color: var(--jp-content-font-color1, inherit); }
.rl-view .rl-say { line-height: 1.6; min-height: 1.6em; color: var(--jp-content-font-color1, inherit); }
.rl-view .rl-alert { border-left: 4px solid #d1651f; padding-left: .6rem; font-weight: 600; }
.rl-view .rl-answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: .8rem;
  overflow: visible; }
.rl-view .rl-answers > * { display: flex; justify-content: space-between; overflow: visible; margin: 0; }
.rl-view .rl-row { flex-wrap: wrap; overflow: visible; }
.rl-view button { width: auto; min-width: 7rem; height: 34px; line-height: 30px; border-radius: 6px; box-shadow: none;
  color: var(--jp-ui-font-color1, inherit); background: var(--jp-layout-color2, transparent);
  border: 1px solid var(--jp-border-color1, rgba(128,128,128,.6)); }
.rl-view button.rl-main { color: #fff; background: #0b5cad; border-color: #0b5cad; }
.rl-view button:focus-visible { outline: 3px solid #e69f00; outline-offset: 1px; }
.rl-view button:disabled { opacity: .5; }
.rl-view textarea { line-height: 1.5; }
</style>"""
ACTS = (("Left is better", "left", "rl-main"), ("Right is better", "right", "rl-main"),
        ("Both good", "tie_good", ""), ("Both bad", "tie_bad", ""))
RATINGS = [("not rated", None), ("1: throw it away", 1), ("2: poor", 2), ("3: acceptable", 3), ("4: good", 4), ("5: I would sign it", 5)]
REASONS = ["I cannot tell", "I know too little about this", "The text is broken", "I would rather not"]
TOO_QUICK_MS = 400                  # the second half of a double click; nobody has read a pair in that time
CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}


class FileChanged(RuntimeError):
    """Something else wrote to the file while a form had it open."""


SHOWN_ERRORS = (StaleAct, StoreError, BadData, FileChanged, OSError, BadAct)


def as_html(text: str, css_class: str = "") -> str:
    """HTML that shows `text` as it is: markup escaped, control characters as their pictures, own writing direction."""
    return f'<div class="rl-text {css_class}" dir="auto">{html.escape(visible(text))}</div>'


def visible(text: str) -> str:
    """The text with pictures of the control characters in it, which would else not be seen."""
    return text.translate(CONTROL_PICTURES)


def saved_text(progress: Progress, goal: int | None) -> str:
    """How far one is, such as `Saved 17 of 50 (2 skipped).`; nothing counts that is not on the disk."""
    goal = min(goal or progress.total, progress.total)
    skipped = f" ({progress.skipped} skipped)" if progress.skipped else ""
    text = f"Saved {progress.saved} of {goal}{skipped}."
    if goal <= progress.saved < progress.total:
        text += " That is enough; you can run the next cell, or go on."
    return text


def _named(name: str, text: str = "", css_class: str = "") -> str:
    return f'<div class="rl-name">{html.escape(name)}</div>' + (as_html(text, css_class) if text else "")


class _Panel:
    """A box with a line for messages, and buttons whose errors are seen."""

    def __init__(self):
        self._lock = threading.RLock()
        self.message = widgets.HTML()
        self.buttons: dict[str, widgets.Button] = {}
        self.root = widgets.VBox()
        self.root.add_class("rl-view")

    def _ipython_display_(self) -> None:
        display(self.root)

    def _button(self, text: str, act: Callable[[], str], css_class: str = "") -> widgets.Button:
        """A button; what `act` returns is the message afterwards."""
        button = widgets.Button(description=text)
        button.on_click(lambda _: self._do(act))
        if css_class:
            button.add_class(css_class)
        self.buttons[text] = button
        return button

    def _do(self, act: Callable[[], str]) -> None:
        with self._lock:
            try:
                self._say(act())
            except SHOWN_ERRORS as error:
                self._say(str(error), alert=True)
            except Exception as error:
                self._say(f"This went wrong and nothing was saved: {type(error).__name__}: {error}", alert=True)
                raise

    def _say(self, text: str, alert: bool = False) -> None:
        role, css_class = ("alert", "rl-say rl-alert") if alert else ("status", "rl-say")
        self.message.value = f'<div class="{css_class}" role="{role}">{html.escape(text)}</div>'


def _row(*children: widgets.Widget) -> widgets.HBox:
    row = widgets.HBox(children)
    row.add_class("rl-row")
    return row


class PlainView(_Panel):
    """What a LabellingSession shows, with buttons. The last expression of a cell shows it; running the cell again goes on
    where the store stands. `goal` is how many to do by hand (default: all); one may go on beyond it."""

    def __init__(self, session: LabellingSession, goal: int | None = None):
        super().__init__()
        self.session, self.goal = session, goal
        self._retired: list[widgets.Button] = []
        self._untouched: str | None = None             # the set whose order as shown was to be confirmed
        self.prompt, self.answers = widgets.HTML(), widgets.Box()
        self.texts = [widgets.HTML() for _ in range(9)]
        self.left, self.right = self.texts[:2]
        self.flags = [[widgets.ToggleButton(description=flag) for flag in FLAGS] for _ in self.texts]
        self.answers.add_class("rl-answers")
        self.order = widgets.Text(placeholder="your order, such as 3 1=2")
        self.strength = widgets.Dropdown(options=[("how much better? (if you like)", None), *((name, name) for name in STRENGTHS)])
        self.reason = widgets.Dropdown(options=[("why skip?", ""), *((reason, reason) for reason in REASONS)])
        self.note = widgets.Text(placeholder="note")
        self._below, self._details, self.figures = _row(), _row(), widgets.HTML()
        self.root.children = (widgets.HTML(STYLE), self.prompt, self.answers, self._below, self._details, self.message, self.figures)
        self._do(self._draw)

    def _draw(self) -> str:
        """Show the session's pair; texts first, so that a press in between meets the old, refusable buttons."""
        shown = self.session.current
        ranks = self.session.task == "rank"
        self.prompt.value = _named("Prompt", shown.prompt, "rl-prompt") if shown else _named("All pairs are done.")
        names = [f"Answer {number}" for number in range(1, 10)] if ranks else ["Left answer", "Right answer"]
        answers = shown.answers if shown else ()
        for place, text in enumerate(self.texts):
            text.value = _named(names[place], answers[place].text or " ") if place < len(answers) else ""
        for field, empty in ((self.order, ""), (self.strength, None), (self.reason, ""), (self.note, "")):
            field.value = empty
        for flag in (flag for row in self.flags for flag in row):
            flag.value = False
        self._renew_buttons(shown, ranks)
        self.figures.value = "".join(_said(figure.name, figure.value, figure.hint) for figure in self.session.figures())
        return saved_text(self.session.progress(), self.goal)

    def _renew_buttons(self, shown: Shown | None, ranks: bool) -> None:
        old, drawn_at = self.buttons, time.monotonic()
        self.buttons = {}
        acts = self._ranking_acts(shown, drawn_at) if ranks else [
            self._button(text, partial(self._judge, shown, drawn_at, choice), css_class) for text, choice, css_class in ACTS]
        skip = self._button("Skip", partial(self._judge, shown, drawn_at, "skip"))
        for button in [*acts, skip]:
            button.disabled = shown is None
        undo = self._button("Undo", lambda: self._then_draw(self.session.undo, shown.pair_id if shown else None))
        undo.disabled = not self.session.can_undo()
        number = len(shown.answers) if shown else 0
        under = [[] for _ in range(number)] if ranks else [[button] for button in acts[:2]]
        self.answers.children = tuple(widgets.VBox([self.texts[place], _row(*self.flags[place]), *under[place]])
                                      for place in range(number))
        self._below.children = (*((self.order, *acts) if ranks else acts[2:]), skip, self.reason, undo)
        self._details.children = (self.note,) if ranks else (self.strength, self.note)
        self._details.layout.display = "" if shown else "none"
        self._retire(old)

    def _ranking_acts(self, shown: Shown | None, drawn_at: float) -> list[widgets.Button]:
        return [self._button("Save ranking", partial(self._judge, shown, drawn_at, "rank"), "rl-main"),
                self._button("Keep the order shown", partial(self._judge, shown, drawn_at, "keep"))]

    def _retire(self, old: dict[str, widgets.Button]) -> None:
        """Close the buttons before the last ones; the last ones live on, to answer presses that are on their way."""
        for button in self._retired:
            button.close()
        self._retired = list(old.values())

    def _judge(self, shown: Shown, drawn_at: float, choice: str) -> str:
        shown_ms = int(1000 * (time.monotonic() - drawn_at))
        if shown_ms < TOO_QUICK_MS:
            raise StaleAct("That press came too soon after the pair appeared (a double click?), so it was not saved.")
        about = {"flags": [[flag.description for flag in row if flag.value] for row in self.flags[:len(shown.answers)]],
                 "note": self.note.value.strip(), "ui": "plain"}
        if choice == "skip":
            return self._then_draw(self.session.skip, shown.pair_id, self.reason.value, **about)
        if choice == "rank":
            groups = parse_ranking(self.order.value, len(shown.answers))
            return self._then_draw(self.session.rank, shown.pair_id, groups, shown_ms, True, **about)
        if choice == "keep":
            return self._keep_order(shown, shown_ms, about)
        return self._then_draw(self.session.choose, shown.pair_id, choice, shown_ms, self.strength.value, **about)

    def _keep_order(self, shown: Shown, shown_ms: int, about: dict) -> str:
        groups = [[number + 1] for number in range(len(shown.answers))]
        try:
            return self._then_draw(self.session.rank, shown.pair_id, groups, shown_ms, self._untouched == shown.pair_id, **about)
        except Unconfirmed:
            self._untouched = shown.pair_id
            raise

    def _then_draw(self, act: Callable, *about: object, **more: object) -> str:
        act(*about, **more)
        return self._draw()


class PlainChat(_Panel):
    """A Chat with buttons: a prompt, all answers, and a PlainView to judge them in. Names appear with the judgement."""

    def __init__(self, chat: Chat):
        super().__init__()
        self.chat = chat
        self.prompt, self.names, self._place = _text_area(2, "Ask all models the same thing"), widgets.HTML(), widgets.VBox()
        self.prompt.continuous_update = True
        buttons = _row(self._button("Ask", self._ask, "rl-main"), self._button("Who said what?", self._reveal))
        self.root.children = (widgets.HTML(STYLE), self.prompt, buttons, self.message, self._place, self.names)
        self._say(chat.status())

    def _ask(self) -> str:
        session = self.chat.ask(self.prompt.value, self._say)
        self._place.children = (PlainView(session).root,) if session else ()
        shown = self.chat.last
        names = self.chat.titles(shown, reveal=session is None)
        self.names.value = "".join(map(_named, names, (answer.text for answer in shown.answers))) if names else ""
        return self.chat.status()

    def _reveal(self) -> str:
        if self.chat.session is None or self.chat.session.current is not None:
            return "Judge the answers first."
        shown = self.chat.last
        self.names.value = "".join(map(_named, self.chat.titles(shown, reveal=True), (answer.text for answer in shown.answers)))
        return self.chat.status()


def _said(name: str, value: str, hint: str) -> str:
    return f'<div class="rl-say">{name} <b>{value}</b> {html.escape(hint)}</div>'


class InstructionForm(_Panel):
    """See `instruction_form`."""

    def __init__(self, path: str | Path, topics: Sequence[str] = ()):
        super().__init__()
        self.path, self._loading = Path(path), False
        self._rows = list(read_instructions(path)) if self.path.exists() else []
        self._stamp = self._file_stamp()
        self.prompt, self.completion = _text_area(2, "What somebody asks"), _text_area(5, "The answer you would want")
        self.topic = widgets.Combobox(options=tuple(topics), continuous_update=False, placeholder="Topic")
        self.heading = widgets.HTML()
        self.rating = widgets.Dropdown(options=RATINGS)
        self._fields = {"prompt": self.prompt, "completion": self.completion, "topic": self.topic}
        for field in (*self._fields.values(), self.rating):
            field.observe(lambda _: self._loading or self._do(self._save), names=["value"])
        self._lay_out()
        self._do(lambda: self._go(len(self._rows)))

    def _lay_out(self) -> None:
        buttons = _row(self._button("Previous", lambda: self._leave(self._place - 1)),
                       self._button("Next", lambda: self._leave(self._place + 1)),
                       self._button("New", lambda: self._leave(len(self._rows)), "rl-main"))
        names = [widgets.HTML(_named(name)) for name in ("Prompt", "Completion", "Topic", "Rating")]
        fields = [widget for pair in zip(names, (*self._fields.values(), self.rating), strict=True) for widget in pair]
        self.root.children = (widgets.HTML(STYLE), self.heading, *fields, buttons, self.message)

    def _file_stamp(self) -> tuple[int, int] | None:
        return (self.path.stat().st_mtime_ns, self.path.stat().st_size) if self.path.exists() else None

    def _go(self, place: int) -> str:
        """Show the row at `place`; one past the last is a new one."""
        self._place = place
        row = self._rows[place] if place < len(self._rows) else {"prompt": "", "completion": "", "topic": ""}
        self._loading = True
        for name, field in self._fields.items():
            field.value, field.disabled = as_text(row[name]), not _is_editable(row)
        self.rating.value = row.get("rating") if row.get("rating") in range(1, 6) else None
        self._loading = False
        new = place == len(self._rows)
        self.heading.value = _named("New pair" if new else f"Pair {place + 1} of {len(self._rows)}")
        self.buttons["Previous"].disabled, self.buttons["Next"].disabled = place == 0, new
        note = "" if _is_editable(row) else " This one has several messages and can only be read and rated here."
        return f"{self._count()}{note}"

    def _leave(self, place: int) -> str:
        if any(self._missing()) and not all(self._missing()):
            return f"{self._save()} Or empty both fields to give it up."
        return self._go(place)

    def _missing(self) -> list[bool]:
        return [not self.prompt.value.strip(), not self.completion.value.strip()]

    def _save(self) -> str:
        if any(self._missing()):
            return f"Not saved yet: write the {'prompt' if self._missing()[0] else 'completion'}."
        if self._file_stamp() != self._stamp:
            raise FileChanged(f"Not saved: something else has changed {self.path.name}. "
                              "Copy your text, then run this cell again.")
        rows = [*self._rows[:self._place], self._edited(), *self._rows[self._place + 1:]]
        write_instructions(self.path, rows)
        self._rows, self._stamp = rows, self._file_stamp()
        self.heading.value = _named(f"Pair {self._place + 1} of {len(rows)}")
        self.buttons["Next"].disabled = False
        return f"Saved: {self._count()}"

    def _count(self) -> str:
        return f"{len(self._rows)} {'pair' if len(self._rows) == 1 else 'pairs'} in {self.path.name}."

    def _edited(self) -> dict:
        old = self._rows[self._place] if self._place < len(self._rows) else {}
        said = {name: field.value for name, field in self._fields.items()}
        row = {name: value for name, value in old.items() if name != "rating"}
        if said != {name: as_text(old.get(name, "")) for name in said}:         # a rating alone makes nobody the author
            row |= said | {"source": "human"}
        row |= {"rating": self.rating.value} if self.rating.value else {}
        return to_conversational(row) if isinstance(old.get("prompt"), list) else row


def _text_area(rows: int, placeholder: str) -> widgets.Textarea:
    return widgets.Textarea(rows=rows, placeholder=placeholder, continuous_update=False,
                            layout=widgets.Layout(width="auto"))


def _is_editable(row: dict) -> bool:
    try:
        to_plain(row)
    except ValueError:
        return False
    return True


def instruction_form(path: str | Path, topics: Sequence[str] = ()) -> InstructionForm:
    """A form to write, edit and rate the instructions of `path`, saved to it at once: whenever a field is left with prompt
    and completion both written. `topics` are suggested. What is edited here becomes `source` "human"; a `rating` is a
    number from 1 to 5 (RATINGS) or not there. Raises BadData if the file has bad rows, because saving would lose them."""
    return InstructionForm(path, topics)
