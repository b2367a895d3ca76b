"""Checkpoints: bad ones are refused with the reason, good ones can be exported, built upon, loaded and verified."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.builders import make_corpus, make_llm
from tests.runs_helper import checkpoint, fit, flags, logged, metrics, refused, rows, same, zoo
from zoo import checkpoints
from zoo.backbones import LLM
from zoo.checkpoints import listing

LORA = ("--model.lora.r=4", "--model.lora.alpha=64")


pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("checkpoints")
    make_llm(home / "llm")
    make_llm(home / "other", seed=1)  # the same shapes, other weights
    make_corpus(home / "meld", (2, 1, 1))
    return home


def options(home: Path) -> list[str]:
    data = {"data": "MELD", "data__root": home / "meld", "data__batch_size": 7, "trainer__max_epochs": 1}
    return ["--model=CausalLM", *flags(model__llm=home / "llm", model__lr=0.01, **data)]


@pytest.fixture(scope="module")
def full_run(home) -> Path:
    return fit(home / "full", *options(home))


@pytest.fixture(scope="module")
def lora_run(home) -> Path:
    return fit(home / "lora", *options(home), *LORA)


@pytest.fixture
def run(lora_run, tmp_path) -> Path:
    """A copy of the LoRA run, to be damaged."""
    return shutil.copytree(lora_run, tmp_path / "lightning_logs" / "version_0")


@pytest.fixture(scope="module")
def batch(home) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(home / "llm")
    return torch.tensor([tokenizer("Wow, Ada put the kettle by the 7.\nemotion:")["input_ids"]])


def logits(model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ids).logits


# ---- bad checkpoints
class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def damage(run: Path, how: str) -> None:
    """Replaces both checkpoints of the run by damaged ones."""
    for file in (run / "checkpoints").iterdir():
        content = torch.load(file, weights_only=True)
        state = content["state_dict"]
        name = sorted(state)[0]
        if how == "renamed":
            content["state_dict"] = {k.replace(".lora_A.", ".adapter_A."): v for k, v in state.items()}
        elif how == "missing":
            del state[name]
        elif how == "nan":
            state[name][0, 0] = float("nan")
        elif how == "infinite":
            state[name][0, 0] = -float("inf")
        elif how == "format":
            content["zoo"]["format"] = 99
        elif how == "contract":
            del content["zoo"]
        elif how == "state":
            content = state
        elif how == "pickle":
            content["callbacks"] = Trap(run / "trapped")
        elif how == "no weights":
            del content["state_dict"]
        torch.save(content, file)
        if how == "truncated":
            file.write_bytes(file.read_bytes()[:5000])
        elif how == "text":
            file.write_text("not found\n")
        elif how == "empty":
            file.write_bytes(b"")


BAD = {
    "renamed": r"does not fit this model: 4 tensors are missing .* 4 are unknown \['llm.*adapter_A",
    "missing": r"does not fit this model: 1 tensors are missing .*lora_A",
    "nan": r"holds NaN or infinite values in 1 tensors: \['llm.*lora_A",
    "infinite": r"holds NaN or infinite values in 1 tensors",
    "format": r"has format 99, this version reads 1 and 2",
    "contract": r"is not a checkpoint of the zoo: it has no 'zoo'",
    "state": r"is not a checkpoint of the zoo: it has no '",
    "no weights": r"it has no 'state_dict'",
    "truncated": r"could not be read as weights .*truncated",
    "text": r"could not be read as weights",
    "empty": r"could not be read as weights",
    "pickle": r"could not be read as weights .*pickle of more than tensors",
}


@pytest.mark.parametrize("how", BAD)
def test_a_damaged_checkpoint_is_refused(how, run, tmp_path):
    damage(run, how)
    for args in (["test"], ["fit", "--trainer.max_epochs=2"], ["export", "--out", tmp_path / "out"]):
        said = refused(args[0], f"--ckpt_path={run}", *args[1:])
        assert said.startswith(f"zoo {args[0]}: {run / 'checkpoints'}") and re.search(BAD[how], said), said
    assert not (run / "trapped").exists() and not (run / "metrics.json").exists() and not (tmp_path / "out").exists()


def test_the_trap_works(run, tmp_path):
    """What the crafted checkpoint holds does what it must not do, once it is unpickled the careless way."""
    pickle.loads(pickle.dumps(Trap(tmp_path / "trapped")))
    assert (tmp_path / "trapped").is_dir()
    damage(run, "pickle")
    assert b"mkdir" in (run / "checkpoints" / "best.ckpt").read_bytes()


def test_a_model_that_the_checkpoint_does_not_fit(run, home):
    rank = refused("test", f"--ckpt_path={run}", "--model.lora.r=8")
    assert "was trained with another LoRA on llm: r 4, not 8" in rank
    base = refused("test", f"--ckpt_path={run}", f"--model.llm={home / 'other'}")
    assert "was trained on the base model" in base and "holds other weights or another config" in base
    assert "does not fit this model" in refused("test", f"--ckpt_path={run}", "--model.lora=null")
    norms = r"--model.train=[llm\..*lora_.*,llm\..*norm.*]"
    assert "does not fit this model" in refused("test", f"--ckpt_path={run}", norms)
    other = refused("test", f"--ckpt_path={run}", "--model=zoo.models.dialoguellm.DialogueLLM")
    assert "holds a zoo.models.causal_lm.CausalLM, but the config builds a zoo.models.dialoguellm" in other
    shutil.copytree(home / "llm", run / "moved")
    zoo("test", f"--ckpt_path={run}", f"--model.llm={run / 'moved'}")  # the same weights elsewhere are the same model


# ---- export
def by_its_card(folder: Path, home: Path):
    """The model that the lines of an exported folder's card load, run where the folder and its base lie."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert "zoo" not in code  # transformers and peft alone
    there, names = os.getcwd(), {}
    (folder.parent / "llm").exists() or (folder.parent / "llm").symlink_to(home / "llm")
    os.chdir(folder.parent)
    try:
        exec(code, names)
    finally:
        os.chdir(there)
    return names["model"]


