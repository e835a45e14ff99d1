"""What `bench` makes of its rows: ratios, a line for the history, the table."""

import numpy as np

METHODS = {  # name: the plan in the profile, what the table says
    "ppo": ("ppo", "PPO, this repository's"),
    "trl112_ppo": ("ppo", "PPO, TRL 1.12"),
    "trl_grpo": ("grpo", "GRPO, TRL as it is"),
    "trl_rloo": ("rloo", "RLOO, TRL as it is"),
    "grpo": ("grpo", "GRPO, TRL with our sampling and less padding"),
    "rloo": ("rloo", "RLOO, TRL with our sampling and less padding"),
}
BARS = {"ppo_vs_trl112_ppo": ("at most", 0.5), "ppo_vs_best_of_trl_grpo_rloo": ("at most", 1.0), "sampling_vs_generate": ("at least", 1.5)}
WORSE = 0.2  # a change of a ratio that is named
NEVER = 1e6  # seconds that stand for a target not reached


def clock(found: dict) -> str:
    """Which seconds count: the processor's, or those on the wall where a GPU does the work."""
    return "wall" if found["setting"]["machine"]["gpu"] else "cpu"


def times(found: dict, method: str) -> list[float]:
    """Seconds to the target of each seed. One that never reached it counts as `NEVER` if it is ours, and as all that it took if not:
    less than it would have needed, so that the ratios err against us."""
    return [(row["to_target"] or ({clock(found): NEVER} if method == "ppo" else row))[clock(found)]
            for row in found["policies"] if row["method"] == method]


def ratios(found: dict) -> dict:
    """Ours over theirs in time to the target (smaller is better), and in tokens a second (larger is better)."""
    pairs = {"ppo_vs_trl112_ppo": ["trl112_ppo"], "ppo_vs_best_of_trl_grpo_rloo": ["trl_grpo", "trl_rloo"]}
    result = {name: ratio(times(found, "ppo"), [times(found, rival) for rival in rivals])
              for name, rivals in pairs.items() if set(rivals) <= set(methods(found))}
    first = found["sampling"][0]
    rates = {way: [run["tokens"] / run[clock(found)] for run in first[way]] for way in ("ours", "theirs")}
    return result | {"sampling_vs_generate": ratio(rates["ours"], [rates["theirs"]])}


def ratio(mine: list[float], rivals: list[list[float]]) -> dict:
    """Median over the smallest of the rivals' medians; percentile bootstrap that draws the runs of each anew. n: runs of ours."""
    dice = np.random.default_rng(0)
    draw = lambda values: np.median(dice.choice(values, len(values)))  # noqa: E731
    drawn = [draw(mine) / min(map(draw, rivals)) for _ in range(2000)]
    return {"estimate": float(np.median(mine) / min(map(np.median, rivals))), "low": float(np.quantile(drawn, 0.025)),
            "high": float(np.quantile(drawn, 0.975)), "n": len(mine)}


def history_line(found: dict) -> dict:
    """What the history keeps of a run: commit, machine class, ratios, and the seconds that count to the target and for 1,000 answers."""
    return {"commit": found["commit"], "date": found["date"], "machine": found["setting"]["machine"], "ratios": found["ratios"],
            "seconds_to_target": {m: round(float(np.median(times(found, m))), 1) for m in methods(found)},
            "seconds_for_1000_answers": {m: round(float(np.median(thousand(found, m, clock(found)))), 1) for m in methods(found)}}


def methods(found: dict) -> list[str]:
    return [name for name in METHODS if any(row["method"] == name for row in found["policies"])]


def thousand(found: dict, method: str, which: str) -> list[float]:
    """Seconds for 1,000 sampled answers, learned from."""
    return [1000 * row[which] / row["answers"] for row in found["policies"] if row["method"] == method]


def worse(found: dict, lines: list[dict]) -> list[str]:
    """A line for each ratio that is more than a fifth worse than in the last line of the history for a machine of this class."""
    last = next((line["ratios"] for line in reversed(lines) if line["machine"] == found["setting"]["machine"]), {})
    said = []
    for name, now in found["ratios"].items():
        if name in last:
            before, after = last[name]["estimate"], now["estimate"]
            change = before / after if name == "sampling_vs_generate" else after / before
            if change > 1 + WORSE:
                said.append(f"WORSE: {name} was {before:.2f} and is {after:.2f}")
    return said


