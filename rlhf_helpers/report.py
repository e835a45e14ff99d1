"""The final report of a run: `report.json` for machines, `report.html` for people (see `report_page`).

    python -m rlhf_helpers.report runs/a runs/b runs/c [--out table.md]

prints the figures of several runs (seeds) as Markdown: means with their interval over the seeds, and whether each bar is met.
"""

import argparse
import sys
from pathlib import Path

from .bars import bars, in_words, time_bars
from .formats import BadData, Problem, atomic_write_text, read_json, write_json
from .report_page import FIGURES, page
from .statistics import over_seeds, show

SHAPE = {"profile": str, "seed": int, "final": str, "notebooks": dict, "reward_model": dict, "labels": dict,
         **dict.fromkeys(FIGURES, dict)}
KINDS = {str: "a text", int: "a whole number", dict: "an object"}
AGAIN = "run notebook 09_final_assessment again"


# --- from a run to its report -----------------------------------------------------------------------------------------

def build_report(run) -> dict:
    """All figures of a run, each with `estimate`, `low`, `high`, `n`; models that the run has not are under `missing`."""
    from .assessment import FIXED_PROMPTS, MODELS, kl_from, present, summary, wins
    names = present(run)
    tuned = [name for name in names if name not in ("base", "sft")] if "sft" in names else []
    summaries = {name: summary(run, name) for name in names}
    by_model = {figure: {name: s[figure] for name, s in summaries.items() if figure in s}
                for figure in (*FIGURES, "criteria", "faults")}
    by_model["win_rate_vs_sft"] = {name: wins(run, name) for name in tuned}
    by_model["kl_from_sft"] = {name: kl_from(run, name) for name in tuned if name != "best_of_n"}
    return {"profile": run.profile.name, "seed": run.seed, "final": run.profile.final,
            "notebooks": run.kept("notebooks", {}), "missing": [name for name in MODELS if name not in names], **by_model,
            "reward_model": run.kept("reward_model_figures", {}), "labels": run.kept("label_figures", {}),
            "prompts": list(FIXED_PROMPTS), "answers": {name: _fixed_answers(run, name) for name in names}}


def _fixed_answers(run, name: str) -> list[str]:
    from .assessment import FIXED_PROMPTS, fixed_answers
    from .models import load_policy, load_reward_model, load_tokenizer
    if name != "best_of_n":
        return fixed_answers(load_policy(run.path(name)), load_tokenizer(run.path(name)), run.seed)
    from .rejection import best_of_n
    return best_of_n(load_policy(run.path("sft")), load_reward_model(run.path("reward_model")),
                     load_tokenizer(run.path("sft")), list(FIXED_PROMPTS), run.profile.best_of, seed=run.seed)


def write_report(run, report: dict | None = None) -> Path:
    """Write `report.json` and `report.html` into the run's folder and give the path of the page."""
    report = report or build_report(run)
    write_json(run.folder / "report.json", report)
    atomic_write_text(run.folder / "report.html", page(report))
    return run.folder / "report.html"


# --- reading a report -------------------------------------------------------------------------------------------------

def read_report(path: str | Path) -> dict:
    """A checked report. Raises BadData that names file, line, field and fix of all that is wrong."""
    report = read_json(path)
    faults = list(_faults(report))
    if faults:
        text = Path(path).read_text(encoding="utf-8-sig")
        raise BadData([Problem(str(path), _line_of(text, field), field, what, AGAIN) for field, what in faults])
    return report


def _faults(report: object):
    if not isinstance(report, dict):
        yield "", "is not an object"
        return
    for field, kind in SHAPE.items():
        if field not in report:
            yield field, "is missing"
        elif not isinstance(report[field], kind) or isinstance(report[field], bool):
            yield field, f"is not {KINDS[kind]}"
    for group in (*FIGURES, "reward_model"):
        for name, figure in _entries(report, group):
            yield from _figure_faults(f"{group}.{name}", figure)
    if isinstance(report.get("rubric"), dict) and isinstance(report.get("final"), str):
        missing = report.get("missing")
        if report["final"] not in [*report["rubric"], *(missing if isinstance(missing, list) else [])]:
            yield "final", "is neither a model of rubric nor named under missing"
    for name, took in _entries(report, "notebooks"):
        if not isinstance(took, dict) or not all(_is_number(took.get(part)) for part in ("seconds", "peak_rss_mb")):
            yield f"notebooks.{name}", "is not an object with the numbers seconds and peak_rss_mb"


