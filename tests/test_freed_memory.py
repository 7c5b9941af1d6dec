"""What a process frees stays in it: in the program's processes, and where the user lets it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from command_line import run_command
from imagetok.freed_memory import VARIABLE

MIB = 2**20

SETS_GLIBC = ("MALLOC_", "GLIBC_TUNABLES", VARIABLE)

LIBRARY = "import imagetok, imagetok.cli"

PROGRAM = """
from imagetok.cli import main
try:
    main(["--version"])
except SystemExit:
    pass
"""

FREE = """
from pathlib import Path
def resident():
    return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0])
before = resident()
for size in range(1, 5):  # one size after the other, as a network's layers
    block = b"x" * (size * 16 * 2**20)
    del block
print(2**10 * (resident() - before))
"""


def has_glibc() -> bool:
    return sys.platform == "linux" and "CS_GNU_LIBC_VERSION" in os.confstr_names


def kept_bytes(start: str, **environment: str) -> int:
    """What a process holds after it freed 160 MiB."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(SETS_GLIBC)}
    run = subprocess.run(
        [sys.executable, "-c", start + FREE],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(run.stdout.split()[-1])


@pytest.mark.skipif(not has_glibc(), reason="another C library is left as it is")
@pytest.mark.parametrize(
    ("start", "environment", "kept"),
    [
        (PROGRAM, {}, True),
        (LIBRARY, {}, False),
        (PROGRAM, {VARIABLE: "off"}, False),
        (PROGRAM, {"MALLOC_MMAP_THRESHOLD_": str(4 * MIB)}, False),
        (PROGRAM, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4194304"}, False),
    ],
    ids=["program", "library", "switched off", "variable of glibc", "tunables of glibc"],
)
def test_the_program_keeps_what_it_frees_unless_it_is_told_not_to(
    start: str, environment: dict[str, str], kept: bool
) -> None:
    # Blocks of one process lie where those freed before them lay: 64 MiB, and not their sum.
    least, most = (60 * MIB, 96 * MIB) if kept else (-MIB, 16 * MIB)
    assert least <= kept_bytes(start, **environment) <= most


def test_a_switch_that_is_neither_on_nor_off_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "perhaps")
    ended = run_command(capfd, "--version")
    assert ended.code == 2
    assert f"{VARIABLE} is 'perhaps'; set it to true or false" in ended.last_line
