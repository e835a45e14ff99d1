"""The client against a stand-in server: round trips, interruptions, tokens, and errors that say what to do and no secret."""
import json
import logging
import time

import pytest
from fake_label_studio import LEGACY, PERSONAL, FakeLabelStudio
from label_studio_round_trip import Annotator, candidates, check_pairs, check_ranking, check_scores, choose, prefer, tasks_of

from rlhf_helpers import label_studio
from rlhf_helpers.formats import BadData
from rlhf_helpers.label_studio import LabelStudio, LabelStudioError


@pytest.fixture
def fake(monkeypatch):
    server = FakeLabelStudio()
    monkeypatch.setenv("LABEL_STUDIO_URL", server.address + "/")
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", LEGACY)
    monkeypatch.setattr(label_studio, "PAGE", 2)                     # so that everything takes several pages
    yield server
    server.stop()


@pytest.fixture
def annotator(fake):
    return Annotator(fake.address, {"Authorization": f"Token {LEGACY}"})


def test_pairs_go_round(annotator, tmp_path):
    check_pairs(annotator, tmp_path, "pairs")


def test_rankings_go_round(annotator, tmp_path):
    check_ranking(annotator, tmp_path, "rankings")


@pytest.mark.parametrize("ranking", [False, True])
def test_scores_become_predictions(annotator, tmp_path, ranking):
    check_scores(annotator, tmp_path, "scores", ranking)


def test_projects_ask_for_no_predictions_and_as_many_annotators_as_wanted(fake):
    number = LabelStudio().project("pairs", annotators=3)
    assert (fake.projects[number]["show_collab_predictions"], fake.projects[number]["maximum_annotations"]) == (False, 3)


def test_a_title_is_found_on_any_page_and_not_taken_for_another_task(fake):
    server = LabelStudio()
    numbers = [server.project(f"project {number}") for number in range(5)]
    assert [server.project(f"project {number}") for number in range(5)] == numbers
    with pytest.raises(LabelStudioError, match='called "project 3" and asks for something else. Choose another title'):
        server.project("project 3", ranking=True)


# ---------------------------------------------------------------------------------------------------------------------
# Sides

def test_half_of_the_first_answers_stand_on_the_left_in_an_order_of_chance(fake, store):
    server = LabelStudio()
    sides = {}
    for seed in (0, 0, 1):
        project = server.project(f"seed {seed} {len(sides)}")
        server.push(project, store, candidates(40), seed)
        sides[len(sides)] = [(task["data"]["prompt"], task["data"]["left"].endswith(".0)")) for task in tasks_of(server, project)]
    assert sides[0] == sides[1] != sides[2]
    assert [sum(first for _, first in side) for side in sides.values()] == [20, 20, 20]
    flips = sum(one[1] != other[1] for one, other in zip(sides[0], sides[0][1:]))
    assert 10 < flips < 30                                           # neither in blocks nor strictly in turn
    assert [prompt for prompt, _ in sides[0]] != [row["prompt"] for row in candidates(40)]


# ---------------------------------------------------------------------------------------------------------------------
# Interruptions

def on_the(call, path, answer):
    """A fault on the call-th request whose path ends so."""
    seen = []

    def fault(method, requested):
        if requested.endswith(path) and method == ("GET" if path.startswith("/api/tasks") else "POST"):
            seen.append(requested)
            return answer if len(seen) == call else None
    return fault


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("fault", ["hang up", (502, "<html>Bad gateway</html>")])
def test_a_broken_push_is_finished_by_the_next_without_doubles(fake, store, when, fault):
    server, rows = LabelStudio(), candidates(7)
    project = server.project("pairs")
    setattr(fake, when, on_the(2, "/import", fault))
    with pytest.raises(LabelStudioError, match="then run this again: it goes on where it stopped"):
        server.push(project, store, rows)
    there = len(fake.tasks)
    assert there == (2 if when == "before" else 4)
    assert server.push(project, store, rows) == 7 - there
    assert sorted(task["data"]["prompt"] for task in fake.tasks.values()) == sorted(row["prompt"] for row in rows)


def judged(fake, store, annotator, tasks):
    """A server, and the number of its project with so many pairs, of all of which the left answer was preferred."""
    server = LabelStudio()
    project = server.project("pairs")
    server.push(project, store, candidates(tasks))
    for number in list(fake.tasks):
        annotator.judge(number, prefer("left"))
    return server, project


