"""PPO against independent derivations: double sums, gradients by hand, unpadded passes, TRL 1.12's numbers, and a problem whose
best policy is known in closed form."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import trl112_numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from ppo_two_processes import hand_made, weights_after_update
from tiny import threads
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_helpers import ppo
from rlhf_helpers.models import DEVICE, load_policy, load_reward_model, load_tokenizer, prompt_tokens
from rlhf_helpers.profiles import ProximalPolicyOptimisation
from rlhf_helpers.training import History

PLAN = ProximalPolicyOptimisation(steps=3, batch_size=8, learning_rate=1e-3, beta=0.05, epochs=2, minibatches=2, rows_at_once=2,
                                  stop_kl=None, unfinished_score=None)
PROMPTS = sorted({prompt for prompt, _ in threads(40)})
LORA = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")


def length_reward(prompts, completions):
    return [len(text) / 20 for text in completions]


def trainer(folder, out, plan=PLAN, reward=length_reward, **more):
    return ppo.PPO(load_policy(folder), load_tokenizer(folder), reward, more.pop("prompts", PROMPTS), plan, out,
                   reference=load_policy(folder), **{"max_new_tokens": 12, **more})


# --- formulas -----------------------------------------------------------------------------------------------------------------

def ragged(rows, width, seed, *columns):
    """Random tensors and a mask whose rows have 1 to `width` tokens."""
    dice = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows, 1), generator=dice)
    mask = (torch.arange(width) < lengths).double()
    return [torch.randn(rows, width, generator=dice, dtype=torch.float64) for _ in range(columns[0] if columns else 2)], mask


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_advantages_are_the_double_sum(rows, width, seed, discount, trace):
    """A_t = sum_l (gamma lambda)^l delta_{t+l}, each delta from its definition, row by row up to the end."""
    (rewards, values), mask = ragged(rows, width, seed)
    advantages, returns = ppo.estimate_advantages(rewards * mask, values, mask, discount, trace)
    for row in range(rows):
        length = int(mask[row].sum())
        r, v = rewards[row, :length].tolist(), values[row, :length].tolist() + [0.0]
        deltas = [r[t] + discount * v[t + 1] - v[t] for t in range(length)]
        for t in range(width):
            wanted = sum((discount * trace) ** k * delta for k, delta in enumerate(deltas[t:]))
            assert advantages[row, t].item() == pytest.approx(wanted, abs=1e-9)
            assert returns[row, t].item() == pytest.approx(wanted + v[t] if t < length else 0.0, abs=1e-9)


def test_the_two_ends_of_the_trace():
    """lambda = 1: what is still to come, less V. lambda = 0: the error of one step."""
    (rewards, values), mask = ragged(6, 7, 0)
    rewards = rewards * mask
    to_come = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(ppo.estimate_advantages(rewards, values, mask, 1.0, 1.0)[0], (to_come - values) * mask)
    following = torch.cat([(values * mask)[:, 1:], torch.zeros(6, 1)], 1)
    torch.testing.assert_close(ppo.estimate_advantages(rewards, values, mask, 0.9, 0.0)[0], (rewards + 0.9 * following - values) * mask)


def test_the_score_comes_at_the_end_and_the_kl_at_each_token():
    (log_probs, reference), mask = ragged(7, 6, 1)
    scores = torch.linspace(-1, 1, 7, dtype=torch.float64)
    found = ppo.token_rewards(scores, log_probs, reference, mask, 0.3)
    for row in range(7):
        length = int(mask[row].sum())
        wanted = [-0.3 * (log_probs[row, t] - reference[row, t]).item() for t in range(length)]
        wanted[-1] += scores[row].item()
        assert found[row].tolist() == pytest.approx(wanted + [0.0] * (6 - length), abs=1e-12)


@pytest.mark.parametrize("ratio, advantage, loss, slope", [  # slope: derivative by log pi
    (1.0, 2.0, -2.0, -2.0), (1.1, 2.0, -2.2, -2.2), (1.5, 2.0, -2.4, 0.0), (0.5, 2.0, -1.0, -1.0),
    (1.0, -2.0, 2.0, 2.0), (1.5, -2.0, 3.0, 3.0), (0.5, -2.0, 1.6, 0.0), (0.9, -2.0, 1.8, 1.8)])
def test_the_policy_loss_and_its_gradient_by_hand(ratio, advantage, loss, slope):
    """Clipping takes the gradient away only where the step has gone far enough in the direction that the advantage asks for."""
    log_prob = torch.tensor([[math.log(ratio) - 1.5]], dtype=torch.float64, requires_grad=True)
    found = ppo.policy_loss(log_prob, torch.full((1, 1), -1.5, dtype=torch.float64), torch.full((1, 1), advantage), 0.2)
    found.sum().backward()
    assert found.item() == pytest.approx(loss) and log_prob.grad.item() == pytest.approx(slope, abs=1e-9)


@pytest.mark.parametrize("value, old, target, loss, slope", [
    (1.0, 1.0, 2.0, 0.5, -1.0), (1.1, 1.0, 2.0, 0.405, -0.9), (1.5, 1.0, 2.0, 0.32, 0.0), (0.5, 1.0, 2.0, 1.125, -1.5),
    (2.5, 1.0, 2.0, 0.32, 0.0), (3.0, 1.0, 2.0, 0.5, 1.0)])
def test_the_value_loss_and_its_gradient_by_hand(value, old, target, loss, slope):
    v = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    found = ppo.value_loss(v, torch.tensor([[old]]), torch.tensor([[target]]), 0.2)
    found.sum().backward()
    assert found.item() == pytest.approx(loss, rel=1e-6) and v.grad.item() == pytest.approx(slope, abs=1e-6)


def test_whitening_sees_what_counts_only():
    (values,), mask = ragged(6, 8, 2, 1)
    found, counted = ppo.whiten(values, mask), mask.bool()
    part = values[counted].numpy()
    np.testing.assert_allclose(found[counted].numpy(), (part - part.mean()) / part.std(ddof=1), rtol=1e-6)
    assert (found[~counted] == 0).all()


@given(st.floats(1e-4, 10), st.floats(0, 100), st.floats(0.1, 20))
def test_beta_follows_the_kl_in_small_steps(beta, kl, target):
    found = ppo.adapt_beta(beta, kl, target)
    assert 0.98 * beta - 1e-12 <= found <= 1.02 * beta + 1e-12
    assert (found - beta) * (kl - target) >= 0
    if 0.8 * target < kl < 1.2 * target:
        assert found == pytest.approx(beta + beta * (kl - target) / target / 10)


# --- batch and model ----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module", params=["tiny", "tiny_gpt2"])
def folder(request):
    """Once with rotary and once with learned positions."""
    return request.getfixturevalue(request.param)


def test_log_probs_entropies_and_values_are_those_of_unpadded_passes(folder):
    """One row at a time, no padding, positions or mask; the value model's V is what it says of the text so far."""
    tokenizer = load_tokenizer(folder)
    prompts, completions = hand_made(tokenizer)
    policy, value_model = load_policy(folder), load_reward_model(folder)
    batch = ppo.make_batch(prompts, completions, tokenizer.pad_token_id, DEVICE)
    actor = ppo.ActorCritic(policy, value_model).eval()
    head = ppo.ActorCritic(policy).eval()
    torch.nn.init.normal_(head.value_head.weight)
    with torch.no_grad():
        log_probs, entropy, values = actor(batch, 0.7)
        by_head = head(batch, 0.7)[2]
        for row, (prompt, completion) in enumerate(zip(prompts, completions)):
            assert batch["mask"][row].sum() == len(completion)
            whole = torch.tensor([prompt + completion], device=DEVICE)
            found = policy(whole, output_hidden_states=True)
            for t, token in enumerate(completion):
                place = len(prompt) + t - 1
                logits = found.logits[0, place].double() / 0.7
                assert log_probs[row, t].item() == pytest.approx((logits[token] - logits.logsumexp(0)).item(), abs=1e-4)
                assert entropy[row, t].item() == pytest.approx(torch.distributions.Categorical(logits=logits).entropy().item(), abs=1e-3)
                wanted = head.value_head(found.hidden_states[-1][0, place]).item()
                assert by_head[row, t].item() == pytest.approx(wanted, abs=1e-3)
                assert values[row, t].item() == pytest.approx(value_model(whole[:, :place + 1]).logits.item(), abs=1e-4)


