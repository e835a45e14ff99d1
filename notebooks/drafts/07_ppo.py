# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 · Proximal policy optimisation, grown in drafts
#
# <!-- badges -->[![Open on Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/HumanSignal/RLHF/main?urlpath=lab/tree/notebooks/07_ppo.ipynb) [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/HumanSignal/RLHF/blob/main/notebooks/07_ppo.ipynb)<!-- /badges -->
#
# Notebook 06 trained a policy with RLOO and GRPO, which compare the answers of a group with each other. The papers that made RLHF known used another algorithm: PPO. It needs no groups. In their place it trains a second function that says how well an answer is going, *token by token*. TRL had PPO until version 1.12, so the one used here is our own: [`rlhf_helpers/ppo.py`](../rlhf_helpers/ppo.py), one file that reads from top to bottom.
#
# **After this notebook you can**
#
# * build PPO up from REINFORCE in five drafts, and say what each piece cures;
# * compute generalised advantages by hand and check them against the helper;
# * check a method against a problem whose best policy is known in closed form;
# * say why one $\beta$ is three different prices in PPO, RLOO and GRPO, and what DPO cannot learn from pairs that do not cover the answers;
# * train your SFT model with PPO and read its log.
#
# **It needs** the SFT model of notebook 03 and the reward model of notebook 05 (if this run has none, quick ones are made). **It takes** a few minutes on two CPU cores: no GPU, no account, no network. **It writes** the folder `ppo/` into the run.
#
# **The series:** [00 start](00_start_here.ipynb) · [01 baseline](01_baseline_model.ipynb) · [02 instructions](02_instruction_data.ipynb) · [03 fine-tuning](03_supervised_fine_tuning.ipynb) · [04 comparisons](04_human_comparisons.ipynb) · [05 reward model](05_reward_model.ipynb) · [06 reinforcement learning](06_reinforcement_learning.ipynb) · **07 PPO** · [08 DPO](08_direct_preference_optimisation.ipynb) · [09 assessment](09_final_assessment.ipynb)

# %% [markdown]
# We open the run and import the pieces. The five formulas come from `rlhf_helpers.ppo`; each is introduced below before it is used.

# %%
# First cell of every notebook: find the helper package (on Colab, fetch the series first).
import os, subprocess, sys
from pathlib import Path

if "google.colab" in sys.modules:
    if not Path("/content/RLHF").exists():
        subprocess.run("git clone -q --depth 1 -b main https://github.com/HumanSignal/RLHF /content/RLHF".split(), check=True)
    os.chdir("/content/RLHF/notebooks")
sys.path.insert(0, next(str(folder) for folder in Path.cwd().parents if (folder / "rlhf_helpers").is_dir()))
if "google.colab" in sys.modules:
    from rlhf_helpers import colab
    colab.prepare()

# %%
import matplotlib.pyplot as plt
import torch

from rlhf_helpers import assessment, ppo
from rlhf_helpers.models import load_policy, load_tokenizer
from rlhf_helpers.notebook import LiveCurve, check, new_figure, plot_curve, table
from rlhf_helpers.profiles import ProximalPolicyOptimisation
from rlhf_helpers.runs import open_run
from rlhf_helpers.stages import need, rl_prompts
from rlhf_helpers.training import smooth

run = open_run()
print(f"profile {run.profile.name}, seed {run.seed}")

# %% [markdown]
# ## 1. A world in which the best policy is known
#
# One prompt, answers of one token, 336 tokens to choose from. Eight of them, the *arms*, have a reward; the rest get 0. The reference is a softmax over random numbers, and we look for the policy with the highest
#
# $$J(\pi) = \mathbb{E}_{y \sim \pi}[r(y)] - \beta\, \mathrm{KL}(\pi \,\|\, \pi_{\mathrm{ref}}).$$
#
# For this problem the answer is known (it is also where DPO comes from, notebook 08):
#
# $$\pi^*(y) = \frac{1}{Z}\, \pi_{\mathrm{ref}}(y)\, e^{r(y)/\beta}, \qquad J(\pi^*) = \beta \log Z, \qquad Z = \sum_y \pi_{\mathrm{ref}}(y)\, e^{r(y)/\beta}.$$
#
# So we need not guess whether a method works: we can say by how many percent it misses.

# %%
vocabulary, beta = 336, 0.15
torch.manual_seed(0)
reference = torch.log_softmax(0.8 * torch.randn(vocabulary), 0)
r = torch.zeros(vocabulary)
r[:8] = torch.linspace(0.125, 1.0, 8)


