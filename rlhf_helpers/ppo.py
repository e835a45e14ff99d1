"""Proximal policy optimisation for language models (Schulman et al., 2017, arXiv:1707.06347; Ziegler et al., 2019, arXiv:1909.08593).

TRL had it until version 1.12. One step: answer prompts (rollout), score the answers, spread the score over the tokens (advantages),
then improve policy and value function on these answers for a few epochs, never far from the policy that wrote them (clipping).

From Python: `train_ppo(sft_folder, reward_model_folder, prompts, folder, plan)`; on several processes: `accelerate launch script.py`.
The implementation details that Huang, Liu and von Werra (2023) and Huang et al. (2024, arXiv:2403.17031) list are in a table of
notebook 07, each done or left out with the reason.
"""

import math
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from peft import get_peft_model
from transformers import set_seed

from .models import DEVICE, load_policy, load_reward_model, load_tokenizer, prompt_tokens, sample_tokens
from .profiles import ProximalPolicyOptimisation
from .rewards import Reward, reward_of
from .training import History, digest, quiet, read_checkpoint, write_checkpoint
from .world.judge import judge


class TrainingStopped(RuntimeError):
    """A number was not finite; the message says which, and in which file the batch lies."""


# --- the formulas; all tensors are (rows, tokens of the completion), mask is 1 up to the end token and 0 after it ------------------

def token_rewards(scores, log_probs, reference, mask, beta: float):
    """-beta (log pi - log pi_ref) at each token, plus the answer's score (rows,) at its last: Ziegler et al. (2019), equation 2."""
    given = -beta * (log_probs - reference) * mask
    last = mask.sum(1).long() - 1
    return given.scatter_add(1, last[:, None], scores[:, None].to(given.dtype))


def estimate_advantages(given, values, mask, discount: float, trace: float):
    """Generalised advantage estimation and the returns that the values should have been.

    A_t = delta_t + gamma lambda A_{t+1} with delta_t = r_t + gamma V_{t+1} - V_t, and nothing after the end.
    Schulman et al. (2015, arXiv:1506.02438), equation 16. Returns: A + V.
    """
    advantages, after, next_value = torch.zeros_like(given), given.new_zeros(len(given)), given.new_zeros(len(given))
    for t in reversed(range(given.shape[1])):
        delta = given[:, t] + discount * next_value - values[:, t]
        after = (delta + discount * trace * after) * mask[:, t]
        next_value = values[:, t] * mask[:, t]
        advantages[:, t] = after
    return advantages, (advantages + values) * mask


def policy_loss(log_probs, old_log_probs, advantages, clip: float):
    """max(-A rho, -A clip(rho, 1 - eps, 1 + eps)) for each token, rho = pi / pi_old. Schulman et al. (2017), equation 7."""
    ratio = torch.exp(log_probs - old_log_probs)
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


def value_loss(values, old_values, returns, clip: float):
    """Half the larger squared error of V and of V kept within `clip` of its old value, for each token. Huang et al. (2024)."""
    kept = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (kept - returns) ** 2)


def adapt_beta(beta: float, kl: float, target: float) -> float:
    """The next KL weight, at most 2 % from this one; kl and target in nats an answer. Ziegler et al. (2019), section 2.2, K = 0.1."""
    return beta * (1 + 0.1 * min(max(kl / target - 1, -0.2), 0.2))


def whiten(values, mask, total=lambda *sums: torch.stack(sums)):
    """The masked values with mean 0 and variance 1; `total` adds sums up over processes."""
    count, added = total(mask.sum(), (values * mask).sum())
    centred = (values - added / count) * mask
    return centred * torch.rsqrt(total((centred ** 2).sum())[0] / (count - 1).clamp(min=1) + 1e-8)


# --- the model and the batch ------------------------------------------------------------------------------------------------------

