"""`TokenLayout`: text and image tokens in one vocabulary and in one sequence.

The vocabulary, for text_vocab_size T and codebook_size K; special ids that are not used take no
room:

    0 ............ T-1 | T ................ T+K-1 | T+K   T+K+1   T+K+2
       text ids        |  image id i is T + i     | boi   eoi     eor

A sequence of t text ids and a grid of 2 x 3, row after row from the top left:

    text ... text  boi  r0c0 r0c1 r0c2  eor  r1c0 r1c1 r1c2  eor  eoi
    `-- t ids --'  `---------------- image_length ---------------'

Where a position has several codes, they take its place one after another. Each level of codes has
its own range of K_level ids, or all levels share the range of the largest one:

    levels="own"       T ... T+K_0-1 | T+K_0 ... T+K_0+K_1-1 | ...
    levels="shared"    T ... T+max(K_0, K_1, ...)-1

A transformer trained on it has `vocab_size` outputs. While sampling, the places of an image may
take the ids of `image_range`, those of one level the ids of `level_ranges`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor

from imagetok.arguments import read_count
from imagetok.errors import IdsError, IdsTypeError, InvalidTypeError, InvalidValueError
from imagetok.ids import read_grid, read_ids

_SPECIAL = {"boi": "begin-of-image", "eoi": "end-of-image", "eor": "end-of-row"}


@dataclass(frozen=True)
class TokenLayout:
    """How text ids, image ids and special ids share a vocabulary and a sequence.

    A special id is given as True, for the next free id after the image ids; as a number, either one
    of the text vocabulary that the text itself never uses or one after the image ids; or as None,
    where it is not used.

    Attributes:
        text_vocab_size: Text ids lie in [0, text_vocab_size); 0 for images without text.
        codebook_size: Image ids lie in [0, codebook_size).
        grid: (h, w) of the positions of an image; (1, n) where they form no grid.
        boi: Id in front of an image.
        eoi: Id after an image.
        eor: Id after each row of an image, the last one included.
        codebook_sizes: Codebook size of each code of a position, as given by
            `ImageTokenizer.codebook_sizes`: the ids of level i lie in [0, codebook_sizes[i]), and
            the largest size is codebook_size. Left out, a position has one code.
        levels: `own` gives each level of codes its own range of ids, `shared` one range to all
            levels.

    Raises:
        InvalidTypeError: A size or id is not an integer.
        InvalidValueError: A size is out of range, a special id is taken, or `levels` is unknown.
    """

    text_vocab_size: int
    codebook_size: int
    grid: tuple[int, int]
    boi: int | None = None
    eoi: int | None = None
    eor: int | None = None
    codebook_sizes: tuple[int, ...] = ()
    levels: Literal["own", "shared"] = "own"

    def __post_init__(self) -> None:
        read_count("text_vocab_size", self.text_vocab_size, 0)
        read_count("codebook_size", self.codebook_size, 1)
        object.__setattr__(self, "grid", read_grid(self.grid))
        object.__setattr__(self, "codebook_sizes", self._read_codebook_sizes())
        if self.levels not in ("own", "shared"):
            raise InvalidValueError(f"unknown levels {self.levels!r}; choose one of: own, shared")
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
        return range(self.text_vocab_size, max(one.stop for one in self.level_ranges))

    @property
    def level_ranges(self) -> tuple[range, ...]:
        """The ids that stand for the codes of each level, in their order."""
        first = self.text_vocab_size
        if self.levels == "shared":
            return tuple(range(first, first + size) for size in self.codebook_sizes)
        ends = accumulate(self.codebook_sizes, initial=first)
        return tuple(range(*pair) for pair in pairwise(ends))

    @property
    def depth(self) -> int:
        """Number of codes of a position."""
        return len(self.codebook_sizes)

    @property
    def token_shape(self) -> tuple[int, ...]:
        """Shape of the ids of an image: (h, w), or (h, w, depth)."""
        return self.grid if self.depth == 1 else (*self.grid, self.depth)

    @property
    def image_length(self) -> int:
        """Number of tokens of one image, special ones included."""
        return self.grid[0] * self._row_length + (self.boi is not None) + (self.eoi is not None)

    def join(self, text_ids: Tensor, image_ids: Tensor) -> Tensor:
        """Put text and image in one sequence.

        Args:
            text_ids: Integer tensor (t,) or (B, t) in [0, text_vocab_size); t may be 0.
            image_ids: Integer tensor of `token_shape` or flattened to (n,), or the same with B in
                front, as `ImageTokenizer.encode` and `TokenDataset` give them; ids lie in
                [0, codebook_size) of their level.

        Returns:
            int64 tensor (t + image_length,), or (B, t + image_length), on the device of
            `image_ids`.

        Raises:
            IdsTypeError: The arguments are not integer tensors.
            IdsError: An id is out of range, the text holds a special id, a shape does not fit, or
                there are not as many texts as images.
        """
        images = read_ids(image_ids, self.codebook_sizes, self.token_shape)[0].flatten(1)
        texts = _read_sequences("text_ids", text_ids).to(images.device)
        if len(texts) != len(images):
            raise IdsError(f"{len(texts)} texts do not go with {len(images)} images; give as many")
        self._check_text(texts)
        lowest = self._lowest().to(images.device)
        tokens = lowest.repeat(len(images), 1)
        tokens[:, self._is_image(lowest)] += images
        sequences = torch.cat([texts, tokens], dim=-1)
        return sequences[0] if text_ids.ndim == 1 else sequences

    def split(self, sequence: Tensor) -> tuple[Tensor, Tensor]:
        """Take a sequence apart: the inverse of `join`.

        Args:
            sequence: Integer tensor (t + image_length,), or (B, t + image_length).

        Returns:
            text_ids: int64 tensor (t,), or (B, t), in [0, text_vocab_size).
            image_ids: int64 tensor (n,), or (B, n), the image ids of `token_shape` flattened, in
                [0, codebook_size) of their level.

        Raises:
            IdsTypeError: The sequence is not an integer tensor.
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
        lowest = self._lowest().to(tokens.device)
        self._check_image(tokens, lowest, length)
        ids = (tokens - lowest)[:, self._is_image(lowest)]
        return (texts[0], ids[0]) if sequence.ndim == 1 else (texts, ids)

    def position(self, row: int, column: int, text_length: int = 0, level: int = 0) -> int:
        """Index in a sequence, from 0, of the token of a position of the grid.

        Args:
            row: Row of the position, in [0, h) from the top.
            column: Column of the position, in [0, w) from the left.
            text_length: Number of text ids in front of the image.
            level: Which code of the position, in [0, depth).

        Raises:
            InvalidTypeError: An argument is not an integer.
            InvalidValueError: The position is outside the grid or the depth, or `text_length` is
                negative.
        """
        for name, value, size in zip(("row", "column"), (row, column), self.grid, strict=True):
            if read_count(name, value, 0) >= size:
                raise InvalidValueError(
                    f"{name} {value} is outside the grid {self.grid}; expected [0, {size})"
                )
        if read_count("level", level, 0) >= self.depth:
            raise InvalidValueError(f"level {level} is out of range; expected [0, {self.depth})")
        first = read_count("text_length", text_length, 0) + (self.boi is not None)
        return first + row * self._row_length + column * self.depth + level

    @property
    def _row_length(self) -> int:
        return self.grid[1] * self.depth + (self.eor is not None)

    @property
    def _specials(self) -> dict[str, int | None]:
        return {"boi": self.boi, "eoi": self.eoi, "eor": self.eor}

    def _read_codebook_sizes(self) -> tuple[int, ...]:
        if not isinstance(self.codebook_sizes, tuple | list):
            raise InvalidTypeError(
                f"codebook_sizes must be a tuple of integers, got {self.codebook_sizes!r}"
            )
        sizes = tuple(read_count("a size in codebook_sizes", s, 1) for s in self.codebook_sizes)
        if sizes and max(sizes) != self.codebook_size:
            raise InvalidValueError(
                f"the largest of codebook_sizes {sizes} must be codebook_size, got "
                f"{self.codebook_size}"
            )
        return sizes or (self.codebook_size,)

    def _read_special(self, name: str) -> int | None:
        """A special id that was given as a number."""
        value = getattr(self, name)
        if value is None or value is True:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidTypeError(f"{name} must be an id, True or None, got {value!r}")
        if value < 0 or value in self.image_range:
            raise InvalidValueError(
                f"{name} {value} is not a free id: image ids take [{self.image_range.start}, "
                f"{self.image_range.stop}); give True for the next free id after them"
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

    def _check_image(self, tokens: Tensor, lowest: Tensor, first: int) -> None:
        """Check the tokens of images, (B, image_length), which stand at positions from `first`."""
        sizes = torch.ones_like(lowest)
        is_image = self._is_image(lowest)
        sizes[is_image] = torch.tensor(self.codebook_sizes, device=sizes.device).repeat(
            self.grid[0] * self.grid[1]
        )
        wrong = (tokens < lowest) | (tokens >= lowest + sizes)
        if bool(wrong.any()):
            sequence, place = wrong.nonzero()[0].tolist()
            low, size = int(lowest[place]), int(sizes[place])
            if is_image[place]:
                level = int(is_image[:place].sum()) % self.depth
                words = f" of level {level}" if self.depth > 1 else ""
                expected = f"an image id{words} in [{low}, {low + size})"
            else:
                names = {special: name for name, special in self._specials.items()}
                expected = f"the {_SPECIAL[names[low]]} id {low}"
            raise IdsError(
                f"token {int(tokens[sequence, place])} at position {first + place}"
                f"{_of(sequence, tokens)} stands where {expected} belongs"
            )

    def _lowest(self) -> Tensor:
        """The tokens of an image whose ids are all 0, int64 (image_length,)."""
        starts = torch.tensor([one.start for one in self.level_ranges])
        rows = starts.repeat(self.grid)
        if self.eor is not None:
            rows = torch.cat([rows, torch.full((self.grid[0], 1), self.eor)], dim=1)
        ends = [[] if special is None else [special] for special in (self.boi, self.eoi)]
        first, last = (torch.tensor(end, dtype=torch.int64) for end in ends)
        return torch.cat([first, rows.flatten(), last])

    def _is_image(self, tokens: Tensor) -> Tensor:
        """Which tokens stand for image ids: bool, of the same shape."""
        return (tokens >= self.image_range.start) & (tokens < self.image_range.stop)


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
