"""The reward model: from comparisons to a number for any answer.

Bradley and Terry (1952): the probability that a person prefers answer a to answer b is the logistic function of r(a) - r(b).
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from scipy.special import expit, gammaln
from transformers import set_seed
from trl import RewardConfig, RewardTrainer

from .models import CLUES, NEW_HEAD, chat, clue_weights, load_reward_model, load_tokenizer, read_features, rewards
from .profiles import Training
from .runs import fingerprint
from .statistics import RESAMPLES, estimate_of, share
from .training import History, length_grouped, run_trainer, trainer_settings

Reward = Callable[[list[str], list[str]], Sequence[float]]  # (prompts, completions) -> one number for each
MAX_LENGTH = 256
HEAD = 100.0  # how many times faster the new head learns than the rest
PRECISION = 200.0  # of the prior when the head is fitted anew


def reading_template(template: str) -> str:
    """The chat template with which a reward model reads: after the answer comes the mark of the person's next turn.

    A reward model's score is read at the last token. At the end token a language model only knows that the turn is over; at the
    mark of the next turn it is about to predict what the person says to the answer, so what it knows of the answer is there.
    Templates without our `<|user|>` mark are left as they are.
    """
    if "'<|' + message['role'] + '|>'" not in template:
        return template
    return template + "{% if messages[-1]['role'] == 'assistant' %}{{ '<|user|>' }}{% endif %}"


def train_reward_model(start: str | Path, rows: list[dict], folder: str | Path, training: Training, seed: int = 0,
                       title: str = "Reward model") -> History:
    """Train a reward model from the policy in `start` on preferences (`prompt`, `chosen`, `rejected`) with TRL's RewardTrainer.

    The new head learns a hundred times faster than the rest: what the policy knows of an answer is there, and a body that moves before
    the head points anywhere forgets it (Kumar et al., 2022, arXiv:2202.10054).
    """
    rows = length_grouped(rows, ("prompt", "chosen", "rejected"), training.batch_size, seed)
    data = Dataset.from_list([{"chosen": chat(r["prompt"], r["chosen"]), "rejected": chat(r["prompt"], r["rejected"])} for r in rows])
    set_seed(seed)  # the new output head is drawn at random
    model = load_reward_model(start)
    tokenizer = load_tokenizer(start)
    model.config.pad_token_id = tokenizer.pad_token_id
    tokenizer.chat_template = reading_template(tokenizer.chat_template)
    settings = trainer_settings(folder, seed, training, max_length=MAX_LENGTH, center_rewards_coefficient=0.01)
    body = [weights for name, weights in model.named_parameters() if name != NEW_HEAD]
    optimiser = torch.optim.AdamW([{"params": [model.score.weight], "lr": HEAD * training.learning_rate},
                                   {"params": body, "lr": training.learning_rate}], weight_decay=0.0)
    trainer = RewardTrainer(model=model, processing_class=tokenizer, train_dataset=data, args=RewardConfig(**settings),
                            optimizers=(optimiser, None))
    return run_trainer(trainer, History(title), folder)


def fit_clues(folder: str | Path, rows: list[dict]) -> dict[str, float]:
    """Let the reward model in `folder` weigh two clues that its last state lacks: how likely the answer was, and how much of it repeats.

    The weights of the `CLUES` are fitted to the preferences (Bradley and Terry again, the present reward being given), returned, and saved
    as `clue_weights` in the model's config.json, where `rewards` finds them. A model whose output layer was not its embedding has lost
    it and cannot tell how likely a text is: it is left as it is.
    """
    model, tokenizer = load_reward_model(folder), load_tokenizer(folder)
    if not model.config.tie_word_embeddings:
        print("the clues are left out: this reward model has no output layer any more to tell how likely an answer is")
        return {}
    features = answer_features(model, tokenizer, rows, clues=True)
    states, clues = np.split(chosen_less_rejected(features, rows), [model.score.weight.shape[1]], axis=1)
    spread = clues.std(0) + 1e-9
    weights = fit_weights(clues / spread, given=states @ model.score.weight[0].tolist()) / spread
    model.config.clue_weights = dict(zip(CLUES, weights.tolist()))
    _centre(model, features)
    model.config.save_pretrained(str(folder))
    return model.config.clue_weights


def refit_head(start: str | Path, rows: list[dict], folder: str | Path, precision: float = PRECISION) -> None:
    """Bring the reward model in `start` up to date with new preferences: fit its last layer to them and save the model in `folder`.

    The body stays as it is, so this is a logistic regression on what the last layer reads, solved in a second. The present weights are the
    mean of a Gaussian prior, in which the old preferences live on; `precision` says how firm it is, with each input in units of its
    spread over the differences of the new pairs.
    """
    model, tokenizer = load_reward_model(start), load_tokenizer(start)
    features, present = answer_features(model, tokenizer, rows), last_layer(model)
    differences = chosen_less_rejected(features, rows)
    spread = differences.std(0) + 1e-9
    weights = fit_weights(differences / spread, precision, present * spread) / spread
    head, clues = np.split(weights, [model.score.weight.shape[1]])
    with torch.no_grad():
        model.score.weight.copy_(torch.from_numpy(head)[None])
    if clues.size:
        model.config.clue_weights = dict(zip(CLUES, clues.tolist()))
    _centre(model, features)
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def _centre(model, features: dict) -> None:
    """Note in the model's config what it gives these answers on average, which `rewards` takes off: comparisons leave a constant open."""
    model.config.mean_reward = float(np.mean(list(features.values()), axis=0) @ last_layer(model))


