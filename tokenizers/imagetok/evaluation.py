"""A tokenizer's figures on a dataset: what the reconstruction keeps and what the codes cost.

```
 rows ──preprocessing──► x ──encode──► ids or latents ──decode──► x_hat
                         │                │                         │
                         └────────────────┴──── MeasuredBatch ──────┘──► metrics ──► evaluation.json
```

What each figure is stands in `imagetok.metrics`. Reconstructions are made without noise; a model
with a posterior is decoded once more from a keyed draw, for the code length. Rank r takes every
world_size-th batch from the r-th on, and no figure depends on the number of ranks, beyond rounding.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from imagetok.cards import dataset_source, display_name
from imagetok.data import ImageRows, evaluation_batches, fixed_rows, name_some
from imagetok.data.unreadable_rows import allowed_rows
from imagetok.errors import DataError, InvalidValueError
from imagetok.images import MAX_PIXELS, Preprocessor, grid_image, to_unit
from imagetok.keys import make_keys
from imagetok.launch import collectives, has_only_cpu, leave_group_at_exit
from imagetok.metrics import (
    STANDARD_METRICS,
    MeasuredBatch,
    MeasuredModel,
    Metric,
    find_metric,
)
from imagetok.tokenizer import ImageTokenizer

Evaluation = dict[str, Any]
"""What `evaluation.json` holds."""

logger = logging.getLogger(__name__)


@torch.no_grad()
def evaluate(
    tokenizer: ImageTokenizer,
    rows: ImageRows,
    *,
    metrics: Sequence[str] = (),
    batch_size: int = 32,
    limit: int | None = None,
    progress: bool = True,
    poll: Callable[[], None] | None = None,
    max_error_rate: float = 0.0,
) -> Evaluation:
    """Measure a tokenizer on rows of a dataset, on all ranks together.

    Args:
        tokenizer: The same on every rank.
        rows: The same on every rank.
        metrics: Keys of metrics to measure besides the standard ones.
        batch_size: Images encoded at once, at least 1.
        limit: Most images to measure, at least 1, spread evenly over the rows; None takes all.
        progress: Show a bar on rank 0.
        poll: Called after every batch, equally often on every rank, so that it may ask the others
            whether to go on; what it raises ends the measuring.
        max_error_rate: Largest share of images that may be left out because they cannot be read;
            they are counted, and some are named in a warning.

    Returns:
        The same figures on every rank; None where a figure does not apply.

    Raises:
        DataError: Too many images cannot be read, or all of them.
        InvalidValueError: `batch_size` or `limit` is under 1, or a metric is unknown.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise InvalidValueError(
            f"batch_size and limit are at least 1, got {batch_size} and {limit}"
        )
    measured = _start_metrics(tokenizer, metrics)
    indices = fixed_rows(len(rows), len(rows) if limit is None else limit)
    flat, num_batches = _share(indices, batch_size)
    refused, notes = list[str](), list[str]()
    silent = not progress or collectives.rank() > 0
    with tqdm(total=len(flat), desc="evaluate", unit="image", disable=silent, leave=False) as bar:
        for numbers, pixels in evaluation_batches(
            rows,
            tokenizer.preprocessor,
            batch_size,
            flat,
            refused if max_error_rate else None,
            notes,
        ):
            if numbers:
                batch = _run_model(tokenizer, to_unit(pixels.to(tokenizer.device)), numbers)
                for metric in measured:
                    metric.update(batch)
            bar.update(min(batch_size, len(flat) - bar.n))
            _call(poll)
    if math.ceil(len(flat) / batch_size) < num_batches:  # the first ranks had one more
        _call(poll)
    refused = [message for part in collectives.gather_objects(refused) for message in part]
    _check_refused(refused, len(indices), max_error_rate)
    for metric in measured:
        metric.merge()
    figures = _report(tokenizer, rows, (len(indices), len(refused)), measured)
    if ignored := sum(collectives.gather_objects(len(notes))):
        figures["num_profiles_ignored"] = ignored
    return figures


def _share(indices: Sequence[int], batch_size: int) -> tuple[list[int], int]:
    """The rows that this rank takes, and the most batches that any rank has."""
    batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    ranks = collectives.world_size()
    mine = batches[collectives.rank() :: ranks]
    return [row for batch in mine for row in batch], math.ceil(len(batches) / ranks)


def _start_metrics(tokenizer: ImageTokenizer, keys: Sequence[str]) -> list[Metric]:
    """The standard metrics and those of these keys, each once, with nothing measured yet."""
    model = MeasuredModel(
        image_size=tokenizer.image_size,
        grid_size=tokenizer.grid_size,
        codebook_sizes=tokenizer.codebook_sizes if tokenizer.is_discrete else (),
        device=tokenizer.device,
    )
    configs = {metric.type: metric for metric in STANDARD_METRICS}
    configs |= {key: find_metric(key).from_dict({"type": key}) for key in keys}
    return [config.build(model) for config in configs.values()]


