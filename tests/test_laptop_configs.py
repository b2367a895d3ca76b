"""Every laptop.yaml runs to its end, with a small model in a chat format in SmolLM2's place."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.builders import make_corpus
from tests.data.miniature import write_goemotions
from tests.fake_corpus import attach
from tests.runs_helper import REPOSITORY, fit, logged, metrics, newest, zoo
from zoo.checkpoints.listing import index
from zoo.checkpoints.loading import build_module
from zoo.data import Synthetic
from zoo.sitcom import release

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")

CONFIGS = REPOSITORY / "configs"
LAPTOP = {str(path.relative_to(CONFIGS)): path for path in sorted(CONFIGS.rglob("laptop*.yaml"))}
CHAT = (  # SmolLM2's in small: an opening system message if there is none
    "{% if messages[0].role != 'system' %}[system] be helpful\n{% endif %}"
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
SHORT = ("--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--data.batch_size=2", "--data.eval_batch_size=2")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A small chat model, MELD in miniature, the sitcom with some clips, and the runs that others start from."""
    home = tmp_path_factory.mktemp("laptop")
    shutil.copytree(REPOSITORY / "checkpoints" / "tiny-llama-sitcom", home / "llm")
    file = home / "llm" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": CHAT}))
    make_corpus(home / "meld", (8, 2, 2))
    write_goemotions(home / "goemotions")
    small = [f"--data.{split}_dialogues=4" for split in ("train", "dev", "test")]
    classifier = ("--config", LAPTOP["selector/laptop_classifier.yaml"], f"--model.llm={home / 'llm'}", *small)
    run = fit(home / "classifier", *classifier, *SHORT)
    zoo("predict", "--ckpt_path", run, "--model.compare=true", "--data.predict_splits=[train,dev,test]")
    start = ("--config", LAPTOP["selector/laptop_start.yaml"], f"--model.llm={home / 'llm'}", *small)
    fit(home / "start", *start, *SHORT, f"--model.comparisons={run}")
    release.write(home / "sitcom", {"train": 3, "dev": 1, "test": 1}, corpus_seed=3, workers=2)
    fit(home / "merit", "--config", LAPTOP["merit/laptop.yaml"], *SHORT, *replaced(home, "merit/laptop.yaml"))
    return home


def data_of(name: str) -> dict:
    return yaml.safe_load(LAPTOP[name].read_text())["data"]


def replaced(home: Path, name: str) -> list[str]:
    """Options that put small things in the place of what a config names."""
    model, data = yaml.safe_load(LAPTOP[name].read_text())["model"]["init_args"], data_of(name)
    options = [f"--model.llm={home / 'llm'}"]
    if "cache" in model:
        options.append(f"--model.cache={home / 'cache'}")
    if "start_from" in model:
        options.append(f"--model.start_from={newest(home / ('merit' if name.startswith('merit') else 'start'))}")
    for option in {"comparisons", "downstream"} & set(model):
        options.append(f"--model.{option}={newest(home / 'classifier')}")
    if model.get("vision", "").endswith("tower"):
        options.append("--model.vision=shape:tiny-patch-vision")
    if "train_shots" in model:
        options += ["--model.train_shots=2", "--model.shots=2"]  # of three dialogues
    inner, place = (data["init_args"]["corpus"], "data.corpus") if "corpus" in data["init_args"] else (data, "data")
    if "root" in inner["init_args"]:
        folder = {"zoo.data.MELD": "meld", "zoo.data.GoEmotions": "goemotions"}.get(inner["class_path"], "sitcom")
        options.append(f"--{place}.root={home / folder}")
    else:
        options += [f"--data.{split}_dialogues=4" for split in ("train", "dev", "test")]
    return options


