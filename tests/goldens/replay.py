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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
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
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from imagetok import (
    GaussianPosterior,
    ImageTokenizer,
    ImagetokError,
    RunConfig,
    TokenizerConfig,
    __version__,
    cli,
    load_recipe,
    open_images,
    train,
)
from imagetok.shards import TokenDataset, TokenLayout

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


def output_of(*arguments: object) -> str:
    """What a command prints."""
    text = io.StringIO()
    with redirect_stdout(text):
        assert command(*arguments) == 0
    return text.getvalue()


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
        "card": card_facts(files["tokenizer/README.md"].decode()),
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
        "card": card_facts(files["README.md"].decode()),
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


def card_facts(text: str) -> dict[str, Any]:
    """What a card says in figures: its metadata, and the numbers in its tables, but for speeds."""
    _, head, body = text.split("---\n", 2)
    table = "\n".join(line for line in body.splitlines() if line.startswith("|"))
    table = re.sub(r"\d+\.\d+\.\d+\S*", "", table)  # versions
    numbers = re.findall(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)", table)
    return {"metadata": _without_names(yaml.safe_load(head)), "numbers": sorted(numbers)}


def _without_names(value: Any) -> Any:
    """A value without what only people read."""
    if isinstance(value, dict):
        return {key: _without_names(inner) for key, inner in value.items() if key != "name"}
    return [_without_names(inner) for inner in value] if isinstance(value, list) else value


# Refusals


def exit_of(arguments: Sequence[str], output: Path) -> tuple[int, list[str]]:
    """The exit code of a command, and the classes of the refusal, the narrowest first.

    OUT stands for the output.
    """
    before = Path.cwd()
    os.chdir(GOLDENS)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            cli.main([argument.replace("OUT", str(output)) for argument in arguments])
    except SystemExit as stop:
        error = stop.__context__
        return int(stop.code or 0), _classes(error) if isinstance(error, ImagetokError) else []
    finally:
        os.chdir(before)
    return 0, []