def J(log_pi):
    """The objective, exactly: a sum over all 336 answers."""
    return (log_pi.exp() * (r - beta * (log_pi - reference))).sum().item()


best = beta * torch.logsumexp(reference + r / beta, 0).item()
pi_star = torch.log_softmax(reference + r / beta, 0)
print(f"J of the reference {J(reference):.4f}, of the best policy {J(pi_star):.4f}; beta log Z = {best:.4f}")

# %% [markdown]
# ## 2. Draft one: REINFORCE
#
# Sample answers, weigh each log-probability by its reward. The price of moving away is taken from the reward, as in RLOO: $\tilde r(y) = r(y) - \beta\,(\log \pi(y) - \log \pi_{\mathrm{ref}}(y))$. One function runs all drafts: it samples, asks the draft for a loss, and takes `epochs` steps of Adam on the same samples.

# %%
def train(loss_of, steps=150, samples=128, epochs=1, rate=0.05, seed=0):
    """Train a softmax over 336 numbers with one draft's loss; returns J after each step and the policy at the end."""
    torch.manual_seed(seed)
    theta = reference.clone().requires_grad_()
    adam, course = torch.optim.Adam([theta], lr=rate), []
    for _ in range(steps):
        with torch.no_grad():
            old = torch.log_softmax(theta, 0)
            y = torch.multinomial(old.exp(), samples, replacement=True)
            reward = r[y] - beta * (old[y] - reference[y])
        for _ in range(epochs):
            adam.zero_grad()
            loss_of(torch.log_softmax(theta, 0)[y], old[y], reward).backward()
            adam.step()
        course.append(J(torch.log_softmax(theta.detach(), 0)))
    return course, torch.log_softmax(theta.detach(), 0)


def reinforce(log_pi, old, reward):
    return -(reward * log_pi).mean()


courses = {"REINFORCE": train(reinforce)[0]}
print(f"REINFORCE reaches {courses['REINFORCE'][-1] / best:.0%} of the best J")

# %% [markdown]
# ## 3. Draft two: a baseline
#
# Subtract what the policy gets on average. Notebook 06 showed that this leaves the gradient right on average. What it takes away is noise.

# %%
def with_baseline(log_pi, old, reward):
    return -((reward - reward.mean()) * log_pi).mean()


courses["with a baseline"] = train(with_baseline)[0]
print(f"with a baseline: {courses['with a baseline'][-1] / best:.0%}")

# %% [markdown]
# ## 4. Draft three: use the samples more than once, and clip
#
# Sampling is the dear part with a language model, so we want several steps from the same answers. But after the first of them the samples are no longer those of the present policy. The *ratio* $\rho = \pi/\pi_{\mathrm{old}}$ corrects for that, and clipping (Schulman et al., 2017, equation 7) takes the reason away to push it beyond $1 \pm \varepsilon$:
#
# $$L(\theta) = \max\big(-A\rho,\; -A\,\mathrm{clip}(\rho, 1-\varepsilon, 1+\varepsilon)\big).$$
#
# Three rows show where the gradient goes to zero: only where the step has gone far enough in the direction that $A$ asks for.

# %%
ratio = torch.tensor([[1.0, 1.5, 0.5]])
log_pi = ratio.log().requires_grad_()
for A in (2.0, -2.0):
    loss = ppo.policy_loss(log_pi, torch.zeros(1, 3), torch.full((1, 3), A), clip=0.2)
    gradient = torch.autograd.grad(loss.sum(), log_pi)[0]
    print(f"A = {A:+.0f}: ratio {ratio.numpy()[0]}  loss {loss.detach().numpy()[0].round(2)}  gradient {gradient.numpy()[0].round(2)}")

# %% [markdown]
# Now four epochs on each batch of samples, once with the bare ratio and once clipped.

# %%
def four_epochs(log_pi, old, reward):
    return -((reward - reward.mean()) * (log_pi - old).exp()).mean()


def clipped(log_pi, old, reward):
    return ppo.policy_loss(log_pi, old, reward - reward.mean(), clip=0.2).mean()


courses["four epochs, no clip"] = train(four_epochs, epochs=4)[0]
courses["four epochs, clipped"] = train(clipped, epochs=4)[0]
for name in list(courses)[2:]:
    print(f"{name}: {courses[name][-1] / best:.0%} of the best J, {min(courses[name]):.3f} at its worst")

