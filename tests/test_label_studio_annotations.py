"""Label Studio's annotations: which make a label, which do not and why, and which are listed as careless."""
from itertools import combinations

import pytest

from rlhf_helpers.labelling.label_studio_annotations import PAIRWISE, RANKING, Audit, layout_of, record_tasks
from rlhf_helpers.labelling.store import Comparison, Response

PAIRS, RANKS = (layout_of(path.read_text(encoding="utf-8")) for path in (PAIRWISE, RANKING))
TUTORIAL = layout_of('<View><Text name="prompt" value="$prompt"/><Pairwise name="comparison" toName="answer1,answer2"/>'
                     '<Text name="answer1" value="$answer1"/><Text name="answer2" value="$answer2"/></View>')
SWAPPED = layout_of('<View><Text name="prompt" value="$prompt"/><Pairwise name="comparison" toName="two, one"/>'
                    '<Text name="one" value="$answer1"/><Text name="two" value="$answer2"/></View>')
BUCKETS = layout_of('<View><Text name="prompt" value="$prompt"/><List name="list" value="$items"/><Ranker name="rank" toName="list">'
                    '<Bucket name="good"/><Bucket name="fair"/><Bucket name="bad"/></Ranker></View>')
PAIR = {"prompt": "How do I sleep better?", "left": "Go to bed early.", "right": "Drink coffee."}
OLD_PAIR = {"prompt": PAIR["prompt"], "answer1": PAIR["left"], "answer2": PAIR["right"]}
TEXTS = {"a": "Go to bed early.", "b": "Read a book.", "c": "Count to ten.", "d": "Drink coffee."}
ITEMS = {"prompt": PAIR["prompt"], "answers": [{"id": key, "body": text} for key, text in TEXTS.items()]}
BUCKET_ITEMS = {"prompt": PAIR["prompt"], "items": [{"id": key, "title": text} for key, text in TEXTS.items()]}
LEFT, RIGHT = Response(PAIR["left"]).id, Response(PAIR["right"]).id


def result(name, kind, value):
    return {"from_name": name, "to_name": "any", "type": kind, "value": value}


def selected(side, name="preference"):
    return result(name, "pairwise", {"selected": side})


def chosen(*choices, name="tie"):
    return result(name, "choices", {"choices": list(choices)})


def ranked(value, name="ranking"):
    return result(name, "ranker", {"ranker": value})


def annotation(results, number=1, who=7, at="2026-11-22T10:00:00.123456Z", **more):
    return {"id": number, "completed_by": who, "result": results, "was_cancelled": False, "lead_time": 20.0,
            "created_at": "2026-11-22T09:00:00.000000Z", "updated_at": at} | more


@pytest.fixture
def read(store):
    """Record annotations of one task; returns {annotator: verdict as text} for a pair, and the audit."""
    def read(layout, data, *annotations):
        audit = Audit()
        record_tasks(store, [{"id": 3, "data": data, "annotations": list(annotations)}], layout, "session", audit)
        return [(label.annotator.removeprefix("Label Studio user "), label.verdict) for label in store.labels()], audit
    return read


def order_of(store):
    """What was said of each two of TEXTS: "b>a" where b was preferred, "atie_goodb" for a tie."""
    keys = {Response(text).id: key for key, text in TEXTS.items()}
    said = {label.comparison_id: label for label in store.labels()}
    found = []
    for one, other in combinations(TEXTS, 2):
        label = said.get(Comparison(PAIR["prompt"], (Response(TEXTS[one]), Response(TEXTS[other]))).id)
        if label and label.preferred:
            found.append(f"{keys[label.preferred]}>{one if keys[label.preferred] == other else other}")
        elif label:
            found.append(f"{one}{label.choice}{other}")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Pairs

