"""Where saved tokenizers live: folders of model.safetensors, config.json and what belongs to them.

Knows configs and tensors, but no model class.
"""

from imagetok.hub.folder import (
    CONFIG_FILE,
    EVALUATED_KEY,
    EVALUATION_FILE,
    FORMAT_VERSION,
    MODEL_FILE,
    PICTURES_FILE,
    ModelFiles,
    carry_evaluation,
    load_model,
    save_model,
)
from imagetok.hub.tensorfile import load_tensors, read_header, save_tensors, tensors_digest

__all__ = [
    "CONFIG_FILE",
    "EVALUATED_KEY",
    "EVALUATION_FILE",
    "FORMAT_VERSION",
    "MODEL_FILE",
    "PICTURES_FILE",
    "ModelFiles",
    "carry_evaluation",
    "load_model",
    "load_tensors",
    "read_header",
    "save_model",
    "save_tensors",
    "tensors_digest",
]
