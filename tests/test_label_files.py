"""What goes out of the label store and comes back, what older and broken files do, and what a crash leaves."""
import csv
import json
import sqlite3
import threading
import time
from types import SimpleNamespace

import pytest
from label_makers import CANDIDATES, FOUR, candidate_set

from rlhf_helpers import formats
from rlhf_helpers.labelling import export, importing, log, ratings
from rlhf_helpers.labelling import store as store_module
from rlhf_helpers.labelling.chat import Chat
from rlhf_helpers.labelling.session import LabellingSession
from rlhf_helpers.labelling.store import LabelStore, StoreError


@pytest.fixture
def store(tmp_path):
    """Pairs judged in all ways by two persons, with an undo, a repeat, gold and rankings."""
    store = LabelStore(tmp_path / "labels.sqlite")
    gold = [{"prompt": "Say hello.", "chosen": "Hello.", "rejected": "Go away."}]
    for name, choices in (("ann", ("left", "right", "tie_good", "tie_bad")), ("bob", ("left", "left", "right", "tie_good"))):
        session = LabellingSession(store, CANDIDATES[:14], name, gold=gold, repeats=0.2)
        for place in range(16 if name == "ann" else 3):
            if session.current:
                session.choose(session.current.pair_id, choices[place % 4], 1500 + place, strength=("slightly", None)[place % 2],
                               flags=[["unsafe", "wrong"], []] if place == 3 else (), note="=1+1" if place == 4 else "")
        session.undo(session.current.pair_id if session.current else None)
        session.skip(session.current.pair_id, "I cannot tell")
        ranks = LabellingSession(store, [candidate_set(90, FOUR), candidate_set(91, FOUR)], name, task="rank")
        ranks.rank(ranks.current.pair_id, [[4, 2], [1], [3]])
    return store


def read(path):
    return path.read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# The log

def test_the_log_goes_out_and_comes_back_byte_for_byte(store, tmp_path):
    counts = log.export_log(store, tmp_path / "log.jsonl")
    assert counts["event"] == len(store.events()) and counts["annotator"] == 2
    other = LabelStore(tmp_path / "other.sqlite")
    audit = log.import_log(other, tmp_path / "log.jsonl")
    assert audit == {"added": counts, "known": 0, "left out": []}
    log.export_log(other, tmp_path / "again.jsonl")
    assert read(tmp_path / "again.jsonl") == read(tmp_path / "log.jsonl")
    assert (other.labels(), other.repeats(), other.gold_labels()) == (store.labels(), store.repeats(), store.gold_labels())
    again = log.import_log(other, tmp_path / "log.jsonl")
    assert sum(again["added"].values()) == 0 and again["known"] == sum(counts.values())


def test_logs_of_two_places_come_together(store, tmp_path):
    here = LabelStore(tmp_path / "here.sqlite")
    session = LabellingSession(here, CANDIDATES[:14], "cleo")
    session.choose(session.current.pair_id, "left")
    log.export_log(store, tmp_path / "log.jsonl")
    log.import_log(here, tmp_path / "log.jsonl")
    assert {label.annotator for label in here.labels()} == {"ann", "bob", "cleo"}
    assert len(here.labels()) == len(store.labels()) + 1


def test_a_torn_last_line_is_reported_and_the_rest_kept(store, tmp_path):
    path, other = tmp_path / "log.jsonl", LabelStore(tmp_path / "other.sqlite")
    log.export_log(store, path)
    path.write_bytes(path.read_bytes()[:-30])
    audit = log.import_log(other, path)
    assert len(audit["left out"]) == 1 and "is cut off" in audit["left out"][0]
    assert len(other.events()) == len(store.events()) - 1


