"""Nearest code, and argmax of a linear map, without the (N, K) matrix of scores.

The nearest code of z minimises |z - e|^2; |z|^2 is the same for all codes, so |e|^2 / 2 - z.e is
searched instead, as -w.z - b is for the argmax of a linear map. Two backends do it:

    native      a C++ kernel for the CPU that is compiled at first use, in single precision with
                the last word in double: its ids are those of the least score in float64, ties to
                the lowest index, whatever the machine and its threads
    torch       products and argmax in blocks of rows, on every device, in float32 or better: two
                codes whose scores lie within rounding of each other may change places

`IMAGETOK_BACKEND` chooses one of them; without it the CPU of a Linux machine with a C++ compiler
has `native`, all else `torch`.
"""

from imagetok.codesearch.search import (
    NATIVE,
    TORCH,
    argmax_linear,
    backend_in_environment,
    nearest_code,
    search_backend,
    use_backend,
)

__all__ = [
    "NATIVE",
    "TORCH",
    "argmax_linear",
    "backend_in_environment",
    "nearest_code",
    "search_backend",
    "use_backend",
]