def test_a_full_run_becomes_a_model_folder(full_run, home, batch, tmp_path):
    zoo("export", "--ckpt_path", full_run, "--out", tmp_path / "out")
    exported, trained = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), checkpoints.load(full_run).llm
    assert torch.equal(logits(exported, batch), logits(trained.causal_lm, batch))
    assert not torch.equal(logits(exported, batch), logits(LLM(str(home / "llm")).causal_lm, batch))  # it was trained
    zoo(
        "test",
        "--zero_shot=true",
        *options(home),
        f"--model.llm={tmp_path / 'out'}",
        f"--trainer.default_root_dir={tmp_path}",
    )
    (answers,) = tmp_path.glob("lightning_logs/version_0/predictions.jsonl")
    zoo("test", f"--ckpt_path={full_run}")
    assert rows(answers.parent) == rows(full_run)  # weights in a folder or in a checkpoint: the same predictions
    assert torch.equal(logits(by_its_card(tmp_path / "out", home), batch), logits(trained.causal_lm, batch))
    zoo("export", "--ckpt_path", full_run, "--out", tmp_path / "half", "--dtype", "float16")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto").dtype == torch.float16


def test_a_lora_run_becomes_an_adapter_folder_or_is_merged(lora_run, home, batch, tmp_path, capsys):
    trained, base = checkpoints.load(lora_run).llm, AutoModelForCausalLM.from_pretrained(home / "llm")
    without = logits(base, batch)
    want = logits(trained.model, batch)
    assert (want - without).abs().max() > 0.01
    zoo("export", "--ckpt_path", lora_run, "--out", tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 30_000
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path / "adapter"), batch), want)
    assert torch.equal(logits(by_its_card(tmp_path / "adapter", home), batch), want)
    assert "Base model: `llm`" in (tmp_path / "adapter" / "README.md").read_text()
    capsys.readouterr()
    zoo("export", "--ckpt_path", lora_run, "--out", tmp_path / "merged", "--merge")
    (printed,) = re.findall(r"largest logit difference, merged against adapter: (\S+)", capsys.readouterr().out)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert f"Largest difference of a logit, merged against adapter: {printed} " in card and float(printed) < 1e-3
    torch.testing.assert_close(logits(LLM(str(tmp_path / "merged")).causal_lm, batch), want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(by_its_card(tmp_path / "merged", home), batch), want, atol=1e-4, rtol=1e-4)


def test_export_refuses(full_run, lora_run, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "thesis.txt").write_text("mine")
    assert "is not empty; choose another folder" in refused(
        "export", "--ckpt_path", lora_run, "--out", tmp_path / "kept"
    )
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["thesis.txt"]
    assert "this run has no LoRA" in refused("export", "--ckpt_path", full_run, "--out", tmp_path / "new", "--merge")
    assert "no checkpoint 'nosuch'" in refused("export", "--ckpt_path", "nosuch", "--out", tmp_path / "new")
    lonely = shutil.copy(full_run / "checkpoints" / "best.ckpt", tmp_path / "lonely.ckpt")
    assert "its config.yaml is not known" in refused("export", "--ckpt_path", lonely, "--out", tmp_path / "new")
    assert "--out" in refused("export", "--ckpt_path", lora_run)
    assert not (tmp_path / "new").exists()


def test_load_gives_the_weights_of_the_run(full_run, lora_run):
    for run in (full_run, lora_run):
        module = checkpoints.load(str(run))
        state = checkpoint(run, "best")["state_dict"]
        assert same({k: v for k, v in module.state_dict().items() if k in state}, state)
    with pytest.raises(FileNotFoundError, match="no checkpoint 'nosuch'"):
        checkpoints.load("nosuch")


