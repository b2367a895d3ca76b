"""Grids: a row stands for the product of its axes; the papers' tables are asked for with options their systems know."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from tests.benchmark.made_up import made_up
from tests.runs_helper import refused, zoo
from zoo.benchmark.command import _parse
from zoo.benchmark.plan import Bench, published_columns
from zoo.benchmark.report import write_report
from zoo.benchmark.run import Job
from zoo.configs import instantiated
from zoo.memory.prediction import on_meta
from zoo.training.module import EmotionModule

ROOT = Path(__file__).parents[2]
GRIDS = sorted(f for f in (ROOT / "configs" / "bench").glob("*.yaml") if "\nminiature:" in f.read_text())
DATA = {"class_path": "zoo.data.Synthetic", "init_args": {"train_dialogues": 2, "test_dialogues": 2}}
CONFIG = "model: {class_path: zoo.models.causal_lm.CausalLM}\n"
AXES = {"kind": {"one": {"what": "Kind 1", "model.window": 1}, "two": {"config": ["OVERLAY"]}}, "again": ["a", "b"]}


def plan(*args: object) -> tuple[Bench, list[Job]]:
    bench, _, todo = _parse([str(a) for a in args])
    return bench, todo


def written(folder: Path, rows: dict, **more: object) -> Path:
    """A benchmark with these rows; CONFIG and OVERLAY are files that exist."""
    names = {}
    for name in ("CONFIG", "OVERLAY"):
        names[name] = folder / f"{name.lower()}.yaml"
        names[name].write_text(CONFIG)
    text = yaml.safe_dump({"title": "t", "data": DATA, "rows": rows, **more}, sort_keys=False)
    for name, path in names.items():
        text = text.replace(name, str(path))
    file = folder / "bench.yaml"
    file.write_text(text)
    return file


# ---- what a grid means
def test_a_grid_is_the_product_of_its_axes(tmp_path):
    rows = {
        "train": {"what": "{kind}, {again}", "config": ["CONFIG"], "options": {"model.window": 9}, "grid": AXES},
        "test": {
            "what": "{kind} tested",
            "checkpoint": "run:train.{kind}.b",
            "options": {"model.shots": 2},
            "grid": {"kind": ["one", "two"]},
        },
    }
    bench, todo = plan("--config", written(tmp_path, rows))
    assert list(bench.rows) == ["train.one.a", "train.one.b", "train.two.a", "train.two.b", "test.one", "test.two"]
    assert bench.rows["train.one.a"].what == "Kind 1, a" and bench.rows["train.two.b"].what == "two, b"
    assert bench.rows["train.one.a"].options == {"model.window": 1}  # over the row's
    assert bench.rows["train.two.a"].options == {"model.window": 9}
    assert bench.rows["train.two.a"].config == [str(tmp_path / f"{n}.yaml") for n in ("config", "overlay")]
    assert bench.rows["test.two"].checkpoint == "run:train.two.b"
    assert {job.name: [*job.needed] for job in todo}["test.two"] == ["train.two.b"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"grid": {}}, "its grid is empty"),
        ({"grid": {"a b": {"x": {}}}}, "expected a word of letters"),
        ({"grid": {"a": {}}}, "NAME: {OPTION: VALUE}"),
        ({"grid": {"a": {"x.y": {}}}}, "a value named 'x.y'"),
        ({"grid": {"a": {"x": 3}}}, "a: x is 3"),
        ({"grid": {"a": {"x": {"config": "one.yaml"}}}}, "config is 'one.yaml'; expected a list"),
        ({"grid": {"a": {"x": {"miniature": 1}}}}, "miniature is 1; expected {OPTION: VALUE}"),
        (
            {"grid": {"a": {"x": {"model.lr": 1}}, "b": {"y": {"model.lr": 2}}}},
            "both a x and b y of its grid set model.lr",
        ),
        ({"what": "{c}", "grid": {"a": {"x": {}}}}, "names {c}; its axes are a"),
        ({"grid": {"a": {"x": {"model.start_from": "run:{c}"}}}}, "names {c}; its axes are a"),
        ({"config": None, "checkpoint": "z", "grid": {"a": {"x": {"config": ["CONFIG"]}}}}, "and the row none"),
        ({"published": "farcer: Nobody"}, "is no system of published_results.json"),
        ({"miniature": {"optoins": {}}}, "optoins"),
    ],
)
def test_refused(row, told, tmp_path):
    rows = {"r": {"what": "r", "config": ["CONFIG"], **row}}
    assert told in refused("bench", "--config", written(tmp_path, rows), "--out", tmp_path / "out")


def test_two_rows_of_one_name_are_refused(tmp_path):
    row = {"what": "r", "config": ["CONFIG"]}
    file = written(tmp_path, {"r": {**row, "grid": {"a": ["x"]}}, "r.x": row})
    assert "row r.x stands there twice" in refused("bench", "--config", file)


# ---- small
def test_a_miniature_replaces_what_it_says_and_the_title_names_it(tmp_path):
    rows = {
        "train": {
            "what": "t",
            "size": "7B",
            "config": ["CONFIG"],
            "options": {"model.llm": "large", "model.window": 4},
            "grid": {"face": {"on": {"model.faces": "dlib", "miniature": {"model.faces": "whole"}}, "off": {}}},
            "miniature": {"options": {"model.lr": 0.1}},
        },
        "test": {"what": "t", "checkpoint": "run:train.on", "test_options": {"model.shots": 7}},
    }
    small = {
        "data": {"class_path": "zoo.data.Synthetic", "init_args": {"corpus_seed": 5}},
        "options": {"model.llm": "s"},
    }
    file = written(tmp_path, rows, miniature=small)
    bench, _ = plan("--config", file)
    assert bench.rows["train.on"].options == {"model.llm": "large", "model.window": 4, "model.faces": "dlib"}
    assert bench.title == "t" and bench.rows["train.on"].size == "7B"
    bench, todo = plan("--config", file, "--small", "true")
    assert bench.rows["train.on"].options == {
        "model.llm": "s",
        "model.window": 4,
        "model.faces": "whole",
        "model.lr": 0.1,
    }
    assert bench.rows["train.off"].options == {"model.llm": "s", "model.window": 4, "model.lr": 0.1}
    assert bench.rows["test"].options == {} and bench.rows["test"].test_options == {"model.shots": 7}
    assert {row.size for row in bench.rows.values()} == {"small"}
    assert "not paper size" in bench.title and "the corpus, model.faces, model.llm, model.lr" in bench.title
    assert todo[0].data["test"]["init_args"]["corpus_seed"] == 5
    assert "bench-small" in str(todo[0].home)


def test_a_miniature_may_stand_alone(tmp_path):
    rows = {
        "one": {"what": "o", "config": ["CONFIG"], "miniature": {"alone": True, "options": {"model.window": 3}}},
        "two": {"what": "t", "config": ["CONFIG"], "miniature": {"options": {"model.window": 3}}},
    }
    file = written(tmp_path, rows, miniature={"data": DATA, "options": {"model.llm": "s"}})
    bench, _ = plan("--config", file, "--small", "true")
    assert bench.rows["one"].options == {"model.window": 3}
    assert bench.rows["two"].options == {"model.llm": "s", "model.window": 3}


def test_small_without_a_miniature_is_refused(tmp_path):
    file = written(tmp_path, {"r": {"what": "r", "config": ["CONFIG"]}})
    assert "has no section miniature" in refused("bench", "--config", file, "--small", "true")


# ---- the papers' grids
@pytest.fixture(scope="module")
def with_sitcom(tmp_path_factory):
    """A folder as the heads of the files tell a user to make it: with runs/sitcom-small."""
    folder = tmp_path_factory.mktemp("with_sitcom")
    for name in ("configs", "checkpoints"):
        (folder / name).symlink_to(ROOT / name)
    zoo("prepare", "synthetic", "--dialogues", 3, "--shares", 0.34, 0.33, 0.33, "--out", folder / "runs/sitcom-small")
    return folder


@pytest.fixture()
def at_root(with_sitcom, monkeypatch):
    monkeypatch.chdir(with_sitcom)


def test_there_are_grids():
    papers = {"farcer", "selector", "merit", "emotion_qwen", "dialoguellm", "instructerc"}
    assert {next(p for p in papers if f.stem.startswith(p)) for f in GRIDS} == papers


def arguments(job: Job, todo: Sequence[Job], data: Path) -> list[str] | None:
    """What `zoo fit` is asked to parse: a row's training, or for a test the training it stands on with the options of
    the test. None for a checkpoint from elsewhere."""
    row = job.row
    if row.config is None:
        trained = next((j for j in job.needed.values() if j.row.config), None)
        if trained is None:
            return None
        data.write_text(yaml.safe_dump({"data": job.data["test"]}))
        return [*trained.fit_arguments(data), *job.options(row.options), *job.options(row.test_options)]
    data.write_text(yaml.safe_dump({"data": job.data["train"]}))
    return [*job.fit_arguments(data), *job.options(row.test_options)]


@pytest.mark.parametrize("small", [False, True], ids=["paper", "small"])
@pytest.mark.parametrize("file", GRIDS, ids=lambda f: f.stem)
def test_every_row_is_known_to_its_system(file, small, at_root, tmp_path, capsys):
    bench, todo = plan("--config", file, "--small", json.dumps(small), "--seeds", "[0]", "--out", tmp_path / "out")
    assert any(row.published for row in bench.rows.values())
    parsed_shapes = set()
    for job in todo:
        args = arguments(job, todo, tmp_path / "data.yaml")
        shape = str(args).replace(job.name, "")
        if args is None or shape in parsed_shapes:
            continue
        parsed_shapes.add(shape)
        with pytest.raises(SystemExit) as leaving:
            zoo("fit", *args, "--print_config")
        assert leaving.value.code in (0, None), f"{job}: {capsys.readouterr().err}"
        config = yaml.safe_load(capsys.readouterr().out)
        assert config["model"]["class_path"].startswith("zoo.models.")
        if small and "llm" in config["model"]["init_args"]:
            assert config["model"]["init_args"]["llm"] == "tiny-llama-sitcom"


# What a grid asks the hub for -> the same sizes without weights
PAPER_SIZES = {
    "meta-llama/Llama-2-7b-hf": "shape:llama-2-7b",
    "meta-llama/Meta-Llama-3-8B": "shape:llama-3-8b",
    "meta-llama/Meta-Llama-3-8B-Instruct": "shape:llama-3-8b",
    "Qwen/Qwen2-7B": "shape:qwen2-7b",
    "Qwen/Qwen2.5-7B-Instruct": "shape:qwen2.5-7b",
    "Qwen/Qwen2.5-32B-Instruct": "shape:qwen2.5-32b",
    "THUDM/glm-4-9b-hf": "shape:glm-4-9b",
    "trpakov/vit-face-expression": "shape:vit-base-face",
    "openai/clip-vit-large-patch14": "shape:clip-vit-large-patch14",
    "Qwen/Qwen2.5-VL-7B-Instruct": "shape:qwen2.5-vl-vision",
    "facebook/hubert-base-ls960": "shape:hubert-base",
}
BACKBONES = ("llm", "vision", "audio")
ARCHITECTURE = (
    *BACKBONES,
    "lora",
    "projector",
    "match_hybrid",
    "layers",
    "quantize",
)  # what decides a row's parameters


@pytest.mark.parametrize("file", GRIDS, ids=lambda f: f.stem)
def test_the_systems_of_a_grid_are_built_at_paper_size(file, at_root, tmp_path, capsys):
    """On the meta device, without weights. Image-text models are left out, whose sizes come with their weights."""
    _, todo = plan("--config", file, "--seeds", "[0]", "--out", tmp_path / "out")
    billions = {}
    for job in todo:
        args = arguments(job, todo, tmp_path / "data.yaml")
        if args is None:
            continue
        with pytest.raises(SystemExit):
            zoo("fit", *args, "--print_config")
        section = yaml.safe_load(capsys.readouterr().out)["model"]
        options = section["init_args"] | {"start_from": None}
        key = json.dumps([section["class_path"], *(options.get(name) for name in ARCHITECTURE)])
        if key in billions or "vlm" in options or section["class_path"].endswith("Adapters"):
            continue
        options |= {name: PAPER_SIZES[options[name]] for name in BACKBONES if options.get(name)}
        for name in ("judge", "face_capture"):
            options.pop(name, None)
        system = instantiated("model", EmotionModule, section | {"init_args": options}, None)
        billions[key] = sum(p.numel() for p in on_meta(system).parameters()) / 1e9
    assert billions or file.stem.endswith("_tests")  # which tests what another file trains
    assert all(6 < size < 34 for size in billions.values()), billions


@pytest.mark.parametrize(
    ("name", "paper", "systems"),
    [
        ("farcer_meld", "farcer", 16),
        ("farcer_iemocap", "farcer", 16),
        ("selector_meld", "grpo_selector", 7),
        ("merit_mosei", "merit", 5),
        ("emotion_qwen", "emotion_qwen", 10),
    ],
)
def test_the_published_rows_of_a_table_have_ours_beside_them(name, paper, systems, at_root):
    bench, _ = plan("--config", f"configs/bench/{name}.yaml")
    published = {row.published for row in bench.rows.values() if row.published}
    assert len(published) == systems and all(s.startswith(f"{paper}: ") for s in published)
    assert all(published_columns(s) for s in published)


def test_published_columns_have_protocol_and_n():
    columns = published_columns("farcer: Base FARCER - 3 shot")
    meld = [c for c in columns if c["corpus"] == "MELD"]
    assert [c["value"] for c in meld if c["name"] in ("accuracy", "weighted F1")] == [56.79, 56.41]
    assert {c["n"] for c in meld} == {280} and "last utterance" in meld[0]["protocol"]
    assert {c["table"] for c in columns} == {"Table IV, MELD", "Table IV, IEMOCAP"}
    assert published_columns("farcer: nobody") == published_columns("nobody: x") == []


def papers_page(folder: Path, **row: object) -> str:
    """The words of FARCER's own rows on the Papers page, on MELD's last utterances."""
    results, _ = made_up(n=280, dialogues=28, seeds=1, shown=0)
    results |= {"corpus": "meld", "eval_protocol": "last_utterance"}
    for made in results["rows"]:
        made |= row if made["name"] == "farcer" else {}
    write_report(results, folder, [])
    page = (folder / "report.html").read_text()
    ours = page[page.index('id="zoo.models.farcer-ours"') :]
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", ours[: ours.index("</table>")])))


def test_the_papers_page_shows_the_published_numbers_of_a_row(tmp_path):
    page = papers_page(tmp_path, published="farcer: Base FARCER - 3 shot", size="8B")
    assert "8B, 3.15 M parameters" in page and "not comparable" not in page
    assert "Table IV, MELD: F1 neutral 70.59 (n 280)" in page and "weighted F1 56.41 (n 280)" in page
    assert "the last utterance of each dialogue" in page and "IEMOCAP" not in page
    small = papers_page(tmp_path, published="farcer: Base FARCER - 3 shot", size="small")
    assert "small, 3.15 M parameters: not comparable" in small and "weighted F1 56.41 (n 280)" in small
