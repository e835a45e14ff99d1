"""Small things that every notebook uses: check cells, progress, tables, and plots that everyone can read."""

import html
import sys
import time

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999",
           "#882255"]  # Okabe and Ito, for the colour-blind; the last one is from Tol
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*", "h"]


def in_notebook() -> bool:
    """True inside a Jupyter kernel."""
    shell = sys.modules.get("IPython")
    return bool(shell and shell.get_ipython() and "IPKernelApp" in shell.get_ipython().config)


def check(what: str, value: float, *, at_least: float | None = None, at_most: float | None = None, bars: bool = True,
          known_miss: bool = False) -> None:
    """Print `ok: ...` if the value keeps to its bar, else raise AssertionError with the value that was measured.

    A bar that was missed, or met too narrowly to rely on, stays in its place and says so: with `known_miss` the line points to the
    README, whatever the value is, and nothing is raised.

    The printed line does not hold the value, so that it is the same in every run that passes. With `bars=False` (a profile for
    which no bar was measured) the line is printed whatever the value is, and says so.
    """
    bounds = [f"{words} {bound:g}" for words, bound in (("at least", at_least), ("at most", at_most)) if bound is not None]
    if not bounds:
        raise TypeError("check needs at_least or at_most")
    good = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    if bars and known_miss:
        print(f"open, see the README: {what} should be {' and '.join(bounds)}")
        return
    if bars and not good:  # written so that NaN fails as well
        raise AssertionError(f"{what} should be {' and '.join(bounds)}, but is {value:.4g}")
    print(f"ok: {what} is {' and '.join(bounds)}" if bars else f"no bar for this profile: {what} ({' and '.join(bounds)} elsewhere)")


class Progress:
    """One line that says how far a long step is: a bar in a notebook, nothing elsewhere. Leaves its final state in the file."""

    def __init__(self, title: str, every: float = 0.5):
        self.title, self.every, self.started, self.last = title, every, time.time(), 0.0
        self.handle = None

    def update(self, step: int, steps: int, note: str = "") -> None:
        """Show `step` of `steps`; redraws at most once in `every` seconds."""
        if not in_notebook() or (time.time() - self.last < self.every and step < steps):
            return
        from IPython.display import HTML, display
        self.last = time.time()
        text = f"{html.escape(self.title)}: {step} of {steps}{html.escape(note and ', ' + note)}"
        page = HTML(f"<progress value='{step}' max='{steps}' aria-label='{html.escape(self.title)}'></progress> {text}")
        if self.handle is None:
            self.handle = display(page, display_id=True)
        else:
            self.handle.update(page)

    def done(self) -> None:
        """Say that the step has ended, and how long it took."""
        if not in_notebook():
            return
        print(f"{self.title}: done in {time.time() - self.started:.0f} s")


def table(rows: list[list], head: list[str]):
    """A table for display: HTML in a notebook, with every cell escaped. The first column names the row."""
    from IPython.display import HTML
    style = "style='text-align:left;vertical-align:top;white-space:pre-wrap;max-width:42em;padding:.25em .7em'"
    line = "".join(f"<th scope='col' {style}>{html.escape(str(cell))}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td {style}>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return HTML(f"<table><thead><tr>{line}</tr></thead><tbody>{body}</tbody></table>")


def new_figure(width: float = 6.5, height: float = 3.4, columns: int = 1):
    """A matplotlib figure and its axes (a list where there are several columns), light grid, readable sizes."""
    import matplotlib.pyplot as plt
    plt.rcParams.update({"font.size": 10, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False,
                         "figure.dpi": 90, "axes.prop_cycle": plt.cycler(color=COLOURS)})
    figure, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained")
    return figure, axes


def plot_curve(axis, steps, values, label: str, index: int = 0, every: int = 5) -> None:
    """One line with its own colour and marker."""
    axis.plot(steps, values, color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)], markevery=every, ms=5, label=label)


