"""Fifty labels of one's own: from a few comparisons by one person to a policy that answers as this person likes.

    labels = own_labels(LabelStore(run.path("labels")))  # or simulated_labels(run, "courteous")
    outcome = personalise(run, labels)

Two steps, both small because fifty noisy labels are little:

1. **A head, not a model.** The committed reward model stays as it is and reads both answers of each label; what it holds of them in its
   hidden states (at its last token, and over the tokens of the answer) becomes forty numbers, in which answers to one prompt differ most.
   Five more are seen in the answer: words, sentences, whether it is a list, exclamation and question marks. On these and on the reward
   itself, Bradley and Terry's model is fitted with a Gaussian prior: some forty weights in place of millions.
   Each label is then predicted from all others. If that beats a coin by more than two nats, the taste counts, else it is left out:
   labels that contradict each other move nothing.
2. **Label in this person's place, and compare.** The head labels hundreds of pairs that nobody would: the best and the worst answers to a
   prompt, by taste + `KEEP` x shared reward, first among the candidates of notebook 04, then among fresh answers of the policy itself.
   From each set the policy learns by DPO, in rounds of smaller and smaller steps (online DPO: Xu et al., 2023, arXiv:2312.16682; Guo et
   al., 2024, arXiv:2402.04792). Whoever takes the best of many by a reward with errors takes its errors too. So what counts is the lower
   end of the taste, below its mean by as much as fifty labels leave open about this answer (as Coste et al., 2024, arXiv:2310.02743, have
   it with an ensemble; here the fit itself says how sure it is), and once the policy's answers surely please (`ENOUGH`), there is no
   further round. And only what passes the guard (`admissible`) is ever preferred, so that the policy does not slide into saying nothing.
   The guard holds on the short side, so there the taste is taken further: a word too many costs `BREVITY` times what the head says. The
   prior pulls each weight towards zero, and what length is worth is spread over all that grows with it, so the head says too little (the
   solutions of notebook 11 measure it). A wish for long answers is held by nothing but the head's own caution, and stays as it is.
"""

import json
import math
import random
import re
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.linalg import block_diag

from .dpo import best_and_worst, train_dpo
from .formats import as_text, atomic_write_text, read_candidates, read_json
from .labelling.session import LabellingSession
from .labelling.store import LabelStore, pairs_in
from .models import clue_weights, load_policy, load_reward_model, load_tokenizer, read_features, sample, scores
from .profiles import Training
from .rejection import centred
from .rewards import curvature, fit_weights
from .runs import ARTIFACTS, DamagedArtifact, Run, fingerprint
from .statistics import share
from .world.annotators import TASTES
from .world.grammar import write_prompt
from .world.splits import training_requests

MINIMUM = 10  # labels with a winner; fewer cannot even be checked against each other
DIRECTIONS = 40  # in which answers to one prompt differ most
STYLE = 0.5  # how far answers to one prompt differ in each mark of style, where their states differ by 1 in all
DOUBT = 1.0  # by how many standard deviations an answer has to be better for sure: what the labels leave open is not chased
BREVITY = 2.0  # how many times the price of a word counts for whoever wants fewer: fifty labels leave it too low
EVIDENCE = 2.0  # nats by which left-out labels have to be predicted better than by a coin; one set of coin flips in twenty is
ENOUGH = math.log(9)  # better than the first answers nine times in ten, at the lower end: no further round, it would follow errors
KEEP = 0.6  # weight of the shared reward beside the taste, both in units of their spread among answers to one prompt
LEARNING = Training(learning_rate=1.2e-3, batch_size=16)  # in the first round; then less by the same amount from round to round
BETA = 0.2  # of DPO; each round starts from the policy of the last, which is its reference
ROUNDS = 3  # on fresh answers, after the one on the candidates
PROMPTS = (300, 80)  # whose candidates are read; for fresh answers in each round
ANSWERS = 16  # to each of the latter
ENDS = 8  # of so many answers to a prompt one is taken from either end: the best are preferred to the worst
PAIRS = 160  # in each round at most, those that differ most


class TooFewLabels(ValueError):
    """There are not enough labels of one's own; the message says how many there are and what to do."""


# --- labels ------------------------------------------------------------------------------------------------------------------

