"""What the command line prints: plans, figures, and what a tokenizer is."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from imagetok.build import without_values
from imagetok.codesearch import search_backend
from imagetok.config.recipe import dump_recipe
from imagetok.errors import DataError, ImagetokError
from imagetok.files import write_atomic
from imagetok.hub import is_repo_id
from imagetok.images import grid_image, to_unit
from imagetok.images.rendering import save_image
from imagetok.metrics import PsnrConfig, known_metric, psnr
from imagetok.modelfile import EVALUATED_KEY, read_evaluation
from imagetok.tokenizer import ImageTokenizer

if TYPE_CHECKING:  # they bring in datasets and accelerate, which most commands do not need
    from imagetok.data.survey import DataSurvey
    from imagetok.evaluation import Evaluation
    from imagetok.run_config import RunConfig
    from imagetok.tokenize_config import TokenizeConfig

GIB = 2**30
UNKNOWN = "not known without the weights"
DOES_NOT_APPLY = "does not apply"


def show(text: str = "") -> None:
    """Print text as it is, however narrow the terminal: paths and hashes stay whole."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def show_table(title: str, rows: Mapping[str, str]) -> None:
    """Print a title and aligned lines of names and values."""
    width = max(len(name) for name in rows)
    show(title)
    for name, value in rows.items():
        show(f"  {name:<{width}}  {value}")


def show_next(*commands: Sequence[object]) -> None:
    """Print on stderr what may be typed next, a command a line.

    Args:
        commands: The words after `imagetok` of each.
    """
    for command in commands:
        line = shlex.join(["imagetok", *map(str, command)])
        sys.stderr.write(f"next: {line}\n")
    sys.stderr.flush()


def show_plan(config: RunConfig) -> None:
    """Print a resolved config, its sizes and its memory, training nothing.

    Raises:
        ConfigError: As for `plan_run`.
    """
    from imagetok.training.plan import plan_run

    plan = plan_run(config)
    show(dump_recipe(config))
    grid, pixels = plan.grid_size, plan.image_size
    activations = plan.activation_bytes * plan.images
    rows = {
        "image": f"{pixels[0]} x {pixels[1]} pixels, {config.tokenizer.channels} channels",
        "grid": f"{grid[0]} x {grid[1]} = {grid[0] * grid[1]} positions",
        "codebook": f"{plan.codebook_size} codes" if plan.codebook_size else "none: continuous",
        **{f"parameters, {name}": f"{count:,}" for name, count in plan.parameters.items()},
        "parameters": f"{sum(plan.parameters.values()):,}",
        "memory of weights": f"{plan.state_bytes / GIB:.3f} GiB a process, with gradients and "
        "optimizer",
        "memory of activations": f"about {activations / GIB:.3f} GiB in float32, for {plan.images} "
        "images at once over all processes",
    }
    show_table("plan", rows)


def show_run_data(config: RunConfig) -> None:
    """Print what a run would read; why not, where a dataset is not on this machine.

    A run may be planned where its data are not.

    Raises:
        DataError: The dataset is here, and it, a split or a column cannot be used.
    """
    from imagetok.data.dataset_location import is_here
    from imagetok.data.survey import evaluation_split, survey_data

    data = config.data
    try:
        trained = survey_data(data.ref(data.split))
        evaluated = evaluation_split(config)
        measured = survey_data(data.ref(evaluated))
    except ImagetokError as error:
        if isinstance(error, DataError) and is_here(data.ref(data.split)):
            raise
        show_table("data", {data.name: f"not opened: {error}"})
        return
    rows = {
        "train on": f"{data.split}, {_rows(trained)}",
        "evaluate on": f"{evaluated}, {_rows(measured)}",
    }
    show_table("data", {"dataset": data.name, **rows, **_survey_entries(trained)})


