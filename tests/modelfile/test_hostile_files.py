"""Hostile model.safetensors and what lies around it: refused in words, before it costs anything."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import re
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forged_files import KEY, Forgery, allocations, pack, write

from imagetok import ImageTokenizer, modelfile
from imagetok.config import TokenizerConfig
from imagetok.errors import InvalidTypeError, ModelFileError
from imagetok.modelfile import model_folder

CONFIG = {
    "image_size": [8, 8],
    "encoder": {"type": "conv", "hidden_channels": 4, "residual_channels": 2},
    "bottleneck": {"type": "vq", "codebook_size": 8, "latent_dim": 4},
    "decoder": {"type": "conv", "hidden_channels": 4, "residual_channels": 2},
    "likelihood": {"type": "mse"},
}
FIRST, CODEBOOK = "encoder.layers.0.weight", "bottleneck.codebook"
MOST = 2**20
"""Bytes that a refusal may cost: the good file has some ten thousand."""


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Forgery:
    folder = tmp_path_factory.mktemp("good")
    torch.manual_seed(0)
    ImageTokenizer.from_config(TokenizerConfig.from_dict(CONFIG)).save_pretrained(folder)
    return Forgery.read(folder / modelfile.MODEL_FILE)


def refusal(folder: Path, file: str = modelfile.MODEL_FILE) -> str:
    """The message with which a folder is refused, which names the file in one short line."""
    tracemalloc.start()
    try:
        with allocations() as made, pytest.raises(ModelFileError) as caught:
            ImageTokenizer.from_pretrained(folder)
        assert tracemalloc.get_traced_memory()[1] < 8 * MOST
    finally:
        tracemalloc.stop()
    assert made.largest < MOST
    message = str(caught.value)
    assert f"{file}'" in message
    assert message.isprintable()
    assert len(message) < 1000
    assert caught.value.__cause__ is None
    return message


def test_the_file_that_all_others_are_forged_from_loads(good: Forgery, tmp_path: Path) -> None:
    with allocations() as made:
        ImageTokenizer.from_pretrained(write(tmp_path, good))
    assert 0 < made.largest < MOST / 16
    assert {FIRST, CODEBOOK} <= good.entries.keys()


# Tensors


def set_value(name: str, value: float) -> Callable[[dict[str, Any]], object]:
    def change(tensors: dict[str, Any]) -> None:
        tensors[name].view(-1)[3] = value

    return change


def put(name: str, tensor: torch.Tensor) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: tensors.update({name: tensor})


ODD_NAME = "odd\n\x1b[31m" + "x" * 500
TENSORS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "missing": (lambda t: t.pop(FIRST), f"missing {FIRST}"),
    "missing all": (lambda t: t.clear(), f"missing {CODEBOOK}"),
    "extra": (put("extra", torch.ones(2)), "unexpected extra"),
    "extra, large": (put("extra", torch.zeros(2 * MOST)), "unexpected extra"),
    "too long": (put(CODEBOOK, torch.ones(2 * MOST, 4)), rf"{CODEBOOK} is .*\(2097152, 4\)"),
    "extra, of an odd name": (put(ODD_NAME, torch.ones(2)), r"unexpected odd\\n\\x1b"),
    "renamed": (lambda t: t.update({"x." + FIRST: t.pop(FIRST)}), f"missing {FIRST}; unexpected x"),
    "reshaped": (put(CODEBOOK, torch.ones(4, 8)), rf"{CODEBOOK} is .*\(4, 8\), .*\(8, 4\)"),
    "flattened": (put(CODEBOOK, torch.ones(32)), rf"{CODEBOOK} is .*\(32,\), expected"),
    "with an axis more": (put(CODEBOOK, torch.ones(1, 8, 4)), rf"{CODEBOOK} is .*\(1, 8, 4\)"),
    "empty": (put(CODEBOOK, torch.ones(0, 4)), rf"{CODEBOOK} is .*\(0, 4\)"),
    "NaN": (set_value(CODEBOOK, float("nan")), f"'{CODEBOOK}' has 1 NaN or infinite values"),
    "inf": (set_value(FIRST, float("inf")), f"'{FIRST}' has 1 NaN or infinite values"),
    "-inf": (set_value(FIRST, -float("inf")), f"'{FIRST}' has 1 NaN or infinite values"),
    **{
        f"mistyped as {dtype}": (
            put(CODEBOOK, torch.ones(8, 4).to(dtype)),
            f"{CODEBOOK}'? (is|has)",
        )
        for dtype in (
            torch.float64,
            torch.float16,
            torch.bfloat16,
            torch.float8_e4m3fn,
            torch.complex64,
            torch.int64,
            torch.int8,
            torch.uint64,
            torch.bool,
        )
    },
}


@pytest.mark.parametrize("fault", TENSORS)
def test_wrong_tensors_are_named_even_with_a_right_digest(
    good: Forgery, tmp_path: Path, fault: str
) -> None:
    change, message = TENSORS[fault]
    content = good.with_tensors(change)
    assert re.search(message, refusal(write(tmp_path, content)))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [("preprocessing", "resize", "bilinear"), ("preprocessing", "background", [255, 255, 254])],
)
def test_another_config_than_was_saved_is_refused_though_it_is_valid(
    good: Forgery, tmp_path: Path, part: str, key: str, value: object
) -> None:
    """The ids of every image could be others, and nothing else would show it."""
    forged = good.changed(lambda header: header["config"][part].update({key: value}))
    assert forged.header != good.header
    assert "sha256 differs" in refusal(write(tmp_path, forged))


def test_another_digest_than_was_saved_is_refused(good: Forgery, tmp_path: Path) -> None:
    for digest in ("", "0" * 64, good.header["sha256"].upper(), good.header["sha256"][:-1]):
        forged = good.changed(lambda header, digest=digest: header.update(sha256=digest))
        assert "sha256 differs" in refusal(write(tmp_path, forged))


# The structure of the file


def entry(good: Forgery, **changes: Any) -> bytes:
    """The file with the entry of one tensor changed; None takes a key out."""
    changed = {**good.entries[CODEBOOK], **changes}
    changed = {key: value for key, value in changed.items() if value is not None}
    return bytes(replace(good, entries={**good.entries, CODEBOOK: changed}))


def raw(good: Forgery, old: str, new: str) -> bytes:
    """The file with a part of the header's text replaced."""
    text = json.dumps({"__metadata__": {KEY: json.dumps(good.header)}, **good.entries})
    assert text.count(old) == 1
    return pack(text.replace(old, new).encode(), good.data)


