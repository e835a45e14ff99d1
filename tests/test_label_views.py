"""The keyboard widget and the plain view without a browser: what a message does to the store, and what is shown of it."""
import copy
import threading

import pytest
from label_makers import CANDIDATES, FOUR, candidate_set

from rlhf_helpers.labelling import plain_view, view
from rlhf_helpers.labelling.chat import Chat
from rlhf_helpers.labelling.plain_view import PlainChat, PlainView
from rlhf_helpers.labelling.session import LabellingSession
from rlhf_helpers.labelling.store import LabelStore

widget = pytest.importorskip("rlhf_helpers.labelling.widget", reason="anywidget is not installed")
pytestmark = pytest.mark.usefixtures("no_swallowed_errors")


@pytest.fixture(autouse=True)
def quick_hands(monkeypatch):
    monkeypatch.setattr(plain_view, "TOO_QUICK_MS", 0)


@pytest.fixture
def shown(store):
    return widget.LabelWidget(LabellingSession(store, CANDIDATES, "ann", seed=1), goal=4)


class Browser:
    """Sends what `widget.js` sends, through the wire of ipywidgets."""

    def __init__(self, shown):
        self.shown, self.number = shown, 0

    def send(self, act, **more):
        self.number += 1
        pair = self.shown.state["shown"]
        message = {"act": act, "id": f"act{self.number}", "pair": pair["id"] if pair and not self.shown.state["done"] else None,
                   "ms": 2000, "strength": None, "flags": [], "note": "", "resent": False} | more
        self.shown._handle_msg({"content": {"data": {"method": "custom", "content": message}}, "buffers": []})
        return self.shown.state["answer"]


@pytest.fixture
def browser(shown):
    return Browser(shown)


def test_widget_saves_moves_on_and_counts(browser, shown, store):
    seen = []
    for act in ({"choice": "left", "strength": "clearly"}, {"choice": "tie_bad", "flags": [["wrong"], []], "note": "both odd"}):
        seen.append(shown.state["shown"])
        answer = browser.send("choose", **act)
        assert answer == {"id": f"act{len(seen)}", "kind": "saved", "text": ""}
    browser.send("skip", reason=plain_view.REASONS[0])
    first, second, third = store.labels()
    assert (first.strength, first.shown_ms, second.choice, second.comment) == (3, 2000, "tie_bad", "both odd")
    assert list(second.flags.values()) == [["wrong"]] and third.comment == "I cannot tell"
    assert shown.state["text"] == "Saved 3 of 4 (1 skipped)." and shown.state["goal"] == 4
    assert {event["ui"] for event in store.events()} == {"widget"}
    browser.send("undo")
    browser.send("undo")
    assert shown.state["shown"] == seen[1] and shown.state["text"] == "Saved 1 of 4."


def test_widget_shows_no_model_and_no_markup_is_made_of_text(store):
    nasty = "<img src=x onerror=alert(1)>\x1b[31m\x00\n  שלום"
    shown = widget.LabelWidget(LabellingSession(store, [candidate_set(0, (nasty, ""))], "ann"))
    assert set(shown.state["shown"]["answers"]) == {nasty.replace("\x1b", "␛").replace("\x00", "␀") + " (0)", " (0)"}
    assert "m0" not in str(shown.state) and "m1" not in str(shown.state)
    source = widget.LabelWidget._esm if isinstance(widget.LabelWidget._esm, str) else str(widget.LabelWidget._esm)
    assert "innerHTML" not in source and "insertAdjacentHTML" not in source


def test_widget_refuses_what_is_late_and_says_so(browser, shown, store):
    first = shown.state["shown"]["id"]
    browser.send("choose", choice="left")
    answer = browser.send("choose", choice="right", pair=first)
    assert answer["kind"] == "refused" and "no longer on the screen" in answer["text"]
    assert browser.send("choose", choice="best")["kind"] == "refused"
    assert browser.send("dance")["text"].startswith("the act 'dance' is not known")
    assert len(store.labels()) == 1


def test_an_act_sent_again_after_a_restart_is_saved_once(browser, shown, store):
    pair = shown.state["shown"]["id"]
    browser.send("choose", choice="left", id="same")
    later = Browser(widget.LabelWidget(LabellingSession(store, CANDIDATES, "ann", seed=1), goal=4))
    assert later.send("choose", choice="left", id="same", pair=pair, resent=True)["kind"] == "saved"
    assert len(store.events()) == 1 and later.shown.state["text"] == "Saved 1 of 4."


