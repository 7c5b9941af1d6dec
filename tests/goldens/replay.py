"""What the goldens are made of: probes, and the figures of tokenizers, runs and jobs.

`record.py` writes what these functions give to files; `tests/test_goldens.py` calls them again and
compares. They use public names, the command line and the names of saved tensors, and nothing else.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cached_property
from importlib import import_module
from inspect import Parameter, isclass, isfunction, isroutine, signature
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from imagetok import (
    GaussianPosterior,
    ImageTokenizer,
    ImagetokError,
    RunConfig,
    __version__,
    cli,
    train,
)

GOLDENS = Path(__file__).resolve().parent
ROOT = GOLDENS.parent.parent

NOT_COMPARED = {"metrics.jsonl", "tokenizer/evaluation.json", "tokenizer/README.md"}
"""Files of a run that hold times, or words that may improve."""

BY_DIGEST = {"reconstructions", "preprocessed", "pixels", "ids_of_one", "log_probs"}
"""Tensors that follow from others, so that only their digests are kept."""

LEAST_MARGIN = 1e-5
"""Ids may differ between machines where the two best scores are this close; see `margins_of`."""


# The machine


def probe() -> dict[str, Any]:
    """What decides bits: the kind of CPU, the libraries, and a small computation's result."""
    return {
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "versions": {
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "pyarrow": pa.__version__,
        },
        "imagetok": __version__,
        "computation": _computation(),
    }


def _computation() -> str:
    """Digest of a convolution forwards and backwards, a matrix product, exp and log."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 16, 16, generator=generator)
    convolutions = []
    for _ in range(2):
        kernel = torch.randn(8, 3, 4, 4, generator=generator, requires_grad=True)
        y = F.conv2d(x, kernel, stride=2, padding=1)
        y.square().mean().backward()
        assert kernel.grad is not None
        convolutions += [y.detach(), kernel.grad]
    table = torch.randn(37, 24, generator=generator)
    product = table @ table.T
    values = [*convolutions, product, product.exp(), product.abs().log1p(), product.softmax(1)]
    return tensors_digest({str(number): value for number, value in enumerate(values)})


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread, which is part of what decides bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Files


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def bytes_digest(data: bytes) -> str:
    """sha256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object, a line for each of its entries."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read an object."""
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def remove(folder: Path) -> None:
    """Remove a folder, if it is there."""
    if folder.exists():
        shutil.rmtree(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, by its path."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def without_version(text: str) -> str:
    """A text with the version of imagetok, in heads and in job.json, taken out."""
    text = re.sub(r"^# imagetok [^\s,]+", "# imagetok VERSION", text)
    return re.sub(r'("imagetok": )"[^"]+"', r'\1"VERSION"', text)


# Tokenizers


def images_for(config: Mapping[str, Any]) -> list[str]:
    """Image files that tokenizers are asked about, of every mode that is read."""
    return sorted(str(path) for path in (GOLDENS / "photos" / "test").glob("*.png"))


def prepared_for(config: Mapping[str, Any]) -> Tensor:
    """Prepared float images (2, C, H, W) of another size than the tokenizer's, if it takes any."""
    height, width = config["image_size"]
    if config["encoder"]["type"] != "mlp":
        height, width = 2 * height, width
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, config["channels"], height, width, generator=generator)


