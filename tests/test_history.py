"""What a session keeps up to date act by act, against the same computed from the whole store, and what an act costs."""
import random
import time
import uuid
from statistics import median

import pytest
from label_makers import many

from rlhf_helpers.labelling.history import AGAIN, showing
from rlhf_helpers.labelling.log import export_log, import_log
from rlhf_helpers.labelling.selection import Active
from rlhf_helpers.labelling.session import GOLD_EVERY, REPEAT_GAP, LabellingSession, StaleAct, _number
from rlhf_helpers.labelling.store import Event, LabelStore

LabelWidget = pytest.importorskip("rlhf_helpers.labelling.widget", reason="anywidget is not installed").LabelWidget

SETS = many(16)
GOLD = [{"prompt": f"Say something kind. ({each})", "chosen": "You are welcome here.", "rejected": "Go away."} for each in range(4)]
UNSURE = Active(lambda prompts, answers: [sum(map(ord, answer)) % 11 for answer in answers], random_share=0.5)


def open_session(store, active=None):
    return LabellingSession(store, SETS, "ann", seed=3, repeats=0.5, gold=GOLD, choose_next=active)


# ---------------------------------------------------------------------------------------------------------------------
# The plain computation: everything, from the view of the database

def standing(session):
    rows = session.store._rows("SELECT * FROM current_label WHERE annotator = ? ORDER BY seq", session.annotator)
    events = [Event.from_row(row) for row in rows]
    return {showing(event): event for event in events if event.comparison_id in session._all}