def test_an_act_whose_session_went_away_is_saved_all_the_same(store):
    """The browser kept a vote of a chat; the next view of that annotator is of quite other pairs."""
    chat = Chat(MODELS, store, "ann")
    pair_id = chat.ask("Tired?").current.pair_id
    best = chat.last.answers[2].id
    later = Browser(widget.LabelWidget(LabellingSession(store, CANDIDATES, "ann")))
    screen = later.shown.state["shown"]
    act = {"groups": [[3], [1], [2]], "confirmed": True, "pair": pair_id, "resent": True}
    assert later.send("rank", **act)["kind"] == "saved" and later.shown.state["shown"] == screen
    assert store.rankings()[0].ranking[0] == (best,)
    fresh = Browser(widget.ChatWidget(Chat(MODELS, store, "bob")))
    assert fresh.send("rank", **act, id="other")["kind"] == "saved" and len(store.rankings()) == 2
    answer = fresh.send("choose", choice="left", pair="gone", resent=True)
    assert answer["kind"] == "refused" and "not in this store" in answer["text"]


def test_a_failed_save_is_said_and_the_pair_stays(browser, shown, store):
    before = copy.deepcopy(shown.state["shown"])
    store._connect().execute("PRAGMA query_only = ON")
    answer = browser.send("choose", choice="left", id="kept")
    assert answer["kind"] == "failed" and "cannot be written to" in answer["text"] and shown.state["shown"] == before
    store._connect().execute("PRAGMA query_only = OFF")
    assert browser.send("choose", choice="left", id="kept", resent=True)["kind"] == "saved" and len(store.labels()) == 1


def test_a_full_disk_leaves_the_label_unsaved_on_the_screen(browser, shown, store):
    """SQLite's own limit on pages gives the error of a full disk without filling one."""
    connection = store._connect()
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    answers = [browser.send("choose", choice="left", note="n" * 3000) for _ in range(4)]
    assert answers[-1]["kind"] == "failed" and "the disk is full" in answers[-1]["text"]
    saved = sum(answer["kind"] == "saved" for answer in answers)
    assert shown.state["saved"] == saved < 4
    connection.execute("PRAGMA max_page_count = 100000")
    assert browser.send("choose", choice="left", note="n" * 3000)["kind"] == "saved"


def test_an_unforeseen_error_is_shown_and_passed_on(browser, shown, store, monkeypatch, raises_in_callback):
    monkeypatch.setattr(store, "record", lambda *events: 1 / 0)
    answer = browser.send("choose", choice="left")
    assert answer["kind"] == "failed" and "ZeroDivisionError" in answer["text"]


def test_widget_works_from_any_thread(browser, shown, store):
    for choice in ("left", "right"):
        thread = threading.Thread(target=browser.send, args=("choose",), kwargs={"choice": choice})
        thread.start()
        thread.join()
    pair = shown.state["shown"]["id"]
    threads = [threading.Thread(target=browser.send, args=("choose",), kwargs={"choice": "left", "pair": pair, "id": f"t{n}"})
               for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.labels()) == 3


def test_widget_ranks_and_asks_twice_for_the_order_shown(store):
    shown = widget.LabelWidget(LabellingSession(store, [candidate_set(0, FOUR)], "ann", task="rank"))
    browser = Browser(shown)
    assert shown.state["kind"] == "rank" and shown.state["shown"]["titles"] == [f"Answer {n}" for n in (1, 2, 3, 4)]
    assert browser.send("rank", groups=[[1], [2], [3], [4]], confirmed=False)["kind"] == "confirm"
    assert browser.send("rank", groups=[[1, 2]], confirmed=True)["kind"] == "refused"
    assert browser.send("rank", groups=[[4], [1, 2], [3]], confirmed=True)["kind"] == "saved"
    assert shown.state["shown"] is None and len(store.labels()) == 6
    browser.send("undo")
    assert shown.state["shown"] and store.labels() == []


def test_acts_for_one_store_or_annotator_wait_apart_from_others(store, tmp_path):
    boxes = {widget.LabelWidget(LabellingSession(at, CANDIDATES, name)).state["box"]
             for at in (store, LabelStore(tmp_path / "other.sqlite")) for name in ("ann", "bob")}
    assert len(boxes) == 4


# ---------------------------------------------------------------------------------------------------------------------
# The plain view

def test_the_plain_view_comes_by_itself_where_anywidget_is_missing(store, monkeypatch):
    session = LabellingSession(store, CANDIDATES, "ann")
    assert isinstance(view.label_view(session), widget.LabelWidget)
    assert isinstance(view.chat_view(Chat(MODELS, store)), widget.ChatWidget)
    monkeypatch.setenv("RLHF_UI", "basic")
    assert isinstance(view.label_view(session, goal=3), PlainView)
    monkeypatch.delenv("RLHF_UI")
    monkeypatch.setattr(view.importlib.util, "find_spec", lambda name: None)
    assert isinstance(view.label_view(session), PlainView) and isinstance(view.chat_view(Chat(MODELS, store)), PlainChat)


def press(shown, text):
    shown.buttons[text].click()


