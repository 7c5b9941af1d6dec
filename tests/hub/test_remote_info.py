"""What a tokenizer on the Hub is, without its weights: the header alone, judged as a local one."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hub_models import below, make_config, model_files

from imagetok import hub
from imagetok.errors import HubAccessError, InvalidValueError, ModelFileError
from imagetok.hub.remote_model import FIRST_BYTES, read_remote_info
from loopback_hub import CDN, LoopbackHub, Request

pytestmark = pytest.mark.usefixtures("no_waits")

REPO = "user/model"
MODEL = hub.MODEL_FILE


def header_of(model: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and what comes after it."""
    end = 8 + struct.unpack("<Q", model[:8])[0]
    return json.loads(model[8:end]), model[end:]


def with_header(header: dict[str, Any] | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def ranges(requests: list[Request]) -> list[int]:
    """How many bytes of the model were asked for, in the requests that were answered with some."""
    asked = [r for r in requests if r.method == "GET" and MODEL in r.path and r.status == 206]
    return [1 + int(request.headers["range"].partition("-")[2]) for request in asked]


def test_config_shapes_size_hash_and_figures_are_those_of_the_files(
    loopback_hub: LoopbackHub,
) -> None:
    files = model_files(size=2000)
    loopback_hub.create(REPO, files=files)
    info = read_remote_info(REPO)
    assert info.config == make_config()
    assert info.tensors == {
        "encoder.weight": ("float32", (2, 1000)),
        "bottleneck.count": ("int64", ()),
    }
    assert info.num_bytes == len(files[MODEL])
    assert info.evaluation == json.loads(files[hub.EVALUATION_FILE])
    assert info.evaluation[hub.EVALUATED_KEY] == info.sha256
    assert info.revision == loopback_hub.head(REPO)


def test_of_a_large_model_the_beginning_alone_is_sent(loopback_hub: LoopbackHub) -> None:
    loopback_hub.create(REPO, files=model_files(size=1_500_000))
    with loopback_hub.recording() as requests:
        info = read_remote_info(REPO)
    assert info.num_bytes > 6_000_000
    sent = [r for r in requests if r.method == "GET" and r.origin == CDN]
    assert [(r.status, r.headers["range"]) for r in sent] == [(206, f"bytes=0-{FIRST_BYTES - 1}")]
    assert sum(ranges(requests)) < 200_000


def test_a_long_header_is_fetched_whole_and_no_more(loopback_hub: LoopbackHub) -> None:
    files = model_files()
    header, data = header_of(files[MODEL])
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}
    header |= {f"encoder.layer_{number:05d}": empty for number in range(2000)}
    model = with_header(header, data + b"")
    loopback_hub.create(REPO, files={**files, MODEL: model})
    with loopback_hub.recording() as requests:
        assert len(read_remote_info(REPO).tensors) == 2002
    assert ranges(requests) == [FIRST_BYTES, len(model) - len(data)]


def test_of_a_server_that_knows_no_ranges_no_more_is_read(loopback_hub: LoopbackHub) -> None:
    files = model_files(size=1_500_000)
    loopback_hub.create(REPO, files=files)
    enough = FIRST_BYTES + 1000
    loopback_hub.fail(
        method="GET", path=f"download.*{MODEL}", times=None, swap=files[MODEL], truncate=enough
    )
    assert read_remote_info(REPO).config == make_config()


def test_there_need_be_no_evaluation(loopback_hub: LoopbackHub) -> None:
    loopback_hub.create(REPO, files=model_files(evaluated=False))
    assert read_remote_info(REPO).evaluation is None


def test_revision_and_subfolder_choose_the_tokenizer(loopback_hub: LoopbackHub) -> None:
    loopback_hub.create(REPO, files={**model_files(), **below("a/b", model_files(latent_dim=3))})
    first = loopback_hub.head(REPO)
    loopback_hub.commit(REPO, model_files(latent_dim=4))
    assert read_remote_info(REPO).config == make_config(4)
    assert read_remote_info(REPO, revision=first).config == make_config(2)
    assert read_remote_info(REPO, subfolder="a/b").config == make_config(3)
    with pytest.raises(InvalidValueError, match="subfolder"):
        read_remote_info(REPO, subfolder="../b")


def damaged(kind: str) -> bytes:
    model = model_files()[MODEL]
    header, data = header_of(model)
    count, weight = header["bottleneck.count"], header["encoder.weight"]
    ours = json.loads(header["__metadata__"]["imagetok"])
    match kind:
        case "longer":
            return model + b"\0"
        case "a header beyond the end":
            return struct.pack("<Q", len(model)) + model[8:]
        case "overlap":
            count["data_offsets"] = [weight["data_offsets"][0], weight["data_offsets"][0] + 8]
        case "half precision":
            weight.update(dtype="F16", shape=[2, 12])
        case "deep":
            return with_header(b"[" * 50_000, data)
        case "config":
            ours["config"]["channels"] = 2
            header["__metadata__"]["imagetok"] = json.dumps(ours)
        case "empty":
            return b""
    return with_header(header, data)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("longer", "damaged"),
        ("a header beyond the end", "damaged"),
        ("overlap", "damaged"),
        ("half precision", "tensor 'encoder.weight' has dtype F16, expected float32"),
        ("deep", "damaged"),
        ("config", "channels: found 2"),
        ("empty", "damaged"),
    ],
)
def test_a_damaged_header_is_refused_by_name(
    loopback_hub: LoopbackHub, kind: str, fault: str
) -> None:
    loopback_hub.create(REPO, files={**model_files(), MODEL: damaged(kind)})
    with loopback_hub.recording() as requests, pytest.raises(ModelFileError) as caught:
        read_remote_info(REPO)
    caught.match(f"'{MODEL}' of {REPO} at commit {loopback_hub.head(REPO)}.*{fault}")
    assert "/tmp" not in str(caught.value)
    assert sum(ranges(requests)) <= FIRST_BYTES


@pytest.mark.parametrize("text", ["", "[1]", "{" * 10_000, '"x"', "1" * (2**20 + 1)])
def test_an_evaluation_that_is_none_is_refused(loopback_hub: LoopbackHub, text: str) -> None:
    loopback_hub.create(REPO, files={**model_files(), hub.EVALUATION_FILE: text})
    with pytest.raises(ModelFileError, match=rf"'evaluation\.json' of {REPO}"):
        read_remote_info(REPO)


def test_a_repository_without_a_tokenizer_is_told(loopback_hub: LoopbackHub) -> None:
    loopback_hub.create(REPO, files={"README.md": "nothing else"})
    with pytest.raises(HubAccessError, match=f"no '{MODEL}': no tokenizer of imagetok lies there"):
        read_remote_info(REPO)
