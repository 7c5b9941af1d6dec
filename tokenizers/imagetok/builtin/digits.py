"""`builtin:digits`: scikit-learn's 1,797 handwritten digits, 8x8 gray.

The images are those of Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits" (UCI,
1998), test part, which scikit-learn ships with its code: no download. Every sixth row, from the
first, is the test split.
"""

from __future__ import annotations

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, NamedSplit

from imagetok.errors import DataError, MissingExtraError

TEST_EVERY = 6
SPLIT_LENGTHS = {"train": 1497, "test": 300}


def digits_dataset(split: str = "train") -> Dataset:
    """Load a split: 1,497 images of `train` or 300 of `test`.

    Args:
        split: `train` or `test`.

    Returns:
        Dataset with `image`, 8x8 gray PNG with ink from 0 (none) to 255 (full), and `label`.

    Raises:
        DataError: Unknown split.
        MissingExtraError: scikit-learn is not installed.
    """
    if split not in SPLIT_LENGTHS:
        known = ", ".join(SPLIT_LENGTHS)
        raise DataError(f"builtin:digits has no split '{split}'; choose one of: {known}")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtraError(
            "builtin:digits reads the digits that scikit-learn ships, and scikit-learn is not "
            "installed; run: pip install imagetok[digits]"
        ) from None
    digits = load_digits()
    rows = np.arange(len(digits.images))
    rows = rows[(rows % TEST_EVERY == 0) == (split == "test")]
    levels = digits.images[rows].astype(np.uint16)
    pixels = ((levels * 255 + 8) // 16).astype(np.uint8)
    features = Features(
        {"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])}
    )
    columns = {"image": list(pixels), "label": digits.target[rows].tolist()}
    return Dataset.from_dict(columns, features=features, split=NamedSplit(split))
