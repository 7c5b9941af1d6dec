"""The named exceptions of imagetok.

Every refusal is an `ImagetokError` and also the builtin exception that a caller expects: a
`ValueError` for a bad value, a `TypeError` for a wrong kind of argument, an `OSError` for a file
that cannot be read. Messages name the value found, what was expected and the way out.
"""

from __future__ import annotations

import signal


class ImagetokError(Exception):
    """Base class of everything that imagetok raises on purpose."""


class InvalidValueError(ImagetokError, ValueError):
    """A value is out of range, ambiguous or contradicts another one."""


class InvalidTypeError(ImagetokError, TypeError):
    """An argument is of a kind that the call does not take."""


class UnreadableFileError(ImagetokError, OSError):
    """A file is missing, truncated, damaged or of a format that is not read."""


class UnwritableFileError(ImagetokError, OSError):
    """A file or folder cannot be written: the disk is full, the place is taken or forbidden."""


class ConfigError(InvalidValueError):
    """A configuration has unknown, missing, mistyped or contradictory entries."""


class ImageValueError(InvalidValueError):
    """A picture's values, shape or size are refused (range, NaN, channels, layout, pixel limit)."""


class ImageTypeError(InvalidTypeError):
    """A picture was given as a kind of object, or a dtype, that is not taken."""


class ImageFileError(UnreadableFileError):
    """A picture file is missing, truncated, damaged or of a format that is not read."""


class IdsError(InvalidValueError):
    """Token ids are out of range or fit no grid, or more than one."""


class IdsTypeError(InvalidTypeError):
    """Token ids were given in a kind or dtype that cannot hold them."""


class NotDiscreteError(InvalidTypeError):
    """Ids were asked of a continuous model (AE or VAE), which has none."""


class NotContinuousError(InvalidTypeError):
    """A walk between latents was asked of a discrete model."""


class NoPosteriorError(InvalidTypeError):
    """A distribution or a sample was asked of a model that defines none."""


class ModelFileError(UnreadableFileError):
    """A saved tokenizer is missing, damaged or disagrees with itself."""


class HubError(ImagetokError, OSError):
    """The Hub cannot be reached, or kept failing."""


class HubAccessError(HubError, ValueError):
    """What is asked of the Hub is not there, or not allowed: a repository, a revision, a token."""


class DataError(InvalidValueError):
    """A dataset, split or column cannot be used as asked."""


class MissingExtraError(InvalidValueError):
    """A feature needs an optional dependency that is not installed."""


class TrainingError(ImagetokError, ArithmeticError):
    """Training cannot go on: the loss or the gradients are not finite."""


class TokenizingError(ImagetokError, RuntimeError):
    """A tokenizing job cannot go on, or its result is unsound; what is written stays."""


class JobStopped(ImagetokError):  # noqa: N818 - being stopped is not a failure
    """A signal stopped a tokenizing job; the same call goes on with it.

    A command line exits with 128 + `signum`.

    Args:
        signum: The signal.
        shards: Units of work that this process finished.
    """

    def __init__(self, signum: int, shards: int) -> None:
        super().__init__(signum, shards)
        self.signum, self.shards = signum, shards

    def __str__(self) -> str:
        return (
            f"{signal.Signals(self.signum).name} stopped this process after {self.shards} finished "
            "shards; the same command goes on with the others"
        )
