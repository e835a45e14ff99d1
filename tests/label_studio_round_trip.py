"""What is asked of any Label Studio server, the stand-in and the real one: everything pushed, judged and pulled comes out as chosen."""
import requests

from rlhf_helpers import formats
from rlhf_helpers.label_studio import LabelStudio
from rlhf_helpers.labelling.export import export_preferences
from rlhf_helpers.labelling.session import pairs_of
from rlhf_helpers.labelling.store import LabelStore, Response

NAUGHTY = ["<b>bold</b> & \"quoted\"", "two\nlines\n\n  and spaces  ", "العربية ‮ and Größe 😀", "https://example.invalid/a.txt", "[1, 2]",
           "a,b;c\t$prompt {{x}}", "s3 : not a bucket", "x" * 3000]


def candidates(count, answers=2):
    """Candidate sets whose texts are awkward in every way that a page, an address or a file could trip over."""
    return [{"prompt": f"{number}: {NAUGHTY[number % len(NAUGHTY)]}",
             "responses": [{"id": f"r{place}", "text": f"{NAUGHTY[(number + place + 1) % len(NAUGHTY)]} ({number}.{place})",
                            "model": f"m{place}", "settings": {}} for place in range(answers)]} for number in range(count)]


class Annotator:
    """Whoever judges, through the interface for programs. `headers` log in."""

    def __init__(self, address, headers):
        self.address, self.headers = address, headers

    def call(self, method, path, **content):
        response = requests.request(method, self.address + path, headers=self.headers, timeout=60, **content)
        response.raise_for_status()
        return response.json() if response.content else None

    def judge(self, task, *results, **more):
        results = [{"from_name": name, "to_name": to, "type": kind, "value": value} for name, to, kind, value in results]
        return self.call("POST", f"/api/tasks/{task}/annotations/", json={"result": results, "lead_time": 30.0} | more)["id"]


def prefer(side):
    return "preference", "left,right", "pairwise", {"selected": side}


def choose(choice, name="tie"):
    return name, "prompt", "choices", {"choices": [choice]}


def rank(ids):
    return "ranking", "answers", "ranker", {"ranker": {"ranking": ids}}


def tasks_of(server, project):
    return [task for page in server._pages(project) for task in page]


