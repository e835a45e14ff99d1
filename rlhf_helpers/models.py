"""Load models, talk to them, and read their log-probabilities.

Weights are read as safetensors only and no code from a model's folder is run. Chats are left-padded and carry explicit
positions, so models with learned positions (GPT-2) are read as correctly as rotary ones.
"""

import logging
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, DynamicCache
from transformers.utils.logging import disable_progress_bar

from .runs import ARTIFACTS, REBUILD_BASE

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCHES_AT_ONCE = 4  # at most: each needs memory of its own
NOT_WORTH_HALVING = 64  # answers: one batch of as many is sampled on two cores in the time of two halves, one a core
SAFE = dict(trust_remote_code=False, use_safetensors=True)
CLUES = ("likelihood", "repetition")  # of an answer: what a reward model may weigh beside the state at its last token
NEW_HEAD = "score.weight"  # what a policy lacks to be a reward model
logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)  # its report of missing weights; `_load_model` reads it
logging.getLogger("transformers.distributed").setLevel(logging.ERROR)  # the line above would make it speak of sharding
disable_progress_bar()  # of loading weights: it would go to the stderr of every notebook


class MissingModel(FileNotFoundError):
    """A model folder is missing or damaged; the message says which and what to do."""


def load_tokenizer(path: str | Path):
    """The tokenizer of a model folder or Hub name, padding on the left."""
    tokenizer = _load(AutoTokenizer, path, trust_remote_code=False)
    tokenizer.padding_side = "left"
    return tokenizer


def load_policy(path: str | Path):
    """A causal language model in 32-bit floats, ready to sample from."""
    return _load_model(AutoModelForCausalLM, path)


def load_reward_model(path: str | Path):
    """A model with one output, the reward of a whole chat, and in `chat_template` the form in which it reads chats.

    A policy's folder gives one whose output head is drawn at random.
    """
    model = _load_model(AutoModelForSequenceClassification, path, num_labels=1)
    model.chat_template = load_tokenizer(path).chat_template
    return model


def _load_model(kind, path, **settings):
    model, report = _load(kind, path, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **SAFE, **settings)
    bad = sorted(set(report["missing_keys"]) - {NEW_HEAD}) + sorted(key for key, *_ in report["mismatched_keys"])
    if bad:  # transformers would draw these at random and go on
        raise MissingModel(f"{Path(path).name!r} is damaged: {len(bad)} of its weights are missing or of another shape than its "
                           f"config.json says, the first is {bad[0]}. {_advice(path)}")
    return model.to(DEVICE).eval()


def _load(kind, path, **settings):
    try:
        return kind.from_pretrained(str(path), **settings)
    except Exception as problem:  # a damaged file makes the libraries raise anything, even plain Exception
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise MissingModel(f"cannot load a model from {Path(path).name!r}: {reason} {_advice(path)}") from problem


def _advice(path) -> str:
    if Path(path).name == "base_model":
        return f"To have the base model whole, {REBUILD_BASE}."
    notebook = dict(ARTIFACTS.values()).get(Path(path).name, "that makes it")
    return f"Run the notebook {notebook} again, or give another folder or Hub name."


