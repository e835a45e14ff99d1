"""The page `report.html`: one file with its own style and pictures, no scripts, nothing from the network.

Everything that a model wrote is text here: escaped, with its own line breaks, never interpreted.
"""

import html

from .bars import bars, in_words, verdict
from .statistics import show
from .world.judge import POINTS, judge

FIGURES = {  # figure of the report: what a reader would call it
    "rubric": "rubric score, 0 to 10",
    "instructions_followed": "instructions followed",
    "instructions_strict": "prompts with all instructions followed",
    "win_rate_vs_sft": "win rate against SFT",
    "bias_gap": "bias gap",
    "unsafe_rate": "unsafe rate",
    "kl_from_sft": "KL from SFT, nats an answer",
    "distinct": "distinct answers",
    "distinct_2": "distinct word pairs in ten answers",
    "words": "words an answer",
}
PLOTS = ("rubric", "instructions_followed", "win_rate_vs_sft", "bias_gap", "unsafe_rate", "kl_from_sft", "distinct", "words")
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --soft: #f2f4f7; --line: #c9ced6; --mark: #0b5cad;
  --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #16181c; --soft: #22262d; --line: #4a515c;
  --mark: #7db8f0; --bad: #ff9c93; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 78rem;
  margin: 0 auto; padding: 1rem 1.2rem 4rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.4rem; }