def deep(brackets: str, count: int) -> str:
    return brackets[0] * count + brackets[1] * count


SIZE = 8 * 4 * 4
STRUCTURES: dict[str, Callable[[Forgery], bytes]] = {
    "length of nothing": lambda g: pack(b"", b"", 0),
    "length beyond the file": lambda g: pack({}, g.data, 10**6),
    "length one too long": lambda g: struct.pack("<Q", len(bytes(g)) - 7) + bytes(g)[8:],
    "length of 2^31": lambda g: struct.pack("<Q", 2**31) + bytes(g)[8:],
    "length of 2^62": lambda g: struct.pack("<Q", 2**62) + bytes(g)[8:],
    "length of 2^63": lambda g: struct.pack("<Q", 2**63) + bytes(g)[8:],
    "length of 2^64 - 1": lambda g: struct.pack("<Q", 2**64 - 1) + bytes(g)[8:],
    "length in another order": lambda g: struct.pack(">Q", 4000) + bytes(g)[8:],
    "trailing bytes": lambda g: bytes(g) + b"\0",
    "header of a list": lambda g: pack([], g.data),
    "header of null": lambda g: pack(b"null", g.data),
    "header of a number": lambda g: pack(b"1", g.data),
    "header of blanks": lambda g: pack(b" " * 4000, g.data),
    "header of zeros": lambda g: pack(bytes(4000), g.data),
    "header without tensors and metadata": lambda g: pack({}),
    "header that is no UTF-8": lambda g: pack(b'{"\xff": 1}', g.data),
    "header nested in lists": lambda g: pack(deep("[]", 100_000).encode(), g.data),
    "header nested in objects": lambda g: pack(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "metadata of a list": lambda g: pack({"__metadata__": [], **g.entries}, g.data),
    "metadata of an object": lambda g: pack({"__metadata__": {KEY: {}}, **g.entries}, g.data),
    "metadata given twice": lambda g: raw(
        g, '{"__metadata__":', '{"__metadata__": 3, "__metadata__":'
    ),
    "no metadata": lambda g: pack(g.entries, g.data),
    "entry of null": lambda g: bytes(replace(g, entries={**g.entries, "a": None})),
    "entry of a list": lambda g: bytes(replace(g, entries={**g.entries, "a": []})),
    "unknown dtype": lambda g: entry(g, dtype="F31"),
    "dtype of a pickle": lambda g: entry(g, dtype="os.system"),
    "dtype of a number": lambda g: entry(g, dtype=32),
    "no dtype": lambda g: entry(g, dtype=None),
    "no shape": lambda g: entry(g, shape=None),
    "shape of a number": lambda g: entry(g, shape=32),
    "shape that is negative": lambda g: entry(g, shape=[-8, -4]),
    "shape of floats": lambda g: entry(g, shape=[8.0, 4.0]),
    "shape of texts": lambda g: entry(g, shape=["8", "4"]),
    "shape of 2^62": lambda g: entry(g, shape=[2**62, 4]),
    "shape beyond 2^64": lambda g: entry(g, shape=[2**32, 2**32, 4]),
    "shape of 10^400": lambda g: entry(g, shape=[10**400]),
    "shape of another size": lambda g: entry(g, shape=[8, 5]),
    "shape of a thousand axes": lambda g: entry(g, shape=[1] * 1000 + [8, 4]),
    "shape of no elements and a huge side": lambda g: entry(g, shape=[0, 2**62]),
    "no offsets": lambda g: entry(g, data_offsets=None),
    "one offset": lambda g: entry(g, data_offsets=[0]),
    "three offsets": lambda g: entry(g, data_offsets=[0, SIZE, SIZE]),
    "offsets that are negative": lambda g: entry(g, data_offsets=[-SIZE, 0]),
    "offsets backwards": lambda g: entry(g, data_offsets=[SIZE, 0]),
    "offsets of floats": lambda g: entry(g, data_offsets=[0.0, float(SIZE)]),
    "offsets beyond the file": lambda g: entry(g, data_offsets=[2**40, 2**40 + SIZE]),
    "offsets beyond 2^64": lambda g: entry(g, data_offsets=[2**64, 2**64 + SIZE]),
    "offsets over another tensor": lambda g: entry(g, data_offsets=[SIZE, 2 * SIZE]),
    "a hole": lambda g: bytes(
        replace(
            g,
            data=g.data + bytes(SIZE),
            entries={
                **g.entries,
                "z": {
                    "dtype": "F32",
                    "shape": [1],
                    "data_offsets": [len(g.data) + SIZE - 4, len(g.data) + SIZE],
                },
            },
        )
    ),
    "a name given twice": lambda g: raw(
        g, f'"{CODEBOOK}": ', f'"{CODEBOOK}": {json.dumps(g.entries[FIRST])}, "{CODEBOOK}": '
    ),
}


@pytest.mark.parametrize("fault", STRUCTURES)
def test_a_file_of_another_structure_is_refused(good: Forgery, tmp_path: Path, fault: str) -> None:
    refusal(write(tmp_path, STRUCTURES[fault](good)))


def test_a_file_that_ends_anywhere_before_its_end_is_refused(good: Forgery, tmp_path: Path) -> None:
    content = bytes(good)
    header_end = len(content) - len(good.data)
    near = [0, 8, header_end, len(content) - 1]
    places = {place + step for place in near for step in (-1, 0, 1)} | set(
        range(0, len(content), 97)
    )
    for place in sorted(place for place in places if 0 <= place < len(content)):
        refusal(write(tmp_path, content[:place]))


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model/data.pkl", bytes(100))
    return stream.getvalue()


def array_file() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(100))
    return stream.getvalue()