def own_labels(store: LabelStore, annotator: str | None = None) -> list[dict]:
    """The preferences (`prompt`, `chosen`, `rejected`) that a person gave, of all persons if no name is given; newest last.

    Ties and skips have no winner and are left out, and so are tests (gold pairs, and what was asked in a chat).
    """
    pairs = {pair.id: pair for each in store.comparisons() if not each.is_test for pair in pairs_in(each)}
    rows = []
    for label in store.labels():
        own = label.kind == "person" if annotator is None else label.annotator == annotator
        if own and label.preferred and label.comparison_id in pairs:
            pair = pairs[label.comparison_id]
            chosen, rejected = sorted(pair.responses, key=lambda response: response.id != label.preferred)
            rows.append({"prompt": as_text(pair.prompt), "chosen": chosen.text, "rejected": rejected.text})
    return rows


def simulated_labels(run: Run, taste: str, number: int = 50, seed: int = 0) -> list[dict]:
    """What one of `TASTES` says to `number` comparisons `worth_asking`, through a session and a store that is thrown away."""
    if taste not in TASTES:
        raise KeyError(f"no taste {taste!r}; choose one of: {', '.join(TASTES)}")
    person, dice = TASTES[taste], random.Random(f"{taste} {seed}")
    with tempfile.TemporaryDirectory() as folder:
        store = LabelStore(Path(folder) / "labels.sqlite")
        session = LabellingSession(store, worth_asking(run, number, seed), person.name, seed, kind="simulated")
        for _ in range(session.progress().total):
            shown = session.current
            said = person.compare(shown.prompt, shown.left.text, shown.right.text, dice)
            session.choose(shown.pair_id, said.choice, said.shown_ms)
        labels = own_labels(store, person.name)
        store.close()
    return labels


# --- what the reward model holds of an answer --------------------------------------------------------------------------------

@dataclass(frozen=True)
class Reading:
    """Answers as a head sees them: the reward model's hidden `states` (answers, 3 x width), their `style` (answers, 5) and the shared
    `rewards` (answers,)."""

    states: np.ndarray
    style: np.ndarray
    rewards: np.ndarray

    @property
    def features(self) -> np.ndarray:
        """States and style side by side."""
        return np.hstack([self.states, self.style])

    @property
    def seen(self) -> np.ndarray:
        """All that a taste weighs: the features, then the shared reward."""
        return np.column_stack([self.features, self.rewards])

    def __getitem__(self, rows) -> "Reading":
        return Reading(self.states[rows], self.style[rows], self.rewards[rows])


def read_answers(model, tokenizer, prompts: list[str], answers: list[str]) -> Reading:
    """Let the reward model read each answer: its last state at the last token; of a middle layer, mean and sum over the answer."""
    features = read_features(model, tokenizer, prompts, answers, middle=True)
    states = features[:, :features.shape[1] - len(clue_weights(model))]
    return Reading(states.double().cpu().numpy(), np.array([style(answer) for answer in answers], float),
                   scores(model, features).double().cpu().numpy())


def style(answer: str) -> list[int]:
    """What anybody sees of an answer's form: words, sentences, whether it is a list, exclamation marks, question marks.

    People often want a form, and a form is told at once by counting, while the reward model's states hold it mixed with all else. The
    kind of features is that of Li et al. (2024, "Does style matter?"), who take length and layout out of people's votes with it.
    """
    sentences, is_list = re.findall(r"(?<!\d)[.!?](?=\s|$)", answer), re.search(r"(?m)^\s*(?:\d+[.)]|[-*•])\s", answer) is not None
    return [len(answer.split()), len(sentences), int(is_list), answer.count("!"), answer.count("?")]


def read_labels(model, tokenizer, labels: list[dict]) -> tuple[Reading, Reading, int]:
    """Readings of the chosen and of the rejected answer of each label, and the words of the shortest one chosen.

    Raises TooFewLabels if there are fewer than `MINIMUM`.
    """
    if len(labels) < MINIMUM:
        raise TooFewLabels(f"{len(labels)} labels with a winner are too few to learn a taste from: label at least {MINIMUM} pairs "
                           'in notebook 04 (fifty are a good start), or take a simulated person\'s: simulated_labels(run, "courteous")')
    prompts, chosen = [row["prompt"] for row in labels], [row["chosen"] for row in labels]
    return (read_answers(model, tokenizer, prompts, chosen), read_answers(model, tokenizer, prompts, [row["rejected"] for row in labels]),
            min(len(answer.split()) for answer in chosen))


