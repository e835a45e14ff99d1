"""Comparisons by a team: a Label Studio server shows the pairs, and what its annotators say comes into the same label store.

The server's address and token are read from the environment variables LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY and from nowhere
else, so that no notebook holds them, and no message here says them. Whatever was interrupted is finished by the same call again:
what is there already is found and left alone. `data/label_studio/README.md` says how a team uses this.
"""
import hashlib
import json
import math
import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from operator import itemgetter
from typing import Any

import requests

from .formats import as_text, check_candidates
from .labelling.label_studio_annotations import PAIRWISE, RANKING, Audit, Layout, NoLabel, candidate_set, layout_of, record_tasks
from .labelling.session import pairs_of
from .labelling.store import Comparison, Event, LabelStore, Response

TIMEOUT = 10, 120                   # seconds to connect, and to wait for an answer
PAGE = 100                          # tasks in a request
AGAIN = "then run this again: it goes on where it stopped"
REASONS = {
    400: "The server does not accept this: {detail}",
    401: "The server refuses the token ({detail}). Make a personal access token on its page Account & Settings and put it into "
         "LABEL_STUDIO_API_KEY; a legacy token works only where the server's organisation has them switched on.",
    403: "The account of this token may not do that ({detail}). Ask whoever runs the server.",
    404: "The server has no such page. Check the project's number, that the account may see it, and LABEL_STUDIO_URL.",
    413: "That was too much at once for the server. Ask whoever runs it to allow larger requests.",
}


class LabelStudioError(RuntimeError):
    """The server could not be used; the message says why and what to do, without its address or token."""


class _Token(requests.auth.AuthBase):
    """Puts the token into requests: a legacy one as it is, for a personal one the short-lived token that it is exchanged for."""

    def __init__(self, token: str):
        self.secret, self.access = token, ""
        self.personal = token.count(".") == 2                    # a JSON web token; a legacy one is 40 hexadecimal digits

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.access}" if self.personal else f"Token {self.secret}"
        return request