def tokenizer_facts(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a saved tokenizer gives: facts as JSON-like values, and tensors by name."""
    tokenizer = ImageTokenizer.from_pretrained(folder)
    assert tokenizer.config is not None
    config = tokenizer.config.to_dict()
    images, prepared = images_for(config), prepared_for(config)
    facts: dict[str, Any] = {
        "config": config,
        "config_json": tokenizer.config.to_json(),
        "identity": bytes_digest(json.dumps(tokenizer.config.identity(), sort_keys=True).encode()),
        "fingerprint": tokenizer.fingerprint,
        "grid_size": list(tokenizer.grid_size),
        "num_tokens": tokenizer.num_tokens,
        "image_size": list(tokenizer.image_size),
    }
    tensors = {
        "preprocessed": tokenizer.preprocess(images),
        "latents": tokenizer.encode_latents(images),
        "reconstructions": tokenizer.reconstruct(images, output="pt"),
        "pixels": stack(tokenizer.reconstruct(images)),
    }
    if is_discrete(config):
        ids, prepared_ids = tokenizer.encode(images), tokenizer.encode(prepared)
        grid = (prepared_ids.shape[1], prepared_ids.shape[2])
        facts["codebook_size"] = tokenizer.codebook_size
        tensors |= {
            "ids": ids,
            "ids_of_one": tokenizer.encode(images[0]),
            "prepared_ids": prepared_ids,
            "decoded": stack(tokenizer.decode(ids.flatten(-2))),
            "prepared_decoded": stack(tokenizer.decode(prepared_ids, grid=grid)),
        }
    else:
        (first, second), generator = images[:2], torch.Generator().manual_seed(2)
        tensors["decoded"] = stack(tokenizer.decode_latents(tensors["latents"]))
        tensors["prepared_latents"] = tokenizer.encode_latents(prepared)
        tensors["interpolated"] = stack(tokenizer.interpolate(first, second, 3))
        if config["bottleneck"]["type"] == "gaussian":
            tensors["sampled"] = stack(tokenizer.sample(3, generator))
    tensors |= _posterior(tokenizer, config, images)
    return facts, {name: tensor.contiguous() for name, tensor in tensors.items()}


def _posterior(
    tokenizer: ImageTokenizer, config: Mapping[str, Any], images: list[str]
) -> dict[str, Tensor]:
    kind = config["bottleneck"]["type"]
    if kind not in ("gaussian", "gumbel"):
        return {}
    found = tokenizer.encode_distribution(images)
    if isinstance(found, GaussianPosterior):
        return {"mean": found.mean, "log_var": found.log_var}
    generator = torch.Generator().manual_seed(3)
    return {"log_probs": found, "sampled_ids": tokenizer.sample_ids(images, 0.7, generator)}


def is_discrete(config: Mapping[str, Any]) -> bool:
    """Whether a tokenizer of this config has ids."""
    return config["bottleneck"]["type"] in ("vq", "gumbel")


def stack(images: Any) -> Tensor:
    """PIL images as one uint8 tensor (B, H, W) or (B, H, W, C)."""
    return torch.stack([torch.from_numpy(np.array(image)) for image in images])


def margins_of(folder: Path) -> dict[str, Tensor]:
    """How much better than the second best code the chosen one is, in float64.

    Of a dVAE the difference of the log-probabilities; of a VQ-VAE the difference of the squared
    distances over the sum of the squared lengths of the vector and of the longest code.

    Returns:
        float64 (B, h, w) for `images_for` and for `prepared_for`, and the ids int64 in float64.
    """
    tokenizer = ImageTokenizer.from_pretrained(folder).double()
    assert tokenizer.config is not None
    config = tokenizer.config.to_dict()
    pixels = tokenizer.preprocess(images_for(config)).double() / 255
    tensors = {}
    for name, x in (("ids", pixels), ("prepared_ids", prepared_for(config).double())):
        with torch.no_grad():
            if config["bottleneck"]["type"] == "gumbel":
                found = tokenizer.encode_distribution(x)
                assert isinstance(found, Tensor)
                scores = found.double()
            else:
                state = {key: value.double() for key, value in tokenizer.state_dict().items()}
                scores = _scores(tokenizer.encoder(x).movedim(1, -1), state, config["bottleneck"])
        best = scores.topk(2, dim=-1)
        tensors[f"{name}_margins"] = best.values[..., 0] - best.values[..., 1]
        tensors[f"{name}_in_float64"] = best.indices[..., 0]
    return tensors


def _scores(z: Tensor, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """Minus the squared distances (B, h, w, K), over the squared lengths."""
    codes = state["bottleneck.codebook"]
    if "bottleneck.project_in.weight" in state:
        weight, bias = (state[f"bottleneck.project_in.{name}"] for name in ("weight", "bias"))
        z = F.linear(z, weight, bias)
    if config["normalize"]:
        z = F.normalize(z, dim=-1)
    lengths = z.square().sum(-1, keepdim=True) + codes.square().sum(-1).max()
    return -(z[..., None, :] - codes).square().sum(-1) / lengths


# Commands, in this process and in others


def command(*arguments: object) -> int:
    """Run `imagetok` in this process, in the folder of the goldens; gives the exit code."""
    before = Path.cwd()
    os.chdir(GOLDENS)
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        os.chdir(before)
    return 0


def launch(script: str, *arguments: object, ranks: int = 1) -> subprocess.Popen[bytes]:
    """Start a script of the repository in processes with one thread each."""
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return subprocess.Popen(
        [*start, str(ROOT / "scripts" / script), *(str(argument) for argument in arguments)],
        cwd=GOLDENS,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def train_values(values: Mapping[str, Any], folder: Path, *, resume: bool = False) -> None:
    """Train a run, given as JSON-like values, in this process."""
    with one_thread():
        train(RunConfig.from_dict(values), folder, resume=resume, progress=False)


def train_here(config: Path, folder: Path, *, resume: bool = False, ranks: int = 1) -> None:
    """Train a saved `config.yaml`, in this process or in several."""
    arguments = ["--output-dir", folder, *(["--resume"] if resume else [])]
    if ranks == 1:
        assert command("train", config, *arguments) == 0
        return
    process = launch("train.py", config, *arguments, ranks=ranks)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output.decode()


# Runs and jobs


def run_facts(folder: Path) -> dict[str, Any]:
    """What a finished run left: digests of its files, its losses, its figures."""
    files = contents(folder)
    figures = json.loads(files["tokenizer/evaluation.json"])
    return {
        "config_yaml": without_version(files["config.yaml"].decode()),
        "files": {
            name: "not compared" if name in NOT_COMPARED else bytes_digest(data)
            for name, data in files.items()
        },
        "losses": [json.loads(line) for line in files["losses.jsonl"].splitlines()],
        "metric_keys": sorted({k for line in _lines(files["metrics.jsonl"]) for k in line}),
        "figures": {k: v for k, v in figures.items() if not isinstance(v, dict)},
        "figure_keys": sorted(_paths(figures)),
        "data_fingerprint": figures["protocol"]["dataset_fingerprint"],
    }


def job_facts(folder: Path) -> dict[str, Any]:
    """What a finished job left, but for times and words."""
    files = contents(folder)
    manifest = json.loads(files["manifest.json"])
    manifest["throughput"] = None
    return {
        "job_json": files["job.json"].decode(),
        "manifest": manifest,
        "files": {
            name: bytes_digest(data)
            for name, data in files.items()
            if name.startswith(("data/", "errors/"))
        },
        "names": sorted(files),
        "errors": {
            name: data.decode() for name, data in files.items() if name.startswith("errors/")
        },
    }


def _lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def _paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{key}.")


# Names


def signatures(value: Any) -> dict[str, list[list[Any]]]:
    """Parameters (name, kind, default) of a function, or of the public methods of a class.

    A class's properties stand among its methods, without parameters.
    """
    if isfunction(value):
        return {"": _parameters(value)}
    if not isclass(value):
        return {}
    found: dict[str, list[list[Any]]] = {}
    for base in reversed(value.__mro__):
        for name, member in vars(base).items() if base.__module__.startswith("imagetok") else ():
            if isinstance(member, property | cached_property) and not name.startswith("_"):
                found[name] = []
            elif name == "__init__" or (isroutine(member) and not name.startswith("_")):
                found[name] = _parameters(getattr(value, name))
    return dict(sorted(found.items()))


def _parameters(function: Callable[..., Any]) -> list[list[Any]]:
    return [
        [name, str(parameter.kind), None if parameter.default is Parameter.empty else repr(default)]
        for name, parameter in signature(function).parameters.items()
        for default in [parameter.default]
    ]


def kind_of(value: Any) -> str:
    """`class`, `error (ValueError)`, `function`, `module` or the type of a value."""
    if isclass(value) and issubclass(value, ImagetokError):
        builtin = [base.__name__ for base in value.__mro__ if base.__module__ == "builtins"]
        common = {"object", "BaseException", "Exception"}
        return f"error ({', '.join(sorted(set(builtin) - common))})"
    if isclass(value):
        return "class"
    if isfunction(value):
        return "function"
    return "module" if isinstance(value, ModuleType) else "value"


def options_of(name: str) -> list[str]:
    """The options that a command's help lists."""
    return sorted(set(re.findall(r"(?<![\w`-])--[a-z][a-z-]+", help_of(name))))


def commands() -> list[str]:
    """The commands that the help lists."""
    return sorted(set(re.findall(r"^[^\w-]*([a-z]+(?:-[a-z]+)*)  +\S", help_of(""), re.MULTILINE)))


def help_of(name: str) -> str:
    """The help of a command; of imagetok itself for an empty name."""
    before = dict(os.environ)
    os.environ |= {"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            assert command(*name.split(), "--help") == 0
    finally:
        os.environ.clear()
        os.environ |= before
    return text.getvalue()


def resolve(module: str, name: str) -> Any:
    """A name of a module."""
    return getattr(import_module(module), name)


def same_images(one: Tensor, other: Tensor, levels: int = 0) -> bool:
    """Whether uint8 images are equal, or within some levels."""
    same_kind = one.shape == other.shape and one.dtype == other.dtype
    return same_kind and bool(((one.int() - other.int()).abs() <= levels).all())