@pytest.mark.parametrize("bad, message", [
    ('{"table": "opinions"}', 'line 2, field "table": is not a table of the label store. Fix: use one of comparison'),
    ("[1]", 'line 2, field "table"'), ("{", "line 2: is not valid JSON"),
    ('{"table": "annotator", "name": "eve", "kind": "robot", "created_at": "now"}', "line 2: does not fit the table annotator"),
    ('{"table": "annotator", "name; --": "eve"}', 'field "name; --": is not the name of a column'),
    ('{"table": "annotator", "name": ["eve"]}', 'field "name": is list, which a table cannot hold'),
])
def test_a_bad_line_of_a_log_is_named_and_nothing_imported(tmp_path, bad, message):
    path, store = tmp_path / "log.jsonl", LabelStore(tmp_path / "new.sqlite")
    path.write_text('{"table": "annotator", "name": "ann", "kind": "person", "created_at": "now"}\n' + bad + "\n")
    with pytest.raises(formats.BadData) as caught:
        log.import_log(store, path)
    assert message in str(caught.value) and "log.jsonl" in str(caught.value) and store.rows("annotator") == []


def of(rows, table, **wanted):
    return next(row for row in rows if row["table"] == table and all(row[name] == value for name, value in wanted.items()))


@pytest.mark.parametrize("table, change, message", [
    ("comparison", {"prompt": "plain text"}, 'line 1, field "prompt": is not a JSON list of messages'),
    ("comparison", {"prompt": '[{"role": "user"}]'}, 'line 1, field "prompt[0]": is not a message'),
    ("comparison", {"prompt": "[" * 100_000}, 'field "prompt": is not a JSON list of messages'),
    ("comparison", {"prompt": '[{"role": "user", "content": "Another."}]'}, "line 1: belongs to a comparison whose id was made of another"),
    ("response", {"params": "{"}, 'field "params": is not a JSON object'),
    ("response", {"text": "Another."}, 'field "id": is not the id of this text'),
    ("response", {"text": "\ud800"}, 'field "text": holds half of a character'),
    ("response", {"text": None}, 'field "text": is missing'),
    ("response", {"ordinal": "x"}, 'field "ordinal": is str, which a table cannot hold here. Fix: write a number'),
    ("response", {"comparison_id": "elsewhere"}, "line 1: is a comparison of 1 answers, those in the store included"),
    ("annotator", {"kind": "simulated"}, 'field "kind": is simulated, and "ann" is person in the store or further up'),
    ("event", {"shown_order": "x"}, 'field "shown_order": is not a JSON list of the ids of the answers'),
    ("event", {"shown_order": "[]"}, 'field "shown_order": is not'),
    ("event", {"shown_order": '[["a"], 1]'}, 'field "shown_order": is not'),
    ("event", {"ranking": '[["zzz"]]'}, 'field "ranking": is not JSON lists that hold the id of each answer once'),
    ("event", {"ranking": "7"}, 'field "ranking": is not'), ("event", {"flags": "7"}, 'field "flags": is not a JSON object'),
    ("event", {"flags": '{"zzz": []}'}, 'field "flags": is not'), ("event", {"shown_ms": 2**70}, 'field "shown_ms": is too large a number'),
    ("event", {"probability": 1e999}, "is not valid JSON"), ("event", {"seq": 2**63 - 1}, 'field "seq": is not the name of a column'),
    ("event", {"Flags": "7"}, 'field "Flags": is not the name of a column'),
])
def test_a_log_that_the_store_could_not_read_is_refused(store, tmp_path, table, change, message):
    """Nothing can be taken out of a store again, so one such row would end it."""
    path, other = tmp_path / "log.jsonl", LabelStore(tmp_path / "other.sqlite")
    LabellingSession(other, CANDIDATES[15:16], "ann")
    before = [other.rows(name) for name in store_module.TABLES]
    log.export_log(store, path)
    rows = [json.loads(line) for line in read(path).splitlines()]
    of(rows, table).update(change)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(formats.BadData) as caught:
        log.import_log(other, path)
    assert f"log.jsonl, {message}" in str(caught.value) or message in str(caught.value) and "log.jsonl, line " in str(caught.value)
    assert "Nothing was imported" in str(caught.value) and [other.rows(name) for name in store_module.TABLES] == before


