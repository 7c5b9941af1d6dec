"""Install the oldest versions that pyproject.toml allows and run the quick tests on them.

    python scripts/check_lower_bounds.py [pytest arguments]

Every `name>=version` of the dependencies and of all extras becomes `name==version`; what those
packages need in turn is left to pip. Wheels only: an old version without one for this Python is not
a usable lower bound. The virtual environment is temporary.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def lower_bounds(project: Mapping[str, Any]) -> list[str]:
    """Turn the lower bounds of a project into pins.

    Args:
        project: The table `project` of a pyproject.toml.

    Returns:
        `name==version`, sorted, for every requirement except the project's own extras.

    Raises:
        ValueError: A requirement states no lower bound.
    """
    texts = chain(project["dependencies"], *project["optional-dependencies"].values())
    pins = set()
    for requirement in map(Requirement, texts):
        if requirement.name == project["name"]:
            continue
        versions = [bound.version for bound in requirement.specifier if bound.operator == ">="]
        if len(versions) != 1:
            raise ValueError(f"'{requirement}' states no lower bound; write it as name>=version")
        pins.add(f"{requirement.name}=={versions[0]}")
    return sorted(pins)


def main(pytest_arguments: Sequence[str]) -> int:
    """Run the check; returns the exit status of the step that failed, or 0."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    target = f".[{','.join(project['optional-dependencies'])}]"
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder, "bin", "python"))
        pins = lower_bounds(project)
        print("\n".join(pins), flush=True)
        install = [python, "-m", "pip", "install", "-qq", "--only-binary", ":all:"]
        for command in (
            [*install, "-e", target, *pins],
            [python, "-m", "pytest", *pytest_arguments],
        ):
            status = subprocess.run(command, cwd=ROOT).returncode
            if status:
                return status
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sys.exit(main(parser.parse_known_args()[1]))
