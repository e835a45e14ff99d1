"""The formulas of the series: each against a second derivation, and each trainer against what its first step has to show."""

import json
import math
import shutil
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import threads

from rlhf_helpers import dpo, rejection, rewards, rl, sft, training
from rlhf_helpers.models import (
    NEW_HEAD,
    chat,
    clue_weights,
    completion_log_probs,
    load_policy,
    load_reward_model,
    load_tokenizer,
    read_features,
    repetition,
    sample,
)
from rlhf_helpers.profiles import OnlineDPO, ReinforcementLearning, RejectionSampling, Training

FEW = Training(learning_rate=1e-3, batch_size=4, steps=2)


def preferences(number, seed=0):
    """Pairs in which the answer that says "friend" is always the better one."""
    return [{"prompt": prompt, "chosen": "You do it with a friend today.", "rejected": f"You {word} it now."}
            for (prompt, _), word in zip(threads(number, seed), ["bake", "fix", "learn", "plant"] * number)]


def caught(monkeypatch, module, name):
    """Let a module's trainer class leave the trainers that it makes in the list that is returned."""
    made, kind = [], getattr(module, name)

    def make(*args, **settings):
        made.append(kind(*args, **settings))
        return made[-1]

    monkeypatch.setattr(module, name, make)
    return made


# --- supervised fine-tuning -------------------------------------------------------------------------------------------------------

def test_the_sft_loss_counts_the_completion_and_its_end_only(tiny, tmp_path, monkeypatch):
    made = caught(monkeypatch, sft, "SFTTrainer")
    rows = [{"prompt": p, "completion": c} for p, c in threads(8, seed=1)]
    sft.train_sft(tiny, rows, tmp_path / "sft", FEW)
    tokenizer, wanted = load_tokenizer(tiny), {row["prompt"] + row["completion"]: row for row in rows}
    seen = 0
    for batch in made[0].get_train_dataloader():
        for ids, labels in zip(batch["input_ids"], batch["labels"]):
            start = int((labels != -100).nonzero()[0])
            trained = labels[labels != -100].tolist()
            prompt = tokenizer.decode(ids[:start], skip_special_tokens=True)
            completion = tokenizer.decode(trained, skip_special_tokens=True)
            assert wanted[prompt + completion]["completion"] == completion
            assert tokenizer.decode(ids[start - 1]) == "<|assistant|>"
            assert trained[-1] == tokenizer.eos_token_id and trained.count(tokenizer.eos_token_id) == 1
            assert labels[start:start + len(trained)].tolist() == ids[start:start + len(trained)].tolist()
            assert (ids[start + len(trained):] == tokenizer.pad_token_id).all()
            seen += 1
    assert seen == len(rows)


def test_the_first_sft_loss_is_the_models_own(tiny, tmp_path):
    """Mean over the completion tokens of the batch, computed with `completion_log_probs` instead of TRL."""
    rows = [{"prompt": p, "completion": c} for p, c in threads(4, seed=2)]
    history = sft.train_sft(tiny, rows, tmp_path / "sft", FEW)
    model, tokenizer = load_policy(tiny), load_tokenizer(tiny)
    tokens = torch.cat(completion_log_probs(model, tokenizer, [r["prompt"] for r in rows], [r["completion"] for r in rows]))
    assert history.rows[0]["loss"] == pytest.approx(-tokens.mean().item(), abs=2e-3)
    assert [row["step"] for row in history.rows] == [1, 2]
    load_policy(tmp_path / "sft"), load_tokenizer(tmp_path / "sft")


def test_sft_learns(tiny, tmp_path):
    rows = [{"prompt": p, "completion": "Rest."} for p, _ in threads(32, seed=3)]
    sft.train_sft(tiny, rows, tmp_path / "sft", Training(learning_rate=1e-2, batch_size=8, epochs=5))
    answers = sample(load_policy(tmp_path / "sft"), load_tokenizer(tmp_path / "sft"), [r["prompt"] for r in rows], temperature=0)
    assert Counter(answers.texts).most_common(1)[0][0] == "Rest."


# --- reward model -------------------------------------------------------------------------------------------------------------

@settings(max_examples=20, deadline=None)
@given(shift=st.floats(-50, 50), values=st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=8))
def test_bradley_terry_does_not_see_a_shift(shift, values):
    """Only differences count; so the reward has no zero of its own, and training needs `center_rewards_coefficient` to give it one."""
    chosen, rejected = torch.tensor(values, dtype=torch.float64).T
    loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
    moved = -torch.nn.functional.logsigmoid((chosen + shift) - (rejected + shift)).mean()
    by_hand = np.mean([math.log(math.exp(a) + math.exp(b)) - a for a, b in values])
    assert loss.item() == pytest.approx(by_hand, abs=1e-9) == pytest.approx(moved.item(), abs=1e-9)


