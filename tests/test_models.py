"""Sampling, log-probabilities and rewards against a second, slower way to the same numbers: one row at a time, no padding."""

import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from scipy import stats
from tiny import threads
from transformers import AutoModelForCausalLM

from rlhf_helpers import models
from rlhf_helpers.bootstrap import ROOT
from rlhf_helpers.models import MissingModel, chat, completion_log_probs, load_policy, load_reward_model, load_tokenizer, perplexity, sample
from rlhf_helpers.profiles import DATA

PROMPTS = [lead + prompt for lead, (prompt, _) in zip(["", "Hello. ", "Please tell me this, my friend: "] * 8, threads(24, seed=3))]
ANSWERS = [answer for _, answer in threads(23, seed=4)] + [""]


@pytest.fixture(scope="module", params=["tiny", "tiny_gpt2"])
def pair(request):
    """Model and tokenizer, once with rotary and once with learned positions."""
    folder = request.getfixturevalue(request.param)
    return load_policy(folder), load_tokenizer(folder)


@pytest.fixture(scope="module")
def llama(tiny):
    return load_policy(tiny), load_tokenizer(tiny)


def prompt_ids(tokenizer, prompt):
    text = tokenizer.apply_chat_template(chat(prompt), tokenize=False, add_generation_prompt=True)
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])


# --- sampling -----------------------------------------------------------------------------------------------------------------

def test_greedy_equals_transformers_token_for_token(pair):
    model, tokenizer = pair
    ours = sample(model, tokenizer, PROMPTS, temperature=0, max_new_tokens=48, batch_size=10)
    assert len({prompt_ids(tokenizer, p).shape[1] for p in PROMPTS}) > 3
    for k, prompt in enumerate(PROMPTS):
        ids = prompt_ids(tokenizer, prompt)
        theirs = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=48)[0, ids.shape[1]:]
        assert ours.tokens[k] == len(theirs)
        assert ours.texts[k] == tokenizer.decode(theirs, skip_special_tokens=True).strip()
        assert ours.finished[k] == (theirs[-1] == tokenizer.eos_token_id)


def test_rows_that_end_do_not_change_the_others(llama):
    together, alone = (sample(*llama, PROMPTS, temperature=0, max_new_tokens=80, batch_size=size) for size in (len(PROMPTS), 1))
    assert len(set(together.tokens)) > 2 and any(together.finished), "rows have to end at different times to test this"
    assert together == alone


def test_sampled_first_tokens_follow_the_softmax(llama):
    model, tokenizer = llama
    number, temperature = 4000, 1.3
    ids = prompt_ids(tokenizer, PROMPTS[0])
    with torch.inference_mode():
        expected = number * torch.softmax(model(ids).logits[0, -1] / temperature, -1).double().numpy()
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(rows[0] for rows in models.sample_tokens(
        model, tokenizer, ids.tolist() * number, temperature=temperature, max_new_tokens=1, generator=generator))
    common = expected >= 5
    observed = [drawn[token] for token in range(len(expected)) if common[token]]
    observed.append(number - sum(observed))
    expected = [*expected[common], expected[~common].sum()]
    assert len(observed) > 5
    assert stats.chisquare(observed, expected, sum_check=False).pvalue > 0.01