class LabelStudio:
    """The Label Studio server that the environment names. Every call raises LabelStudioError if the server cannot be used."""

    def __init__(self):
        self._address = _variable("LABEL_STUDIO_URL", "the server's address, such as http://localhost:8080").rstrip("/")
        self._token = _Token(_variable("LABEL_STUDIO_API_KEY", "a token from the server's page Account & Settings"))
        if not self._address.startswith(("http://", "https://")):
            raise LabelStudioError("LABEL_STUDIO_URL has to begin with http:// or https://.")
        self._session = requests.Session()

    # ---- what a team does

    def project(self, title: str, ranking: bool = False, annotators: int = 1) -> int:
        """The number of the project with this title, made from the committed labelling configuration if there is none: pairs of
        answers, or with `ranking` whole sets; each task is offered until so many `annotators` have judged it."""
        for number in self._projects(title):
            if self._layout(number).ranks != ranking:
                raise LabelStudioError(f'Project {number} is called "{title}" and asks for something else. Choose another title.')
            return number
        configuration = (RANKING if ranking else PAIRWISE).read_text(encoding="utf-8")
        settings = {"title": title, "label_config": configuration, "maximum_annotations": annotators, "show_collab_predictions": False}
        return self._json("POST", "/api/projects/", "id", json=settings)

    def push(self, project: int, store: LabelStore, candidates: Iterable[dict], seed: int = 0) -> int:
        """Add candidate sets (rows of a candidate file) to the project, every pair of answers or whole sets as it asks for, and
        return how many tasks are new. The pairs go into `store` too, with the models that answered; the server never learns those.

        The seed decides the order of the tasks and who stands on the left: in half of them the first answer. Raises BadData for bad
        candidates.
        """
        candidates = list(candidates)
        check_candidates(candidates)
        layout = self._layout(project)
        pairs, _ = pairs_of(candidates)
        store.add_comparisons(pairs)
        tasks = _rankings(candidates, layout, seed) if layout.ranks else _pairs(pairs, layout, seed)
        there = {_key(task["data"], layout) for page in self._pages(project) for task in page}
        new = [{"data": data} for data in tasks if _key(data, layout) not in there]
        for start in range(0, len(new), PAGE):
            self._json("POST", f"/api/projects/{project}/import", json=new[start:start + PAGE])
        return len(new)

    def push_scores(self, project: int, rewards: Callable[[list[str], list[str]], list[float]], version: str) -> int:
        """Add a reward model's opinion, as a prediction called `version`, to the tasks without one, and return how many are new.

        `rewards(prompts, answers)` gives each answer a score; the higher one is preferred. The prediction's own score is how probable
        that is after Bradley and Terry (in a ranking for its closest neighbours): ordered by it, doubtful tasks come first.

        The page of Label Studio 1.23.2 begins a new judgement with the prediction of its task, although the project asks it not to.
        That leads annotators, so push scores when the judging is done, or into a project of their own; `pull` lists such judgements.
        """
        layout, count = self._layout(project), 0
        if layout.buckets:
            raise LabelStudioError(f"Project {project} sorts answers into buckets, and a score names none. Use a ranking without buckets.")
        for page in self._pages(project):
            tasks = [task for task in page if version not in {old["model_version"] for old in task["predictions"]}]
            predictions = _predictions(tasks, layout, rewards, version)
            created = self._json("POST", f"/api/projects/{project}/import/predictions", "created", json=predictions) if predictions else 0
            if created != len(predictions):                      # it says 201 all the same, and the reason only in its log
                raise LabelStudioError(f"The server took {created} of {len(predictions)} predictions. Its log says why.")
            count += created
        return count

    def pull(self, project: int, store: LabelStore) -> Audit:
        """Bring what the annotators say into the store, page by page, and return what became of each annotation (print it).

        Pages that came before an interruption stay, and nothing is saved twice. What was changed or deleted on the server since an
        earlier pull is undone in the store, and stands again once the server has it again. Raises StoreError from the store.
        """
        layout, audit, seen = self._layout(project), Audit(), set()
        session = "Label Studio " + hashlib.sha256(f"{self._address} {project}".encode()).hexdigest()[:16]
        for page in self._pages(project):
            seen |= record_tasks(store, page, layout, session, audit)
        gone = [act for act in store.live_acts(session) if act[0] not in seen]
        back = [act for act in store.undone_acts(session) if act[0] in seen]
        undone = [*gone, *((undo_id, *act) for _, undo_id, *act in back)]
        store.record(*[Event("undo", pair_id, annotator, session, undoes=act_id) for act_id, pair_id, annotator in undone])
        audit.withdrawn, audit.restored = len(gone), len({act[0] for act in back})
        return audit

    # ---- what the server has

    def _projects(self, title: str) -> Iterator[int]:
        """The numbers of the projects with exactly this title; the server looks for it inside of others too."""
        more, number = True, 1
        while more:
            page = {"title": title, "page": number, "page_size": PAGE}
            found, more = self._json("GET", "/api/projects/", "results", "next", params=page)
            yield from (project["id"] for project in found if project["title"] == title)
            number += 1

    def _layout(self, project: int) -> Layout:
        configuration = self._json("GET", f"/api/projects/{project}/", "label_config")
        try:
            return layout_of(configuration)
        except ValueError as error:
            raise LabelStudioError(f"Project {project}: {error}") from None

    def _pages(self, project: int) -> Iterator[list[dict]]:
        """The tasks with their annotations and predictions. Each page begins after the last id of the one before, so that none is
        missed when others are deleted meanwhile."""
        asked, last = {"project": project, "fields": "all", "resolve_uri": False, "page_size": PAGE}, 0
        while page := self._json("GET", "/api/tasks/", "tasks", params=asked | {"query": _after(last)}):
            yield page
            last = page[-1]["id"]

    # ---- requests

    def _json(self, method: str, path: str, *parts: str, **content) -> Any:
        """What the server answers, or these parts of it."""
        if self._token.personal and not self._token.access:
            self._exchange()
        response = self._send(method, path, auth=self._token, **content)
        if response.status_code == 401 and self._token.personal:         # access tokens last for minutes
            self._exchange()
            response = self._send(method, path, auth=self._token, **content)
        return self._content(response, *parts)

    def _exchange(self) -> None:
        response = self._send("POST", "/api/token/refresh/", json={"refresh": self._token.secret})
        self._token.access = self._content(response, "access")

    def _send(self, method: str, path: str, **content) -> requests.Response:
        try:
            return self._session.request(method, self._address + path, timeout=TIMEOUT, allow_redirects=False, **content)
        except requests.Timeout:
            reason = f"The server at LABEL_STUDIO_URL took too long to answer. Wait until it is less busy, {AGAIN}."
        except requests.exceptions.SSLError:
            reason = "The server at LABEL_STUDIO_URL has no certificate that this computer trusts. Ask whoever runs it."
        except requests.ConnectionError:
            reason = f"Nothing answers at LABEL_STUDIO_URL, or it broke off. Start the server or check the address, {AGAIN}."
        except requests.RequestException as error:
            reason = f"The request could not be made ({type(error).__name__}). Check LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY."
        raise LabelStudioError(reason)                                  # outside of `except`: the cause would name the address

    def _content(self, response: requests.Response, *parts: str) -> Any:
        status = response.status_code
        if status >= 500:
            raise LabelStudioError(f"The server failed (HTTP {status}). Look at its log, {AGAIN}.")
        if 300 <= status < 400:
            raise LabelStudioError("LABEL_STUDIO_URL leads on to another address. Put that one there (https:// perhaps).")
        if not response.ok:
            reason = REASONS.get(status, "The server refuses this ({detail}).")
            raise LabelStudioError(f"{reason.format(detail=self._detail(response))} (HTTP {status})")
        with suppress(requests.JSONDecodeError, KeyError, TypeError):
            answer = response.json()
            return itemgetter(*parts)(answer) if parts else answer
        raise LabelStudioError("Something answers at LABEL_STUDIO_URL, but it is not Label Studio. Check the address.")

    def _detail(self, response: requests.Response) -> str:
        """What the server says is wrong, without what must not be seen."""
        try:
            said = response.json()
            said = json.dumps(said.get("validation_errors") or said.get("detail") or said, ensure_ascii=False)
        except (requests.JSONDecodeError, AttributeError):
            said = response.reason or "no reason given"
        for secret in filter(None, (self._token.secret, self._token.access, self._address)):
            said = said.replace(secret, "***")
        return said[:500]