def check_pairs(annotator, folder, title):
    """Push pairs, judge each in another way, pull; then change, empty and delete judgements and pull again."""
    server, store = LabelStudio(), LabelStore(folder / "labels.sqlite")
    project = server.project(title)
    assert LabelStudio().project(title) == project
    rows = candidates(6)
    assert [server.push(project, store, some, seed=1) for some in (rows[:4], rows, rows)] == [4, 2, 0]
    tasks = tasks_of(server, project)
    assert {(task["data"]["prompt"], frozenset((task["data"]["left"], task["data"]["right"]))) for task in tasks} == {
        (row["prompt"], frozenset(answer["text"] for answer in row["responses"])) for row in rows}
    assert not any("m0" in str(task["data"]) or "m1" in str(task["data"]) for task in tasks)
    numbers = [task["id"] for task in tasks]
    given = [annotator.judge(numbers[0], prefer("left")), annotator.judge(numbers[1], prefer("right")),
             annotator.judge(numbers[2], choose("tie_good")), annotator.judge(numbers[3], choose("tie_bad")),
             annotator.judge(numbers[4], was_cancelled=True), annotator.judge(numbers[5])]
    texts = [task["data"] for task in tasks]
    wanted = {pair.id: pair for pair in pairs_of(rows)[0]}

    audit = server.pull(project, store)
    assert (audit.tasks, audit.labels, audit.skips, audit.withdrawn) == (6, 4, 1, 0), audit
    assert len(audit.dropped) == 1 and "submitted empty" in audit.dropped[0]
    assert [label.verdict for label in store.labels()] == [
        Response(texts[0]["left"]).id, Response(texts[1]["right"]).id, "tie_good", "tie_bad", "skip"]
    assert {pair.id for pair in store.comparisons()} == set(wanted)
    export_preferences(store, folder / "preferences.jsonl")
    kept = formats.read_preferences(folder / "preferences.jsonl")
    assert {(row["prompt"][0]["content"], row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in kept} == {
        (texts[0]["prompt"], texts[0]["left"], texts[0]["right"]), (texts[1]["prompt"], texts[1]["right"], texts[1]["left"])}

    events = store.events()
    assert server.pull(project, store).labels == 4 and store.events() == events         # nothing twice
    annotator.call("PATCH", f"/api/annotations/{given[0]}/", json={"result": [
        {"from_name": "tie", "to_name": "prompt", "type": "choices", "value": {"choices": ["tie_bad"]}}]})
    annotator.call("PATCH", f"/api/annotations/{given[1]}/", json={"result": []})
    annotator.call("DELETE", f"/api/annotations/{given[2]}/")
    audit = server.pull(project, store)
    assert (audit.labels, audit.withdrawn) == (2, 3), audit
    assert sorted(label.verdict for label in store.labels()) == ["skip", "tie_bad", "tie_bad"]
    events = store.events()
    assert server.pull(project, store).withdrawn == 0 and store.events() == events


def check_ranking(annotator, folder, title):
    """Push sets, rank one, call one all bad; every pair comes out in the order chosen."""
    server, store = LabelStudio(), LabelStore(folder / "labels.sqlite")
    project = server.project(title, ranking=True)
    rows = candidates(3, answers=4)
    assert (server.push(project, store, rows, seed=1), server.push(project, store, rows, seed=2)) == (3, 0)
    tasks = tasks_of(server, project)
    order = sorted(item["id"] for item in tasks[0]["data"]["answers"])
    annotator.judge(tasks[0]["id"], rank(order), choose("ordered", "verdict"))
    annotator.judge(tasks[1]["id"], rank([item["id"] for item in tasks[1]["data"]["answers"]]), choose("tie_bad", "verdict"))
    annotator.judge(tasks[2]["id"], rank([item["id"] for item in tasks[2]["data"]["answers"]]))
    audit = server.pull(project, store)
    assert audit.labels == 2 and len(audit.dropped) == 1 and "not confirmed" in audit.dropped[0]
    labels = store.labels()
    assert [label.verdict for label in labels].count("tie_bad") == 6 and len(labels) == 12
    preferred = [label for label in labels if label.preferred]
    assert len(preferred) == 6
    for label in preferred:
        assert label.preferred == min(label.shown_order, key=order.index)


def check_scores(annotator, folder, title, ranking):
    """Push a reward model's scores: once, for tasks without them, preferring the higher one."""
    server, store = LabelStudio(), LabelStore(folder / "labels.sqlite")
    project = server.project(title, ranking)
    rows = candidates(4, answers=3 if ranking else 2)
    server.push(project, store, rows[:3])

    def rewards(prompts, answers):
        assert len(prompts) == len(answers)
        return [float(answer[-2]) for answer in answers]             # its place in the candidate set

    assert (server.push_scores(project, rewards, "rm1"), server.push_scores(project, rewards, "rm1")) == (3, 0)
    server.push(project, store, rows)
    assert (server.push_scores(project, rewards, "rm1"), server.push_scores(project, rewards, "rm2")) == (1, 4)
    for task in tasks_of(server, project):
        assert [prediction["model_version"] for prediction in task["predictions"]] == ["rm1", "rm2"]
        for prediction in task["predictions"]:
            value = prediction["result"][0]["value"]
            if ranking:
                best = next(item["body"] for item in task["data"]["answers"] if item["id"] == value["ranker"]["ranking"][0])
            else:
                best = task["data"][value["selected"]]
            assert best.endswith(".2)" if ranking else ".1)") and abs(prediction["score"] - 0.7311) < 1e-4
    assert server.pull(project, store).labels == 0 and store.labels() == []              # predictions are no labels
