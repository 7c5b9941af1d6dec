"""`DatasetRef`: which dataset, and how it is read.

    DatasetRef --open_rows--> ImageRows                  row by row
               --open_image_stream--> ImageStream        file by file

It says where rows come from and nothing about what is made of them. Nothing is opened or looked up
here; whoever opens the dataset finds out whether it exists.
"""

from __future__ import annotations

from dataclasses import dataclass

from imagetok.display_names import BUILTIN_PREFIX, display_name


@dataclass(frozen=True)
class DatasetRef:
    """Which rows of which dataset.

    Attributes:
        name: `builtin:shapes` or `builtin:digits`, with options as in
            `builtin:shapes?size=128&count=500`; a folder of images, with or without folders for
            classes and splits, or of zip archives of them; a parquet, arrow or tar (WebDataset)
            file or a folder of such; a folder written by `save_to_disk`; or a dataset on the Hub.
            Where a folder has no splits, all of it is `train`.
        split: A split, a slice (`train[:100]`, `train[90%:]`), or a sum of these with `+`.
        subset: Configuration name of a dataset that has several.
        revision: Commit, branch or tag of a dataset on the Hub.
        image_column: Column of the images, an Image or binary one; None finds the only column
            with an Image feature.
        streaming: Read files in sequence instead of row by row, with nothing downloaded or
            converted beforehand. Built-in datasets, those written by `save_to_disk` and images
            that are files of their own need no conversion and are read row by row anyway.
    """

    name: str
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    image_column: str | None = None
    streaming: bool = False

    @property
    def is_builtin(self) -> bool:
        """Whether it is one of the datasets that come with imagetok."""
        return self.name.startswith(BUILTIN_PREFIX)

    @property
    def display_name(self) -> str:
        """The name without the folders of a local dataset, which say much about the machine."""
        return display_name(self.name)
