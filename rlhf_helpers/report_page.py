"""The page `report.html`: one file with its own style and pictures, no scripts, nothing from the network.

Everything that a model wrote is text here: escaped, with its own line breaks, never interpreted.
"""

import html

from .statistics import show
from .world.judge import POINTS, judge

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --soft: #f2f4f7; --line: #c9ced6; --mark: #0b5cad; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #16181c; --soft: #22262d; --line: #4a515c; --mark: #7db8f0;
  --bad: #ff9c93; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 78rem; margin: 0 auto;
  padding: 1rem 1.2rem 4rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0 1.4rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { border: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top; }
th { background: var(--soft); }
.said { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; min-width: 13rem; }
.unmet { color: var(--bad); font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-weight: 600; }
svg { width: 100%; max-width: 38rem; height: auto; } svg text { fill: var(--ink); font-size: 13px; }
svg line { stroke: var(--mark); stroke-width: 2; } svg circle { fill: var(--mark); } svg .axis { stroke: var(--line); stroke-width: 1; }
"""
PLOTS = ("rubric", "instructions_followed", "win_rate_vs_sft", "bias_gap", "unsafe_rate", "kl_from_sft", "distinct", "words")
CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}


def page(report: dict, names: dict[str, str], bars: list[dict], words: str) -> str:
    """The whole page. `names` says what each figure of the report is called, `bars` and `words` what the bars say."""
    models = list(report["rubric"])
    title = f"Report of a run: profile {report['profile']}, seed {report['seed']}"
    parts = [
        f"<h1>{_text(title)}</h1><p>{_text(words)}</p>",
        _table("The bars", ["what", "measured", "bar", "met"], [[r["what"], r["measured"], r["bar"], _met(r["met"])] for r in bars]),
        "<h2>All models</h2><p>Intervals are 95 %. All prompts are held out. The score is the rubric's, which no model was trained on."
        f"{_text(' Not in this run: ' + ', '.join(report['missing']) + '.') if report['missing'] else ''}</p>",
        f"<div class='plots'>{''.join(forest(names[kind], report[kind]) for kind in PLOTS if report.get(kind))}</div>",
        _table("Figures of all models", ["figure", *models],
               [[name, *(_figure(report[kind].get(m)) for m in models)] for kind, name in names.items() if report.get(kind)]),
        _table("Points by criterion of the rubric", ["criterion (most points)", *models],
               [[f"{c} ({most:g})", *(_figure(report["criteria"][m].get(c)) for m in models)] for c, most in POINTS.items()]),
        _table("Share of the answers with each fault", ["fault", *models],
               [[f, *(_figure(report["faults"][m].get(f)) for m in models)] for f in _keys(report["faults"])]),
        "<h2>Reward model and labels</h2>",
        _table("Reward model", ["figure", "value"], [[k, _figure(v)] for k, v in report["reward_model"].items()]),
        _table("Labels", ["figure", "value"], [[k, _figure(v)] for k, v in report["labels"].items()]),
        "<h2>The same prompts, all models</h2>",
        *(_answers(prompt, {m: texts[k] for m, texts in report["answers"].items()}) for k, prompt in enumerate(report["prompts"])),
        "<h2>What these figures do not show</h2><p>The judge is a program that knows one small world. One run is one seed: another "
        "seed gives other figures, and the intervals here do not hold that difference. A bias gap of zero on these personas says "
        "nothing about others.</p>",
    ]
    safe = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    return (f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>{safe}<meta name='viewport' content='width=device-width'>"
            f"<title>{_text(title)}</title><style>{STYLE}</style></head><body><main>\n" + "\n".join(parts) + "\n</main></body></html>\n")


def forest(title: str, figures: dict[str, dict]) -> str:
    """A dot with its interval for each name, as inline SVG with its content in words for those who cannot see it."""
    low, high = min(0.0, *(f["low"] for f in figures.values())), max(f["high"] for f in figures.values())
    place = lambda value: 110 + 290 * (value - low) / ((high - low) or 1)  # noqa: E731
    height = 26 * len(figures) + 24
    rows = []
    for k, (name, f) in enumerate(figures.items()):
        y = 26 * k + 15
        rows.append(f"<text x='0' y='{y + 4}'>{_text(name)}</text><line x1='{place(f['low']):.1f}' x2='{place(f['high']):.1f}' y1='{y}' "
                    f"y2='{y}'/><circle cx='{place(f['estimate']):.1f}' cy='{y}' r='5'/><text x='415' y='{y + 4}'>{_figure(f)}</text>")
    axis = "".join(f"<line class='axis' x1='{place(v):.1f}' x2='{place(v):.1f}' y1='0' y2='{height - 20}'/>"
                   f"<text x='{place(v):.1f}' y='{height - 5}' text-anchor='middle'>{v:.2g}</text>" for v in {low, 0.0, high})
    words = _text(f"{title}: " + "; ".join(f"{name} {_figure(f)}" for name, f in figures.items()))
    return (f"<figure><figcaption>{_text(title)}</figcaption><svg viewBox='0 0 590 {height}' role='img' aria-label='{words}'>"
            f"{axis}{''.join(rows)}</svg></figure>")


def _answers(prompt: str, answers: dict[str, str]) -> str:
    cells = "".join(f"<td class='said' dir='auto'>{_text(text)}</td>" for text in answers.values())
    points = "".join(f"<td>{judge(prompt, text).score:.1f}</td>" for text in answers.values())
    head = "".join(f"<th scope='col'>{_text(name)}</th>" for name in answers)
    return (f"<div class='scroll' tabindex='0' role='region' aria-label='{_text(prompt)}'><table><caption>{_text(prompt)}</caption>"
            f"<thead><tr><td></td>{head}</tr></thead><tbody><tr><th scope='row'>answer</th>{cells}</tr>"
            f"<tr><th scope='row'>points</th>{points}</tr></tbody></table></div>")


def _table(caption: str, head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return f"<p>{_text(caption)}: nothing was kept in this run.</p>"
    columns = "".join(f"<th scope='col'>{_text(cell)}</th>" for cell in head)
    body = "".join(f"<tr><th scope='row'>{_text(first)}</th>" + "".join(_cell(cell) for cell in rest) + "</tr>" for first, *rest in rows)
    return (f"<div class='scroll' tabindex='0' role='region' aria-label='{_text(caption)}'><table><caption>{_text(caption)}</caption>"
            f"<thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>")


def _cell(text: str) -> str:
    return f"<td{' class=unmet' if text == 'no' else ''}>{_text(text)}</td>"


def _figure(value) -> str:
    if value is None:
        return "–"
    return show(value) if isinstance(value, dict) and "estimate" in value else str(value)


def _met(met: bool | None) -> str:
    return {True: "yes", False: "no", None: "not measured"}[met]


def _keys(by_model: dict[str, dict]) -> list[str]:
    return sorted({key for figures in by_model.values() for key in figures})


def _text(text) -> str:
    return html.escape(str(text).translate(CONTROL_PICTURES))