class ActorCritic(torch.nn.Module):
    """Policy and value function in one module, so that several processes have one module to keep in step.

    Without a value model, V is a linear function of the policy's last hidden state, zero at the start. A value model is a reward model:
    its body and its output head, read at every token.
    """

    def __init__(self, policy, value_model=None):
        super().__init__()
        self.policy = policy
        self.value_body = value_model and value_model.base_model
        self.value_head = value_model.score if value_model else torch.nn.Linear(policy.config.hidden_size, 1)
        if value_model is None:
            torch.nn.init.zeros_(self.value_head.weight), torch.nn.init.zeros_(self.value_head.bias)

    def forward(self, batch: dict, temperature: float):
        """log p, entropy and V, each (rows, width), of the completion's tokens; V where the policy chooses the token."""
        width = batch["mask"].shape[1]
        log_probs, entropy, hidden = look(self.policy, batch, temperature, hidden=self.value_body is None)
        if self.value_body is not None:
            hidden = self.value_body(**_inputs(batch)).last_hidden_state
        return log_probs, entropy, self.value_head(hidden[:, -width - 1:-1].to(self.value_head.weight.dtype)).squeeze(2).float()


def _inputs(batch: dict) -> dict:
    attention = batch["attention"]
    return dict(input_ids=batch["ids"], attention_mask=attention, position_ids=(attention.cumsum(1) - 1).clamp(min=0), use_cache=False)


def look(policy, batch: dict, temperature: float, hidden: bool = False):
    """log p and entropy (nats), (rows, width), of the completion's tokens, and the last hidden states if wanted.

    While gradients are recorded the entropy is left out: it is logged, not learned from.
    """
    width = batch["mask"].shape[1]
    found = policy(**_inputs(batch), logits_to_keep=width + 1, output_hidden_states=hidden)
    log_p = torch.log_softmax(found.logits[:, :-1].float() / temperature, -1)
    chosen = log_p.gather(2, batch["ids"][:, -width:, None]).squeeze(2)
    entropy = None if torch.is_grad_enabled() else -(log_p.exp() * log_p).sum(2)
    return chosen, entropy, found.hidden_states[-1] if hidden else None


def make_batch(prompt_ids: list[list[int]], completions: list[list[int]], pad: int, device) -> dict[str, torch.Tensor]:
    """Prompts padded on the left, completions on the right: `ids` and `attention` (rows, prompt + width), `mask` (rows, width)."""
    lead, width = max(map(len, prompt_ids)), max(map(len, completions))
    ids = torch.tensor([[pad] * (lead - len(p)) + p + c + [pad] * (width - len(c)) for p, c in zip(prompt_ids, completions, strict=True)])
    attention = torch.tensor([[0] * (lead - len(p)) + [1] * (len(p) + len(c)) + [0] * (width - len(c))
                              for p, c in zip(prompt_ids, completions)])
    return {"ids": ids.to(device), "attention": attention.to(device), "mask": attention[:, lead:].to(device)}


def take(batch: dict, rows) -> dict[str, torch.Tensor]:
    """Some rows of a batch, without the columns that are padding in all of them."""
    attention, width = batch["attention"][rows], batch["mask"].shape[1]
    used = int(batch["mask"][rows].sum(1).max())
    whole = slice(int(attention.any(0).nonzero()[0]), attention.shape[1] - width + used)
    return {name: value[rows][:, whole if name in ("ids", "attention") else slice(used)] for name, value in batch.items()}


# --- the trainer ------------------------------------------------------------------------------------------------------------------

