"""Calls to the Hub that outlast a bad network, and whose failures are put into words.

    info = calling("reading user/name", lambda: hub_api(token).model_info("user/name"))

A fault that may pass is retried after growing waits, and each wait is logged: a busy Hub (429,
5xx), a dropped connection, an answer that breaks off. One that will not pass (a wrong name, a
missing right, a refused token, offline mode) is reported at once, with the remedy. No message holds
a token. huggingface_hub retries only some of its requests, and its messages span lines and name
URLs.

The errors of its HTTP client leak from its calls; they are caught by the base of `HfHubHTTPError`,
so that the client, which has changed before, is not imported by name.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

from imagetok._version import __version__
from imagetok.errors import HubAccessError, HubError, ImagetokError

logger = logging.getLogger(__name__)

TRIES = 7
FIRST_WAIT = 1.0  # seconds, doubled after each try
LONGEST_WAIT = 60.0
LONGEST_ASKED_WAIT = 300.0  # the Hub counts requests in windows of five minutes

_T = TypeVar("_T")
_HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]
_PASSING = {408, 425, 429}
_LOG_IN = "log in with `hf auth login`, set HF_TOKEN or pass `token`"


def hub_api(token: str | bool | None = None) -> HfApi:
    """The Hub's client, under the name of this library.

    Args:
        token: None takes the one that `hf auth login` saved or HF_TOKEN, if there is one; True
            demands it; False sends none.

    Raises:
        HubAccessError: A token is demanded and there is none, or it holds characters that no token
            has.
    """
    sent = token if isinstance(token, str) else None if token is False else get_token()
    if token is True and sent is None:
        raise HubAccessError(f"no token was found: {_LOG_IN}")
    if sent is not None and not re.fullmatch(r"[!-~]+", sent):
        # The HTTP client would name it, whole, in its error.
        raise HubAccessError(
            "the token for the Hub is empty or holds spaces, line breaks or letters that no token "
            "has: copy it again"
        )
    return HfApi(token=token, library_name="imagetok", library_version=__version__)


def calling(what: str, function: Callable[[], _T]) -> _T:
    """Run one operation on the Hub, and retry it where that can help.

    Args:
        what: The operation, for messages: `"reading user/name"`.
        function: Carries it out with huggingface_hub. It is called anew for every try, even where
            the one before may have succeeded and only its answer was lost.

    Raises:
        HubAccessError: What is asked for does not exist or is not accessible.
        HubError: The Hub cannot be reached, kept failing, or gave an answer that makes no sense.
    """
    for number in range(1, TRIES + 1):
        try:
            return function()
        except ImagetokError:
            raise
        except Exception as error:  # what huggingface_hub raises has no base of its own
            fault = _read_fault(error)
            if fault is None:
                raise
            text = f"{what}: {_redact(fault.reason)}"
            if fault.kind is not None:
                raise fault.kind(text) from _shown(error)
            if number == TRIES:
                raise HubError(f"{text}; gave up after {TRIES} tries, try later") from _shown(error)
        wait = min(FIRST_WAIT * 2 ** (number - 1), LONGEST_WAIT)
        if fault.asked_wait is not None:
            wait = min(max(fault.asked_wait, wait), LONGEST_ASKED_WAIT)
        logger.warning(
            "warning: %s; trying again in %.3g s (%d of %d)", text, wait, number + 1, TRIES
        )
        time.sleep(wait)
    raise AssertionError("unreachable: the last try returns or raises")


@dataclass(frozen=True)
class _Fault:
    """Why a call failed.

    Attributes:
        reason: In words, to stand after a colon.
        kind: Type of the error to raise; None if another try may help.
        asked_wait: Seconds that the Hub asks to be left alone for.
    """

    reason: str
    kind: type[HubError] | None = None
    asked_wait: float | None = None


def _read_fault(error: BaseException) -> _Fault | None:
    """What an error means; None if it is not the Hub's, but a mistake in a program."""
    # These two only say that something failed; what it was is their cause.
    while isinstance(error, RuntimeError | LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    response = getattr(error, "response", None)
    if isinstance(error, _HTTPError) and response is not None:
        return _read_answer(error, response)
    if isinstance(error, _HTTPError) or type(error).__name__ == "InvalidURL":
        return _read_silence(error)
    if isinstance(error, OfflineModeIsEnabled):
        return _Fault("offline mode is on: unset HF_HUB_OFFLINE to reach the Hub", HubAccessError)
    if isinstance(error, LocalTokenNotFoundError):
        return _Fault(f"no token was found: {_LOG_IN}", HubAccessError)
    if isinstance(error, LocalEntryNotFoundError):
        return _Fault("it is not in the cache, and no request may be made", HubAccessError)
    if isinstance(error, json.JSONDecodeError):
        return _Fault("the Hub gave an answer that is not JSON")
    if isinstance(error, ConnectionError | TimeoutError | RuntimeError):  # Xet's among them
        return _Fault(f"the connection to the Hub failed ({_one_line(error)})")
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return _Fault("the download broke off")
    if isinstance(error, ValueError):  # arguments that huggingface_hub refuses, a card's metadata
        return _Fault(_one_line(error), HubAccessError)
    if isinstance(error, OSError | EntryNotFoundError) or _of_client(error):
        return _Fault(_one_line(error), HubError)
    return None


def _read_silence(error: BaseException) -> _Fault:
    """A request that was not answered."""
    kind = type(error).__name__
    if kind in ("InvalidURL", "UnsupportedProtocol", "LocalProtocolError"):
        return _Fault(f"no request can be made to '{constants.ENDPOINT}' ({kind})", HubAccessError)
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return _Fault(f"the server's certificate is not trusted here: {_one_line(error)}", HubError)
    return _Fault(f"the connection to the Hub failed ({_one_line(error)})")


def _read_answer(error: BaseException, response: Any) -> _Fault:
    """An answer with a status of 400 or more."""
    status = int(response.status_code)
    if status in _PASSING or status >= 500:
        return _Fault(f"the Hub answered {status}", None, _asked_wait(response.headers))
    return _Fault(_refusal(error, response, status), HubAccessError)


def _refusal(error: BaseException, response: Any, status: int) -> str:
    """What an answer of 4xx means, and what to do."""
    sent = "authorization" in response.request.headers
    said = _one_line(getattr(error, "server_message", None) or "")
    page = _page(str(response.request.url))
    rights = f"see {constants.ENDPOINT}/settings/tokens"
    if isinstance(error, GatedRepoError):
        way = "" if sent else f", and {_LOG_IN}"
        return f"access is restricted: ask for it at {page}{way}"
    if isinstance(error, DisabledRepoError):
        return "the Hub has disabled this repository"
    if isinstance(error, RepositoryNotFoundError):
        way = f"the token has no right to it ({rights})" if sent else f"it is private: {_LOG_IN}"
        return f"there is no such repository: the name is misspelt, or {way}"
    if isinstance(error, RevisionNotFoundError):
        return f"the repository has no such branch, tag or commit; {page} shows those that it has"
    if isinstance(error, EntryNotFoundError):
        return f"the repository has no such file in this revision; {page} shows those that it has"
    if status == 401:
        refused = "the Hub does not take the token, which is misspelt or expired"
        return f"{refused}: {_LOG_IN}" if sent else f"the Hub asks for a token: {_LOG_IN}"
    if status == 403:
        return f"the Hub does not allow it ({said or 403}); the token may lack the right: {rights}"
    return f"the Hub refused it with {status} ({said or 'and gave no reason'})"


def _page(url: str) -> str:
    """The web page of the repository that a request was about."""
    found = re.match(
        r"(https?://[^/]+)/(?:api/)?(?:models/)?((?:datasets/|spaces/)?[^/?]+/[^/?]+)", url
    )
    return f"{found[1]}/{found[2]}" if found else "its page"


def _asked_wait(headers: Any) -> float | None:
    """Seconds to wait, by the header Retry-After (a number or a date) or RateLimit."""
    asked = headers.get("retry-after")
    if asked is None:
        limit = parse_ratelimit_headers(headers)
        return None if limit is None or limit.remaining else float(limit.reset_in_seconds)
    if asked.strip().isdecimal():
        return float(asked)
    try:
        date = parsedate_to_datetime(asked)
    except ValueError:
        return None
    return (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()


def _of_client(error: BaseException) -> bool:
    """Whether an error comes from huggingface_hub or its HTTP client."""
    packages = {"huggingface_hub", _HTTPError.__module__.partition(".")[0]}
    return type(error).__module__.partition(".")[0] in packages


def _shown(error: Exception) -> Exception | None:
    """The error as the cause in a traceback; None if it names a token."""
    return error if _redact(str(error)) == str(error) else None


def _redact(text: str) -> str:
    return re.sub(r"\bhf_[A-Za-z0-9_]{4,}|(?i:bearer\s+)[^\s'\"]+", "<token>", text)


def _one_line(text: object) -> str:
    """The beginning of a foreign message, without line breaks."""
    line = " ".join(str(text).split()).rstrip(".")
    return line if len(line) <= 200 else f"{line[:200].rstrip()} ..."
