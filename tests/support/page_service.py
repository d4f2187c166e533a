"""A stand-in for the service with known answers, to test the page: each label is that of the most alike example."""

import base64
import io
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image

from metalora.serving.page import add_page

KEY = "ml_right"
PROBABILITY = 0.8  # of every predicted label
ADAPTED, FROZEN = 0.93, 0.81  # accuracies
FAR = 0.3  # an input as far as this from all examples is unlike them


@dataclass
class Standin:
    """What the stand-in was asked, and what it is to refuse.

    Attributes:
        kind: "images" or "texts".
        asked: Method, path, headers and JSON of each request below /v1.
        refusals: For a path: the replies that it gives first.
        tasks: The saved tasks with their examples and labels.
    """

    kind: str
    address: str = ""
    asked: list = field(default_factory=list)
    refusals: dict = field(default_factory=dict)
    tasks: dict = field(default_factory=dict)

    def bodies(self, path):
        """The JSON of the requests to a path."""
        return [body for _, asked_path, _, body in self.asked if asked_path == path]

    def forget(self):
        """Begin anew."""
        for held in (self.asked, self.refusals, self.tasks):
            held.clear()


def refusal(status, code, message, place=None, **headers):
    """A reply that is an error, as the service gives it."""
    return JSONResponse({"error": {"code": code, "message": message, "field": place}}, status, headers)


@contextmanager
def served(app):
    """Serve an app on a free port; the context is its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@contextmanager
def standin_of(kind):
    """Serve a stand-in for a service of pictures or of texts."""
    standin = Standin(kind)
    with served(_app(standin)) as standin.address:
        yield standin


def _app(standin):
    app = FastAPI()
    add_page(app)

    @app.api_route("/v1/{path:path}", methods=["GET", "POST", "DELETE"])
    async def answer(path: str, request: Request):
        content = await request.body()
        body = json.loads(content) if content else None
        standin.asked.append((request.method, path, dict(request.headers), body))
        if request.headers["authorization"] != f"Bearer {KEY}":
            return refusal(401, "unauthorized", "this key is not known")
        if standin.refusals.get(path):
            return standin.refusals[path].pop(0)
        return _answer(standin, request.method, path.split("/"), body)

    return app


def _answer(standin, method, path, body):
    match method, path:
        case "GET", ["service"]:
            return {"inputs": standin.kind, "backbone": "timm:small", "method": "metalora-cp"}
        case "POST", ["preview"]:
            return _preview(body)
        case "GET", ["tasks"]:
            return {"tasks": [task for task, *_ in standin.tasks.values()], "next": None}
        case "POST", ["tasks"]:
            return JSONResponse(_save(standin, body), 201)
        case "POST", ["tasks", name, "predict"]:
            return _predictions(*standin.tasks[name][1:], _vectors(body["inputs"]))[0]
        case "POST", ["tasks", name, "examples"]:
            return _add(standin, name, body)
        case "GET", ["tasks", name, "file"]:
            return Response(b"the file of " + name.encode())
        case "DELETE", ["tasks", name]:
            del standin.tasks[name]
            return Response(status_code=204)


def _save(standin, body):
    name = f"t_{len(standin.tasks) + 1}"
    vectors, labels = _vectors(body["inputs"]), body["labels"]
    standin.tasks[name] = ({"task": name, "version": 0} | {key: body[key] for key in ("name", "keep_examples")}, [], [])
    return _change(standin, name, list(vectors), labels)


def _add(standin, name, body):
    return _change(standin, name, list(_vectors(body["inputs"])), body["labels"])


def _change(standin, name, vectors, labels):
    task, old_vectors, old_labels = standin.tasks[name]
    vectors, labels = [*old_vectors, *vectors], [*old_labels, *labels]
    counts = {"version": task["version"] + 1, "examples": len(labels), "classes": sorted(set(labels))}
    task = task | counts | {"bytes": 7100, "accuracy": ADAPTED}
    standin.tasks[name] = (task, vectors, labels)
    return task


def _preview(body):
    adapted, order = _predictions(_vectors(body["inputs"]), body["labels"], _vectors(body["queries"]))
    neighbours = [[{"example": int(place), "distance": 0.0} for place in row[: body["neighbours"]]] for row in order]
    frozen = adapted | {"accuracy": FROZEN}
    return {"adapted": adapted | {"accuracy": ADAPTED}, "frozen": frozen, "neighbours": neighbours}


def _predictions(vectors, labels, queries):
    distances = np.abs(queries[:, None] - np.asarray(vectors)).mean(-1)
    order = distances.argsort(1)
    rest = 1 - PROBABILITY
    answers = {
        "labels": [labels[row[0]] for row in order],
        "probabilities": [[PROBABILITY, rest]] * len(queries),
        "abstention": (distances.min(1) > FAR).astype(float).tolist(),
    }
    return answers, order


def _vectors(inputs):
    """The mean colour of each picture, or the letters of each text."""
    if "images" in inputs:
        files = (io.BytesIO(base64.b64decode(image)) for image in inputs["images"])
        return np.array([np.asarray(Image.open(file).convert("RGB")).mean((0, 1)) / 255 for file in files])
    return np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in inputs["texts"]])