# %% [markdown]
# All drafts in one picture. Look at how soon each rises, and how calmly it stays up.

# %%
figure, axis = new_figure()
for k, (name, course) in enumerate(courses.items()):
    plot_curve(axis, range(1, len(course) + 1), course, name, k, every=15)
axis.axhline(best, color="grey", linestyle="--", label="best policy")
axis.set(xlabel="step (128 samples each)", ylabel="J, exactly (units of reward)")
axis.legend()
plt.show()
print("J after 30 steps: " + ", ".join(f"{name} {course[29]:.3f}" for name, course in courses.items()))

# %% [markdown]
# ## 5. Draft four: a value function
#
# With one token an average over the samples is as good a baseline as any. An answer of forty tokens is different: one reward at the end, forty choices. Which of them earned it? The *value* $V(s_t)$ is the reward to be expected from here on, read off the text so far. A token is good if the value after it (plus what it was given) is higher than before:
#
# $$\delta_t = r_t + \gamma V_{t+1} - V_t, \qquad A_t = \sum_{l \ge 0} (\gamma\lambda)^l\, \delta_{t+l}.$$
#
# This is generalised advantage estimation (Schulman et al., 2015). With $\lambda = 0$ a token is judged by the value right after it: little noise, but wrong wherever $V$ is. With $\lambda = 1$ by what really came: right on average, but noisy. Three toy answers of different length, as a batch with a mask:

# %%
given = torch.tensor([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0], [2.0, 0.0, 0.0]])   # the score comes with the last token
values = torch.tensor([[0.2, 0.5, 0.9], [0.3, -0.4, 0.0], [1.0, 0.0, 0.0]])
mask = torch.tensor([[1.0, 1, 1], [1, 1, 0], [1, 0, 0]])
for trace in (0.0, 0.95, 1.0):
    A, returns = ppo.estimate_advantages(given, values, mask, discount=1.0, trace=trace)
    print(f"lambda {trace}: advantages {[[round(a, 3) for a in row] for row in A.tolist()]}")

# %% [markdown]
# Check one by hand, from the definition: the first answer with $\lambda = 0.95$ has $\delta = (0.3,\ 0.4,\ 0.1)$.

# %%
deltas = [0.5 - 0.2, 0.9 - 0.5, 1.0 - 0.9]
by_hand = [sum(0.95 ** k * delta for k, delta in enumerate(deltas[t:])) for t in range(3)]
A, _ = ppo.estimate_advantages(given, values, mask, discount=1.0, trace=0.95)
torch.testing.assert_close(A[0], torch.tensor(by_hand))
print("by hand", [round(a, 4) for a in by_hand], "- the helper agrees")

# %% [markdown]
# ## 6. Draft five: the KL penalty, token by token
#
# RLOO takes $\beta \sum_t (\log \pi - \log \pi_{\mathrm{ref}})$ from the reward of the whole answer. PPO gives each token its own share (Ziegler et al., 2019, equation 2): $-\beta\,(\log \pi_t - \log \pi_{\mathrm{ref},t})$ at each token, and the reward model's score at the last one. The sum is the same. What changes is who is blamed.

# %%
log_probs = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, -1.0, 0.0], [-3.0, 0.0, 0.0]])
reference_log_probs = torch.tensor([[-1.5, -2.0, -1.5], [-1.0, -2.0, 0.0], [-2.0, 0.0, 0.0]])
shares = ppo.token_rewards(torch.tensor([1.0, -1.0, 2.0]), log_probs, reference_log_probs, mask, beta=0.1)
for row in shares:
    print(row.numpy().round(3))

# %% [markdown]
# ## 7. One β, three prices
#
# In the bandit we can ask where RLOO, GRPO and PPO end with the *same* $\beta$. RLOO and PPO take the penalty from the reward, in the reward's own units. GRPO first divides the rewards of a group by their spread, and adds the penalty to the loss afterwards: its $\beta$ is a price in units of the spread, and where the spread is small, the penalty hardly counts.

# %%
def in_groups(values, size=8):
    return values.view(-1, size)


def rloo_loss(log_pi, old, reward):
    group = in_groups(reward)
    return -((group - group.mean(1, keepdim=True)) * 8 / 7 * in_groups(log_pi)).mean()


