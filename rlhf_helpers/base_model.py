"""Build the practice world's base model: tokenizer, corpus, training, all from one seed.

    python -m rlhf_helpers.base_model            # up to 90 minutes on two cores; stops and goes on where it was

The corpus is a forum: questions, replies by strangers of every quality (`grammar.CROWD`), and often a word from the asker about
the reply ("That was rude."). The model only learns to continue it, so it knows the topics, the manners of the crowd, good and
bad, and what people say about them, as models that have read the web do; it has no reason yet to write what people like.
Training has rounds (`ROUNDS`). In the first the model learns to write; what it then still cannot do is in the corpus of the others more
often, as larger models get selected text in the last stage of their pre-training. In the second that is to remember what has been said:
most of its documents are long collections of tips, none of which comes twice, as some are in every round. (In answers of two or three
tips it pays so little to remember that a small model never learns it, and then draws every tip blindly.) In the last two it is to count.
The command writes `data/base_model/` (safetensors, loads with plain transformers).
"""

import argparse
import json
import math
import os
import random
import shutil
import time
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .formats import atomic_write_text, write_json
from .models import completion_log_probs, count_weights, load_policy, load_tokenizer, sample
from .runs import take_place
from .statistics import mean, share, show
from .world.catalogue import catalogue
from .world.grammar import FAULTS, PLAIN, Dice, Instruction, Request, answer, collection, knowledge, react, read_prompt, write_prompt
from .world.judge import judge, observations
from .world.splits import corpus_requests, is_reserved

BASE_MODEL = Path(__file__).resolve().parents[1] / "data" / "base_model"
SHAPE = dict(hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=6)
VOCABULARY = 3072
CONTEXT = 256
PEAK = 1e-2  # learning rate
SPECIAL = ["<|pad|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
REACTS = 0.9  # share of threads in which the asker reacts to the reply
SHARD = 4096  # documents that are drawn, sorted by length and cut into batches together
BATCH_TOKENS = 6144


@dataclass(frozen=True)
class Round:
    """One round of training: its steps, and what its corpus holds. The learning rate falls linearly from `rate` peaks to `end` peaks."""

    steps: int
    rate: float = 1.0
    end: float = 0.0
    others: float = 0.4  # share of the documents that are no threads
    collections: float = 0.5  # share of these that ask for all tips on a topic, and get many, none twice
    numbers: float = 0.0  # share of the rest that ask for a number of tips, and get as many, well and plainly
    alone: bool = True  # they come from nobody in particular and want nothing else; else they are like the questions of the threads


ROUNDS = (Round(3100, end=0.184), Round(900, others=0.8, collections=1.0), Round(2600, rate=0.3, others=0.5, collections=0.25, numbers=0.5),
          Round(500, rate=0.2, collections=0.2, numbers=0.8, alone=False))


@dataclass(frozen=True)
class Thread:
    """One thread of the forum: a question, a stranger's reply, and in most threads what the asker said to it.

    `nats` is the surprisal of the reply's derivation, an upper bound on that of its text; None for documents that are no threads.
    """

    prompt: str
    reply: str
    reaction: str | None
    nats: float | None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The thread as a chat."""
        later = [{"role": "user", "content": self.reaction}] if self.reaction else []
        return [{"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.reply}, *later]


def corpus(seed: int, shard: int, round_: Round = ROUNDS[0]) -> list[Thread]:
    """One shard of a round's corpus. As often as the round says its documents are no threads: a question for all tips on a topic, for a
    number of tips, or about a single tip."""
    threads = []
    for number, request in enumerate(islice(corpus_requests(f"{seed}/{shard}"), SHARD)):
        dice = Dice(f"thread {seed}/{shard}/{number}")
        if dice.flip(round_.others):
            short = (collection(dice) if dice.flip(round_.collections) else
                     _a_number_of_tips(dice, request, round_.alone) if dice.flip(round_.numbers) else knowledge(dice))
            threads.append(Thread(*short, None, None))
            continue
        before = dice.nats
        reply, _ = answer(dice, request)
        nats = dice.nats - before
        threads.append(Thread(write_prompt(request), reply, _reaction(dice, request, reply), nats))
    return threads


def _a_number_of_tips(dice: Dice, request: Request, alone: bool) -> tuple[str, str]:
    """This request, turned into one for a number of tips, and a plain answer that does all it asks for."""
    language = catalogue().language
    count = Instruction("count", dice.choice(language["numbers"]), dice.choice(range(4)))
    others = [wish for wish in request.instructions if ["count", wish.kind] in language["instruction_pairs"]]
    request = replace(request, persona=None, instructions=(count,)) if alone else replace(request, instructions=(count, *others[:1]))
    return knowledge(dice) if is_reserved(request) else (write_prompt(request), answer(dice, request, PLAIN)[0])


def _reaction(dice: Dice, request: Request, reply: str) -> str | None:
    if not dice.flip(REACTS):
        return None
    verdict = judge(request, reply)
    strays = sorted({a.topic for a in verdict.advice if a.topic not in (None, request.topic)})
    return react(dice, request, observations(verdict), strays)


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE on two shards of the corpus, with a chat template and different pad and end tokens."""
    texts = (text for shard in (-1, -2) for thread in corpus(seed, shard) for text in (thread.prompt, thread.reply))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=SPECIAL[0], eos_token=SPECIAL[1], additional_special_tokens=SPECIAL[2:],
        model_max_length=CONTEXT, padding_side="left", clean_up_tokenization_spaces=False)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def new_model(tokenizer, seed: int) -> LlamaForCausalLM:
    """A randomly initialised Llama-style model: rotary positions, because TRL's online trainers pad on the left."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, tie_word_embeddings=True, **SHAPE,
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))


def batches(tokenizer, seed: int, shard: int, round_: Round = ROUNDS[0]) -> list[torch.Tensor]:
    """The shard's documents as padded batches of about `BATCH_TOKENS` tokens: each (documents, tokens), long."""
    chats = [thread.messages for thread in corpus(seed, shard, round_)]
    documents = sorted(tokenizer(tokenizer.apply_chat_template(chats, tokenize=False), add_special_tokens=False)["input_ids"], key=len)
    groups, group = [], []
    for ids in documents:
        if group and len(ids) * (len(group) + 1) > BATCH_TOKENS:
            groups.append(group)
            group = []
        group.append(ids[:CONTEXT])
    groups.append(group)
    random.Random(f"batches {seed}/{shard}").shuffle(groups)
    return [tokenizer.pad({"input_ids": g}, padding_side="right", return_tensors="pt")["input_ids"] for g in groups]


