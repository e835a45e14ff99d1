"""Our sampling beside `transformers.generate` as TRL's GRPO trainer calls it, on the same prompts; and where our time goes."""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from datasets import Dataset
from torch.profiler import ProfilerActivity, profile
from trl import GRPOConfig, GRPOTrainer

from benchmarks.watch import now
from rlhf_helpers.models import DEVICE, chat, count_weights, prompt_tokens, sample_tokens
from rlhf_helpers.training import trainer_settings

PARTS = {  # where time goes, by what the operation's name holds; the first that fits
    "matrix products": ("mm", "addmm"), "attention": ("scaled_dot_product",),
    "draw": ("rand", "uniform", "softmax", "cumsum", "searchsorted", "argmax", "exponential", "multinomial"),
    "cache": ("cat", "index_select", "copy_"),
}


@dataclass
class Speeds:
    """Seconds, `cpu` and `wall`, and tokens of each way in each repeat."""

    ours: list[dict] = field(default_factory=list)
    theirs: list[dict] = field(default_factory=list)

    def tokens_a_second(self, way: str, clock: str) -> list[float]:
        return [run["tokens"] / run[clock] for run in getattr(self, way)]


def compare(path: str | Path, model, tokenizer, prompts: list[str], group: int, repeats: int, max_new_tokens: int) -> Speeds:
    """Answer the prompts in groups with both ways in turn, each repeat with another seed; the first one of each is not counted.

    TRL's trainer loads its own copy of the model from the path: it changes what it is given in memory.
    """
    ids, speeds = [prompt_tokens(tokenizer, prompt) for prompt in prompts for _ in range(group)], Speeds()
    with TemporaryDirectory() as folder:
        settings = trainer_settings(folder, 0, per_device_train_batch_size=len(ids), num_generations=max(2, group), temperature=1.0,
                                    max_completion_length=max_new_tokens, disable_dropout=True)
        trainer = GRPOTrainer(model=str(path), reward_funcs=lambda **columns: [0.0], processing_class=tokenizer,
                              args=GRPOConfig(**settings), train_dataset=Dataset.from_list([{"prompt": chat(p)} for p in prompts]))
    trainer.model.to(next(model.parameters()).dtype)
    for seed in range(repeats + 1):
        torch.manual_seed(seed)
        ours = timed(lambda: sample_tokens(model, tokenizer, ids, temperature=1.0, max_new_tokens=max_new_tokens,
                                           generator=torch.Generator().manual_seed(seed)))  # noqa: B023
        theirs = timed(lambda: trainer._generate_single_turn(ids, None, {}, group)[0])
        if seed:
            speeds.ours.append(ours), speeds.theirs.append(theirs)
    return speeds


def timed(answer) -> dict:
    """Seconds that it takes to answer, and the number of tokens, end tokens included."""
    began = now()
    completions = answer()
    ended = now()
    return {"tokens": sum(map(len, completions)), **{name: ended[name] - began[name] for name in ended}}


@torch.inference_mode()
def same_greedy_text(model, tokenizer, prompts: list[str], max_new_tokens: int) -> bool:
    """Whether greedy answers are `generate`'s, token for token."""
    ids = [prompt_tokens(tokenizer, prompt) for prompt in prompts]
    ours = sample_tokens(model, tokenizer, ids, temperature=0, max_new_tokens=max_new_tokens, generator=None)
    batch = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt").to(model.device)
    theirs = model.generate(**batch, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id,
                            eos_token_id=tokenizer.eos_token_id)[:, batch["input_ids"].shape[1]:]
    return all(row[:len(tokens)] == tokens for row, tokens in zip(theirs.tolist(), ours))


def profiled(model, tokenizer, prompts: list[str], group: int, max_new_tokens: int) -> dict:
    """Share of the processor's time in each part of our sampling, and the least time that its arithmetic and memory traffic take.

    The floor is the larger of two: two operations for each weight and token at the rate of a large matrix product; and the weights read
    once a step, the keys and values of a row once for each of its tokens, at the rate of a copy.
    """
    ids = [prompt_tokens(tokenizer, prompt) for prompt in prompts for _ in range(group)]
    go = lambda: sample_tokens(model, tokenizer, ids, temperature=1.0, max_new_tokens=max_new_tokens,  # noqa: E731
                               generator=torch.Generator().manual_seed(0))
    go()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        completions = go()
    spent = dict.fromkeys([*PARTS, "other"], 0.0)
    for event in found.key_averages():
        part = next((part for part, names in PARTS.items() if any(name in event.key for name in names)), "other")
        spent[part] += event.self_cpu_time_total
    shares = {part: round(time / sum(spent.values()), 3) for part, time in spent.items()}
    tokens, longest, weights = sum(map(len, completions)), max(map(len, completions)), count_weights(model)
    read = sum(map(len, {tuple(row) for row in ids}))
    config, size = model.config, next(model.parameters()).element_size()
    a_token = 2 * config.num_hidden_layers * getattr(config, "num_key_value_heads", config.num_attention_heads) * (
        config.hidden_size // config.num_attention_heads) * size  # bytes of keys and values
    cached = a_token * sum(sum(range(len(p), len(p) + len(c))) for p, c in zip(ids, completions))
    products, copies = rates(next(model.parameters()).dtype)
    return {"shares": shares, "floor": {"arithmetic_s": round(2 * weights * (tokens + read) / products, 4),
                                        "memory_s": round((weights * size * longest + cached) / copies, 4),
                                        "gigaflops": round(products / 1e9, 1), "gigabytes_a_second": round(copies / 1e9, 1)}}


def rates(dtype) -> tuple[float, float]:
    """Operations a second of a large matrix product, and bytes a second that a copy reads and writes: the best of a few here."""
    square, long = torch.randn(1024, 1024, device=DEVICE, dtype=dtype), torch.ones(2**26, device=DEVICE, dtype=torch.uint8)
    into = torch.empty_like(long).copy_(long)
    best = lambda act: min(_seconds(act) for _ in range(6))  # noqa: E731
    return 2 * 1024**3 / best(lambda: square @ square), 2 * len(long) / best(lambda: into.copy_(long))


def _seconds(act) -> float:
    began = now()
    act()
    ended = now()
    return ended["wall" if torch.cuda.is_available() else "cpu"] - began["wall" if torch.cuda.is_available() else "cpu"]
