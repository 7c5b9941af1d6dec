"""The named exceptions of imagetok.

Every refusal is an `ImagetokError` and also the builtin exception that a caller expects: a
`ValueError` for a bad value, a `TypeError` for a wrong kind of argument, an `OSError` for a file
that cannot be read. Messages name the value found, what was expected and the remedy.
"""

from __future__ import annotations

import signal


class ImagetokError(Exception):
    """Base class of everything that imagetok raises on purpose."""


class InvalidValueError(ImagetokError, ValueError):
    """A value is out of range or ambiguous, or contradicts another one."""


class InvalidTypeError(ImagetokError, TypeError):
    """An argument is of a kind that the call does not accept."""


class UnreadableFileError(ImagetokError, OSError):
    """A file is missing, truncated, damaged or of a format that is not read."""


class UnwritableFileError(ImagetokError, OSError):
    """A file or folder cannot be written: the disk is full, the place is taken or forbidden."""


class ConfigError(InvalidValueError):
    """A configuration has unknown, missing, mistyped or contradictory entries."""


class ImageValueError(InvalidValueError):
    """An image's values, shape or size are refused: range, NaN, channels, layout, pixel limit."""


class ImageTypeError(InvalidTypeError):
    """An image was given as a kind of object, or with a dtype, that is not accepted."""


class ImageFileError(UnreadableFileError):
    """An image file is missing, truncated, damaged or of a format that is not read."""


class IdsError(InvalidValueError):
    """Token ids are out of range, or fit no grid or more than one."""


class IdsTypeError(InvalidTypeError):
    """Token ids were given as a kind of object, or with a dtype, that cannot hold them."""


class NotDiscreteError(InvalidTypeError):
    """Ids were requested from a continuous model (AE or VAE), which has none."""


class NotContinuousError(InvalidTypeError):
    """An interpolation between latents was requested from a discrete model."""


class NoPosteriorError(InvalidTypeError):
    """A distribution or a sample was requested from a model that defines none."""


class ModelFileError(UnreadableFileError):
    """A saved tokenizer is missing, damaged or disagrees with itself."""


class HubError(ImagetokError, OSError):
    """The Hub cannot be reached, or keeps failing."""


class HubAccessError(HubError, ValueError):
    """The Hub has no such repository or revision, or does not allow access to it."""


class DataError(InvalidValueError):
    """A dataset, split or column cannot be used as asked."""


class MissingExtraError(InvalidValueError):
    """A feature needs an optional dependency that is not installed."""


class KernelError(ImagetokError, OSError):
    """A compiled kernel cannot be had on this machine."""


class CompilationError(InvalidValueError):
    """A network cannot be compiled: there is no compiler, or it fails."""


class TrainingError(ImagetokError, ArithmeticError):
    """Training cannot go on: the loss or the gradients are not finite."""


class Stopped(ImagetokError):  # noqa: N818 - being stopped is not a failure
    """A signal stopped a training run, which can be resumed.

    A command line exits with 128 + `signum`.

    Args:
        signum: Number of the signal.
        steps: Steps that were done and saved.
    """

    def __init__(self, signum: int, steps: int) -> None:
        super().__init__(signum, steps)
        self.signum, self.steps = signum, steps

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        if not self.steps:
            return f"{name} stopped the run before its first step; --resume starts it anew"
        return (
            f"{name} stopped the run after step {self.steps}, whose state is saved; the same "
            "command with --resume continues it"
        )


class TokenizingError(ImagetokError, RuntimeError):
    """A tokenizing job cannot go on, or its result is unsound; what is written stays."""


class JobStopped(ImagetokError):  # noqa: N818 - being stopped is not a failure
    """A signal stopped a tokenizing job; the same call goes on with it.

    A command line exits with 128 + `signum`.

    Args:
        signum: Number of the signal.
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


class LoadingStopped(Exception):  # noqa: N818 - being stopped is not a failure
    """Nobody wants what a loading thread is working on; it never reaches a caller."""
