"""Runs the numbered notebooks in order, and refreshes the outputs that are committed with them.

    python -m rlhf_helpers.series tutorial [--only NN | --from NN] [--seed N] [--profile NAME] [--run NAME]
    python -m rlhf_helpers.series refresh [--solutions] [NN ...]

`run.py` calls this with the Python of its environment. `tutorial` changes no notebook: it executes copies, which it
saves in runs/<name>/executed/. `refresh` writes into the notebooks themselves, each only after all its cells have run.
"""

import base64
import io
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path

try:  # takes seconds
    import nbformat
    import papermill
    import psutil
    from nbclient import NotebookClient
    from PIL import Image

    from rlhf_helpers.bootstrap import ROOT
    from rlhf_helpers.formats import atomic_write_text
    from rlhf_helpers.profiles import get_profile
    from run import SetupError, empty, environment, parse
except KeyboardInterrupt:
    print("\nStopped before the first notebook. The same command starts again.", file=sys.stderr)
    sys.exit(130)

NOTEBOOKS = ROOT / "notebooks"
CELL_SECONDS = 900
QUIET_KERNEL = ["--log-level=CRITICAL"]  # else it warns at its start, and complains when Ctrl-C ends it
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
PNG = "image/png"


class SeriesError(Exception):
    """Why the series stopped, in words for the reader, and the exit code."""

    def __init__(self, message, code=1):
        super().__init__(message)
        self.code = code


