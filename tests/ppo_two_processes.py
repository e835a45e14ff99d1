"""What each process of `accelerate launch` does in the test of several processes: one update on a hand-made rollout of which it has
its share of the rows, a short run of its own, then the whole path from folder to folder with LoRA.

    accelerate launch ... ppo_two_processes.py MODEL_FOLDER OUTPUT_FOLDER
"""

import sys
from pathlib import Path

import torch
from peft import LoraConfig

from rlhf_helpers import ppo
from rlhf_helpers.models import load_policy, load_tokenizer, prompt_tokens
from rlhf_helpers.profiles import ProximalPolicyOptimisation
from rlhf_helpers.training import History

PLAN = ProximalPolicyOptimisation(steps=2, batch_size=8, learning_rate=1e-3, beta=0.1, epochs=3, rows_at_once=2, stop_kl=None)


def hand_made(tokenizer) -> tuple[list[list[int]], list[list[int]]]:
    """Token numbers of eight prompts and completions of very different lengths; half of the completions have an end token."""
    prompts = [prompt_tokens(tokenizer, "Hello there. " * (k % 3) + "How do I swim?") for k in range(8)]
    dice = torch.Generator().manual_seed(5)
    completions = [torch.randint(20, 200, (1 + 2 * k % 9,), generator=dice).tolist() for k in range(8)]
    return prompts, [tokens + [tokenizer.eos_token_id] * (k % 2) for k, tokens in enumerate(completions)]


def weights_after_update(folder, out, log=None):
    """Weights and log after three epochs on this process's share of the rows."""
    trainer = ppo.PPO(load_policy(folder), load_tokenizer(folder), lambda prompts, texts: [len(text) / 10 for text in texts],
                      [f"How do I swim {k} miles?" for k in range(20)], PLAN, out, reference=load_policy(folder), max_new_tokens=8)
    process, processes = trainer.accelerator.process_index, trainer.accelerator.num_processes
    mine = slice(process * 8 // processes, (process + 1) * 8 // processes)
    prompts, completions = hand_made(trainer.tokenizer)
    batch = ppo.make_batch(prompts[mine], completions[mine], trainer.tokenizer.pad_token_id, "cpu")
    order = torch.arange(8 // processes)
    batch, row = trainer.assess(batch, (torch.arange(8) % 3.0)[mine], order)
    row |= trainer.update(batch, [order] * PLAN.epochs)
    weights = {name: p.detach().clone() for name, p in trainer.actor.named_parameters()}
    if log is not None:
        sampled = []
        trainer.reward = lambda prompts, texts: sampled.extend(prompts) or [len(text) / 10 for text in texts]
        log |= {"log": trainer.train(History("short")).rows, "sampled": sampled, "processes": processes, "process": process}
    return weights, row


def main(folder: str, out: str) -> None:
    log = {}
    weights, row = weights_after_update(folder, out, log)
    lora = ppo.train_ppo(folder, lambda prompts, texts: [len(text) / 10 for text in texts], ["How do I swim?"] * 9, Path(out) / "lora",
                         PLAN, max_new_tokens=8, lora=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.save({"weights": weights, "row": row, "lora": lora.rows, **log}, Path(out) / f"after_{log['process']}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