def refusals() -> dict[str, Callable[[], object]]:
    """Calls that are refused, by what is wrong."""
    vq, dvae, vae, ae, digits, wide = (
        ImageTokenizer.from_pretrained(GOLDENS / "tokenizers" / name)
        for name in ("vqvae", "dvae", "vae", "ae", "vae-digits", "vq-dalle-wide")
    )
    image = str(GOLDENS / "photos" / "test" / "13.png")
    pixels = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    return {
        "an address": lambda: vq.encode("https://localhost/image.png"),
        "a missing file": lambda: vq.encode("missing.png"),
        "a damaged file": lambda: vq.encode(str(GOLDENS / "photos" / "train" / "05.png")),
        "a text file": lambda: vq.encode(str(GOLDENS / "probe.json")),
        "no image": lambda: vq.encode(object()),
        "a number": lambda: vq.encode(3),
        "an int64 image": lambda: vq.encode(torch.zeros(3, 16, 16, dtype=torch.int64)),
        "values over 1": lambda: vq.encode(pixels * 255),
        "values that are not finite": lambda: vq.encode(pixels * float("nan")),
        "two channels": lambda: vq.encode(pixels[:2]),
        "sides that do not divide": lambda: vq.encode(pixels[:, :15]),
        "float images of several sizes": lambda: vq.encode([pixels, pixels[:, :8]]),
        "another size for a network of one": lambda: digits.encode_latents(pixels[:1]),
        "ids of a continuous model": lambda: ae.encode(image),
        "decoding ids by one": lambda: vae.decode([[0]]),
        "its codebook": lambda: ae.codebook_size,
        "a walk between codes": lambda: vq.interpolate(image, image),
        "one step": lambda: ae.interpolate(image, image, 1),
        "half a step": lambda: ae.interpolate(image, image, 2.5),  # type: ignore[arg-type]
        "two images to walk from": lambda: ae.interpolate([image, image], image),
        "a posterior of a VQ-VAE": lambda: vq.encode_distribution(image),
        "a posterior of an AE": lambda: ae.encode_distribution(image),
        "draws of ids from a VQ-VAE": lambda: vq.sample_ids(image),
        "a negative temperature": lambda: dvae.sample_ids(image, -1.0),
        "a temperature in words": lambda: dvae.sample_ids(image, "1"),  # type: ignore[arg-type]
        "a foreign generator": lambda: vae.sample(1, 0),  # type: ignore[arg-type]
        "draws from an AE": lambda: ae.sample(1),
        "fewer than no images": lambda: vae.sample(-1),
        "an id too large": lambda: vq.decode([[24] * 4] * 4),
        "a negative id": lambda: vq.decode([[-1] * 4] * 4),
        "float ids": lambda: vq.decode([[0.5] * 4] * 4),
        "ids in four dimensions": lambda: vq.decode(torch.zeros(1, 2, 3, 4, dtype=torch.int64)),
        "too few ids": lambda: vq.decode([0] * 15),
        "a grid that is none": lambda: vq.decode([0] * 16, grid=(0, 16)),
        "an unknown output": lambda: vq.decode([0] * 16, output="jpg"),  # type: ignore[arg-type]
        "integer latents": lambda: ae.decode_latents(torch.zeros(6, 4, 4, dtype=torch.int64)),
        "latents of another width": lambda: ae.decode_latents(torch.zeros(5, 4, 4)),
        "a factor of an oblong": lambda: (
            ImageTokenizer.from_config(
                TokenizerConfig.from_dict(
                    {
                        "image_size": [8, 16],
                        "encoder": {"type": "mlp"},
                        "bottleneck": {"type": "identity", "latent_dim": 2},
                        "decoder": {"type": "mlp"},
                        "likelihood": {"type": "mse"},
                    }
                )
            ).downsample_factor
        ),
        "an unknown dtype": lambda: ImageTokenizer.from_pretrained("x", dtype="int8"),
        "an unknown device": lambda: ImageTokenizer.from_pretrained("x", device="nothing"),
        "no folder": lambda: ImageTokenizer.from_pretrained(GOLDENS / "missing"),
        "a folder without a tokenizer": lambda: ImageTokenizer.from_pretrained(GOLDENS),
        "no name of a folder": lambda: ImageTokenizer.from_pretrained(3),  # type: ignore[arg-type]
        "a revision of a folder": lambda: ImageTokenizer.from_pretrained(GOLDENS, revision="main"),
        "a place that is a file": lambda: wide.save_pretrained(GOLDENS / "probe.json"),
        "no dataset": lambda: open_images(str(GOLDENS / "missing"), "train"),
        "no split": lambda: open_images(str(GOLDENS / "photos"), "nothing"),
        "no column": lambda: open_images(str(GOLDENS / "photos"), "train", image_column="nothing"),
        "an unknown recipe": lambda: load_recipe("nothing"),
        "an unknown override": lambda: load_recipe("ae-shapes", ["train.nothing=1"]),
        "tokens that are none": lambda: TokenDataset(GOLDENS / "photos", batch_size=2),
        "tokens of a killed job": lambda: TokenDataset(
            GOLDENS / "jobs" / "rows-killed", batch_size=2
        ),
        "tokens of another tokenizer": lambda: TokenDataset(
            GOLDENS / "jobs" / "rows", batch_size=2, tokenizer=dvae
        ),
        "a layout of no grid": lambda: TokenLayout(1000, 24, grid=(0, 4)),
    }


def refusal_of(call: Callable[[], object]) -> list[str]:
    """The classes of what a call raises, the narrowest first."""
    try:
        call()
    except ImagetokError as error:
        return _classes(error)
    return []


def _classes(error: Exception) -> list[str]:
    return [kind.__name__ for kind in type(error).__mro__ if kind not in (BaseException, object)]


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
    try:
        return output_of(*name.split(), "--help")
    finally:
        os.environ.clear()
        os.environ |= before


def resolve(module: str, name: str) -> Any:
    """A name of a module."""
    return getattr(import_module(module), name)


def same_images(one: Tensor, other: Tensor, levels: int = 0) -> bool:
    """Whether uint8 images are equal, or within some levels."""
    same_kind = one.shape == other.shape and one.dtype == other.dtype
    return same_kind and bool(((one.int() - other.int()).abs() <= levels).all())
