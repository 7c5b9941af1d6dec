"""The house rules: what is installed, what an import costs, what the sources may say."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from imagetok import __version__
from imagetok.config import RunConfig

TEXT = {"", ".cff", ".md", ".py", ".toml", ".txt", ".yaml", ".yml"}
SOURCES = ("tokenizers", "scripts", "tests", "docs", "model_cards", ".ci", ".github")


@pytest.fixture(scope="session")
def project(root: Path) -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return table


@pytest.fixture(scope="session")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of the files in a freshly built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        root / "tokenizers",
        folder / "tokenizers",
        ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, folder)
    run_python("from setuptools.build_meta import build_wheel; build_wheel('.')", folder)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def run_python(code: str, folder: Path) -> str:
    """What `python -c code` prints when it is started in `folder`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def source_files(root: Path) -> Iterator[Path]:
    """Every text file that is written by hand, the licence excepted."""
    paths = [*root.iterdir(), *(path for folder in SOURCES for path in (root / folder).rglob("*"))]
    for path in paths:
        built = path.name == "LICENSE" or any(part.endswith("-info") for part in path.parts)
        if path.is_file() and path.suffix in TEXT and not built:
            yield path


def test_the_tokenizers_folder_is_not_a_package(root: Path) -> None:
    assert (root / "tokenizers").is_dir()
    assert not (root / "tokenizers" / "__init__.py").exists()


def test_an_installed_tokenizers_package_wins_from_the_repository_root(
    root: Path, tmp_path: Path
) -> None:
    package = tmp_path / "site" / "tokenizers" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.touch()
    site = str(package.parent.parent)
    code = f"import sys; sys.path.append({site!r}); import tokenizers; print(tokenizers.__file__)"
    found = Path(run_python(code, root))  # the real package, where it is installed, comes first
    assert found.name == "__init__.py"
    assert not found.is_relative_to(root / "tokenizers")


def test_the_wheel_holds_imagetok_and_nothing_else(wheel: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert tops == {"imagetok", f"imagetok-{__version__}.dist-info"}


def test_the_wheel_holds_every_source_file_and_recipe(root: Path, wheel: list[str]) -> None:
    package = root / "tokenizers" / "imagetok"
    paths = [
        path
        for suffix in ("py", "cpp", "yaml", "typed", "jinja")
        for path in package.rglob(f"*.{suffix}")
    ]
    expected = {path.relative_to(package.parent).as_posix() for path in paths}
    assert {name for name in wheel if name.startswith("imagetok/")} == expected
    assert "imagetok/py.typed" in expected


def test_importing_imagetok_imports_the_standard_library_alone(tmp_path: Path) -> None:
    code = """
import sys
before = set(sys.modules)
import imagetok

packages = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(packages - sys.stdlib_module_names))
"""
    assert run_python(code, tmp_path) == "['imagetok']"


def test_importing_the_tokenizer_does_not_import_what_only_measuring_needs(tmp_path: Path) -> None:
    code = """
import sys
from imagetok import ImageTokenizer

print({"torchmetrics", "scipy"} & set(sys.modules))
"""
    assert run_python(code, tmp_path) == "set()"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["tokenize", "--help"]])
def test_asking_the_command_line_for_help_imports_neither_torch_configs_nor_parts(
    tmp_path: Path, arguments: list[str]
) -> None:
    code = f"""
import sys
from imagetok.cli import main

try:
    main({arguments})
except SystemExit as stop:
    status = stop.code
heavy = {{"torch", "numpy", "PIL", "yaml", "datasets", "imagetok.config.strict_config"}}
heavy |= {{"imagetok.networks", "imagetok.bottlenecks", "imagetok.likelihoods"}}
print(status or 0, sorted(heavy & set(sys.modules)))
"""
    *shown, last = run_python(code, tmp_path).splitlines()
    assert last == "0 []"
    assert "Usage: imagetok" in "\n".join(shown)


def test_every_recipe_is_a_valid_run(root: Path) -> None:
    paths = sorted((root / "tokenizers" / "imagetok" / "recipes").glob("*.yaml"))
    assert paths
    for path in paths:
        RunConfig.from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_sources_hold_no_unfinished_work_and_no_path_of_a_machine(root: Path) -> None:
    unfinished = r"\b(?:TO" r"DO|FIX" r"ME|X" r"XX)\b"
    machine = r"(?<![\w.*/}])/(?:home|root|Users|work|opt|mnt)/\w"
    pattern = re.compile(f"{unfinished}|{machine}")
    found = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in source_files(root)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_constraints_hold_a_version_of_every_dependency_that_pyproject_allows(
    root: Path, project: dict[str, Any]
) -> None:
    lines = (root / "constraints.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in tested.items()}
    texts = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    texts += [text for name in ("bench", "test") for text in project["optional-dependencies"][name]]
    for requirement in map(Requirement, texts):
        if requirement.name != project["name"]:
            version = versions.get(canonicalize_name(requirement.name), "none")
            assert version != "none", f"constraints.txt lacks {requirement.name}"
            assert requirement.specifier.contains(version), f"{requirement} excludes {version}"


def test_every_dependency_states_the_lower_bound_that_the_script_installs(
    root: Path, project: dict[str, Any]
) -> None:
    script = runpy.run_path(str(root / "scripts" / "check_lower_bounds.py"))
    pins = script["lower_bounds"](project)
    assert "torch==2.13" in pins
    assert len(pins) >= len(project["dependencies"])
    broken = {"name": "x", "dependencies": ["numpy"], "optional-dependencies": {}}
    with pytest.raises(ValueError, match="'numpy' states no lower bound"):
        script["lower_bounds"](broken)


def test_the_citation_names_the_version(root: Path) -> None:
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
