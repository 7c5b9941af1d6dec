"""Nothing that is read from a file is executed: by the sources, and by a process at work."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from execution_rules import STARTS_PROGRAMS, violations
from imagetok import ImageTokenizer, hub, load_recipe
from imagetok.config.recipe import dump_recipe

PACKAGE_FILES = {".py", ".cpp", ".yaml", ".jinja", ".typed"}

BAD = {
    "import pickle": "pickle",
    "import pickle as p": "pickle",
    "from pickle import loads": "pickle",
    "import os, dill": "dill",
    "import cloudpickle": "cloudpickle",
    "import joblib": "joblib",
    "import marshal": "marshal",
    "import shelve": "shelve",
    "import runpy": "runpy",
    "import importlib.util": "importlib.util",
    "import torch\ntorch.load(path)": "torch.load",
    "import torch as t\nx = t.load": "torch.load",
    "from torch import load as read": "torch.load",
    "import torch\nt = torch\nt.load(path)": "torch.load",
    "import torch\ntorch.load(path, weights_only=True)": "torch.load",
    "import torch\ntorch.save(model, path)": "torch.save",
    "import torch\ntorch.hub.load('user/name', 'model')": "torch.hub",
    "import torch\ntorch.jit.load(path)": "torch.jit",
    "import torch.jit": "torch.jit",
    "import numpy as np\nnp.load(path)": "numpy.load",
    "import numpy as np\nnp.load(path, allow_pickle=False)": "numpy.load",
    "from numpy import load": "numpy.load",
    "import numpy as np\nnp.savez(path, a=a)": "numpy.savez",
    "import pandas as pd\npd.read_pickle(path)": "read_pickle",
    "frame.to_pickle(path)": "to_pickle",
    "f(path, allow_pickle=True)": "allow_pickle",
    "eval(text)": "eval",
    "exec(text)": "exec",
    "list(map(eval, texts))": "eval",
    "compile(text, path, 'exec')": "compile",
    "__import__(name)": "__import__",
    "__builtins__['eval'](text)": "__builtins__",
    "import builtins\nbuiltins.eval(text)": "builtins",
    "globals()[name]()": "globals",
    "vars(module)[name]": "vars",
    "module.__dict__[name]": "__dict__",
    "import sys\nsys.modules[name]": "sys.modules",
    "from operator import attrgetter\nattrgetter(name)(module)": "operator.attrgetter",
    "[c for c in Base.__subclasses__() if c.__name__ == name]": "__subclasses__",
    "import yaml\nyaml.load(text, yaml.Loader)": "yaml.load",
    "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)": "yaml.load",
    "from yaml import unsafe_load": "yaml.unsafe_load",
    "import yaml\nyaml.full_load(text)": "yaml.full_load",
    "from torch import *": r"torch.\*",
    "import importlib\nimportlib.import_module(config.type)": "import_module",
    "from importlib import import_module\nimport_module(f'imagetok.{name}')": "import_module",
    "from importlib import import_module as get\nget(name)": "import_module",
    "T = {**read()}\nimport importlib\nimportlib.import_module(T[name])": "import_module",
    "from torch import nn\ngetattr(nn, config.type)()": "getattr",
    "import torch\ngetattr(torch.nn, name)": "getattr",
    "import torch\ngetattr(torch, f'{name}32')": "getattr",
    "import subprocess\nsubprocess.run(['ls'])": "subprocess: starts programs",
    "import os\nos.system(text)": "os.system",
    "from os import popen": "os.popen",
    "load_dataset(name, trust_remote_code=True)": "trust_remote_code",
    "accelerator.load_state(folder)": "load_state",
    "import ctypes\nctypes.CDLL(path)": "ctypes.CDLL",
    "import ctypes\nctypes.CDLL(None, handle=handle)": "ctypes.CDLL",
    "import ctypes\nload = ctypes.CDLL\nload(None)": "ctypes.CDLL",
}
"""Source -> what the breach is called."""

GOOD = [
    "import re\nre.compile(pattern)",
    "from PIL import Image\nimage.load()",
    "import yaml\nyaml.safe_load(text)\nyaml.safe_dump(values)",
    "import importlib\nimportlib.import_module('torch._dynamo')",
    "T = {'a': 'b'}\nfrom importlib import import_module\nimport_module(f'{__name__}.{T[name]}')",
    "getattr(record, name)",
    "import torch\ngetattr(torch, 'float32')",
    "def f(compile): return compile",
    "from importlib import metadata, resources",
    "model.eval()",
    "import ctypes\nctypes.c_bool",
    "import ctypes\nctypes.CDLL(None).mallopt",
    "tokenizer.load_state_dict(tensors)",
]


@pytest.mark.parametrize(("source", "named"), BAD.items(), ids=range(len(BAD)))
def test_every_rule_finds_what_it_forbids(source: str, named: str) -> None:
    found = violations(f"def anywhere():\n    pass\n\n{source}\n", "imagetok/module.py")
    assert found
    assert all(place.startswith("imagetok/module.py:") for place in found)
    assert any(named.replace("\\", "") in place for place in found), found


@pytest.mark.parametrize("source", GOOD)
def test_what_executes_nothing_is_let_through(source: str) -> None:
    assert violations(source, "imagetok/module.py") == []


@pytest.mark.parametrize("command", ["'ls'", "f'ls {path}'", "'ls ' + path", "[path], shell=True"])
def test_where_programs_may_be_started_no_text_is_read_as_a_command(command: str) -> None:
    source = f"import subprocess\nsubprocess.run({command})"
    for place in STARTS_PROGRAMS:
        assert len(violations(source, place)) == 1
        assert not violations("import subprocess\nsubprocess.run([path])", place)


def test_no_source_executes_what_it_reads(root: Path) -> None:
    package = sorted((root / "tokenizers" / "imagetok").rglob("*.py"))
    scripts = sorted((root / "scripts").glob("*.py"))
    assert len(package) > 50
    assert scripts
    found = []
    for path in [*package, *scripts]:
        place = path.relative_to(root / "tokenizers" if path in package else root).as_posix()
        found += violations(path.read_text(encoding="utf-8"), place)
    assert not found, "\n".join(found)


def test_every_file_that_may_start_programs_does(root: Path) -> None:
    for place in STARTS_PROGRAMS:
        path = root / (place if place.startswith("scripts/") else f"tokenizers/{place}")
        assert "import subprocess" in path.read_text(encoding="utf-8")


def test_the_package_holds_sources_recipes_and_templates_alone(root: Path) -> None:
    for path in (root / "tokenizers" / "imagetok").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.suffix in PACKAGE_FILES, path


# A process at work

AT_WORK = """
import json, pathlib, sys
from imagetok import ImagetokError, ImageTokenizer, load_recipe