def test_the_reward_model_reads_up_to_the_mark_of_the_next_turn(tiny, friendly):
    """In training, in TRL's online trainers (they take the folder's tokenizer) and in `rewards`: one form."""
    tokenizer, folder = load_tokenizer(tiny), friendly[0]
    conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
    plain = tokenizer.apply_chat_template(conversation, tokenize=False)
    read = tokenizer.apply_chat_template(conversation, tokenize=False, chat_template=rewards.reading_template(tokenizer.chat_template))
    assert read == plain + "<|user|>" == load_tokenizer(folder).apply_chat_template(conversation, tokenize=False)
    assert load_reward_model(folder).chat_template == rewards.reading_template(tokenizer.chat_template)
    assert rewards.reading_template("{{ messages }}") == "{{ messages }}"
    prompt = tokenizer.apply_chat_template(conversation[:1], tokenize=False, add_generation_prompt=True)
    assert load_tokenizer(folder).apply_chat_template(conversation[:1], tokenize=False, add_generation_prompt=True) == prompt


def test_the_first_reward_loss_is_bradley_terry_with_centring(tiny, tmp_path):
    """TRL's loss at step 1, from scores by the other code path, and the same start for the same seed."""
    rows = preferences(4)
    history = rewards.train_reward_model(tiny, rows, tmp_path / "a", FEW, seed=7)
    again = rewards.train_reward_model(tiny, rows, tmp_path / "b", FEW, seed=7)
    assert [row["loss"] for row in history.rows] == [row["loss"] for row in again.rows]
    training.transformers.set_seed(7)
    model, tokenizer = load_reward_model(tiny), load_tokenizer(tiny)
    model.chat_template = rewards.reading_template(model.chat_template)
    prompts = [row["prompt"] for row in rows]
    good, bad = (np.array(rewards.rewards(model, tokenizer, prompts, [row[side] for row in rows])) for side in ("chosen", "rejected"))
    expected = np.mean(np.log1p(np.exp(bad - good))) + 0.01 * np.mean((good + bad) ** 2)
    assert history.rows[0]["loss"] == pytest.approx(expected, abs=2e-3)


@pytest.fixture(scope="module")
def friendly(tiny, tmp_path_factory):
    """A reward model that has learned to like "friend", and its log."""
    folder = tmp_path_factory.mktemp("rewards") / "reward_model"
    history = rewards.train_reward_model(tiny, preferences(64), folder, Training(learning_rate=1e-3, batch_size=8, epochs=2))
    return folder, history


def test_the_reward_model_learns_a_trivial_preference(friendly):
    folder, history = friendly
    differences = rewards.score_differences(load_reward_model(folder), load_tokenizer(folder), preferences(20, seed=9))
    assert rewards.accuracy(differences)["estimate"] == 1.0
    assert history.rows[-1]["loss"] < 0.3 < history.rows[0]["loss"]


def test_a_refitted_head_changes_its_mind_and_nothing_else(friendly, tmp_path):
    """Told the opposite of what it learned, it believes that; told the same, or with a prior that nothing moves, it stays."""
    folder, fresh = friendly[0], preferences(20, seed=9)
    opposite = [dict(row, chosen=row["rejected"], rejected=row["chosen"]) for row in preferences(60, seed=3)]
    right = {}
    for name, rows, precision in (("opposite", opposite, 1.0), ("same", preferences(60, seed=3), 1.0), ("firm", opposite, 1e12)):
        rewards.refit_head(folder, rows, tmp_path / name, precision)
        model = load_reward_model(tmp_path / name)
        right[name] = rewards.accuracy(rewards.score_differences(model, load_tokenizer(tmp_path / name), fresh))["estimate"]
        for (weight, before), after in zip(load_reward_model(folder).state_dict().items(), model.state_dict().values()):
            assert weight == NEW_HEAD or torch.equal(before, after), weight
    assert right == {"opposite": 0.0, "same": 1.0, "firm": 1.0}
    torch.testing.assert_close(model.score.weight, load_reward_model(folder).score.weight)


def test_the_refit_is_where_the_slope_of_likelihood_and_prior_is_zero(friendly, tmp_path):
    """From the saved model's own rewards and autograd, with the units of the spread taken out again."""
    folder, precision = friendly[0], 3.0
    *rows, last = preferences(30, seed=4)
    rows.append(dict(last, chosen=last["rejected"], rejected=last["chosen"]))
    rewards.refit_head(folder, rows, tmp_path / "refitted", precision)
    model, tokenizer = load_reward_model(tmp_path / "refitted"), load_tokenizer(folder)
    x = torch.tensor(rewards.feature_differences(model, tokenizer, rows))
    np.testing.assert_allclose((x @ model.score.weight[0].double()).detach(), rewards.score_differences(model, tokenizer, rows), atol=1e-4)
    old = load_reward_model(folder).score.weight[0].detach().double()
    weights = model.score.weight[0].detach().double().requires_grad_()
    loss = -torch.nn.functional.logsigmoid(x @ weights).sum() + precision / 2 * (((weights - old) * x.std(0, correction=0)) ** 2).sum()
    assert torch.autograd.grad(loss, weights)[0].abs().max() < 1e-3


def test_no_new_preferences_are_refused(friendly, tmp_path):
    with pytest.raises(ValueError, match="no rows to train on"):
        rewards.refit_head(friendly[0], [], tmp_path / "refitted")
    assert not (tmp_path / "refitted").exists()


