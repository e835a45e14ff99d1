"""Labels: what the store keeps, what a session refuses, what the views show, what is exported."""
import os
import sqlite3
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from kill_9 import survive
from label_makers import CANDIDATES, FOUR, candidate_set, many

from rlhf_helpers import formats
from rlhf_helpers.labelling import plain_view
from rlhf_helpers.labelling import store as store_module
from rlhf_helpers.labelling.export import export_preferences
from rlhf_helpers.labelling.selection import Active
from rlhf_helpers.labelling.session import LabellingSession, StaleAct, Unconfirmed, pairs_of, parse_ranking
from rlhf_helpers.labelling.store import Comparison, Event, LabelStore, Response, StoreError

pytestmark = pytest.mark.usefixtures("no_swallowed_errors")


@pytest.fixture
def session(store):
    return LabellingSession(store, CANDIDATES, "ann", seed=1)


@pytest.fixture(autouse=True)
def quick_hands(monkeypatch):
    """Tests press buttons sooner than a person could have read."""
    monkeypatch.setattr(plain_view, "TOO_QUICK_MS", 0)


class Fake:
    """A simulated annotator that likes the longer answer, or now and then none."""

    def __init__(self, name, tie_share=0.1):
        self.name, self.tie_share, self.asked = name, tie_share, 0

    def compare(self, prompt, left_text, right_text, rng):
        self.asked += 1
        longer = "left" if len(left_text) > len(right_text) else "right"
        choice = "tie_bad" if rng.random() < self.tie_share else longer
        return SimpleNamespace(choice=choice, shown_ms=rng.randrange(900, 4000))


def pair(store, number=0, annotators=("ann", "bob")):
    comparison = pairs_of([candidate_set(number)])[0][0]
    store.add_comparisons([comparison])
    for name in annotators:
        store.add_annotator(name)
    return comparison


def label(comparison, place, annotator="ann", **more):
    preferred = comparison.responses[place].id
    return Event("label", comparison.id, annotator, "test", choice="prefer", preferred=preferred, **more)


# ---------------------------------------------------------------------------------------------------------------------
# The store

def test_same_pair_has_the_same_id_from_either_side_and_in_either_form():
    one, other = Response("a", "m1"), Response("b", "m2")
    asked = [{"role": "user", "content": "p"}]
    assert Comparison("p", (one, other)).id == Comparison(asked, (other, one)).id != Comparison("q", (one, other)).id


def test_relabel_undo_redo_and_two_annotators(store):
    comparison = pair(store)
    verdicts = lambda: {label.annotator: label.verdict for label in store.labels()}       # noqa: E731
    first, second = label(comparison, 0), label(comparison, 1)
    store.record(first)
    store.record(label(comparison, 0, "bob"))
    store.record(second)
    left, right = (response.id for response in comparison.responses)
    assert verdicts() == {"ann": right, "bob": left}
    undo = Event("undo", comparison.id, "ann", "test", undoes=second.id)
    store.record(undo)
    assert verdicts() == {"ann": left, "bob": left}
    store.record(Event("undo", comparison.id, "ann", "test", undoes=undo.id))
    assert verdicts() == {"ann": right, "bob": left}
    assert len(store.events()) == 5


def test_sending_an_act_again_changes_nothing(store):
    event = label(pair(store), 0)
    assert (store.record(event), store.record(event), store.record(event, event)) == (1, 0, 0)
    assert len(store.events()) == 1


@pytest.mark.parametrize("change, message", [
    ({"choice": "tie"}, "CHECK"), ({"preferred": "nobody"}, "FOREIGN KEY"), ({"preferred": None}, "CHECK"),
    ({"annotator": "stranger"}, "FOREIGN KEY"), ({"comparison_id": "none"}, "FOREIGN KEY"), ({"shown_ms": -1}, "CHECK"),
    ({"kind": "undo"}, "undo must name"), ({"kind": "opinion"}, "CHECK"),
])
def test_an_invalid_act_saves_none_of_its_batch(store, change, message):
    comparison = pair(store)
    good = label(comparison, 0)
    bad = Event(**{**vars(label(comparison, 1)), **change})
    with pytest.raises(StoreError, match=message):
        store.record(good, bad)
    assert store.events() == []


def test_nobody_undoes_for_another_or_rewrites_the_log(store):
    comparison = pair(store)
    event = label(comparison, 0)
    store.record(event)
    with pytest.raises(StoreError, match="same annotator and pair"):
        store.record(Event("undo", comparison.id, "bob", "test", undoes=event.id))
    connection = sqlite3.connect(store.path)
    for statement in ("UPDATE event SET choice = 'tie_bad'", "DELETE FROM event"):
        with pytest.raises(sqlite3.DatabaseError, match="append-only"):
            connection.execute(statement)
    connection.close()


def test_a_person_and_a_simulated_annotator_cannot_share_a_name(store):
    store.add_annotator("ann")
    with pytest.raises(StoreError, match='"ann" is person here, not simulated'):
        store.add_annotator("ann", "simulated")


