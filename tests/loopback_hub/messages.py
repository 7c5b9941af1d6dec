"""What goes over the wire: requests as they came in, answers, and refusals in the Hub's words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

HUB = "hub"
CDN = "cdn"


@dataclass
class Request:
    """One request, as it is kept in the log.

    Attributes:
        method: the HTTP method.
        target: path and query as they were sent, percent-encoding and all.
        headers: by their names in small letters.
        body: the whole body.
        origin: `HUB`, `CDN`, or the name of another host that a client tried to reach.
        status: the status of the answer; None while there is none, and for a dropped connection.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""
    origin: str = HUB
    status: int | None = None

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, str]:
        """The last value of each parameter of the query."""
        return {name: values[-1] for name, values in parse_qs(urlsplit(self.target).query).items()}

    @property
    def token(self) -> str | None:
        """The bearer token, None without one."""
        kind, _, token = self.headers.get("authorization", "").partition(" ")
        return token if kind.lower() == "bearer" else None

    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body or b"{}")

    def flag(self, name: str) -> bool:
        """Whether a parameter of the query is switched on."""
        return self.query.get(name, "").lower() in {"1", "true"}


@dataclass(frozen=True)
class Answer:
    """What is sent back.

    Attributes:
        status: the HTTP status.
        headers: all but Content-Length.
        body: the bytes; a HEAD request is answered without them.
        sent: how many bytes of the body go out before the connection breaks; None for all.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    sent: int | None = None

    def with_headers(self, headers: Mapping[str, str]) -> Answer:
        """The same answer with further headers, which win over the ones that it has."""
        return replace(self, headers={**self.headers, **headers})


def json_answer(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Answer:
    """`value` as a JSON answer."""
    headers = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    return Answer(status, headers, json.dumps(value).encode())


class RefusedError(Exception):
    """A request that is answered with an error.

    Args:
        status: the HTTP status.
        message: what the Hub says, in the body and in X-Error-Message.
        code: the value of X-Error-Code, by which the client picks its exception.
        headers: further headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}

    def answer(self) -> Answer:
        """The refusal as it is sent."""
        headers = {"X-Error-Message": self.message, **self.headers}
        if self.code is not None:
            headers["X-Error-Code"] = self.code
        return json_answer({"error": self.message}, self.status, headers)


def in_range(request: Request, answer: Answer) -> Answer:
    """`answer` cut down to the one range that the request asks for, if it asks for one."""
    unit, _, span = request.headers.get("range", "").partition("=")
    if unit.strip() != "bytes" or "," in span:
        return answer
    first, _, last = span.strip().partition("-")
    size = len(answer.body)
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= size or stop <= start:
        headers = {"Content-Range": f"bytes */{size}"}
        raise RefusedError(416, "The range asked for lies outside the file", headers=headers)
    headers = {**answer.headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
    return Answer(206, headers, answer.body[start:stop])