@pytest.mark.parametrize("text, share", [
    ("", 0.0), ("one two", 0.0), ("a b c", 0.0), ("a b c a b c", 1 / 4), ("Go out. go OUT. go out.", 1 / 2), ("no no no no no", 2 / 3)])
def test_repetition_is_the_share_of_runs_of_three_words_that_came_before(text, share):
    assert repetition(text) == pytest.approx(share)


def test_the_likelihood_clue_is_what_the_language_model_says(tiny):
    """A reward model whose body nobody has trained: its clue is the mean of the policy's own log-probabilities, end token included."""
    prompts, answers = map(list, zip(*threads(5, seed=2)))
    features = read_features(load_reward_model(tiny), load_tokenizer(tiny), prompts, answers, clues=True)
    wanted = completion_log_probs(load_policy(tiny), load_tokenizer(tiny), prompts, answers)
    torch.testing.assert_close(features[:, -2], torch.stack([row.mean() for row in wanted]), atol=1e-4, rtol=1e-4)
    assert features[:, -1].tolist() == pytest.approx([repetition(answer) for answer in answers])


def test_clues_are_worth_what_the_labels_say(friendly, tmp_path):
    """From labels that only dislike repetition: `rewards` adds the clues and dislikes it then too, and the slope is zero there."""
    folder = tmp_path / "clues"
    shutil.copytree(friendly[0], folder)
    once, twice = "You do it with a friend today.", "You do it with a friend today. You do it with a friend today."
    rows = [{"prompt": prompt, "chosen": once, "rejected": twice} for prompt, _ in threads(12, seed=1)]
    rows[-1] = dict(rows[-1], chosen=twice, rejected=once)
    found = rewards.fit_clues(folder, rows)
    model, plain, tokenizer = load_reward_model(folder), load_reward_model(friendly[0]), load_tokenizer(folder)
    assert model.config.clue_weights == found and not clue_weights(plain)
    assert (rewards.score_differences(model, tokenizer, rows)[:-1] > 0).all()
    asked, said = [row["prompt"] for row in rows] * 2, [row["chosen"] for row in rows] + [row["rejected"] for row in rows]
    clues = read_features(model, tokenizer, asked, said)[:, -2:].double()
    weights = torch.tensor(clue_weights(model), dtype=torch.float64, requires_grad=True)
    given = torch.tensor(rewards.rewards(plain, tokenizer, asked, said), dtype=torch.float64)
    total = given + clues @ weights
    mean = np.mean(list(dict(zip(zip(asked, said), total.tolist())).values()))
    np.testing.assert_allclose(total.detach() - mean, rewards.rewards(model, tokenizer, asked, said), atol=1e-4)
    spread = (clues[:12] - clues[12:]).std(0, correction=0)
    loss = -torch.nn.functional.logsigmoid(total[:12] - total[12:]).sum() + ((weights * spread) ** 2).sum() / 2
    assert torch.autograd.grad(loss, weights)[0].abs().max() < 1e-3
    np.testing.assert_allclose(rewards.feature_differences(model, tokenizer, rows) @ rewards.last_layer(model),
                               rewards.score_differences(model, tokenizer, rows), atol=1e-4)


def test_a_refit_moves_the_clues_too_and_keeps_the_form(friendly, tmp_path):
    rewards.fit_clues(shutil.copytree(friendly[0], tmp_path / "clues"), preferences(12))
    rewards.refit_head(tmp_path / "clues", preferences(60, seed=3), tmp_path / "refitted", 1.0)
    before, after = (load_reward_model(tmp_path / name) for name in ("clues", "refitted"))
    assert len(clue_weights(before)) == len(clue_weights(after)) == 2 and clue_weights(before) != clue_weights(after)
    assert len(rewards.last_layer(after)) == len(rewards.last_layer(load_reward_model(friendly[0]))) + 2