def show_job_data(config: TokenizeConfig, tokenizer: ImageTokenizer) -> None:
    """Print what a tokenizing job would read and how many tokens would come of it.

    Raises:
        DataError: The dataset, the split or the column cannot be used.
    """
    from imagetok.data.survey import survey_data

    dataset, length = config.dataset, tokenizer.num_tokens
    found = survey_data(dataset)
    if found.rows is not None and config.limit is not None:
        found = replace(found, rows=min(found.rows, config.limit))
    tokens = f"{length:,} an image" if config.resize == "crop" else "by the size of each image"
    if found.rows is not None and config.resize == "crop":
        tokens = f"{found.rows * length:,}, {tokens}"
    rows = {"dataset": dataset.name, "split": f"{dataset.split}, {_rows(found)}"}
    show_table("job", {**rows, **_survey_entries(found), "tokens": tokens})


def _rows(found: DataSurvey) -> str:
    return "rows counted by reading" if found.rows is None else f"{found.rows:,} rows"


def _survey_entries(found: DataSurvey) -> dict[str, str]:
    entries = {"splits": ", ".join(found.splits)}
    if found.image_column is not None:
        names, more = ", ".join(found.labels[:8]), ", ..." if len(found.labels) > 8 else ""
        labels = f"{len(found.labels)}: {names}{more}" if found.labels else "none"
        entries |= {"image column": found.image_column, "labels": labels}
    return entries


def show_evaluation(figures: Evaluation, name: str) -> None:
    """Print the figures of an evaluation."""
    protocol = figures["protocol"]
    rows = {
        key: DOES_NOT_APPLY if value is None else _number(key, value)
        for key, value in figures.items()
        if value is None or isinstance(value, float | int)
    }
    rows["on"] = f"{protocol['dataset']}, {protocol['split']}"
    show_table(name, rows)


def _number(key: str, value: float) -> str:
    """A figure with the unit that its metric states."""
    metric = known_metric(key)
    text = str(value) if isinstance(value, int) else f"{value:.4f}"
    return f"{text} {metric.unit if metric else ''}".rstrip()


def describe_tokenizer(name: str | Path, revision: str | None = None) -> dict[str, Any]:
    """What a saved tokenizer is, as JSON-like values.

    The weights of one on the Hub are not fetched: what its files say about themselves is believed.

    Args:
        name: Folder, or repository `user/name` on the Hub.
        revision: Branch, tag or commit on the Hub.

    Raises:
        ModelFileError: The folder or repository does not hold a complete tokenizer.
        HubAccessError, HubError: As for `imagetok.hub.read_remote_info`.
    """
    if isinstance(name, str) and is_repo_id(name):
        tokenizer, facts, figures = _describe_remote(name, revision)
    else:
        tokenizer, facts, figures = _describe_local(name, revision)
    assert tokenizer.config is not None
    discrete, several = tokenizer.is_discrete, tokenizer.is_discrete and tokenizer.depth > 1
    return {
        "bottleneck": tokenizer.config.bottleneck.type,
        "image_size": list(tokenizer.image_size),
        "channels": tokenizer.config.channels,
        "grid_size": list(tokenizer.grid_size),
        "num_tokens": tokenizer.num_tokens,
        "codebook_size": tokenizer.codebook_size if discrete else None,
        **({"codebook_sizes": list(tokenizer.codebook_sizes)} if several else {}),
        "latent_dim": tokenizer.bottleneck.latent_dim,
        **facts,
        "config": tokenizer.config.to_dict(),
        "evaluation": figures if figures is not None and "protocol" in figures else None,
    }


_Description = tuple[ImageTokenizer, dict[str, Any], "Evaluation | None"]


def _describe_local(name: str | Path, revision: str | None) -> _Description:
    tokenizer = ImageTokenizer.from_pretrained(name, revision=revision)
    assert tokenizer.origin is not None
    sha256 = tokenizer.origin.sha256
    facts = {
        "parameters": sum(tensor.numel() for tensor in tokenizer.state_dict().values()),
        "fingerprint": tokenizer.fingerprint,
        "sha256": sha256,
    }
    return tokenizer, facts, read_evaluation(tokenizer.origin.folder, sha256)