def plain_next(session, active):
    acts = standing(session)
    new = [pair_id for pair_id in session._pairs if pair_id not in acts]
    gold = [pair_id for pair_id in session._gold if pair_id not in acts]
    again = {act.comparison_id for act in acts.values() if act.round}
    old = [act.comparison_id for act in list(acts.values())[:-REPEAT_GAP]
           if act.kind == "label" and act.comparison_id in session._pairs and act.comparison_id not in again]
    if old and len(again) < min(session._repeats, int(0.5 * (len(session._pairs) - len(new)))):
        return min(old, key=lambda pair_id: _number(session.seed, "again", pair_id)) + AGAIN
    number = _number(session.seed, session.annotator, "gold", len(acts) // GOLD_EVERY)
    if gold and (not new or len(acts) % GOLD_EVERY == number % GOLD_EVERY):
        return gold[0]
    if not new:
        return None
    lot = random.Random(_number(session.seed, session.annotator, "lot", len(acts))).random()
    by_lot = active is None or lot < active.random_share
    return new[0] if by_lot else max(new, key=active.interest(session._pairs.values()).__getitem__)


def plain_figures(session):
    acts = list(standing(session).values())
    labels = [act for act in acts if act.kind == "label"]
    first = [act for act in labels if act.round == 0]
    preferred = [act for act in first if act.preferred]
    longer = [(act.preferred, session._all[act.comparison_id].longer) for act in preferred]
    longer = [chosen == longest for chosen, longest in longer if longest]
    verdicts = {(act.comparison_id, act.round): (act.choice, act.preferred) for act in labels}
    same = [verdict == verdicts[pair_id, 0] for (pair_id, again), verdict in verdicts.items() if again and (pair_id, 0) in verdicts]
    gold = [act.preferred == session._all[act.comparison_id].gold for act in first if session._all[act.comparison_id].gold]
    seconds = [act.shown_ms / 1000 for act in first[-20:] if act.shown_ms]
    shares = {"chose left": [act.preferred == act.shown_order[0] for act in preferred], "chose longer": longer,
              "same when asked again": same, "known answers": gold}
    return ({"pace": f"{median(seconds):.0f} s each"} if seconds else {}) | {
        name: f"{sum(hits)} of {len(hits)}" for name, hits in shares.items() if hits}


def check(session, active):
    acts, progress = standing(session), session.progress()
    assert (progress.saved, progress.skipped) == (len(acts), sum(act.kind == "skip" for act in acts.values()))
    assert {figure.name: figure.value for figure in session.figures()} == plain_figures(session)
    assert session._next() == plain_next(session, active)
    assert session.can_undo() == bool(acts)
    assert list(session._history.standing.items()) == list(acts.items())


def act(session, rng):
    """Something that a person might do, on what this session shows, which another may have judged meanwhile."""
    shown = session.current
    if rng.random() < 0.25 or shown is None:
        session.undo(shown and shown.pair_id)
    elif rng.random() < 0.15:
        session.skip(shown.pair_id)
    else:
        session.choose(shown.pair_id, rng.choice(["left", "left", "right", "tie_good", "tie_bad"]), rng.randrange(500, 9000))


def undo_anything(session, rng):
    """What no view does, and a log may hold: any act or undo is undone, perhaps for the second time."""
    done = [event for event in session._history.update().known.values() if event.comparison_id in session._all]
    if done:
        event = rng.choice(done)
        session.store.record(Event("undo", event.comparison_id, "ann", "elsewhere", undoes=event.id))


@pytest.mark.parametrize("active", [None, UNSURE], ids=["random", "active"])
@pytest.mark.parametrize("seed", range(3))
def test_kept_up_to_date_is_the_same_as_computed_anew(store, tmp_path, active, seed):
    rng, log = random.Random(seed), tmp_path / "log.jsonl"
    sessions, away = [open_session(store, active), open_session(store, active)], open_session(LabelStore(tmp_path / "away.sqlite"))
    for _ in range(100):
        what, place = rng.random(), rng.randrange(2)
        if what < 0.05:
            sessions[place] = open_session(store, active)               # a restart
        elif what < 0.15:
            undo_anything(sessions[place], rng)
        elif what < 0.25:
            act(away, rng)                                              # on another computer, and brought here
            export_log(away.store, log)
            import_log(store, log)
        else:
            act(sessions[place], rng)
        for session in sessions:
            check(session, active)


def test_the_same_act_undone_by_two_notebooks_is_undone(store):
    one, other = open_session(store), open_session(store)
    pair = one.current.pair_id
    one.choose(pair, "left", act_id="a1")
    assert other.can_undo()
    for name in ("u1", "u2"):
        store.record(Event("undo", pair, "ann", "at once", undoes="a1", id=name))
    assert not one.can_undo() and not other.can_undo() and one.progress().saved == len(store.labels()) == 0
    with pytest.raises(StaleAct):
        one.choose(pair, "left")


# ---------------------------------------------------------------------------------------------------------------------
# What an act costs

def at_work(path, pairs, labels):
    """The widget of somebody who has done so many of the pairs."""
    session = LabellingSession(LabelStore(path), many(pairs), "ann", repeats=0.1)
    session.store.record(*(session._event(session._shown(pair_id), **session._judgement(pair_id, "left", 900, None))
                           for pair_id in list(session._pairs)[:labels]))
    return LabelWidget(LabellingSession(session.store, many(pairs), "ann", repeats=0.1))


def seconds(shown, act, **more):
    """What one act costs this process, from the message of the browser to what is to be drawn next."""
    message = {"act": act, "id": uuid.uuid4().hex, "pair": shown.state["shown"]["id"], "resent": False} | more
    started = time.thread_time()
    shown.take(message)
    assert shown.state["answer"]["kind"] == "saved"
    return time.thread_time() - started


def test_ten_thousand_pairs_are_as_quick_as_ten(tmp_path):
    """Measured in turn, so that what else this computer does slows down both; a walk through all acts costs tens of times as much."""
    few, all_of_them = at_work(tmp_path / "few.sqlite", 80, 10), at_work(tmp_path / "many.sqlite", 10_000, 9_900)
    chosen, undone = [], []
    for _ in range(21):
        chosen.append([seconds(shown, "choose", choice="left", ms=900, strength=None) for shown in (few, all_of_them)])
    for _ in range(11):
        undone.append([seconds(shown, "undo") for shown in (few, all_of_them)])
    for name, times in (("choosing", chosen), ("undoing", undone)):
        with_few, with_many = (1000 * median(column) for column in zip(*times, strict=True))
        print(f"{name}: {with_few:.1f} ms with 10 labels of 80 pairs, {with_many:.1f} ms with 9,900 of 10,000")
        assert with_many < 3 * with_few
