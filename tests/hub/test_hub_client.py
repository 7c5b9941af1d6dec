"""Calls to the Hub: what passes is outlasted, what does not is told in words, no token is named."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, LocalTokenNotFoundError
from huggingface_hub.utils import close_session

from imagetok import __version__
from imagetok.errors import DataError, HubAccessError, HubError
from imagetok.hub import client
from imagetok.hub.client import calling, hub_api
from loopback_hub import LoopbackHub

REPO = "user/tiny"
INFO = r"/api/models/user/tiny"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited between tries, without waiting."""
    waited: list[float] = []
    monkeypatch.setattr(client, "time", SimpleNamespace(sleep=waited.append))
    return waited


@pytest.fixture
def ask(loopback_hub: LoopbackHub, waits: list[float]) -> Callable[[], str | None]:
    """Asks for the head of a repository that is there."""
    loopback_hub.create(REPO)

    def ask() -> str | None:
        sha: str | None = hub_api(False).model_info(REPO).sha
        return sha

    return lambda: calling("reading user/tiny", ask)


def transport_error(name: str, text: str = "") -> Exception:
    """An error of the HTTP client that huggingface_hub speaks through."""
    base = HfHubHTTPError.__bases__[0]
    error: Exception = getattr(__import__(base.__module__), name)(text)
    return error


def failing(*errors: BaseException) -> Callable[[], str]:
    """A function that fails with each of these in turn, and then succeeds."""
    left = list(errors)

    def function() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return function


# What passes


@pytest.mark.parametrize(
    "fault",
    [
        *({"status": status, "times": client.TRIES - 1} for status in (408, 429, 500, 502, 503)),
        {"times": 2, "drop": True},
        {"times": 2, "truncate": 5},
        {"times": 2, "swap": b"<html>"},
    ],
    ids=str,
)
def test_a_busy_hub_and_a_broken_connection_are_tried_again(
    loopback_hub: LoopbackHub, ask: Callable[[], str], fault: dict[str, Any]
) -> None:
    loopback_hub.fail(path=INFO, **fault)
    assert ask() == loopback_hub.head(REPO)


@pytest.mark.parametrize("name", ["ConnectTimeout", "ReadTimeout", "ConnectError", "ReadError"])
def test_every_silence_of_the_network_is_tried_again(waits: list[float], name: str) -> None:
    assert calling("reading", failing(transport_error(name))) == "done"
    assert len(waits) == 1


def test_waits_grow_to_a_bound_each_try_is_told_and_so_is_the_last_failure(
    loopback_hub: LoopbackHub,
    ask: Callable[[], str],
    waits: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    loopback_hub.fail(path=INFO, status=503, times=None)
    with (
        caplog.at_level(logging.WARNING, client.__name__),
        pytest.raises(HubError, match="reading user/tiny: the Hub answered 503; gave up after 7"),
    ):
        ask()
    assert waits == [1, 2, 4, 8, 16, 32]
    assert len(loopback_hub.requests) == client.TRIES
    assert [told for told in caplog.messages if told.startswith("warning: ")] == [
        f"warning: reading user/tiny: the Hub answered 503; trying again in {wait:.0f} s ({n} of 7)"
        for n, wait in enumerate(waits, 2)
    ]


def test_no_wait_of_its_own_is_longer_than_a_minute(
    waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TRIES", 12)
    with pytest.raises(HubError):
        calling("reading", failing(*[TimeoutError()] * 12))
    assert max(waits) == client.LONGEST_WAIT == 60


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Retry-After": "17"}, 17),
        ({"Retry-After": "0"}, 1),
        ({"Retry-After": "soon"}, 1),
        ({"Retry-After": "86400"}, 300),
        ({"Retry-After": "Fri, 01 Jan 2021 00:00:00 GMT"}, 1),
        ({"RateLimit": '"api";r=0;t=55'}, 55),
        ({"RateLimit": '"api";r=12;t=55'}, 1),
    ],
    ids=str,
)
def test_the_hub_is_left_alone_for_as_long_as_it_asks(
    loopback_hub: LoopbackHub,
    ask: Callable[[], str],
    waits: list[float],
    headers: dict[str, str],
    expected: float,
) -> None:
    loopback_hub.fail(path=INFO, status=429, headers=headers)
    ask()
    assert waits == [expected]


