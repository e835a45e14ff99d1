"""Build the practice world's base model: tokenizer, corpus, training, all from one seed.

    python -m rlhf_helpers.base_model            # about an hour on two cores; stops and goes on where it was

The corpus is a forum: questions, replies by strangers of every quality (`grammar.CROWD`), and often a word from the asker about
the reply ("That was rude."). The model only learns to continue it, so it knows the topics, the manners of the crowd, good and
bad, and what people say about them, as models that have read the web do; it has no reason yet to write what people like.
The last command writes `data/base_model/` (safetensors, loads with plain transformers).
"""

import argparse
import json
import math
import os
import random
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .world.grammar import Dice, answer, react, write_prompt
from .world.judge import judge, observations
from .world.splits import corpus_requests

BASE_MODEL = Path(__file__).resolve().parents[1] / "data" / "base_model"
SHAPE = dict(hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=6)
VOCABULARY = 3072
CONTEXT = 256
SPECIAL = ["<|pad|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
REACTS = 0.8  # share of threads in which the asker reacts to the reply
SHARD = 4096  # documents that are drawn, sorted by length and cut into batches together
BATCH_TOKENS = 6144


@dataclass(frozen=True)
class Thread:
    """One thread of the forum: a question, a stranger's reply, and in most threads what the asker said to it.

    `nats` is the surprisal of the reply's derivation, an upper bound on that of its text.
    """

    prompt: str
    reply: str
    reaction: str | None
    nats: float

    @property
    def messages(self) -> list[dict[str, str]]:
        """The thread as a chat."""
        later = [{"role": "user", "content": self.reaction}] if self.reaction else []
        return [{"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.reply}, *later]


def corpus(seed: int, shard: int) -> list[Thread]:
    """One shard of the corpus."""
    threads = []
    for number, request in enumerate(islice(corpus_requests(f"{seed}/{shard}"), SHARD)):
        dice = Dice(f"thread {seed}/{shard}/{number}")
        reply, _ = answer(dice, request)
        nats = dice.nats
        reaction = react(dice, observations(judge(request, reply))) if dice.flip(REACTS) else None
        threads.append(Thread(write_prompt(request), reply, reaction, nats))
    return threads


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


def batches(tokenizer, seed: int, shard: int) -> list[torch.Tensor]:
    """The shard's documents as padded batches of about `BATCH_TOKENS` tokens: each (documents, tokens), long."""
    chats = [thread.messages for thread in corpus(seed, shard)]
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


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, a plateau, and a linear fall to zero over the last four tenths."""
    return peak * min(1.0, (step + 1) / warmup, (steps - step) / (0.4 * steps))


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


def train(work: Path, steps: int, seed: int, peak: float) -> LlamaForCausalLM:
    """Train for `steps` batches, saving every 100 so that a stopped run goes on. Writes `log.jsonl` in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(seed)
    model = new_model(tokenizer, seed)
    optims = optimisers(model, peak)
    step, shard, position, seconds = 0, 0, 0, 0.0
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optim, saved in zip(optims, state["optims"]):
            optim.load_state_dict(saved)
        step, shard, position, seconds = state["step"], state["shard"], state["position"], state["seconds"]
    queue = batches(tokenizer, seed, shard)
    while step < steps:
        started = time.time()
        if position == len(queue):
            shard, position = shard + 1, 0
            queue = batches(tokenizer, seed, shard)
        for optim in optims:
            optim.param_groups[0]["lr"] = learning_rate(step, steps, peak)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, queue[position])
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
            torch.save({"model": model.state_dict(), "optims": [o.state_dict() for o in optims], "step": step, "shard": shard,
                        "position": position, "seconds": seconds}, checkpoint.with_suffix(".new"))
            os.replace(checkpoint.with_suffix(".new"), checkpoint)
    return model, tokenizer
