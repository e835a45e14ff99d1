"""A stand-in for a Label Studio server on this computer: the calls that the package makes, as version 1.23.2 answers them.

`test_label_studio_server.py` runs the same round trip against a real server, so what this one does is held to what that one does.
"""
import json
import re
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from urllib.parse import parse_qs, urlsplit

LEGACY = "0123456789abcdef0123456789abcdef01234567"
PERSONAL = "header.payload-of-a-personal-token.signature"


class Refused(Exception):
    """An answer other than success: HTTP status and what the server says."""


class FakeLabelStudio:
    """Projects, tasks, annotations and predictions in memory. `faults` are called with each request's method and path before it is
    done (`before`) or after (`after`); what they return, (status, body, headers), is answered instead; "hang up" breaks off."""

    def __init__(self):
        self.projects, self.tasks, self.requests = {}, {}, []
        self.before = self.after = lambda method, path: None
        self.legacy_tokens, self.access, self.numbers = True, None, count(1)
        self._httpd = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.address = f"http://127.0.0.1:{self._httpd.server_port}"
        threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self):
        self._httpd.shutdown()
        self._httpd.server_close()

    # ---- the calls

    def answer(self, method, path, query, body, authorization):
        if path == "/api/token/refresh/":
            return self._exchange(body["refresh"])
        self._check(authorization)
        for known, pattern, call in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and known == method:
                return call(self, *map(int, found.groups()), **({"query": query} if method == "GET" else {"body": body}))
        raise Refused(404, {"detail": "Not found."})

    def _exchange(self, token):
        if token != PERSONAL:
            raise Refused(401, {"detail": "Token is invalid", "code": "token_not_valid"})
        self.access = f"header.access-{next(self.numbers)}.signature"
        return 200, {"access": self.access}

    def _check(self, authorization):
        if authorization == f"Token {LEGACY}" and not self.legacy_tokens:
            raise Refused(401, {"detail": "Authentication token no longer valid: legacy token authentication has been disabled"})
        if authorization not in (f"Token {LEGACY}", f"Bearer {self.access}"):
            raise Refused(401, {"detail": "Invalid token."})

    def _list_projects(self, query):
        page, size = int(query["page"]), int(query["page_size"])
        projects = [project for project in self.projects.values() if query["title"].lower() in project["title"].lower()]
        return 200, {"count": len(projects), "next": "a page" if page * size < len(projects) else None, "previous": None,
                     "results": projects[(page - 1) * size:page * size]}

    def _make_project(self, body):
        if any(project["title"] == body["title"] for project in self.projects.values()):
            raise Refused(400, {"detail": "Project with the same name already exists: " + body["title"]})
        number = next(self.numbers)
        self.projects[number] = {"id": number, **body}
        return 201, self.projects[number]

    def _get_project(self, number, query):
        if number not in self.projects:
            raise Refused(404, {"detail": "No Project matches the given query."})
        return 200, self.projects[number]

    def _import(self, project, body):
        for task in body:
            number = next(self.numbers)
            self.tasks[number] = {"id": number, "project": project, "data": task["data"], "annotations": [], "predictions": []}
        return 201, {"task_count": len(body), "annotation_count": 0, "prediction_count": 0}

    def _list_tasks(self, query):
        rule = json.loads(query["query"])
        assert rule["ordering"] == ["tasks:id"] and query["fields"] == "all"
        (filtered,) = rule["filters"]["items"]
        after = filtered["value"]
        assert (filtered["filter"], filtered["operator"], filtered["type"]) == ("filter:tasks:id", "greater", "Number")
        tasks = [task for number, task in sorted(self.tasks.items()) if task["project"] == int(query["project"]) and number > after]
        return 200, {"tasks": tasks[:int(query["page_size"])], "total": len(tasks), "total_annotations": 0, "total_predictions": 0}

    def _import_predictions(self, project, body):
        if any(item["task"] not in self.tasks for item in body):
            raise Refused(400, {"validation_errors": ["Invalid task ID"]})
        good = [item for item in body if "," not in item["result"][0]["to_name"]]        # the others go without a word, as there
        for item in good:
            self.tasks[item["task"]]["predictions"].append({"id": next(self.numbers), **item})
        return 201, {"created": len(good)}

    def _annotate(self, task, body):
        annotation = {"was_cancelled": False, "lead_time": None} | body | {
            "id": next(self.numbers), "completed_by": 1, "created_at": _now(), "updated_at": _now()}
        self.tasks[task]["annotations"].append(annotation)
        return 201, annotation

    def _change_annotation(self, number, body):
        annotation = self._annotation(number)
        annotation |= body | {"updated_at": _now()}
        return 200, annotation

    def _delete_annotation(self, number, body):
        found = self._annotation(number)
        for task in self.tasks.values():
            task["annotations"] = [annotation for annotation in task["annotations"] if annotation is not found]
        return 204, {}

    def _annotation(self, number):
        return next(annotation for task in self.tasks.values() for annotation in task["annotations"] if annotation["id"] == number)


ROUTES = [("GET", r"/api/projects/", FakeLabelStudio._list_projects), ("POST", r"/api/projects/", FakeLabelStudio._make_project),
          ("GET", r"/api/projects/(\d+)/", FakeLabelStudio._get_project), ("POST", r"/api/projects/(\d+)/import", FakeLabelStudio._import),
          ("GET", r"/api/tasks/", FakeLabelStudio._list_tasks),
          ("POST", r"/api/projects/(\d+)/import/predictions", FakeLabelStudio._import_predictions),
          ("POST", r"/api/tasks/(\d+)/annotations/", FakeLabelStudio._annotate),
          ("PATCH", r"/api/annotations/(\d+)/", FakeLabelStudio._change_annotation),
          ("DELETE", r"/api/annotations/(\d+)/", FakeLabelStudio._delete_annotation)]


def _now():
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _handler(server):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def _do(self):
            url = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(url.query).items()}
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
            server.requests.append((self.command, url.path))
            fault = server.before(self.command, url.path)
            if fault is None:
                try:
                    answer = server.answer(self.command, url.path, query, body, self.headers.get("Authorization", ""))
                except Refused as refused:
                    answer = refused.args
                fault = server.after(self.command, url.path) or answer
            if fault == "hang up":
                self.close_connection = True
                return
            status, content, headers = (*fault, {})[:3]
            content = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = _do

    return Handler