def test_a_choice_between_more_than_two_answers_is_refused(store, tmp_path):
    path, other = tmp_path / "log.jsonl", LabelStore(tmp_path / "other.sqlite")
    log.export_log(store, path)
    rows = [json.loads(line) for line in read(path).splitlines()]
    next(row for row in rows if row.get("ranking"))["choice"] = "tie_bad"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(formats.BadData, match='field "choice": is for two answers, and the comparison has 4'):
        log.import_log(other, path)


def test_answers_may_be_in_the_store_already(store, tmp_path):
    path, other = tmp_path / "log.jsonl", LabelStore(tmp_path / "other.sqlite")
    LabellingSession(other, [CANDIDATES[0]], "ann")
    log.export_log(LabelStore(other.path), path)
    rows = [line for line in read(path).splitlines() if json.loads(line)["table"] == "comparison"]
    path.write_text(rows[0] + "\n", encoding="utf-8")
    assert log.import_log(other, path)["known"] == 1
    with pytest.raises(formats.BadData, match="line 1: is a comparison of 0 answers"):
        log.import_log(LabelStore(tmp_path / "empty.sqlite"), path)


# ---------------------------------------------------------------------------------------------------------------------
# Preferences, judgements, rankings, tables, folders

def preferences_of(path):
    return {(formats.as_text(row["prompt"]), formats.as_text(row["chosen"]), formats.as_text(row["rejected"]), row["annotator"])
            for row in formats.read_preferences(path)}


@pytest.mark.parametrize("plain", [False, True])
def test_preferences_go_out_and_come_back(store, tmp_path, plain):
    path = tmp_path / "preferences.jsonl"
    audit = export.export_preferences(store, path, plain=plain)
    assert audit["pairs"] == audit["kept"] + sum(audit["dropped"].values()) and audit["kept"] > 4
    assert audit["dropped"]["test of attention"] == 1 and audit["not in the file"]["strengths"] > 3
    assert isinstance(formats.read_preferences(path)[0]["prompt"], str) == plain
    other = LabelStore(tmp_path / "other.sqlite")
    back = importing.import_preferences(other, path)
    assert back["rows"] == audit["kept"] and back["known"] == 0
    assert importing.import_preferences(other, path)["added"] == 0
    export.export_preferences(other, tmp_path / "again.jsonl")
    assert preferences_of(tmp_path / "again.jsonl") == preferences_of(path)


def test_kto_is_what_the_pairs_say(tmp_path):
    """Answer A beats B and loses to nothing, C ties with D as bad, and E is judged both ways."""
    store = LabelStore(tmp_path / "labels.sqlite")
    makers = [("A", "B", "A"), ("C", "D", "tie_bad"), ("E", "F", "E"), ("G", "E", "G"), ("I", "J", "tie_good")]
    for one, other, verdict in makers:
        answers = [{"id": text, "text": text, "model": "m", "settings": {}} for text in (one, other)]
        session = LabellingSession(store, [{"prompt": "p", "responses": answers}], "ann")
        shown = session.current
        session.choose(shown.pair_id, verdict if "tie" in verdict else ("left" if shown.left.text == verdict else "right"))
    audit = export.export_kto(store, tmp_path / "kto.jsonl")
    rows = {formats.as_text(row["completion"]): row["label"] for row in formats.read_judgements(tmp_path / "kto.jsonl")}
    assert rows == {"A": True, "B": False, "C": False, "D": False, "F": False, "G": True, "I": True, "J": True}
    assert audit == {"answers": 9, "kept": 8, "good": 4, "dropped": {"no verdict": 0, "judged both ways": 1, "test": 0}}
    other = LabelStore(tmp_path / "other.sqlite")
    assert importing.import_kto(other, tmp_path / "kto.jsonl", "eve") == {
        "rows": 8, "added": 4, "known": 0, "dropped": {"no counterpart": 0}}
    assert {label.annotator for label in other.labels()} == {"eve"}
    (tmp_path / "bad.jsonl").write_text('{"prompt": "p", "completion": "c", "label": "yes"}\n')
    with pytest.raises(formats.BadData, match='bad.jsonl, line 1, field "label": is \'yes\'. Fix: write true'):
        importing.import_kto(other, tmp_path / "bad.jsonl", "eve")