@pytest.mark.parametrize("model_class", ["LlamaForCausalLM", "GPT2LMHeadModel", "Qwen2ForCausalLM", "MistralForCausalLM", "lora"])
def test_greedy_answers_to_shared_prompts_in_any_model(model_class, llama):
    """Groups that share a prompt, beside others, against `generate` row by row; a sliding window and LoRA too."""
    _, tokenizer = llama
    torch.manual_seed(1)
    model = getattr(transformers, "LlamaForCausalLM" if model_class == "lora" else model_class)
    shape = dict(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.3,
                 pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    more = {"GPT2LMHeadModel": {}, "MistralForCausalLM": dict(intermediate_size=64, num_key_value_heads=2, sliding_window=12)}
    model = model(model.config_class(**shape, **more.get(model_class, dict(intermediate_size=64, num_key_value_heads=2)))).eval()
    if model_class == "lora":
        model = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, target_modules="all-linear")).eval()
    ids = [prompt_ids(tokenizer, prompt)[0].tolist() for prompt in PROMPTS[:5]]
    found = models.sample_tokens(model, tokenizer, [ids[k] for k in (0, 0, 1, 2, 0, 3, 4, 4)], temperature=0, max_new_tokens=40,
                                 generator=None)
    theirs = [model.generate(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long), do_sample=False,
                             max_new_tokens=40)[0, len(row):].tolist() for row in ids]
    assert found == [theirs[k] for k in (0, 0, 1, 2, 0, 3, 4, 4)]


