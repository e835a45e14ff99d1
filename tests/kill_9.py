"""Writers of one label store, killed in the middle of what they do: nothing acknowledged is lost, and nothing doubled.

    python tests/kill_9.py [rounds] [acts a round] [writers]

A long run for a change of the store: 20 rounds of 10,000 acts by four writers, if nothing is said. `test_labelling` has shorter ones.
"""
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rlhf_helpers.labelling.session import pairs_of  # noqa: E402
from rlhf_helpers.labelling.store import Event, LabelStore  # noqa: E402


def write(path, name, acks):
    """Record acts for ever, and note each one's id in the file `acks` once it is saved."""
    store = LabelStore(path)
    store.add_annotator(name)
    answers = [{"id": text, "text": text, "model": "", "settings": {}} for text in "ab"]
    (pair,) = pairs_of([{"prompt": "p", "responses": answers}])[0]
    store.add_comparisons([pair])
    acks = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        event = Event("label", pair.id, name, "kill", choice="prefer", preferred=pair.responses[0].id)
        store.record(event)
        os.write(acks, event.id.encode() + b"\n")


def acknowledged(files):
    return [line for file in files if file.exists() for line in file.read_text().splitlines()]


def run_and_kill(path, files, acts):
    """Writers side by side, killed in the middle of what they do after so many acts, or after a minute on a slow disk."""
    before = len(acknowledged(files))
    writers = [subprocess.Popen([sys.executable, __file__, "write", path, file.name, file], cwd=ROOT) for file in files]
    while len(acknowledged(files)) == before and all(writer.poll() is None for writer in writers):
        time.sleep(0.01)
    deadline = time.monotonic() + 60
    while len(acknowledged(files)) < before + acts and time.monotonic() < deadline:
        time.sleep(0.01)
    for writer in writers:
        writer.kill()
        writer.wait()


def survive(rounds, acts, writers=4):
    """The number of acts acknowledged after so many rounds; AssertionError if one of them is lost or any is there twice."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None        # what survives a kill needs no real disk
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        path, files = Path(folder, "labels.sqlite"), [Path(folder, f"writer{number}") for number in range(writers)]
        LabelStore(path)
        for number in range(1, rounds + 1):
            run_and_kill(path, files, acts)
            acks, saved = acknowledged(files), [event["id"] for event in LabelStore(path).events()]
            assert set(acks) <= set(saved), f"{len(set(acks) - set(saved))} acknowledged acts are lost"
            assert len(saved) == len(set(saved)), f"{len(saved) - len(set(saved))} acts are there twice"
            assert len(saved) <= len(acks) + number * writers, "more than one unacknowledged act a writer and round"
            print(f"round {number}: {len(acks)} acts acknowledged, none lost, none doubled", flush=True)
    return len(acks)


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(*sys.argv[2:])
    else:
        rounds, acts, writers = [*map(int, sys.argv[1:]), *(20, 10_000, 4)[len(sys.argv) - 1:]]
        survive(rounds, acts, writers)