@pytest.mark.parametrize("results, verdict", [
    ([selected("left")], LEFT), ([selected("right")], RIGHT), ([chosen("tie_good")], "tie_good"), ([chosen("tie_bad")], "tie_bad"),
    ([chosen("both_bad")], "tie_bad"), ([chosen("tie")], "tie_good"),
    ([chosen("left", name="mood"), selected("right")], RIGHT),              # another result may come first, and means nothing here
])
def test_a_pair_makes_the_label_that_was_chosen(read, store, results, verdict):
    labels, audit = read(PAIRS, PAIR, annotation(results))
    assert labels == [("7", verdict)]
    assert (audit.labels, audit.dropped, audit.suspects) == (1, [], [])
    label = store.labels()[0]
    assert (label.kind, label.shown_order, label.shown_ms) == ("person", (LEFT, RIGHT), 20_000)
    assert label.at == "2026-11-22T10:00:00.123+00:00"


@pytest.mark.parametrize("layout, data, first", [(TUTORIAL, OLD_PAIR, LEFT), (SWAPPED, OLD_PAIR, RIGHT)])
def test_left_is_what_the_configuration_puts_there(read, layout, data, first):
    labels, _ = read(layout, data, annotation([selected("left", "comparison")]))
    assert labels == [("7", first)]


@pytest.mark.parametrize("results, reason", [
    ([], "submitted empty"), ([selected("tie")], "selects 'tie', which is neither left nor right"), ([selected(None)], "neither left"),
    ([chosen("maybe")], "unknown choice 'maybe'"), ([chosen("tie_good", "tie_bad")], "both tie_good and tie_bad"),
    ([selected("left"), chosen("tie_bad")], "prefers one answer and says that both are alike"),
    ([chosen("fun", name="mood")], "neither an answer nor a tie"), ([result("preference", "pairwise", "left")], "unknown value 'left'"),
    ("left", "not a list"), (None, "not a list"), (["x"], "not a list"),
])
def test_what_makes_no_label_is_listed_with_the_reason(read, results, reason):
    labels, audit = read(PAIRS, PAIR, annotation(results))
    assert labels == [] and audit.labels == 0
    assert len(audit.dropped) == 1 and audit.dropped[0].startswith("task 3, annotation 1: ") and reason in audit.dropped[0]
    assert audit.dropped[0] in str(audit)


@pytest.mark.parametrize("change, reason", [
    ({"completed_by": None}, "who made it"), ({"created_at": None, "updated_at": None}, "when it was made"),
    ({"updated_at": "yesterday"}, "when it was made"),
])
def test_an_annotation_without_author_or_time_makes_no_label(read, change, reason):
    assert reason in read(PAIRS, PAIR, annotation([selected("left")]) | change)[1].dropped[0]


@pytest.mark.parametrize("data, reason", [
    (PAIR | {"left": PAIR["right"]}, "all answers are the same text"), ({"prompt": "p", "left": "x"}, 'no field "right"'),
    ({"left": "x", "right": "y"}, 'no field "prompt"'), (PAIR | {"right": 3}, '"responses[1].text" is a number'),
    (PAIR | {"prompt": " "}, '"prompt" is empty'), (None, "no field"), ([1], "no field"),
])
def test_a_task_that_cannot_be_compared_makes_no_label(read, data, reason):
    assert reason in read(PAIRS, data, annotation([selected("left")]))[1].dropped[0]


def test_skips_are_recorded_whatever_they_hold(read):
    labels, audit = read(PAIRS, PAIR, annotation([selected("left")], was_cancelled=True), annotation([], 2, 8, was_cancelled=True))
    assert labels == [("7", "skip"), ("8", "skip")] and (audit.skips, audit.labels, audit.dropped) == (2, 0, [])


def test_several_annotators_keep_their_own_labels_and_of_one_the_last_counts(read):
    labels, _ = read(PAIRS, PAIR, annotation([selected("left")], 1, 7, at="2026-11-22T12:00:00Z"), annotation([selected("right")], 2, 8),
                     annotation([selected("right")], 3, {"id": 7, "email": "x@y.z"}, at="2026-11-22T11:00:00Z"))
    assert sorted(labels) == [("7", LEFT), ("8", RIGHT)]


