"""The search in C++: compiled from `kernel.cpp` at first use, kept for later processes, and called.

The compiled library lies in the user's cache (`$XDG_CACHE_HOME/imagetok`, or `~/.cache/imagetok`)
under a name that holds the hash of its source, the compiler, the CPU's flags and torch's version;
it is built under a temporary name and renamed, so that any number of processes may build it at
once. A library that others could have written is not loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from imagetok.errors import KernelError

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernel.cpp")
COMPILERS = ("c++", "g++", "clang++")
"""Compilers that are looked for, after what the environment variable CXX names."""
COMPILE_SECONDS = 120.0
"""Longest time that a compiler may take."""
VECTOR_FLAGS = {
    ("avx512f", "fma"): ("-mavx512f", "-mfma"),
    ("avx2", "fma"): ("-mavx2", "-mfma"),
}
"""What the compiler is told of a CPU that has all these flags; the first that fit."""


class Kernel:
    """The loaded search.

    Args:
        path: The compiled library.

    Raises:
        KernelError: It cannot be loaded, or gives wrong ids.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._search = ctypes.CDLL(str(path)).imagetok_search
        except (OSError, AttributeError) as error:
            raise KernelError(f"the compiled code search cannot be loaded: {error}") from error
        self._search.restype = ctypes.c_int
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self._search.argtypes = [pointer, pointer, size, size, pointer, size, size, pointer]
        # Whatever torch's default device and dtype are.
        line = torch.arange(200, dtype=torch.float32, device="cpu")[:, None]
        expected = torch.arange(199, -1, -1, device="cpu")
        if not torch.equal(self.search(line.flip(0) + 0.25, line, None), expected):
            raise KernelError("the compiled code search gives wrong ids")

    def search(self, rows: Tensor, table: Tensor, biases: Tensor | None) -> Tensor:
        """Index of the nearest code of each row, or of the largest output of a linear map.

        Args:
            rows: Float tensor (N, D) on the CPU; float64 is narrowed.
            table: Float tensor (K, D), K and D at least 1.
            biases: Float tensor (K,) of the linear map; None searches for the nearest code.

        Returns:
            int64 tensor (N,) in [0, K): of the least score in float64 of the float32 values, ties
            to the lowest index.
        """
        rows, table = (each.detach().float().contiguous() for each in (rows, table))
        if biases is not None:
            biases = biases.detach().double().contiguous()
        ids = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
        failed = self._search(
            table.data_ptr(),
            None if biases is None else biases.data_ptr(),
            *table.shape,
            rows.data_ptr(),
            len(rows),
            torch.get_num_threads(),
            ids.data_ptr(),
        )
        if failed:
            raise MemoryError(f"too little memory to search {len(table)} codes")
        return ids


def build_kernel() -> Kernel:
    """The kernel, compiled if this machine has not done so yet.

    Raises:
        KernelError: There is no compiler, or it fails, or the result cannot be used.
    """
    if sys.platform != "linux":
        raise KernelError("the code search is compiled on Linux only")
    compiler = _compiler()
    vectors = _vector_flags()
    try:
        return _load(compiler, ("-fopenmp", *vectors))
    except KernelError:
        # A torch that was built without OpenMP: the search runs on one thread.
        return _load(compiler, vectors)


def _load(compiler: Sequence[str], flags: Sequence[str]) -> Kernel:
    name = f"codesearch-{_key(compiler, flags)}.so"
    folder = _cache_folder()
    if folder is not None:
        path = folder / name
        if _is_ours(path):
            try:
                return Kernel(path)
            except KernelError as error:
                logger.warning("warning: %s; it is compiled again", error)
        _compile(compiler, flags, path)
        return Kernel(path)
    with tempfile.TemporaryDirectory(prefix="imagetok-") as temporary:
        path = Path(temporary, name)
        _compile(compiler, flags, path)
        return Kernel(path)


def _compiler() -> tuple[str, ...]:
    """The command of the C++ compiler, its program with its whole path."""
    chosen = os.environ.get("CXX", "").strip()
    for command in (chosen,) if chosen else COMPILERS:
        program, *arguments = shlex.split(command)
        found = shutil.which(program)
        if found is not None:
            return found, *arguments
    tried = chosen or ", ".join(COMPILERS)
    raise KernelError(f"no C++ compiler was found (looked for {tried}; CXX may name one)")


def _vector_flags() -> tuple[str, ...]:
    has = _cpu_flags()
    return next((told for needed, told in VECTOR_FLAGS.items() if has.issuperset(needed)), ())


def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # the portable variant needs to know nothing
        return frozenset()
    lines = (line.partition(":") for line in text.splitlines())
    return next(
        (frozenset(v.split()) for name, _, v in lines if name.strip() in ("flags", "Features")),
        frozenset(),
    )


def _key(compiler: Sequence[str], flags: Sequence[str]) -> str:
    """Hash of all that the library depends on."""
    program = Path(compiler[0]).stat()
    parts = (*compiler, program.st_size, program.st_mtime_ns, *flags, *sorted(_cpu_flags()))
    text = "\n".join(map(str, (*parts, version("torch"))))
    return hashlib.sha256(SOURCE.read_bytes() + text.encode()).hexdigest()[:24]


def _cache_folder() -> Path | None:
    """The folder that keeps compiled libraries; None where there can be none."""
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(root, "imagetok")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        private = _is_private(folder.stat()) and os.access(folder, os.W_OK)
    except (OSError, RuntimeError):  # no home, or one that cannot be written
        return None
    return folder if private else None


def _is_ours(path: Path) -> bool:
    """Whether there is a library that nobody else could have written."""
    try:
        return _is_private(path.lstat()) and path.is_file()
    except OSError:
        return False


def _is_private(status: os.stat_result) -> bool:
    """Whether a file belongs to this user, and no other may write it."""
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _compile(compiler: Sequence[str], flags: Sequence[str], path: Path) -> None:
    """Compile the source into a library at a path, all at once."""
    with tempfile.TemporaryDirectory(prefix=".building-", dir=path.parent) as temporary:
        compiled, library = Path(temporary, "kernel.o"), Path(temporary, path.name)
        _run([*compiler, "-std=c++17", "-O3", "-fPIC", *flags, "-c", SOURCE, "-o", compiled])
        # Without -fopenmp: the names of OpenMP are those of the library that torch has loaded, and
        # its threads are torch's.
        _run([*compiler, "-shared", compiled, "-o", library])
        library.chmod(0o700)
        os.replace(library, path)


def _run(command: Sequence[str | Path]) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - the user's compiler, on the package's own source
            command, capture_output=True, text=True, errors="replace", timeout=COMPILE_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelError(f"the C++ compiler could not be run: {error}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise KernelError(f"the C++ compiler '{command[0]}' failed: {lines[0]}")