def test_rankings_go_out_and_come_back(store, tmp_path):
    audit = export.export_rankings(store, tmp_path / "rankings.jsonl")
    assert audit["kept"] == 2 and audit["sets"] - 2 <= audit["dropped"]["not ranked"] <= 1
    other = LabelStore(tmp_path / "other.sqlite")
    assert importing.import_rankings(other, tmp_path / "rankings.jsonl") == {"rows": 2, "added": 2, "known": 0, "dropped": {}}
    assert [event.ranking for event in other.rankings()] == [event.ranking for event in store.rankings()]
    (tmp_path / "two.jsonl").write_text('{"prompt": "p", "ranking": [["a"], ["a"]], "annotator": "x"}\n')
    assert importing.import_rankings(other, tmp_path / "two.jsonl")["dropped"] == {"not two to nine different answers": 1}


def test_votes_of_a_chat_are_a_test_and_train_nothing(store, tmp_path):
    """The chat of notebook 09 is the last exam: what it asks must not be what the next round was trained on."""
    before = [export_one(store, tmp_path / "before.jsonl") for export_one in (export.export_preferences, export.export_kto)]
    chat = Chat({"sft": lambda prompt: "Sleep.", "dpo": lambda prompt: "Sleep well.", "base": lambda prompt: "Tea."}, store, "ann")
    session = chat.ask("Tired?")
    session.rank(session.current.pair_id, [[1], [2], [3]], confirmed=True)
    pairs, kto, ranked = (export_one(store, tmp_path / "after.jsonl") for export_one in (
        export.export_preferences, export.export_kto, export.export_rankings))
    assert pairs["dropped"]["test of the models in a chat"] == pairs["pairs"] - before[0]["pairs"] == 3
    assert pairs["kept"] == before[0]["kept"]
    assert kto["kept"] == before[1]["kept"] and kto["dropped"]["test"] == before[1]["dropped"]["test"] + 3
    assert ranked["dropped"]["test"] == 1 and not any("Tired?" in str(row) for row in formats.read_rankings(tmp_path / "after.jsonl"))
    assert len(ratings.games(store, [label for label in store.labels() if label.group == session.first.pair_id])) == 3
    assert export.export_table(store, tmp_path / "all.csv")["kept"] == len(store.labels())


def test_a_candidate_pair_stays_one_when_a_chat_has_it_too(tmp_path):
    store = LabelStore(tmp_path / "labels.sqlite")
    texts = ("Sleep.", "Sleep well.")
    answers = [{"id": text, "text": text, "model": "sft", "settings": {}} for text in texts]
    session = LabellingSession(store, [{"prompt": "Tired?", "responses": answers}], "ann")
    session.choose(session.current.pair_id, "left")
    Chat(dict(zip("abc", map(lambda text: lambda prompt: text, (*texts, "Tea.")))), store, "ann").ask("Tired?")
    audit = export.export_preferences(store, tmp_path / "preferences.jsonl")
    assert (audit["pairs"], audit["kept"], audit["dropped"]["test of the models in a chat"]) == (3, 1, 2)


def test_two_answers_can_be_ranked_too(tmp_path):
    store = LabelStore(tmp_path / "labels.sqlite")
    session = LabellingSession(store, [candidate_set(0), candidate_set(1, FOUR)], "ann", task="rank")
    while shown := session.current:
        session.rank(shown.pair_id, [[2], [1], *([[3], [4]] if len(shown.answers) == 4 else [])])
    assert export.export_rankings(store, tmp_path / "rankings.jsonl")["kept"] == 2
    assert export.export_preferences(store, tmp_path / "preferences.jsonl")["kept"] == 1 + 6