def test_reading_again_adds_nothing_and_a_change_replaces(read, store):
    first = annotation([selected("left")])
    read(PAIRS, PAIR, first)
    read(PAIRS, PAIR, first)
    assert len(store.events()) == 1
    labels, _ = read(PAIRS, PAIR, first | {"result": [chosen("tie_bad")], "updated_at": "2026-11-23T10:00:00Z"})
    assert labels == [("7", "tie_bad")] and len(store.events()) == 2
    labels, _ = read(PAIRS, PAIR, first | {"updated_at": "2026-11-24T10:00:00Z"})          # back to the first opinion
    assert labels == [("7", LEFT)]


def test_labels_land_on_the_pair_that_the_notebook_knows(read, store):
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "And now?"}]
    pair = Comparison(messages, (Response(PAIR["right"], "sft"), Response(PAIR["left"], "base")))
    store.add_comparisons([pair])
    read(PAIRS, PAIR | {"prompt": "shown otherwise", "messages": messages}, annotation([selected("left")]))
    assert [label.comparison_id for label in store.labels()] == [pair.id]
    assert [response.model for response in store.comparisons()[0].responses] == ["sft", "base"]


@pytest.mark.parametrize("data, seconds, doubt", [
    (PAIR, 1.0, "11 words in 1.0 s"), (PAIR | {"left": " "}, 20, "an answer is empty"), (PAIR, 1.1, None), (PAIR, None, None),
    (PAIR, "quick", None), (PAIR, 1e300, None),
])
def test_careless_labels_are_kept_and_listed(read, data, seconds, doubt):
    labels, audit = read(PAIRS, data, annotation([selected("right")], lead_time=seconds))
    assert len(labels) == 1 and audit.suspects == ([f"task 3, annotation 1: {doubt}"] if doubt else [])


def test_judgements_that_began_with_a_prediction_are_listed(read):
    _, audit = read(PAIRS, PAIR, annotation([selected("right")], parent_prediction=12), annotation([selected("left")], 2, 8))
    assert audit.labels == 2 and audit.suspects == ["task 3, annotation 1: the page had filled it in from a model's prediction"]


# ---------------------------------------------------------------------------------------------------------------------
# Rankings

@pytest.mark.parametrize("value", [{"ranking": ["c", "a", "d", "b"]}, ["c", "a", "d", "b"]])
def test_a_ranking_becomes_a_label_for_every_pair(read, store, value):
    _, audit = read(RANKS, ITEMS, annotation([ranked(value), chosen("ordered", name="verdict")]))
    assert order_of(store) == ["a>b", "c>a", "a>d", "c>b", "d>b", "c>d"]
    assert (audit.labels, audit.dropped) == (1, [])
    assert {label.shown_ms for label in store.labels()} == {None}


@pytest.mark.parametrize("choice", ["tie_good", "tie_bad"])
def test_all_alike_wins_over_an_order_that_nobody_touched(read, store, choice):
    read(RANKS, ITEMS, annotation([ranked({"ranking": list("abcd")}), chosen(choice, name="verdict")]))
    assert order_of(store) == [f"{one}{choice}{other}" for one, other in combinations("abcd", 2)]


@pytest.mark.parametrize("results, reason", [
    ([ranked({"ranking": list("abcd")})], "not confirmed"), ([chosen("ordered", name="verdict")], "neither an answer nor a tie"),
    ([ranked({"ranking": list("abc")}), chosen("ordered", name="verdict")], "ranks 3 of 4"),
    ([ranked({"ranking": list("abcc")}), chosen("ordered", name="verdict")], "or one twice"),
    ([ranked({"ranking": list("abcx")}), chosen("ordered", name="verdict")], "does not have"),
    ([ranked({"ranking": [1, 2, 3, {}]}), chosen("ordered", name="verdict")], "does not have"),
    ([ranked({"ranking": "abcd"}), chosen("ordered", name="verdict")], "not of the form"),
    ([ranked({"other": list("abcd")}), chosen("ordered", name="verdict")], "not of the form"),
    ([ranked(None), chosen("ordered", name="verdict")], "not of the form"),
])
def test_a_ranking_that_is_not_whole_makes_no_label(read, results, reason):
    labels, audit = read(RANKS, ITEMS, annotation(results))
    assert labels == [] and reason in audit.dropped[0]


