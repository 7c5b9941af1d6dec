"""What goes wrong on demand: error answers, dropped connections, damaged bodies, delays."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus

from loopback_hub.messages import Answer, RefusedError, Request


@dataclass
class Fault:
    """Something that goes wrong with the requests that it matches, one kind or several.

    Attributes:
        method: the HTTP method; None for any.
        path: a regular expression that is searched for in the path and query as they were sent.
        times: how many matching requests are spoiled; None for all of them.
        skip: how many matching requests go well first.
        status: answer with this status in place of carrying the request out.
        code: X-Error-Code of that answer.
        message: X-Error-Message of that answer; the standard phrase of the status by default.
        headers: headers of that answer; without a status they are added to the real one.
        drop: close the connection in place of an answer.
        after: carry the request out before it is dropped or answered with `status`.
        truncate: send so many bytes of the body, then close the connection.
        declared: whether Content-Length still states the whole size when the body is truncated;
            if not, the shorter body looks complete.
        corrupt: flip the lowest bit of the byte at this place; negative places count from the end.
        swap: send these bytes in place of the body.
        delay: seconds to wait before anything else.
        before: called before the request is carried out, to let something happen in between.
    """

    method: str | None = None
    path: str = ""
    times: int | None = 1
    skip: int = 0
    status: int | None = None
    code: str | None = None
    message: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    drop: bool = False
    after: bool = False
    truncate: int | None = None
    declared: bool = True
    corrupt: int | None = None
    swap: bytes | None = None
    delay: float = 0.0
    before: Callable[[], object] | None = None

    def takes(self, request: Request) -> bool:
        """Whether this request is one to spoil; counts down."""
        if self.method not in {None, request.method} or not re.search(self.path, request.target):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True

    @property
    def spent(self) -> bool:
        """Whether it has no request left to spoil."""
        return self.times == 0

    def apply(self, carry_out: Callable[[], Answer]) -> Answer | None:
        """The spoiled answer to a request; None for a dropped connection.

        Args:
            carry_out: carries the request out and gives the answer that is due.
        """
        if self.delay:
            time.sleep(self.delay)
        if self.before is not None:
            self.before()
        replaced = self.drop or self.status is not None
        answer = carry_out() if self.after or not replaced else Answer()
        if self.drop:
            return None
        if self.status is not None:
            message = self.message or HTTPStatus(self.status).phrase
            return RefusedError(self.status, message, self.code, self.headers).answer()
        return self._damage(answer).with_headers(self.headers)

    def _damage(self, answer: Answer) -> Answer:
        body = answer.body if self.swap is None else self.swap
        if self.corrupt is not None:
            flipped = bytearray(body)
            flipped[self.corrupt] ^= 1
            body = bytes(flipped)
        if self.truncate is None:
            return replace(answer, body=body)
        if self.declared:
            return replace(answer, body=body, sent=self.truncate)
        return replace(answer, body=body[: self.truncate])