@pytest.mark.parametrize("how", ["clues", "refit"])
def test_a_fitted_reward_model_gives_the_answers_it_was_fitted_to_zero_on_average(how, friendly, tmp_path):
    """Each different answer counts once, however many pairs it is in."""
    rows, folder = preferences(20, seed=6), tmp_path / "fitted"
    rows = [*rows, rows[0], rows[0]]
    rewards.fit_clues(shutil.copytree(friendly[0], folder), rows) if how == "clues" else rewards.refit_head(friendly[0], rows, folder)
    said = sorted({(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")})
    model, tokenizer = load_reward_model(folder), load_tokenizer(folder)
    assert np.mean(rewards.rewards(model, tokenizer, *zip(*said))) == pytest.approx(0.0, abs=1e-4)
    before = rewards.rewards(load_reward_model(friendly[0]), tokenizer, *zip(*said))
    assert abs(np.mean(before)) > 0.01, "or there was nothing to take off"


def test_a_model_without_its_output_layer_has_no_clues(friendly, tmp_path, capsys):
    folder = Path(shutil.copytree(friendly[0], tmp_path / "untied"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    assert rewards.fit_clues(folder, preferences(4)) == {}
    assert "no output layer" in capsys.readouterr().out and not clue_weights(load_reward_model(folder))


def test_swapped_pairs_have_the_opposite_difference(friendly):
    folder, rows = friendly[0], preferences(6, seed=5)
    model, tokenizer = load_reward_model(folder), load_tokenizer(folder)
    swapped = [dict(row, chosen=row["rejected"], rejected=row["chosen"]) for row in rows]
    np.testing.assert_allclose(rewards.score_differences(model, tokenizer, rows),
                               -rewards.score_differences(model, tokenizer, swapped), atol=1e-4)


def test_a_tie_is_no_hit():
    assert rewards.accuracy([1.0, 0.0, -1.0, 2.0])["estimate"] == 0.5


@given(seed=st.integers(0, 1000), number=st.integers(0, 40))
def test_shuffled_keeps_the_pairs(seed, number):
    rows = [{"prompt": f"p{k}", "chosen": f"a{k}", "rejected": f"b{k}", "annotator": "me"} for k in range(number)]
    mixed = rewards.shuffled(rows, seed)
    assert mixed == rewards.shuffled(rows, seed)
    for row, other in zip(rows, mixed, strict=True):
        assert other.keys() == row.keys() and other["prompt"] == row["prompt"]
        assert {other["chosen"], other["rejected"]} == {row["chosen"], row["rejected"]}
    assert rows == [{"prompt": f"p{k}", "chosen": f"a{k}", "rejected": f"b{k}", "annotator": "me"} for k in range(number)]


def test_shuffled_swaps_half():
    rows = [{"prompt": "", "chosen": "a", "rejected": "b"}] * 2000
    assert 0.45 < np.mean([row["chosen"] == "a" for row in rewards.shuffled(rows)]) < 0.55


# --- reinforcement learning ---------------------------------------------------------------------------------------------------

distributions = st.lists(st.floats(-8, 8), min_size=5, max_size=5)


@given(distributions, distributions)
def test_kl_is_never_negative_and_nothing_between_equals(p, q):
    p, q = (torch.log_softmax(torch.tensor(logits, dtype=torch.float64), 0) for logits in (p, q))
    kl = (p.exp() * (p - q)).sum().item()
    assert kl >= -1e-12
    by_library = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=x) for x in (p, q)))
    assert kl == pytest.approx(by_library.item(), abs=1e-9)


@given(distributions, distributions)
def test_both_estimates_of_the_kl_have_it_as_their_mean(p, q):
    """RLOO logs k1 = log p/q, which can be negative; GRPO logs k3 = q/p - 1 + log p/q, which cannot (Schulman, 2020)."""
    p, q = (torch.log_softmax(torch.tensor(logits, dtype=torch.float64), 0) for logits in (p, q))
    k1, k3 = p - q, (q - p).exp() - 1 - (q - p)
    assert (k3 >= -1e-9).all()
    assert (p.exp() * k1).sum().item() == pytest.approx((p.exp() * k3).sum().item(), abs=1e-6)


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_policy_optimisation_starts_at_the_reference(method, tiny, friendly, tmp_path, monkeypatch):
    """Two real steps: the first KL is 0, each group's advantages have mean 0 and are those of the paper, the rubric is only watched."""
    kind, config, outputs, made = *rl.METHODS[method], [], []

    class Watched(kind):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            made.append(self)

        def _generate_and_score_completions(self, inputs):
            outputs.append(super()._generate_and_score_completions(inputs))
            return outputs[-1]

        def _calculate_rewards(self, *args):
            self.per_function = super()._calculate_rewards(*args)
            scored.append(self.per_function.clone())
            return self.per_function

    scored = []
    monkeypatch.setitem(rl.METHODS, method, (Watched, config))
    plan = ReinforcementLearning(steps=2, batch_size=16, generations=4, learning_rate=1e-3, beta=0.05)
    prompts = sorted({prompt for prompt, _ in threads(40)})
    history = rl.train_policy(method, tiny, friendly[0], prompts, tmp_path / method, plan, max_new_tokens=24)

    assert abs(history.rows[0]["kl"]) < 1e-4
    assert [row["step"] for row in history.rows] == [1, 2]
    assert {"reward", "kl", "entropy", "completions/mean_length", "rewards/rubric/mean"} <= history.rows[0].keys()
    groups = outputs[0]["advantages"].view(-1, 4)
    assert groups.abs().max() > 0.01
    torch.testing.assert_close(groups.mean(1), torch.zeros(4), atol=1e-4, rtol=0)
    reward = scored[0][:, 0].view(-1, 4)  # the rubric in the second column has weight 0
    if method == "grpo":
        expected = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)
    else:
        expected = torch.stack([reward[:, k] - reward[:, [j for j in range(4) if j != k]].mean(1) for k in range(4)], 1)
    torch.testing.assert_close(groups, expected, atol=1e-3, rtol=1e-3)
    texts = load_tokenizer(tiny).batch_decode(outputs[0]["completion_ids"], skip_special_tokens=True)
    asked = load_tokenizer(tiny).batch_decode(outputs[0]["prompt_ids"], skip_special_tokens=True)
    ours = rewards.rewards(load_reward_model(friendly[0]), load_tokenizer(tiny), asked, texts)
    np.testing.assert_allclose(ours, reward.flatten(), atol=1e-3)
    load_policy(tmp_path / method)


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_less_padding_changes_no_log_probability(method, tiny, tmp_path):
    """Ours against TRL's own method on a padded batch of very different lengths, values and gradients."""
    kind, config = rl.METHODS[method]
    plan = training.trainer_settings(tmp_path, 0, per_device_train_batch_size=12, num_generations=4, max_steps=1)
    trainer = kind(model=str(tiny), reward_funcs=[rl.as_trl("rubric", rl.rubric)], processing_class=load_tokenizer(tiny),
                   args=config(**plan),
                   train_dataset=Dataset.from_list([{"prompt": chat("Hello")}]))
    torch.manual_seed(0)
    ids, mask = torch.randint(5, 200, (12, 50)), torch.zeros(12, 50, dtype=torch.long)
    for row in range(12):  # left-padded prompts of up to 20 tokens, right-padded completions of up to 30; the last is masked
        mask[row, 19 - row: 20 + 2 * row] = 1
    mask[11, 20:] = 0
    outcomes = []
    for compute in (trainer._get_per_token_logps_and_entropies, super(kind.__mro__[1], trainer)._get_per_token_logps_and_entropies):
        logps, entropies, _ = compute(trainer.model, ids, mask, 30, compute_entropy=True)
        counted = mask[:, 20:].bool()
        trainer.model.zero_grad()
        (logps * counted).sum().backward()
        outcomes.append([logps[counted], entropies[counted], *(p.grad.clone() for p in trainer.model.parameters())])
    for ours, theirs in zip(*outcomes):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.integers(1, 8))