@pytest.mark.parametrize("dart", [0.0, 0.25, 1 - 2**-53])
def test_a_dart_hits_the_token_in_whose_piece_it_falls(dart, monkeypatch):
    """At the ends of the line too, where tokens that cannot come lie."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **how: torch.full(shape, dart, dtype=torch.float64))
    logits = torch.randn(50, 500, generator=torch.Generator().manual_seed(7))
    logits[:, [0, 1, 250, 498, 499]] = -math.inf
    ends = np.cumsum(torch.softmax(logits / 0.7, -1).numpy().astype(float), axis=1)
    expected = [np.searchsorted(row, dart * row[-1], side="right") for row in ends]
    found = models._choose(logits, 0.7, None)
    assert found.tolist() == expected
    assert torch.isfinite(logits.gather(1, found[:, None])).all()


def test_sampled_groups_are_those_of_a_plain_loop(llama):
    """Seeded draws for groups that share prompts, against the slow way: whole texts read anew, ended rows left out of the draw."""
    model, tokenizer = llama
    prompts = [prompt_ids(tokenizer, PROMPTS[k])[0].tolist() for k in (3, 3, 3, 1, 3, 1, 7, 7)]
    found = models.sample_tokens(model, tokenizer, prompts, temperature=1.0, max_new_tokens=40, generator=torch.Generator().manual_seed(2))
    dice, texts = torch.Generator().manual_seed(2), [list(prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda k: (len(prompts[k]), prompts[k]))
    for _ in range(40):
        going = [k for k in order if len(texts[k]) == len(prompts[k]) or texts[k][-1] != tokenizer.eos_token_id]
        if going:
            with torch.inference_mode():
                logits = torch.stack([model(torch.tensor([texts[k]])).logits[0, -1] for k in going])
            for k, token in zip(going, models._choose(logits, 1.0, dice).tolist()):
                texts[k].append(token)
    assert found == [text[len(prompt):] for text, prompt in zip(texts, prompts)]
    assert len({len(row) for row in found}) > 3


@pytest.fixture
def two_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_what_is_sampled_does_not_depend_on_the_number_of_cores(llama, two_cores):
    """More answers than one batch takes, on two cores at a time and on one; and again with another seed."""
    prompts = PROMPTS * 12
    assert len(prompts) > models.NOT_WORTH_HALVING
    together = sample(*llama, prompts, max_new_tokens=12, seed=1, batch_size=40)
    torch.set_num_threads(1)
    assert sample(*llama, prompts, max_new_tokens=12, seed=1, batch_size=40) == together
    other = sample(*llama, prompts, max_new_tokens=12, seed=2, batch_size=40)
    assert other != together
    assert len({tuple(s.texts[k::len(PROMPTS)]) for s in (together, other) for k in range(len(PROMPTS))}) > len(PROMPTS), "batches alike"


def test_one_seed_gives_one_text_and_another_seed_another(llama):
    first, again, other = (sample(*llama, PROMPTS, max_new_tokens=30, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.texts != other.texts


def test_low_temperature_is_nearly_greedy(llama):
    assert sample(*llama, PROMPTS, temperature=1e-4, max_new_tokens=20) == sample(*llama, PROMPTS, temperature=0, max_new_tokens=20)


def test_length_limit_end_token_and_order(llama):
    model, tokenizer = llama
    samples = sample(model, tokenizer, PROMPTS, max_new_tokens=25, seed=5)
    assert all(1 <= n <= 25 for n in samples.tokens)
    assert all(finished or n == 25 for finished, n in zip(samples.finished, samples.tokens))
    assert not any("<|" in text for text in samples.texts)
    turned = sample(model, tokenizer, PROMPTS[::-1], temperature=0, max_new_tokens=25)
    assert turned.texts[::-1] == sample(model, tokenizer, PROMPTS, temperature=0, max_new_tokens=25).texts


def test_no_prompts_give_no_answers(llama, request):
    assert sample(*llama, []) == models.Samples([], [], [])
    assert completion_log_probs(*llama, [], []) == []
    model = load_reward_model(request.getfixturevalue("tiny_reward_model"))
    assert models.rewards(model, llama[1], [], []) == []


# --- log-probabilities --------------------------------------------------------------------------------------------------------

def by_hand(model, tokenizer, prompt, completion):
    """Log-probabilities of one completion from a plain forward pass without padding, positions or a mask."""
    start = prompt_ids(tokenizer, prompt)
    answer = tokenizer(completion, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    ids = torch.cat([start, torch.tensor([answer])], 1)
    with torch.inference_mode():
        logits = model(ids).logits[0].double()
    total = [logits[start.shape[1] + k - 1, token] - logits[start.shape[1] + k - 1].logsumexp(0) for k, token in enumerate(answer)]
    return torch.stack(total).float()


def test_log_probs_equal_an_unpadded_pass(pair):
    model, tokenizer = pair
    found = completion_log_probs(model, tokenizer, PROMPTS, ANSWERS, batch_size=7)
    for prompt, answer, row in zip(PROMPTS, ANSWERS, found):
        expected = by_hand(model, tokenizer, prompt, answer)
        assert row.shape == expected.shape  # the end token is one of them, also where the answer is empty
        torch.testing.assert_close(row, expected, atol=2e-4, rtol=1e-4)


def test_batches_side_by_side_give_what_they_give_one_after_the_other(llama, tiny_reward_model, two_cores):
    model, tokenizer, reading = *llama, load_reward_model(tiny_reward_model)
    reading.config.clue_weights = {"likelihood": 0.5, "repetition": -1.0}
    prompts, answers = PROMPTS * 4, ANSWERS * 4
    log_probs, read = completion_log_probs(model, tokenizer, prompts, answers, 7), models.rewards(reading, tokenizer, prompts, answers)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    torch.testing.assert_close(log_probs, completion_log_probs(model, tokenizer, prompts, answers, 7), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read, models.rewards(reading, tokenizer, prompts, answers), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("cores", "threads", "each"), [(2, 2, 1), (9, 4, 2)])
def test_batches_side_by_side_share_the_cores(two_cores, cores, threads, each):
    torch.set_num_threads(cores)
    all_at_work, names = threading.Barrier(threads, timeout=10), set()

    def work(batch):
        all_at_work.wait()  # passes only when so many batches are being done at the same time
        names.add(threading.current_thread().name)
        assert torch.get_num_threads() == each and torch.is_inference_mode_enabled()

    models.side_by_side(work, range(2 * threads))
    assert len(names) == threads and torch.get_num_threads() == cores
    with pytest.raises(ZeroDivisionError):
        models.side_by_side(lambda batch: 1 / batch, range(4))
    assert torch.get_num_threads() == cores


def test_learned_positions_would_go_wrong_without_explicit_ones(tiny_gpt2):
    """The wrong way beside the right one: left padding shifts the learned positions if none are given."""
    model, tokenizer = load_policy(tiny_gpt2), load_tokenizer(tiny_gpt2)
    short, long = PROMPTS[0], PROMPTS[2]
    batch = tokenizer.pad({"input_ids": [prompt_ids(tokenizer, p)[0].tolist() for p in (short, long)]}, padding_side="left",
                          return_tensors="pt")
    with torch.inference_mode():
        careless = model(**batch).logits[0, -1].log_softmax(-1)
        right = model(prompt_ids(tokenizer, short)).logits[0, -1].log_softmax(-1)
    assert (careless - right).abs().max() > 0.1


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PROMPTS), st.text(max_size=30)), min_size=1, max_size=5))
def test_log_probs_of_any_text_are_log_probs_in_any_batch(llama, rows):
    model, tokenizer = llama
    prompts, answers = zip(*rows)
    found = completion_log_probs(model, tokenizer, prompts, answers)
    assert all((row <= 1e-6).all() and len(row) >= 1 for row in found)
    alone = completion_log_probs(model, tokenizer, prompts[:1], answers[:1])[0]
    torch.testing.assert_close(found[0], alone, atol=2e-4, rtol=1e-4)


def test_perplexity_by_hand(llama):
    model, tokenizer = llama
    tokens = torch.cat([by_hand(model, tokenizer, p, a) for p, a in zip(PROMPTS[:6], ANSWERS[:6])])
    product = math.prod(math.exp(-t) ** (1 / len(tokens)) for t in tokens.tolist())
    assert perplexity(model, tokenizer, PROMPTS[:6], ANSWERS[:6]) == pytest.approx(product, rel=1e-4)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity(llama):
    model, tokenizer = llama
    flat = AutoModelForCausalLM.from_config(model.config)
    torch.nn.init.zeros_(flat.get_output_embeddings().weight)
    assert perplexity(flat.eval(), tokenizer, PROMPTS[:3], ANSWERS[:3]) == pytest.approx(len(tokenizer), rel=1e-4)


def test_uneven_lists_are_refused(llama):
    with pytest.raises(ValueError):
        completion_log_probs(*llama, PROMPTS, ANSWERS[:3])


# --- rewards ------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("start, suffix", [("tiny_reward_model", ""), ("tiny_reward_model", "<|user|>"), ("tiny_gpt2", "")])
def test_rewards_equal_unpadded_scores_one_by_one(start, suffix, request):
    folder = request.getfixturevalue(start)
    torch.manual_seed(3)
    model, tokenizer = load_reward_model(folder), load_tokenizer(folder)
    model.chat_template += suffix
    found = models.rewards(model, tokenizer, PROMPTS, ANSWERS)
    for prompt, answer, score in zip(PROMPTS, ANSWERS, found):
        text = tokenizer.apply_chat_template(chat(prompt, answer), tokenize=False) + suffix
        with torch.inference_mode():
            alone = model(torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])).logits
        assert alone.shape == (1, 1)
        assert score == pytest.approx(alone.item(), abs=1e-4)
    assert len({round(score, 4) for score in found}) > 10


# --- folders ------------------------------------------------------------------------------------------------------------------

def test_a_missing_folder_is_named_with_what_to_do(tmp_path):
    for load in (load_policy, load_tokenizer, load_reward_model):
        with pytest.raises(MissingModel, match=r"cannot load a model from 'sft'.*Run the notebook 03_supervised_fine_tuning again"):
            load(tmp_path / "sft")
        with pytest.raises(MissingModel, match=r"'my_model'.*Run the notebook that makes it again, or give another folder or Hub name"):
            load(tmp_path / "my_model")
        with pytest.raises(MissingModel, match=r"'base_model'.*git checkout data/base_model"):
            load(tmp_path / "base_model")


@pytest.mark.parametrize("name, damage", [
    ("model.safetensors", lambda whole: whole[: len(whole) // 2]),
    ("model.safetensors", lambda whole: b""),
    ("model.safetensors", lambda whole: b"<html>404</html>"),
    ("config.json", lambda whole: whole[: len(whole) // 2]),
    ("config.json", lambda whole: b"{}"),
    ("config.json", None),
    ("model.safetensors", None),
])
def test_a_damaged_model_is_named(tiny, tmp_path, name, damage):
    folder = shutil.copytree(tiny, tmp_path / "dpo")
    whole = (folder / name).read_bytes()
    (folder / name).unlink() if damage is None else (folder / name).write_bytes(damage(whole))
    with pytest.raises(MissingModel, match="'dpo'.*Run the notebook"):
        load_policy(folder)


@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda whole: b"", lambda whole: b"[]"])
def test_a_damaged_tokenizer_is_named(tiny, tmp_path, damage):
    folder = shutil.copytree(tiny, tmp_path / "dpo")
    path = folder / "tokenizer.json"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(MissingModel, match="'dpo'.*Run the notebook"):
        load_tokenizer(folder)


@pytest.mark.parametrize("load", [load_policy, load_reward_model])
@pytest.mark.parametrize("key, value", [("hidden_size", 48), ("num_hidden_layers", 3)])
def test_weights_that_do_not_fit_the_config_are_refused(tiny, tmp_path, load, key, value):
    """Else the missing weights would be drawn at random, and nobody would notice."""
    folder = shutil.copytree(tiny, tmp_path / "dpo")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(MissingModel, match="'dpo' is damaged: .* weights are missing .*the first is model.*Run the notebook"):
        load(folder)


def test_loading_writes_nothing_to_stderr(tiny, capfd):
    """A notebook shows what is written there, and a learner cannot act on a library's report of a head that is new on purpose."""
    transformers.logging.set_verbosity_warning()
    load_policy(tiny), load_reward_model(tiny), load_tokenizer(tiny)
    assert capfd.readouterr().err == ""


