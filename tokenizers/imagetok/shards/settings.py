"""The parts of a tokenizing job: what it reads, with what, and what it writes."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from imagetok.config.strict_config import Config

Count = Annotated[int, Field(ge=1, le=2**40)]
Size = Annotated[int, Field(ge=1, le=2**31)]
Text = Annotated[str, Field(min_length=1)]


class TokenizerSource(Config):
    """The tokenizer that made the ids.

    Attributes:
        name: Repository on the Hub, or the name of a local folder.
        revision: Commit on the Hub; None for a local folder.
        fingerprint: `ImageTokenizer.fingerprint`.
        codebook_size: Ids lie in [0, codebook_size).
        grid_size: (h, w) of the ids of a picture of `image_size`.
        image_size: (height, width) in pixels that pictures are brought to.
    """

    name: Text
    revision: str | None
    fingerprint: Text
    codebook_size: Annotated[int, Field(ge=1, le=2**32)]
    grid_size: tuple[Size, Size]
    image_size: tuple[Size, Size]


class InputSource(Config):
    """The rows that are tokenized.

    Attributes:
        name: As `imagetok.data.open_images` takes it; of a folder or file its own name alone.
        subset: Configuration name of a dataset that has several.
        revision: Commit of a dataset on the Hub.
        split: A split, a slice or a sum of these.
        image_column: Column of the pictures.
        fingerprint: Hash of the content, see `imagetok.data.fingerprint`.
        streaming: Whether files are read in sequence, and rows known by file.
        num_rows: Rows of the split; None of a streamed one.
        limit: Most rows that are tokenized; None takes all.
    """

    name: Text
    subset: str | None
    revision: str | None
    split: Text
    image_column: Text
    fingerprint: Text
    streaming: bool
    num_rows: Count | None
    limit: Count | None

    @model_validator(mode="after")
    def _row_by_row_or_in_a_stream(self) -> Self:
        if self.streaming != (self.num_rows is None):
            raise ValueError("num_rows is null where streaming is true, and only there")
        return self


class InputFile(Config):
    """A file of a streamed dataset: its base name, and its size in bytes where that is known."""

    name: Text
    size: Annotated[int, Field(ge=0)] | None


class Units(Config):
    """How rows are divided into units of work.

    Attributes:
        rows_per_shard: Rows of the input that a shard stands for.
        count: Units; None takes the number of files.
        files: Of a streamed dataset, one a unit.
    """

    rows_per_shard: Count
    count: Count | None
    files: tuple[InputFile, ...]


class Output(Config):
    """What is written of each row.

    Attributes:
        resize: `crop` brings pictures to the tokenizer's size; `native` keeps each one's own.
        keep: Columns carried along, in order.
    """

    resize: Literal["crop", "native"]
    keep: tuple[Text, ...]


class Versions(Config):
    """Versions of what computes."""

    imagetok: Text
    torch: Text
    numpy: Text
    pillow: Text
    pyarrow: Text


class Numerics(Config):
    """Settings under which ids may differ by rounding.

    Attributes:
        device: Its kind.
        dtype: Of the encoder.
        batch_size: Pictures encoded at once; the last batch is padded to it.
        threads: Of a process.
        search: Backend of the code search.
        image_decoder: What decodes pictures.
        versions: Of the libraries.
    """

    device: Text
    dtype: Text
    batch_size: Count
    threads: Count
    search: Text
    image_decoder: Text
    versions: Versions