def grpo_draft(scaled):
    """GRPO's loss: advantages from plain rewards, k3 beside them."""
    def loss(log_pi, old, plain, ref):
        group = in_groups(plain)
        A = group - group.mean(1, keepdim=True)
        A = A / (group.std(1, keepdim=True) + 1e-4) if scaled else A
        k3 = (ref - log_pi).exp() - 1 - (ref - log_pi)
        ratio = (log_pi - old).exp()
        return -(A * in_groups(ratio)).mean() + beta * (ratio * k3).mean()
    return loss


# %% [markdown]
# GRPO needs the plain rewards and the reference beside the samples, so it has a loop of its own. `read` gives $\mathbb{E}[r]$, the KL and $J$ of a policy, exactly.

# %%
def train_grpo(loss_of, steps=300, samples=128, rate=0.05):
    torch.manual_seed(0)
    theta = reference.clone().requires_grad_()
    adam = torch.optim.Adam([theta], lr=rate)
    for step in range(steps):
        adam.param_groups[0]["lr"] = rate * (1 - step / steps)
        old = torch.log_softmax(theta.detach(), 0)
        y = torch.multinomial(old.exp(), samples, replacement=True)
        adam.zero_grad()
        loss_of(torch.log_softmax(theta, 0)[y], old[y], r[y], reference[y]).backward()
        adam.step()
    return torch.log_softmax(theta.detach(), 0)


def read(log_pi):
    kl = (log_pi.exp() * (log_pi - reference)).sum().item()
    return [f"{(log_pi.exp() * r).sum().item():.3f}", f"{kl:.3f}", f"{J(log_pi):.4f}"]


# %% [markdown]
# The same $\beta$ for all. Watch the KL, not only $J$.

# %%
rows = [["best policy", *read(pi_star)],
        ["RLOO", *read(train(rloo_loss, steps=300)[1])],
        ["PPO's clipped loss, four epochs", *read(train(clipped, steps=300, epochs=4)[1])],
        ["GRPO, spread divided out", *read(train_grpo(grpo_draft(True)))],
        ["GRPO, not divided", *read(train_grpo(grpo_draft(False)))]]
table(rows, ["method", "E[r]", "KL (nats)", f"J (best {best:.4f})"])

# %% [markdown]
# Compare methods at the same KL, never at the same $\beta$.
#
# ## 8. What DPO cannot see
#
# DPO learns from pairs. Give it as many as one could wish for, without any noise, and suppose that all of them compare two of the eight arms. Whatever the policy makes of them, no pair says that an arm is better than one of the other 328 tokens, so nothing moves probability from those to the arms. Coverage is a property of the data, and no loss makes up for it.

# %%
def dpo(pairs_from, steps=600):
    """DPO on as many pairs as one could wish for: the loss is a sum over all pairs, each with its chance, so there is no noise."""
    chance = pairs_from / pairs_from.sum()
    weight, wins = chance[:, None] * chance, torch.sigmoid(r[:, None] - r)
    theta = reference.clone().requires_grad_()
    adam = torch.optim.Adam([theta], lr=0.05)
    for step in range(steps):
        adam.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        change = torch.log_softmax(theta, 0) - reference
        adam.zero_grad()
        preferred = torch.nn.functional.logsigmoid(beta * (change[:, None] - change))
        (-2 * (weight * wins * preferred).sum()).backward()
        adam.step()
    return torch.log_softmax(theta.detach(), 0)


# %% [markdown]
# Once with pairs of arms only, once with pairs of all tokens.

# %%
arms_only = torch.zeros(vocabulary).index_fill(0, torch.arange(8), 1.0)
table([["best policy", *read(pi_star)], ["DPO, pairs of arms only", *read(dpo(arms_only))],
       ["DPO, pairs of all tokens", *read(dpo(torch.ones(vocabulary)))]],
      ["method", "E[r]", "KL (nats)", f"J (best {best:.4f})"])

# %% [markdown]
# ## 9. The real thing
#
# `train_ppo` takes folders and gives a folder. The value function here is a *value model* that starts as the reward model: it already knows which answers are good, and only has to learn to say so before they are finished. The log has the names that TRL uses.

# %%
sft_folder, reward_folder = need(run, "sft"), need(run, "reward_model")
tokenizer = load_tokenizer(sft_folder)
before = assessment.fixed_answers(load_policy(sft_folder), tokenizer)
plan = ProximalPolicyOptimisation(steps=14, batch_size=32, learning_rate=5e-4, beta=0.03)
history = ppo.train_ppo(sft_folder, reward_folder, rl_prompts(run), run.folder / "ppo", plan, run.seed, run.profile.max_new_tokens,
                        value_model=reward_folder, callbacks=[LiveCurve(plan.steps, "reward", "rewards/rubric/mean", "kl")])