def test_the_table_goes_out_and_comes_back(store, tmp_path):
    audit = export.export_table(store, tmp_path / "labels.csv")
    with (tmp_path / "labels.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == audit["kept"] and {row["comment"] for row in rows} == {"", "'=1+1", "I cannot tell"}
    assert {row["left flags"] for row in rows} == {"", "unsafe, wrong"}
    other = LabelStore(tmp_path / "other.sqlite")
    back = importing.import_table(other, tmp_path / "labels.csv")
    ties = sum(row["choice"] == "tie" for row in rows)
    assert back["added"] == len(rows) - ties and back["dropped"] == {"equal in a ranking": ties}
    say = lambda store: {(label.comparison_id, label.annotator, label.verdict, label.strength, label.shown_ms, label.comment,      # noqa: E731
                          str(label.flags), label.shown_order) for label in store.labels() if label.choice != "tie"}
    assert say(other) == say(store)


HEAD = "prompt,left,right,choice,annotator,comment,kind\n"


def table_of(path, *rows):
    path.write_text(HEAD + "".join(f"p,a,b,{row}\n" for row in rows), encoding="utf-8")
    return path


def test_of_what_an_annotator_says_the_last_row_stands(tmp_path):
    store, path = LabelStore(tmp_path / "labels.sqlite"), tmp_path / "labels.csv"
    says = lambda: [(label.verdict, label.comment) for label in store.labels()]                             # noqa: E731
    a, b = (store_module.Response(text).id for text in "ab")
    for choice, comment, wanted in (("left", "", a), ("right", "", b), ("left", "", a), ("left", "sure", a), ("tie_bad", "", "tie_bad")):
        table_of(path, f"{choice},bob,{comment},person")
        assert [importing.import_table(store, path)["added"] for _ in range(2)] == [1, 0] and says() == [(wanted, comment or None)]
    table_of(path, "left,bob,,person", "right,bob,,person", "left,bob,again,person")
    audits = [importing.import_table(store, path) for _ in range(2)]
    assert [audit["added"] for audit in audits] == [1, 0] and says() == [(a, "again")]
    assert audits[1] == {"rows": 3, "added": 0, "known": 1, "dropped": {"said again further down": 2}}


def test_a_file_that_has_no_room_for_a_comment_does_not_wipe_it(tmp_path):
    store = LabelStore(tmp_path / "labels.sqlite")
    importing.import_table(store, table_of(tmp_path / "labels.csv", "left,bob,sure,person"))
    export.export_preferences(store, tmp_path / "preferences.jsonl")
    assert importing.import_preferences(store, tmp_path / "preferences.jsonl")["known"] == 1
    assert [label.comment for label in store.labels()] == ["sure"]


def test_simulated_labels_come_back_as_simulated(tmp_path):
    store, path = LabelStore(tmp_path / "labels.sqlite"), tmp_path / "labels.csv"
    for name, kind in (("ann", "person"), ("robo", "simulated")):
        session = LabellingSession(store, CANDIDATES[:2], name, kind=kind)
        session.choose(session.current.pair_id, "left", 900)
    export.export_table(store, path)
    other = LabelStore(tmp_path / "other.sqlite")
    importing.import_table(other, path)
    assert [(label.annotator, label.kind) for label in other.labels()] == [("ann", "person"), ("robo", "simulated")]
    path.write_text(read(path).replace(",kind,", ",sort,"), encoding="utf-8")
    importing.import_table(LabelStore(tmp_path / "third.sqlite"), path, kind="simulated")
    assert {label.kind for label in LabelStore(tmp_path / "third.sqlite").labels()} == {"simulated"}


@pytest.mark.parametrize("names", ["bob + ", " + ", " + bob"])
def test_annotators_without_a_name_are_named(tmp_path, names):
    path, store = tmp_path / "preferences.jsonl", LabelStore(tmp_path / "labels.sqlite")
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "annotator": "ann", "strength": 1}
    path.write_text(json.dumps(row) + "\n\n" + json.dumps(row | {"annotator": names}) + "\n")
    for read_one, place in ((importing.import_preferences, path), (importing.import_dataset, tmp_path)):
        with pytest.raises(formats.BadData, match='preferences.jsonl, line 3, field "annotator": is .* Fix: write the name'):
            read_one(store, place)
    assert store.rows("annotator") == []
    assert importing.import_preferences(store, path, bad="keep_good")["added"] == 1
    formats.write_judgements(tmp_path / "kto.jsonl", [{"prompt": "p", "completion": text, "label": text == "a"} for text in "ab"])
    with pytest.raises(ValueError, match="an annotator needs a name"):
        importing.import_kto(store, tmp_path / "kto.jsonl", " ")