def test_an_annotator_has_a_name(store):
    for name in ("", " \n"):
        with pytest.raises(ValueError, match="an annotator needs a name"):
            LabellingSession(store, CANDIDATES, name)
    assert store.rows("annotator") == []


def make_foreign(path):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE recipes(name)")
    connection.close()


def make_damaged(path):
    LabellingSession(LabelStore(path), CANDIDATES, "ann")
    content = bytearray(path.read_bytes())
    content[5000:-1000] = b"\x07" * (len(content) - 6000)
    path.write_bytes(content)


def make_newer(path):
    LabelStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {store_module.VERSION + 1}")
    connection.close()


@pytest.mark.parametrize("make, message", [
    (lambda path: path.write_text("my notes\n" * 100), "not a label store"), (make_foreign, "not a label store"),
    (make_damaged, "damaged"), (make_newer, "newer version"), (lambda path: path.mkdir(), "cannot be opened"),
    (lambda path: (LabelStore(path).close(), path.write_bytes(path.read_bytes()[:9000])), "damaged"),
])
def test_a_file_that_is_no_good_is_named_and_left_alone(tmp_path, make, message):
    path = tmp_path / "labels.sqlite"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StoreError, match=f"labels.sqlite: .*{message}"):
        LabelStore(path)
    assert (path.read_bytes() if path.is_file() else None) == before
    assert [file.name for file in tmp_path.iterdir()] == ["labels.sqlite"]