def test_the_most_different_rewards_are_those_with_the_largest_variance(values, number):
    number = min(number, len(values))
    chosen = rl.most_different(values, number)
    assert len(set(chosen)) == number
    largest = max(np.var(group) for group in combinations(values, number))
    assert np.var([values[k] for k in chosen]) == pytest.approx(largest, abs=1e-9)


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_of_the_sampled_answers_those_whose_rewards_differ_most_are_learned_from(method, tiny, tmp_path):
    asked, learned = [], []

    def length(prompts, completions):
        asked.append((prompts, completions))
        return [float(len(completion)) for completion in completions]

    def seen(prompts, completions):  # what TRL learns from
        learned.append(completions)
        return [0.0] * len(completions)

    plan = ReinforcementLearning(steps=2, batch_size=8, generations=4, learning_rate=1e-3, beta=0.05, sampled=12)
    rl.train_policy(method, tiny, length, ["Hello", "How can I bake bread?"], tmp_path, plan, max_new_tokens=12, gauges={"seen": seen})
    assert [len(completions) for _, completions in asked] == [24, 24]  # the kept ones are not scored again
    for (prompts, completions), kept in zip(asked, learned, strict=True):
        for k in range(2):
            places = [start + j for start in (0, 8, 16) for j in range(4 * k, 4 * k + 4)]
            own = [completions[place] for place in places]
            assert len({prompts[place] for place in places}) == 1
            expected = [own[place] for place in rl.most_different([len(each) for each in own], 4)]
            assert kept[4 * k: 4 * k + 4] == expected


def test_answers_that_do_not_divide_into_groups_are_refused(tiny, tmp_path):
    plan = ReinforcementLearning(steps=1, batch_size=8, generations=4, learning_rate=1e-3, beta=0.05, sampled=6)
    with pytest.raises(ValueError, match="samples 6 answers to a prompt to learn from 4"):
        rl.train_policy("grpo", tiny, tiny, ["Hello"], tmp_path, plan)


def test_an_unknown_method_is_refused_with_the_list(tiny, tmp_path):
    plan = ReinforcementLearning(steps=1, batch_size=4, generations=2, learning_rate=1e-3, beta=0.05)
    with pytest.raises(KeyError, match="'reinforce'; choose one of: rloo, grpo"):
        rl.train_policy("reinforce", tiny, tiny, ["Hello"], tmp_path, plan)


def test_the_best_of_n_is_the_best_of_them(tiny, friendly):
    policy, judge_model, tokenizer = load_policy(tiny), load_reward_model(friendly[0]), load_tokenizer(tiny)
    prompts = [prompt for prompt, _ in threads(5, seed=6)]
    best = rejection.best_of_n(policy, judge_model, tokenizer, prompts, 4, seed=1, max_new_tokens=20)
    drawn = sample(policy, tokenizer, prompts * 4, seed=1, max_new_tokens=20).texts
    for k, prompt in enumerate(prompts):
        own = drawn[k::5]
        scores = rewards.rewards(judge_model, tokenizer, [prompt] * 4, own)
        assert best[k] in own
        assert scores[own.index(best[k])] == pytest.approx(max(scores), abs=1e-5)


def test_the_furthest_above_their_prompt_are_chosen_once_and_only_if_allowed():
    prompts, answers = ["a"] * 4 + ["b"] * 4, ["p", "q", "r", "q", "s", "t", "u", "v"]
    above = rejection.centred(np.array([0.0, 9, 1, 9, 100, 101, 108, 103]), prompts)
    np.testing.assert_allclose(above, [-4.75, 4.25, -3.75, 4.25, -3, -2, 5, 0])
    choose = lambda allowed, share: [row["completion"] for row in rejection.furthest_above(prompts, answers, above, allowed, share)]  # noqa: E731
    assert choose(np.full(8, True), 0.5) == ["u", "q", "v"]  # four answers, two of them alike
    assert choose(np.array(answers) != "u", 0.25) == ["q"]
    assert choose(np.full(8, False), 0.5) == [] and choose(np.full(8, True), 0.0) == ["u"]


