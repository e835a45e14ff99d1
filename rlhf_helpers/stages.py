"""The stages in order, each made from a run's earlier artifacts; `need` gives any of them, made on the spot if it must be.

This is the only module that knows the whole path. The notebooks call the same functions, one stage each.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from . import instructions
from .formats import plain_rows, read_instructions, read_preferences, write_candidates, write_instructions
from .labelling.export import export_preferences
from .labelling.session import LabellingSession
from .labelling.store import LabelStore
from .profiles import Profile
from .runs import ITERATIONS, REBUILD_BASE, DamagedArtifact, Run, in_iteration
from .world.annotators import ANNOTATORS
from .world.grammar import write_prompt
from .world.splits import training_requests

PER_PAIR = 3  # simulated annotators that label each pair a person left


def need(run: Run, stage: str) -> Path:
    """The artifact of a stage. If the run has none yet, a smaller one is made now, and said so."""
    if run.has(stage, closely=True) or (stage == "base" and not run.path("base").is_absolute()):  # else a name on the Hub
        print(f"{stage}: found ({run.path(stage).name})")
        return run.path(stage)
    if stage == "base":
        raise DamagedArtifact(f"there is no base model in {run.path('base').name}: {REBUILD_BASE}")
    print(f"{stage}: not made in this run yet; making a quick one (the notebook of that stage makes a better one)")
    MAKERS[stage](replace(run, profile=brief(run.profile)))
    return run.path(stage)


def brief(profile: Profile) -> Profile:
    """A third of a profile's data and steps, once: what a quick stage needs is as quick as itself, not quicker still."""
    if profile.brief:
        return profile
    third = lambda number: max(2, number // 3)  # noqa: E731
    return replace(profile, brief=True, instructions=third(profile.instructions), comparison_prompts=third(profile.comparison_prompts),
                   later_comparison_prompts=third(profile.later_comparison_prompts),
                   rejection=replace(profile.rejection, prompts=third(profile.rejection.prompts)),
                   online_dpo=replace(profile.online_dpo, prompts=third(profile.online_dpo.prompts)),
                   rloo=replace(profile.rloo, steps=third(profile.rloo.steps)), grpo=replace(profile.grpo, steps=third(profile.grpo.steps)),
                   ppo=replace(profile.ppo, steps=third(profile.ppo.steps)))


def make_instructions(run: Run, extra: list[dict] = ()) -> tuple[list[dict], dict]:
    """02: write `instructions.jsonl` from the teacher's rows and the learner's own (`extra`, which no filter touches)."""
    kept, dropped = instructions.filter_rows(instructions.generate(run.profile.instructions, run.seed))
    rows = [*extra, *kept]
    with run.building("instructions") as path:
        write_instructions(path, rows)
    return rows, dropped


def make_sft(run: Run):
    """03: fine-tune the base model on the training split of the instructions."""
    from .sft import train_sft
    training, _ = instructions.split(plain_rows(need(run, "instructions"), read_instructions))
    with run.building("sft") as folder:
        return train_sft(need(run, "base"), training, folder, run.profile.sft, run.seed)


# Comparisons, reward model and GRPO come in iterations: 04 to 06 make the first, 06 the later ones.

def make_candidates(run: Run, iteration: int = 1) -> list[dict]:
    """04: for each comparison prompt, a few answers of the SFT model. Later: for other prompts, two of the last policy and one of SFT."""
    from .models import load_policy, load_tokenizer, sample
    profile, last = run.profile, in_iteration("grpo", iteration - 1)
    number, speakers = (profile.comparison_prompts, ["sft"] * profile.responses) if iteration == 1 else (
        profile.later_comparison_prompts, [last, last, "sft"])
    prompts = [write_prompt(r) for r in training_requests(number, in_iteration(f"comparisons {run.seed}", iteration), profile.counts,
                                                          profile.demanding if iteration > 1 else 0.0)]
    settings = {"temperature": 1.0, "max_new_tokens": profile.max_new_tokens, "seed": run.seed}
    answers = []
    for name in dict.fromkeys(speakers):
        policy, tokenizer, asked = load_policy(need(run, name)), load_tokenizer(run.path(name)), prompts * speakers.count(name)
        texts = sample(policy, tokenizer, asked, seed=1000 * run.seed + len(answers), max_new_tokens=profile.max_new_tokens).texts
        answers += [texts[start:start + len(prompts)] for start in range(0, len(texts), len(prompts))]
    rows = [{"prompt": prompt, "responses": [{"id": f"{k}", "text": text, "model": name, "settings": settings}
                                             for k, (name, text) in enumerate(zip(speakers, texts))]}
            for prompt, *texts in zip(prompts, *answers)]
    rows = [row for row in rows if all(r["text"] for r in row["responses"])]
    with run.building(in_iteration("candidates", iteration)) as path:
        write_candidates(path, rows)
    return rows


def open_session(run: Run, annotator: str = "me", iteration: int = 1) -> LabellingSession:
    """04: the comparisons of this run, for a person to label; goes on where the store says the last session stopped."""
    from .formats import read_candidates
    candidates = read_candidates(need(run, in_iteration("candidates", iteration)))
    return LabellingSession(LabelStore(run.path(in_iteration("labels", iteration))), candidates, annotator, run.seed)


def make_preferences(run: Run, session: LabellingSession | None = None, iteration: int = 1) -> dict:
    """04: let simulated annotators label what a person left, then write `preferences.jsonl`. Returns the audit."""
    session = session or open_session(run, iteration=iteration)
    print(session.finish(fill_with=ANNOTATORS, per_pair=PER_PAIR))
    return export_preferences(session.store, run.path(in_iteration("preferences", iteration)))


def preferences(run: Run) -> tuple[list[dict], list[dict]]:
    """Plain preference rows in two parts, training and held out (one prompt in ten; a prompt's pairs stay together)."""
    rows = preference_rows(run)
    prompts = sorted({row["prompt"] for row in rows})
    held_out = set(prompts[::10])
    return [r for r in rows if r["prompt"] not in held_out], [r for r in rows if r["prompt"] in held_out]


def preference_rows(run: Run, iteration: int = 1) -> list[dict]:
    """All plain preference rows of an iteration."""
    return plain_rows(need(run, in_iteration("preferences", iteration)), read_preferences)


def make_reward_model(run: Run, iteration: int = 1):
    """05: train the reward model from SFT on the training part of the preferences. Later: refit its last layer to all new ones."""
    from .rewards import fit_clues, refit_head, train_reward_model
    if iteration > 1:
        first, rows = need(run, "reward_model"), [row for k in range(2, iteration + 1) for row in preference_rows(run, k)]
        with run.building(in_iteration("reward_model", iteration)) as folder:
            return refit_head(first, rows, folder)
    training, _ = preferences(run)
    with run.building("reward_model") as folder:
        history = train_reward_model(need(run, "sft"), training, folder, run.profile.reward_model, run.seed)
        fit_clues(folder, training[::3])  # plenty for two weights
        return history


def _prompts(run: Run, number: int, stage: str) -> list[str]:
    """Prompts on which a policy answers to learn: of training topics and wordings, drawn apart from those of all other stages."""
    return [write_prompt(r) for r in training_requests(number, stage, run.profile.counts, run.profile.demanding)]


def rl_prompts(run: Run, number: int = 1000, iteration: int = 1) -> list[str]:
    """Prompts for reinforcement learning."""
    return _prompts(run, number, in_iteration(f"rl {run.seed}", iteration))


def rejection_prompts(run: Run, iteration: int = 2) -> list[str]:
    """Prompts for all rounds of rejection sampling."""
    plan = run.profile.rejection
    return _prompts(run, plan.rounds * plan.prompts, in_iteration(f"rejection {run.seed}", iteration))


def online_prompts(run: Run) -> list[str]:
    """Prompts for all rounds of online DPO."""
    plan = run.profile.online_dpo
    return _prompts(run, plan.rounds * plan.prompts, f"online DPO {run.seed}")


def make_rejection(run: Run, iteration: int = 2) -> list[int]:
    """06, later iterations: let the last policy imitate those of its own answers that the new reward model likes best."""
    from .rejection import imitate_best
    start, reward_model = need(run, in_iteration("grpo", iteration - 1)), need(run, in_iteration("reward_model", iteration))
    with run.building(in_iteration("rejection", iteration)) as folder:
        return imitate_best(start, reward_model, rejection_prompts(run, iteration), folder, run.profile.rejection, run.seed,
                            run.profile.max_new_tokens)


def make_policy(run: Run, method: str, iteration: int = 1):
    """06: optimise SFT against the reward model with `rloo` or `grpo`; later, the policy of `make_rejection` against the new one."""
    from .rl import train_policy
    start = need(run, "sft" if iteration == 1 else in_iteration("rejection", iteration))
    reward_model, prompts = need(run, in_iteration("reward_model", iteration)), rl_prompts(run, iteration=iteration)
    with run.building(in_iteration(method, iteration)) as folder:
        return train_policy(method, start, reward_model, prompts, folder, getattr(run.profile, method), run.seed,
                            run.profile.max_new_tokens)


def make_ppo(run: Run, callbacks=()):
    """07: the same with PPO; its values come from a head on the policy. `callbacks` see each row of the log."""
    from .ppo import train_ppo
    start, reward_model = need(run, "sft"), need(run, "reward_model")
    with run.building("ppo") as folder:
        return train_ppo(start, reward_model, rl_prompts(run), folder, run.profile.ppo, run.seed, run.profile.max_new_tokens,
                         callbacks=callbacks)


def make_personal(run: Run, labels: list[dict] | None = None):
    """11: the policy of one person's labels; without any, of what persons labelled in this run, or of a simulated courteous person."""
    from .personal import MINIMUM, own_labels, personalise, simulated_labels
    for stage in ("sft", "candidates", "reward_model", "labels"):
        need(run, stage)
    if labels is None:
        labels = own_labels(LabelStore(run.path("labels")))
        if len(labels) < MINIMUM:
            print(f"personal: {len(labels)} labels by a person, so a simulated courteous one labels fifty comparisons")
            labels = simulated_labels(run, "courteous", seed=run.seed)
    return personalise(run, labels)


def make_dpo(run: Run):
    """08: DPO on the training part of the same preferences."""
    from .dpo import train_dpo
    training, _ = preferences(run)
    with run.building("dpo") as folder:
        return train_dpo(need(run, "sft"), training, folder, run.profile.dpo, run.profile.dpo_beta, run.seed)


def make_online_dpo(run: Run):
    """08: on from there, on pairs of the policy's own answers, which the newest reward model of the run labels."""
    from .dpo import train_online
    newest = next((name for k in range(ITERATIONS, 1, -1) if run.has(name := in_iteration("reward_model", k))), "reward_model")
    start, reward_model, profile = need(run, "dpo"), need(run, newest), run.profile
    with run.building("dpo_2") as folder:
        return train_online(start, reward_model, online_prompts(run), folder, profile.online_dpo, profile.dpo_beta, run.seed,
                            profile.max_new_tokens)


ITERATED = {"candidates": make_candidates, "labels": make_preferences, "preferences": make_preferences,
            "reward_model": make_reward_model, "grpo": partial(make_policy, method="grpo")}
MAKERS = {"instructions": make_instructions, "sft": make_sft, "rloo": partial(make_policy, method="rloo"), "ppo": make_ppo,
          "dpo": make_dpo, "dpo_2": make_online_dpo, "personal": make_personal,
          **{in_iteration("rejection", k): partial(make_rejection, iteration=k) for k in range(2, ITERATIONS + 1)},
          **{in_iteration(stage, k): partial(maker, iteration=k) for stage, maker in ITERATED.items() for k in range(1, ITERATIONS + 1)}}