def test_a_date_to_retry_after_is_waited_for(
    loopback_hub: LoopbackHub, ask: Callable[[], str], waits: list[float]
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=200), usegmt=True)
    loopback_hub.fail(path=INFO, status=503, headers={"Retry-After": date})
    ask()
    assert 100 < waits[0] <= 200


def test_nobody_at_the_address_is_told_as_such(
    waits: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"the connection to the Hub failed \(.+\); gave up") as told:
        calling("reading", lambda: hub_api(False).model_info(REPO))
    assert not isinstance(told.value, HubAccessError)
    close_session()


def test_what_hides_behind_another_error_is_found(waits: list[float]) -> None:
    for outer in (RuntimeError("while uploading"), LocalEntryNotFoundError("no file here")):
        outer.__cause__ = transport_error("ReadTimeout")
        assert calling("reading", failing(outer)) == "done"
    assert len(waits) == 2
    refused = RuntimeError("while uploading")
    refused.__cause__ = ValueError("a bad name")
    with pytest.raises(HubAccessError, match="reading: a bad name"):
        calling("reading", failing(refused))
    assert len(waits) == 2


# What does not pass


def refusal(status: int, code: str | None = None, message: str | None = None) -> dict[str, Any]:
    return {"path": INFO, "status": status, "code": code, "message": message}


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "gone": (refusal(404, "RepoNotFound"), "no such repository: the name is misspelt, or"),
    "hidden": (refusal(401, "RepoNotFound"), "no such repository: .* it is private: log in with"),
    "gated": (refusal(403, "GatedRepo"), "restricted: ask for it at {page}"),
    "disabled": (refusal(403, None, "Access to this resource is disabled."), "has disabled"),
    "revision": (refusal(404, "RevisionNotFound"), "no such branch, tag or commit; {page}"),
    "entry": (refusal(404, "EntryNotFound"), "no such file in this revision; {page}"),
    "token": (refusal(401), "asks for a token: log in with `hf auth login`, set HF_TOKEN"),
    "right": (refusal(403, None, "No."), r"does not allow it \(No\).*{endpoint}/settings/tokens"),
    "payment": (refusal(402, None, "Pay first."), r"refused it with 402 \(Pay first\)"),
    "argument": (refusal(400, None, "What?"), r"refused it with 400 \(What\?\)"),
    "size": (refusal(413), "refused it with 413"),
}