def _variable(name: str, what: str) -> str:
    value = os.environ.get(name, "").strip()
    if not value or not value.isascii() or not value.isprintable():
        state = "is not set" if not value else "holds characters that cannot be right"
        raise LabelStudioError(f"The environment variable {name} {state}. Set it to {what}, in the shell from which you start "
                               "JupyterLab; do not write it into a notebook.")
    return value


def _after(task: int) -> str:
    rule = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": task}
    return json.dumps({"filters": {"conjunction": "and", "items": [rule]}, "ordering": ["tasks:id"]})


# ---------------------------------------------------------------------------------------------------------------------
# Tasks

def _asked(prompt: str | list[dict]) -> dict:
    """The prompt for reading, and its messages where that is not enough to have them back."""
    return {"prompt": as_text(prompt)} | ({"messages": prompt} if not isinstance(prompt, str) and len(prompt) > 1 else {})


def _pairs(pairs: list[Comparison], layout: Layout, seed: int) -> list[dict]:
    rng = random.Random(seed)
    pairs, first_left = rng.sample(pairs, len(pairs)), [place % 2 == 0 for place in range(len(pairs))]
    rng.shuffle(first_left)
    return [_asked(pair.prompt) | dict(zip(layout.fields, [answer.text for answer in pair.responses[::1 if first else -1]]))
            for pair, first in zip(pairs, first_left)]


def _rankings(candidates: list[dict], layout: Layout, seed: int) -> list[dict]:
    rng, tasks = random.Random(seed), {}
    for row in rng.sample(candidates, len(candidates)):
        answers = {Response(answer["text"]).id: answer["text"] for answer in row["responses"]}
        items = [{"id": answer, "body": answers[answer]} for answer in rng.sample(sorted(answers), len(answers))]
        if len(items) > 1:
            task = _asked(row["prompt"]) | {layout.fields[0]: items}
            tasks.setdefault(_key(task, layout), task)
    return list(tasks.values())


def _key(data: dict, layout: Layout) -> tuple[str, frozenset[str]] | None:
    """What makes two tasks the same: what is asked, and the answers in any order."""
    try:
        row = candidate_set(data, layout)
    except NoLabel:
        return None
    return as_text(row["prompt"]), frozenset(answer["text"] for answer in row["responses"])


def _predictions(tasks: list[dict], layout: Layout, rewards: Callable, version: str) -> list[dict]:
    rows = [(task["id"], candidate_set(task["data"], layout)) for task in tasks if _key(task["data"], layout)]
    prompts = [as_text(row["prompt"]) for _, row in rows for _ in row["responses"]]
    scores = iter(rewards(prompts, [answer["text"] for _, row in rows for answer in row["responses"]]) if rows else ())
    return [_prediction(task, {answer["id"]: float(next(scores)) for answer in row["responses"]}, layout, version)
            for task, row in rows]


def _prediction(task: int, scores: dict[str, float], layout: Layout, version: str) -> dict:
    if not all(map(math.isfinite, scores.values())):
        raise ValueError(f"the rewards of task {task} are not all finite numbers: {list(scores.values())}. Check the reward model.")
    order = sorted(scores, key=scores.get, reverse=True)
    gap = min(scores[better] - scores[worse] for better, worse in zip(order, order[1:]))
    if layout.ranks:
        kind, value = "ranker", {"ranker": {layout.control: order}}
    else:
        kind, value = "pairwise", {"selected": ("left", "right")[layout.fields.index(order[0])]}
    return {"task": task, "model_version": version, "score": 1 / (1 + math.exp(-gap)),
            "result": [{"from_name": layout.control, "to_name": layout.compared, "type": kind, "value": value}]}