def directions(reading: Reading, groups: np.ndarray, number: int = DIRECTIONS) -> np.ndarray:
    """What the head may weigh, as columns (features, number + 5): how answers to one prompt differ.

    The first are the principal components of the states' differences, scaled to a total variance of 1; then each mark of style by itself,
    scaled to a standard deviation of `STYLE`.
    """
    within = centred(reading.states, groups)
    spread = within.std(0) + 1e-6
    _, sizes, components = np.linalg.svd(within / spread, full_matrices=False)
    total = np.sqrt((sizes[:number] ** 2).sum() / len(within))
    return block_diag((components[:number] / spread).T / total, np.diag(STYLE / (centred(reading.style, groups).std(0) + 1e-6)))


def worth_asking(run: Run, number: int = 50, seed: int = 0) -> list[dict]:
    """The comparisons that tell most about a taste, as candidates of two answers each (`prompt`, `responses`), one for a prompt.

    Of six times as many pairs of the run's candidates, drawn by lot, those whose answers are furthest apart in all that the head may weigh.
    Of answers that hardly differ, even the person who wants something could say little.
    """
    rows, reading = read_candidates_of(run)
    prompts = np.array([as_text(row["prompt"]) for row in rows for _ in row["responses"]])
    seen = np.column_stack([reading.features @ directions(reading, prompts), reading.rewards / without_taste(prompts, reading).spread[1]])
    ends = np.cumsum([len(row["responses"]) for row in rows])
    pairs = [(k, *pair) for k, row in enumerate(rows) for pair in combinations(range(ends[k] - len(row["responses"]), ends[k]), 2)]
    drawn = random.Random(seed).sample(pairs, min(6 * number, len(pairs)))
    drawn.sort(key=lambda pair: -np.linalg.norm(seen[pair[1]] - seen[pair[2]]))
    chosen = {}
    for k, *pair in drawn:
        chosen.setdefault(k, [rows[k]["responses"][place - ends[k]] for place in pair])
    return [{"prompt": rows[k]["prompt"], "responses": pair} for k, pair in list(chosen.items())[:number]]


def read_candidates_of(run: Run) -> tuple[list[dict], Reading]:
    """The first of the run's candidates, as many as are read, and what the reward model holds of their answers."""
    kept = tuple(run.path(stage) for stage in ("candidates", "reward_model", "sft"))
    return _read_candidates(*kept, PROMPTS[0], kept[0].stat().st_mtime_ns, fingerprint(kept[1]))


@lru_cache(maxsize=1)  # labelling and training need the same; the last two arguments say whether it still is
def _read_candidates(candidates: Path, reward_model: Path, sft: Path, number: int, *_) -> tuple[list[dict], Reading]:
    rows = read_candidates(candidates)[:number]
    prompts = [as_text(row["prompt"]) for row in rows for _ in row["responses"]]
    answers = [response["text"] for row in rows for response in row["responses"]]
    return rows, read_answers(load_reward_model(reward_model), load_tokenizer(sft), prompts, answers)


# --- the taste ---------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Taste:
    """One person's reward: `weights` on the features plus `own` times the shared reward, in log-odds of this person's choices.

    `predicted` says in which share of the labels the others predicted the one left out; `counts` whether that was enough, else training
    leaves the taste out. `words` is the length of the shortest answer this person ever chose, `floor` the shared reward (less the mean
    of its prompt) under which an answer is too poor to be wanted for any taste. `unsure` times its transpose is the covariance of all
    weights (those of the features, then `own`): what the labels leave open about them, by Laplace's approximation.
    """

    weights: np.ndarray
    own: float
    predicted: dict
    counts: bool
    words: int
    floor: float
    spread: tuple[float, float]  # of taste and shared reward among answers to one prompt
    unsure: np.ndarray  # (features + 1, weights of the head)

    def rewards(self, reading: Reading) -> np.ndarray:
        """This person's reward of each answer."""
        return reading.features @ self.weights + self.own * reading.rewards

    def surely(self, seen: np.ndarray) -> np.ndarray:
        """What answers are chosen by, of rows of `Reading.seen` or of their differences: this person's reward at its lower end.

        That is `DOUBT` standard deviations below the fit, where a word that costs something costs `BREVITY` times as much.
        """
        weights = np.r_[self.weights, self.own]
        weights[-6] = min(weights[-6], BREVITY * weights[-6])  # words: the first of five marks of style, before the shared reward
        return seen @ weights - DOUBT * np.linalg.norm(seen @ self.unsure, axis=-1)

    def surely_above(self, prompts: list[str], reading: Reading) -> np.ndarray:
        """How far each answer's reward is above the mean of its prompt, at the lower end."""
        return self.surely(centred(reading.seen, np.array(prompts)))

    def save(self, path: Path) -> None:
        """Write everything as one JSON file."""
        atomic_write_text(path, json.dumps(asdict(self) | {"weights": self.weights.tolist(), "unsure": self.unsure.tolist()}))

    @classmethod
    def load(cls, path: Path) -> "Taste":
        """Read what `save` wrote. Raises DamagedArtifact if it is something else."""
        try:
            kept = read_json(path)
            arrays = {name: np.array(kept[name], dtype=float) for name in ("weights", "unsure")}
            numbers = {name: float(kept[name]) for name in ("own", "floor")}
            taste = cls(**kept | arrays | numbers | {"spread": tuple(map(float, kept["spread"]))})
            if (taste.weights.ndim != 1 or taste.unsure.shape[:-1] != (len(taste.weights) + 1,) or len(taste.spread) != 2
                    or [type(part) for part in (taste.predicted, taste.counts, taste.words)] != [dict, bool, int]):
                raise ValueError("a field of another kind or shape")
            return taste
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedArtifact(f"{path} is damaged or incomplete: run notebook {ARTIFACTS['personal'][1]} again") from error


