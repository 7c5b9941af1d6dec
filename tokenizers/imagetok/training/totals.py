"""A step's losses, metrics, counts and statistics, summed over micro-batches and ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from imagetok.launch import collectives
from imagetok.outputs import Statistics


class StepTotals:
    """Means of scalars and sums of counts and statistics over the micro-batches of all ranks.

    All micro-batches are of one size, so that the mean of their means is that of their samples.

    Args:
        num_parts: Number of micro-batches of all ranks together.

    Attributes:
        means: Means of the scalars, once merged.
        counts: Sums of the counts, once merged.
        gradients: Means of the gradients, once merged.
        statistics: What `bottleneck.update` takes, once merged; None if no micro-batch has any.
    """

    def __init__(self, num_parts: int) -> None:
        self._num_parts = num_parts
        self._scalars: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._statistics: list[Statistics] = []
        self.means: dict[str, float] = {}
        self.counts: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.statistics: Statistics | None = None

    def add(self, scalars: Mapping[str, Tensor], statistics: Statistics | None = None) -> None:
        """Add scalars and statistics of a micro-batch."""
        for name, value in scalars.items():
            value = value.detach()
            self._scalars[name] = self._scalars[name] + value if name in self._scalars else value
        if statistics is not None:
            self._statistics.append(statistics)

    def add_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Add gradients of a micro-batch's mean losses."""
        for name, value in gradients.items():
            known = self._gradients.get(name)
            self._gradients[name] = value if known is None else known + value

    def merge(self, counts: Mapping[str, Tensor] | None = None) -> None:
        """Add up all ranks, in one collective for each dtype.

        Args:
            counts: float64 vectors of this rank, to be summed in the same collective.
        """
        names, counts = list(self._scalars), counts or {}
        # On the CPU: not every device has float64.
        sums = {"scalars": torch.stack([self._scalars[name].cpu().double() for name in names])}
        sums |= {f"counts/{name}": vector for name, vector in counts.items()}
        sums |= {f"gradients/{name}": gradient for name, gradient in self._gradients.items()}
        parts = self._statistics
        for name in parts[0].sums if parts else ():
            sums[f"statistics/{name}"] = torch.stack([part.sums[name] for part in parts]).sum(0)
        sums = collectives.all_reduce_sum(sums)
        means = (sums["scalars"] / self._num_parts).tolist()
        self.means = dict(zip(names, means, strict=True))
        self.counts = {name: sums[f"counts/{name}"] for name in counts}
        self.gradients = {n: sums[f"gradients/{n}"] / self._num_parts for n in self._gradients}
        if parts:
            samples = {
                name: torch.cat([part.samples[name] for part in parts]) for name in parts[0].samples
            }
            self.statistics = Statistics(
                {name: sums[f"statistics/{name}"] for name in parts[0].sums},
                {name: collectives.gather_equal(rows) for name, rows in samples.items()},
            )

    def is_finite(self) -> bool:
        """Whether the loss is finite on every rank; the same answer on all of them."""
        return all(math.isfinite(value) for value in self.losses().values())

    def ranks_not_finite(self) -> list[int]:
        """The ranks whose own losses are not finite; a collective."""
        own = [value for name, value in self._scalars.items() if name.startswith("loss")]
        finite = collectives.gather_objects(bool(torch.stack(own).isfinite().all()))
        return [rank for rank, is_finite in enumerate(finite) if not is_finite]

    def losses(self) -> dict[str, float]:
        """The weighted sum `loss` and the unweighted terms `loss/...`."""
        return {name: mean for name, mean in self.means.items() if name.startswith("loss")}
