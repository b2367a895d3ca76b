"""A benchmark file says what it means, and one that could not be run to its end is refused before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.runs_helper import refused
from zoo.benchmark.command import parser
from zoo.benchmark.grids import expand
from zoo.benchmark.plan import Bench, flags

BENCHES = sorted((Path(__file__).parents[2] / "configs" / "bench").glob("*.yaml"))
DATA = {"class_path": "zoo.data.Synthetic", "init_args": {"train_dialogues": 2, "test_dialogues": 2}}


def written(folder: Path, **rows: dict) -> Path:
    """A benchmark with these rows; ``CONFIG`` in a row is a file that exists."""
    config = folder / "config.yaml"
    config.write_text("model: {class_path: zoo.models.causal_lm.CausalLM}\n")
    file = folder / "bench.yaml"
    text = yaml.safe_dump({"title": "t", "data": DATA, "rows": {n: {"what": n, **row} for n, row in rows.items()}})
    file.write_text(text.replace("CONFIG", str(config)))
    return file


def test_shipped_files_are_whole():
    """Every row of every shipped benchmark stands on a config that exists and on rows that are there."""
    assert len(BENCHES) >= 3
    for file in BENCHES:
        said = yaml.safe_load(file.read_text())
        assert file.read_text().startswith("# ")
        if "root" in said["data"]["init_args"]:  # the corpus is made or bought by the user
            said["data"] = DATA
        made = parser()
        config = made.parse_object(said)
        made.validate(config)
        config = expand(config, small=False)
        options = made.instantiate(config)
        bench = Bench(**{name: options[name] for name in Bench.__dataclass_fields__})
        bench.check()
        assert sorted(bench.order()) == sorted(config.rows)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ({}, "no row to rank"),
        ({"a": {}}, "row a: expected either config"),
        ({"a": {"config": ["CONFIG"], "checkpoint": "x"}}, "got both"),
        ({"a": {"config": ["absent.yaml"]}}, "absent.yaml does not exist"),
        ({"a/b": {"config": ["CONFIG"]}}, "names a folder"),
        ({"a": {"config": ["CONFIG"], "seeds": [1, 1]}}, "expected different ones"),
        ({"a": {"checkpoint": "x", "adapt": True}}, "this one is not trained"),
        ({"a": {"config": ["CONFIG"], "options": {"data.class_path": "MELD"}}}, "class_path is the benchmark's own"),
        ({"a": {"config": ["CONFIG"], "options": {"trainer.logger": False}}}, "trainer.logger is the benchmark's own"),
        ({"a": {"config": ["CONFIG"], "options": {"model.start_from": "run:b"}}}, "run:b names no row; there are a"),
        (
            {"a": {"checkpoint": "x"}, "b": {"config": ["CONFIG"], "options": {"model.start_from": "run:a"}}},
            "row a is not trained",
        ),
        (
            {
                "a": {"config": ["CONFIG"], "options": {"model.start_from": "run:b"}},
                "b": {"config": ["CONFIG"], "options": {"model.start_from": "run:a"}},
            },
            "in a circle: a, b",
        ),
        (
            {
                "a": {"config": ["CONFIG"], "seeds": [0, 1]},
                "b": {"config": ["CONFIG"], "seeds": [2], "options": {"model.start_from": "run:a"}},
            },
            "needs row a, which has the seeds [0, 1]",
        ),
        ({"a": {"config": ["CONFIG"], "hidden": True}}, "no row to rank"),
        ({"a": {"checkpoint": "x", "verb": "fit"}, "b": {"checkpoint": "x"}}, "verb fit only trains"),
        (
            {
                "a": {"checkpoint": "x", "test_options": {"model.selection": "results:b"}},
                "b": {"config": ["CONFIG"], "verb": "fit"},
            },
            "row b is only trained (verb fit)",
        ),
        ({"a": {"config": ["CONFIG"], "optoins": {}}}, "optoins"),
    ],
)
def test_refused(rows, told, tmp_path):
    message = refused("bench", "--config", written(tmp_path, **rows), "--out", tmp_path / "out")
    assert told in message
    assert not (tmp_path / "out").exists()


def test_unknown_names_are_refused(tmp_path):
    file = written(tmp_path, a={"config": ["CONFIG"]})
    assert "no row c; there are a" in refused("bench", "--config", file, "--only=[c]", "--out", tmp_path / "out")
    assert "no row c" in refused("bench", "--config", file, "--redo=[c]", "--out", tmp_path / "out")
    assert "at least one" in refused("bench", "--config", file, "--jobs=0", "--out", tmp_path / "out")


def test_flags_are_read_back_as_they_were():
    options = {
        "model.lr": 1e-3,
        "model.lora": None,
        "model.reward_funcs": ["a.b"],
        "model.llm": "tiny-llama",
        "x": True,
    }
    read = {f.removeprefix("--").partition("=")[0]: yaml.safe_load(f.partition("=")[2]) for f in flags(options)}
    assert read == options