SCORES = torch.arange(8) % 3.0


def prepared(ppo_trainer, seed=0, scores=SCORES):
    """A hand-made rollout with what the epochs need, and one order of its rows."""
    prompts, completions = hand_made(ppo_trainer.tokenizer)
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed))
    batch = ppo.make_batch(prompts, completions, ppo_trainer.tokenizer.pad_token_id, DEVICE)
    return *ppo_trainer.assess(batch, scores, order), order


def gradients(ppo_trainer, batch, minibatch):
    ppo_trainer._gradient(batch, minibatch)
    return [p.grad.clone() for p in ppo_trainer.actor.parameters()]


def test_a_token_after_the_end_never_counts(folder, tmp_path):
    """Other tokens in place of the padding, and numbers where nothing should be read, change neither log nor gradient."""
    one = trainer(folder, tmp_path)
    batch, row, order = prepared(one)
    wanted = gradients(one, batch, order)
    garbage = {name: value.clone() for name, value in batch.items()}
    after, padding = garbage["mask"] == 0, garbage["attention"] == 0
    garbage["ids"][padding] = 7
    for name in ("log_probs", "values", "advantages", "returns"):
        assert (garbage[name][after] == 0).all()
        garbage[name][after] = 3.0
    for found, expected in zip(gradients(one, garbage, order), wanted):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert any(expected.abs().max() > 1e-3 for expected in wanted) and after.any()
    again = {name: garbage[name] for name in ("ids", "attention", "mask")}
    assert one.assess(again, SCORES, order)[1] == pytest.approx(row, abs=1e-5)


