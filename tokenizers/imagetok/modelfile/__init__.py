"""A tokenizer in a local folder: config and tensors to files, and back.

It knows configs and tensors, but neither a model class nor the Hub.
"""

from __future__ import annotations

from imagetok.modelfile.model_folder import (
    CARD_FILE,
    CONFIG_FILE,
    EVALUATED_KEY,
    EVALUATION_FILE,
    FORMAT_VERSION,
    MODEL_FILE,
    PICTURES_FILE,
    ModelFiles,
    carry_evaluation,
    load_model,
    read_evaluation,
    save_model,
)
from imagetok.modelfile.tensorfile import (
    content_digest,
    load_tensors,
    read_header,
    save_tensors,
    tensors_digest,
)

__all__ = [
    "CARD_FILE",
    "CONFIG_FILE",
    "EVALUATED_KEY",
    "EVALUATION_FILE",
    "FORMAT_VERSION",
    "MODEL_FILE",
    "PICTURES_FILE",
    "ModelFiles",
    "carry_evaluation",
    "content_digest",
    "load_model",
    "load_tensors",
    "read_evaluation",
    "read_header",
    "save_model",
    "save_tensors",
    "tensors_digest",
]