def count_weights(model) -> int:
    """Number of parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def chat(prompt: str, completion: str | None = None) -> list[dict[str, str]]:
    """A prompt, or a prompt and its completion, as a list of messages."""
    messages = [{"role": "user", "content": prompt}]
    return messages if completion is None else [*messages, {"role": "assistant", "content": completion}]


@dataclass
class Samples:
    """Sampled completions: `texts[i]` answers prompt i; `finished[i]` says whether it ended by itself; `tokens[i]` its length."""

    texts: list[str]
    finished: list[bool]
    tokens: list[int]


def sample(model, tokenizer, prompts: list[str], *, temperature: float = 1.0, max_new_tokens: int = 96, seed: int = 0,
           batch_size: int = 160) -> Samples:
    """One completion for each prompt, by plain ancestral sampling (temperature 0: greedy)."""
    ids = [prompt_tokens(tokenizer, prompt) for prompt in prompts]
    completions = sample_tokens(model, tokenizer, ids, temperature=temperature, max_new_tokens=max_new_tokens, batch_size=batch_size,
                                generator=torch.Generator().manual_seed(seed))
    finished = [bool(tokens) and tokens[-1] == tokenizer.eos_token_id for tokens in completions]
    texts = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in completions]
    return Samples(texts, finished, [len(tokens) for tokens in completions])


def prompt_tokens(tokenizer, prompt: str) -> list[int]:
    """The tokens of a chat that asks the prompt, up to where the answer begins."""
    text = tokenizer.apply_chat_template(chat(prompt), tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def sample_tokens(model, tokenizer, prompt_ids: list[list[int]], *, temperature: float, max_new_tokens: int, generator,
                  batch_size: int = 160) -> list[list[int]]:
    """The tokens of one completion for each prompt, its end token included if it came to one.

    Prompts of like length share a batch. On a CPU the number of batches is even, so that two cores have the same to do; each draws with a
    generator of its own: what is drawn does not depend on the number of cores.
    """
    number = math.ceil(len(prompt_ids) / batch_size)
    if number % 2 and len(prompt_ids) > NOT_WORTH_HALVING and model.device.type == "cpu":
        number += 1
    order = sorted(range(len(prompt_ids)), key=lambda i: (len(prompt_ids[i]), prompt_ids[i]))  # equal prompts side by side
    batches = [order[len(order) * k // number:len(order) * (k + 1) // number] for k in range(number)]
    generators = [generator] if number < 2 else [
        torch.Generator().manual_seed(seed) for seed in torch.randint(2**62, (number,), generator=generator).tolist()]
    completions = [[] for _ in prompt_ids]

    def answer(batch, generator):
        found = _sample_batch(model, tokenizer, [prompt_ids[i] for i in batch], temperature, max_new_tokens, generator)
        for i, tokens in zip(batch, found):
            completions[i] = tokens

    side_by_side(answer, batches, generators)
    return completions


def _sample_batch(model, tokenizer, prompt_ids, temperature, max_new_tokens, generator) -> list[list[int]]:
    """As `sample_tokens`.

    Equal prompts are read once. Answers that have ended leave the batch when they are a tenth of it: each time copies the whole cache,
    which costs more than to carry a few of them along.
    """
    distinct = {tuple(ids): place for place, ids in enumerate(dict.fromkeys(map(tuple, prompt_ids)))}
    padded = tokenizer.pad({"input_ids": [list(ids) for ids in distinct]}, padding_side="left", return_tensors="pt").to(model.device)
    ids, mask = padded["input_ids"], padded["attention_mask"]
    positions, cache = (mask.cumsum(-1) - 1).clamp(min=0), DynamicCache(config=model.config)
    going = torch.arange(len(prompt_ids), device=model.device)  # the answers that have not ended,
    rows = torch.tensor([distinct[tuple(ids)] for ids in prompt_ids], device=model.device)  # and the row of the batch that each is in
    completions, shared = [[] for _ in prompt_ids], len(distinct) < len(prompt_ids)
    for _ in range(max_new_tokens):
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, cache=cache, use_cache=True,
                       logits_to_keep=1).logits[rows, -1].float()
        chosen = _choose(logits, temperature, generator)
        for answer, token in zip(going.tolist(), chosen.tolist()):
            completions[answer].append(token)
        unended = chosen != tokenizer.eos_token_id
        going, rows, chosen = going[unended], rows[unended], chosen[unended]
        if len(going) == 0:
            break
        positions = positions[:, -1:]
        if shared or len(rows) <= 0.9 * len(mask):
            cache.reorder_cache(rows)
            mask, positions, rows, shared = mask[rows], positions[rows], torch.arange(len(rows), device=model.device), False
        ids = chosen.new_full((len(mask), 1), tokenizer.pad_token_id)
        ids[rows, 0] = chosen
        mask, positions = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1), positions + 1
    return completions


def _choose(logits: torch.Tensor, temperature: float, generator) -> torch.Tensor:
    """Next tokens, (batch,), from logits (batch, vocabulary).

    A dart is thrown at a line on which each token has a piece as long as its probability. `torch.multinomial` lets all tokens race instead,
    with a random number each, which takes several times as long.
    """
    if temperature == 0:
        return logits.argmax(-1)
    ends = torch.softmax(logits / temperature, dim=-1).cpu().cumsum(-1, dtype=torch.float64)
    darts = ends[:, -1:] * torch.rand(len(ends), 1, generator=generator, dtype=torch.float64)
    return torch.searchsorted(ends, darts, right=True).squeeze(1).to(logits.device)


def side_by_side(work: Callable, *batches: Iterable) -> None:
    """As `map`, without gradients; on a CPU for a few batches at a time, each in a thread that has its share of the cores.

    Batches as small as ours gain little if several cores share one (two: a tenth); with a core for each they took 0.6 of the time.
    """
    batches, work = list(zip(*batches)), torch.inference_mode()(work)
    cores = torch.get_num_threads()
    threads = min(cores, BATCHES_AT_ONCE, len(batches))
    if DEVICE != "cpu" or threads < 2:
        for batch in batches:
            work(*batch)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(cores // threads,)) as pool:
            list(pool.map(work, *zip(*batches)))
    finally:
        torch.set_num_threads(cores)  # what a thread sets also counts for threads to come


def completion_log_probs(model, tokenizer, prompts: list[str], completions: list[str], batch_size: int = 12) -> list[torch.Tensor]:
    """log p of each token of each completion, its end token included, given prompt and earlier tokens. One (tokens,) tensor a row.

    The longest rows come first: shorter ones fit where they were in memory, while ever longer ones never do (1.1 GB for 2,000 rows).
    """
    rows = [(prompt_tokens(tokenizer, p), tokenizer(c, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id])
            for p, c in zip(prompts, completions, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: sum(map(len, rows[i])))
    found = [torch.empty(0)] * len(rows)

    def read(picked):
        batch = tokenizer.pad({"input_ids": [rows[i][0] + rows[i][1] for i in picked]}, padding_side="left", return_tensors="pt")
        ids, mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, :-1].float()
        log_probs = torch.log_softmax(logits, -1).gather(2, ids[:, 1:, None]).squeeze(2).cpu()
        for row, i in zip(log_probs, picked):
            found[i] = row[-len(rows[i][1]):].clone()

    side_by_side(read, (order[start:start + batch_size] for start in reversed(range(0, len(order), batch_size))))
    return found


def perplexity(model, tokenizer, prompts: list[str], completions: list[str]) -> float:
    """exp of the mean negative log-probability of a completion's token, end token included."""
    tokens = torch.cat(completion_log_probs(model, tokenizer, prompts, completions))
    return math.exp(-tokens.mean().item())