def test_a_broken_pull_keeps_the_pages_it_had_and_the_next_finishes(fake, store, annotator):
    server, project = judged(fake, store, annotator, 5)
    fake.before = on_the(3, "/api/tasks/", "hang up")
    with pytest.raises(LabelStudioError, match="Nothing answers at LABEL_STUDIO_URL, or it broke off"):
        server.pull(project, store)
    assert len(store.labels()) == 4
    assert server.pull(project, store).labels == 5
    assert len(store.labels()) == 5 == len(store.events())


def test_labels_that_the_server_has_again_stand_again(fake, store, annotator):
    """A pull while the server was restored from an older backup, say, or while the token saw no annotations."""
    server, project = judged(fake, store, annotator, 5)
    server.pull(project, store)
    labels, given = store.labels(), {number: task["annotations"] for number, task in fake.tasks.items()}
    for _ in range(2):
        for task in fake.tasks.values():
            task["annotations"] = []
        audit = server.pull(project, store)
        assert (audit.withdrawn, audit.restored, store.labels()) == (5, 0, [])
        for number, task in fake.tasks.items():
            task["annotations"] = given[number]
        audit = server.pull(project, store)
        assert (audit.withdrawn, audit.restored, store.labels()) == (0, 5, labels) and "0 withdrawn, 5 restored" in str(audit)
    events = store.events()
    assert server.pull(project, store).restored == 0 and store.events() == events


def test_tasks_deleted_while_pages_are_read_hide_no_others(fake, store, annotator):
    server, project = judged(fake, store, annotator, 6)
    pages = server._pages(project)
    seen = [task["id"] for task in next(pages)]
    del fake.tasks[seen[0]]
    seen += [task["id"] for page in pages for task in page]
    assert set(fake.tasks) < set(seen) and len(seen) == 6


def test_a_broken_push_of_scores_is_finished_without_doubles(fake, store):
    server = LabelStudio()
    project = server.project("pairs")
    server.push(project, store, candidates(5))
    fake.after = on_the(2, "/import/predictions", "hang up")
    length = lambda prompts, answers: [len(answer) for answer in answers]                    # noqa: E731
    with pytest.raises(LabelStudioError):
        server.push_scores(project, length, "rm")
    assert server.push_scores(project, length, "rm") == 1
    assert [len(task["predictions"]) for task in fake.tasks.values()] == [1] * 5


# ---------------------------------------------------------------------------------------------------------------------
# Tokens

