"""Model cards: every figure from the files, code that runs, and nothing of a user that gets out."""

from __future__ import annotations

import ast
import copy
import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from jinja2 import UndefinedError
from markdown_it import MarkdownIt
from markdown_it.token import Token

from imagetok import ImageTokenizer
from imagetok.cards import render_model_card, template, write_model_card
from imagetok.cards.markdown import plain
from imagetok.config import TokenizerConfig, load_recipe, recipe_names
from imagetok.errors import HubAccessError
from imagetok.hub.card_merge import CARD_BEGIN, CARD_END
from imagetok.metrics import MetricConfig
from imagetok.training import train
from nasty_texts import NASTY
from readme_blocks import Block, blocks, commands
from tiny_runs import SYSTEMS, tiny_run, tiny_values

MARKDOWN = MarkdownIt("commonmark").enable("table")
HEADINGS = [
    "Token grid and vocabulary",
    "Use",
    "Training",
    "Results",
    "Codebook",
    "Limitations",
    "Intended use",
    "Licence",
    "Citation",
]
FIGURES = {"PSNR", "SSIM", "L1", "rFID", "LPIPS", "bits per dimension", "bits per pixel of the ids"}
CODEBOOK = {"codebook usage", "codebook perplexity"}
DISCRETE = {"vqvae", "dvae"}
TEXTS = pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)