.scroll { overflow-x: auto; } .wide { font-size: .78rem; } .wide th, .wide td { padding: .2rem .3rem; }
table { border-collapse: collapse; margin: .6rem 0 1.4rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { border: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top; }
th { background: var(--soft); }
.said { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.unmet { color: var(--bad); font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-weight: 600; }
svg { width: 100%; max-width: 38rem; height: auto; } svg text { fill: var(--ink); font-size: 13px; }
svg line { stroke: var(--mark); stroke-width: 2; } svg circle { fill: var(--mark); }
svg .axis { stroke: var(--line); stroke-width: 1; }
"""
READING = """Intervals are 95 %, n is the number of cases. All prompts are held out. The score is the rubric's, which no model was
trained on. <em>best_of_n</em> is the best of a few SFT answers by the reward model; <em>grpo_2</em> went on after new comparisons,
<em>dpo_2</em> on pairs of its own answers. <em>Bias gap</em>: of two prompts that differ only in who asks, the share of condescending
answers to one less that to the other. A dash: not measured, or there is none (best_of_n has no weights of its own, so no KL)."""
REWARD_MODEL = """Shares of fresh pairs in which the reward model prefers the answer that the judge prefers; the <em>clearer half</em>
are those at least the median gap in points apart, <em>on labels</em> stands the held-out label in the judge's place. The <em>label
ceiling</em> is the share of labels that agree with the judge; the <em>shuffled control</em> learned from winners drawn by a coin,
n times."""
LIMITS = """The judge is a program that knows one small world. One run is one seed: another seed gives other figures, and the
intervals on this page do not hold that difference. A bias gap of zero between these personas says nothing about others."""
CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}


def page(report: dict) -> str:
    """The whole page of a report as `build_report` makes it."""
    title = _text(f"Report of a run: profile {report['profile']}, seed {report['seed']}")
    points = "".join(f"<li>{_text(line)}</li>" for line in verdict(report).splitlines())
    safe = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    body = "\n".join([f"<h1>{title}</h1><ul>{points}</ul>", _bars(report), *_all_models(report),
                      "<h2>Reward model and labels</h2>", f"<p>{REWARD_MODEL}</p>", _figures("Reward model", report["reward_model"]),
                      _figures("Labels", report["labels"]), "<h2>The same prompts, all models</h2>", *_answers(report),
                      f"<h2>What these figures do not show</h2><p>{LIMITS}</p>"])
    return (f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>{safe}<meta name='viewport' "
            f"content='width=device-width'><title>{title}</title><style>{STYLE}</style></head>"
            f"<body><main>\n{body}\n</main></body></html>\n")


def _bars(report: dict) -> str:
    rows = [[row["what"], row["measured"], row["bar"], in_words(row["met"])] for row in bars(report)]
    return _table("The bars", ["what", "measured", "bar", "met"], rows)


def _all_models(report: dict) -> list[str]:
    models, missing = list(report["rubric"]), ", ".join(report["missing"])
    criteria = [[f"{name} (at most {most:g})", *(_words(report["criteria"][m].get(name)) for m in models)]
                for name, most in POINTS.items()]
    faults = [[name.replace("_", " "), *(_words(report["faults"][m].get(name)) for m in models)]
              for name in sorted({name for found in report["faults"].values() for name in found})]
    figures = [[words, *(_words(report[figure].get(m)) for m in models)] for figure, words in FIGURES.items()]
    plots = "".join(forest(FIGURES[figure], report[figure]) for figure in PLOTS if report[figure])
    return [f"<h2>All models</h2><p>{READING}{_text(f' Not in this run: {missing}.') if missing else ''}</p>",
            f"<div class='plots'>{plots}</div>", _table("Figures of all models", ["figure", *models], figures),
            _table("Points by criterion of the rubric", ["criterion", *models], criteria),
            _table("Share of the answers with each fault", ["fault", *models], faults)]


def forest(title: str, figures: dict[str, dict]) -> str:
    """A dot with its interval for each name, as inline SVG; its label says the same in words."""
    low, high = (most(0.0, float(f"{end:.1g}"), end)  # at least as far as to a round number, which gets a line
                 for most, end in ((min, min(f["low"] for f in figures.values())), (max, max(f["high"] for f in figures.values()))))
    height, place = 26 * len(figures) + 24, lambda value: 110 + 290 * (value - low) / ((high - low) or 1)
    ends = {0.0, *(float(f"{end:.1g}") for end in (low, high) if abs(end) > 0.1 * (high - low))}  # no two labels on one another
    drawn = [f"<line class='axis' x1='{place(v):.1f}' x2='{place(v):.1f}' y1='0' y2='{height - 20}'/>"
             f"<text x='{place(v):.1f}' y='{height - 5}' text-anchor='middle'>{v:.2g}</text>" for v in sorted(ends)]
    for y, (name, f) in zip(range(15, height, 26), figures.items()):
        drawn += [f"<text x='0' y='{y + 4}'>{_text(name)}</text>",
                  f"<line x1='{place(f['low']):.1f}' x2='{place(f['high']):.1f}' y1='{y}' y2='{y}'/>",
                  f"<circle cx='{place(f['estimate']):.1f}' cy='{y}' r='5'/>",
                  f"<text x='415' y='{y + 4}'>{_words(f)}</text>"]
    label = _text(f"{title}: " + "; ".join(f"{name} {_words(f)}" for name, f in figures.items()))
    return (f"<figure><figcaption>{_text(title)}</figcaption><svg viewBox='0 0 640 {height}' role='img' "
            f"aria-label='{label}'>{''.join(drawn)}</svg></figure>")


def _answers(report: dict) -> list[str]:
    found = []
    for k, prompt in enumerate(report["prompts"]):
        rows = [[name, f"{judge(prompt, texts[k]).score:.1f}", texts[k]] for name, texts in report["answers"].items()]
        found.append(_table(prompt, ["model", "points", "answer"], rows, "<td class='said' dir='auto'>"))
    return found


def _figures(caption: str, figures: dict) -> str:
    return _table(caption, ["figure", "value"], [[name.replace("_", " "), _words(value)] for name, value in figures.items()])


def _table(caption: str, head: list[str], rows: list[list[str]], cell: str = "<td>") -> str:
    if not rows:
        return f"<p>{_text(caption)}: this run kept nothing.</p>"
    wide = " class='wide'" if len(head) > 6 else ""
    columns = "".join(f"<th scope='col'>{_text(name)}</th>" for name in head)
    body = "".join(f"<tr><th scope='row'>{_text(first)}</th>"
                   + "".join(("<td class='unmet'>" if text == "no" and cell == "<td>" else cell) + f"{_text(text)}</td>" for text in rest)
                   + "</tr>" for first, *rest in rows)
    return (f"<div class='scroll' tabindex='0' role='region' aria-label='{_text(caption)}'><table{wide}>"
            f"<caption>{_text(caption)}</caption><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>")


def _words(value: object) -> str:
    if value is None:
        return "–"
    if not (isinstance(value, dict) and "estimate" in value):
        return str(value)
    return show(value).replace(" to ", "\u00a0to\u00a0").replace(" n ", " n\u00a0")  # a line may break before the interval and before n


def _text(text: object) -> str:
    return html.escape(str(text).translate(CONTROL_PICTURES))