EXECUTES = {
    "compile", "ctypes.dlopen", "exec", "import", "marshal.loads", "os.exec", "os.fork",
    "os.posix_spawn", "os.system", "pickle.find_class", "subprocess.Popen",
}
folder, seen, watching = pathlib.Path(sys.argv[1]), [], False

def watch(event, arguments):
    if watching and event in EXECUTES:
        seen.append(f"{event}{arguments}")

def refused(path):
    try:
        ImageTokenizer.from_pretrained(path)
    except ImagetokError:
        return True

def work():
    tokenizer = ImageTokenizer.from_pretrained(folder)
    picture = tokenizer.decode(tokenizer.encode([folder / "a.png"]))[0]
    picture.save(folder / "a.png")
    tokenizer.encode((folder / "a.png").read_bytes())
    tokenizer.save_pretrained(folder / "copy")
    load_recipe(str(folder / "recipe.yaml"), ["train.steps=3"])
    assert refused(folder / "pickle") and refused(folder / "zip")

sys.addaudithook(watch)
work()  # whatever is imported late, is imported now
watching = True
work()
if sys.argv[2:]:
    exec(sys.argv[2])
watching = False
print(json.dumps(seen))
"""


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A tokenizer, an image, a recipe, and traps under the names of safetensors files."""
    config = load_recipe("vqvae-shapes", ["tokenizer.image_size=[16, 16]"])
    ImageTokenizer.from_config(config.tokenizer).save_pretrained(tmp_path)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(config), "utf-8")
    Image.new("RGB", (20, 16)).save(tmp_path / "a.png")
    for name in ("pickle", "zip"):
        (tmp_path / name).mkdir()
    trap = Trap(tmp_path / "sprung")
    (tmp_path / "pickle" / hub.MODEL_FILE).write_bytes(pickle.dumps(trap))
    torch.save(trap, tmp_path / "zip" / hub.MODEL_FILE)
    return tmp_path


def executed(folder: Path, *more: str) -> list[str]:
    command = [sys.executable, "-c", AT_WORK, str(folder), *more]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found: list[str] = json.loads(run.stdout)
    return found


def test_loading_encoding_decoding_and_saving_execute_nothing(workplace: Path) -> None:
    assert executed(workplace) == []
    assert not (workplace / "sprung").exists()


@pytest.mark.slow
def test_the_watch_over_a_process_sees_what_is_executed(workplace: Path) -> None:
    path = workplace / "pickle" / hub.MODEL_FILE
    found = executed(workplace, f"import pickle; pickle.loads(open({str(path)!r}, 'rb').read())")
    assert any(event.startswith("exec") for event in found)
    assert any(event.startswith("pickle.find_class") for event in found)
    assert (workplace / "sprung").exists()
