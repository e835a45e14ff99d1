"""Fifty labels of one's own: the taste that is learned from them, what it cannot do, and the policy that follows it."""

import importlib.util
import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from rlhf_helpers import personal
from rlhf_helpers.bootstrap import ROOT
from rlhf_helpers.formats import write_candidates
from rlhf_helpers.labelling.session import LabellingSession
from rlhf_helpers.models import load_policy, load_reward_model, load_tokenizer, rewards, sample
from rlhf_helpers.personal import Reading, TooFewLabels
from rlhf_helpers.rewards import fit_weights
from rlhf_helpers.runs import DamagedArtifact
from rlhf_helpers.world.annotators import TASTES
from rlhf_helpers.world.grammar import Dice, answer, write_prompt
from rlhf_helpers.world.judge import judge
from rlhf_helpers.world.splits import training_requests

WIDTH = 30


# --- the maths ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("precision", [0.1, 0.5, 5.0])
def test_the_fit_is_that_of_scikit_learn(precision):
    x = np.random.default_rng(0).normal(size=(60, 8)) + 0.4
    rival = LogisticRegression(C=1 / precision, fit_intercept=False, tol=1e-10).fit(np.r_[x, -x], [1] * 60 + [0] * 60, [0.5] * 120)
    np.testing.assert_allclose(fit_weights(x, precision), rival.coef_[0], atol=1e-4)


def test_the_fit_stays_finite_where_one_side_always_wins():
    assert np.abs(fit_weights(np.full((50, 3), 200.0))).max() < 10


def test_centring_takes_out_what_the_answers_to_a_prompt_share():
    groups, dice = np.repeat(np.arange(20), 3), np.random.default_rng(0)
    values, of_prompt = dice.normal(size=(60, 4)), dice.normal(size=(20, 4))[groups]
    np.testing.assert_allclose(personal.centred(values + of_prompt, groups), personal.centred(values, groups), atol=1e-12)
    np.testing.assert_allclose(personal.centred(values, groups).reshape(20, 3, 4).sum(1), 0, atol=1e-12)


def test_directions_have_a_total_variance_of_one_and_no_scale():
    dice, groups = np.random.default_rng(0), np.repeat(np.arange(100), 3)
    reading = Reading(dice.normal(size=(300, 10)), dice.poisson(5, size=(300, 5)).astype(float), np.zeros(300))
    z = reading.features @ personal.directions(reading, groups, 6)
    assert z.shape == (300, 6 + 5) and personal.centred(z[:, :6], groups).var(0).sum() == pytest.approx(1)
    np.testing.assert_allclose(personal.centred(z[:, 6:], groups).std(0), personal.STYLE, rtol=1e-3)
    large = Reading(reading.states * 1000, reading.style * 1000, reading.rewards)
    np.testing.assert_allclose(np.abs(large.features @ personal.directions(large, groups, 6)), np.abs(z), rtol=1e-3)


def test_a_mark_of_style_that_never_differs_weighs_nothing():
    reading = Reading(np.random.default_rng(0).normal(size=(30, 4)), np.ones((30, 5)), np.zeros(30))
    z = reading.features @ personal.directions(reading, np.repeat(np.arange(10), 3), 2)
    assert np.isfinite(z).all() and not personal.centred(z, np.repeat(np.arange(10), 3))[:, 2:].any()


@pytest.mark.parametrize("answer, marks", [
    ("", [0, 0, 0, 0, 0]), ("Good luck! Sleep at 3.5 hours?", [6, 2, 0, 1, 1]), ("Do this:\n1. Walk.\n2) Run!\n- Rest.", [8, 3, 1, 1, 0])])
def test_style_is_what_anybody_sees(answer, marks):
    assert personal.style(answer) == marks


def test_evidence_is_nats_above_a_coin():
    assert personal.evidence(np.full(50, -1.0)) == 0
    assert personal.evidence(np.full(50, 1.0)) == pytest.approx(50 * (np.log(2) - np.log1p(np.exp(-1))))


# --- a taste on planted data -------------------------------------------------------------------------------------------------