FOREIGN: dict[str, tuple[bytes, str]] = {
    "a pickle": (pickle.dumps({"weight": [1.0] * 100}), "it is a pickle"),
    "a pickle of protocol 2": (pickle.dumps({"weight": 1.0}, protocol=2), "it is a pickle"),
    "a zip": (zipped(), "it is a zip archive such as torch.save writes"),
    "a pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 8\n",
        "it is a Git LFS pointer; fetch the file with `git lfs pull`",
    ),
    "a page": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "it is a web page"),
    "a page without a type": (b"<html lang=en><body>Sign in</body></html>", "it is a web page"),
    "an answer": (b'{"error": "Repository not found"}', "is damaged"),
    "an old pickle": (pickle.dumps({"weight": 1.0}, protocol=0), "is damaged"),
    "an array": (array_file(), "is damaged"),
    "a gzip": (gzip.compress(bytes(1000)), "is damaged"),
    "an HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "is damaged"),
    "noise": (random.Random(0).randbytes(5000), "is damaged"),
    "zeros": (bytes(5000), "is damaged"),
    "ones": (b"\xff" * 5000, "is damaged"),
    "nothing": (b"", "is damaged"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_kind_under_the_name_is_called_what_it_is(
    tmp_path: Path, kind: str
) -> None:
    content, message = FOREIGN[kind]
    assert message in refusal(write(tmp_path, content))


@pytest.mark.parametrize("first", [0x80, 0x3C, 0x50])
def test_a_truncated_file_is_not_taken_for_another_kind_by_the_length_of_its_header(
    tmp_path: Path, first: int
) -> None:
    length = 0x400 + first
    content = pack(b'{"a":' + b" " * (length - 5))
    assert content[0] == first
    message = refusal(write(tmp_path, content[:-9]))
    assert not any(kind in message for kind in ("pickle", "zip", "page"))


# What stands in the header


@pytest.mark.parametrize("version", [2, 3, 2**62, 10**400])
def test_a_format_version_of_the_future_asks_for_an_upgrade(
    good: Forgery, tmp_path: Path, version: int
) -> None:
    forged = good.changed(lambda header: header.update(format_version=version, new={"a": 1}))
    assert "up to 1: upgrade imagetok" in refusal(write(tmp_path, forged))


@pytest.mark.parametrize(
    "version", [0, -1, True, False, 1.0, 2.5, "1", "2", None, [1], {"a": 1}, [["x" * 1000]] * 99]
)
def test_a_format_version_that_is_none_is_refused(
    good: Forgery, tmp_path: Path, version: Any
) -> None:
    forged = good.changed(lambda header: header.update(format_version=version))
    message = refusal(write(tmp_path, forged))
    assert repr(version)[:60] in message
    assert "expected ['config', 'format_version', 'sha256'] with format version 1" in message


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.pop("config"),
        lambda header: header.pop("format_version"),
        lambda header: header.update(extra=1),
        lambda header: header.update({f"{number}": 1 for number in range(10_000)}),
        lambda header: header.update(config=[]),
        lambda header: header.update(config=None),
        lambda header: header.update(config="vqvae"),
    ],
)
def test_a_header_of_other_entries_is_refused(
    good: Forgery, tmp_path: Path, change: Callable[[Any], object]
) -> None:
    assert "the header holds ['" in refusal(write(tmp_path, good.changed(change)))


