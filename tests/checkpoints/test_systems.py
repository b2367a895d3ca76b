"""Published systems: written from a run, loaded by name, and refused when anything about them is not as published."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from safetensors import safe_open
from safetensors.torch import load as parsed
from safetensors.torch import save_file

from tests.builders import make_corpus, make_llm
from tests.runs_helper import checkpoint, fit, flags, metrics, newest, refused, rows, zoo
from zoo import data as zoo_data
from zoo.checkpoints import listing, load, probes, sha256
from zoo.checkpoints.system_export import _is_place
from zoo.data import MELD, EmotionData
from zoo.training.checkpointing import read_checkpoint

ROOT = Path(__file__).parents[2]
ADAPTERS = ("--model.lora.r=4", "--model.lora.alpha=16")
SYSTEMS = {  # options beyond data
    "words": (
        "--model=DialogueLLM",
        "--model.llm=tiny-llama",
        "--model.template=short",
        "--model.window=1",
        "--model.descriptions=[audio]",
        *ADAPTERS,
    ),
    "merit": (
        "--model=Merit",
        "--model.llm=tiny-llama-sitcom",
        "--model.vision=tiny-vit-sitcom",
        *ADAPTERS,
        "--model.audio=tiny-hubert-sitcom",
        "--model.template=plain",
        "--model.frames=2",
        "--model.audio_tokens=2",
    ),
    "qwen": (
        "--model=EmotionQwen",
        "--model.llm=tiny-llama",
        "--model.vision=shape:tiny-patch-vision",
        "--model.template=plain",
        r"--model.train=['vision\..*','compressor\..*']",
        "--model.frames=1",
        "--model.min_pixels=256",
        "--model.video_max_pixels=1024",
    ),
}
CLIPS = ("merit", "qwen")

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("systems")
    make_corpus(home / "meld", (1, 1, 1), clips=True)
    (home / "checkpoints").mkdir()
    (home / "checkpoints" / "index.yaml").write_text("")
    return home


@pytest.fixture(scope="module")
def data(home) -> list[str]:
    return flags(data="MELD", data__root=home / "meld", data__descriptions=f"[{home / 'meld'}]", data__batch_size=7)


@pytest.fixture(scope="module")
def runs(home, data):
    """Name of a system -> a run of two steps that was tested."""
    done: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in done:
            limits = flags(trainer__max_steps=2, trainer__limit_val_batches=1, model__lr=0.02, model__warmup=0)
            done[name] = fit(home / name, *SYSTEMS[name], *data, *limits)
            zoo("test", f"--ckpt_path={done[name]}")
        return done[name]

    return run


@pytest.fixture(scope="module")
def published(home, runs):
    """Name of a system -> its published folder, which is in the index."""

    def publish(name: str) -> Path:
        folder = home / "checkpoints" / name
        if not folder.is_dir():
            zoo("export", f"--ckpt_path={runs(name)}", "--system", f"--out={folder}", "--dtype=float16")
            index = yaml.safe_load((home / "checkpoints" / "index.yaml").read_text()) or {}
            entry = {
                "what": name,
                "paper": "none",
                "source": "shipped",
                "licence": "Apache-2.0",
                "gated": False,
                "commercial": True,
                "reported": [],
                "files": listing.files_entry(folder),
            }
            (home / "checkpoints" / "index.yaml").write_text(yaml.safe_dump(index | {name: entry}))
        return folder

    return publish


@pytest.fixture(autouse=True)
def repository(home, monkeypatch) -> None:
    """Names mean the folders of `home`; backbones are still those of the repository."""
    monkeypatch.setattr("zoo.runs.SHIPPED", home)
    monkeypatch.setattr(listing, "INDEX", home / "checkpoints" / "index.yaml")


@pytest.fixture
def copy(published, tmp_path) -> Path:
    """A copy of a published folder that no index knows, to be damaged."""
    return shutil.copytree(published("words"), tmp_path / "copy")


def tensors(file: Path) -> dict[str, torch.Tensor]:
    """Of a file that will be written again: not mapped into memory."""
    return parsed(file.read_bytes())


def rewritten(folder: Path, change) -> Path:
    """The folder, with its tensors changed and its contract kept."""
    file = folder / "weights.safetensors"
    with safe_open(file, "pt") as opened:
        said = opened.metadata()
    state = tensors(file)
    change(state)
    file.unlink()
    save_file(state, file, said)
    return folder


# ---- what is written
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_published_system_is_its_run(name, home, runs, published, data, tmp_path):
    run, folder = runs(name), published(name)
    held = {p.name for p in folder.iterdir()}
    clips = {f"probe_{i}.mp4" for i in range(4)} if name in CLIPS else set()
    assert held == {"config.yaml", "weights.safetensors", "probe.json", "README.md"} | clips
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert set(config) == {"seed_everything", "model", "data"} and "root" not in config["data"]["init_args"]
    assert all(str(home) not in (folder / file).read_text() for file in ("config.yaml", "README.md", "probe.json"))
    state = checkpoint(run, "best")["state_dict"]
    kept = read_checkpoint(folder / "weights.safetensors")["state_dict"]
    assert kept.keys() == state.keys()
    assert all(torch.equal(kept[k], v.half() if v.is_floating_point() else v) for k, v in state.items())
    zoo("test", f"--ckpt_path={name}", *data[1:], f"--trainer.default_root_dir={tmp_path}")
    answers, expected = rows(newest(tmp_path)), rows(run)
    assert [r["id"] for r in answers] == [r["id"] for r in expected]
    for a, b in zip(answers, expected, strict=True):
        assert a["scores"] == pytest.approx(b["scores"], abs=5e-3)  # stored in half precision
    assert metrics(newest(tmp_path))["checkpoint"].endswith(f"{name}/weights.safetensors")


def test_in_full_precision_the_answers_are_the_same(runs, data, tmp_path):
    zoo("export", f"--ckpt_path={runs('words')}", "--system", f"--out={tmp_path / 'full'}")
    zoo("test", f"--ckpt_path={tmp_path / 'full'}", *data[1:], f"--trainer.default_root_dir={tmp_path}")
    assert rows(newest(tmp_path)) == rows(runs("words"))


def test_every_verb_and_the_next_stage_take_the_name(published, data, tmp_path):
    published("words")
    for verb in ("validate", "predict"):
        zoo(verb, "--ckpt_path=words", *data[1:], f"--trainer.default_root_dir={tmp_path}")
    assert len(rows(newest(tmp_path))) == 7
    stage = fit(
        tmp_path / "next",
        *SYSTEMS["words"],
        *data,
        "--model.start_from=words",
        "--model.lr=0",
        "--trainer.max_steps=1",
        "--trainer.limit_val_batches=0",
    )
    begun, stored = checkpoint(stage)["state_dict"], tensors(published("words") / "weights.safetensors")
    assert begun.keys() == stored.keys() and all(torch.equal(begun[k], v.float()) for k, v in stored.items())
    module = load("words")
    assert all(torch.equal(module.state_dict()[k], v) for k, v in begun.items()) and module._trainer is None


def test_a_run_does_not_go_on_from_weights_alone(published):
    published("words")
    said = refused("fit", "--ckpt_path=words", "--trainer.max_epochs=2")
    assert "no run can go on from it" in said and "--model.start_from words" in said


def test_tied_tensors_are_stored_once(data, tmp_path):
    run = fit(
        tmp_path,
        "--model=CausalLM",
        "--model.llm=tiny-llama",
        *data,
        "--trainer.max_steps=1",
        "--trainer.limit_val_batches=0",
    )
    zoo("export", f"--ckpt_path={run}", "--system", f"--out={tmp_path / 'whole'}", "--dtype=bfloat16")
    stored = tensors(tmp_path / "whole" / "weights.safetensors")
    back = read_checkpoint(tmp_path / "whole" / "weights.safetensors")["state_dict"]
    assert len(stored) == len(back) - 1 and back.keys() == checkpoint(run)["state_dict"].keys()
    assert sum(v.numel() for v in stored.values()) == 2_114_880
    load(str(tmp_path / "whole"))


def test_nothing_of_this_machine_is_written(home, runs, data, tmp_path):
    make_llm(tmp_path / "llm")
    run = fit(
        tmp_path,
        "--model=CausalLM",
        f"--model.llm={tmp_path / 'llm'}",
        *data,
        "--trainer.max_steps=1",
        "--trainer.limit_val_batches=0",
    )
    said = refused("export", f"--ckpt_path={run}", "--system", f"--out={tmp_path / 'x'}")
    assert "model option llm is" in said and "Publish that first" in said
    assert not (tmp_path / "x").exists() and not (tmp_path / "x.partial").exists()
    assert "no such model option" in refused(
        "export", f"--ckpt_path={run}", "--system", f"--out={tmp_path / 'x'}", "--set", "nosuch=1"
    )
    assert "leave out --part" in refused(
        "export", f"--ckpt_path={run}", "--system", "--merge", f"--out={tmp_path / 'x'}"
    )
    assert "is a backbone" in refused(
        "export", "--ckpt_path", listing.SHIPPED / "checkpoints" / "tiny-llama", "--system", f"--out={tmp_path / 'x'}"
    )
    zoo("export", f"--ckpt_path={runs('words')}", "--system", f"--out={tmp_path / 'set'}", "--set", "window=0")
    assert yaml.safe_load((tmp_path / "set" / "config.yaml").read_text())["model"]["init_args"]["window"] == 0


def test_whole_weights_may_stand_on_another_base(runs, data, tmp_path):
    """A run that trained every tensor of a local model needs of a published one the shape and the tokenizer alone."""
    local = shutil.copytree(ROOT / "checkpoints" / "tiny-llama", tmp_path / "llm")
    state = tensors(local / "model.safetensors")
    (local / "model.safetensors").unlink()
    save_file({k: v * 1.01 for k, v in state.items()}, local / "model.safetensors", {"format": "pt"})
    run = fit(
        tmp_path,
        "--model=CausalLM",
        f"--model.llm={local}",
        *data,
        "--trainer.max_steps=1",
        "--model.lora=null",
        "--trainer.limit_val_batches=0",
    )
    zoo("test", f"--ckpt_path={run}")
    out = ("--system", f"--out={tmp_path / 'moved'}", "--set", "llm=tiny-llama")
    zoo("export", f"--ckpt_path={run}", *out)
    said = read_checkpoint(tmp_path / "moved" / "weights.safetensors")["zoo"]
    assert Path(said["bases"]["llm"]["path"]).name == "tiny-llama"
    zoo("test", f"--ckpt_path={tmp_path / 'moved'}", *data[1:], f"--trainer.default_root_dir={tmp_path / 'again'}")
    assert rows(newest(tmp_path / "again")) == rows(run)
    said = refused(
        "export",
        f"--ckpt_path={runs('words')}",
        "--system",
        f"--out={tmp_path / 'x'}",
        "--set",
        "llm=tiny-llama-sitcom",
    )
    assert "stored all but" in said and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("/models/x", True),
        ("~/x", True),
        ("./x", True),
        ("runs/x", True),
        (".*_proj", False),
        ("default", False),
        (r"model\.layers\.\d+", False),
        ("meta-llama/Llama-2-7b-hf", False),
    ],
)
def test_what_is_a_place_on_this_machine(value, place):
    assert _is_place(value) is place


# ---- what is refused
class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_one_flipped_byte(home, published, data):
    file = published("words") / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1  # deep inside a tensor: nothing but the sum shows it
    kept = file.read_bytes()
    file.write_bytes(content)
    try:
        start = ("fit", *SYSTEMS["words"], *data, "--model.start_from=words")
        for args in (
            ("test", "--ckpt_path=words"),
            start,
            ("checkpoints", "verify", "words"),
            ("export", "--ckpt_path=words", "--out=x"),
        ):
            said = refused(*args)
            assert "words/weights.safetensors is not the published file: sha256" in said, said
        with pytest.raises(ValueError, match="is not the published file"):
            load("words")
    finally:
        file.write_bytes(kept)
    zoo("checkpoints", "verify", "words")


def test_a_wrong_base(copy, data):
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("llm: tiny-llama\n", "llm: tiny-llama-sitcom\n"))
    said = refused("test", f"--ckpt_path={copy}", *data[1:])
    assert "was trained on the base model 'checkpoints/tiny-llama'" in said and "tiny-llama-sitcom' holds other" in said
    with pytest.raises(ValueError, match="was trained on the base model"):
        load(str(copy))


def test_a_renamed_key(copy, data):
    def rename(state):
        name = next(k for k in state if "lora_A" in k)
        state[name.replace("lora_A", "lora_Z")] = state.pop(name)

    rewritten(copy, rename)
    said = refused("test", f"--ckpt_path={copy}", *data[1:])
    assert re.search(r"does not fit this model: 1 tensors are missing .*lora_A.* 1 are unknown .*lora_Z", said)
    with pytest.raises(ValueError, match="does not fit this model"):
        load(str(copy))


def test_another_shape_and_values_that_are_not_finite(copy, data, tmp_path):
    other = shutil.copytree(copy, tmp_path / "other")
    rewritten(copy, lambda state: state.update({k: v[:2].clone() for k, v in state.items() if "lora_A" in k}))
    assert "tensors of another shape" in refused("test", f"--ckpt_path={copy}", *data[1:])
    rewritten(other, lambda state: next(iter(state.values())).view(-1)[0].fill_(torch.nan))
    said = refused("test", f"--ckpt_path={other}", *data[1:])
    assert "holds NaN or infinite values in 1 tensors" in said


def test_a_crafted_pickle(copy, tmp_path):
    file = copy / "weights.safetensors"
    torch.save({"state_dict": tensors(file), "zoo": Trap(tmp_path / "trapped"), "global_step": 0}, file)
    assert b"mkdir" in file.read_bytes()
    for args in (("test",), ("export", "--out=x")):
        assert "could not be read as weights" in refused(args[0], f"--ckpt_path={copy}", *args[1:])
    with pytest.raises(ValueError, match="could not be read as weights"):
        load(str(copy))
    shutil.move(file, copy / "best.ckpt")  # under a name that may be a pickle
    assert "a pickle of more than tensors" in refused("test", f"--ckpt_path={copy / 'best.ckpt'}")
    assert not (tmp_path / "trapped").exists()


def test_weights_without_a_contract(copy):
    state = tensors(copy / "weights.safetensors")
    save_file(state, copy / "weights.safetensors", {"format": "pt"})
    assert "is not a checkpoint of the zoo: it has no 'zoo'" in refused("test", f"--ckpt_path={copy}")
    (copy / "weights.safetensors").write_bytes((copy / "weights.safetensors").read_bytes()[:3000])
    assert "could not be read as weights" in refused("test", f"--ckpt_path={copy}")


# ---- probes
def test_the_probe_notices_other_weights_and_another_prompt(copy, tmp_path):
    other = shutil.copytree(copy, tmp_path / "other")
    rewritten(copy, lambda state: state.update({k: -v for k, v in state.items() if "lora_B" in k}))
    with pytest.raises(ValueError, match=r"does not answer its probe .*scores\.\w+ is .*, was .*tolerance"):
        load(str(copy))
    assert load(str(copy), probe=False) is not None
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("window: 1", "window: 0"))
    with pytest.raises(ValueError, match="does not answer its probe as it did when it was published"):
        load(str(other))


def test_the_probe_of_a_clip_system_sees_and_hears(published, tmp_path):
    """Two of its clips exchanged, which says the same words over another face and voice."""
    folder = shutil.copytree(published("merit"), tmp_path / "copy")
    load(str(folder))
    (folder / "probe_0.mp4").rename(folder / "x")
    (folder / "probe_1.mp4").rename(folder / "probe_0.mp4")
    (folder / "x").rename(folder / "probe_1.mp4")
    with pytest.raises(ValueError, match="does not answer its probe"):
        load(str(folder))
    (folder / "probe_0.mp4").unlink()
    with pytest.raises(ValueError, match=r"lacks probe_0\.mp4"):
        load(str(folder))


def test_a_mismatch_is_found_by_verify(published, home, monkeypatch, capsys):
    """The files are as recorded, but the answers are not: code or base changed."""
    file = published("words") / "probe.json"
    kept, index = file.read_text(), (home / "checkpoints" / "index.yaml").read_text()
    content = json.loads(kept)
    content["expected"][1]["scores"]["joy"] += 0.01
    file.write_text(json.dumps(content))
    try:
        (home / "checkpoints" / "index.yaml").write_text(index.replace(_digest(kept), sha256(file)))
        said = refused("checkpoints", "verify", "words")
        assert "does not answer its probe" in said and "dia0_utt1: scores.joy is" in said
        file.write_text("{}")
        with pytest.raises(ValueError, match="is no probe"):
            probes.read(file.parent)
        (home / "checkpoints" / "index.yaml").write_text(re.sub(rf" +probe.json: {_digest(kept)}\n", "", index))
        file.unlink()
        assert "words has no probe.json" in refused("checkpoints", "verify", "words")
    finally:
        file.write_text(kept)
        (home / "checkpoints" / "index.yaml").write_text(index)
    zoo("checkpoints", "verify", "words")
    assert "words: files and answers as published" in capsys.readouterr().out


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_tolerance_and_what_it_is_compared_with():
    near = {"predicted": "joy", "scores": {"joy": 0.5}, "details": {"reward": [100.0, None]}}
    assert probes._differ(near, json.loads(json.dumps(near))) == []
    assert probes._differ(near, near | {"scores": {"joy": 0.5015}, "details": {"reward": [100.15, None]}}) == []
    assert probes._differ(near, near | {"scores": {"joy": 0.503}}) == [("scores.joy", 0.5, 0.503)]
    assert probes._differ(near, near | {"predicted": None}) == [("predicted", "joy", None)]
    assert probes._differ(near, near | {"details": {}}) == [("details.reward", [100.0, None], None)]


# ---- rights
def test_an_export_states_no_right_that_nobody_gave(runs, tmp_path, capsys):
    def entry(name: str, *more: str) -> dict:
        capsys.readouterr()
        zoo("export", f"--ckpt_path={runs('words')}", "--system", f"--out={tmp_path / name}", *more)
        return yaml.safe_load(capsys.readouterr().out.split("index.yaml:\n")[1])[name]

    unstated = entry("unstated")
    assert (unstated["licence"], unstated["commercial"]) == ("?", "unknown")
    assert unstated["trained_on"] == {"MELD": MELD.licence} and "GPL-3.0" in MELD.licence
    assert list(unstated["bases"]) == ["tiny-llama"]
    card = (tmp_path / "unstated" / "README.md").read_text()
    assert "Licence of these weights: ?; commercial use: unknown." in card
    assert f"Trained on MELD: {MELD.licence}." in card
    stated = entry("stated", "--licence=CC-BY-NC-4.0", "--commercial=false")
    assert (stated["licence"], stated["commercial"]) == ("CC-BY-NC-4.0", False)
    message = refused("export", f"--ckpt_path={runs('words')}", f"--out={tmp_path / 'x'}", "--licence=MIT")
    assert "--licence and --commercial are written into the entry of a --system" in message


def test_every_corpus_states_its_licence_and_what_it_shows():
    corpora = [c for c in vars(zoo_data).values() if isinstance(c, type) and issubclass(c, EmotionData)]
    plain = [c for c in corpora if c.corpora is EmotionData.corpora and c is not EmotionData]
    assert len(plain) >= 10
    silent = {c.__name__ for c in plain if "?" in (c.licence, c.material)}
    assert silent <= {"Conversations", "Table"}  # whose files are the user's own


def test_an_adapter_is_loaded_by_peft_alone_without_a_hub(runs, tmp_path, monkeypatch):
    zoo("export", f"--ckpt_path={runs('words')}", f"--out={tmp_path / 'adapter'}")
    name = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert not Path(name).is_absolute()
    monkeypatch.chdir(tmp_path)
    model = AutoPeftModelForCausalLM.from_pretrained("adapter", local_files_only=True, dtype=torch.float32)
    trained = load(str(runs("words"))).llm.causal_lm
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, trained(ids).logits)