def _describe_remote(name: str, revision: str | None) -> _Description:
    from imagetok.hub import read_remote_info  # huggingface_hub, which a folder does not need

    found = read_remote_info(name, revision=revision)
    with without_values():
        tokenizer = ImageTokenizer.from_config(found.config)
    figures = found.evaluation
    if figures is not None and figures.get(EVALUATED_KEY) != found.sha256:
        figures = None
    facts = {
        "parameters": sum(math.prod(shape) for _, shape in found.tensors.values()),
        "fingerprint": (figures or {}).get("tokenizer_fingerprint", UNKNOWN),
        "sha256": found.sha256,
        "revision": found.revision,
    }
    return tokenizer, facts, figures


def show_info(name: str | Path, revision: str | None = None, *, as_json: bool) -> None:
    """Print what a saved tokenizer is; arguments as for `describe_tokenizer`."""
    facts = describe_tokenizer(name, revision)
    if as_json:
        show(json.dumps(facts, indent=2))
        return
    figures, config = facts.pop("evaluation"), facts.pop("config")
    show_table(str(name), {key: _text(value) for key, value in facts.items()})
    show_table("config", {key: json.dumps(value) for key, value in config.items()})
    if facts["codebook_size"] is not None:
        show_table("here", {"code search": search_backend()})
    if figures is None:
        show("figures: not measured; run imagetok evaluate")
    else:
        show_evaluation(figures, "figures")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " x ".join(str(side) for side in value)
    return DOES_NOT_APPLY if value is None else str(value)


def write_reconstructions(tokenizer: ImageTokenizer, images: Sequence[Path], output: Path) -> None:
    """Write one PNG of originals above their reconstructions, and print the PSNR of each."""
    x = to_unit(tokenizer.preprocess(list(images)))
    x_hat = tokenizer.reconstruct(x, output="pt")
    assert isinstance(x_hat, Tensor)
    x_hat = x_hat.float().cpu()
    save_image(grid_image([x, x_hat]), output)
    values = psnr(x_hat, x).tolist()
    unit = PsnrConfig.unit
    rows = {str(path): f"{value:.2f} {unit}" for path, value in zip(images, values, strict=True)}
    show_table(PsnrConfig.title, rows)
    show(f"written: {output}")


def show_ids(ids: Tensor, images: Sequence[Path]) -> None:
    """Print the ids of images as grids of aligned columns.

    Args:
        ids: int64 (images, *token_shape); several codes of a position are joined by commas.
        images: Their files, whose names stand above the grids where there are several.
    """
    width = len(str(int(ids.max())))
    for path, grid in zip(images, ids, strict=True):
        if len(images) > 1:
            show(f"{path}")
        for row in grid if grid.ndim > 1 else grid[None]:
            codes = row if row.ndim > 1 else row[:, None]
            show(" ".join(",".join(f"{code:{width}}" for code in some) for some in codes.tolist()))


def _npy(ids: Tensor) -> bytes:
    """Ids as numpy's own format has them, version 1.0; numpy's writer could go through pickles."""
    shape = "".join(f"{size}, " for size in ids.shape)
    head = f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({shape}), }}"
    head += " " * (-(len(head) + 11) % 64) + "\n"
    start = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode()
    return start + ids.contiguous().numpy().astype("<i8").tobytes()


def write_ids(tokenizer: ImageTokenizer, ids: Tensor, images: Sequence[Path], output: Path) -> None:
    """Write the ids of images to a `.npy` or a `.json` file.

    Args:
        tokenizer: What made them.
        ids: int64 (images, *token_shape), which is what a `.npy` file holds.
        images: Their files, which a `.json` file names.
        output: The file to write.
    """
    if output.suffix == ".npy":
        write_atomic(output, _npy(ids))
    else:
        found = {str(path): grid.tolist() for path, grid in zip(images, ids, strict=True)}
        sizes = {"codebook_size": tokenizer.codebook_size, "token_shape": tokenizer.token_shape}
        values = {"fingerprint": tokenizer.fingerprint, **sizes, "ids": found}
        write_atomic(output, f"{json.dumps(values)}\n".encode())
    show(f"written: {output}")