def test_the_gradient_is_that_of_the_losses_written_out(tiny, tmp_path):
    """Mean over all tokens of the minibatch, from unpadded passes and autograd, against parts of two rows with padding."""
    one = trainer(tiny, tmp_path, replace(PLAN, max_gradient=1e9, clip=0.05))
    batch, _, order = prepared(one)
    dice = torch.Generator().manual_seed(3)
    for name in ("log_probs", "values"):  # as if some epochs had passed: ratios inside and outside of the clip
        batch[name] = batch[name] + 0.2 * torch.randn(batch[name].shape, generator=dice) * batch["mask"]
    minibatch = order[:6]
    found = gradients(one, batch, minibatch)
    one.actor.zero_grad()
    prompts, completions = hand_made(one.tokenizer)
    total, tokens, clipped = 0.0, 0, 0
    for row in minibatch.tolist():
        hidden = one.policy(torch.tensor([prompts[row] + completions[row]], device=DEVICE), output_hidden_states=True)
        for t, token in enumerate(completions[row]):
            place = len(prompts[row]) + t - 1
            ratio = (torch.log_softmax(hidden.logits[0, place], -1)[token] - batch["log_probs"][row, t]).exp()
            advantage, old, target = (batch[name][row, t] for name in ("advantages", "values", "returns"))
            value = one.actor.value_head(hidden.hidden_states[-1][0, place])[0]
            kept = max(min(value, old + PLAN.value_clip), old - PLAN.value_clip)
            total = total - min(ratio * advantage, max(min(ratio, 1.05), 0.95) * advantage)
            total = total + PLAN.value_weight * 0.5 * max((value - target) ** 2, (kept - target) ** 2)
            tokens, clipped = tokens + 1, clipped + (not 0.95 < ratio < 1.05)
    (total / tokens).backward()
    assert 0.2 < clipped / tokens < 1
    for p, gradient in zip(one.actor.parameters(), found):
        torch.testing.assert_close(gradient, p.grad, atol=1e-5, rtol=1e-3)


# --- steps --------------------------------------------------------------------------------------------------------------------

def test_the_first_minibatch_has_ratio_one_and_kl_zero(folder, tmp_path):
    row = trainer(folder, tmp_path).step(0)
    assert row["ratio_error"] == 0.0 and row["kl"] == 0.0
    assert row["updates"] == 4 and row["approx_kl"] > 0, "the later minibatches have moved"
    first = trainer(folder, tmp_path, replace(PLAN, epochs=1, minibatches=1)).step(0)
    assert first["ratio_error"] == first["approx_kl"] == first["clip_fraction"] == 0.0


def test_a_later_step_starts_at_ratio_one_too(tiny, tmp_path):
    one = trainer(tiny, tmp_path)
    rows = [one.step(k) for k in range(3)]
    assert [row["ratio_error"] for row in rows] == [0.0] * 3
    assert rows[1]["kl"] != 0.0 and rows[0]["value"] == 0.0 != rows[1]["value"]


def test_the_explained_variance_is_that_of_the_returns(tiny, tmp_path):
    one, seen = trainer(tiny, tmp_path, replace(PLAN, learning_rate=1e-2)), []
    assess = one.assess
    one.assess = lambda *given: seen.append(assess(*given)) or seen[-1]
    one.step(0), one.step(1)
    assert seen[0][1]["explained_variance"] == pytest.approx(0, abs=1e-5), "a head that starts at 0 is a constant"
    batch, row = seen[1]
    returns, values = (batch[name][batch["mask"].bool()] for name in ("returns", "values"))
    expected = 1 - ((returns - values).var(correction=0) / returns.var(correction=0)).item()
    assert row["explained_variance"] == pytest.approx(expected, abs=1e-4) != 0


