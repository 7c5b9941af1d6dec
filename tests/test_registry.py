"""The registry of parts: what is known, what is not, and how to make it known."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest

from imagetok.config import Config, PartConfig, PartField, known_types, load_plugins, registry
from imagetok.errors import ConfigError
from imagetok.metrics import find_metric
from imagetok.tokenizer_config import TokenizerConfig

KINDS = ("encoder", "decoder", "bottleneck", "likelihood", "objective")


class ShapeConfig(PartConfig):
    kind: ClassVar[str] = "shape"


class DiscConfig(ShapeConfig):
    later_keys: ClassVar[frozenset[str]] = frozenset({"hollow"})

    type: Literal["disc"] = "disc"
    radii: tuple[int, ...]
    hollow: bool = False


class Drawing(Config):
    shape: Annotated[ShapeConfig, PartField()]


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a test registers."""
    parts = {kind: dict(types) for kind, types in registry._PARTS.items()}
    monkeypatch.setattr(registry, "_PARTS", parts)
    monkeypatch.setattr(registry, "_FAILED", {})
    monkeypatch.setattr(registry, "_entry_points_are_loaded", False)
    monkeypatch.setattr(sys, "path", list(sys.path))


def refusal(values: object) -> str:
    with pytest.raises(ConfigError) as caught:
        Drawing.from_dict({"shape": values})
    return str(caught.value)


def test_a_subclass_registers_itself_and_is_written_by_its_own_class() -> None:
    assert known_types("shape") == ["disc"]
    drawing = Drawing.from_dict({"shape": {"type": "disc", "radii": [1, 2]}})
    assert drawing.shape == DiscConfig(radii=(1, 2))
    assert drawing.to_dict() == {"shape": {"type": "disc", "radii": [1, 2]}}
    assert Drawing.from_json(drawing.to_json()) == drawing


def test_a_later_key_is_written_once_it_differs_from_what_older_versions_did() -> None:
    drawing = Drawing.from_dict({"shape": {"type": "disc", "radii": [1], "hollow": True}})
    assert drawing.to_dict()["shape"]["hollow"] is True
    assert "hollow" not in Drawing.from_dict({"shape": {"type": "disc", "radii": [1]}}).to_json()


def test_faults_inside_a_part_are_named_with_their_place() -> None:
    message = refusal({"type": "disc", "radii": [True], "colour": 1})
    assert "shape.disc.radii.0: found True" in message
    assert "unknown key 'shape.disc.colour'; valid keys here: hollow, radii, type" in message


def test_an_unknown_type_says_what_is_known_and_how_to_make_it_known() -> None:
    message = refusal({"type": "star"})
    assert "unknown shape 'star'; choose one of: disc" in message
    assert "--import MODULE" in message


def test_what_names_no_type_is_refused() -> None:
    assert "shape has no key 'type'" in refusal({"radii": [1]})
    assert "shape: found 3" in refusal(3)
    assert "unknown shape '3'" in refusal({"type": 3})


def test_two_parts_of_one_type_are_refused_and_a_reloaded_one_is_not() -> None:
    with pytest.raises(ConfigError, match=r"two parts call themselves shape 'disc'.*DiscConfig"):
        type("Other", (DiscConfig,), {"__module__": "elsewhere"})
    again = type(
        DiscConfig.__name__,
        (DiscConfig,),
        {"__module__": __name__, "__qualname__": DiscConfig.__qualname__},
    )
    assert registry.find_part("shape", "disc") is again


# From outside the package

STAR = """
from typing import Literal
from test_registry import ShapeConfig


class StarConfig(ShapeConfig):
    type: Literal["star"] = "star"
"""


def test_a_module_of_the_current_folder_is_imported_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "star_parts.py").write_text(STAR)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "test_registry", sys.modules[__name__])
    load_plugins(["star_parts"])
    assert known_types("shape") == ["disc", "star"]
    assert Drawing.from_dict({"shape": {"type": "star"}}).shape.type == "star"


@pytest.mark.parametrize("code", ["import no_such_module_anywhere", "1 / 0", "def"])
def test_a_module_that_cannot_be_imported_is_named_with_the_reason(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_parts.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot import 'broken_parts': [A-Z]"):
        load_plugins(["broken_parts"])
    with pytest.raises(ConfigError, match="cannot import 'missing_parts': ModuleNotFoundError"):
        load_plugins(["missing_parts"])


def entry_points(monkeypatch: pytest.MonkeyPatch, **modules: str) -> list[str]:
    """Install entry points by name; the list that is returned says which groups were asked for."""
    asked: list[str] = []

    def found(group: str) -> list[EntryPoint]:
        asked.append(group)
        return [EntryPoint(name, module, group) for name, module in modules.items()]

    monkeypatch.setattr(registry, "entry_points", found)
    return asked


def test_entry_points_are_loaded_at_the_first_unknown_type_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "installed_parts.py").write_text(STAR)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "test_registry", sys.modules[__name__])
    asked = entry_points(monkeypatch, stars="installed_parts")
    Drawing.from_dict({"shape": {"type": "disc", "radii": []}})
    assert asked == []
    Drawing.from_dict({"shape": {"type": "star"}})
    refusal({"type": "square"})
    assert asked == ["imagetok.parts"]


def test_a_plug_in_that_fails_hurts_only_who_needs_its_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad_parts.py").write_text("raise RuntimeError('no\\nluck')")
    (tmp_path / "good_parts.py").write_text(STAR)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "test_registry", sys.modules[__name__])
    entry_points(monkeypatch, bad="bad_parts", good="good_parts")
    assert Drawing.from_dict({"shape": {"type": "star"}}).shape.type == "star"
    message = refusal({"type": "square"})
    assert "the plug-in 'bad' could not be imported: RuntimeError: no luck" in message


# The house


def test_no_type_of_a_part_is_named_outside_its_own_file(root: Path) -> None:
    package = root / "tokenizers" / "imagetok"
    assert TokenizerConfig.model_fields.keys() >= set(KINDS[:4])
    homes: dict[str, set[Path]] = {}
    for kind in KINDS:
        for name in known_types(kind):
            part = registry.find_part(kind, name)
            if not part.__module__.startswith("imagetok."):
                continue  # another test's
            file = Path(inspect.getfile(part))
            homes.setdefault(name, set()).update({file, file.parent / "__init__.py"})
    # A figure may share its name with a part.
    for name in homes.keys() & set(known_types("metric")):
        file = Path(inspect.getfile(find_metric(name)))
        homes[name] |= {file, file.parent / "__init__.py"}
    assert {"conv", "dalle", "gumbel", "l1", "logit_laplace", "vq"} <= homes.keys()
    found = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        for name, files in homes.items()
        if re.search(rf"[\"']{name}[\"']", line) and path not in files
        if "Accept-Encoding" not in line  # a word of HTTP
    ]
    assert not found, "\n".join(found)


def test_importing_the_package_loads_neither_parts_nor_entry_points() -> None:
    code = (
        "import sys, imagetok, imagetok.config; from imagetok.config import registry, recipe_names;"
        "recipe_names();"
        "print(registry._PARTS, registry._entry_points_are_loaded, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["{}", "False", "False"]