@pytest.mark.parametrize(("fault", "named"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_told_once_with_the_way_out(
    loopback_hub: LoopbackHub,
    ask: Callable[[], str],
    waits: list[float],
    fault: dict[str, Any],
    named: str,
) -> None:
    loopback_hub.fail(**fault)
    endpoint = re.escape(loopback_hub.endpoint)
    with pytest.raises(HubAccessError) as told:
        ask()
    message = str(told.value)
    assert re.search(named.format(page=f"{endpoint}/{REPO}", endpoint=endpoint), message), message
    assert message.startswith("reading user/tiny: ")
    assert len(message.splitlines()) == 1
    assert (waits, len(loopback_hub.requests)) == ([], 1)


def test_a_sent_token_is_blamed_where_a_missing_one_is_asked_for(
    loopback_hub: LoopbackHub, waits: list[float]
) -> None:
    loopback_hub.create(REPO, private=True)
    token = loopback_hub.stranger_token
    with pytest.raises(HubAccessError, match=r"the token has no right to it \(see .*/settings"):
        calling("reading", lambda: hub_api(token).model_info(REPO))
    with pytest.raises(HubAccessError, match="it is private: log in with"):
        calling("reading", lambda: hub_api(False).model_info(REPO))
    with pytest.raises(HubAccessError, match="does not take the token, which is misspelt"):
        calling("reading", lambda: hub_api("hf_unknown").model_info(REPO))


def test_the_pages_of_datasets_are_named(loopback_hub: LoopbackHub, waits: list[float]) -> None:
    loopback_hub.create(REPO, "dataset", gated=True, files={"a.txt": "a"})
    with pytest.raises(HubAccessError, match=f"{loopback_hub.endpoint}/datasets/{REPO}"):
        calling(
            "reading",
            lambda: hub_api(loopback_hub.stranger_token).hf_hub_download(
                REPO, "a.txt", repo_type="dataset"
            ),
        )


def test_a_long_answer_is_cut_to_a_line(loopback_hub: LoopbackHub, ask: Callable[[], str]) -> None:
    loopback_hub.fail(path=INFO, status=400, swap=b"", message="word " * 1000)
    with pytest.raises(HubAccessError) as told:
        ask()
    assert len(str(told.value)) < 400


def test_offline_mode_is_told(
    loopback_hub: LoopbackHub, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubAccessError, match="offline mode is on: unset HF_HUB_OFFLINE"):
        calling("reading", lambda: hub_api(False).model_info(REPO))
    assert (waits, loopback_hub.requests) == ([], [])


@pytest.mark.parametrize(
    ("error", "kind", "named"),
    [
        (LocalTokenNotFoundError(), HubAccessError, "no token was found"),
        (LocalEntryNotFoundError("x"), HubAccessError, "not in the cache"),
        (ValueError("bad metadata"), HubAccessError, "bad metadata"),
        (PermissionError(13, "Permission denied"), HubError, "Permission denied"),
        (transport_error("UnsupportedProtocol"), HubAccessError, "no request can be made to"),
        (transport_error("InvalidURL"), HubAccessError, "no request can be made to"),
        (
            transport_error("ConnectError", "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"),
            HubError,
            "certificate is not trusted",
        ),
    ],
    ids=str,
)
def test_what_no_new_try_can_help_is_told_at_once(
    waits: list[float], error: Exception, kind: type[HubError], named: str
) -> None:
    with pytest.raises(HubError, match=f"reading: .*{named}") as told:
        calling("reading", failing(error))
    assert type(told.value) is kind
    assert waits == []


@pytest.mark.parametrize("error", [KeyError("x"), DataError("x"), KeyboardInterrupt()], ids=repr)
def test_what_is_not_the_hubs_goes_through(waits: list[float], error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        calling("reading", failing(error))
    assert caught.value is error
    assert waits == []


# Tokens


def test_no_message_names_a_token(
    loopback_hub: LoopbackHub, ask: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    secret = "hf_AbCdEfGhIjKl"
    loopback_hub.fail(path=INFO, status=400, message=f"who is {secret}?")
    with pytest.raises(HubAccessError, match="who is <token>") as told:
        ask()
    assert told.value.__cause__ is None, "its text would stand in a traceback"
    for error in (ConnectionError(f"Bearer {secret}"), ConnectionError("bearer custom-secret")):
        with pytest.raises(HubError) as told:
            calling("reading", failing(*[error] * client.TRIES))
        assert "secret" not in str(told.value)
        assert told.value.__cause__ is None
    assert not re.search(f"{secret}|custom-secret", caplog.text)


@pytest.mark.parametrize("token", ["", "hf_x\n", "hf x", "hf_é"])
def test_a_token_that_cannot_be_sent_is_refused_without_naming_it(token: str) -> None:
    with pytest.raises(HubAccessError, match="the token for the Hub is empty or holds") as told:
        hub_api(token)
    assert not token.strip() or token.strip() not in str(told.value)


def test_a_saved_token_that_cannot_be_sent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf x")
    with pytest.raises(HubAccessError):
        hub_api()
    hub_api(False)


def test_a_token_that_is_demanded_must_be_there() -> None:
    with pytest.raises(HubAccessError, match="no token was found: log in with `hf auth login`"):
        hub_api(True)


def test_requests_carry_the_token_and_the_name_of_the_library(
    loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    loopback_hub.create(REPO)
    hub_api(loopback_hub.token).model_info(REPO)
    monkeypatch.setenv("HF_TOKEN", loopback_hub.read_token)
    hub_api().model_info(REPO)
    hub_api(False).model_info(REPO)
    sent = [request.token for request in loopback_hub.requests]
    assert sent == [loopback_hub.token, loopback_hub.read_token, None]
    agents = {request.headers["user-agent"] for request in loopback_hub.requests}
    assert all(f"imagetok/{__version__};" in agent for agent in agents)