def test_every_system_that_asks_a_language_model_has_one():
    asks = {p.parent.name for p in CONFIGS.rglob("*.yaml") if "llm: " in p.read_text()}
    papers = asks & {p.parent.name for p in (REPOSITORY / "zoo" / "models").glob("*/model.py")}
    # the last two read what only a corpus with biographies or clips has; their sitcom.yaml runs on a laptop
    assert papers - {"grpo", "bioserc", "speech_cue"} == {name.partition("/")[0] for name in LAPTOP}


@pytest.mark.parametrize("name", [n for n in LAPTOP if n != "causal_lm/laptop.yaml"])
def test_fit_and_test_run_to_their_end(name, home, tmp_path):
    options = replaced(home, name)
    run = fit(tmp_path / "run", "--config", LAPTOP[name], *SHORT, *options)
    rewarded = "train/reward" in logged(run)[0]
    assert len(logged(run, "train/reward" if rewarded else "train/loss")) == 2
    if name == "selector/laptop.yaml":
        zoo("predict", "--ckpt_path", run, "--data.predict_splits=[test]", "--trainer.limit_predict_batches=2")
        decisions = [json.loads(line) for line in (run / "decisions.jsonl").read_text().splitlines()]
        assert decisions and all("decision" in row["details"] for row in decisions)
        return
    zoo("test", "--ckpt_path", run, "--trainer.limit_test_batches=2")
    assert 0 <= metrics(run)["weighted_f1"] <= 1


@pytest.mark.parametrize("shots", [7, 0])
def test_the_plain_model_is_asked_with_examples_and_without(shots, home, tmp_path):
    options = [*replaced(home, "causal_lm/laptop.yaml"), f"--model.shots={shots}", "--data.eval_batch_size=2"]
    config = ("--config", LAPTOP["causal_lm/laptop.yaml"], f"--trainer.default_root_dir={tmp_path / 'run'}")
    zoo("test", "--zero_shot=true", *config, *options, "--trainer.limit_test_batches=2")
    assert 0 <= metrics(newest(tmp_path / "run"))["weighted_f1"] <= 1


def test_the_selectors_start_is_asked_as_the_policy_is(home):
    corpus = Synthetic(corpus_seed=0, train_dialogues=4, dev_dialogues=2, test_dialogues=2)
    more = {
        "laptop": {"start_from": None, "downstream": None},
        "laptop_start": {"comparisons": str(newest(home / "classifier"))},
    }
    prompts = []
    for name, options in more.items():
        module = attach(build_module(LAPTOP[f"selector/{name}.yaml"], {"llm": str(home / "llm"), **options}), corpus)
        module.configure_model()
        batch = module.collator(training=False)(corpus.samples("test")[:1], np.random.default_rng(0))
        prompts.append(module.llm.tokenizer.decode(batch["input_ids"][0]))
    assert prompts[0] == prompts[1] and prompts[0].count("[system]") == 1 and "<answer>" in prompts[0]


def commands(config: Path) -> list[list[str]]:
    """Argument lists of the commands in the comment that a config begins with."""
    header = re.match(r"(?:#.*\n)+", config.read_text())
    text = re.sub(r"^# ?", "", header.group() if header else "", flags=re.MULTILINE)
    lines = re.findall(r"^ +zoo (.*)$", text.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("name", LAPTOP)
def test_the_header_holds_the_commands_and_what_they_cost(name, capsys, monkeypatch):
    header = LAPTOP[name].read_text().partition("\nseed_everything")[0]
    said = commands(LAPTOP[name])
    assert ["checkpoints", "pull", "smollm2-135m"] in said and "smollm2-135m" in index()
    assert {"fit", "test", "predict"} & {words[0] for words in said}
    assert re.search(r"\babout \d", header) and re.search(r"\d GB", header)
    monkeypatch.chdir(REPOSITORY)  # configs are named from there
    for words in said:
        if "--config" in words:
            with pytest.raises(SystemExit) as leaving:
                zoo(*words, "--print_config")
            assert leaving.value.code in (0, None)
            assert "smollm2-135m" in capsys.readouterr().out
