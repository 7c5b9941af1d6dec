"""What goldens are recorded of, and how; `record.py` says what they are."""

from __future__ import annotations

import ast
import json
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import yaml
from PIL import Image

from goldens import replay
from goldens.replay import ROOT
from imagetok import RunConfig, load_recipe
from imagetok.shards import Job

# Images


def photo(number: int, channels: int, height: int, width: int) -> np.ndarray:
    """Two soft waves and a bright rectangle, uint8 (height, width, channels)."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [
        128 + (rows * (3 + number + c) + columns * (7 - 2 * c) + 40 * c * number) % 113 - 56
        for c in range(channels)
    ]
    levels = np.stack(waves, axis=-1).astype(np.uint8)
    levels[number % 7 : number % 7 + 6, 3:9] = [
        (61 * number + 83 * c) % 256 for c in range(channels)
    ]
    return levels


def draw(number: int) -> Image.Image:
    """An image whose mode and size follow from its number."""
    height, width = 16 + 3 * (number % 3), 16 + 5 * (number % 4)
    kind = ("RGB", "L", "RGBA", "P", "I;16", "1", "LA")[number % 7]
    channels = {"RGB": 3, "RGBA": 4, "P": 3, "LA": 2}.get(kind, 1)
    levels = photo(number, channels, height, width)
    if kind == "I;16":
        return Image.fromarray(levels[..., 0].astype(np.uint16) * 251)
    if channels == 1:
        image = Image.fromarray(levels[..., 0])
        return image.convert("1") if kind == "1" else image
    image = Image.fromarray(levels)
    return image.quantize(16) if kind == "P" else image


def record_images(folder: Path) -> None:
    """`photos/`: train and test with captions and labels; row 5 of train is damaged."""
    for split, numbers in (("train", range(13)), ("test", range(13, 20))):
        place = folder / "photos" / split
        place.mkdir(parents=True)
        lines = []
        for number in numbers:
            name = f"{number:02d}.png"
            draw(number).save(place / name)
            if number == 5:
                (place / name).write_bytes((place / name).read_bytes()[:40])
            caption = None if number % 5 == 3 else f'image {number}: üñí\n"quoted"'
            lines.append({"file_name": name, "caption": caption, "label": number % 3})
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (place / "metadata.jsonl").write_text(text)
    _record_tables(folder)


def _record_tables(folder: Path) -> None:
    (folder / "tables").mkdir()
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    )
    for split, parts in (
        ("train", (range(5), range(5, 9), range(9, 13))),
        ("test", (range(13, 17),)),
    ):
        for part, numbers in enumerate(parts):
            paths = [folder / "photos" / split / f"{number:02d}.png" for number in numbers]
            images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
            rows = {"image": images, "label": [number % 3 for number in numbers]}
            table = datasets.Dataset.from_dict(rows, features=features)
            table.to_parquet(folder / "tables" / f"{split}-{part:05d}.parquet")


# Tokenizers, each after a run of a few steps

CONV = {"type": "conv", "hidden_channels": 6, "residual_channels": 3}
DALLE = {"type": "dalle", "hidden_channels": 4, "num_groups": 3, "blocks_per_group": 1}
MLP = {"type": "mlp", "hidden": [16, 8]}
MSE, LEARNT = {"type": "mse"}, {"type": "mse", "scale": "learnt"}
SOFT_MSE = {"type": "mse", "scale": 0.05}
IDENTITY, GAUSSIAN = {"type": "identity", "latent_dim": 6}, {"type": "gaussian", "latent_dim": 4}


def vq(**options: Any) -> dict[str, Any]:
    """A small VQ bottleneck."""
    return {"type": "vq", "codebook_size": 24, "latent_dim": 6, **options}


def gumbel(**options: Any) -> dict[str, Any]:
    """A small Gumbel bottleneck."""
    return {"type": "gumbel", "codebook_size": 24, "latent_dim": 6, **options}


def tokenizer_values(
    bottleneck: Mapping[str, Any],
    likelihood: Mapping[str, Any] = MSE,
    network: Mapping[str, Any] = CONV,
    decoder: Mapping[str, Any] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """The config of a tokenizer of 16 x 16 images."""
    return {
        "image_size": [16, 16],
        "encoder": dict(network),
        "bottleneck": dict(bottleneck),
        "decoder": dict(decoder or network),
        "likelihood": dict(likelihood),
        **others,
    }


DEEP = {**CONV, "num_downsamplings": 3, "num_residual_blocks": 1}

TOKENIZERS: dict[str, dict[str, Any]] = {
    # the small recipes, smaller
    "vqvae": tokenizer_values(vq()),
    "dvae": tokenizer_values(gumbel(), SOFT_MSE),
    "vae": tokenizer_values(GAUSSIAN, LEARNT, DEEP),
    "ae": tokenizer_values(IDENTITY),
    "vae-digits": tokenizer_values(
        {"type": "gaussian", "latent_dim": 2},
        LEARNT,
        MLP,
        {"type": "mlp", "hidden": [8, 16]},
        image_size=[8, 8],
        channels=1,
    ),
    # options of vq
    "vq-code-dim": tokenizer_values(vq(code_dim=3)),
    "vq-normalize": tokenizer_values(vq(normalize=True)),
    "vq-normalize-code-dim-loss": tokenizer_values(
        vq(normalize=True, code_dim=4, codebook="loss"), {"type": "l1", "scale": "learnt"}
    ),
    "vq-loss": tokenizer_values(vq(codebook="loss"), {"type": "l1"}),
    "vq-rotation": tokenizer_values(vq(gradient="rotation")),
    "vq-no-kmeans": tokenizer_values(vq(kmeans_init=False)),
    "vq-no-restarts": tokenizer_values(vq(restart_below=0.0)),
    "vq-many-restarts": tokenizer_values(vq(restart_below=0.9, decay=0.5, epsilon=0.01)),
    "vq-large-epsilon": tokenizer_values(vq(epsilon=0.5)),
    # options of gumbel
    "gumbel-hard": tokenizer_values(gumbel(hard=True)),
    "gumbel-no-splits": tokenizer_values(gumbel(split_below=0.0)),
    "gumbel-many-splits": tokenizer_values(gumbel(split_below=0.9)),
    # networks, likelihoods, images
    "dvae-dalle": tokenizer_values(gumbel(), {"type": "logit_laplace"}, DALLE),
    "vq-dalle-wide": tokenizer_values(vq(), {"type": "logit_laplace"}, DALLE, image_size=[16, 24]),
    "vq-mlp": tokenizer_values(
        vq(codebook_size=8), network={"type": "mlp", "hidden": [8]}, image_size=[8, 8]
    ),
    "ae-linear": tokenizer_values(IDENTITY, {"type": "l1"}, {"type": "mlp"}, image_size=[8, 8]),
    "vq-rgba": tokenizer_values(vq(), LEARNT, channels=4),
    "vq-gray": tokenizer_values(
        vq(),
        {"type": "mse", "scale": 1.0},
        channels=1,
        preprocessing={"resize": "bilinear", "background": [10, 200, 30]},
    ),
}


def short_run(name: str, tokenizer: Mapping[str, Any]) -> RunConfig:
    """Six steps on what suits the tokenizer."""
    height, _ = tokenizer["image_size"]
    data: dict[str, Any] = {"name": f"builtin:shapes?size={max(height, 16)}&count=24"}
    if name == "vae-digits":
        data = {"name": "builtin:digits"}
    train: dict[str, Any] = {
        "steps": 6,
        "batch_size": 8,
        "optimizer": {"lr": {"type": "cosine", "start": 4e-3, "end": 1e-4}, "warmup_steps": 2},
        "ema_decay": 0.7,
        "evaluation_images": 8,
        "usage_warning": 0.0,
        "seed": 5,
    }
    if tokenizer["bottleneck"]["type"] == "vq":
        train["loss_weights"] = {"loss/commitment": 0.25}
    elif tokenizer["bottleneck"]["type"] == "gumbel":
        train["temperature"] = {"type": "cosine", "start": 1.0, "end": 0.0625}
        train["loss_weights"] = {
            "loss/kl": {"type": "linear", "start": 0.0, "end": 1.0, "steps": 4}
        }
    return RunConfig.from_dict({"tokenizer": dict(tokenizer), "data": data, "train": train})


def record_tokenizers(folder: Path) -> None:
    """`tokenizers/` and `expected/`."""
    (folder / "expected").mkdir()
    for name, values in TOKENIZERS.items():
        config = short_run(name, values)
        with tempfile.TemporaryDirectory() as place:
            run = Path(place) / "run"
            replay.train_values(config.to_dict(), run)
            target = folder / "tokenizers" / name
            target.mkdir(parents=True)
            for file in ("model.safetensors", "config.json"):
                shutil.copy(run / "tokenizer" / file, target)
            trained = replay.run_facts(run)
        facts, tensors = replay.tokenizer_facts(target)
        if replay.is_discrete(facts["config"]):
            tensors |= replay.margins_of(target)
        digests = {key: replay.tensors_digest({key: tensor}) for key, tensor in tensors.items()}
        expected = {**facts, "run": config.to_dict(), "trained": trained, "digests": digests}
        replay.write_json(folder / "expected" / f"{name}.json", expected)
        kept = {key: value for key, value in tensors.items() if key not in replay.BY_DIGEST}
        replay.write_tensors(folder / "expected" / f"{name}.safetensors", kept)


# Tokenizing jobs

_OF_ALL = ["--device", "cpu", "--threads", "1", "--batch-size", "4", "--max-error-rate", "0.2"]

JOBS: dict[str, list[str]] = {
    "rows": [
        *("--tokenizer", "tokenizers/vqvae", "--dataset", "photos", "--split", "train"),
        *("--keep", "label,caption", "--rows-per-shard", "2"),
    ],
    "native": [
        *("--tokenizer", "tokenizers/dvae", "--dataset", "photos", "--split", "test"),
        *("--resize", "native", "--rows-per-shard", "4", "--limit", "6"),
    ],
    "streamed": [
        *("--tokenizer", "tokenizers/dvae", "--dataset", "tables", "--split", "train"),
        *("--streaming", "--keep", "label", "--rows-per-shard", "2"),
    ],
    "builtin": [
        *("--tokenizer", "tokenizers/vq-normalize", "--dataset", "builtin:shapes?size=20&count=6"),
        *("--split", "test", "--keep", "caption", "--rows-per-shard", "4"),
    ],
}
KILLED_AFTER = {"rows": 3, "streamed": 3}
"""Shards that a job is killed after."""


def record_jobs(folder: Path) -> None:
    """`jobs/`: whole ones, and killed ones."""
    for name, arguments in JOBS.items():
        whole = folder / "jobs" / name
        with replay.one_thread():
            assert replay.command("tokenize", *arguments, *_OF_ALL, "--output-dir", whole) == 0
        facts = {"arguments": [*arguments, *_OF_ALL], **replay.job_facts(whole)}
        replay.write_json(folder / "jobs" / f"{name}.json", facts)
        (whole / "README.md").unlink()
        if name in KILLED_AFTER:
            _record_killed(
                folder / "jobs" / f"{name}-killed", facts["arguments"], KILLED_AFTER[name]
            )


def _record_killed(folder: Path, arguments: list[str], shards: int) -> None:
    for _ in range(20):
        process = replay.launch("tokenize_dataset.py", *arguments, "--output-dir", folder)
        while process.poll() is None and len(list(folder.glob("data/*.parquet"))) < shards:
            time.sleep(0.0002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        files = replay.contents(folder)
        if not any(name.startswith("manifest") for name in files):
            return
        shutil.rmtree(folder)
    raise RuntimeError("the job was too quick to be killed")


# Runs, continued from a checkpoint

RUNS: dict[str, dict[str, Any]] = {
    "vq-rows": {
        "ranks": 1,
        "tokenizer": tokenizer_values(vq(code_dim=4, restart_below=0.5, decay=0.9)),
        "data": {"name": "photos", "crop_scale": [0.6, 1.0], "flip": True},
    },
    "gumbel-streamed": {
        "ranks": 1,
        "tokenizer": tokenizer_values(gumbel(split_below=0.5), {"type": "logit_laplace"}, DALLE),
        "data": {"name": "tables", "streaming": True, "lanes": 4, "window": 6, "flip": True},
        "train": {"accumulation": 2, "temperature": {"type": "linear", "start": 1.0, "end": 0.2}},
    },
    "gumbel-rows-two-ranks": {
        "ranks": 2,
        "tokenizer": tokenizer_values(gumbel(), SOFT_MSE),
        "data": {"name": "builtin:shapes?size=16&count=21", "flip": True},
    },
    "vq-streamed-two-ranks": {
        "ranks": 2,
        "tokenizer": tokenizer_values(vq(codebook="loss", gradient="rotation"), LEARNT),
        "data": {"name": "tables", "streaming": True, "lanes": 4, "window": 6},
    },
}


def long_run(values: Mapping[str, Any]) -> RunConfig:
    """Twenty steps with a checkpoint half-way."""
    train = {
        "steps": 20,
        "batch_size": 8,
        "optimizer": {"lr": {"type": "cosine", "start": 3e-3, "end": 1e-4}, "weight_decay": 0.01},
        "ema_decay": 0.8,
        "evaluate_every": 5,
        "checkpoint_every": 10,
        "samples_every": 10,
        "evaluation_images": 4,
        "usage_warning": 0.0,
        **values.get("train", {}),
    }
    if values["tokenizer"]["bottleneck"]["type"] == "vq":
        train["loss_weights"] = {"loss/commitment": 0.25}
    data = {**values["data"], "max_error_rate": 0.2}
    return RunConfig.from_dict({"tokenizer": values["tokenizer"], "data": data, "train": train})


def record_runs(folder: Path) -> None:
    """`runs/`: what SIGKILL leaves right before the last checkpoint, and what the end leaves."""
    for name, values in RUNS.items():
        run = folder / "runs" / name
        config = long_run(values)
        recipe = folder / "runs" / f"{name}.yaml"
        recipe.parent.mkdir(exist_ok=True)
        recipe.write_text(yaml.safe_dump(config.to_dict()))
        with replay.one_thread():
            replay.train_here(recipe, run, ranks=values["ranks"])
        recipe.unlink()
        state = json.loads((run / "checkpoints" / "step-00000020" / "state.json").read_text())
        facts = {"ranks": values["ranks"], "config": config.to_dict(), **replay.run_facts(run)}
        replay.write_json(folder / "runs" / f"{name}.json", {**facts, "state": state})
        shutil.copy(
            run / "tokenizer" / "model.safetensors", folder / "runs" / f"{name}.safetensors"
        )
        shutil.rmtree(run / "tokenizer")
        shutil.rmtree(run / "checkpoints" / "step-00000020")
        for sample in (run / "samples").glob("*00000020*"):
            sample.unlink()
        metrics = run / "metrics.jsonl"
        metrics.write_text(metrics.read_text().replace(f"{replay.GOLDENS}/", ""))


# Configs


def record_configs(folder: Path) -> None:
    """`configs.json`: today's texts of every recipe, run and job."""
    recipes = ROOT / "tokenizers" / "imagetok" / "recipes"
    runs = {path.stem: load_recipe(path.stem) for path in sorted(recipes.glob("*.yaml"))}
    runs |= {f"run {name}": long_run(values) for name, values in RUNS.items()}
    found: dict[str, Any] = {}
    for name, run in runs.items():
        identity = json.dumps(run.tokenizer.identity(), sort_keys=True)
        found[name] = {
            "values": run.to_dict(),
            "text": run.to_json(),
            "tokenizer_text": run.tokenizer.to_json(),
            "identity": run.tokenizer.identity(),
            "identity_digest": replay.bytes_digest(identity.encode()),
        }
    for name in JOBS:
        job = Job.from_json((folder / "jobs" / name / "job.json").read_text())
        found[f"job {name}"] = {
            "values": job.to_dict(),
            "text": job.to_json(),
            "fingerprint": job.fingerprint,
        }
    replay.write_json(folder / "configs.json", found)