def main(arguments=None):
    options = parse(sys.argv[1:] if arguments is None else arguments)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    try:
        if options.command == "tutorial":
            tutorial(options)
        else:
            refresh(options)
    except (SeriesError, SetupError) as error:
        print(f"\n{error}", file=sys.stderr)
        return getattr(error, "code", 1)
    except OSError as error:
        print(f"\n{error}. Check that this place can be written to (RLHF_RUNS says where the runs lie), then run the command again.",
              file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped between notebooks. The same command starts again; `tutorial --from NN` goes on at a notebook.", file=sys.stderr)
        return 130
    return 0


def numbered(folder):
    return sorted(folder.glob("[0-9][0-9]_*.ipynb"))


def enter_run(name, profile, seed):
    """Tell the kernels to come which run this is, and return the run's folder; raise SeriesError if its records are damaged."""
    os.environ.update(environment())
    os.environ.update(RLHF_RUN=name, RLHF_PROFILE=profile, RLHF_SEED=str(seed))
    folder = Path(os.environ["RLHF_RUNS"]) / name
    (folder / "executed").mkdir(parents=True, exist_ok=True)
    for record in ("notebooks", "figures", "report"):
        read(folder / f"{record}.json")
    return folder


# --- tutorial ---------------------------------------------------------------------------------------------------------


def tutorial(options):
    """Run the chosen notebooks in order in one run folder, then print the table and where the report is."""
    try:
        get_profile(options.profile)
    except KeyError as error:
        raise SeriesError(error.args[0]) from None
    run_folder = enter_run(options.run or options.profile, options.profile, options.seed)
    paths = [path for path in numbered(NOTEBOOKS) if chosen(path.name[:2], options)]
    command = f"tutorial --profile {options.profile} --run {run_folder.name} --seed {options.seed}"
    for position, path in enumerate(paths, 1):
        again = f"{command} {'--only' if options.only else '--from'} {path.name[:2]}"
        took = attempt(path, run_copy, run_folder, f"[{position}/{len(paths)}] {path.stem}", again)
        save(run_folder / "notebooks.json", {path.stem: took})
    if (run_folder / "report.json").exists():
        save(run_folder / "report.json", {"notebooks": read(run_folder / "notebooks.json")})
    print("\n" + table(run_folder, paths))
    if (run_folder / "report.html").exists():
        print(f"\nThe report: {run_folder / 'report.html'}")


def chosen(number, options):
    return number == options.only if options.only else number >= (options.start or "")


def run_copy(path, copy, hooks):
    papermill.execute_notebook(
        path,
        copy,
        cwd=path.parent,
        kernel_name="python3",
        progress_bar=False,
        execution_timeout=CELL_SECONDS,
        extra_arguments=QUIET_KERNEL,
        **hooks,
    )


def read(path):
    """Return the object in a JSON file, an empty one if there is no file; raise SeriesError if the file is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
        for name, took in found.items() if path.name == "notebooks.json" else ():
            if not isinstance(took, dict) or not all(isinstance(took.get(part), int | float) for part in ("seconds", "peak_rss_mb")):
                raise ValueError(f"{name} is not an object with the numbers seconds and peak_rss_mb")
        return found
    except (ValueError, RecursionError) as error:
        raise SeriesError(f"{path} is damaged ({error}). Delete it, then run the command again.") from None


def save(path, entries):
    """Add entries to the object in a JSON file, or replace those of the same name."""
    atomic_write_text(path, json.dumps(read(path) | entries, indent=1) + "\n")


def table(run_folder, paths):
    """Return the closing table: one row a notebook with its seconds, peak memory and main figure."""
    took, main_figures = read(run_folder / "notebooks.json"), read(run_folder / "figures.json")
    width = max(len(path.stem) for path in paths)
    rows = [f"{'notebook':<{width}}  seconds  memory MB  main figure"]
    for name in [path.stem for path in paths]:
        seconds, memory = took[name]["seconds"], took[name]["peak_rss_mb"]
        rows.append(f"{name:<{width}}  {seconds:7.0f}  {memory:9.0f}  {main_figures.get(name, '')}".rstrip())
    rows.append(f"{'all':<{width}}  {sum(took[path.stem]['seconds'] for path in paths):7.0f}")
    return "\n".join(rows)


# --- refresh ----------------------------------------------------------------------------------------------------------


def refresh(options):
    """Run notebooks and solutions in runs/refresh and write their outputs into them.

    A refresh of everything starts in an empty run folder. With numbers, or of the solutions only, it keeps what the last
    one made there, so that the notebooks find the models of the earlier stages.
    """
    if not (options.numbers or options.solutions):
        empty(Path(environment()["RLHF_RUNS"]) / "refresh")
    run_folder = enter_run("refresh", "practice", 0)
    notebooks = [] if options.solutions else numbered(NOTEBOOKS)
    paths = [
        path
        for path in notebooks + numbered(NOTEBOOKS / "solutions")
        if path.name[:2] in (options.numbers or path.name[:2])
    ]
    for position, path in enumerate(paths):
        left = dict.fromkeys(later.name[:2] for later in paths[position:])
        only = "--solutions " if path.parent != NOTEBOOKS else ""
        title = f"[{position + 1}/{len(paths)}] {path.relative_to(NOTEBOOKS).with_suffix('')}"
        took = attempt(path, run_in_place, run_folder, title, f"refresh {only}" + " ".join(left))
        if path.parent == NOTEBOOKS:
            save(run_folder / "notebooks.json", {path.stem: took})


def run_in_place(path, copy, hooks):
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        extra_arguments=QUIET_KERNEL,
        store_widget_state=False,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
        **hooks,
    )
    try:
        client.execute()
    finally:
        nbformat.write(notebook, copy)
    clean(notebook)
    atomic_write_text(path, nbformat.writes(notebook) + "\n")


def clean(notebook):
    """Keep what a reader of the file needs, drop what differs each time; raise SeriesError for text on stderr."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET_VIEW not in output.get("data", {})]
            for output in cell.outputs:
                if output.get("name") == "stderr":
                    raise SeriesError(
                        f"code cell {cell.execution_count} wrote to stderr, so the notebook was not written. "
                        f"What it wrote:\n{output.text}"
                    )
                if PNG in output.get("data", {}):
                    output.data[PNG] = with_palette(output.data[PNG])


def with_palette(picture):
    """A PNG, as base64 text, with 128 colours in place of millions: a plot looks the same and takes a third of the bytes."""
    small = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB").quantize(128).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


# --- one notebook -----------------------------------------------------------------------------------------------------


def attempt(path, execute, run_folder, title, command_to_continue):
    """Run one notebook and return its seconds and peak memory; raise a SeriesError that says it all if it fails.

    execute: run_copy or run_in_place, called with the notebook, the path of the copy to save, and nbclient's hooks.
    """
    copy = run_folder / "executed" / path.name
    command = f"{'py' if os.name == 'nt' else 'python3'} run.py {command_to_continue}"
    try:
        with Watch(title) as watch:
            watch.cells = len([cell for cell in nbformat.read(path, as_version=4).cells if runs(cell)])
            execute(path, copy, {"on_cell_start": watch.cell_starts, "on_cell_executed": watch.cell_ended})
    except KeyboardInterrupt:
        raise SeriesError(f"Stopped in {path.stem}. To continue: {command}", code=130) from None
    except SeriesError as error:
        raise SeriesError(f"{path.stem}: {error}\nTo continue after the repair: {command}") from None
    except Exception as error:  # whatever a library raises, the reader gets one message
        raise SeriesError(failure(path, copy, watch, error, command)) from None
    return {"seconds": watch.seconds, "peak_rss_mb": watch.peak_rss_mb}


def failure(path, copy, watch, error, command):
    name = getattr(error, "ename", type(error).__name__)
    message = next(iter(str(getattr(error, "evalue", error)).strip().splitlines()), "")
    source = "\n".join("    " + line for line in watch.source.splitlines())
    return (
        f"{path.stem} stopped in code cell {watch.cell} of {watch.cells}: {name}: {message}\n\n{source}\n\n"
        f"What it had done by then: {copy}\nTo continue after the repair: {command}"
    )


def runs(cell):
    return cell.cell_type == "code" and bool(cell.source.strip())


class Watch:
    """Shows the progress of one notebook and measures its time and memory.

    seconds: wall time. peak_rss_mb: the largest memory of the kernel and its children together, in 10^6 bytes, sampled
    twice a second and after each cell; on Linux also the largest that the system itself recorded for one of them.
    """

    def __init__(self, title):
        self.title = title
        self.cells, self.cell, self.source = 0, 0, ""
        self.seconds, self.peak_rss_mb = 0.0, 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._started = self._line_at = time.monotonic()
        if not sys.stdout.isatty():
            print(f"{self.title} ...", flush=True)
        self._thread.start()
        return self

    def __exit__(self, kind, error, traceback):
        self._over.set()
        self._thread.join()
        end = "stopped" if kind else f"{self.seconds:.0f} s, {self.peak_rss_mb:.0f} MB"
        line = f"{self.title}: {end}"
        print(f"\r{line:<79}" if sys.stdout.isatty() else line, flush=True)

    def cell_starts(self, cell, cell_index):
        """Take note of the next cell; nbclient calls this for text cells too."""
        if runs(cell):
            self.cell, self.source = self.cell + 1, cell.source

    def cell_ended(self, **_):
        self._measure()

    def _watch(self):
        while not self._over.wait(0.5):
            self._measure()
            self._show()
        self._measure()

    def _measure(self):
        self.seconds = round(time.monotonic() - self._started, 1)
        kernels = psutil.Process().children(recursive=True)
        self._seen(map(memory_peak, kernels))
        if in_mb(sum(map(memory_at_most, kernels))) > self.peak_rss_mb:  # to look closer takes a twentieth of a second
            self._seen([memory_together(kernels)])

    def _seen(self, sizes):
        self.peak_rss_mb = max([self.peak_rss_mb, *map(in_mb, sizes)])

    def _show(self):
        line = f"{self.title}: cell {self.cell} of {self.cells}, {self.seconds:.0f} s"
        if sys.stdout.isatty():
            print(f"\r{line:<79}", end="", flush=True)
        elif time.monotonic() - self._line_at > 30:
            print(line, flush=True)
            self._line_at = time.monotonic()


def in_mb(size):
    return round(size / 1e6, 1)


def memory_together(processes):
    """Return the bytes of memory that processes have together, without those in their first second.

    A child that is about to run another program shares its parent's memory until then (vfork), and both show all of it as their own.
    """
    return sum(memory_now(process) for process in processes if age(process) >= 1)


def age(process):
    """Return the seconds since a process started, 0 if it has ended."""
    try:
        return time.time() - process.create_time()
    except psutil.Error:
        return 0


def memory_now(process):
    """Return the bytes of memory that a process has, 0 if it has ended.

    On Linux memory that it shares counts in parts (proportional set size): a child shows all memory of its parent as its own until it
    runs its own program, and the sum over both would count it twice.
    """
    if sys.platform != "linux":
        return memory_at_most(process)
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0


def memory_at_most(process):
    """Return the bytes of memory that a process has, all that it shares included, 0 if it has ended."""
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def memory_peak(process):
    """Return the most bytes of memory that a process ever had, as Linux recorded it, and 0 on other systems."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    sys.exit(main())