def noise(dice, number):
    return Reading(dice.normal(size=(number, WIDTH)), dice.poisson(5, size=(number, 5)).astype(float), dice.normal(size=number))


@pytest.fixture
def planted():
    """Answers whose states are noise, with what a person likes in one direction of them: (prompts, reading, liking of a reading)."""
    dice = np.random.default_rng(3)
    likes = dice.normal(size=WIDTH)
    reading = noise(dice, 600)
    return [f"prompt {k // 3}" for k in range(600)], reading, lambda states: 3 * states @ likes / np.linalg.norm(likes)


def labelled(planted, number, seed, coin=False):
    """(chosen, rejected) by a person who errs as Bradley and Terry have it, or by a coin."""
    dice = np.random.default_rng(seed)
    one, other = noise(dice, number), noise(dice, number)
    odds = np.zeros(number) if coin else planted[2](one.states) - planted[2](other.states)
    swap = dice.random(number) > 1 / (1 + np.exp(-odds))
    both, rows = Reading(*map(np.concatenate, zip(vars(one).values(), vars(other).values()))), np.arange(number)
    return both[rows + number * swap], both[rows + number * ~swap]


def learn(planted, labels):
    return personal.learn_taste(*labels, 5, *planted[:2])


@pytest.mark.parametrize("number, least", [(50, 0.75), (200, 0.88)])
def test_labels_of_a_taste_move_the_reward_their_way(planted, number, least):
    taste = learn(planted, labelled(planted, number, 0))
    fresh = np.random.default_rng(9).normal(size=(2, 500, WIDTH))
    liked, given = (planted[2](fresh[0]) - planted[2](fresh[1])), (fresh[0] - fresh[1]) @ taste.weights[:WIDTH]
    clear = np.abs(liked) > np.log(9)
    assert ((liked > 0) == (given > 0))[clear].mean() > least and taste.counts and taste.predicted["estimate"] > 0.6


def test_opposite_labels_give_the_opposite_taste(planted):
    chosen, rejected = labelled(planted, 50, 0)
    one, other = learn(planted, (chosen, rejected)), learn(planted, (rejected, chosen))
    np.testing.assert_allclose(one.weights, -other.weights, atol=1e-6)
    assert one.own == pytest.approx(-other.own, abs=1e-6)


def test_random_labels_rarely_count_and_real_ones_nearly_always(planted):
    coins = [learn(planted, labelled(planted, 50, seed, coin=True)).counts for seed in range(30)]
    people = [learn(planted, labelled(planted, 50, seed)).counts for seed in range(30)]
    assert np.mean(coins) <= 0.15 and np.mean(people) >= 0.85


def test_a_taste_that_does_not_count_chooses_as_none_does(planted):
    prompts, reading, _ = planted
    answers = [f"do this thing number {k} today" for k in range(len(prompts))]
    taste = next(t for seed in range(10) if not (t := learn(planted, labelled(planted, 50, seed, coin=True))).counts)
    none = personal.without_taste(prompts, reading)
    choose = lambda taste: personal.telling_pairs(taste, prompts, answers, [True] * len(answers), reading)  # noqa: E731
    assert choose(taste) == choose(none) != choose(learn(planted, labelled(planted, 50, 0)))