def test_a_policy_that_imitates_its_best_answers_earns_more(tiny, tmp_path):
    """Two rounds towards answers with many commas: more of them, and nothing of the start is changed."""
    commas = lambda prompts, answers: [answer.count(",") - 0.02 * len(answer.split()) for answer in answers]  # noqa: E731
    plan = RejectionSampling(rounds=2, prompts=12, answers=16, best=0.1, training=Training(learning_rate=3e-3, batch_size=8, epochs=2.0))
    prompts, before = [prompt for prompt, _ in threads(24, seed=3)], (tiny / "model.safetensors").read_bytes()
    imitated = rejection.imitate_best(tiny, commas, prompts, tmp_path, plan, max_new_tokens=24)
    assert len(imitated) == 2 and all(0 < number <= 19 for number in imitated)
    asked, tokenizer = [prompt for prompt, _ in threads(40, seed=4)], load_tokenizer(tiny)
    earned = [np.mean(commas(asked, sample(load_policy(folder), tokenizer, asked, seed=5, max_new_tokens=24).texts))
              for folder in (tiny, tmp_path)]
    assert earned[1] > earned[0] + 0.2 and (tiny / "model.safetensors").read_bytes() == before


# --- direct preference optimisation -------------------------------------------------------------------------------------------

def test_the_first_dpo_loss_is_ln_2_and_then_it_falls(tiny, tmp_path):
    plan = Training(learning_rate=3e-3, batch_size=8, epochs=3)
    history = dpo.train_dpo(tiny, preferences(24), tmp_path / "dpo", plan, beta=0.1)
    assert history.rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert history.rows[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert history.rows[-1]["loss"] < 0.5 and history.rows[-1]["rewards/accuracies"] == 1.0
    load_policy(tmp_path / "dpo")


def test_the_dpo_reward_is_beta_times_the_log_ratio(tiny, tmp_path, monkeypatch):
    """TRL's implicit reward of the last step, against log-probabilities from the saved model before and after that step."""
    rows, plan = preferences(4), Training(learning_rate=1e-3, batch_size=4, steps=3)
    before = dpo.train_dpo(tiny, rows, tmp_path / "two", Training(1e-3, 4, steps=2), beta=0.2)
    assert len(before.rows) == 2
    states = []
    made = caught(monkeypatch, dpo, "DPOTrainer")

    class Keep(training.TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    whole = dpo.run_trainer
    monkeypatch.setattr(dpo, "run_trainer", lambda trainer, *rest: (trainer.add_callback(Keep()), whole(trainer, *rest))[1])
    history = dpo.train_dpo(tiny, rows, tmp_path / "three", plan, beta=0.2)
    assert made
    policy, reference, tokenizer = load_policy(tiny), load_policy(tiny), load_tokenizer(tiny)
    policy.load_state_dict(states[2])
    prompts = [row["prompt"] for row in rows]

    def implicit(side):
        own, other = (completion_log_probs(model, tokenizer, prompts, [row[side] for row in rows]) for model in (policy, reference))
        return 0.2 * np.array([(a - b).sum().item() for a, b in zip(own, other)])

    chosen, rejected = implicit("chosen"), implicit("rejected")
    assert history.rows[2]["rewards/margins"] == pytest.approx((chosen - rejected).mean(), abs=2e-3)
    assert history.rows[2]["rewards/chosen"] == pytest.approx(chosen.mean(), abs=2e-3)
    assert history.rows[2]["loss"] == pytest.approx(np.log1p(np.exp(rejected - chosen)).mean(), abs=2e-3)


def test_dpo_with_another_reference_is_refused(tiny, tmp_path, monkeypatch):
    """What TRL does to a model that was changed in memory: the reference is the folder's model, the policy is not."""
    def changed_in_memory(model, **settings):
        policy = load_policy(model)
        policy.lm_head.weight.data += 0.3 * torch.randn(policy.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
        return trl.DPOTrainer(model=policy, **settings)

    monkeypatch.setattr(dpo, "DPOTrainer", changed_in_memory)
    with pytest.raises(RuntimeError, match="not ln 2 = 0.6931: policy and reference differ; pass the folder"):
        dpo.train_dpo(tiny, preferences(4), tmp_path / "dpo", FEW, beta=0.5)
    assert not (tmp_path / "dpo" / "model.safetensors").exists()


def test_the_best_meet_the_worst_of_the_same_prompt():
    prompts, answers = ["p"] * 4 + ["q"] * 4, list("abcdwxyz")
    scores, allowed = np.array([3.0, 1.0, 2.0, 0.0, 9.0, 5.0, 5.5, 6.0]), np.array([True] * 4 + [False] + [True] * 3)
    said = lambda one_in, **given: [(gap, row["prompt"], row["chosen"], row["rejected"]) for gap, row in dpo.best_and_worst(  # noqa: E731
        prompts, given.get("answers", answers), given.get("scores", scores), given.get("allowed", allowed), one_in)]
    assert said(4) == [(3.0, "p", "a", "d"), (1.0, "q", "z", "x")], "w is not allowed to be preferred"
    assert said(2) == [(3.0, "p", "a", "d"), (1.0, "q", "z", "x"), (1.0, "p", "c", "b")], "y has nothing under it that is left but w"
    assert said(100) == said(4), "at least one from either end"
    assert said(2, scores=np.zeros(8)) == said(2, allowed=np.full(8, False)) == said(2, answers=["a"] * 8) == []


@given(st.lists(st.tuples(st.sampled_from("pqr"), st.integers(-3, 3), st.booleans()), min_size=1, max_size=40), st.integers(1, 5))
def test_whatever_the_scores_each_pair_is_of_one_prompt_and_in_order(rows, one_in):
    prompts, scores, allowed = ([row[k] for row in rows] for k in range(3))
    answers = [f"{k}" for k in range(len(rows))]
    pairs = dpo.best_and_worst(prompts, answers, np.array(scores, float), np.array(allowed), one_in)
    assert [gap for gap, _ in pairs] == sorted((gap for gap, _ in pairs), reverse=True)
    used = [int(row[side]) for _, row in pairs for side in ("chosen", "rejected")]
    assert len(used) == len(set(used)), "an answer stands in one pair at most"
    for gap, row in pairs:
        best, worst = int(row["chosen"]), int(row["rejected"])
        assert prompts[best] == prompts[worst] == row["prompt"] and allowed[best] and scores[best] - scores[worst] == gap > 0


def test_online_dpo_earns_more_in_smaller_and_smaller_steps(tiny, tmp_path, monkeypatch):
    """Two rounds towards short answers: they get shorter, each round's reference the policy that answered, the start untouched."""
    short = lambda prompts, answers: [-float(len(answer.split())) for answer in answers]  # noqa: E731
    plan = OnlineDPO(rounds=2, prompts=12, answers=8, one_in=4, training=Training(learning_rate=4e-3, batch_size=8, epochs=2.0))
    prompts, before, calls, train = [p for p, _ in threads(24, seed=3)], (tiny / "model.safetensors").read_bytes(), [], dpo.train_dpo
    monkeypatch.setattr(dpo, "train_dpo", lambda *given, **named: calls.append(given) or train(*given, **named))
    histories = dpo.train_online(tiny, short, prompts, tmp_path, plan, beta=0.1, max_new_tokens=24)
    assert [call[0] for call in calls] == [tiny, tmp_path] and [call[3].learning_rate for call in calls] == [4e-3, 2e-3]
    asked_in = [{row["prompt"] for row in call[1]} for call in calls]
    assert asked_in[0] <= set(prompts[:12]) and asked_in[1] <= set(prompts[12:]) and len(histories) == 2
    asked, tokenizer = [prompt for prompt, _ in threads(40, seed=4)], load_tokenizer(tiny)
    earned = [np.mean(short(asked, sample(load_policy(folder), tokenizer, asked, seed=5, max_new_tokens=24).texts))
              for folder in (tiny, tmp_path)]
    assert earned[1] > earned[0] + 1 and (tiny / "model.safetensors").read_bytes() == before


def test_online_dpo_prefers_no_answer_that_was_cut_off_and_needs_a_difference(tiny, tmp_path, monkeypatch):
    """The longest are paid best, and twelve tokens are few: what has no end counts as the worst, whatever its reward."""
    plan, kept = OnlineDPO(rounds=1, prompts=8, answers=8, one_in=4, training=FEW), []
    monkeypatch.setattr(dpo, "sample", lambda *given, **named: kept.append(sample(*given, **named)) or kept[-1])
    caught_rows, train = [], dpo.train_dpo
    monkeypatch.setattr(dpo, "train_dpo", lambda *given, **named: caught_rows.extend(given[1]) or train(*given, **named))
    prompts = [prompt for prompt, _ in threads(8, seed=6)]
    dpo.train_online(tiny, lambda prompts, answers: [len(a) for a in answers], prompts, tmp_path, plan, beta=0.1, max_new_tokens=12)
    finished = dict(zip(zip(prompts * 8, kept[0].texts), kept[0].finished))
    assert caught_rows and all(finished[row["prompt"], row["chosen"]] for row in caught_rows)
    assert any(not finished[row["prompt"], row["rejected"]] for row in caught_rows)
    with pytest.raises(RuntimeError, match="round 1 found no pair: no answer to any of 8 prompts has a higher reward"):
        dpo.train_online(tiny, lambda prompts, answers: [0.0] * len(answers), prompts, tmp_path, plan, beta=0.1)


# --- what no trainer learns from ------------------------------------------------------------------------------------------------

PLANS = {"rl": ReinforcementLearning(steps=1, batch_size=8, generations=4, learning_rate=1e-3, beta=0.05),
         "rejection": RejectionSampling(rounds=2, prompts=2, answers=4, best=0.5, training=FEW),
         "dpo": OnlineDPO(rounds=2, prompts=2, answers=4, one_in=4, training=FEW)}
TRAINERS = {"rl": lambda *given: rl.train_policy("grpo", *given, max_new_tokens=8),
            "rejection": lambda *given: rejection.imitate_best(*given, max_new_tokens=8),
            "dpo": lambda *given: dpo.train_online(*given, beta=0.1, max_new_tokens=8)}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_reward_that_is_no_number_is_not_learned_from(tiny, tmp_path, trainer):
    reward = lambda prompts, answers: [math.nan if k == 1 else float(k) for k in range(len(answers))]  # noqa: E731
    with pytest.raises(ValueError, match="the reward is nan for the answer '.*' to 'Hello': give every answer a finite number"):
        TRAINERS[trainer](tiny, reward, ["Hello"] * 4, tmp_path, PLANS[trainer])
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("trainer, prompts, message", [
    ("rl", [], "there are no prompts to train on"), ("rejection", ["Hello"] * 3, "there are 3 prompts for 2 rounds of 2: give at least 4"),
    ("dpo", [], "there are 0 prompts for 2 rounds of 2: give at least 4")])
def test_too_few_prompts_are_refused_before_anything_is_trained(tiny, tmp_path, trainer, prompts, message):
    with pytest.raises(ValueError, match=message):
        TRAINERS[trainer](tiny, lambda prompts, answers: [0.0] * len(answers), prompts, tmp_path, PLANS[trainer])
    assert not (tmp_path / "model.safetensors").exists()


# --- the order of the rows, and curves ----------------------------------------------------------------------------------------

texts = st.lists(st.integers(0, 200).map("x".__mul__), min_size=1, max_size=60)


@given(texts, st.integers(1, 9), st.integers(0, 5))
def test_length_grouped_loses_no_row_and_groups_like_with_like(lengths, batch_size, seed):
    rows = [{"prompt": text, "completion": "", "number": k} for k, text in enumerate(lengths)]
    ordered = training.length_grouped(rows, ("prompt", "completion"), batch_size, seed)
    assert sorted(row["number"] for row in ordered) == list(range(len(rows)))
    assert ordered == training.length_grouped(rows, ("prompt", "completion"), batch_size, seed)
    lengths = [len(row["prompt"]) for row in ordered]
    batches = [lengths[k:k + batch_size] for k in range(0, len(lengths), batch_size)]
    spans = sorted((min(batch), max(batch)) for batch in batches)
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:])), "two batches share a range of lengths"