# ---- stages
def test_a_second_stage_starts_from_the_first(full_run, home, batch, tmp_path):
    """LoRA on top of a fully trained stage: the frozen weights are the first stage's, and the checkpoint names it."""
    stage2 = fit(tmp_path, *options(home), *LORA, f"--model.start_from={full_run}", "--model.lr=0")
    first, second = checkpoint(full_run, "best")["state_dict"], checkpoint(stage2)["state_dict"]
    assert second and all(".lora_" in name for name in second)
    frozen = {
        k.replace("base_model.model.", "").replace(".base_layer", ""): v
        for k, v in checkpoints.load(stage2).state_dict().items()
        if ".lora_" not in k
    }
    assert same(frozen, first)
    trained = checkpoints.load(stage2).llm.model
    assert torch.equal(logits(trained, batch), logits(checkpoints.load(full_run).llm.model, batch))
    zoo("test", f"--ckpt_path={stage2}")
    assert metrics(stage2)["n"] == 7


def test_adapters_are_trained_further(lora_run, home, batch, tmp_path):
    """A stage with the same LoRA begins with the adapters of the one before, and its checkpoint alone is enough."""
    first = checkpoint(lora_run, "best")["state_dict"]
    still = fit(tmp_path / "still", *options(home), *LORA, f"--model.start_from={lora_run}", "--model.lr=0")
    assert same(checkpoint(still)["state_dict"], first) and all(".lora_" in k for k in first)
    want = logits(checkpoints.load(str(lora_run)).llm.model, batch)
    assert torch.equal(logits(checkpoints.load(str(still)).llm.model, batch), want)
    moved = fit(tmp_path / "moved", *options(home), *LORA, f"--model.start_from={lora_run}")
    second = checkpoint(moved)["state_dict"]
    assert second.keys() == first.keys() and not any(torch.equal(second[k], first[k]) for k in first)
    assert (logits(checkpoints.load(str(moved)).llm.model, batch) - want).abs().max() > 0.01


def test_a_stage_does_not_need_the_one_before_any_more(lora_run, home, tmp_path):
    """Once it has a checkpoint of its own, it is tested and resumed from that alone."""
    earlier = shutil.copytree(lora_run, tmp_path / "earlier")
    run = fit(tmp_path / "run", *options(home), *LORA, f"--model.start_from={earlier}", "--trainer.max_epochs=1")
    shutil.rmtree(earlier)
    zoo("test", f"--ckpt_path={run}")
    steps = checkpoint(run)["global_step"]
    zoo("fit", f"--ckpt_path={run}", "--trainer.max_epochs=2")
    assert metrics(run)["n"] == 7 and checkpoint(run)["global_step"] == 2 * steps > 0


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (("--model.lora.r=4", "--model.lora.alpha=32"), "another LoRA on llm: alpha 64.0, not 32.0"),
        (("--model.lora.r=8", "--model.lora.alpha=64"), "another LoRA on llm: r 4, not 8"),
        ((*LORA, r"--model.lora.targets=model\.layers\.0\..*"), "another LoRA on llm: targets"),
    ],
)
def test_other_adapters_are_refused(other, told, lora_run, home):
    """The scale of an adapter stands in no tensor: without this, alpha would be wrong without a word."""
    for args in (["fit", *options(home), f"--model.start_from={lora_run}"], ["test", f"--ckpt_path={lora_run}"]):
        said = refused(*args, *other)
        assert told in said and "give the same --model.lora" in said


def test_dropout_of_adapters_may_change(lora_run, home, tmp_path):
    fit(
        tmp_path,
        *options(home),
        *LORA,
        "--model.lora.dropout=0.3",
        f"--model.start_from={lora_run}",
        "--trainer.max_steps=1",
    )


def test_start_from_is_strict(full_run, lora_run, home, tmp_path):
    bare = refused("fit", *options(home), f"--model.start_from={lora_run}")
    assert "holds adapters, this model has none; train them further with the same --model.lora, or merge them" in bare
    base = refused("fit", *options(home), f"--model.llm={home / 'other'}", f"--model.start_from={full_run}")
    assert "was trained on the base model" in base
    content = checkpoint(full_run, "best")
    content["state_dict"]["llm.model.extra"] = torch.zeros(1)
    torch.save(content, tmp_path / "extra.ckpt")
    said = refused("fit", *options(home), f"--model.start_from={tmp_path / 'extra.ckpt'}")
    assert "holds 1 tensors that this model lacks: ['llm.model.extra']" in said
    content["state_dict"] = {"llm.model.model.norm.weight": torch.ones(64)}
    torch.save(content, tmp_path / "wide.ckpt")
    assert "is (64,), expected (32,)" in refused("fit", *options(home), f"--model.start_from={tmp_path / 'wide.ckpt'}")
    assert "no checkpoint 'nosuch'" in refused("fit", *options(home), "--model.start_from=nosuch")