def test_a_personal_token_is_exchanged_and_exchanged_again_when_it_has_run_out(fake, store, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", PERSONAL)
    fake.legacy_tokens = False
    server = LabelStudio()
    project = server.project("pairs")
    exchanges = lambda: fake.requests.count(("POST", "/api/token/refresh/"))                # noqa: E731
    assert exchanges() == 1
    fake.access = None                                               # what happens after some minutes
    assert server.push(project, store, candidates(3)) == 3
    assert exchanges() == 2


@pytest.mark.parametrize("token", [LEGACY, PERSONAL.replace("personal", "revoked")])
def test_a_refused_token_is_named_with_what_to_do(fake, monkeypatch, token):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", token)
    fake.legacy_tokens = False
    with pytest.raises(LabelStudioError, match="refuses the token .*Make a personal access token on its page Account & Settings"):
        LabelStudio().project("pairs")
    assert len(fake.requests) < 3


# ---------------------------------------------------------------------------------------------------------------------
# Errors

@pytest.mark.parametrize("name", ["LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY"])
@pytest.mark.parametrize("value, what", [(None, "is not set"), ("  ", "is not set"), ("a\nb", "cannot be right"),
                                         ("schlüssel", "cannot be right")])
def test_the_environment_is_checked_at_the_start(fake, monkeypatch, name, value, what):
    monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(LabelStudioError, match=f"{name} .*{what}.*do not write it into a notebook"):
        LabelStudio()


FAULTS = [
    ("hang up", "Start the server or check the address"),
    ((500, "<h1>Server Error</h1>"), r"The server failed \(HTTP 500\). Look at its log"),
    ((401, {"detail": "Invalid token."}), "refuses the token"),
    ((403, {"detail": "You do not have permission."}), "may not do that .*You do not have permission"),
    ((404, {"detail": "No Project matches"}), "Check the project's number"),
    ((413, "too large"), "larger requests"),
    ((400, {"validation_errors": {"label_config": ["bad tag"]}}), "does not accept this: .*bad tag"),
    ((400, ["a list"]), "does not accept this"),
    ((429, {"detail": f"slow down, {LEGACY} {PERSONAL} at ADDRESS"}), "refuses this .*slow down"),
    ((200, "<html>Welcome to another service</html>"), "it is not Label Studio"),
    ((200, {"unexpected": 1}), "it is not Label Studio"),
    ((301, "", {"Location": "https://elsewhere.invalid/"}), "leads on to another address"),
]


@pytest.mark.parametrize("fault, message", FAULTS)
@pytest.mark.parametrize("token", [LEGACY, PERSONAL])
def test_errors_say_what_to_do_and_neither_address_nor_token(fake, monkeypatch, store, caplog, capfd, fault, message, token):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", token)
    server = LabelStudio()
    project = server.project("pairs")
    fault = json.loads(json.dumps(fault).replace("ADDRESS", fake.address).replace(*({LEGACY, PERSONAL} - {token}), "another"))
    fake.before = lambda method, path: None if "refresh" in path else fault
    caplog.set_level(logging.INFO)
    with pytest.raises(LabelStudioError, match=message) as caught:
        server.pull(project, store)
    seen = "".join([*map(str, chain(caught.value)), caplog.text, *capfd.readouterr(), repr(server)])
    for secret in (fake.address, str(fake._httpd.server_port), token, fake.access):
        assert secret is None or secret not in seen
    assert store.events() == []


def chain(error):
    """An error and all that a traceback would show before it."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_a_server_that_is_not_there_or_too_slow(fake, monkeypatch):
    monkeypatch.setattr(label_studio, "TIMEOUT", (1, 0.2))
    fake.before = lambda method, path: time.sleep(0.5) or "hang up"
    with pytest.raises(LabelStudioError, match="took too long to answer. Wait until it is less busy"):
        LabelStudio().project("pairs")
    fake.stop()
    with pytest.raises(LabelStudioError, match="Start the server or check the address"):
        LabelStudio().project("pairs")
    monkeypatch.setenv("LABEL_STUDIO_URL", "localhost:8080")
    with pytest.raises(LabelStudioError, match="has to begin with http:// or https://"):
        LabelStudio()


def test_a_project_that_does_not_compare_answers(fake, store):
    server = LabelStudio()
    fake.projects[5] = {"id": 5, "title": "cats", "label_config": "<View/>"}
    with pytest.raises(LabelStudioError, match="Project 5: the labelling configuration does not compare answers"):
        server.push(5, store, candidates(1))
    with pytest.raises(LabelStudioError, match="Check the project's number"):
        server.pull(77, store)


def test_bad_candidates_are_refused_before_anything_is_sent(fake, store):
    server = LabelStudio()
    project = server.project("pairs")
    with pytest.raises(BadData, match='field "responses"'):
        server.push(project, store, [*candidates(2), {"prompt": "p", "responses": []}])
    assert not fake.tasks and not store.comparisons()


def test_rewards_that_are_no_numbers_and_buckets_are_refused(fake, store):
    server = LabelStudio()
    project = server.project("pairs")
    server.push(project, store, candidates(1))
    with pytest.raises(ValueError, match="not all finite numbers"):
        server.push_scores(project, lambda prompts, answers: [float("nan")] * len(answers), "rm")
    buckets = ('<View><List name="l" value="$l"/><Ranker name="r" toName="l"><Bucket name="b"/></Ranker></View>')
    fake.projects[9] = {"id": 9, "title": "buckets", "label_config": buckets}
    with pytest.raises(LabelStudioError, match="Project 9 sorts answers into buckets"):
        server.push_scores(9, lambda prompts, answers: [0.0] * len(answers), "rm")


def test_predictions_that_the_server_drops_without_a_word_are_noticed(fake, store):
    server = LabelStudio()
    project = server.project("pairs")
    server.push(project, store, candidates(2))
    fake.after = lambda method, path: (201, {"created": 1}) if path.endswith("predictions") else None
    with pytest.raises(LabelStudioError, match="took 1 of 2 predictions. Its log says why"):
        server.push_scores(project, lambda prompts, answers: [0.0] * len(answers), "rm")


def test_tasks_of_others_in_the_project_are_left_alone(fake, store, annotator):
    server = LabelStudio()
    project = server.project("pairs")
    annotator.call("POST", f"/api/projects/{project}/import", json=[{"data": {"image": "cat.png"}}])
    assert server.push(project, store, candidates(2)) == 2
    assert server.push_scores(project, lambda prompts, answers: [0.0] * len(answers), "rm") == 2
    annotator.judge(min(fake.tasks), choose("tie_bad"))
    audit = server.pull(project, store)
    assert (audit.tasks, audit.labels) == (3, 0) and 'the task has no field "prompt"' in audit.dropped[0]