def last_layer(model) -> np.ndarray:
    """The weights of a reward model's last layer: of the state at the last token (width), then of the `CLUES` if it reads them (2)."""
    return np.array([*model.score.weight[0].tolist(), *clue_weights(model)])


def answer_features(model, tokenizer, rows: list[dict], clues: bool | None = None) -> dict[tuple[str, str], np.ndarray]:
    """What a reward model's last layer reads of each answer in the rows (features,), by prompt and answer; `clues` as in `read_features`.

    An answer that stands in several rows is read once.
    """
    if not rows:
        raise ValueError("there are no rows to train on")
    said = sorted({(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")})
    return dict(zip(said, read_features(model, tokenizer, *map(list, zip(*said)), clues).double().cpu().numpy()))


def feature_differences(model, tokenizer, rows: list[dict]) -> np.ndarray:
    """What a reward model's last layer reads of each chosen answer less what it reads of the rejected one (rows, features)."""
    return chosen_less_rejected(answer_features(model, tokenizer, rows), rows)


def chosen_less_rejected(features: dict[tuple[str, str], np.ndarray], rows: list[dict]) -> np.ndarray:
    """The difference of the `features` of the two answers of each row (rows, features)."""
    return np.stack([features[row["prompt"], row["chosen"]] - features[row["prompt"], row["rejected"]] for row in rows])


def fit_weights(differences: np.ndarray, precision: float = 1.0, prior: np.ndarray | float = 0.0,
                given: np.ndarray | float = 0.0) -> np.ndarray:
    """Weights w that maximise sum log sigma(x . w + given) - precision |w - prior|^2 / 2, x (pairs, features) being chosen less rejected.

    Bradley and Terry (1952) with a Gaussian prior, by Newton's method; the problem is convex and small.
    """
    weights = np.zeros(differences.shape[1]) + prior
    for _ in range(50):
        gradient = differences.T @ expit(-(differences @ weights + given)) - precision * (weights - prior)
        step = np.linalg.solve(curvature(differences, weights, precision, given), gradient)
        weights += step / max(1.0, np.abs(differences @ step).max() / 4)  # no leap over the bend of the logistic
        if np.abs(step).max() < 1e-8:
            break
    return weights


def curvature(differences: np.ndarray, weights: np.ndarray, precision: float = 1.0, given: np.ndarray | float = 0.0) -> np.ndarray:
    """Second derivatives, sign turned, of what `fit_weights` maximises, at these weights: (features, features).

    Its inverse is Laplace's approximation to the covariance of the weights, given the labels (MacKay, 1992).
    """
    right = expit(differences @ weights + given)
    return (differences * (right * (1 - right))[:, None]).T @ differences + precision * np.eye(len(weights))


def reward_of(folder: str | Path) -> Reward:
    """The reward model in a folder as a function of prompts and completions."""
    model, tokenizer = load_reward_model(folder), load_tokenizer(folder)

    def scored(prompts: list[str], completions: list[str]) -> list[float]:
        return rewards(model, tokenizer, prompts, completions)

    scored.fingerprint = fingerprint(Path(folder))
    return scored


def finite(reward: Reward, prompts: list[str], completions: list[str]) -> Sequence[float]:
    """The rewards of some answers. Raises ValueError for one that is no finite number, since trainers would learn from it all the same."""
    scores = reward(prompts, completions)
    for prompt, completion, score in zip(prompts, completions, scores, strict=True):
        if not math.isfinite(score):
            raise ValueError(f"the reward is {score} for the answer {completion!r} to {prompt!r}: give every answer a finite number")
    return scores


def shuffled(rows: list[dict], seed: int = 0) -> list[dict]:
    """The control: the same pairs with the label of each drawn by a coin."""
    flip = np.random.default_rng(seed).random(len(rows)) < 0.5
    return [dict(row, chosen=row["rejected"], rejected=row["chosen"]) if f else row for row, f in zip(rows, flip)]


def score_differences(model, tokenizer, rows: list[dict]) -> np.ndarray:
    """r(chosen) - r(rejected) of each row."""
    prompts = [row["prompt"] for row in rows]
    scores = rewards(model, tokenizer, prompts * 2, [r["chosen"] for r in rows] + [r["rejected"] for r in rows])
    return np.array(scores[: len(rows)]) - np.array(scores[len(rows):])


def accuracy(differences) -> dict:
    """Share of pairs in which the chosen answer has the higher reward, as an estimate with its interval."""
    return share(np.asarray(differences) > 0)


# --- rewards made of other rewards ------------------------------------------------------------------------------------------------

def plus(reward: Reward, weight: float, feature: Callable[[str], float]) -> Reward:
    """The reward plus `weight` times a feature of the answer, such as its words; a negative weight is a penalty."""
    return lambda prompts, completions: [score + weight * feature(completion)
                                         for score, completion in zip(reward(prompts, completions), completions, strict=True)]


def words_outside(low: int, high: int) -> Callable[[str], int]:
    """A feature for `plus`: by how many words an answer is shorter than `low` or longer than `high`."""
    return lambda completion: max(low - len(completion.split()), len(completion.split()) - high, 0)


def ensemble(members: list[Reward], together: Callable = np.min) -> Reward:
    """Several reward models as one; `together` makes one number of theirs. Coste et al. (2024, arXiv:2310.02743).

    Their worst-case optimisation is `np.min`: a policy has to please all members, and what only one of them mistakes for good pays
    nothing. `np.mean` averages their errors out.
    """
    return lambda prompts, completions: together([list(member(prompts, completions)) for member in members], axis=0).tolist()


def biased_labels(rows: list[dict], liking: Callable[[str], float], share_of_labels: float, seed: int = 0) -> list[dict]:
    """The pairs as an annotator with a weakness labels them.

    In this share of the pairs, drawn at random, the answer with the higher `liking` wins whatever was chosen; equal ones stay as they are.
    """
    weak = np.random.default_rng(seed).random(len(rows)) < share_of_labels
    return [dict(row, chosen=row["rejected"], rejected=row["chosen"]) if w and liking(row["rejected"]) > liking(row["chosen"]) else row
            for row, w in zip(rows, weak)]


# --- over-optimisation --------------------------------------------------------------------------------------------------------------

def best_of_n_curve(scores, values, numbers: Sequence[int]) -> np.ndarray:
    """What the best of n answers is worth, for each n, without sampling n answers anew.

    Args:
        scores: (prompts, N), by which the best is chosen; values: the same shape, what it is then worth.
        numbers: values of n, at most N.

    Returns:
        (prompts, len(numbers)): the mean of `values` at the highest score, over all ways to draw n of the N without replacement. The answer
        of rank k (1 is the worst) is the best of C(k - 1, n - 1) of the C(N, n) draws (Nakano et al., 2021, arXiv:2112.09332, appendix I).
    """
    scores, values = np.asarray(scores, dtype=float), np.asarray(values, dtype=float)
    ordered = np.take_along_axis(values, scores.argsort(1, kind="stable"), 1)
    rank, total = np.arange(1, scores.shape[1] + 1), scores.shape[1]
    return np.stack([ordered @ np.exp(_log_choose(rank - 1, n - 1) - _log_choose(total, n)) for n in numbers], 1)


def _log_choose(n, k):
    """log C(n, k), minus infinity where n < k."""
    n = np.asarray(n, dtype=float)
    inside = np.maximum(n, k)
    return np.where(n < k, -np.inf, gammaln(inside + 1) - gammaln(k + 1) - gammaln(inside - k + 1))


def gao_terms(distance, method: str) -> np.ndarray:
    """The two terms (..., 2) whose weights are alpha and -beta in the true gain R at d = sqrt(KL). Gao et al. (2023, arXiv:2210.10760).

    Best-of-n (`best_of_n`): R = d (alpha - beta d). Reinforcement learning (`rl`): R = d (alpha - beta log d).
    """
    distance = np.asarray(distance, dtype=float)
    bend = distance * (distance if method == "best_of_n" else np.log(np.maximum(distance, 1e-12)))
    return np.stack([distance, -bend], -1)


def gao_fit(distance, gain, method: str, seed: int = 0) -> dict:
    """Alpha, beta and the peak of Gao's curve by least squares, with percentile bootstrap intervals.

    Args:
        distance, gain: (units, points), d = sqrt(KL) in root nats and the true gain over the start. A unit is what is resampled: a
            prompt with its curve over n, or one step of a training.
        method: `best_of_n` or `rl`.

    Returns:
        `alpha` and `beta` as estimates with intervals; `peak`, the d of the highest gain, infinite where the curve never turns down (beta
        not above 0); `turns`, the share of resamples in which it turns at a distance that was reached.
    """
    distance, gain = np.asarray(distance, dtype=float), np.asarray(gain, dtype=float)
    dice, units, reached = np.random.default_rng(seed), len(distance), distance.max()

    def fit(rows):
        terms = gao_terms(distance[rows], method).reshape(-1, 2)
        alpha, beta = np.linalg.lstsq(terms, gain[rows].ravel(), rcond=None)[0]
        peak = (alpha / (2 * beta) if method == "best_of_n" else np.exp(min(alpha / beta - 1, 50.0))) if beta > 0 else np.inf
        return alpha, beta, max(peak, 0.0)

    best = fit(np.arange(units))
    drawn = np.array([fit(dice.integers(units, size=units)) for _ in range(RESAMPLES)])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0, method="nearest")
    found = {name: estimate_of(best[k], low[k], high[k], units) for k, name in enumerate(("alpha", "beta", "peak"))}
    return found | {"turns": float((drawn[:, 2] < reached).mean())}