def where(step: int, rounds: tuple[Round, ...]) -> tuple[Round, int]:
    """The round of this step (of the whole training, from 0), and the step within it."""
    for round_ in rounds:
        if step < round_.steps:
            return round_, step
        step -= round_.steps
    raise ValueError(f"the rounds end {step} steps before this one")


def learning_rate(step: int, rounds: tuple[Round, ...] = ROUNDS, peak: float = PEAK, warmup: int = 100) -> float:
    """Linear warm-up, and in each round a linear fall."""
    round_, inside = where(step, rounds)
    return peak * min(round_.rate * (step + 1) / warmup, round_.rate + (round_.end - round_.rate) * inside / round_.steps)


def loss_of(model, ids: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss in nats over the tokens that are no padding. ids: (documents, tokens)."""
    labels = ids.masked_fill(ids == model.config.pad_token_id, -100)
    return model(input_ids=ids, attention_mask=(labels >= 0).long(), labels=labels, use_cache=False).loss


def optimisers(model, peak: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms (Jordan et al., 2024)."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [torch.optim.Muon(matrices, lr=peak, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=peak, betas=(0.9, 0.95), weight_decay=0.0)]


def train(work: Path, rounds: tuple[Round, ...], seed: int, peak: float = PEAK):
    """Train for these rounds, saving every 100 steps so that a stopped run goes on. Writes `log.jsonl` in `work`.

    Returns model, tokenizer, and a dict with steps, tokens (padding included) and minutes.

    Raises:
        ValueError: if `work` holds a checkpoint of another seed or of other rounds.
    """
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(seed)
    model = new_model(tokenizer, seed)
    optims = optimisers(model, peak)
    steps, step, shard, position, seconds = sum(r.steps for r in rounds), 0, 0, 0, 0.0
    plan = {"rounds": [asdict(r) for r in rounds], "seed": seed, "peak": peak}
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["plan"] != plan:
            raise ValueError(f"{checkpoint} was made with {state['plan']}, not {plan}: delete it, or give another folder (--work)")
        model.load_state_dict(state["model"])
        for optim, saved in zip(optims, state["optims"]):
            optim.load_state_dict(saved)
        step, shard, position, seconds = state["step"], state["shard"], state["position"], state["seconds"]
    queue = []
    fast_loss = torch.compile(loss_of, dynamic=True) if shutil.which("g++") else loss_of  # a third faster, but it needs a compiler
    while step < steps:
        started = time.time()
        round_, inside = where(step, rounds)
        if inside == 0 < step:  # another round, another corpus
            shard, position, queue = shard + 1, 0, []
        queue = queue or batches(tokenizer, seed, shard, round_)
        if position == len(queue):
            shard, position = shard + 1, 0
            queue = batches(tokenizer, seed, shard, round_)
        for optim in optims:
            optim.param_groups[0]["lr"] = learning_rate(step, rounds, peak)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = fast_loss(model, queue[position])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad()
        step, position, seconds = step + 1, position + 1, seconds + time.time() - started
        if step % 20 == 0:
            with open(work / "log.jsonl", "a") as log:
                log.write(json.dumps({"step": step, "loss": round(loss.item(), 4), "seconds": round(seconds)}) + "\n")
        if step % 100 == 0 or step == steps:
            torch.save({"model": model.state_dict(), "optims": [o.state_dict() for o in optims], "plan": plan, "step": step,
                        "shard": shard, "position": position, "seconds": seconds}, checkpoint.with_suffix(".new"))
            os.replace(checkpoint.with_suffix(".new"), checkpoint)
    return model, tokenizer, {"steps": steps, "tokens": steps * BATCH_TOKENS, "minutes": seconds / 60}


# --- measuring ----------------------------------------------------------------------------------------------------------------

TIPS = 12  # that each topic has
HELD_OUT = 900_000  # the first of the shards that no training reaches


def bigram_log_probs(tokenizer, seed: int, threads: list[Thread], shards: int = 4) -> list[float]:
    """Log-probability of each reply token under a bigram model of the corpus, smoothed by a tenth of the unigram's share."""
    size = len(tokenizer)
    pairs = torch.zeros(size, size)
    for shard in range(shards):
        for ids in _token_rows(tokenizer, corpus(seed, shard)):
            pairs.index_put_((torch.tensor(ids[:-1]), torch.tensor(ids[1:])), torch.ones(len(ids) - 1), accumulate=True)
    unigram = (pairs.sum(0) + 1) / (pairs.sum() + size)
    bigram = 0.9 * pairs / pairs.sum(1, keepdim=True).clamp(min=1) + 0.1 * unigram
    return [math.log(bigram[a, b]) for ids in _token_rows(tokenizer, threads) for a, b in zip(ids, ids[1:])]


def _token_rows(tokenizer, threads: list[Thread]) -> list[list[int]]:
    """The reply tokens of each thread, with the assistant's mark before and the end token behind."""
    return tokenizer([f"{SPECIAL[4]}{t.reply}{SPECIAL[1]}" for t in threads], add_special_tokens=False)["input_ids"]


def measure(folder: Path, seed: int, number: int = 1000) -> dict:
    """Compare the model with its corpus on held-out threads: rates of every fault, on-topic tips, form, and perplexity.

    Both columns are read by the judge: the model's replies and the strangers' replies to the same `number` questions.
    """
    model, tokenizer = load_policy(folder), load_tokenizer(folder)
    threads = [t for t in corpus(seed, HELD_OUT) if t.nats is not None][:number]
    prompts = [t.prompt for t in threads]
    own = sample(model, tokenizer, prompts, seed=seed, max_new_tokens=128).texts
    verdicts = {"corpus": [judge(t.prompt, t.reply) for t in threads], "model": [judge(p, a) for p, a in zip(prompts, own)]}
    rates = {fault: {who: share([fault in v.faults for v in seen]) for who, seen in verdicts.items()} for fault in FAULTS}
    rates["on-topic tips"] = {who: share([a.topic == read_prompt(p).topic for p, v in zip(prompts, seen) for a in v.advice])
                              for who, seen in verdicts.items()}
    said_twice = {tips: {who: share(["repetition" in v.faults for v in seen if len(v.advice) == tips]) for who, seen in verdicts.items()}
                  | {"blind": 1 - math.perm(TIPS, tips) / TIPS ** tips} for tips in (2, 3, 4)}
    tokens = torch.cat(completion_log_probs(model, tokenizer, prompts, [t.reply for t in threads]))
    bigram = bigram_log_probs(tokenizer, seed, threads)
    return {
        "weights": count_weights(model), "samples": number, "rates": rates, "said_twice": said_twice,
        "unknown_sentences": {who: sum(v.unknown for v in seen) / sum(v.sentences for v in seen) for who, seen in verdicts.items()},
        "rubric": {who: mean([v.score for v in seen]) for who, seen in verdicts.items()},
        "nats_per_token": {"model": -tokens.mean().item(), "bigram": -sum(bigram) / len(bigram),
                           "derivation (upper bound of the corpus's entropy)": sum(t.nats for t in threads) / len(tokens)},
    }


def write_card(folder: Path, figures: dict) -> None:
    """The model card, with every figure from `measure`."""
    rates = "\n".join(f"| {name} | {r['corpus']['estimate']:.3f} | {r['model']['estimate']:.3f} | {r['model']['low']:.3f} to "
                      f"{r['model']['high']:.3f} |" for name, r in figures["rates"].items())
    said_twice = "\n".join(f"| {tips} | {row['corpus']['estimate']:.2f} | {row['model']['estimate']:.2f} | {row['model']['low']:.2f} to "
                           f"{row['model']['high']:.2f} | {row['model']['n']} | {row['blind']:.2f} |"
                           for tips, row in figures["said_twice"].items())
    nats = "\n".join(f"| {name} | {value:.3f} | {math.exp(value):.2f} |" for name, value in figures["nats_per_token"].items())
    size = (folder / "model.safetensors").stat().st_size / 1e6
    atomic_write_text(folder / "README.md", CARD.format(
        weights=figures["weights"], size=size, rates=rates, said_twice=said_twice, nats=nats, samples=figures["samples"],
        counting=sum(round_.steps for round_ in ROUNDS if round_.numbers),
        unknown=figures["unknown_sentences"], rubric={k: show(v) for k, v in figures["rubric"].items()}, **figures["training"]))


CARD = """# The base model of the practice world

A Llama-style language model (rotary positions, 4 layers, width 192, {weights:,} weights, {size:.1f} MB of safetensors) with its own
byte-level BPE tokenizer and a chat template. Capable but unaligned: it continues a made-up forum of everyday advice, in
which strangers answer questions well and badly, and says what the askers then said. Apache-2.0, as the rest of the series.

* **Load** with plain transformers: `AutoModelForCausalLM.from_pretrained("data/base_model")`.
* **Data**: drawn from the grammar in `rlhf_helpers/world` (`grammar.CROWD`), no text from elsewhere. In nine threads of ten the
  asker reacts to the reply ("That was rude."), as people on a real forum do; so the model has read what people say about
  good and bad answers before anybody trains a reward model on it. Nearly half of the documents are no threads, and free of planted
  faults: questions about a single tip ("Is it wise to ...?"), short and dense with what goes with what, and collections of many
  tips on one topic, none of them twice. In the last {counting} steps half of the former or more ask for a number of tips instead,
  and get as many. No evaluation prompt is in the corpus.
* **Rebuild**: `python -m rlhf_helpers.base_model` (seed {seed}; {steps} steps, {tokens:,} tokens, {minutes:.0f} minutes on two cores;
  a stopped run goes on). Muon for the matrices of the layers and AdamW for the rest; bfloat16 autocast, so another processor
  gives slightly other weights.
* **Use**: for learning RLHF. It knows {topics} topics and nothing else, and gives bad advice at the rates below on purpose.

## How it compares with its corpus

{samples} held-out questions, each answered once by a stranger of the corpus and once by the model (temperature 1); both read by
the judge. Rates are per answer (on-topic tips: per tip) with a 95 % Wilson interval.

| | corpus | model | interval |
|---|---|---|---|
{rates}

Of the answers with so many tips, the share in which one comes twice; the last column is what drawing them blindly from the twelve of a
topic would give.

| tips | corpus | model | interval | n (model) | blindly |
|---|---|---|---|---|---|
{said_twice}

Sentences that the judge does not understand: corpus {unknown[corpus]:.3f}, model {unknown[model]:.3f} (cut-off ends included).
Rubric score: corpus {rubric[corpus]}, model {rubric[model]}.

| replies, held out | nats a token | perplexity |
|---|---|---|
{nats}

The derivation's surprisal counts every random choice of the grammar. The same text can come about in several ways, so it is an
upper bound on the entropy of the replies, and a model can lie slightly below it.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Build data/base_model; a stopped run goes on where it was.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=BASE_MODEL.parents[1] / "runs" / "base_model", help="checkpoints and log")
    args = parser.parse_args()
    model, tokenizer, training = train(args.work, ROUNDS, args.seed)
    aside = args.work / "finished"
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    figures = measure(aside, args.seed) | {"training": training | {"seed": args.seed, "topics": len(catalogue().topics)}}
    write_json(aside / "figures.json", figures)
    write_card(aside, figures)
    beside = BASE_MODEL.with_name(".base_model.part")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(aside, beside)
    take_place(beside, BASE_MODEL)
    print((BASE_MODEL / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
