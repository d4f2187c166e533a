"""A service that answers as a list says, for tests of the client; it keeps the requests."""

import asyncio
import io
import json
from email.parser import BytesParser

import httpx
import numpy as np
from PIL import Image

from metalora.client import AsyncClient, Client, RetryPolicy

AT_ONCE = RetryPolicy(attempts=4, first_wait=0.0)
STATE = {
    "task": "t_1",
    "version": 1,
    "adapter": "5f",
    "kind": "classes",
    "classes": ["cat", "dog"],
    "examples": 2,
    "bytes": 900,
    "accuracy": 1.0,
    "name": None,
    "keep_examples": True,
    "created": "2026-01-01T00:00:00Z",
}


def refusal(status, code, **headers):
    """An error reply of the service."""
    error = {"code": code, "message": f"This is {code}.", "field": None}
    return httpx.Response(status, json={"error": error}, headers={"x-request-id": "r1"} | headers)


class ListedService:
    """Answers of the service in their order, after that about the service itself.

    An answer is a reply, the JSON of one with status 200, or an exception, which the transport raises.
    """

    def __init__(self, *answers, inputs="texts", **limits):
        self.answers, self.requests = list(answers), []
        self.about = {"inputs": inputs, "limits": {"max_queue_rows": 64, "max_request_mb": 32} | limits}

    def __call__(self, request):
        if request.url.path == "/v1/service":
            return httpx.Response(200, json=self.about)
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, dict):
            return httpx.Response(200, json=answer)
        # A copy: the stream of a reply can be read once only.
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    def client(self, policy=AT_ONCE):
        """A client of this service."""
        return Client("http://service", "ml_secret", retries=policy, transport=httpx.MockTransport(self))

    def carry_out(self, form, operation):
        """The result of `operation(operations)`, carried out by a client of the form "sync" or "async"."""
        if form == "sync":
            with self.client() as client:
                return client.run(operation(client.operations))
        return asyncio.run(self._awaited(operation))

    async def _awaited(self, operation):
        transport = httpx.MockTransport(self)
        async with AsyncClient("http://service", "ml_secret", retries=AT_ONCE, transport=transport) as client:
            return await client.run(operation(client.operations))


def predictions(*labels, version=1):
    """A reply to predict."""
    probabilities = [[0.9, 0.1] if label == "cat" else [0.2, 0.8] for label in labels]
    shown = {"labels": list(labels), "probabilities": probabilities, "abstention": [0.5] * len(labels)}
    return {"task": "t_1", "version": version, "classes": ["cat", "dog"]} | shown


def form_parts(request):
    """(name, content) of each part of a form, read by the parser of mails."""
    head = f"Content-Type: {request.headers['content-type']}\n\n".encode()
    mail = BytesParser().parsebytes(head + request.content)
    return [
        (part.get_param("name", header="content-disposition"), part.get_payload(decode=True))
        for part in mail.get_payload()
    ]


def sent_pictures(request):
    """The pixels of the pictures of a form."""
    return [np.asarray(Image.open(io.BytesIO(content))) for name, content in form_parts(request) if name == "images"]


def sent_json(request):
    """The JSON body of a request."""
    return json.loads(request.content)