# ---- published
@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """An index with one published folder, a language model that is scored as it is."""
    folder = make_llm(tmp_path / "published" / "small")
    config = {
        "seed_everything": 0,
        "model": {"class_path": "zoo.models.causal_lm.CausalLM", "init_args": {"llm": str(folder)}},
        "data": {"class_path": "zoo.data.MELD"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(listing, "INDEX", tmp_path / "published" / "index.yaml")
    listing.INDEX.write_text("")
    zoo("checkpoints", "publish", "small")
    reported = [{"metric": "weighted_f1", "value": 0.51234, "corpus": "goemotions", "split": "test", "n": 4590}]
    entry = {
        "what": "a small model",
        "paper": "none",
        "source": "shipped",
        "licence": "Apache-2.0",
        "gated": False,
        "commercial": True,
        "made_by": "me",
        "reported": reported,
        "files": listing.files_entry(folder),
    }
    listing.INDEX.write_text(yaml.safe_dump({"small": entry}))
    return folder


def test_a_system_whose_base_is_pulled_apart(index, capsys, tmp_path, monkeypatch):
    """Its files are compared, and what its answers need is said, until it is there."""
    entries, config = yaml.safe_load(listing.INDEX.read_text()), index / "config.yaml"
    base = {"what": "b", "paper": "none", "source": "hand", "hand": "ask", "licence": "Apache-2.0", "gated": False}
    base |= {"commercial": True, "reported": [], "files": {"config.json": None, "model.safetensors": None}}
    config.write_text(config.read_text().replace(str(index), "a-base"))
    entries["small"]["files"] = listing.files_entry(index)
    listing.INDEX.write_text(yaml.safe_dump(entries | {"a-base": base}))
    monkeypatch.chdir(tmp_path)
    assert listing.bases_to_pull("small") == ["a-base"]
    zoo("checkpoints", "verify", "small")
    assert "small: files as published; its answers need zoo checkpoints pull a-base" in capsys.readouterr().out
    (tmp_path / "runs" / "weights").mkdir(parents=True)
    shutil.copytree(index, tmp_path / "runs" / "weights" / "a-base")
    assert listing.bases_to_pull("small") == []
    zoo("checkpoints", "verify", "small")
    assert "small: files and answers as published" in capsys.readouterr().out


def test_published_checkpoints_are_listed_and_verified(index, capsys):
    zoo("checkpoints")
    said = capsys.readouterr().out
    assert "small" in said and "Apache-2.0" in said and "weighted_f1 0.5123 on goemotions/test, n=4590" in said
    for args in (("--verify",), ("verify",), ("verify", "small")):
        zoo("checkpoints", *args)
        assert "all files are as published" in capsys.readouterr().out
    zoo("checkpoints", "publish", "small")
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(listing.INDEX.read_text())
    content = bytearray((index / "model.safetensors").read_bytes())
    content[-3000] ^= 1
    (index / "model.safetensors").write_bytes(content)
    zoo("checkpoints")  # listing alone reads no weights
    assert "small/model.safetensors is not the published file" in refused("checkpoints", "--verify")
    (index / "model.safetensors").unlink()
    assert "small/model.safetensors is missing" in refused("checkpoints", "verify", "small")
    assert "nothing is published as 'nosuch'" in refused("checkpoints", "verify", "nosuch")


def test_sha256_agrees_with_the_usual_tool(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert checkpoints.sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# ---- prepare
def test_prepare_makes_a_model_that_trains(tmp_path):
    small = {"vocab_size": 400, "hidden_size": 32, "layers": 1, "heads": 2, "intermediate_size": 64, "synthetic": 20}
    size = flags(**small)
    zoo("prepare", "tiny", "--out", tmp_path / "llm", *size)
    assert "already holds a model" in refused("prepare", "tiny", "--out", tmp_path / "llm", *size)
    zoo("prepare", "tiny", "--out", tmp_path / "again", *size)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("llm", "again"))
    assert first == second
    data = flags(data="Synthetic", data__train_dialogues=1, data__dev_dialogues=1, data__test_dialogues=1)
    run = fit(tmp_path, "--model=CausalLM", f"--model.llm={tmp_path / 'llm'}", *data, "--trainer.max_steps=1")
    assert 5 < logged(run, "train/loss")[0] < 7  # about the logarithm of its 400 tokens
    assert "unrecognized" in refused("prepare", "tiny", "--out", tmp_path / "x", "--nosuch=1")
    assert "a tokenizer needs text" in refused("prepare", "tiny", "--out", tmp_path / "x", "--synthetic=0")
