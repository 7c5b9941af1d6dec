"""Imports point down the ladder, and the checker sees those that do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from import_ladder import FLOORS, violations


def write_tree(folder: Path, files: dict[str, str]) -> Path:
    """A package folder with these files on top of an `__init__.py` that imports everything."""
    for name, text in {"__init__.py": "from imagetok.cli import main\n", **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_every_module_of_the_package_imports_down_the_ladder(root: Path) -> None:
    found = violations(root / "tokenizers" / "imagetok")
    assert not found, "\n".join(found)


def test_every_name_stands_on_one_floor_only() -> None:
    names = [name for floor in FLOORS for name in floor]
    assert len(names) == len(set(names))


def test_downward_imports_are_allowed_in_every_form(tmp_path: Path) -> None:
    files = {
        "bottlenecks/__init__.py": "from .vq import Vq\nfrom imagetok import keys\n",
        "bottlenecks/vq.py": "import torch\nfrom . import base\nfrom ..errors import IdsError\n",
        "bottlenecks/base.py": "import imagetok.config.tokenizer\n",
        "metrics.py": "def f():\n    from imagetok.bottlenecks.vq import Vq\n",
        "training/loop.py": "import accelerate.utils\nfrom imagetok.evaluation import evaluate\n",
        "hub.py": "from huggingface_hub import HfApi\n",
        "images.py": "import PIL.Image\nPIL.Image.open('x')\n",
        "data.py": "import datasets\npath.open()\nopen('x')\n",
    }
    assert violations(write_tree(tmp_path, files)) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("keys.py", "import imagetok.images\n"),
        ("keys.py", "from imagetok.images import read\n"),
        ("keys.py", "from imagetok import images\n"),
        ("keys.py", "from .images import read\n"),
        ("keys.py", "from . import images\n"),
        ("keys.py", "def f():\n    from imagetok.images import read\n"),
        ("keys.py", "if TYPE_CHECKING:\n    from imagetok.images import read\n"),
        ("keys.py", "importlib.import_module('imagetok.images')\n"),
        ("networks/conv.py", "from ..tokenizer import ImageTokenizer\n"),
        ("images.py", "from imagetok.networks import conv\n"),
        ("tokenizer.py", "from imagetok import ImageTokenizer\n"),
        ("cli.py", "import imagetok\n"),
        ("cli.py", "from imagetok.unknown import name\n"),
        ("tokenizer.py", "import accelerate\n"),
        ("cli.py", "from accelerate.utils import set_seed\n"),
        ("tokenizer.py", "from huggingface_hub import HfApi\n"),
        ("networks/conv.py", "import datasets\n"),
        ("likelihoods.py", "def f():\n    from datasets import Dataset\n"),
        ("data.py", "from PIL import Image\nImage.open('x')\n"),
        ("data.py", "import PIL.Image\nPIL.Image.open('x')\n"),
        ("data.py", "from PIL.Image import open as open_picture\n"),
    ],
)
def test_an_import_that_breaks_the_ladder_is_found(tmp_path: Path, name: str, text: str) -> None:
    (found,) = violations(write_tree(tmp_path, {name: text}))
    assert found.startswith(f"{tmp_path / name}:{len(text.splitlines())}: ")


def test_a_module_on_no_floor_is_asked_to_be_placed(tmp_path: Path) -> None:
    (found,) = violations(write_tree(tmp_path, {"helpers.py": "import torch\n"}))
    assert "'helpers' stands on no floor; place it" in found