print(f"first KL {history.rows[0]['kl']:.1g}, error of the first ratio {history.rows[0]['ratio_error']:.1g}")

# %% [markdown]
# **What to look at.** In the first row: `kl` 0 (policy and reference are the same model) and `ratio_error` 0 (the policy that learns is the one that sampled). In all rows: `clip_fraction` between a few and some twenty percent; `approx_kl` small; `value_loss` falling. A `clip_fraction` near 0 means steps too timid to matter, one above a half a learning rate that is too high.

# %%
figure, axes = new_figure(10, 3.0, columns=3)
for k, (axis, name, label) in enumerate(zip(axes, ("rewards/rubric/mean", "clip_fraction", "value_loss"),
                                            ("rubric (points, 0 to 10)", "share of tokens clipped", "value loss"))):
    steps, values = history.column(name)
    plot_curve(axis, steps, smooth(values), name, k)
    axis.set(xlabel="step (rollouts)", ylabel=label)
plt.show()
print(f"rubric {smooth(history.column('rewards/rubric/mean')[1])[0]:.2f} at the start, "
      f"{smooth(history.column('rewards/rubric/mean')[1])[-1]:.2f} at the end")

# %% [markdown]
# The fixed prompts, before and after. Read them before you believe a curve.

# %%
after = assessment.fixed_answers(load_policy(run.folder / "ppo"), tokenizer)
table(list(zip(assessment.FIXED_PROMPTS, before, after)), ["prompt", "before (SFT)", "PPO"])

# %% [markdown]
# ## 10. Did it work?
#
# The check cells. A check raises an error when a value misses its bar.

# %%
# NBVAL_CHECK_OUTPUT
check("the first KL, in nats a token,", abs(history.rows[0]["kl"]), at_most=1e-6)
check("the error of the first ratio", history.rows[0]["ratio_error"], at_most=1e-6)

# %% [markdown]
# *To come in this notebook: each draft on the practice world; PPO, RLOO and GRPO side by side from the same start with the same reward budget, rubric against KL, five seeds; which to choose when.*
#
# ## Summary
#
# 1. PPO is REINFORCE with four cures: a baseline against noise, clipping so that samples can be used more than once, a value function that says which token earned the reward, a KL penalty at each token.
# 2. Generalised advantages run between two ends: $\lambda = 0$ trusts the value function, $\lambda = 1$ what really came.
# 3. With a known best policy a method can be checked to the percent.
# 4. GRPO's $\beta$ is a price in units of a group's spread, RLOO's and PPO's in units of reward.
# 5. The first log row of a sound run has KL 0 and ratio 1.
#
# ## Common mistakes
#
# * **Padding and end token the same.** Then the end is masked away with the padding and the model never learns to stop.
# * **The score one token off.** It belongs to the end token, not to the padding after it.
# * **Dropout left on.** The first ratio is then not 1, and clipping acts on noise.
# * **A value function that starts at random with a large weight.** Its errors are the first advantages.
#
# ## Exercises
#
# *Easy.* Set all values in section 5 to 0. What are the advantages with $\lambda = 1$, and what are they with $\lambda = 0$?
#
# *Medium.* Run the clipped draft with 16 epochs, and with a clip of 0.02 and of 2. When does J suffer?
#
# *Medium.* Draw 4,000 pairs of section 8 with noise instead of summing over all. What becomes of J when the pairs are of all tokens, and how many pairs does it take?
#
# *Hard.* In section 7, which $\beta$ would GRPO without the division need to end where RLOO does? (Notebook 06, section 4, has the factor.)
#
# ## References
#
# * Schulman et al. (2015), *High-dimensional continuous control using generalized advantage estimation*, [arXiv:1506.02438](https://arxiv.org/abs/1506.02438).
# * Schulman et al. (2017), *Proximal policy optimization algorithms*, [arXiv:1707.06347](https://arxiv.org/abs/1707.06347).
# * Ziegler et al. (2019), *Fine-tuning language models from human preferences*, [arXiv:1909.08593](https://arxiv.org/abs/1909.08593): the penalty for each token and the adaptive $\beta$.
# * Huang et al. (2024), *The N+ implementation details of RLHF with PPO*, [arXiv:2403.17031](https://arxiv.org/abs/2403.17031): what has to be right for it to work.
#
# Shut this kernel down before you open the next notebook.