def left_out(differences: np.ndarray) -> np.ndarray:
    """For each label, the log-odds that the fit to all the others gives to what was chosen."""
    return np.array([differences[k] @ fit_weights(np.delete(differences, k, 0)) for k in range(len(differences))])


def evidence(log_odds: np.ndarray) -> float:
    """By how many nats predictions of left-out labels beat a coin, at the best of the scales from 0 to 1 (0 is the coin)."""
    return max(len(log_odds) * np.log(2) - np.logaddexp(0, -scale * log_odds).sum() for scale in np.linspace(0, 1, 21))


def learn_taste(chosen: Reading, rejected: Reading, shortest: int, prompts: list[str], reading: Reading) -> Taste:
    """Fit a person's taste to labels; row k of `chosen` was preferred to row k of `rejected`.

    Args:
        shortest: words of the shortest answer that was ever chosen.
        prompts, reading: some hundred answers, several to each prompt, that say how answers differ; nobody labelled them.
    """
    base = without_taste(prompts, reading)
    basis, scale = directions(reading, np.array(prompts)), base.spread[1]
    differences = np.column_stack([(chosen.features - rejected.features) @ basis, (chosen.rewards - rejected.rewards) / scale])
    odds, weights = left_out(differences), fit_weights(differences)
    deviations = np.linalg.inv(np.linalg.cholesky(curvature(differences, weights))).T  # times its transpose: the weights' covariance
    learned = replace(base, weights=basis @ weights[:-1], own=float(weights[-1] / scale), predicted=share(odds > 0),
                      unsure=block_diag(basis, 1 / scale) @ deviations)
    if evidence(odds) <= EVIDENCE:
        return learned
    spread = centred(learned.rewards(reading), np.array(prompts)).std()
    return replace(learned, counts=True, words=shortest, spread=(float(spread), scale))


def without_taste(prompts: list[str], reading: Reading) -> Taste:
    """The control: nothing but the shared reward, with the same guard."""
    shared = centred(reading.rewards, np.array(prompts))
    floor, spread = float(np.quantile(shared, 0.25)), (1.0, float(shared.std() + 1e-9))
    weights = np.zeros(reading.features.shape[1])
    return Taste(weights, 0.0, {}, False, 1, floor, spread, np.zeros((len(weights) + 1, 1)))


# --- the policy --------------------------------------------------------------------------------------------------------------

def complete(taste: Taste, answers: list[str], finished: list[bool]) -> np.ndarray:
    """Which answers came to their end and are no shorter than the shortest that this person ever chose."""
    return np.array(finished) & np.array([len(answer.split()) >= max(1, taste.words) for answer in answers])


def admissible(taste: Taste, prompts: list[str], answers: list[str], finished: list[bool], reading: Reading) -> np.ndarray:
    """The guard: which answers may be preferred at all.

    A taste that can be satisfied by nothing will be. So an answer has to be `complete`, and not to belong to the poorest quarter by the
    shared reward, however well it fits the taste.
    """
    return complete(taste, answers, finished) & (centred(reading.rewards, np.array(prompts)) >= taste.floor)