def test_epochs_end_when_the_policy_has_gone_far_enough(tiny, tmp_path):
    plan = replace(PLAN, epochs=6, learning_rate=3e-2)
    free, held = (trainer(tiny, tmp_path, replace(plan, stop_kl=limit)).step(0) for limit in (None, 0.01))
    assert free["updates"] == 12 and 1 <= held["updates"] < 12


def test_an_answer_that_was_cut_off_gets_the_fixed_score(tiny, tmp_path):
    seen = {}
    for score in (None, -7.0):
        plan = replace(PLAN, unfinished_score=score)
        seen[score] = trainer(tiny, tmp_path, plan, lambda p, c: [1.0] * len(c), max_new_tokens=36).step(0)
    share = seen[None]["completions/clipped_ratio"]
    assert 0 < share < 1, "some answers have to be cut off, and some not, to test this"
    assert seen[None]["reward"] == 1.0 and seen[-7.0]["reward"] == pytest.approx(1 - 8 * share)


def test_beta_adapts_in_training(tiny, tmp_path):
    rows = trainer(tiny, tmp_path, replace(PLAN, target_kl=50.0)).train(History("test")).rows
    assert [row["beta"] for row in rows] == pytest.approx([0.05, 0.05 * 0.98, 0.05 * 0.98 ** 2])


def test_advantages_are_whitened_or_left_alone(tiny, tmp_path):
    """Without: a reward of 1 for each answer, no value function and no penalty give each token the advantage 1."""
    plan = replace(PLAN, beta=0.0, trace=1.0, whiten=False)
    batch, _, _ = prepared(trainer(tiny, tmp_path, plan), scores=torch.ones(8))
    assert torch.equal(batch["advantages"], batch["mask"].float())
    batch, _, _ = prepared(trainer(tiny, tmp_path, replace(plan, whiten=True)))
    counted = batch["advantages"][batch["mask"].bool()]
    assert counted.mean().item() == pytest.approx(0, abs=1e-6) and counted.std().item() == pytest.approx(1, abs=1e-3)


def test_every_prompt_has_its_turn(tiny, tmp_path):
    one = trainer(tiny, tmp_path)
    number = len(PROMPTS)
    turns = [[one._prompt(k) for k in range(turn * number, (turn + 1) * number)] for turn in range(2)]
    assert sorted(turns[0]) == sorted(turns[1]) == PROMPTS and turns[0] != turns[1]


def test_a_run_taken_up_again_is_the_run_without_a_break(tiny, tmp_path):
    """Number for number, weights included, with an adaptive beta; and the checkpoint of another run is refused."""
    plan, file = replace(PLAN, steps=4, target_kl=1.0), tmp_path / "checkpoint.pt"
    whole = trainer(tiny, tmp_path, plan)
    wanted = whole.train(History("test")).rows
    trainer(tiny, tmp_path, plan).train(History("test"), [lambda row, policy: row["step"] == 2], file, every=2)
    rest = trainer(tiny, tmp_path, plan)
    steps = []
    assert rest.train(History("test"), [lambda row, policy: steps.append(row["step"])], file, every=2).rows == wanted
    assert steps == [3, 4]
    assert all(torch.equal(a, b) for a, b in zip(rest.actor.parameters(), whole.actor.parameters()))
    others = {"plan": trainer(tiny, tmp_path, replace(plan, beta=0.2)), "prompts": trainer(tiny, tmp_path, plan, prompts=PROMPTS[1:]),
              "limit on length": trainer(tiny, tmp_path, plan, max_new_tokens=3), "first model": trainer(tiny, tmp_path, plan)}
    next(others["first model"].policy.parameters()).data += 1
    others["reward model"] = trainer(tiny, tmp_path, plan, reward=partial(length_reward))
    others["reward model"].reward.fingerprint = "another"
    for what, other in others.items():
        with pytest.raises(ValueError, match=f"checkpoint.pt is of a run with another {what}: delete it"):
            other.train(History("test"), checkpoint=file)


@pytest.mark.parametrize("content", [b"", b"a text", b"PK\x03\x04 half of a file"])
def test_a_damaged_checkpoint_is_named(tiny, tmp_path, content):
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="checkpoint.pt is damaged or no checkpoint of this training: delete it"):
        trainer(tiny, tmp_path).train(History("test"), checkpoint=file)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("unfinished_score", [None, -1.0])