def _run_model(tokenizer: ImageTokenizer, x: Tensor, batch_rows: Sequence[int]) -> MeasuredBatch:
    """Reconstructions of x (B, C, H, W), and their ids and code lengths where there are any."""
    z = tokenizer.encode_pixels(x)
    ids, z_q = tokenizer.choose_codes(z)
    params = tokenizer.decode_params(z_q)
    x_hat = tokenizer.likelihood.mean(params).clamp(0, 1)
    code_length = None
    coded = tokenizer.bottleneck.rate(z, make_keys(0, 0, batch_rows, "evaluate"))
    if coded is not None:
        z_drawn, nats = coded
        if not torch.equal(z_drawn, z_q):
            params = tokenizer.decode_params(z_drawn)
        code_length = tokenizer.likelihood.nll(params, x) + nats
    return MeasuredBatch(x, x_hat, ids, code_length)


def _check_refused(refused: Sequence[str], count: int, max_error_rate: float) -> None:
    """Warn about images that were left out; refuse to report when there are too many of them."""
    if not refused:
        return
    named = name_some(refused)
    allowed = allowed_rows(max_error_rate, count, all_seen=True)
    if len(refused) > allowed or len(refused) == count:
        raise DataError(
            f"{len(refused)} of {count} images cannot be read, and a max_error_rate of "
            f"{max_error_rate:g} allows {allowed:g}; mend the data or raise the limit: {named}"
        )
    if collectives.rank() == 0:
        logger.warning("warning: %d of %d images left out: %s", len(refused), count, named)


def _call(poll: Callable[[], None] | None) -> None:
    if poll is not None:
        poll()


def _report(
    tokenizer: ImageTokenizer, rows: ImageRows, counts: tuple[int, int], metrics: Sequence[Metric]
) -> Evaluation:
    """The evaluation, as JSON-like values; counts are those of the rows and of unreadable ones."""
    num_rows, num_unreadable = counts
    preprocessor = tokenizer.preprocessor
    return {
        **{key: value for metric in metrics for key, value in metric.figures().items()},
        "num_images": num_rows - num_unreadable,
        "num_unreadable": num_unreadable,
        "tokenizer_fingerprint": tokenizer.take_fingerprint(),
        "protocol": {
            "dataset": display_name(rows.name),
            "dataset_source": dataset_source(rows.name),
            "split": rows.split,
            **rows.reading,
            "dataset_fingerprint": rows.fingerprint,
            "dataset_rows": len(rows),
            "rows": "all" if num_rows == len(rows) else "evenly spaced",
            "image_size": list(tokenizer.image_size),
            "channels": preprocessor.channels,
            "resize": f"{preprocessor.resize}, antialiased, of a centre crop",
            **_later_entries(preprocessor),
            "data_range": 1.0,
            "dtype": str(tokenizer.dtype).removeprefix("torch."),
            "averaging": "mean over images of per-image values",
            **{m.config.type: m.config.protocol for m in metrics if m.config.protocol},
        },
    }


def _later_entries(preprocessor: Preprocessor) -> dict[str, Any]:
    """Entries of the protocol that version 1 did not have, where they are set."""
    entries = {"color_profile": preprocessor.color_profile, "max_pixels": preprocessor.max_pixels}
    defaults = {"color_profile": "ignore", "max_pixels": MAX_PIXELS}
    return {key: value for key, value in entries.items() if value != defaults[key]}


def join_processes(device: str = "auto") -> torch.device:
    """Join the other processes of a launcher, if there is one, and say where this one computes.

    Args:
        device: `auto` takes the process's own GPU, where there is one; a kind such as `cuda` also
            takes the process's own, a name such as `cuda:1` that one.

    Raises:
        InvalidValueError: The device does not exist.
    """
    leave_group_at_exit()
    own: torch.device = PartialState(cpu=device == "cpu" or has_only_cpu()).device
    if device in ("auto", own.type):
        return own
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidValueError(f"there is no device '{device}' to compute on: {reason}") from None


def reconstruction_grid(
    tokenizer: ImageTokenizer, rows: ImageRows, num_images: int = 8
) -> Image.Image:
    """Fixed originals above their reconstructions, as one image.

    Images that cannot be read are left out.

    Raises:
        DataError: None of them can be read.
    """
    chosen, refused = fixed_rows(len(rows), num_images), list[str]()
    batches = evaluation_batches(rows, tokenizer.preprocessor, num_images, chosen, refused)
    shown, pixels = next(batches)
    if not shown:
        raise DataError(f"there is no image to show: {name_some(refused)}")
    x = to_unit(pixels)
    x_hat = tokenizer.reconstruct(x, output="pt")
    assert isinstance(x_hat, Tensor)
    return grid_image([x, x_hat.float().cpu()])
