"""What is measured of a tokenizer: reconstruction quality and use of the codebook.

All values are float64 and per image, so that means depend neither on the batch size nor on the
number of ranks beyond rounding.

- PSNR = -10 log10(mean squared error), in dB for pixels in [0, 1].
- SSIM (Wang et al. 2004, "Image quality assessment: from error visibility to structural
  similarity") as torchmetrics defines it: data range 1, Gaussian window 11x11 of sigma 1.5,
  K1 = 0.01, K2 = 0.03, images reflected at their borders, averaged over channels and positions.
  In float64, because float32 finds 0.9999 between a flat picture and itself.
- Usage: the share of codes that occur. Perplexity: exp of the entropy of their frequencies.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from imagetok import distributed
from imagetok.errors import IdsError, InvalidValueError

MAX_PSNR = 100.0
"""PSNR in dB given to identical images, whose own is infinite, and upper bound of all others."""

_WINDOW_SIZE = 11


class CodebookUsage:
    """Counts how often each code occurs.

    Attributes:
        counts: int64 (codebook_size,), of this rank until `merge`, then of all.
    """

    def __init__(self, codebook_size: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(codebook_size, dtype=torch.int64, device=device)

    def update(self, ids: Tensor) -> None:
        """Count ids.

        Args:
            ids: Integer tensor of any shape, values in [0, codebook_size).

        Raises:
            IdsError: An id is out of range.
        """
        if ids.numel() == 0:
            return
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= len(self.counts):
            raise IdsError(f"ids span [{low}, {high}], expected [0, {len(self.counts)})")
        self.counts += ids.reshape(-1).to(self.counts.device).bincount(minlength=len(self.counts))

    def merge(self) -> None:
        """Add up the counts of all ranks; called once, on every rank, after the last update."""
        self.counts = distributed.all_reduce_sum(self.counts)

    def usage(self) -> float:
        """As the function `usage`."""
        return usage(self.counts)

    def perplexity(self) -> float:
        """As the function `perplexity`."""
        return perplexity(self.counts)


class MeanMetrics:
    """Means over images of named per-image values; a name may cover a part of the images only."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def update(self, values: Mapping[str, Tensor]) -> None:
        """Add the values of a batch.

        Args:
            values: Float tensors (B,) by name.

        Raises:
            InvalidValueError: A tensor has another number of dimensions.
        """
        for name, tensor in values.items():
            if tensor.ndim != 1:
                raise InvalidValueError(
                    f"{name}: expected one value an image, shape (B,), found {tuple(tensor.shape)}"
                )
            self._add(name, _double(tensor).sum().item(), len(tensor))

    def merge(self) -> None:
        """Add up the sums of all ranks; called once, on every rank, after the last update."""
        ranks = distributed.gather_objects((self._sums, self._counts))
        self._sums, self._counts = {}, {}
        for sums, counts in ranks:
            for name in sums:
                self._add(name, sums[name], counts[name])

    def means(self) -> dict[str, float]:
        """The mean of every name that covers at least one image."""
        return {name: self._sums[name] / count for name, count in self._counts.items() if count}

    def _add(self, name: str, value: float, count: int) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value
        self._counts[name] = self._counts.get(name, 0) + count


def usage(counts: Tensor) -> float:
    """Share in [0, 1] of the codes that occur at least once; counts: integer tensor (K,)."""
    return int((counts > 0).sum()) / len(counts)


def perplexity(counts: Tensor) -> float:
    """Exponential of the entropy of the codes' frequencies, in [1, K]; counts: int tensor (K,).

    Raises:
        InvalidValueError: Nothing was counted.
    """
    total = int(counts.sum())
    if total == 0:
        raise InvalidValueError("perplexity of no ids: count some first")
    return float(torch.special.entr(_double(counts) / total).sum().exp())


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, at most MAX_PSNR.

    Args:
        x_hat: Reconstructions, float tensor (B, C, H, W) in [0, 1].
        x: Originals of the same shape.

    Returns:
        float64 tensor (B,).
    """
    x_hat, x = _checked(x_hat, x)
    return (-10 * (x_hat - x).square().mean((1, 2, 3)).log10()).clamp(max=MAX_PSNR)


def l1(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean absolute error of each image; arguments and result as in `psnr`."""
    x_hat, x = _checked(x_hat, x)
    return (x_hat - x).abs().mean((1, 2, 3))


def has_ssim(image_size: tuple[int, int]) -> bool:
    """Whether images of (height, width) are large enough for SSIM's window."""
    return min(image_size) >= _WINDOW_SIZE


def ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """Structural similarity of each image, at most 1; arguments and result as in `psnr`.

    Raises:
        InvalidValueError: A side is under 11 pixels (see `has_ssim`), or the shapes differ.
    """
    x_hat, x = _checked(x_hat, x)
    if not has_ssim((x.shape[2], x.shape[3])):
        raise InvalidValueError(
            f"SSIM needs sides of at least {_WINDOW_SIZE} pixels, found {tuple(x.shape[2:])}"
        )
    if not len(x):
        return x.new_empty(0)
    values = structural_similarity_index_measure(x_hat, x, data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)
    return values.view(-1)


def _checked(x_hat: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 4 or x_hat.shape != x.shape or 0 in x.shape[1:]:
        raise InvalidValueError(
            f"expected two image tensors of one shape (B, C, H, W), found {tuple(x_hat.shape)} "
            f"and {tuple(x.shape)}"
        )
    return _double(x_hat), _double(x)


def _double(values: Tensor) -> Tensor:
    """As float64, without gradient; on the CPU where the device has no float64."""
    device = "cpu" if values.device.type == "mps" else values.device
    return values.detach().to(device, torch.float64)