def test_it_stops_at_a_number_that_is_not_finite_and_keeps_the_batch(tiny, tmp_path, number, unfinished_score):
    """Also where the answer was cut off (here all are), so that a fixed score takes the place of its reward."""
    plan = replace(PLAN, unfinished_score=unfinished_score)
    one = trainer(tiny, tmp_path / "ppo", plan, lambda p, c: [number] + [0.0] * (len(c) - 1), max_new_tokens=2)
    before = [p.clone() for p in one.actor.parameters()]
    with pytest.raises(ppo.TrainingStopped, match="scores not finite.*ppo_batch_0.pt"):
        one.train(History("test"))
    batch = torch.load(tmp_path / "ppo_batch_0.pt", weights_only=True)
    assert batch["ids"].shape[0] == 8 and not batch["returns"].isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(before, one.actor.parameters()))
    two = trainer(tiny, tmp_path / "ppo")
    batch, _, order = prepared(two)
    batch["advantages"][0, 0] = math.inf
    with pytest.raises(ppo.TrainingStopped, match="policy_loss, gradient not finite"):
        two.update(batch, [order])
    assert all(torch.equal(a, b) for a, b in zip(before, two.actor.parameters()))


def test_what_cannot_work_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="multiple of 3"):
        trainer(tiny, tmp_path, replace(PLAN, minibatches=3))
    with pytest.raises(ValueError, match="needs a reference"):
        ppo.PPO(load_policy(tiny), load_tokenizer(tiny), length_reward, PROMPTS, PLAN, tmp_path)


# --- the whole ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("separate, lora", [(False, None), (True, None), (False, LORA), (True, LORA)])
def test_a_run_from_folders_to_a_folder(tiny, tiny_reward_model, tmp_path, separate, lora):
    """Head or value model, all weights or LoRA: the first KL is 0, the policy that is saved is the one that was trained."""
    kept = {}

    def keep(row, policy):
        ids = torch.tensor([prompt_tokens(load_tokenizer(tiny), PROMPTS[0])], device=DEVICE)
        with torch.no_grad():
            kept["logits"] = policy(ids).logits

    history = ppo.train_ppo(tiny, tiny_reward_model, PROMPTS, tmp_path / "ppo", replace(PLAN, learning_rate=1e-2), max_new_tokens=12,
                            value_model=tiny_reward_model if separate else None, lora=lora, callbacks=[keep])
    assert history.column("kl")[1][0] == 0.0 != history.column("kl")[1][1]
    assert {"reward", "entropy", "rewards/rubric/mean", "completions/mean_length", "value_loss"} <= history.rows[0].keys()
    ids = torch.tensor([prompt_tokens(load_tokenizer(tmp_path / "ppo"), PROMPTS[0])], device=DEVICE)
    with torch.no_grad():
        saved, start = (load_policy(f)(ids).logits for f in (tmp_path / "ppo", tiny))
    torch.testing.assert_close(saved, kept["logits"], atol=1e-4, rtol=1e-4)
    assert (saved - start).abs().max() > 1e-2


def test_one_fixed_batch_gives_the_numbers_of_trl_1_12(tmp_path, tiny):
    """Four epochs on the batch of `trl112_numbers.py`: its losses, KL, clipped share and the weights after it."""
    wanted = json.loads(trl112_numbers.FILE.read_text())
    policy, reference, _, value_model = trl112_numbers.models()
    s = trl112_numbers.SETTINGS
    plan = ProximalPolicyOptimisation(
        steps=1, batch_size=6, learning_rate=trl112_numbers.RATE, beta=s["kl_coef"], epochs=s["num_ppo_epochs"], discount=s["gamma"],
        trace=s["lam"], clip=s["cliprange"], value_clip=s["cliprange_value"], value_weight=s["vf_coef"], stop_kl=None, max_gradient=1e9)
    one = ppo.PPO(policy, load_tokenizer(tiny), length_reward, PROMPTS, plan, tmp_path, reference=reference, value_model=value_model)
    order = torch.arange(6)
    batch, row = one.assess(ppo.make_batch(trl112_numbers.PROMPTS, trl112_numbers.COMPLETIONS, trl112_numbers.PAD, DEVICE),
                            torch.tensor(wanted["scores"]), order)
    row |= one.update(batch, [order] * plan.epochs)
    logged = wanted["logged"]
    assert row["kl"] * trl112_numbers.WIDTH == pytest.approx(logged["objective/kl"], abs=1e-5)
    assert row["policy_loss"] == pytest.approx(logged["loss/policy_avg"], abs=1e-5)
    assert row["value_loss"] == pytest.approx(logged["loss/value_avg"], rel=1e-4)
    assert row["clip_fraction"] > 0.05 and logged["val/clipfrac_avg"] > 0.05, "the clips have to act to be tested"
    np.testing.assert_allclose(policy.lm_head.weight[:, 0].detach().cpu(), wanted["policy_head_after"], atol=1e-5)
    np.testing.assert_allclose(value_model.score.weight[0].detach().cpu(), wanted["value_head_after"], atol=1e-5)
    values, mask = trl112_numbers.ragged()
    np.testing.assert_allclose(ppo.whiten(values, mask), wanted["whitened"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.15, 0.30])