@pytest.fixture
def without_root():
    """File modes say nothing to root, so let the test be somebody else for a while."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    yield
    if is_root:
        os.seteuid(0)


def test_a_read_only_file_is_refused_at_once(without_root):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "labels.sqlite")
        LabelStore(path).close()
        path.chmod(0o444)
        before = path.read_bytes()
        with pytest.raises(StoreError, match="cannot be written to"):
            LabelStore(path)
        assert path.read_bytes() == before
        path.chmod(0o644)


def test_a_store_that_is_taken_away_is_missed(session):
    session.store.path.rename(session.store.path.with_name("elsewhere.sqlite"))
    with pytest.raises(StoreError, match="moved or deleted"):
        session.choose(session.current.pair_id, "left")


def test_threads_write_side_by_side(store):
    comparisons = [pair(store, number, annotators=("t0", "t1", "t2", "t3")) for number in range(25)]
    errors = []
    def work(name):
        try:
            for comparison in comparisons:
                store.record(label(comparison, 0, name))
        except Exception as error:
            errors.append(error)
    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(store.labels()) == 100


@pytest.mark.parametrize("acts", [900, pytest.param(7000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_kill_9_loses_no_acknowledged_act_and_doubles_none(acts):
    """Four writers, three times; with the larger number that is more than 20,000 acts."""
    assert survive(rounds=3, acts=acts) > acts


# ---------------------------------------------------------------------------------------------------------------------
# The session

def test_sides_are_balanced_recorded_and_stable(store):
    session = LabellingSession(store, CANDIDATES, "ann", seed=1)
    on_left = []
    while shown := session.current:
        on_left.append(shown.left.model)
        session.choose(shown.pair_id, "left", shown_ms=5)
    assert all(abs(on_left[:n].count("m0") - n / 2) <= 1 for n in range(1, 21))
    assert all(label.preferred == label.shown_order[0] and label.shown_ms == 5 for label in store.labels())
    again = LabellingSession(store, CANDIDATES[::-1], "ann", seed=2)
    assert again._left == session._left and again.current is None
    assert LabellingSession(store, CANDIDATES, "bob", seed=1)._left != session._left


def test_more_candidates_keep_what_was_fixed(store):
    first = LabellingSession(store, CANDIDATES[:8], "ann")
    shown = first.current
    more = LabellingSession(store, CANDIDATES, "ann")
    assert first._left.items() <= more._left.items()
    assert more._shown(shown.pair_id) == shown


def test_a_new_session_goes_on_where_the_store_stands(session):
    for choice in ("left", "tie_good", "tie_bad"):
        session.choose(session.current.pair_id, choice)
    session.skip(session.current.pair_id, reason="about medicine")
    again = LabellingSession(session.store, CANDIDATES, "ann", seed=1)
    assert again.current == session.current
    progress = again.progress()
    assert (progress.saved, progress.skipped, progress.total) == (4, 1, 20)
    assert [event["comment"] for event in session.store.events()][-1] == "about medicine"


def test_a_late_or_double_act_is_refused(session):
    seen = session.current.pair_id
    session.choose(seen, "left")
    for act in (lambda: session.choose(seen, "left"), lambda: session.skip(seen), lambda: session.undo(seen)):
        with pytest.raises(StaleAct, match="no longer on the screen"):
            act()
    assert session.progress().saved == 1
    with pytest.raises(ValueError, match="left, right, tie_good, tie_bad"):
        session.choose(session.current.pair_id, "tie")


def test_undo_without_limit_also_after_a_restart(session):
    pairs = []
    for choice in ("left", "right", "tie_good"):
        pairs.append(session.current.pair_id)
        session.choose(pairs[-1], choice)
    again = LabellingSession(session.store, CANDIDATES, "ann", seed=1)
    for pair_id in reversed(pairs):
        assert again.undo(again.current.pair_id).pair_id == pair_id
    assert not again.can_undo() and again.progress().saved == 0
    assert again.undo(again.current.pair_id).pair_id == pairs[0]
    assert len(session.store.events()) == 6


def test_answers_that_are_the_same_are_not_compared(store):
    twins, three = candidate_set(1, ("Same.", "Same.")), candidate_set(2, ("One.", "Two.", "One."))
    session = LabellingSession(store, [twins, three], "ann")
    assert (session.progress().total, session.left_out) == (1, 2)
    with pytest.raises(ValueError, match="no pair to compare"):
        LabellingSession(store, [twins], "ann")
    with pytest.raises(formats.BadData, match='candidates, line 1, field "responses"'):
        LabellingSession(store, [{"prompt": "p"}], "ann")


def test_finish_keeps_persons_and_fills_the_rest(session):
    for _ in range(5):
        session.choose(session.current.pair_id, "left")
    helpers = [Fake("kind"), Fake("strict"), Fake("quick"), Fake("slow")]
    filled = session.finish(helpers, per_pair=3)
    assert (filled.pairs, filled.pairs_by_person, filled.human) == (20, 5, 5)
    assert sum(filled.simulated.values()) == 60 and len(filled.simulated) == 4
    assert "20 pairs: 5 human labels on 5 of them" in str(filled) and "60 simulated labels" in str(filled)
    assert session.finish(helpers, per_pair=3) == filled and sum(helper.asked for helper in helpers) == 60
    with pytest.raises(ValueError, match="from 1 to 2"):
        session.finish(helpers[:2])
    assert session.finish([]) == filled


def test_simulated_labels_do_not_depend_on_order_and_are_seeded(tmp_path):
    def said(name, candidates, seed):
        store = LabelStore(tmp_path / name)
        LabellingSession(store, candidates, "ann", seed).finish([Fake("kind", 0.5)], per_pair=1)
        return {label.comparison_id: (label.verdict, label.shown_ms) for label in store.labels()}
    assert said("1", CANDIDATES, 0) == said("2", CANDIDATES[::-1], 0) != said("3", CANDIDATES, 1)


def test_an_annotator_that_answers_nonsense_saves_nothing(session):
    fake = Fake("odd")
    fake.compare = lambda *_: SimpleNamespace(choice="both", shown_ms=1)
    with pytest.raises(ValueError, match="'both' is not known"):
        session.finish([fake], per_pair=1)
    assert session.store.events() == []


def test_six_thousand_simulated_labels_are_quick(store):
    many = [candidate_set(number) for number in range(2000)]
    session = LabellingSession(store, many, "ann")
    start = time.process_time()                    # of the processor, so that a busy computer does not matter
    filled = session.finish([Fake(name) for name in ("kind", "strict", "quick")])
    assert sum(filled.simulated.values()) == 6000 and time.process_time() - start < 5
    start = time.process_time()
    session.choose(session.current.pair_id, "left")
    assert time.process_time() - start < 0.2


# ---------------------------------------------------------------------------------------------------------------------
# What a session can do beyond a plain choice

def test_details_of_an_act_are_kept_with_their_answer(session):
    shown = session.current
    session.choose(shown.pair_id, "right", 900, strength="clearly", flags=[["unsafe", "other"], []], note="says to drink",
                   ui="test", act_id="a1")
    label, = session.store.labels()
    assert (label.strength, label.flags, label.comment) == (3, {shown.left.id: ["unsafe", "other"]}, "says to drink")
    assert session.store.events()[0]["ui"] == "test" and session.store.events()[0]["id"] == "a1"
    shown = session.current
    session.skip(shown.pair_id, "cannot tell", note="both in Latin", flags=[[], ["wrong"]])
    label = session.store.labels()[1]
    assert (label.comment, label.flags) == ("cannot tell: both in Latin", {shown.right.id: ["wrong"]})
    with pytest.raises(ValueError, match="'rude'.* are not known: use unsafe, wrong, off topic, other"):
        session.choose(session.current.pair_id, "left", flags=[["rude"], []])
    with pytest.raises(ValueError, match="use one of slightly, clearly"):
        session.choose(session.current.pair_id, "left", strength="very")
    session.choose(session.current.pair_id, "tie_good", strength="clearly")
    assert session.store.labels()[2].strength is None and session.progress().saved == 3


def test_an_act_that_waited_is_taken_once_and_only_for_a_pair_without_a_label(session):
    first = session.current
    second = session.choose(first.pair_id, "left", act_id="a1")
    assert session.choose(first.pair_id, "left", act_id="a1", resent=True) == second     # acknowledgement got lost
    assert session.undo(second.pair_id, act_id="u1") == first == session.undo(second.pair_id, act_id="u1")
    session.choose(first.pair_id, "right")
    with pytest.raises(StaleAct):
        session.choose(first.pair_id, "left", act_id="a2", resent=True)
    session.choose(second.pair_id, "left")
    session.undo(session.current.pair_id)
    session.choose(second.pair_id, "left")
    other_screen = LabellingSession(session.store, CANDIDATES, "ann", seed=5)
    waiting = next(pair_id for pair_id in session._pairs if pair_id not in (first.pair_id, second.pair_id, other_screen.current.pair_id))
    other_screen.choose(waiting, "tie_bad", act_id="a3", resent=True)
    assert {label.comparison_id: label.verdict for label in session.store.labels()}[waiting] == "tie_bad"
    assert [event["id"] for event in session.store.events()].count("a1") == 1


def answer_all(session, choose=lambda shown: "left"):
    seen = []
    while shown := session.current:
        seen.append(shown)
        session.choose(shown.pair_id, choose(shown), shown_ms=9000)
    return seen


def test_hidden_repeats_come_later_with_sides_swapped_and_train_nothing(store):
    session = LabellingSession(store, many(40), "ann", repeats=0.2)
    assert session.progress().total == 48
    seen = answer_all(session)
    assert len(seen) == session.progress().saved == 48
    place = {shown.pair_id: number for number, shown in enumerate(seen)}
    repeats = [shown for shown in seen if shown.pair_id.endswith("+1")]
    assert len(repeats) == 8
    for shown in repeats:
        first = seen[place[shown.pair_id.removesuffix("+1")]]
        assert (shown.left, shown.right) == (first.right, first.left)
        assert place[shown.pair_id] - place[first.pair_id] > 8
    assert len(store.labels()) == 40 and len(store.repeats()) == 8
    same_again, = [figure for figure in session.figures() if figure.name == "same when asked again"]
    assert same_again.value == "0 of 8" and "twice" in same_again.hint       # always left is never the same answer
    assert session.undo(None).pair_id == seen[-1].pair_id


def test_a_restart_in_the_middle_shows_the_same_pairs(store, tmp_path):
    def order(store, restart):
        session, seen = LabellingSession(store, many(30), "ann", repeats=0.3), []
        while session.current:
            if restart:
                session = LabellingSession(store, many(30)[::-1], "ann", repeats=0.3)
            seen.append(session.current.pair_id)
            session.choose(seen[-1], "left")
        return seen
    assert order(store, False) == order(LabelStore(tmp_path / "other.sqlite"), True)


def gold_rows(number):
    return [{"prompt": f"Say something kind. ({each})", "chosen": "You are welcome here.", "rejected": "Go away."}
            for each in range(number)]


def test_gold_pairs_are_mixed_in_measured_and_left_out(store, tmp_path):
    session = LabellingSession(store, many(30), "ann", gold=gold_rows(3))
    kind = lambda shown: "left" if "welcome" in shown.left.text or "Tea" in shown.left.text else "right"       # noqa: E731
    seen = answer_all(session, kind)
    at = [place for place, shown in enumerate(seen) if shown.prompt.startswith("Say")]
    assert [place // 10 for place in at] == [0, 1, 2] and len(seen) == 33
    assert [figure.value for figure in session.figures() if figure.name == "known answers"] == ["3 of 3"]
    assert len(store.labels()) == 30 and [right for _, right in store.gold_labels()] == [True] * 3
    assert export_preferences(store, tmp_path / "preferences.jsonl")["dropped"]["test of attention"] == 3
    with pytest.raises(formats.BadData, match='gold, line 1, field "rejected"'):
        LabellingSession(store, many(3), "bob", gold=[{"prompt": "p", "chosen": "c"}])
    twin = {"prompt": CANDIDATES[0]["prompt"], "chosen": CANDIDATES[0]["responses"][0]["text"],
            "rejected": CANDIDATES[0]["responses"][1]["text"]}
    with pytest.raises(ValueError, match="gold, row 1: the same pair is among the candidates"):
        LabellingSession(store, many(3), "bob", gold=[twin])


def test_a_ranking_becomes_pairs_that_know_their_group(store, tmp_path):
    session = LabellingSession(store, [candidate_set(0, FOUR), candidate_set(1, FOUR[:3])], "ann", task="rank")
    shown = session.current
    k = len(shown.answers)
    assert {answer.text for answer in shown.answers} == {f"{text} (" + shown.prompt[-2] + ")" for text in FOUR[:k]}
    with pytest.raises(Unconfirmed, match="order in which the answers were shown"):
        session.rank(shown.pair_id, [[place + 1] for place in range(k)])
    with pytest.raises(ValueError, match=f"each answer from 1 to {k} once"):
        session.rank(shown.pair_id, [[1], [1]])
    with pytest.raises(ValueError, match="rank them"):
        session.choose(shown.pair_id, "left")
    session.rank(shown.pair_id, [[k], *[[place] for place in range(3, k)], [1, 2]], shown_ms=9, flags=[["wrong"]])
    labels = {frozenset(label.shown_order): label for label in store.labels()}
    ids = [answer.id for answer in shown.answers]
    assert len(labels) == k * (k - 1) // 2 and {label.group for label in labels.values()} == {shown.pair_id}
    assert labels[frozenset(ids[:2])].choice == "tie" and labels[frozenset((ids[0], ids[-1]))].preferred == ids[-1]
    assert labels[frozenset(ids[:2])].flags == {ids[0]: ["wrong"]} and labels[frozenset(ids[1:3])].flags == {}
    assert labels[frozenset(ids[:2])].comparison_id == Comparison(CANDIDATES[int(shown.prompt[-2])]["prompt"], shown.answers[:2]).id
    second = session.current
    session.rank(second.pair_id, [[place + 1] for place in range(len(second.answers))], confirmed=True)
    assert session.current is None and session.undo(None) == second
    audit = export_preferences(store, tmp_path / "preferences.jsonl")
    assert audit["kept"] == k * (k - 1) // 2 - 1 and audit["dropped"]["equal in a ranking"] == 1
    rows = formats.read_preferences(tmp_path / "preferences.jsonl")
    assert {row["group"] for row in rows} == {shown.pair_id} and len({str(row["prompt"]) for row in rows}) == 1
    filled = session.finish([Fake("kind"), Fake("strict")], per_pair=2)
    assert (filled.pairs, filled.pairs_by_person) == (9, k * (k - 1) // 2) and filled.simulated == {"kind": 9, "strict": 9}


def test_ranking_refuses_too_many_and_leaves_out_the_same_text(store):
    twice = candidate_set(0, ("A", "B", "A", "C"))
    session = LabellingSession(store, [twice], "ann", task="rank")
    assert (len(session.current.answers), session.left_out) == (3, 1)
    with pytest.raises(ValueError, match="10 answers to one prompt are too many to rank"):
        LabellingSession(store, [candidate_set(0, "abcdefghij")], "ann", task="rank")
    with pytest.raises(ValueError, match='use "pairs" or "rank"'):
        LabellingSession(store, [twice], "ann", task="sort")


@pytest.mark.parametrize("text, groups", [("3 1 2", [[3], [1], [2]]), (" 2=1  3 ", [[2, 1], [3]]), ("1 = 2 = 3", [[1, 2, 3]])])
def test_a_typed_ranking(text, groups):
    assert parse_ranking(text, 3) == groups


@pytest.mark.parametrize("text", ["", "1 2", "1 2 3 4", "1 1 2", "1 2 x3", "123", "1,2,3", "1 2 =3= x"])
def test_a_mistyped_ranking_says_what_to_type(text):
    with pytest.raises(ValueError, match="each number from 1 to 3 once.*: 3 1=2"):
        parse_ranking(text, 3)


def test_pairs_at_random_come_with_their_probability(session):
    probabilities = []
    while session.current:
        session.choose(session.current.pair_id, "left")
    probabilities = [label.probability for label in session.store.labels()]
    assert probabilities == pytest.approx([1 / left for left in range(20, 0, -1)])


def number_in(prompt):
    return int(prompt.split("(")[1].rstrip(")"))


@pytest.mark.parametrize("by, best", [("margin", 0), ("disagreement", 39)])
def test_active_selection_shows_first_what_the_score_is_unsure_of(store, by, best):
    """Answers to prompt k differ by k points in the mean, and the two members of the ensemble by k."""
    def score(prompts, answers):
        points = [number_in(prompt) if "sing" in answer else 0 for prompt, answer in zip(prompts, answers)]
        return [[0.5 * k, 1.5 * k] for k in points]
    session = LabellingSession(store, many(40), "ann", choose_next=Active(score, by, random_share=0.25))
    first = session.current
    seen = [number_in(shown.prompt) for shown in answer_all(session)]
    probabilities = [label.probability for label in store.labels()]
    favourites = [place for place, probability in enumerate(probabilities) if probability > 0.7]
    left = list(range(40))
    for place, number in enumerate(seen):
        favourite = min(left) if best == 0 else max(left)
        assert (number == favourite) == (place in favourites)
        chance = 0.25 / len(left)
        assert probabilities[place] == pytest.approx(chance + 0.75 * (number == favourite))
        left.remove(number)
    assert 22 <= len(favourites) <= 38 and sorted(seen) == list(range(40))
    session.undo(None)
    assert first.pair_id == LabellingSession(LabelStore(store.path.with_name("2.sqlite")), many(40), "ann",
                                             choose_next=Active(score, by)).current.pair_id


def test_active_selection_of_sets_and_bad_settings(store):
    flat = lambda prompts, answers: [0.0 if "(3)" in prompt else float(len(answer))     # noqa: E731
                                     for prompt, answer in zip(prompts, answers)]
    sets = [candidate_set(number, FOUR) for number in range(6)]
    session = LabellingSession(store, sets, "ann", task="rank", choose_next=Active(flat, random_share=0.01))
    assert "(3)" in session.current.prompt
    for settings, message in (({"by": "luck"}, '"margin" or "disagreement"'), ({"random_share": 0}, "above 0")):
        with pytest.raises(ValueError, match=message):
            Active(flat, **settings)
    with pytest.raises(ValueError, match="gave 1 scores for 24 answers"):
        LabellingSession(store, sets, "ann", task="rank", choose_next=Active(lambda prompts, answers: [1.0]))
    with pytest.raises(ValueError, match="needs an ensemble"):
        LabellingSession(store, sets, "ann", task="rank", choose_next=Active(flat, "disagreement"))


def live(session, name):
    return next((figure for figure in session.figures() if figure.name == name), None)


def test_the_strip_counts_and_hints_kindly(store, tmp_path):
    assert LabellingSession(LabelStore(tmp_path / "new.sqlite"), many(3), "ann").figures() == []
    calm = LabellingSession(store, many(30), "ann")
    answer_all(calm, lambda shown: "right" if len(shown.right.text) > len(shown.left.text) else "left")
    assert live(calm, "chose longer").value == "30 of 30" and "longer answer" in live(calm, "chose longer").hint
    assert live(calm, "chose left").value == "15 of 30" and not live(calm, "chose left").hint
    assert live(calm, "pace").value == "9 s each" and not live(calm, "pace").hint
    hasty = LabellingSession(store, many(30), "bob")
    while shown := hasty.current:
        hasty.choose(shown.pair_id, "left", shown_ms=700)
    assert live(hasty, "chose left").value == "30 of 30" and "left answer unusually often" in live(hasty, "chose left").hint
    words = (len("How do I sleep better? (10)") + len("Go to bed early. (10)") + len("Drink tea at night, and sing. (10)")) / 6
    assert live(hasty, "pace").hint.startswith(f"That is about {60 * words / 0.7:.0f} words a minute; most people read 240")


def test_an_undo_that_is_undone_brings_the_act_back(session):
    first = session.current.pair_id
    second = session.choose(first, "left").pair_id
    session.undo(second, act_id="u1")
    assert session.progress().saved == 0
    session.store.record(Event("undo", first, "ann", "test", undoes="u1"))
    assert session.progress().saved == 1
    again = LabellingSession(session.store, CANDIDATES, "ann", seed=1)
    assert again.current.pair_id == second and again.undo(second).pair_id == first


def test_two_notebooks_of_one_annotator_see_each_others_labels(session):
    other = LabellingSession(session.store, CANDIDATES, "ann", seed=1)
    session.choose(session.current.pair_id, "left")
    other.choose(other.current.pair_id, "right")               # a change of mind about the same pair
    assert other.progress().saved == session.progress().saved == 1
    assert other.current == session.current


# ---------------------------------------------------------------------------------------------------------------------
# The views

def press(view, text):
    view.buttons[text].click()


def test_view_saves_moves_on_and_counts(session):
    view = plain_view.PlainView(session, goal=4)
    seen = []
    for text in ("Left is better", "Right is better", "Both good", "Both bad", "Skip"):
        shown = session.current
        seen.append(shown)
        assert shown.left.text in view.left.value and shown.right.text in view.right.value
        press(view, text)
    said = {label.comparison_id: label for label in session.store.labels()}
    verdicts = [said[shown.pair_id].verdict for shown in seen]
    assert verdicts == [seen[0].left.id, seen[1].right.id, "tie_good", "tie_bad", "skip"]
    assert all(label.shown_ms is not None for label in said.values() if label.choice != "skip")
    assert "Saved 5 of 4 (1 skipped). That is enough" in view.message.value
    press(view, "Undo")
    press(view, "Undo")
    assert session.current == seen[3] and "Saved 3 of 4." in view.message.value


def test_view_at_the_end_and_back(store):
    view = plain_view.PlainView(LabellingSession(store, CANDIDATES[:1], "ann"))
    assert view.buttons["Undo"].disabled
    press(view, "Both good")
    assert "All pairs are done" in view.prompt.value and "Saved 1 of 1" in view.message.value
    assert [text for text, button in view.buttons.items() if not button.disabled] == ["Undo"]
    press(view, "Undo")
    assert "sleep better" in view.prompt.value and "Saved 0 of 1" in view.message.value


def test_view_refuses_a_second_click_on_a_pair_that_has_gone(session):
    view = plain_view.PlainView(session)
    button = view.buttons["Left is better"]
    button.click()
    button.click()
    assert "no longer on the screen" in view.message.value and 'role="alert"' in view.message.value
    assert session.progress().saved == 1
    press(view, "Left is better")
    assert session.progress().saved == 2


def test_view_refuses_the_second_half_of_a_double_click(session, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(plain_view, "TOO_QUICK_MS", 150)
    monkeypatch.setattr(plain_view, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    view = plain_view.PlainView(session)
    for pause, saved in ((0.2, 1), (0.1, 1), (0.2, 2)):
        clock[0] += pause
        press(view, "Left is better")
        assert session.progress().saved == saved and ("double click" in view.message.value) == (pause == 0.1)


def test_view_shows_a_failed_save_and_keeps_the_pair(session):
    view, shown = plain_view.PlainView(session), session.current
    connection = session.store._connect()
    connection.execute("PRAGMA query_only = ON")
    press(view, "Left is better")
    assert "cannot be written to" in view.message.value and 'role="alert"' in view.message.value
    assert session.current == shown and shown.left.text in view.left.value
    connection.execute("PRAGMA query_only = OFF")
    press(view, "Left is better")
    assert "Saved 1 of 20" in view.message.value


def test_view_shows_an_unforeseen_error_and_passes_it_on(session, monkeypatch, raises_in_callback):
    view = plain_view.PlainView(session)
    monkeypatch.setattr(session.store, "record", lambda event: 1 / 0)
    press(view, "Left is better")
    assert "ZeroDivisionError" in view.message.value and session.progress().saved == 0


def test_view_works_from_any_thread(session):
    view = plain_view.PlainView(session)
    for _ in range(4):
        thread = threading.Thread(target=press, args=(view, "Right is better"))
        thread.start()
        thread.join()
    button = view.buttons["Both bad"]
    threads = [threading.Thread(target=button.click) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert session.progress().saved == 5


def test_front_end_message_reaches_the_handler(session):
    view = plain_view.PlainView(session)
    view.buttons["Left is better"]._handle_custom_msg({"event": "click"}, [])
    assert session.progress().saved == 1


def test_model_text_is_shown_and_never_interpreted(store):
    nasty = "<script>alert(1)</script><img src=x onerror=alert(2)> [a](javascript:alert(3)) & \x1b[31m\x00 $x^2$"
    view = plain_view.PlainView(LabellingSession(store, [candidate_set(0, (nasty, "Plain.\n  indented"))], "ann"))
    shown = view.left.value + view.right.value
    assert "<script" not in shown and "<img" not in shown and "&lt;script&gt;" in shown and "&amp;" in shown
    assert "\x1b" not in shown and "\x00" not in shown and "␛[31m␀" in shown and "Plain.\n  indented" in shown
    assert "m0" not in shown and "m1" not in shown, "the annotator must not see which model it was"


def test_form_saves_at_once_and_goes_back_and_forth(tmp_path):
    path = tmp_path / "mine.jsonl"
    form = plain_view.instruction_form(path, topics=["sleep"])
    form.prompt.value = "How do I sleep better?"
    assert not path.exists() and "Not saved yet: write the completion" in form.message.value
    press(form, "New")
    assert form.prompt.value, "an unfinished pair is not thrown away"
    form.completion.value = "Keep one bedtime."
    assert "Saved: 1 pair in mine.jsonl." in form.message.value
    form.topic.value = "sleep"
    press(form, "New")
    form.prompt.value, form.completion.value = "And naps?", "Short ones."
    press(form, "Previous")
    form.completion.value = "Keep one bedtime, every day."
    press(form, "Next")
    assert form.prompt.value == "And naps?"
    assert formats.read_instructions(path) == [
        {"prompt": "How do I sleep better?", "completion": "Keep one bedtime, every day.", "topic": "sleep",
         "source": "human"},
        {"prompt": "And naps?", "completion": "Short ones.", "topic": "", "source": "human"}]


def test_form_keeps_what_it_cannot_edit(tmp_path):
    path = tmp_path / "mine.jsonl"
    message = formats.as_messages
    long = {"prompt": message("Hi", "user") + message("Hello", "assistant") + message("Naps?", "user"),
            "completion": message("Short.", "assistant"), "topic": "sleep", "source": "generated", "weight": 2}
    short = formats.to_conversational({"prompt": "Tea?", "completion": "Yes.", "topic": "food", "source": "generated"})
    formats.write_instructions(path, [long, short])
    form = plain_view.instruction_form(path)
    press(form, "Previous")
    form.completion.value = "Yes, green."
    assert formats.read_instructions(path) == [long, formats.to_conversational(
        {"prompt": "Tea?", "completion": "Yes, green.", "topic": "food", "source": "human"})]
    press(form, "Previous")
    assert form.prompt.disabled and "can only be read" in form.message.value
    form.prompt.value, form.completion.value = "", ""
    assert len(formats.read_instructions(path)) == 2


def test_form_rates_without_taking_over_the_text(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"prompt": "Naps?", "completion": "Short.", "topic": "sleep", "source": "generated"},
            formats.to_conversational({"prompt": "Tea?", "completion": "Yes.", "topic": "food", "source": "imported", "rating": 7})]
    formats.write_instructions(path, rows)
    form = plain_view.instruction_form(path)
    form.rating.value = 3
    assert "Not saved yet" in form.message.value, "there is nothing to rate in an empty form"
    press(form, "Previous")
    assert form.rating.value is None, "a rating that the form does not know is not shown as one it does"
    form.rating.value = 2
    press(form, "Previous")
    form.rating.value = 5
    assert formats.read_instructions(path) == [rows[0] | {"rating": 5}, rows[1] | {"rating": 2}]
    form.rating.value = None
    assert formats.read_instructions(path)[0] == rows[0]
    form.completion.value = "Twenty minutes."
    assert formats.read_instructions(path)[0] == rows[0] | {"completion": "Twenty minutes.", "source": "human"}


def test_form_shows_a_failed_save_and_keeps_the_text(tmp_path, monkeypatch):
    form = plain_view.instruction_form(tmp_path / "mine.jsonl")
    form.prompt.value = "Naps?"
    monkeypatch.setattr(plain_view, "write_instructions", lambda path, rows: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    form.completion.value = "Short."
    assert "No space left" in form.message.value and 'role="alert"' in form.message.value and form.completion.value == "Short."
    monkeypatch.undo()
    form.topic.value = "sleep"
    assert [row["completion"] for row in formats.read_instructions(form.path)] == ["Short."]


def test_form_does_not_overwrite_what_others_wrote(tmp_path):
    path = tmp_path / "mine.jsonl"
    form = plain_view.instruction_form(path)
    other = {"prompt": "p", "completion": "c", "topic": "", "source": "human"}
    formats.write_instructions(path, [other])
    form.prompt.value, form.completion.value = "mine", "too"
    assert "something else has changed" in form.message.value and formats.read_instructions(path) == [other]
    path.write_text("not json\n")
    with pytest.raises(formats.BadData):
        plain_view.instruction_form(path)


# ---------------------------------------------------------------------------------------------------------------------
# The export

def say(store, comparison, annotator, verdict, kind="simulated"):
    store.add_annotator(annotator, kind)
    if verdict in (0, 1):
        store.record(label(comparison, verdict, annotator))
    elif verdict == "skip":
        store.record(Event("skip", comparison.id, annotator, "test"))
    else:
        store.record(Event("label", comparison.id, annotator, "test", choice=verdict))


def test_export_counts_every_pair(store, tmp_path):
    votes = [(0, 0, 1), (1, 1, "tie_good"), ("tie_good", "tie_good", 0), ("tie_bad",) * 3, (0, 1), ("skip", "skip"), (),
             (0, 0, 0)]
    for number, given in enumerate(votes):
        comparison = pair(store, number, annotators=())
        for place, verdict in enumerate(given):
            say(store, comparison, f"sim{place}", verdict)
    say(store, comparison, "ann", 1, kind="person")              # against three simulated annotators
    path = tmp_path / "preferences.jsonl"
    audit = export_preferences(store, path)
    assert audit == formats.read_json(tmp_path / "preferences.audit.json") == {
        "pairs": 8, "kept": 3, "kept_by_person": 1,
        "dropped": {"not labelled": 1, "only skipped": 1, "both good": 1, "both bad": 1, "equal in a ranking": 0,
                    "votes split evenly": 1, "test of attention": 0, "test of the models in a chat": 0},
        "labels": {"human": 1, "simulated": 17, "skips": 2}, "not in the file": {"strengths": 0, "flags": 0, "comments": 0}}
    rows = formats.read_preferences(path)
    assert [row["annotator"] for row in rows] == ["sim0 + sim1", "sim0 + sim1", "ann"]
    assert [row["strength"] for row in rows] == [2 / 3, 2 / 3, 1]
    assert rows[0]["chosen"] == [{"role": "assistant", "content": "Go to bed early. (0)"}]
    assert rows[2]["rejected"] == [{"role": "assistant", "content": "Go to bed early. (7)"}]
    everyone = export_preferences(store, path, human_first=False)
    assert everyone["kept"] == 3 and formats.read_preferences(path)[2]["strength"] == 0.75


def test_export_of_a_finished_session(session, tmp_path):
    session.choose(session.current.pair_id, "left")
    session.finish([Fake("kind", 0), Fake("strict", 0), Fake("quick", 0)])
    audit = export_preferences(session.store, tmp_path / "preferences.jsonl")
    assert audit["kept"] == 20 and audit["kept_by_person"] == 1
    rows = formats.read_preferences(tmp_path / "preferences.jsonl")
    longer = [len(row["chosen"][0]["content"]) > len(row["rejected"][0]["content"]) for row in rows]
    assert sum(longer) >= 19