def read_chats(model, tokenizer, prompts: list[str], completions: list[str], batch_size: int = 8):
    """Chats in the form that a reward model reads, in batches: yields the places of a batch's rows and its inputs, padded on the right.

    Small batches of like length: on a CPU they took half the time of batches of 64, which are mostly padding.
    """
    texts = [tokenizer.apply_chat_template(chat(p, c), tokenize=False, chat_template=model.chat_template)
             for p, c in zip(prompts, completions, strict=True)]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in reversed(range(0, len(order), batch_size)):
        picked = order[start:start + batch_size]
        yield picked, tokenizer.pad({"input_ids": [ids[i] for i in picked]}, padding_side="right", return_tensors="pt").to(model.device)


@torch.inference_mode()
def read_features(model, tokenizer, prompts: list[str], completions: list[str], clues: bool | None = None,
                  middle: bool = False) -> torch.Tensor:
    """What the last layer of a reward model weighs of each chat: the body's state at the last token, then the `CLUES`.

    `clues` says whether they are read; None: if the model weighs them. `middle` reads the states of the middle layer as well: their mean
    and their sum over the answer's tokens stand before the clues.

    Returns:
        (chats, width), with the middle three times as wide, with the clues two wider. The likelihood is what the body itself, with its
        embeddings as output layer, gives the answer: the mean log-probability of its tokens in nats.
    """
    clues = bool(clue_weights(model)) if clues is None else clues
    words = model.get_input_embeddings().weight
    width = words.shape[1]
    found = words.new_empty(len(prompts), width * (3 if middle else 1) + (len(CLUES) if clues else 0))
    asked = set(prompts) if clues or middle else ()  # and here, since a tokenizer bears one thread
    starts = {prompt: len(prompt_tokens(tokenizer, prompt)) for prompt in asked}

    def read(chats):
        picked, batch = chats
        body = model.base_model(**batch, use_cache=False, output_hidden_states=middle)
        for row, (i, length) in enumerate(zip(picked, batch["attention_mask"].sum(1).tolist())):
            hidden = body.last_hidden_state[row, :length]
            found[i, :width] = hidden[-1]
            if middle:
                states = body.hidden_states[len(body.hidden_states) // 2][row, starts[prompts[i]]:length]
                found[i, width:3 * width] = torch.cat([states.mean(0), states.sum(0)])
            if clues:
                start = starts[prompts[i]]
                log_probs = torch.log_softmax(hidden[start - 1:-1] @ words.T, -1)
                found[i, -2] = log_probs.gather(1, batch["input_ids"][row, start:length, None]).mean()
                found[i, -1] = repetition(completions[i])

    side_by_side(read, read_chats(model, tokenizer, prompts, completions))
    return found


def repetition(text: str) -> float:
    """The share of a text's runs of three words that came before in it (rep-n of Welleck et al., 2020, arXiv:1908.04319, with n = 3)."""
    words = text.lower().split()
    runs = list(zip(words, words[1:], words[2:]))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def clue_weights(model) -> list[float]:
    """The weights of the `CLUES` in a reward model's last layer; none if it does not read them."""
    weights = getattr(model.config, "clue_weights", None) or {}
    return [weights[name] for name in CLUES if weights]


def rewards(model, tokenizer, prompts: list[str], completions: list[str]) -> list[float]:
    """The reward model's score of each prompt with its completion, in the same chat form that it was trained on."""
    return scores(model, read_features(model, tokenizer, prompts, completions)).tolist() if prompts else []


@torch.inference_mode()
def scores(model, features: torch.Tensor) -> torch.Tensor:
    """The score (chats,) of each row of `read_features`.

    To what its head makes of the last state a model with `clue_weights` in its config adds its `CLUES` times these; one with `mean_reward`
    takes that off.
    """
    found = model.score(features[:, :model.score.in_features]).squeeze(-1) - getattr(model.config, "mean_reward", 0.0)
    weights = clue_weights(model)
    return found + features[:, -len(weights):] @ features.new_tensor(weights) if weights else found