# Answers and refusals

_TRAIN = ["train", "vqvae-shapes"]
_TOKENIZE = ["tokenize", "--tokenizer", "tokenizers/vqvae", "--dataset", "photos"]
_OUT = ["--output-dir", "OUT"]

REFUSED: list[list[str]] = [
    *(["--version"], ["--help"], ["train", "--help"], ["nothing"], ["--nothing"], ["info"]),
    *(["train"], _TRAIN, ["train", "nothing", *_OUT], ["train", "missing.yaml", *_OUT]),
    [*_TRAIN, "train.stepz=3", *_OUT],
    [*_TRAIN, "train.steps", *_OUT],
    [*_TRAIN, "train.steps=many", *_OUT],
    [*_TRAIN, "tokenizer.bottleneck.type=vqq", *_OUT],
    [*_TRAIN, "tokenizer.image_size=[63, 64]", *_OUT],
    [*_TRAIN, "tokenizer.bottleneck.codebook_size=1", *_OUT],
    [*_TRAIN, "train.batch_size=0", *_OUT],
    [*_TRAIN, "train.accumulation=3", *_OUT],
    [*_TRAIN, "train.freeze=[encoder]", *_OUT],
    [*_TRAIN, "train.init_from=missing", *_OUT],
    [*_TRAIN, "train.loss_weights={loss/kl: 1.0}", *_OUT],
    [*_TRAIN, "data.name=missing", *_OUT],
    [*_TRAIN, "data.name=photos", "data.split=nothing", *_OUT],
    [*_TRAIN, "data.lanes=5", *_OUT],
    [*_TRAIN, "--push-every", "3", *_OUT],
    [*_TRAIN, "--output-dir", "runs/vq-rows"],
    [*_TRAIN, "--resume", "--output-dir", "runs/vq-rows"],
    *(["info", "missing"], ["info", "photos"], ["info", "tokenizers/ae"]),
    ["info", "tokenizers/ae", "--tokenizer-revision", "main"],
    ["evaluate", "--tokenizer", "tokenizers/ae"],
    ["evaluate", "--tokenizer", "tokenizers/ae", "--dataset", "missing"],
    ["evaluate", "--tokenizer", "tokenizers/ae", "--dataset", "photos", "--split", "nothing"],
    ["evaluate", "--tokenizer", "tokenizers/ae", "--dataset", "photos", "--dtype", "int8"],
    ["evaluate", "--tokenizer", "tokenizers/ae", "--dataset", "photos", "--device", "nothing"],
    ["reconstruct", "--tokenizer", "tokenizers/ae", "photos/train/05.png", "--output", "OUT.png"],
    ["reconstruct", "--tokenizer", "tokenizers/ae", "photos/train/04.png", "--output", "OUT/x.png"],
    _TOKENIZE,
    ["tokenize", "--tokenizer", "tokenizers/ae", "--dataset", "photos", *_OUT],
    [*_TOKENIZE, *_OUT, "--keep", "nothing"],
    [*_TOKENIZE, *_OUT, "--keep", "image"],
    [*_TOKENIZE, *_OUT, "--resize", "stretch"],
    [*_TOKENIZE, *_OUT, "--rank", "1"],
    [*_TOKENIZE, *_OUT, "--rank", "1", "--world-size", "1"],
    [*_TOKENIZE, *_OUT, "--rows-per-shard", "0"],
    [*_TOKENIZE, *_OUT, "--max-error-rate", "2"],
    [*_TOKENIZE, *_OUT, "--threads", "1"],  # more unreadable rows than allowed
    [*_TOKENIZE, *_OUT, "--tokenizer-revision", "main"],
    [*_TOKENIZE, *_OUT, "--streaming", "--split", "train[:3]"],
    [*_TOKENIZE, "--output-dir", "jobs/rows"],
    [*_TOKENIZE, "--output-dir", "photos"],
    ["tokenize", "--finalize", "jobs/rows-killed"],
    ["tokenize", "--finalize", "photos"],
    *(["verify", "jobs/rows"], ["verify", "photos"], ["verify", "jobs/rows-killed"]),
    ["verify", "jobs/rows", "--deep", "--tokenizer", "tokenizers/dvae"],
    ["decode", "jobs/rows", "--tokenizer", "tokenizers/dvae", "--output", "OUT.png"],
    ["decode", "jobs/rows", "--tokenizer", "tokenizers/vqvae", "--rows", "5:3"],
    ["decode", "jobs/rows", "--tokenizer", "tokenizers/vqvae", "--output", "OUT/x.png"],
    ["decode", "jobs/rows-killed", "--tokenizer", "tokenizers/vqvae"],
    ["push", "tokenizers/ae", "no name"],
    ["push", "photos", "user/name"],
    ["push-dataset", "jobs/rows-killed", "user/name"],
]
"""Commands that answer shortly, most of them by a refusal."""


