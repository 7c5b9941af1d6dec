"""`TokenLayout`: text and image tokens in one vocabulary and in one sequence.

The vocabulary, of text_vocab_size T and codebook_size K; special ids that are not used take no
place:

    0 ............ T-1 | T ................ T+K-1 | T+K   T+K+1   T+K+2
       text ids        |  image id i is T + i     | boi   eoi     eor

A sequence of t text ids and a grid of 2 x 3, row after row from the top left:

    text ... text  boi  r0c0 r0c1 r0c2  eor  r1c0 r1c1 r1c2  eor  eoi
    `-- t ids --'  `---------------- image_length ---------------'

A transformer trained on it has `vocab_size` outputs; those that an image's place may take while
sampling are `image_range`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imagetok.arguments import read_count
from imagetok.errors import IdsError, IdsTypeError, InvalidTypeError, InvalidValueError
from imagetok.ids import read_grid, read_ids

_SPECIAL = {"boi": "begin-of-image", "eoi": "end-of-image", "eor": "end-of-row"}
_IMAGE = -1


@dataclass(frozen=True)
class TokenLayout:
    """How text ids, image ids and special ids share a vocabulary and a sequence.

    A special id is given as True, for the next free id behind the image ids; as a number, either
    one of the text vocabulary that the text itself never uses or one behind the image ids; or as
    None, where it is not used.

    Attributes:
        text_vocab_size: Text ids lie in [0, text_vocab_size); 0 for images without text.
        codebook_size: Image ids lie in [0, codebook_size).
        grid: (h, w) of the image ids.
        boi: Id in front of an image.
        eoi: Id behind an image.
        eor: Id behind each row of an image, the last one included.

    Raises:
        InvalidTypeError: A size or id is no integer.
        InvalidValueError: A size is out of range, or a special id is taken.
    """

    text_vocab_size: int
    codebook_size: int
    grid: tuple[int, int]
    boi: int | None = None
    eoi: int | None = None
    eor: int | None = None

    def __post_init__(self) -> None:
        read_count("text_vocab_size", self.text_vocab_size, 0)
        read_count("codebook_size", self.codebook_size, 1)
        object.__setattr__(self, "grid", read_grid(self.grid))
        taken = {self._read_special(name) for name in _SPECIAL}
        free = self.image_range.stop
        for name in _SPECIAL:
            if getattr(self, name) is True:
                while free in taken:
                    free += 1
                taken.add(free)
                object.__setattr__(self, name, free)
        used = [special for special in self._specials.values() if special is not None]
        if len(set(used)) < len(used):
            raise InvalidValueError(f"special ids must differ, got {self._specials}")

    @property
    def vocab_size(self) -> int:
        """Number of ids: text, image and special ones."""
        used = [special for special in self._specials.values() if special is not None]
        return max([self.image_range.stop - 1, *used]) + 1

    @property
    def image_range(self) -> range:
        """The ids that stand for image ids, in their order."""
        return range(self.text_vocab_size, self.text_vocab_size + self.codebook_size)

    @property
    def image_length(self) -> int:
        """Tokens of one image, special ones included."""
        return self.grid[0] * self._row_length + (self.boi is not None) + (self.eoi is not None)

    def join(self, text_ids: Tensor, image_ids: Tensor) -> Tensor:
        """Put text and image in one sequence.

        Args:
            text_ids: Integer tensor (t,), or (B, t), in [0, text_vocab_size); t may be 0.
            image_ids: Integer tensor (h * w,) or (h, w), or (B, h * w) or (B, h, w), in
                [0, codebook_size), as `ImageTokenizer.encode` and `TokenDataset` give them.

        Returns:
            int64 tensor (t + image_length,), or (B, t + image_length), on the device of
            `image_ids`.

        Raises:
            IdsTypeError: These are no integer tensors.
            IdsError: An id is out of range, the text holds a special id, a shape does not fit, or
                there are not as many texts as images.
        """
        images = read_ids(image_ids, (self.codebook_size,), self.grid)[0].flatten(1)
        texts = _read_sequences("text_ids", text_ids).to(images.device)
        if len(texts) != len(images):
            raise IdsError(f"{len(texts)} texts do not go with {len(images)} images; give as many")
        self._check_text(texts)
        template = self._template().to(images.device)
        tokens = template.repeat(len(images), 1)
        tokens[:, template == _IMAGE] = images + self.text_vocab_size
        sequences = torch.cat([texts, tokens], dim=-1)
        return sequences[0] if text_ids.ndim == 1 else sequences

    def split(self, sequence: Tensor) -> tuple[Tensor, Tensor]:
        """Take a sequence apart: the inverse of `join`.

        Args:
            sequence: Integer tensor (t + image_length,), or (B, t + image_length).

        Returns:
            text_ids: int64 tensor (t,), or (B, t), in [0, text_vocab_size).
            image_ids: int64 tensor (h * w,), or (B, h * w), in [0, codebook_size).

        Raises:
            IdsTypeError: This is no integer tensor.
            IdsError: It is shorter than an image, or a token is out of range or misplaced.
        """
        sequences = _read_sequences("a sequence", sequence)
        length = sequences.shape[1] - self.image_length
        if length < 0:
            raise IdsError(
                f"a sequence of {sequences.shape[1]} tokens holds no image: one of the grid "
                f"{self.grid} takes {self.image_length}"
            )
        texts, tokens = sequences[:, :length], sequences[:, length:]
        self._check_text(texts)
        template = self._template().to(tokens.device)
        self._check_image(tokens, template, length)
        ids = tokens[:, template == _IMAGE] - self.text_vocab_size
        return (texts[0], ids[0]) if sequence.ndim == 1 else (texts, ids)

    def position(self, row: int, column: int, text_length: int = 0) -> int:
        """Where the token of a place of the grid stands in a sequence, from 0.

        Args:
            row: In [0, h), from the top.
            column: In [0, w), from the left.
            text_length: Text ids in front of the image.

        Raises:
            InvalidTypeError: An argument is no integer.
            InvalidValueError: The place is outside the grid, or `text_length` is negative.
        """
        for name, value, size in zip(("row", "column"), (row, column), self.grid, strict=True):
            if read_count(name, value, 0) >= size:
                raise InvalidValueError(
                    f"{name} {value} is outside the grid {self.grid}; expected [0, {size})"
                )
        first = read_count("text_length", text_length, 0) + (self.boi is not None)
        return first + row * self._row_length + column

    @property
    def _row_length(self) -> int:
        return self.grid[1] + (self.eor is not None)

    @property
    def _specials(self) -> dict[str, int | None]:
        return {"boi": self.boi, "eoi": self.eoi, "eor": self.eor}

    def _read_special(self, name: str) -> int | None:
        """A special id that was given as a number."""
        value = getattr(self, name)
        if value is None or value is True:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidTypeError(f"{name} must be an id, True or None, got {value!r}")
        if value < 0 or value in self.image_range:
            raise InvalidValueError(
                f"{name} {value} is no free id: image ids take [{self.image_range.start}, "
                f"{self.image_range.stop}); give True for the next free id behind them"
            )
        return value

    def _check_text(self, texts: Tensor) -> None:
        wrong = (texts < 0) | (texts >= self.text_vocab_size)
        for name, special in self._specials.items():
            if special is not None and bool((texts == special).any()):
                raise IdsError(f"the text holds {special}, which is the {_SPECIAL[name]} id {name}")
        if bool(wrong.any()):
            sequence, place = wrong.nonzero()[0].tolist()
            raise IdsError(
                f"text id {int(texts[sequence, place])} at position {place}"
                f"{_of(sequence, texts)} is out of range: text ids lie in "
                f"[0, {self.text_vocab_size})"
            )

    def _check_image(self, tokens: Tensor, template: Tensor, first: int) -> None:
        """Check the tokens of images, (B, image_length), which stand at positions from `first`."""
        inside = (tokens >= self.image_range.start) & (tokens < self.image_range.stop)
        wrong = ~torch.where(template == _IMAGE, inside, tokens == template)
        if bool(wrong.any()):
            sequence, place = wrong.nonzero()[0].tolist()
            names = {special: name for name, special in self._specials.items()}
            special = int(template[place])
            expected = f"an image id in [{self.image_range.start}, {self.image_range.stop})"
            if special != _IMAGE:
                expected = f"the {_SPECIAL[names[special]]} id {special}"
            raise IdsError(
                f"token {int(tokens[sequence, place])} at position {first + place}"
                f"{_of(sequence, tokens)} stands where {expected} belongs"
            )

    def _template(self) -> Tensor:
        """The tokens of an image with `_IMAGE` in place of its ids, int64 (image_length,)."""
        rows = torch.full((self.grid[0], self._row_length), _IMAGE)
        if self.eor is not None:
            rows[:, -1] = self.eor
        ends = [[] if special is None else [special] for special in (self.boi, self.eoi)]
        first, last = (torch.tensor(end, dtype=torch.int64) for end in ends)
        return torch.cat([first, rows.flatten(), last])


def _read_sequences(name: str, ids: Tensor) -> Tensor:
    """Sequences of ids as int64 (B, length)."""
    if not isinstance(ids, Tensor) or ids.dtype == torch.bool or not _is_integer(ids.dtype):
        kind = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise IdsTypeError(f"{name} must be an integer tensor, got {kind}")
    if ids.ndim not in (1, 2):
        raise IdsError(f"{name} must be of shape (n,) or (B, n), got {tuple(ids.shape)}")
    return torch.atleast_2d(ids).to(torch.int64)  # type: ignore[no-any-return, no-untyped-call]


def _is_integer(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and not dtype.is_complex


def _of(sequence: int, batch: Tensor) -> str:
    return f" of sequence {sequence}" if len(batch) > 1 else ""
