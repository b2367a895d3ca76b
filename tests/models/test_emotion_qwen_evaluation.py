"""How Emotion-Qwen is evaluated: several sets at once, explanations and their judge, the authors' rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.builders import make_llm, make_patch_vision
from tests.data.miniature_clips import write_dfew, write_mer2024
from tests.runs_helper import fit, flags, metrics, newest, rows, zoo
from zoo import data as zoo_data

CONFIGS = Path(__file__).parents[2] / "configs" / "emotion_qwen"
pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("evaluation")
    make_llm(home / "llm")
    make_patch_vision(home / "vision")
    write_mer2024(home / "mer", (12, 6, 6), clips=12)
    write_dfew(home / "dfew", train=14, test=7)
    return home


def model_options(home: Path, **more: object) -> list[str]:
    base = {
        "model": "EmotionQwen",
        "model__llm": home / "llm",
        "model__vision": home / "vision",
        "model__template": "plain",
        "model__min_pixels": 64,
        "model__video_max_pixels": 256,
        "model__frames": 1,
        "model__cache": home / "cache",
    }
    return [*flags(**base | more)]


def joint(home: Path, folder: Path) -> str:
    parts = [
        {"class_path": "zoo.data.MER2024", "init_args": {"root": str(home / "mer")}},
        {"class_path": "zoo.data.DFEW", "init_args": {"root": str(home / "dfew")}},
    ]
    path = folder / "joint.yaml"
    path.write_text(yaml.safe_dump({"data": {"class_path": "zoo.data.Joint", "init_args": {"parts": parts}}}))
    return f"--config={path}"


# ---- several sets, each with a protocol of its own
def test_one_lora_over_sets_of_different_protocols(home, tmp_path, capsys):
    learning = flags(model__lora__r=2, model__lr=0.01, data__batch_size=4, trainer__max_steps=3)
    run = fit(tmp_path, joint(home, tmp_path), *model_options(home), *learning)
    zoo("test", f"--ckpt_path={run}")
    said = metrics(run)
    parts = {corpus: (part["eval_protocol"], part["n"]) for corpus, part in said["corpora"].items()}
    assert parts == {"mer2024": ("mer2024_semi", 6), "dfew": ("fold_1_of_5", 7)} and said["n"] == 13
    assert said["eval_protocol"] == "mer2024: mer2024_semi, dfew: fold_1_of_5"
    assert said["aggregation"] == "none: the protocols of the corpora differ" and "weighted_f1" not in said
    printed = capsys.readouterr().out
    assert "mer2024: 6 utterances of 6 dialogues, mer2024 semi" in printed
    assert "dfew: 7 utterances of 7 dialogues, fold 1 of 5" in printed
    for corpus, data, root in (("mer2024", "MER2024", "mer"), ("dfew", "DFEW", "dfew")):
        zoo("test", f"--ckpt_path={run}", f"--data={data}", f"--data.root={home / root}")
        alone = metrics(newest(tmp_path))
        assert alone["weighted_f1"] == said["corpora"][corpus]["weighted_f1"] and alone["corpus"] == corpus


def test_adapters_over_sets_of_different_protocols(home, tmp_path):
    start = fit(
        tmp_path / "start",
        *model_options(home, data="MER2024", data__root=home / "mer", trainer__max_steps=1),
        r"--model.train=['compressor\..*']",
    )
    runs = {}
    for corpus, data, root in (("mer2024", "MER2024", "mer"), ("dfew", "DFEW", "dfew")):
        own = flags(data=data, data__root=home / root, model__lora__r=2, model__lr=0.1, trainer__max_steps=2)
        runs[corpus] = str(fit(tmp_path / corpus, *model_options(home, model__start_from=start), *own))
        zoo("test", f"--ckpt_path={runs[corpus]}", "--data.eval_batch_size=1")
    switched = model_options(home, model="EmotionQwenAdapters", model__adapters=json.dumps(runs))
    zoo("test", "--zero_shot=true", joint(home, tmp_path), *switched, "--data.eval_batch_size=1")
    run = newest(tmp_path)
    assert rows(run) == rows(Path(runs["mer2024"])) + rows(Path(runs["dfew"]))
    assert {c: p["eval_protocol"] for c, p in metrics(run)["corpora"].items()} == {
        "mer2024": "mer2024_semi",
        "dfew": "fold_1_of_5",
    }


@pytest.mark.parametrize("config", ["adapters.yaml", "ablations/tune_lora_all_sets.yaml"])
def test_the_configs_over_several_sets_can_be_built(config):
    init_args = yaml.safe_load((CONFIGS / config).read_text())["data"]["init_args"]
    parts = [getattr(zoo_data, p["class_path"].rpartition(".")[2])(**p["init_args"]) for p in init_args["parts"]]
    protocols = zoo_data.Joint(parts).protocols
    assert protocols.items() >= {"mer2024": "mer2024_semi", "dfew": "fold_1_of_5"}.items()
    assert len(protocols) == len(parts)