def markdown(found: dict) -> str:
    """The table, from the figures alone."""
    made = found["setting"]["machine"]
    lines = ["# Speed, side by side", "", f"Made by `python3 run.py bench` ({found['date']}, commit {found['commit']}) on: "
             f"{made['gpu'] or made['processor']}, {made['cores']} cores, {made['threads']} thread; load at the end {found['load']}. "
             f"Seconds are of the processor (CPU) and on the wall, medians with the smallest and largest in brackets.", "",
             "| ratio | measured (95 %) | bar |", "|---|---|---|"]
    for name, value in found["ratios"].items():
        lines.append(f"| {name} | {in_words(value)} | {bar(name, value)} |")
    lines += ["", f"## To the target: rubric {found['target']:.2f}, the SFT model has {found['start']:.2f}", "",
              "| method | reached | answers | CPU s | wall s | CPU s for 1,000 answers | wall s | peak MB |", "|---" * 8 + "|"]
    for method in methods(found):
        rows = [row for row in found["policies"] if row["method"] == method]
        ends = [row["to_target"] or row for row in rows]
        cells = [f"{sum(row['to_target'] is not None for row in rows)} of {len(rows)}", spread([end["answers"] for end in ends], 0),
                 *(spread([end[which] for end in ends]) for which in ("cpu", "wall")),
                 *(spread(thousand(found, method, which)) for which in ("cpu", "wall")), f"{rows[0]['peak_rss_mb']:.0f}"]
        lines.append(f"| {METHODS[method][1]} | {' | '.join(cells)} |")
    lines += ["", "Where the target was not reached, the figures are those of the whole plan. A rival's ratio takes them too, which errs "
              "against us.", "", "## Sampling", "",
              "| answers | tokens per CPU s, ours | `generate` | ratio | same greedy text | floor, s | ours, s |", "|---" * 7 + "|"]
    for row in found["sampling"]:
        mine, theirs = ([run["tokens"] / run["cpu"] for run in row[way]] for way in ("ours", "theirs"))
        floor, took = max(row["floor"]["arithmetic_s"], row["floor"]["memory_s"]), np.median([run["cpu"] for run in row["ours"]])
        same = "yes" if row["same_greedy_text"] else "NO"
        lines.append(f"| {row['answers']} in groups of {row['group']} | {spread(mine, 0)} | {spread(theirs, 0)} | "
                     f"{np.median(mine) / np.median(theirs):.2f} | {same} | {floor:.2f} | {took:.2f} |")
    shares = found["sampling"][0]["shares"]
    lines += ["", "Our time goes to: " + ", ".join(f"{part} {100 * share:.0f} %" for part, share in shares.items()) + ".", "",
              "## Growth: seconds = c size^exponent", "",
              "Start-up, about a second a training, is within: it flattens what small sizes show.", "",
              "| stage | by | CPU s at each size | exponent (95 %) |", "|---|---|---|---|"]
    for row in found["growth"]:
        sizes = sorted({n for n, _ in row["points"]})
        at = "; ".join(f"{n:,}: {np.median([t for m, t in row['points'] if m == n]):.1f}" for n in sizes)
        lines.append(f"| {row['stage']} | {row['by']} | {at} | {row['exponent']['estimate']:.2f} ({row['exponent']['low']:.2f} to "
                     f"{row['exponent']['high']:.2f}) |")
    lines += ["", "## Notebooks", ""]
    if found["notebooks"]:
        lines += ["| notebook | wall s | peak MB |", "|---|---|---|"]
        lines += [f"| {name} | {took['seconds']:.0f} | {took['peak_rss_mb']:.0f} |" for name, took in found["notebooks"].items()]
        lines.append(f"| all {len(found['notebooks'])} | {sum(took['seconds'] for took in found['notebooks'].values()):.0f} | "
                     f"{max(took['peak_rss_mb'] for took in found['notebooks'].values()):.0f} |")
    else:
        lines.append("`run.py tutorial` has not run in this run's folder, so there is nothing to show.")
    for name, shape in found["shapes"].items():
        lines += ["", f"## {name}'s shape, {shape['weights']:,} weights drawn at random", "",
                  "| what | wall s for 1,000 answers |", "|---|---|"]
        lines += [f"| sampling in groups of {row['group']}, {way} | {spread([1000 * run['wall'] / row['answers'] for run in row[way]])} |"
                  for row in shape["sampling"] for way in ("ours", "theirs")]
        lines += [f"| {METHODS[row['method']][1]} | {row.get('failed') or format(1000 * row['wall'] / row['answers'], '.1f')} |"
                  for row in shape["policies"]]
    return "\n".join(lines) + "\n"


def bar(name: str, value: dict) -> str:
    words, bound = BARS[name]
    keeps = (lambda x: x <= bound) if words == "at most" else (lambda x: x >= bound)
    sure = keeps(value["low"]) == keeps(value["high"])
    return f"{words} {bound:g}: {'met' if keeps(value['estimate']) else 'missed'}{'' if sure else ', but the interval holds the bar'}"


def in_words(value: dict) -> str:
    """Estimate and interval of a ratio; a number that comes of `NEVER` is none, and is called so."""
    told = {key: f"{value[key]:.2f}" if value[key] < NEVER / 1000 else "never" for key in ("estimate", "low", "high")}
    return f"{told['estimate']} ({told['low']} to {told['high']}, n {value['n']})"


def spread(values: list[float], digits: int = 1) -> str:
    return f"{np.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"