def test_plain_view_takes_details_and_starts_the_next_pair_without_them(store):
    shown = PlainView(LabellingSession(store, CANDIDATES, "ann"))
    left = shown.session.current.left
    shown.strength.value, shown.note.value, shown.flags[0][2].value = "slightly", "hm", True
    press(shown, "Right is better")
    label, = store.labels()
    assert (label.strength, label.comment, label.flags) == (1, "hm", {left.id: ["off topic"]})
    assert (shown.strength.value, shown.note.value, shown.flags[0][2].value) == (None, "", False)
    shown.reason.value = plain_view.REASONS[2]
    press(shown, "Skip")
    assert store.labels()[1].comment == "The text is broken" and store.events()[1]["ui"] == "plain"


def test_plain_view_ranks(store):
    shown = PlainView(LabellingSession(store, [candidate_set(0, FOUR[:3]), candidate_set(1, FOUR)], "ann", task="rank"))
    number = len(shown.session.current.answers)
    assert len(shown.answers.children) == number
    shown.order.value = "1 1"
    press(shown, "Save ranking")
    assert f"each number from 1 to {number} once" in shown.message.value and 'role="alert"' in shown.message.value
    shown.order.value = " ".join(map(str, range(number, 0, -1)))
    press(shown, "Save ranking")
    assert shown.order.value == "" and store.rankings()[0].ranking[0] == (store.rankings()[0].shown_order[-1],)
    press(shown, "Keep the order shown")
    assert "once more" in shown.message.value and len(store.rankings()) == 1
    press(shown, "Keep the order shown")
    assert len(store.rankings()) == 2 and "All pairs are done" in shown.prompt.value and shown.answers.children == ()


# ---------------------------------------------------------------------------------------------------------------------
# The chat

MODELS = {"sft": lambda prompt: f"{prompt} Sleep.", "grpo": lambda prompt: f"{prompt} Sleep well.", "dpo": lambda prompt: "Sleep."}


def test_chat_is_blind_until_the_vote_which_goes_into_the_store(store):
    shown = widget.ChatWidget(Chat(MODELS, store, "ann"))
    browser = Browser(shown)
    assert shown.state["chat"] and shown.state["shown"] is None and shown.state["text"] == "Write a prompt and press Ask."
    assert browser.send("ask", prompt="  ")["kind"] == "refused"
    assert browser.send("ask", prompt="Tired?")["kind"] == "saved"
    assert len(shown.state["shown"]["answers"]) == 3 and not shown.state["done"] and not shown.state["working"]
    assert not any(name in str(shown.state["shown"]["titles"]) for name in MODELS)
    browser.send("rank", groups=[[3], [1], [2]], confirmed=True)
    assert shown.state["done"] and {title[3:] for title in shown.state["shown"]["titles"]} == set(MODELS)
    third = shown.state["shown"]["titles"][2][3:]
    winners = {label.preferred for label in store.labels()}
    by_id = {answer.id: answer.model for each in store.comparisons() for answer in each.responses}
    assert len(store.labels()) == 3 and third in {by_id[winner] for winner in winners}
    browser.send("undo")
    assert not shown.state["done"] and store.labels() == []


def test_chat_with_two_models_that_agree_and_named(store):
    same = Chat({"a": lambda prompt: "Yes.", "b": lambda prompt: "Yes."}, store)
    assert same.ask("Ok?") is None and same.titles(same.last, reveal=True) == ["1: a + b"]
    assert "same answer" in same.status()
    shown = widget.ChatWidget(Chat({"a": str.upper, "b": str.lower}, store, blind=False))
    browser = Browser(shown)
    browser.send("ask", prompt="Hi")
    assert shown.state["kind"] == "pairs" and {title[3:] for title in shown.state["shown"]["titles"]} == {"a", "b"}
    assert browser.send("choose", choice="left")["kind"] == "saved" and shown.state["done"]
    with pytest.raises(ValueError, match="a chat compares two to nine"):
        Chat({"a": str.upper}, store)


def test_two_models_that_chat_change_sides_by_lot(store):
    chat = Chat({"a": str.upper, "b": str.lower}, store, "ann")
    on_left = [chat.ask(f"Question {number}").current.left.model for number in range(40)]
    changes = sum(one != other for one, other in zip(on_left, on_left[1:]))
    assert 12 <= on_left.count("a") <= 28 and 12 <= changes <= 28


def test_chat_shows_a_model_that_breaks(store, raises_in_callback):
    shown = widget.ChatWidget(Chat({"a": str.upper, "b": lambda prompt: 1 / 0}, store))
    assert Browser(shown).send("ask", prompt="Hi") == {"id": "act1", "kind": "failed",
                                                       "text": "This went wrong: ZeroDivisionError: division by zero"}


def test_plain_chat(store):
    shown = PlainChat(Chat(MODELS, store))
    shown.prompt.value = "Tired?"
    press(shown, "Ask")
    assert "Which is the best" in shown.message.value and shown.names.value == ""
    press(shown, "Who said what?")
    assert "Judge the answers first" in shown.message.value
    shown.chat.session.rank(shown.chat.session.current.pair_id, [[1, 2, 3]])
    press(shown, "Who said what?")
    assert all(name in shown.names.value for name in MODELS)