def _entries(report: dict, group: str):
    return report[group].items() if isinstance(report.get(group), dict) else ()


def _figure_faults(field: str, figure: object):
    if not isinstance(figure, dict):
        yield field, "is not an object with estimate, low, high and n"
        return
    wrong = [part for part in ("estimate", "low", "high", "n") if not _is_number(figure.get(part))]
    for part in wrong:
        yield f"{field}.{part}", "is missing or not a number"
    if not wrong and not figure["low"] - 1e-9 <= figure["estimate"] <= figure["high"] + 1e-9:
        yield f"{field}.estimate", f"is {figure['estimate']:g}, outside its interval"
    if not wrong and figure["n"] < 1:
        yield f"{field}.n", f"is {figure['n']:g}, not a number of cases"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _line_of(text: str, field: str) -> int:
    """The line of a field such as `rubric.sft.low` in a JSON text; of the nearest part that is there."""
    position = 0
    for part in field.split("."):
        position = max(position, text.find(f'"{part}"', position))
    return text.count("\n", 0, position) + 1


# --- several seeds ----------------------------------------------------------------------------------------------------

def combine(reports: list[dict]) -> dict:
    """One report in the same shape, each figure a mean over the seeds; `lowest` is the least lower bound of a single run.

    Raises ValueError where the reports are not of one profile, or not of different seeds.
    """
    profiles, seeds = sorted({report["profile"] for report in reports}), [report["seed"] for report in reports]
    if len(profiles) > 1:
        raise ValueError(f"the runs have different profiles: {', '.join(profiles)}. Give runs of one profile.")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the runs have the seeds {seeds}. Give runs of different seeds (run.py tutorial --seed N).")
    return {"profile": profiles[0], "seeds": seeds, "final": reports[0]["final"],
            **{group: _merge([r.get(group, {}) for r in reports]) for group in (*FIGURES, "reward_model")}}


def _merge(groups: list[dict]) -> dict:
    names = [name for name in groups[0] if all(name in group for group in groups)]
    figures = {name: [group[name] for group in groups] for name in names}
    return {name: over_seeds(f) | {"lowest": min(e["low"] for e in f)} for name, f in figures.items()}


def markdown(reports: list[dict]) -> str:
    """The bars, then all figures, of one or more runs as Markdown tables."""
    combined = combine(reports)
    models, seeds = list(combined["rubric"]), ", ".join(map(str, combined["seeds"]))
    rows = bars(combined) + time_bars([report["notebooks"] for report in reports])
    return "\n".join([
        f"Profile {combined['profile']}, {f'seeds {seeds}: means over the seeds' if len(reports) > 1 else f'seed {seeds}'} "
        f"(95 % intervals {'between the seeds' if len(reports) > 1 else 'within this one run'}).", "",
        *_table(["what", "measured", "bar", "met"], [[r["what"], r["measured"], r["bar"], in_words(r["met"])] for r in rows]),
        "",
        *_table(["figure", *models], [[words, *(_cell(combined[figure].get(name)) for name in models)]
                                      for figure, words in FIGURES.items()]), ""])


def _cell(e: dict | None) -> str:
    return show(e, with_n=False) if e else "–"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)]


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m rlhf_helpers.report", description="Figures of runs as Markdown")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of one profile, each with another seed")
    parser.add_argument("--out", type=Path, help="file to write the tables to as well")
    options = parser.parse_args(arguments)
    try:
        tables = markdown([read_report(folder / "report.json") for folder in options.runs])
        print(tables)
        if options.out:
            atomic_write_text(options.out, tables)
    except (OSError, ValueError) as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