@pytest.mark.parametrize("number", [0, 9])
def test_too_few_labels_are_counted_and_the_way_out_is_named(number):
    with pytest.raises(TooFewLabels, match=rf"^{number} labels .* at least 10 pairs in notebook 04.*simulated_labels\(run"):
        personal.read_labels(None, None, [{"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}] * number)


def test_a_saved_taste_gives_the_same_rewards(planted, tmp_path):
    taste = learn(planted, labelled(planted, 50, 0))
    taste.save(tmp_path / "taste.json")
    kept = personal.Taste.load(tmp_path / "taste.json")
    np.testing.assert_array_equal(kept.rewards(planted[1]), taste.rewards(planted[1]))
    np.testing.assert_array_equal(kept.surely_above(*planted[:2]), taste.surely_above(*planted[:2]))
    assert replace(kept, weights=0, unsure=0) == replace(taste, weights=0, unsure=0)


@pytest.mark.parametrize("change", [
    "", "{", "[]", "5", "{}", {"weights": 5}, {"weights": "x"}, {"weights": [[1.0], [2.0]]}, {"unsure": [[1.0]]}, {"unsure": [[1.0], 2]},
    {"spread": [1.0]}, {"spread": 1}, {"own": None}, {"words": "3"}, {"counts": 1}, {"predicted": []}, {"more": 1}])
def test_a_damaged_taste_is_named_with_its_notebook(planted, tmp_path, change):
    path = tmp_path / "taste.json"
    learn(planted, labelled(planted, 50, 0)).save(path)
    path.write_text(change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DamagedArtifact, match=r"taste\.json is damaged or incomplete: run notebook 11_your_fifty_labels again"):
        personal.Taste.load(path)


def test_what_the_labels_say_nothing_about_is_worth_less(planted, monkeypatch):
    """The lower end: below the expected reward, by the deviation that a sampled posterior has."""
    monkeypatch.setattr(personal, "BREVITY", 1.0)
    prompts, reading, _ = planted
    chosen, rejected = labelled(planted, 50, 0)
    taste = personal.learn_taste(chosen, rejected, 5, prompts, reading)
    expected = personal.centred(taste.rewards(reading), np.array(prompts))
    dropped = expected - taste.surely_above(prompts, reading)
    assert (dropped > 0).all()
    seen = personal.centred(reading.seen, np.array(prompts))
    drawn = np.random.default_rng(0).normal(size=(taste.unsure.shape[1], 4000))
    np.testing.assert_allclose((seen[:20] @ taste.unsure @ drawn).std(1) * personal.DOUBT, dropped[:20], rtol=0.06)
    many = personal.learn_taste(*labelled(planted, 800, 0), 5, prompts, reading)
    assert (many.unsure ** 2).sum() < (taste.unsure ** 2).sum()


@pytest.mark.parametrize("price, counted", [(-0.1, -0.3), (0.1, 0.1)])
def test_a_word_too_many_costs_more_and_one_too_few_does_not(planted, monkeypatch, price, counted):
    monkeypatch.setattr(personal, "BREVITY", 3.0)
    prompts, reading, _ = planted
    learned = learn(planted, labelled(planted, 50, 0))
    weights = learned.weights.copy()
    weights[WIDTH] = price
    above = replace(learned, weights=weights).surely_above(prompts, reading)
    weights[WIDTH] = 0
    words = personal.centred(reading.style[:, 0], np.array(prompts))
    np.testing.assert_allclose(above - replace(learned, weights=weights).surely_above(prompts, reading), counted * words, atol=1e-9)


def test_brevity_decides_which_answer_is_preferred(monkeypatch):
    """Of a longer answer that is liked for its content and a shorter one, by a taste that pays for both."""
    reading = Reading(np.array([[1.0], [0.0]]), np.array([[12.0, 1, 0, 0, 0], [5.0, 1, 0, 0, 0]]), np.zeros(2))
    answers = ["word " * 12, "word " * 5]
    taste = personal.Taste(np.array([1.0, -0.1, 0, 0, 0, 0]), 0.0, {}, True, words=1, floor=-1.0, spread=(1.0, 1.0),
                           unsure=np.zeros((7, 1)))
    for times, preferred in ((1.0, answers[0]), (2.0, answers[1])):
        monkeypatch.setattr(personal, "BREVITY", times)
        assert [row["chosen"] for row in personal.telling_pairs(taste, ["Hi?"] * 2, answers, [True] * 2, reading)] == [preferred]


# --- the guard ---------------------------------------------------------------------------------------------------------------

def test_empty_short_unfinished_and_poor_answers_are_never_preferred(planted, monkeypatch):
    """A taste that wants nothing but brevity, of eight answers to each prompt that grow word by word from none."""
    prompts = [f"prompt {k // 8}" for k in range(160)]
    answers = [" ".join(["word"] * (k % 8)) for k in range(160)]
    finished = [k % 8 != 5 for k in range(160)]
    shared = np.where(np.arange(160) % 8 == 4, -5.0, 1.0)  # those of four words are poor
    reading = Reading(np.array([[-float(k % 8)] for k in range(160)]), np.zeros((160, 5)), shared)
    taste = personal.Taste(np.r_[1.0, np.zeros(5)], 0.0, {}, True, words=3, floor=-1.0, spread=(0.1, 1.0), unsure=np.zeros((7, 1)))
    monkeypatch.setattr(personal, "ENDS", 2)
    pairs = personal.telling_pairs(taste, prompts, answers, finished, reading)
    chosen, rejected = ([len(row[side].split()) for row in pairs] for side in ("chosen", "rejected"))
    assert set(chosen) == {3, 6} and chosen[0] == 3
    assert {0, 1, 2, 5} & set(rejected) and not {3, 6} & set(rejected), "silence is unlearned, what is wanted is not"
    assert personal.telling_pairs(taste, prompts, [""] * 160, finished, reading) == []


def test_the_guard_holds_without_a_taste(planted):
    prompts, reading, _ = planted
    none = personal.without_taste(prompts, reading)
    pairs = personal.telling_pairs(none, prompts, ["", " ", "yes"] * 200, [True] * 600, reading)
    assert pairs and {row["chosen"] for row in pairs} == {"yes"}


def test_pairs_are_the_ends_of_each_prompt_the_clearest_first(planted, monkeypatch):
    prompts, reading, _ = planted
    answers, none = [f"do this thing number {k} today" for k in range(600)], personal.without_taste(prompts, reading)
    monkeypatch.setattr(personal, "PAIRS", 50)
    pairs = personal.telling_pairs(none, prompts, answers, [True] * 600, reading)
    number = lambda text: int(text.split()[4])  # noqa: E731
    gaps = [reading.rewards[number(row["chosen"])] - reading.rewards[number(row["rejected"])] for row in pairs]
    of_prompt = reading.rewards.reshape(200, 3)
    assert len(pairs) == 50 and gaps == sorted(gaps, reverse=True)
    np.testing.assert_allclose(gaps[0], (of_prompt.max(1) - of_prompt.min(1)).max())
    assert all(row["prompt"] == prompts[number(row["chosen"])] == prompts[number(row["rejected"])] for row in pairs)


# --- simulated tastes --------------------------------------------------------------------------------------------------------

PROMPT = "How can I sleep better at night?"
GOOD = "Keep the bedroom dark and cool. Go to bed at the same time every night."
BETTER = {
    "courteous": ("Good question! " + GOOD + " Good luck!", GOOD),
    "terse": ("Keep the bedroom dark and cool.", GOOD + " To sleep better at night, keep the bedroom dark and cool. Take your time."),
    "thorough": (GOOD, "Keep the bedroom dark and cool."),
    "numbered": ("1. Keep the bedroom dark and cool.\n2. Go to bed at the same time every night.", GOOD),
    "plain": (GOOD, "Good question! Here is what I would do. " + GOOD + " Good luck!"),
    "reasons": ("Keep the bedroom dark and cool, because darkness tells the body that it is night.", "Keep the bedroom dark and cool."),
}


@pytest.mark.parametrize("name", TASTES)
def test_a_taste_prefers_what_it_is_named_for_and_errs_at_times(name):
    better, worse = BETTER[name]
    person, dice = TASTES[name], random.Random(0)
    assert person.felt_quality(judge(PROMPT, better)) > person.felt_quality(judge(PROMPT, worse)) + 0.5
    said = [person.compare(PROMPT, *sides, dice).choice for sides in [(better, worse), (worse, better)] * 100]
    right = np.mean([choice == ("left", "right")[k % 2] for k, choice in enumerate(said)])
    assert 0.6 < right <= 1


@pytest.mark.parametrize("name", TASTES)
@pytest.mark.parametrize("nothing", ["", "Yes.", "Good luck!", "1."])
def test_no_taste_likes_an_answer_without_advice_better_than_a_plain_good_one(name, nothing):
    assert TASTES[name].felt_quality(judge(PROMPT, nothing)) < TASTES[name].felt_quality(judge(PROMPT, GOOD))


# --- labels ------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def candidates():
    """Three answers of the crowd to each of sixty prompts."""
    dice, rows = Dice("personal"), []
    for request in training_requests(60, "personal"):
        texts = dict.fromkeys(answer(dice, request)[0] for _ in range(3))
        rows.append({"prompt": write_prompt(request), "responses": [
            {"id": f"{k}", "text": text, "model": "sft", "settings": {}} for k, text in enumerate(texts)]})
    return rows


def test_own_labels_are_those_of_persons_that_have_a_winner(store, candidates):
    me, other = (LabellingSession(store, candidates[:4], name) for name in ("me", "other"))
    robot = LabellingSession(store, candidates[:4], "robot", kind="simulated")
    first = me.current
    me.choose(first.pair_id, "right")
    me.choose(me.current.pair_id, "tie_good")
    me.skip(me.current.pair_id)
    other.choose(other.current.pair_id, "left")
    robot.choose(robot.current.pair_id, "left")
    assert personal.own_labels(store, "me") == [{"prompt": first.prompt, "chosen": first.right.text, "rejected": first.left.text}]
    assert len(personal.own_labels(store)) == 2 and len(personal.own_labels(store, "robot")) == 1
    assert personal.own_labels(store, "nobody") == []


def test_a_simulated_person_labels_as_it_likes(ready, monkeypatch):
    monkeypatch.setattr(personal, "PROMPTS", (60, 4))
    labels = personal.simulated_labels(ready, "numbered", 50)
    assert 30 <= len(labels) <= 50 and labels == personal.simulated_labels(ready, "numbered", 50)
    assert labels != personal.simulated_labels(ready, "numbered", 40, seed=1)
    felt = [[TASTES["numbered"].felt_quality(judge(row["prompt"], row[side])) for side in ("chosen", "rejected")] for row in labels]
    assert 0.7 < np.mean([chosen > rejected for chosen, rejected in felt]) < 1
    with pytest.raises(KeyError, match="no taste 'sweet'; choose one of: courteous, terse"):
        personal.simulated_labels(ready, "sweet")


def test_what_is_asked_differs_more_than_what_the_lot_would_ask(ready):
    rows, reading = personal.read_candidates_of(ready)
    place = {(row["prompt"], response["text"]): reading.features[k] / (reading.features.std(0) + 1e-6)
             for k, (row, response) in enumerate((row, response) for row in rows for response in row["responses"])}
    apart = lambda row: np.linalg.norm(place[row["prompt"], row["responses"][0]["text"]]  # noqa: E731
                                       - place[row["prompt"], row["responses"][1]["text"]])
    asked = personal.worth_asking(ready, 5)
    assert len(asked) == len({row["prompt"] for row in asked}) == 5 and all(len(row["responses"]) == 2 for row in asked)
    assert np.mean([apart(row) for row in asked]) > np.mean([apart(row) for row in rows if len(row["responses"]) > 1])
    assert asked == personal.worth_asking(ready, 5) != personal.worth_asking(ready, 5, seed=1)
    assert len(personal.worth_asking(ready, 1000)) == len(rows)


# --- the whole path on tiny models -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("weights", [None, {"likelihood": 2.0, "repetition": -9.0}])
def test_a_reading_holds_the_whole_reward_and_does_not_depend_on_its_batch(tiny, tiny_reward_model, candidates, weights):
    model, tokenizer = load_reward_model(tiny_reward_model), load_tokenizer(tiny)
    model.config.clue_weights, model.config.mean_reward = weights, 0.5
    prompts = [row["prompt"] for row in candidates[:9]]
    texts = [row["responses"][0]["text"] for row in candidates[:9]]
    read = personal.read_answers(model, tokenizer, prompts, texts)
    np.testing.assert_allclose(read.rewards, rewards(model, tokenizer, prompts, texts), atol=1e-4)
    alone = np.vstack([personal.read_answers(model, tokenizer, [p], [t]).states for p, t in zip(prompts, texts)])
    np.testing.assert_allclose(read.states, alone, atol=1e-3)
    assert read.states.shape == (9, 3 * model.config.hidden_size)


@pytest.fixture
def ready(tiny_run, tiny, tiny_reward_model, candidates, monkeypatch):
    """A run with SFT model, candidates and reward model, and little to do."""
    shutil.copytree(tiny, tiny_run.path("sft"))
    shutil.copytree(tiny_reward_model, tiny_run.path("reward_model"))
    write_candidates(tiny_run.path("candidates"), candidates)
    monkeypatch.setattr(personal, "PROMPTS", (20, 4))
    monkeypatch.setattr(personal, "ROUNDS", 1)
    return tiny_run


def test_from_labels_to_a_policy_that_is_found_again(ready):
    outcome = personal.personalise(ready, personal.simulated_labels(ready, "thorough", 30))
    assert ready.has("personal") and outcome.compared[0] > 0 and outcome.seconds > 0
    assert "left-out labels were predicted in" in str(outcome) and "CPU seconds" in str(outcome)
    kept = personal.Taste.load(ready.path("personal") / "taste.json")
    np.testing.assert_array_equal(kept.weights, outcome.taste.weights)
    before = (ready.path("sft") / "model.safetensors").read_bytes()
    assert (ready.path("personal") / "model.safetensors").read_bytes() != before
    assert not [path.name for path in ready.folder.iterdir() if ".part" in path.name]
    assert len(sample(load_policy(ready.path("personal")), load_tokenizer(ready.path("personal")), [PROMPT]).texts) == 1


@pytest.mark.parametrize(("labels", "enough", "rounds"), [(True, -np.inf, 1), (True, np.inf, 2), (False, -np.inf, 2)])
def test_no_round_follows_once_the_policy_surely_pleases(ready, tmp_path, monkeypatch, labels, enough, rounds):
    choose, rounds_of = personal.telling_pairs, []
    monkeypatch.setattr(personal, "telling_pairs", lambda *given: rounds_of.append(choose(*given)) or rounds_of[-1])
    monkeypatch.setattr(personal, "EVIDENCE", -1.0)  # any taste counts; the control has none, and goes on
    monkeypatch.setattr(personal, "ENOUGH", enough)
    personal.personalise(ready, personal.simulated_labels(ready, "thorough", 30) if labels else None, folder=tmp_path)
    assert len(rounds_of) == rounds


def test_what_goes_wrong_leaves_the_last_policy(ready, tiny):
    shutil.copytree(tiny, ready.path("personal"))
    with pytest.raises(TooFewLabels):
        personal.personalise(ready, [])
    ready.path("candidates").unlink()
    with pytest.raises(FileNotFoundError, match="mine has no candidates yet: run notebook 04 first"):
        personal.personalise(ready, None)
    assert ready.has("personal") and not (ready.path("personal") / "taste.json").exists()


# --- the figures of the benchmark --------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("fifty_labels", ROOT / "benchmarks" / "fifty_labels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_interval_over_seeds_is_wider_the_more_the_seeds_differ(bench):
    dice = np.random.default_rng(0)
    alike, apart = ([dice.normal(mean, 1, 100) for mean in means] for means in ((0, 0, 0), (-2, 0, 2)))
    narrow, wide = bench.over(alike), bench.over(apart)
    assert narrow["n"] == wide["n"] == 300 and narrow["low"] < narrow["estimate"] < narrow["high"]
    assert narrow["estimate"] == pytest.approx(np.concatenate(alike).mean())
    assert wide["high"] - wide["low"] > 3 * (narrow["high"] - narrow["low"])


def test_rubric_kept_is_a_ratio_of_means(bench):
    pairs = np.array([[4.0, 8.0], [8.0, 8.0]])
    assert bench.over([pairs], bench.kept)["estimate"] == pytest.approx(0.75)