@pytest.mark.parametrize("digest", [None, 1, True, [], {"a": 1}])
def test_a_header_without_a_digest_is_refused(good: Forgery, tmp_path: Path, digest: Any) -> None:
    forged = good.changed(lambda header: header.update(sha256=digest))
    assert "not a JSON object with a sha256" in refusal(write(tmp_path, forged))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '"text"',
        "{'sha256': ''}",
        "\ufeff{}",
        '{"sha256": "0"} x',
        "[" * 10**5,
        '{"a":' * 10**5,
        '{"sha256": "0", "n": ' + "9" * 5000 + "}",
    ],
    ids=range(11),
)
def test_a_header_that_is_not_a_json_object_is_refused(
    good: Forgery, tmp_path: Path, text: str
) -> None:
    message = refusal(write(tmp_path, good.with_text(text)))
    assert "metadata 'imagetok' is not a JSON object with a sha256" in message


@pytest.mark.parametrize("key", ["config", "sha256", "format_version", "image_size", "type"])
def test_a_key_that_is_given_twice_is_refused_wherever_it_stands(
    good: Forgery, tmp_path: Path, key: str
) -> None:
    for text, file in (
        (json.dumps(good.header), modelfile.MODEL_FILE),
        (json.dumps(good.header["config"]), modelfile.CONFIG_FILE),
    ):
        if f'"{key}":' not in text:
            continue
        twice = text.replace(f'"{key}":', f'"{key}": 1, "{key}":', 1)
        if file == modelfile.MODEL_FILE:
            folder = write(tmp_path / "header", good.with_text(twice))
        else:
            folder = write(tmp_path / "copy", good, twice.encode())
        assert f"the key '{key}' is given twice" in refusal(folder, file)


# config.json

COPIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not valid JSON"),
    "half": (b'{"image_size": [8,', "not valid JSON"),
    "no UTF-8": (b'{"image_size": "\xff"}', "not valid JSON|unicode"),
    "UTF-16": ("{}".encode("utf-16"), "not valid JSON"),
    "a mark": (b"\xef\xbb\xbf{}", "not valid JSON"),
    "zeros": (bytes(1000), "not valid JSON"),
    "a list": (b"[]", "found \\[\\]"),
    "nested": (b'{"encoder": ' * 10**4, "recursion limit"),
    "a pickle": (pickle.dumps({"a": 1}), "not valid JSON|unicode"),
    "a web page": (b"<html></html>", "not valid JSON"),
    "too long": (
        b'{"image_size": [' + b"8," * model_folder.MAX_TEXT_SIZE,
        "has over 1048576 bytes",
    ),
    "too long by blanks": (b" " * model_folder.MAX_TEXT_SIZE + b"{}", "has over 1048576 bytes"),
}


@pytest.mark.parametrize("fault", COPIES)
def test_a_config_json_that_is_none_is_refused(good: Forgery, tmp_path: Path, fault: str) -> None:
    content, message = COPIES[fault]
    found = refusal(write(tmp_path, good, content), modelfile.CONFIG_FILE)
    assert re.search(message, found), found


# Links, pipes, devices and paths


def put_loop(path: Path) -> None:
    path.symlink_to(path.with_suffix(".other"))
    path.with_suffix(".other").symlink_to(path)


PLACES: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to a pipe": lambda path: (
        os.mkfifo(path.with_suffix(".pipe")),
        path.symlink_to(path.with_suffix(".pipe")),
    ),
    "a link to a device without end": lambda path: path.symlink_to("/dev/zero"),
    "a link to an empty device": lambda path: path.symlink_to("/dev/null"),
    "a link to a folder": lambda path: path.symlink_to(path.parent),
    "a loop of links": put_loop,
}


@pytest.mark.parametrize("file", [modelfile.MODEL_FILE, modelfile.CONFIG_FILE])
@pytest.mark.parametrize("kind", PLACES)
def test_what_is_not_a_file_is_refused_without_waiting_for_it(
    good: Forgery, tmp_path: Path, file: str, kind: str
) -> None:
    folder = write(tmp_path / "folder", good)
    (folder / file).unlink(missing_ok=True)
    PLACES[kind](folder / file)
    assert re.search("folder or a device|levels of symbolic links", refusal(folder, file))


@pytest.mark.parametrize("kind", PLACES)
def test_an_evaluation_that_is_not_a_file_vouches_for_nothing(
    good: Forgery, tmp_path: Path, kind: str
) -> None:
    folder = write(tmp_path / "folder", good)
    PLACES[kind](folder / modelfile.EVALUATION_FILE)
    assert not modelfile.carry_evaluation(folder, folder)


def test_the_links_of_the_hubs_cache_and_of_folders_are_followed(
    good: Forgery, tmp_path: Path
) -> None:
    write(tmp_path / "blobs", good, json.dumps(good.header["config"]).encode())
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for name in (modelfile.MODEL_FILE, modelfile.CONFIG_FILE):
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    (tmp_path / "main").symlink_to(snapshot)
    for folder in (snapshot, tmp_path / "main", snapshot / ".." / "0123"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ImageTokenizer.from_pretrained(folder)


def test_a_link_to_nothing_is_refused(good: Forgery, tmp_path: Path) -> None:
    write(tmp_path, good)
    (tmp_path / modelfile.MODEL_FILE).unlink()
    (tmp_path / modelfile.MODEL_FILE).symlink_to(tmp_path / "gone")
    with pytest.raises(ModelFileError, match=r"holds no model\.safetensors"):
        ImageTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["a\0b", "a" * 300, "a/" * 3000, "\udcff", "a\nb"])
def test_a_name_that_no_folder_can_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelFileError):
        ImageTokenizer.from_pretrained(tmp_path / name)


@pytest.mark.parametrize("name", ["../../outside", "/outside", "..", "a/b", "a\0b", "__class__"])
def test_names_of_tensors_lead_to_no_file(good: Forgery, tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "folder", good.with_tensors(put(name, torch.ones(1))))
    assert "unexpected " in refusal(folder)
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(folder) == [modelfile.MODEL_FILE]


@pytest.mark.parametrize("name", [None, 3, 3.5, b"folder", ["folder"], {"a": 1}, object()])
def test_what_is_not_a_path_is_refused(name: Any) -> None:
    with pytest.raises(InvalidTypeError, match="path"):
        ImageTokenizer.from_pretrained(name)
