"""Freed memory that stays in the process, where the C library is glibc.

glibc gives every large activation back to the system when it is freed, and the system zeroes it
anew for the next layer. `keep_freed_memory` has glibc keep it. That changes the whole process, so
the program `imagetok` calls it and importing the package does not. Nor do the processes that load
images: they have no layers, and are as fast without it.
"""

from __future__ import annotations

import ctypes
import os
import sys

from imagetok.switches import read_switch

VARIABLE = "IMAGETOK_KEEP_MEMORY"
"""Environment variable by which a user turns it off."""

_USER_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
"""Variables of glibc's own by which a user chooses the same thresholds."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of mallopt, from malloc.h."""


def keep_freed_memory() -> None:
    """Have glibc keep what this process frees, unless the user chose otherwise.

    Nothing happens with another C library, with `IMAGETOK_KEEP_MEMORY=false`, or where the user
    tuned glibc's allocator by variables of its own.

    Raises:
        InvalidValueError: `IMAGETOK_KEEP_MEMORY` is neither true nor false.
    """
    if not _is_wanted() or not _has_glibc():
        return
    mallopt = ctypes.CDLL(None).mallopt
    # Never trim, and never map a block of its own, which is unmapped when it is freed. The second
    # threshold for that, M_MMAP_THRESHOLD, ends at 32 MiB, which activations exceed.
    mallopt(_M_TRIM_THRESHOLD, -1)
    mallopt(_M_MMAP_MAX, 0)


def _is_wanted() -> bool:
    chosen = any(name in os.environ for name in _USER_VARIABLES)
    tuned = "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
    return read_switch(VARIABLE, default=True) and not (chosen or tuned)


def _has_glibc() -> bool:
    if sys.platform != "linux":
        return False
    try:
        return "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except ValueError:  # another C library does not know the name
        return False