def telling_pairs(taste: Taste, prompts: list[str], answers: list[str], finished: list[bool], reading: Reading) -> list[dict]:
    """The best and the worst answers to each prompt as preferences (`prompt`, `chosen`, `rejected`), at most `PAIRS`, the clearest first.

    Best is what is furthest above the mean of its prompt, by taste and shared reward, and passes the guard. An answer that is not even
    `complete` counts as the worst there is, so that it is not only never preferred, but also unlearned.
    """
    groups, (spread, scale) = np.array(prompts), taste.spread
    total = KEEP * centred(reading.rewards, groups) / scale
    if taste.counts:
        total += taste.surely_above(prompts, reading) / spread
    total = np.where(complete(taste, answers, finished), total, total.min())
    allowed = admissible(taste, prompts, answers, finished, reading)
    return [pair for _, pair in best_and_worst(prompts, answers, total, allowed, ENDS)[:PAIRS]]


@dataclass(frozen=True)
class Outcome:
    """What `personalise` made: the taste, how many pairs were compared in each round, and processor seconds from labels to policy."""

    taste: Taste
    compared: list[int]
    seconds: float

    def __str__(self) -> str:
        if not self.taste.predicted:
            return f"no labels were used, only the shared reward; {self.seconds:.0f} CPU seconds"
        right = f"left-out labels were predicted in {self.taste.predicted['estimate']:.0%} of {self.taste.predicted['n']} cases"
        verdict = "so the taste counts" if self.taste.counts else "which tells no taste, so only the shared reward was followed"
        return f"{right}, {verdict};\n{sum(self.compared)} pairs compared in {len(self.compared)} rounds, {self.seconds:.0f} CPU seconds"


def personalise(run: Run, labels: list[dict] | None, seed: int | None = None, folder: Path | None = None) -> Outcome:
    """Teach the SFT policy one person's taste; the policy and `taste.json` become the run's artifact `personal` (or go to `folder`).

    Args:
        labels: preferences (`prompt`, `chosen`, `rejected`) of one person, as `own_labels` gives them; None trains the control, which
            follows only the shared reward.
        seed: of the fresh prompts and answers; the run's seed if none is given.
        folder: where to write instead of the run.

    Raises:
        TooFewLabels: if fewer than `MINIMUM` labels have a winner.
        FileNotFoundError: if the run lacks candidates, SFT model or reward model; the message names the notebook.
    """
    seed, started = run.seed if seed is None else seed, time.process_time()
    for stage, notebook in (("sft", "03"), ("candidates", "04"), ("reward_model", "05")):
        if not run.has(stage):
            raise FileNotFoundError(f"{run.folder.name} has no {stage} yet: run notebook {notebook} first, or need(run, {stage!r})")
    model, tokenizer = load_reward_model(run.path("reward_model")), load_tokenizer(run.path("sft"))
    read = None if labels is None else read_labels(model, tokenizer, labels)
    rows, reading = read_candidates_of(run)
    prompts = [as_text(row["prompt"]) for row in rows for _ in row["responses"]]
    answers = [response["text"] for row in rows for response in row["responses"]]
    finished = [True] * len(answers)
    taste = learn_taste(*read, prompts, reading) if read else without_taste(prompts, reading)
    first, policy, compared = reading.seen.mean(0), run.path("sft"), []
    with run.building("personal") if folder is None else nullcontext(folder) as made:
        for number in range(1 + ROUNDS):
            if number:
                prompts, answers, finished = fresh_answers(policy, tokenizer, run, seed, number)
                reading = read_answers(model, tokenizer, prompts, answers)
                if taste.counts and taste.surely(reading.seen.mean(0) - first) >= ENOUGH:
                    break
            pairs = telling_pairs(taste, prompts, answers, finished, reading)
            if number and not pairs:  # nothing passes the guard any more: the policy of the last round is the better one
                break
            step = LEARNING.learning_rate * (1 - number / (1 + ROUNDS))
            train_dpo(policy, pairs, made, replace(LEARNING, learning_rate=step), BETA, seed + number,
                      title=f"Comparing {len(pairs)} pairs, round {number + 1}")
            policy = made
            compared.append(len(pairs))
        taste.save(made / "taste.json")
    return Outcome(taste, compared, time.process_time() - started)


def fresh_answers(policy: Path, tokenizer, run: Run, seed: int, number: int) -> tuple[list[str], list[str], list[bool]]:
    """Prompts, answers of the policy, and whether they came to their end: `ANSWERS` for each of the training prompts of a round."""
    prompts = [write_prompt(r) for r in training_requests(min(PROMPTS[1], run.profile.comparison_prompts), f"personal {seed} {number}")]
    said = sample(load_policy(policy), tokenizer, prompts * ANSWERS, seed=1000 * seed + number, max_new_tokens=run.profile.max_new_tokens)
    return prompts * ANSWERS, said.texts, said.finished