@given(st.lists(st.integers(2, 8), min_size=1, max_size=20), st.integers(0, 30), st.integers(0, 5))
def test_pairs_of_one_ranking_share_a_batch_unless_it_ends_among_them(sizes, singles, seed):
    rows = [{"prompt": "x" * (7 * (k + pair) % 50), "group": f"set {k}"} for k, size in enumerate(sizes) for pair in range(size)]
    rows += [{"prompt": "x" * k, "group": None} for k in range(singles)]
    ordered = training.length_grouped(rows, ("prompt",), 8, seed)
    assert sorted(map(str, ordered)) == sorted(map(str, rows))
    batches = [{row["group"] for row in ordered[k:k + 8]} - {None} for k in range(0, len(ordered), 8)]
    times = [sum(f"set {k}" in batch for batch in batches) for k in range(len(sizes))]
    assert max(times) <= 2 and sum(times) - len(sizes) <= len(batches) - 1


def test_training_on_nothing_is_refused(tiny, tmp_path):
    for train, rest in ((sft.train_sft, ()), (rewards.train_reward_model, ()), (dpo.train_dpo, (0.1,))):
        with pytest.raises(ValueError, match="no rows to train on"):
            train(tiny, [], tmp_path, FEW, *rest)


def test_length_grouped_pads_less_and_differs_by_seed():
    dice = np.random.default_rng(0)
    rows = [{"prompt": "x" * int(dice.integers(5, 200))} for _ in range(203)]

    def padding(rows):
        lengths = [len(row["prompt"]) for row in rows]
        return sum(max(lengths[k:k + 16]) * len(lengths[k:k + 16]) for k in range(0, len(lengths), 16)) - sum(lengths)

    grouped = training.length_grouped(rows, ("prompt",), 16, 0)
    assert padding(grouped) < 0.15 * padding(rows)
    assert grouped != training.length_grouped(rows, ("prompt",), 16, 1)
    assert [len(row["prompt"]) for row in grouped] != sorted(len(row["prompt"]) for row in rows)


@given(st.lists(st.floats(-100, 100), max_size=30), st.integers(1, 8))
def test_smooth_is_a_running_mean(values, window):
    smoothed = training.smooth(values, window)
    assert len(smoothed) == len(values)
    for k, value in enumerate(smoothed):
        assert value == pytest.approx(np.mean(values[max(0, k + 1 - window):k + 1]), abs=1e-9)


def test_a_history_gives_columns():
    history = training.History("test")
    history.rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": "1.5", "kl": 0.1}]
    assert history.column("loss") == ([1, 2], [2.0, 1.5])
    assert history.column("kl") == ([2], [0.1])
    assert history.column("nothing") == ([], [])