def test_words_that_begin_with_an_apostrophe_stay_whole(tmp_path):
    path, store = tmp_path / "others.csv", LabelStore(tmp_path / "labels.sqlite")
    path.write_text("prompt,left,right,choice,annotator\nWhen?,'Tis the season.,'=1+1,left,ann\n")
    importing.import_table(store, path)
    assert [answer.text for answer in store.comparisons()[0].responses] == ["'Tis the season.", "=1+1"]


@pytest.mark.parametrize("text, message", [
    ("prompt,left,right\n", 'labels.csv, line 1, field "choice": is missing'),
    ("prompt,left,right,choice,annotator\np,a,b,left,x\np,a,a,both,\n", 'line 3, field "annotator": is empty'),
    ("prompt,left,right,choice,annotator\np,a,b,best,x\n", "field \"choice\": is 'best'. Fix: use one of left, right"),
    ("prompt,left,right,choice,annotator,seconds\np,a,b,left,x,fast\n", "field \"seconds\": is 'fast'"),
    ("prompt,left,right,choice,annotator,seconds\np,a,b,left,x," + "9" * 30 + "\n", "line 2, field \"seconds\": is '999"),
    ("prompt,left,right,choice,annotator,seconds\np,a,b,left,x," + "9" * 400 + "\n", "line 2, field \"seconds\": is '999"),
    (f"{HEAD}p,a,b,left,x,,person\np,a,b,left,y,,robot\n", "line 3, field \"kind\": is 'robot'. Fix: use one of person, simulated"),
    (f"{HEAD}p,a,b,left,x,,person\np,a,c,left,x,,simulated\n", "line 3, field \"kind\": is simulated, and further up 'x' is person"),
    ('prompt,left,right,choice,annotator\np,"a', "is not valid CSV"),
])
def test_a_bad_table_is_named(tmp_path, text, message):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(formats.BadData) as caught:
        importing.import_table(LabelStore(tmp_path / "new.sqlite"), path)
    assert message in str(caught.value)


def test_a_cell_may_be_long(tmp_path):
    path, store = tmp_path / "labels.csv", LabelStore(tmp_path / "labels.sqlite")
    path.write_text(f"prompt,left,right,choice,annotator\n{'p' * 200_000},a,b,left,x\n")
    assert importing.import_table(store, path)["added"] == 1