def record_answers(folder: Path) -> None:
    """`answers.json`: what `info` tells, exit codes of commands, and classes of refusals."""
    info = {}
    for name in TOKENIZERS:
        text = replay.output_of("info", f"tokenizers/{name}", "--json")
        info[name] = json.loads(text)
    ends = []
    for arguments in REFUSED:
        with tempfile.TemporaryDirectory() as place:
            ends.append([arguments, *replay.exit_of(arguments, Path(place) / "out")])
    refused = {name: replay.refusal_of(call) for name, call in replay.refusals().items()}
    values = {"info": info, "ends": ends, "refusals": refused}
    replay.write_json(folder / "answers.json", values)


# Names


def record_names(folder: Path) -> None:
    """`names.json`: what every `__all__` lists, what guides import, parameters and options."""
    package = ROOT / "tokenizers" / "imagetok"
    modules: dict[str, dict[str, str]] = {}
    for path in sorted(package.rglob("*.py")):
        module = ".".join(path.relative_to(package.parent).with_suffix("").parts)
        module = module.removesuffix(".__init__")
        names = [*_listed(path), *(["main"] if module == "imagetok.cli" else [])]
        if module == "imagetok.errors":
            tree = ast.parse(path.read_text())
            names = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
        if names:
            kinds = {name: replay.kind_of(replay.resolve(module, name)) for name in sorted(names)}
            modules[module] = kinds
    imports = sorted(set(_printed_imports()))
    told = {*imports, *(("imagetok", name) for name in modules["imagetok"])}
    told |= {("imagetok.tokenizing", "tokenize_dataset"), ("imagetok.shards", "read_manifest")}
    parameters = {
        f"{module}.{name}": found
        for module, name in sorted(told)
        if (found := replay.signatures(replay.resolve(module, name)))
    }
    commands = ["", *replay.commands()]
    values = {
        "modules": modules,
        "printed_imports": imports,
        "parameters": parameters,
        "options": {name: replay.options_of(name) for name in commands},
    }
    text = json.dumps(values, indent=1)
    (folder / "names.json").write_text(
        re.sub(r"\[\s+(\"[^\[\]]*?)\s+\]", _on_one_line, text) + "\n"
    )


def _on_one_line(match: re.Match[str]) -> str:
    return f"[{' '.join(match[1].split())}]"


def _listed(path: Path) -> list[str]:
    """The names of a module's `__all__`."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    return []


def _printed_imports() -> Iterator[tuple[str, str]]:
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("model_cards/**/*.md")]
    for path in texts:
        for module, names in re.findall(
            r"^from (imagetok[\w.]*) import ([\w, ]+)$", path.read_text(), re.M
        ):
            for name in names.split(","):
                yield module, name.strip()


# All of it

GROUPS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "images": (record_images, ("photos", "tables")),
    "tokenizers": (record_tokenizers, ("tokenizers", "expected")),
    "jobs": (record_jobs, ("jobs",)),
    "runs": (record_runs, ("runs",)),
    "configs": (record_configs, ()),
    "names": (record_names, ()),
    "answers": (record_answers, ()),
}
"""What records each group, and the folders that it makes."""