@pytest.mark.parametrize("value, order", [
    ({"good": ["b", "a"], "fair": ["d"], "bad": ["c"], "_": []}, ["atie_goodb", "a>c", "a>d", "b>c", "b>d", "d>c"]),
    ({"bad": ["a"], "good": ["d"], "_": ["b", "c"]}, ["d>a"]),                  # what is in no bucket was not judged
])
def test_buckets_are_levels_from_best_to_worst(read, store, value, order):
    read(BUCKETS, BUCKET_ITEMS, annotation([ranked(value, "rank")]))
    assert order_of(store) == order


def test_one_answer_in_a_bucket_is_no_comparison(read):
    assert "ranks no two answers" in read(BUCKETS, BUCKET_ITEMS, annotation([ranked({"good": ["a"]}, "rank")]))[1].dropped[0]


def test_a_quick_ranking_in_the_order_shown_is_suspect(read):
    as_shown, own = ([ranked({"ranking": list(order)}), chosen("ordered", name="verdict")] for order in ("abcd", "dcba"))
    _, audit = read(RANKS, ITEMS, annotation(as_shown, 1, 7, lead_time=0.5), annotation(own, 2, 8, lead_time=0.5),
                    annotation(as_shown, 3, 9, lead_time=60))
    assert audit.suspects == ["task 3, annotation 1: 17 words in 0.5 s, and the order is as shown",
                              "task 3, annotation 2: 17 words in 0.5 s"]


def test_the_same_text_twice_in_a_ranking_is_compared_with_the_others_only(read, store):
    data = ITEMS | {"answers": [*ITEMS["answers"][:2], {"id": "z", "body": TEXTS["a"]}]}
    _, audit = read(RANKS, data, annotation([ranked({"ranking": ["b", "z", "a"]}), chosen("ordered", name="verdict")]))
    assert order_of(store) == ["b>a"] and audit.suspects == ["task 3, annotation 1: two answers are the same text"]


# ---------------------------------------------------------------------------------------------------------------------
# Configurations

@pytest.mark.parametrize("configuration, reason", [
    ("<View>", "not valid XML"), ("<View/>", "does not compare answers"),
    ('<View><Pairwise name="p" toName="a"/><Text name="a" value="$a"/></View>', "does not compare"),
    ('<View><Pairwise name="p" toName="a,b"/><Text name="a" value="$a"/></View>', "does not compare"),
    ('<View><Text name="a" value="$a"/><Ranker name="r" toName="a"/><Ranker name="s" toName="a"/></View>', "does not compare"),
])
def test_a_configuration_that_does_not_compare_is_refused(configuration, reason):
    with pytest.raises(ValueError, match=reason):
        layout_of(configuration)


def test_the_committed_configurations_say_what_the_reader_looks_for():
    assert (PAIRS.fields, PAIRS.verdicts, PAIRS.confirms, PAIRS.ranks) == (("left", "right"), ("tie",), False, False)
    assert (RANKS.fields, RANKS.verdicts, RANKS.confirms, RANKS.ranks) == (("answers",), ("verdict",), True, True)
    assert BUCKETS.buckets == ("good", "fair", "bad")


def test_long_lists_are_cut_in_the_summary_and_whole_in_the_audit(read):
    _, audit = read(PAIRS, PAIR, *(annotation([], number) for number in range(25)))
    assert len(audit.dropped) == 25 and str(audit).endswith("No label: 15 more") and str(audit).count("\n") == 11