def test_a_dataset_folder_is_read_by_datasets_and_by_us(store, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "mine"
    audit = export.export_dataset(store, folder, held_out=0.25)
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    parts = {name: {row["prompt"][0]["content"] for row in loaded[name]} for name in ("train", "test")}
    assert parts["test"] and not parts["train"] & parts["test"]
    assert loaded["train"].num_rows + loaded["test"].num_rows == audit["kept"]
    other = LabelStore(tmp_path / "other.sqlite")
    assert importing.import_dataset(other, folder)["rows"] == audit["kept"]
    with pytest.raises(FileExistsError, match="overwrites nothing"):
        export.export_dataset(store, folder)
    with pytest.raises(FileNotFoundError, match="no .*jsonl in this folder"):
        importing.import_dataset(other, tmp_path / "cache" / "nothing")


# ---------------------------------------------------------------------------------------------------------------------
# Older, locked and full files

def as_version_1(path, tmp_path):
    """A file as the first version of the package made it, with two labels and an undo."""
    session = LabellingSession(LabelStore(path), CANDIDATES[:3], "ann")
    session.choose(session.current.pair_id, "left")
    session.choose(session.current.pair_id, "right")
    session.undo(session.current.pair_id)
    verdicts = [label.verdict for label in session.store.labels()]
    session.store.close()
    connection = sqlite3.connect(path)
    for statement in ("DROP VIEW current_label", "DROP VIEW live", "ALTER TABLE event DROP COLUMN round",
                      "ALTER TABLE event DROP COLUMN probability", "CREATE VIEW live AS SELECT * FROM event",
                      "CREATE VIEW current_label AS SELECT * FROM live", "PRAGMA user_version = 1"):
        connection.execute(statement)
    connection.close()
    return verdicts


def test_an_older_file_is_brought_up_to_date_and_kept_beside(tmp_path):
    path = tmp_path / "labels.sqlite"
    verdicts = as_version_1(path, tmp_path)
    old = sqlite3.connect(path).execute("SELECT count(*) FROM event").fetchone()
    store = LabelStore(path)
    assert [label.verdict for label in store.labels()] == verdicts and len(verdicts) == 1
    session = LabellingSession(store, CANDIDATES[:3], "ann")
    assert session.progress().saved == 1 and session.choose(session.current.pair_id, "left")
    assert store.labels()[1].probability is None or store.labels()[1].probability == 0.5
    kept = sqlite3.connect(tmp_path / "labels.version-1.sqlite")
    assert kept.execute("PRAGMA user_version").fetchone() == (1,)
    assert kept.execute("SELECT count(*) FROM event").fetchone() == old
    assert LabelStore(path).events() == store.events()


def test_two_notebooks_bring_a_file_up_to_date_at_once(tmp_path):
    path, errors = tmp_path / "labels.sqlite", []
    as_version_1(path, tmp_path)
    def work():
        try:
            LabelStore(path).labels()
        except Exception as error:
            errors.append(error)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(LabelStore(path).labels()) == 1


def test_backup_copies_and_overwrites_nothing(store, tmp_path):
    copy = store.backup(tmp_path / "copy.sqlite")
    assert LabelStore(copy).events() == store.events()
    with pytest.raises(StoreError, match="copy.sqlite: there is a file of that name"):
        store.backup(copy)
    with pytest.raises(StoreError, match="nowhere/copy.sqlite: it cannot be opened"):
        store.backup(tmp_path / "nowhere" / "copy.sqlite")


def test_a_backup_that_is_broken_off_is_none(store, tmp_path, monkeypatch):
    path = tmp_path / "copy.sqlite"

    def broken(copy):
        copy.execute("CREATE TABLE half(a)")
        assert not path.exists()                                    # what a kill would leave now is no backup
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "_connect", lambda: SimpleNamespace(backup=broken))
        with pytest.raises(KeyboardInterrupt):
            store.backup(path)
    assert [file.name for file in tmp_path.iterdir()] == [store.path.name]
    assert LabelStore(store.backup(path)).events() == store.events()


def test_a_locked_file_is_waited_for_and_then_named(store, monkeypatch):
    monkeypatch.setattr(store_module, "PATIENCE", 0.2)
    session = LabellingSession(LabelStore(store.path), CANDIDATES, "cleo")
    other = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="labels.sqlite: another notebook keeps it locked"):
        session.choose(session.current.pair_id, "left")
    other.execute("ROLLBACK")
    assert session.progress().saved == 0
    monkeypatch.setattr(store_module, "PATIENCE", 20)
    patient = LabellingSession(LabelStore(store.path), CANDIDATES, "cleo")
    other.execute("BEGIN EXCLUSIVE")
    threading.Timer(0.5, other.execute, ["ROLLBACK"]).start()
    started = time.monotonic()
    patient.choose(patient.current.pair_id, "left")
    assert patient.progress().saved == 1 and time.monotonic() - started > 0.3