def test_the_one_token_bandit_reaches_its_optimum(tiny, tmp_path, beta):
    """The best policy is pi_ref exp(r / beta) / Z, and its J = E[r] - beta KL is beta log Z."""
    tokenizer = load_tokenizer(tiny)
    shape = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
                        max_position_embeddings=64, tie_word_embeddings=False)

    def model():
        torch.manual_seed(0)
        made = LlamaForCausalLM(shape)
        made.lm_head.weight.data.normal_(0, 0.15)
        return made.eval()

    words = [tokenizer.decode([k], skip_special_tokens=True).strip() for k in range(len(tokenizer))]
    arms = [word for word in words if len(word) > 2 and words.count(word) == 1][:8]
    reward_of = {word: (k + 1) / 8 for k, word in enumerate(arms)}
    policy, ids = model(), torch.tensor([prompt_tokens(tokenizer, "Hi")])
    r = torch.tensor([reward_of.get(word, 0.0) for word in words], dtype=torch.float64)

    def log_p(of):
        with torch.no_grad():
            return torch.log_softmax(of(ids.to(of.device)).logits[0, -1].double(), -1).cpu()

    reference = log_p(model())
    best = beta * torch.logsumexp(reference + r / beta, 0).item()
    plan = ProximalPolicyOptimisation(steps=80, batch_size=512, learning_rate=5e-3, beta=beta, rows_at_once=512, stop_kl=None,
                                      unfinished_score=None)
    ppo.PPO(policy, tokenizer, lambda prompts, texts: [reward_of.get(text, 0.0) for text in texts], ["Hi"], plan, tmp_path,
            reference=model(), max_new_tokens=1).train(History("bandit"))
    found = log_p(policy)
    reached = (found.exp() * (r - beta * (found - reference))).sum().item()
    at_start = (reference.exp() * r).sum().item()
    assert at_start < 0.7 * best
    assert 0.99 * best <= reached <= best + 1e-9


# --- several processes --------------------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.timeout(900)  # two more interpreters have to start
def test_two_processes_do_what_one_does(tiny, tmp_path):
    """`accelerate launch` with two: each has half of the rows, both end with the weights of one process that has all."""
    script = Path(__file__).with_name("ppo_two_processes.py")
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
                                "PYTHONPATH": str(script.parents[1])}
    subprocess.run([sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_ip",
                    "127.0.0.1", "--main_process_port", "0", str(script), str(tiny), str(tmp_path)], env=environment, check=True,
                   capture_output=True, timeout=800)
    wanted, row = weights_after_update(tiny, tmp_path)
    halves = [torch.load(tmp_path / f"after_{k}.pt", weights_only=True) for k in range(2)]
    start = dict(ppo.ActorCritic(load_policy(tiny)).named_parameters())
    assert max((wanted[name] - start[name]).abs().max().item() for name in wanted) > 1e-3
    for half in halves:
        assert half["processes"] == 2 and half["row"] == pytest.approx(row, rel=1e-4, abs=1e-6)
        assert half["log"] == halves[0]["log"] and len(half["log"]) == 2
        assert half["lora"] == halves[0]["lora"] and half["lora"][0]["kl"] == half["lora"][0]["ratio_error"] == 0.0
        for name, weight in wanted.items():
            torch.testing.assert_close(half["weights"][name], weight, atol=2e-5, rtol=1e-3)
    assert load_policy(tmp_path / "lora").num_parameters() == load_policy(tiny).num_parameters(), "saved once, adapter merged"
    assert halves[0]["sampled"] != halves[1]["sampled"], "each process has prompts and draws of its own"