def test_pickled_weights_are_refused(tiny, tmp_path):
    """`pytorch_model.bin` is a pickle and can run code when it is loaded."""
    folder = shutil.copytree(tiny, tmp_path / "sft")
    (folder / "model.safetensors").unlink()
    torch.save(load_policy(tiny).state_dict(), folder / "pytorch_model.bin")
    for load in (load_policy, load_reward_model):
        with pytest.raises(MissingModel, match="'sft'"):
            load(folder)


def test_code_in_a_model_folder_is_not_run(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "sft")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "trap", "auto_map": {"AutoConfig": "trap.Trap", "AutoModelForCausalLM": "trap.Trap"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\nclass Trap: pass\n")
    with pytest.raises(MissingModel):
        load_policy(folder)
    assert not (tmp_path / "sprung").exists()


def test_a_model_comes_ready_to_sample(tiny):
    model = load_policy(tiny)
    assert not model.training and model.dtype == torch.float32
    assert load_tokenizer(tiny).padding_side == "left"
    assert models.count_weights(model) == sum(tensor.numel() for tensor in model.state_dict().values()) - model.lm_head.weight.numel()


GROWTH = """
import resource, sys
from rlhf_helpers.models import completion_log_probs, load_policy, load_tokenizer
model, tokenizer = load_policy(sys.argv[1]), load_tokenizer(sys.argv[1])
answers = ["Drink a glass of water first. " * (1 + k // 30) for k in range(450)]
completion_log_probs(model, tokenizer, ["How do I sleep better?"] * 24, answers[-24:])  # the longest, so that this much is needed
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
completion_log_probs(model, tokenizer, ["How do I sleep better?"] * len(answers), answers)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of the system's figure, and how memory is kept, differ elsewhere")
def test_memory_does_not_grow_with_the_number_of_rows():
    settings = os.environ | {"MALLOC_ARENA_MAX": "1", "PYTHONPATH": str(ROOT)}
    grown = subprocess.run([sys.executable, "-c", GROWTH, str(DATA / "base_model")], env=settings, capture_output=True, text=True,
                           check=True)
    assert float(grown.stdout) < 80  # MB