@dataclass(frozen=True)
class Trained:
    """A tokenizer that a run exported.

    Attributes:
        folder: Its folder.
        config: Its configuration.
        evaluation: What its evaluation.json holds.
    """

    folder: Path
    config: TokenizerConfig
    evaluation: dict[str, Any]

    def card(self, **changes: Any) -> str:
        """A card of it, with entries of the evaluation changed."""
        return render_model_card(self.config, {**self.evaluation, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """The exported tokenizer of a system, trained once."""
    done: dict[str, Trained] = {}

    def get(system: str) -> Trained:
        if system not in done:
            config = tiny_run(system, steps=2)
            folder = tmp_path_factory.mktemp(system) / "run"
            folder = train(config, folder, progress=False).tokenizer_dir
            evaluation = json.loads((folder / "evaluation.json").read_text())
            done[system] = Trained(folder, config.tokenizer, evaluation)
        return done[system]

    return get


def metadata(card: str) -> dict[str, Any]:
    """The metadata of a card."""
    fence, rest = card.split("\n", 1)
    assert fence == "---"
    values = yaml.safe_load(re.split(r"^---$", rest, maxsplit=1, flags=re.M)[0])
    assert isinstance(values, dict)
    return values


def body(card: str) -> str:
    """The text of a card under its metadata."""
    return re.split(r"^---$", card, maxsplit=2, flags=re.M)[2]


def section(card: str, heading: str) -> str:
    """The text under a heading."""
    return re.split(r"^## ", card.split(f"\n## {heading}\n")[1], maxsplit=1, flags=re.M)[0]


def rows(text: str) -> dict[str, str]:
    """The cells of tables of two columns; names do not repeat."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line[:1] == "|"]
    pairs = [[cell.strip() for cell in line] for line in lines if "---" not in line[0]]
    return {name: value for name, value in pairs if value != "value" and name}


def leaves(values: Any) -> Iterator[Any]:
    """Everything in a JSON-like value that is neither a list nor an object."""
    if isinstance(values, Mapping):
        values = list(values.values())
    if isinstance(values, list):
        for value in values:
            yield from leaves(value)
    else:
        yield values


def with_texts(values: Any, text: str) -> Any:
    """The same JSON-like value with every text in it replaced."""
    if isinstance(values, dict):
        return {key: with_texts(value, text) for key, value in values.items()}
    if isinstance(values, list):
        return [with_texts(value, text) for value in values]
    return text if isinstance(values, str) else values


def shape(tokens: list[Token]) -> list[str]:
    """What a Markdown text consists of, whatever it says."""
    kinds = []
    for token in tokens:
        kinds += [token.type, *(child.type for child in token.children or ())]
    return kinds


# Figures


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_value_of_a_card_stands_in_the_evaluation(
    trained: Callable[[str], Trained], system: str
) -> None:
    done = trained(system)
    known = list(leaves(done.evaluation))
    texts = {plain(value) for value in known if isinstance(value, str)}
    numbers = {
        f"{v:,}" if isinstance(v, int) else f"{v:.6g}" for v in known if type(v) in (int, float)
    }
    numbers |= {" x ".join(map(str, done.evaluation["protocol"]["image_size"]))}
    units = r"( dB| bits| codes| of the codes| of the pixel range)?"
    count = 0
    for heading in ("Training", "Results", "Codebook"):
        for name, value in rows(section(done.card(), heading)).items():
            count += 1
            if value in ("not measured", "does not apply"):
                continue
            if code := re.match("`(.*)`", value):
                assert code[1] in texts, name
            else:
                assert re.sub(f"{units}$", "", value) in numbers, name
    assert count >= 35


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_value_of_the_evaluation_stands_in_the_card(
    trained: Callable[[str], Trained], system: str
) -> None:
    done = trained(system)
    text = body(done.card())
    for value in leaves(done.evaluation):
        if isinstance(value, str):
            assert plain(value) in text or value in (*DISCRETE, "builtin")
        elif value is not None:
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
            assert re.search(rf"(?<![\d.]){re.escape(shown)}(?![\d.]\d)", text), value


def test_a_figure_that_changes_changes_its_line_alone(trained: Callable[[str], Trained]) -> None:
    done = trained("vqvae")
    before, after = (done.card(psnr=value) for value in (20.0, 21.5))
    changed = [
        (one, other)
        for one, other in zip(before.splitlines(), after.splitlines(), strict=True)
        if one != other
    ]
    assert [line.strip() for line in changed[0]] == ["value: 20.0", "value: 21.5"]
    assert changed[1:] == [("| PSNR | 20 dB |", "| PSNR | 21.5 dB |")]


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_grid_and_the_vocabulary_are_those_of_the_tokenizer(
    trained: Callable[[str], Trained], system: str
) -> None:
    done = trained(system)
    tokenizer = ImageTokenizer.from_pretrained(done.folder)
    told = rows(section(done.card(), "Token grid and vocabulary"))
    height, width = tokenizer.grid_size
    assert told["grid"] == f"{height} x {width} = {tokenizer.num_tokens} positions"
    assert told["images"].startswith("{} x {} pixels".format(*tokenizer.image_size))
    factor = tokenizer.downsample_factor
    assert told["pixels per position"] == f"{factor} x {factor}"
    if system in DISCRETE:
        assert told["codebook"] == f"{tokenizer.codebook_size} codes"
    else:
        assert told["codebook"] == "none: the latents are continuous"
        assert told["latents per position"] == str(tokenizer.bottleneck.latent_dim)


@pytest.mark.parametrize("evaluation", [None, {}, [], "text", {"psnr": None, "protocol": 3}])
def test_what_was_not_measured_says_so(evaluation: Any) -> None:
    card = render_model_card(tiny_run("vqvae").tokenizer, evaluation)
    figures = rows(section(card, "Results"))
    codebook = rows(section(card, "Codebook"))
    asked = {name: value for name, value in {**figures, **codebook}.items() if name != "PSNR"}
    assert asked.keys() >= FIGURES - {"PSNR"} | CODEBOOK
    assert {asked[name] for name in FIGURES - {"PSNR"} | CODEBOOK} == {"not measured"}
    void = isinstance(evaluation, dict) and "psnr" in evaluation
    assert figures["PSNR"] == ("does not apply" if void else "not measured")
    assert "How it was trained is not recorded." in card
    assert "model-index" not in metadata(card)
    assert ("reconstructions.png" in card) == void


def test_what_a_model_cannot_have_does_not_apply(trained: Callable[[str], Trained]) -> None:
    told = {system: rows(section(trained(system).card(), "Results")) for system in SYSTEMS}
    absent = {s: {name for name in t if t[name] == "does not apply"} for s, t in told.items()}
    bits = {"bits per dimension", "bits per pixel of the ids"}
    assert absent == {
        "ae": bits,
        "vae": {"bits per pixel of the ids"},
        "vqvae": set(),
        "dvae": set(),
    }
    unmeasured = {s: {name for name in t if t[name] == "not measured"} for s, t in told.items()}
    assert unmeasured == {s: {"rFID", "LPIPS"} for s in SYSTEMS}


KINDS: list[Any] = [None, 3, True, [], {}, [[1]], {"a": {}}, 10**400, "a", "20.0"]
KINDS += [float("nan"), float("inf")]


@pytest.mark.parametrize("wrong", KINDS[2:], ids=range(2, len(KINDS)))
def test_an_entry_of_another_kind_counts_as_not_measured(
    trained: Callable[[str], Trained], wrong: Any
) -> None:
    card = trained("vqvae").card(psnr=wrong, codebook_usage=wrong, num_images=wrong)
    assert rows(section(card, "Results"))["PSNR"] == "not measured"
    assert rows(section(card, "Codebook"))["codebook usage"] == "not measured"
    (result,) = metadata(card)["model-index"][0]["results"]
    assert {metric["type"] for metric in result["metrics"]}.isdisjoint({"psnr", "codebook_usage"})


@pytest.mark.parametrize("wrong", KINDS, ids=range(len(KINDS)))
def test_no_evaluation_keeps_a_card_from_being_written(
    trained: Callable[[str], Trained], wrong: Any
) -> None:
    done = trained("dvae")

    def damaged(values: Any, places: list[str]) -> Iterator[dict[str, Any]]:
        for key, value in values.items():
            changed = copy.deepcopy(done.evaluation)
            inner = changed
            for place in places:
                inner = inner[place]
            inner[key] = wrong
            yield changed
            if isinstance(value, dict):
                yield from damaged(value, [*places, key])

    expected = re.findall("^#.*", done.card(), re.M)
    for evaluation in damaged(done.evaluation, []):
        card = render_model_card(done.config, evaluation)
        assert re.findall("^#.*", card, re.M) == expected
        metadata(card)


def test_equal_evaluations_give_equal_cards(trained: Callable[[str], Trained]) -> None:
    done = trained("vqvae")
    before = copy.deepcopy(done.evaluation)
    again = TokenizerConfig.from_json(done.config.to_json())
    assert render_model_card(again, before, "user/name") == render_model_card(
        done.config, done.evaluation, "user/name"
    )
    assert before == done.evaluation
    assert (done.folder / "README.md").read_text() == done.card()


def test_levels_and_metrics_from_elsewhere_have_lines_of_their_own(
    trained: Callable[[str], Trained],
) -> None:
    class BrightnessConfig(MetricConfig):
        title: ClassVar[str] = "brightness"
        unit: ClassVar[str] = "cd"
        protocol: ClassVar[str] = "looked at"
        type: Literal["test_card_brightness"] = "test_card_brightness"

    done = trained("vqvae")
    figures = {"test_card_brightness": 2.5, "codebook_usage/0": 0.25, "codebook_usage/1": None}
    protocol = done.evaluation["protocol"] | {"test_card_brightness": "looked at"}
    card = done.card(**figures, protocol=protocol)
    results = rows(section(card, "Results"))
    assert results["brightness"] == "2.5 cd"
    assert results["about brightness"] == "`looked at`"
    codebook = rows(section(card, "Codebook"))
    assert codebook["codebook usage, 0"] == "0.25 of the codes"
    assert codebook["codebook usage, 1"] == "does not apply"
    metrics = metadata(card)["model-index"][0]["results"][0]["metrics"]
    assert {"type": "test_card_brightness", "value": 2.5, "name": "brightness"} in metrics
    assert "brightness" not in rows(section(done.card(), "Results"))


def test_a_card_says_how_rows_were_held_out(trained: Callable[[str], Trained]) -> None:
    done = trained("vqvae")
    told = {"holdout": "10%", "holdout_salt": "2", "stratify": True}
    results = rows(section(done.card(protocol=done.evaluation["protocol"] | told), "Results"))
    assert results["share of `train` held out as `holdout`"] == "`10%`"
    assert results["salt of the holdout"] == "`2`"
    assert results["rows of each label held out"] == "the same share"
    assert not [title for title in rows(section(done.card(), "Results")) if "held out" in title]


# Templates


@pytest.mark.parametrize("place", ["{{ name }}", "{{ missing | code }}"])
def test_a_template_writes_nothing_unescaped_and_nothing_undefined(place: str) -> None:
    environment = template._environment()
    assert environment.from_string("{{ name | code }} {{ 3 }}").render(name="a`b") == "`a'b` 3"
    with pytest.raises((TypeError, UndefinedError)):
        environment.from_string(place).render(name="a")


# Metadata


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_hub_client_reads_the_metadata(trained: Callable[[str], Trained], system: str) -> None:
    done = trained(system)
    text = render_model_card(done.config, done.evaluation, "user/name")
    card = ModelCard(text)  # refuses a model-index that it does not understand
    assert card.data.library_name == "imagetok"
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert card.data.license == "unknown"
    assert "imagetok" in card.data.tags
    assert card.data.datasets is None
    assert card.data.model_name == "user/name"
    protocol, figures = done.evaluation["protocol"], {}
    for result in card.data.eval_results:
        assert result.task_type == "image-to-image"
        assert result.dataset_name == result.dataset_type == protocol["dataset"]
        assert result.dataset_split == protocol["split"]
        assert result.dataset_args == {
            "images": done.evaluation["num_images"],
            "fingerprint": protocol["dataset_fingerprint"],
        }
        figures[result.metric_type] = result.metric_value
    numbers = {key: value for key, value in done.evaluation.items() if isinstance(value, float)}
    assert figures == numbers  # to the last digit
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


@pytest.mark.parametrize(
    ("name", "source", "datasets", "kind"),
    [
        ("user/data", "hub", ["user/data"], "user/data"),
        ("mnist", "hub", ["mnist"], "mnist"),
        ("mnist", "local", None, "local:mnist"),
        ("builtin:shapes?size=16", "builtin", None, "builtin:shapes?size=16"),
        ("user/data", None, None, "user/data"),
        ("../user/data", "hub", None, "data"),
        ("", "hub", None, "unnamed"),
    ],
)
def test_only_a_dataset_of_the_hub_is_linked(
    trained: Callable[[str], Trained],
    name: str,
    source: str | None,
    datasets: list[str] | None,
    kind: str,
) -> None:
    done = trained("ae")
    data = {"name": name, "source": source}
    protocol = {"dataset": name, "dataset_source": source, "split": "train"}
    told = metadata(done.card(protocol=protocol, training={"data": data}))
    assert told.get("datasets") == datasets
    assert told["model-index"][0]["results"][0]["dataset"]["type"] == kind


# Texts of users


@pytest.mark.parametrize("system", ["vqvae", "vae"])
@TEXTS
def test_texts_stay_where_they_stand(
    trained: Callable[[str], Trained], system: str, text: str
) -> None:
    done = trained(system)
    before = done.evaluation | {"training": done.evaluation["training"] | {"init_from": "a"}}
    calm = render_model_card(done.config, with_texts(before, "calm"), "user/name")
    card = render_model_card(done.config, with_texts(before, text), text or "''")
    card.encode()
    told, expected = metadata(card), metadata(calm)
    assert told.keys() == expected.keys()
    assert told["tags"] == expected["tags"]
    assert (
        told["model-index"][0]["results"][0]["metrics"]
        == expected["model-index"][0]["results"][0]["metrics"]
    )
    kinds, others = (shape(MARKDOWN.parse(body(part))) for part in (card, calm))
    assert kinds.count("html_block") == 2  # the markers
    assert "html_inline" not in kinds
    if text:  # without a name of a recipe there is no command
        assert kinds == others
    assert re.findall("^## (.*)", card, re.M) == HEADINGS
    assert (card.count(CARD_BEGIN), card.count(CARD_END)) == (1, 1)


@TEXTS
def test_the_code_of_a_card_names_the_repository(text: str) -> None:
    card = render_model_card(tiny_run("ae").tokenizer, None, text)
    (block,) = [block for block in blocks(card) if block.language == "python"]
    literals = [
        node.value
        for node in ast.walk(ast.parse(block.text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert (text or ".") in literals


@pytest.mark.parametrize("name", sorted(NASTY.keys() - {"controls", "surrogate", "empty"}))
def test_the_command_of_a_card_has_the_words_that_were_recorded(
    trained: Callable[[str], Trained], name: str
) -> None:
    training = {"recipe": "vqvae-shapes", "changes": [f"data.split={NASTY[name]}", "train.steps=4"]}
    card = trained("vqvae").card(training=training)
    (block,) = [block for block in blocks(card) if block.language == "bash"]
    script = f"""imagetok() {{ printf '%s\\0' "$@"; }}; {block.text}"""
    run = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        check=True,
        env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
    )
    assert run.stdout.decode().split("\0")[:-1] == [
        "train",
        "vqvae-shapes",
        *training["changes"],
        "--output-dir",
        "runs/vqvae-shapes",
    ]


# Folders, hosts and tokens


@pytest.mark.parametrize(
    "name",
    [
        "/srv/me/photos",
        "/srv/me/photos/",
        "~/photos",
        "../photos",
        "a/b/photos",
        "C:\\Users\\me\\photos",
        "file:///srv/me/photos",
        "me@host.example:/data/photos",
        "\\\\host\\share\\photos",
    ],
)
def test_a_path_in_an_evaluation_is_told_by_its_last_part(
    trained: Callable[[str], Trained], name: str
) -> None:
    done = trained("vqvae")
    protocol = done.evaluation["protocol"] | {"dataset": name, "dataset_source": "local"}
    training = done.evaluation["training"] | {"data": {"name": name}, "init_from": name}
    card = done.card(protocol=protocol, training=training)
    assert metadata(card)["model-index"][0]["results"][0]["dataset"]["name"] == "photos"
    assert rows(section(card, "Results"))["dataset"].startswith("`photos`")
    training_rows = rows(section(card, "Training"))
    assert training_rows["dataset"] == training_rows["started from"] == "`photos`"
    for part in ("/srv", "Users", "host", "me@", "file:", "~", ".."):
        assert part not in card, part


# Code


@pytest.mark.parametrize("repo_id", [None, "user/name"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_code_of_a_card_runs_as_it_is_written(
    system: str,
    channels: int,
    repo_id: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = tiny_values(system, bottleneck={"latent_dim": 5})["tokenizer"]
    config = TokenizerConfig.from_dict(values | {"image_size": [16, 24], "channels": channels})
    ImageTokenizer.from_config(config).save_pretrained(tmp_path / (repo_id or "."))
    monkeypatch.chdir(tmp_path)
    card = render_model_card(config, None, repo_id)
    (block,) = [block for block in blocks(card) if block.language == "python"]
    assert f'from_pretrained("{repo_id or "."}")' in block.text
    names: dict[str, Any] = {}
    exec(block.text, names)
    check_comments(block, names)
    assert names["image"].size == names["decoded"].size == (24, 16)
    assert names["image"].mode == {1: "L", 3: "RGB", 4: "RGBA"}[channels]


def check_comments(block: Block, names: dict[str, Any]) -> None:
    """Compare what comments say of tensors with the tensors."""
    said = re.findall(
        r"^(\w+) = .*  # (int64|float) \(([\d, ]+)\)(?:, each in \[0, (\d+)\))?", block.text, re.M
    )
    assert said
    for name, kind, sides, size in said:
        tensor = names[name]
        assert isinstance(tensor, torch.Tensor)
        assert tensor.dtype == (torch.int64 if kind == "int64" else torch.float32)
        assert list(tensor.shape) == [int(side) for side in sides.split(",")]
        assert not size or int(size) == names["tok"].codebook_size
    if found := re.search(r"sequence = .*  # the (\d+) ids", block.text):
        assert list(names["sequence"].shape) == [int(found[1])]


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_a_card(name: str) -> None:
    config = load_recipe(name).tokenizer
    card = render_model_card(config, None)
    assert re.findall("^## (.*)", card, re.M) == HEADINGS
    for block in blocks(card):
        if block.language == "python":
            compile(block.text, "README.md", "exec")
    assert max(map(len, card.split("```bibtex")[0].splitlines())) < 700


def test_the_command_trains_what_the_run_trained(trained: Callable[[str], Trained]) -> None:
    card = trained("vqvae").card()
    (block,) = [block for block in blocks(card) if block.language == "bash"]
    ((program, command, recipe, *overrides, option, _),) = commands(block.text)
    assert (program, command, option) == ("imagetok", "train", "--output-dir")
    config, run = load_recipe(recipe, overrides), tiny_run("vqvae", steps=2)
    assert config.tokenizer == run.tokenizer
    assert config.data == run.data
    assert config.train.optimizer == run.train.optimizer


@pytest.mark.parametrize(
    ("system", "changes", "papers"),
    [
        ("ae", {}, set()),
        ("ae", {"likelihood": {"type": "mse", "scale": "learnt"}}, {"2006.13202"}),
        ("vae", {}, {"1312.6114", "2006.13202"}),
        ("vae", {"likelihood": {"type": "l1"}}, {"1312.6114"}),
        ("dvae", {}, {"2102.12092", "1611.01144", "1312.6114"}),
        ("vqvae", {}, {"1711.00937", "1906.00446"}),
        ("vqvae", {"codebook": "loss"}, {"1711.00937"}),
        (
            "vqvae",
            {"codebook": "loss", "gradient": "rotation"},
            {"1711.00937", "2410.06424"},
        ),
    ],
)
def test_the_papers_are_those_that_the_config_stands_on(
    system: str, changes: dict[str, Any], papers: set[str]
) -> None:
    values = tiny_values(system)["tokenizer"]
    if "likelihood" in changes:
        values = values | changes
    else:
        values = values | {"bottleneck": {**values["bottleneck"], **changes}}
    card = render_model_card(TokenizerConfig.from_dict(values), None)
    text = section(card, "Citation")
    assert set(re.findall(r"https://arxiv\.org/abs/([\d.]+)", text)) == papers
    assert set(re.findall(r"eprint = \{([\d.]+)\}", text)) == papers
    assert text.count("{") == text.count("}")
    assert len(re.findall("^@", text, re.M)) == len(papers) + (system == "ae")


# Cards in folders


def test_what_people_wrote_stays_when_a_card_is_written_again(
    trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    done = trained("vqvae")
    write_model_card(tmp_path, done.config, None)
    card = tmp_path / "README.md"
    text = card.read_bytes().replace(b"license: unknown", b"license: mit")
    card.write_bytes(text + b"\nMine \xff below.\n")
    write_model_card(tmp_path, done.config, done.evaluation, "user/name")
    expected = render_model_card(done.config, done.evaluation, "user/name")
    expected = expected.replace("license: unknown", "license: mit")
    assert card.read_bytes() == expected.encode() + b"\nMine \xff below.\n"


def test_metadata_that_people_broke_is_neither_lost_nor_pushed(
    trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text("---\na: b: c\n---\n")
    with pytest.raises(HubAccessError, match="not valid YAML"):
        write_model_card(tmp_path, trained("ae").config, None)
    assert (tmp_path / "README.md").read_text() == "---\na: b: c\n---\n"