class PPO:
    """One PPO run; `step(k)` does its k-th step, `train` all of them. Dropout is off throughout.

    Args:
        policy: a causal language model of transformers; with a LoRA adapter, its base without the adapter is the reference.
        folder: the batch is saved beside it if a number is not finite.
        reference: a second copy of the first policy, loaded from its folder; not needed with LoRA.
        value_model: a model like a reward model; None puts a value head on the policy.
        gauges: more functions like `reward`, logged as `rewards/<name>/mean` and never trained on.
    """

    def __init__(self, policy, tokenizer, reward: Reward, prompts: list[str], plan: ProximalPolicyOptimisation, folder: str | Path, *,
                 reference=None, value_model=None, gauges: dict[str, Reward] | None = None, max_new_tokens: int = 96, seed: int = 0):
        if reference is None and not hasattr(policy, "disable_adapter"):
            raise ValueError("a policy without a LoRA adapter needs a reference: load the first policy's folder once more")
        self.accelerator = Accelerator(cpu=DEVICE == "cpu")
        processes = self.accelerator.num_processes
        if not prompts:
            raise ValueError("there are no prompts to train on")
        if plan.batch_size % (processes * plan.minibatches):
            raise ValueError(f"a batch of {plan.batch_size} answers cannot be cut into {plan.minibatches} minibatches on "
                             f"{processes} processes: make batch_size a multiple of {processes * plan.minibatches}")
        self.tokenizer, self.reward, self.plan, self.folder, self.seed = tokenizer, reward, plan, Path(folder), seed
        self.prompts, self.gauges, self.max_new_tokens, self.beta = prompts, gauges or {}, max_new_tokens, plan.beta
        self.policy, self.reference, self.rows = policy, reference, plan.batch_size // processes
        self.actor = ActorCritic(policy, value_model).eval()
        trained = [p for p in self.actor.parameters() if p.requires_grad]
        self.model, self.optimizer = self.accelerator.prepare(self.actor, torch.optim.Adam(trained, lr=plan.learning_rate, eps=1e-5))
        if reference is not None:
            reference.to(self.accelerator.device).eval().requires_grad_(False)

    def train(self, history: History, callbacks=(), checkpoint: str | Path | None = None, every: int = 10) -> History:
        """All steps, one row of `history` each. `callback(row, policy)` runs on every process after each; True ends the training.

        With a `checkpoint`, everything is written to that file after `every` steps, and read first if the file is there: the rest of
        the run is then what it would have been, number for number. (A reward that is a function is taken to be the same.)
        """
        self.start = digest(self.actor) if checkpoint else ""
        first = self.load(checkpoint, history) if checkpoint and Path(checkpoint).exists() else 0
        for step in range(first, self.plan.steps):
            row = {"step": step + 1, **self.step(step)}
            history.rows.append(row)
            if self.accelerator.is_main_process:
                history.progress.update(step + 1, self.plan.steps, f"reward {row['reward']:.3f}")
            ended = [callback(row, self.policy) for callback in callbacks]
            if checkpoint and (step + 1) % every == 0:
                self.save(checkpoint, history)
            if any(ended):
                break
        if self.accelerator.is_main_process:
            history.progress.done()
        return history

    def step(self, step: int) -> dict[str, float]:
        """Rollout, rewards, advantages, epochs. Every random draw comes from a stream made of seed, step and process."""
        process = self.accelerator.process_index
        dice = torch.Generator().manual_seed(int(np.random.SeedSequence((self.seed, step, process)).generate_state(1)[0]))
        prompts = [self._prompt(step * self.plan.batch_size + process * self.rows + k) for k in range(self.rows)]
        prompt_ids = [prompt_tokens(self.tokenizer, prompt) for prompt in prompts]
        completions = sample_tokens(self.policy, self.tokenizer, prompt_ids, temperature=self.plan.temperature,
                                    max_new_tokens=self.max_new_tokens, generator=dice)
        texts = [self.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in completions]
        finished = [tokens[-1] == self.tokenizer.eos_token_id for tokens in completions]
        scores = torch.tensor([float(score) for score in self.reward(prompts, texts)])
        if self.plan.unfinished_score is not None:  # by a product, so that a reward that is not finite still shows, and stops the run
            done = torch.tensor(finished, dtype=scores.dtype)
            scores = scores * done + self.plan.unfinished_score * (1 - done)
        orders = [torch.randperm(self.rows, generator=dice) for _ in range(self.plan.epochs)]
        batch = make_batch(prompt_ids, completions, self.tokenizer.pad_token_id, self.accelerator.device)
        batch, row = self.assess(batch, scores, orders[0])
        sums = {"completions/clipped_ratio": len(finished) - sum(finished), "completions/mean_length": sum(map(len, completions)),
                **{f"rewards/{name}/mean": sum(gauge(prompts, texts)) for name, gauge in self.gauges.items()}}
        row |= dict(zip(sums, (self._total(*[torch.tensor(float(x)) for x in sums.values()]) / self.plan.batch_size).tolist()))
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate * (1 - step / self.plan.steps)
        row |= self.update(batch, orders)
        if self.plan.target_kl is not None:
            self.beta = adapt_beta(self.beta, row["kl"] * row["completions/mean_length"], self.plan.target_kl)
        return row

    @torch.no_grad()
    def assess(self, batch: dict, scores: torch.Tensor, order) -> tuple[dict, dict[str, float]]:
        """Add what the epochs need: `log_probs`, `values`, `advantages`, `returns`; and what to log of the rollout. scores: (rows,).

        Rows go through the models in the very groups of the first epoch, so that its first ratios are exactly 1.
        """
        mask = batch["mask"]
        log_probs, values, reference, entropy = (torch.zeros(mask.shape, device=mask.device) for _ in range(4))
        for minibatch in order.split(self.rows // self.plan.minibatches):
            for rows in self._parts(batch, minibatch):
                part = take(batch, rows)
                used = part["mask"].shape[1]
                log_probs[rows, :used], entropy[rows, :used], values[rows, :used] = self.model(part, self.plan.temperature)
                with self.accelerator.autocast(), self.policy.disable_adapter() if self.reference is None else nullcontext():
                    reference[rows, :used] = look(self.reference or self.policy, part, self.plan.temperature)[0]
        scores = scores.to(mask.device)
        given = token_rewards(scores, log_probs, reference, mask, self.beta)
        advantages, returns = estimate_advantages(given, values, mask, self.plan.discount, self.plan.trace)
        batch = batch | dict(log_probs=log_probs * mask, values=values * mask, advantages=advantages, returns=returns)
        off = returns - values * mask
        tokens, reward, kl, entropy, value, *moments = self._total(
            mask.sum().float(), scores.sum(), *[(x * mask).sum() for x in (log_probs - reference, entropy, values)],
            returns.sum(), (returns ** 2).sum(), off.sum(), (off ** 2).sum()).tolist()
        self._demand_finite(batch, scores=reward, kl=kl, values=value)
        variance, left = (squares - total ** 2 / tokens for total, squares in (moments[:2], moments[2:]))
        if self.plan.whiten:
            batch["advantages"] = whiten(advantages, mask, self._total)
        return batch, {"reward": reward / self.plan.batch_size, "kl": kl / tokens, "beta": self.beta, "entropy": entropy / tokens,
                       "value": value / tokens, "explained_variance": 1 - left / max(variance, 1e-9)}

    def update(self, batch: dict, orders) -> dict[str, float]:
        """Epochs of minibatch updates on one rollout, each row order of `orders` an epoch; they end early when `stop_kl` is passed."""
        found, updates = [], 0
        for minibatch in [rows for order in orders for rows in order.split(self.rows // self.plan.minibatches)]:
            found.append(self._gradient(batch, minibatch))
            if self.plan.stop_kl is not None and found[-1]["approx_kl"] > self.plan.stop_kl:
                break
            self.optimizer.step()
            updates += 1
        means = {name: float(np.mean([gauges[name] for gauges in found])) for name in found[0]}
        return means | {"ratio_error": found[0]["ratio_error"], "updates": updates}

    def _gradient(self, batch: dict, minibatch) -> dict[str, float]:
        """The gradient of one minibatch: the mean over all its tokens, those of other processes included."""
        tokens, sums = self._total(batch["mask"][minibatch].sum().float())[0], 0
        self.optimizer.zero_grad()
        parts = self._parts(batch, minibatch)
        for number, rows in enumerate(parts, 1):
            part = take(batch, rows)
            mask = part["mask"]
            with nullcontext() if number == len(parts) else self.accelerator.no_sync(self.model):
                log_probs, _, values = self.model(part, self.plan.temperature)
                policy = policy_loss(log_probs, part["log_probs"], part["advantages"], self.plan.clip) * mask
                value = value_loss(values, part["values"], part["returns"], self.plan.value_clip) * mask
                loss = (policy + self.plan.value_weight * value).sum() / tokens
                self.accelerator.backward(loss * self.accelerator.num_processes)  # gradients are averaged over processes, not added
            change = ((log_probs - part["log_probs"]) * mask).detach()
            off = change.exp() - 1  # the ratio less 1; off - change is k3 of KL(pi_old || pi), Schulman (2020)
            gauges = policy, value, off - change, (off.abs() > self.plan.clip).float(), off.abs()
            sums = sums + torch.stack([gauge.detach().sum() for gauge in gauges])
        policy, value, kl, clipped, error = (self._total(*sums) / tokens).tolist()
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.plan.max_gradient))
        self._demand_finite(batch, policy_loss=policy, value_loss=value, gradient=norm)
        return {"policy_loss": policy, "value_loss": value, "approx_kl": kl, "clip_fraction": clipped, "ratio_error": error,
                "gradient_norm": norm}

    def _parts(self, batch: dict, minibatch) -> list[torch.Tensor]:
        """The rows of a minibatch in groups of like length, small enough for one pass."""
        return minibatch[batch["attention"][minibatch].sum(1).cpu().argsort(stable=True)].split(self.plan.rows_at_once)

    def _prompt(self, number: int) -> str:
        """The prompts again and again, each time in another order."""
        turn, place = divmod(number, len(self.prompts))
        return self.prompts[np.random.default_rng((self.seed, turn)).permutation(len(self.prompts))[place]]

    def _total(self, *sums: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(torch.stack(sums).to(self.accelerator.device), "sum")

    def _demand_finite(self, batch: dict, **numbers: float) -> None:
        bad = [name for name, number in numbers.items() if not math.isfinite(number)]
        if bad:
            path = self.folder.parent / f"{self.folder.name.strip('.')}_batch_{self.accelerator.process_index}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({name: value.cpu() for name, value in batch.items()}, path)
            raise TrainingStopped(f"{', '.join(bad)} not finite: PPO has stopped before it could spoil the weights. The batch is in "
                                  f"{path.name}. Look at its rewards and log-probabilities; a lower learning rate is the usual cure.")

    # --- checkpoints --------------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, history: History) -> None:
        """Write weights, optimiser, KL weight and log, whole or not at all."""
        if self.accelerator.is_main_process:
            write_checkpoint(path, self._setting(), {
                "beta": self.beta, "rows": history.rows, "optimizer": self.optimizer.state_dict(),
                "weights": {n: p.detach() for n, p in self.actor.named_parameters() if p.requires_grad}})
        self.accelerator.wait_for_everyone()

    def load(self, path: str | Path, history: History) -> int:
        """Take up what `save` wrote; returns the next step. Raises ValueError if it is damaged or another run's."""
        kept = read_checkpoint(path, self._setting(), self.accelerator.device)
        self.actor.load_state_dict(kept["weights"], strict=False)
        self.optimizer.load_state_dict(kept["optimizer"])
        self.beta, history.rows[:] = kept["beta"], kept["rows"]
        return len(kept["rows"])

    def _setting(self) -> dict:
        return {"plan": asdict(self.plan), "seed": self.seed, "number of processes": self.accelerator.num_processes,
                "first model": self.start, "reward model": getattr(self.reward, "fingerprint", None), "prompts": self.prompts,
                "limit on length": self.max_new_tokens}


def train_ppo(start: str | Path, reward: str | Path | Reward, prompts: list[str], folder: str | Path, plan: ProximalPolicyOptimisation,
              seed: int = 0, max_new_tokens: int = 96, title: str = "PPO", *, value_model: str | Path | None = None, lora=None,
              callbacks=(), checkpoint: str | Path | None = None, every: int = 10) -> History:
    """Optimise the policy in `start` against a reward and save it, adapter merged, in `folder`.

    Args:
        reward: a reward model's folder, or a function (prompts, completions) -> one number for each.
        value_model: the folder that a separate value model starts from, as a rule the reward model's; None: a head on the policy.
        lora: a `peft.LoraConfig`; None trains all weights.
        callbacks, checkpoint, every: as in `PPO.train`; the checkpoint goes when the policy has been saved.

    Returns:
        the log: `reward`, `kl` and `entropy` (nats a token), `beta`, `explained_variance` (of the returns, by the values; 1 at best, 0 for
        a constant), `rewards/rubric/mean`, `completions/mean_length` and others.
    """
    quiet()
    Accelerator(cpu=DEVICE == "cpu")  # before any model: it gives each process its own GPU
    set_seed(seed)
    policy, tokenizer = load_policy(start), load_tokenizer(start)
    reward = reward if callable(reward) else reward_of(reward)
    ppo = PPO(get_peft_model(policy, lora) if lora else policy, tokenizer, reward, prompts, plan, folder,
              reference=None if lora else load_policy(start), value_model=load_reward_model(value_model) if value_model else None,
              gauges={"rubric": lambda asked, answers: [judge(p, c).score for p, c in zip(asked, answers)]},
              max_new_tokens=max_new_tokens, seed=seed)
    history = ppo.train(History(title), callbacks, checkpoint, every)
    if ppo.accelerator.is_main_process:
        (ppo.policy.merge_and_unload() if lora else ppo.policy).save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        if checkpoint:
            Path(checkpoint).unlink(missing_ok=True)
    ppo.accelerator.wait_for_everyone()
    return history