class LiveCurve:
    """A callback of a training: keeps one plot for each of some logged columns up to date in a notebook, and does nothing elsewhere.

    `columns` says what to write beside the axis, by name of the column.
    """

    def __init__(self, steps: int, columns: dict[str, str], every: float = 3.0):
        self.steps, self.columns, self.every, self.rows = steps, columns, every, []
        self.handle, self.last = None, 0.0

    def __call__(self, row: dict, policy=None) -> None:
        """Take a row of the log; redraws at most once in `every` seconds, and at the last step."""
        self.rows.append(row)
        if not in_notebook() or (time.time() - self.last < self.every and row["step"] < self.steps):
            return
        import matplotlib.pyplot as plt
        from IPython.display import display
        self.last = time.time()
        figure, axes = new_figure(3.3 * len(self.columns), 2.6, columns=len(self.columns))
        for k, (axis, (column, words)) in enumerate(zip([axes] if len(self.columns) == 1 else axes, self.columns.items())):
            plot_curve(axis, [r["step"] for r in self.rows], [r[column] for r in self.rows], words, k)
            axis.set(xlabel="step", ylabel=words)
            axis.xaxis.get_major_locator().set_params(integer=True)
        plt.close(figure)
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)


def plot_fit(axis, x, y, curve, label: str, index: int = 0, groups: int = 5) -> None:
    """Means of noisy points with their intervals, and the line of the function `curve` that was fitted to them.

    x, y: (units, points). With one point a unit, units of like x are taken together in so many groups.
    """
    import numpy as np

    from .statistics import mean
    parts = np.array_split(np.argsort(x, axis=None, kind="stable"), x.shape[1] if x.shape[1] > 1 else groups)
    colour, estimates = COLOURS[index % len(COLOURS)], [mean(y.ravel()[part]) for part in parts]
    errors = [[e["estimate"] - e["low"] for e in estimates], [e["high"] - e["estimate"] for e in estimates]]
    axis.errorbar([x.ravel()[part].mean() for part in parts], [e["estimate"] for e in estimates], yerr=errors, capsize=2, ms=5,
                  fmt=MARKERS[index % len(MARKERS)], color=colour, label=label)
    line = np.linspace(0, x.max(), 100)
    axis.plot(line, curve(line), color=colour)


def plot_estimates(axis, names: list[str], estimates: list[dict], label: str) -> None:
    """A dot with its interval for each name, from top to bottom."""
    places = list(range(len(names)))[::-1]
    for place, e, k in zip(places, estimates, range(len(names))):
        axis.errorbar(e["estimate"], place, xerr=[[e["estimate"] - e["low"]], [e["high"] - e["estimate"]]], capsize=3,
                      color=COLOURS[k % len(COLOURS)], marker=MARKERS[k % len(MARKERS)])
    axis.set_yticks(places, names)
    axis.set_xlabel(label)


def plot_groups(axis, names: list[str], groups: dict[str, list[dict]], label: str) -> None:
    """For each name, from top to bottom, a dot with its interval for each group: `groups[group][k]` is the estimate of `names[k]`."""
    apart = min(0.28, 0.8 / len(groups))
    for index, (group, estimates) in enumerate(groups.items()):
        places = [apart * ((len(groups) - 1) / 2 - index) - k for k in range(len(names))]
        values = [e["estimate"] for e in estimates]
        errors = [[v - e["low"] for v, e in zip(values, estimates)], [e["high"] - v for v, e in zip(values, estimates)]]
        axis.errorbar(values, places, xerr=errors, fmt=MARKERS[index % len(MARKERS)], color=COLOURS[index % len(COLOURS)], ms=5,
                      capsize=3, label=group)
    axis.set_yticks([-k for k in range(len(names))], names)
    axis.set_xlabel(label)
    axis.legend()


def plot_points(axis, points: dict[str, tuple[dict, dict] | None], x_label: str, y_label: str) -> None:
    """A dot for each name with its interval in both directions; `points[name]` holds the estimates (x, y), or None where there is nothing
    to draw but the others keep their colours."""
    for k, (name, at) in enumerate(points.items()):
        if at is None:
            continue
        x, y = at
        errors = {f"{side}err": [[e["estimate"] - e["low"]], [e["high"] - e["estimate"]]] for side, e in (("x", x), ("y", y))}
        axis.errorbar(x["estimate"], y["estimate"], **errors, fmt=MARKERS[k % len(MARKERS)], color=COLOURS[k % len(COLOURS)],
                      capsize=3, label=name)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))  # outside, where it hides no interval
