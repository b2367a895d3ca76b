"""Runs that start from other runs: their checkpoints hold what was learnt, and need their start, by its fingerprint."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.builders import make_corpus, make_llm
from tests.runs_helper import REPOSITORY, checkpoint, fit, flags, metrics, newest, refused, rows, same, zoo
from zoo import checkpoints, weights
from zoo.backbones import LoRA
from zoo.checkpoints.system_export import _whole
from zoo.models.causal_lm import CausalLM
from zoo.training.starts import Start, files_of, fingerprint, keep, read_chain, read_starts

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")

LORA = ("--model.lora.r=2048", "--model.lora.alpha=64")  # 2 MB of adapters on the small model
REST = 64_000  # bytes of a checkpoint beside its tensors: their names, the loops, the place in the data


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("starts")
    make_llm(home / "llm")
    make_corpus(home / "meld", (2, 1, 1))
    return home


def options(home: Path, **more: object) -> list[str]:
    data = {"data": "MELD", "data__root": home / "meld", "data__batch_size": 7, "trainer__max_epochs": 1}
    return ["--model=CausalLM", *flags(**({"model__llm": home / "llm", "model__lr": 0.01} | data | more))]


@pytest.fixture(scope="module")
def stages(home, tmp_path_factory) -> Path:
    """A tree of three runs: all weights, then the upper half of them, then LoRA."""
    tree = tmp_path_factory.mktemp("stages")
    first = fit(tree / "1", *options(home))
    train = json.dumps([r"llm\.model\.model\.layers\.1\..*"])
    second = fit(tree / "2", *options(home, model__train=train, model__start_from=first))
    third = fit(tree / "3", *options(home, model__start_from=second), *LORA)
    for run in (first, second, third):
        zoo("test", f"--ckpt_path={run}")
    return tree


def run_of(tree: Path, stage: int) -> Path:
    return tree / f"{stage}" / "lightning_logs" / "version_0"


@pytest.fixture
def tree(stages, tmp_path) -> Path:
    """The runs at another place than the one that their configs name; the old one is gone, as on another machine. They
    lack the starts that they kept."""
    for config in shutil.copytree(stages, tmp_path / "tree").rglob("config*.yaml"):
        config.write_text(config.read_text().replace(str(stages), "/nosuch/machine"))
    for kept in (tmp_path / "tree").rglob("starts"):
        shutil.rmtree(kept)
    return tmp_path / "tree"


def plain(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a language model without adapters, under the names of a model without peft."""
    return {
        k.replace("base_model.model.", "").replace(".base_layer", ""): v for k, v in state.items() if ".lora_" not in k
    }


def size_of(state: dict[str, torch.Tensor]) -> int:
    return sum(v.numel() * v.element_size() for v in state.values())


def test_a_checkpoint_is_of_the_size_of_what_was_learnt(stages):
    first, third = run_of(stages, 1), run_of(stages, 3)
    state = checkpoint(third, "best")["state_dict"]
    assert all(".lora_" in name for name in state)
    adapters = size_of(state)
    assert adapters >= 1_000_000
    best, last = ((third / "checkpoints" / f"{name}.ckpt").stat().st_size for name in ("best", "last"))
    moments = sum(size_of(s) for s in checkpoint(third)["optimizer_states"][0]["state"].values())
    assert moments >= 2 * adapters
    assert best <= 1.1 * adapters + REST and last <= 1.1 * (adapters + moments) + REST
    assert size_of(checkpoint(first, "best")["state_dict"]) > 100_000  # which used to be stored once more


def test_what_is_loaded_is_what_was_there(stages):
    """A chain of three: each stage's whole model has the tensors that it trained, all others are those before it."""
    stored = [checkpoint(run_of(stages, stage), "best")["state_dict"] for stage in (1, 2, 3)]
    whole = [checkpoints.load(str(run_of(stages, stage))).state_dict() for stage in (1, 2, 3)]
    assert stored[1] and all(".layers.1." in name for name in stored[1])
    assert same(whole[0], stored[0])
    assert same(whole[1], stored[0] | stored[1])
    assert not any(torch.equal(stored[0][name], tensor) for name, tensor in stored[1].items() if "proj" in name)
    assert same(plain(whole[2]), whole[1])
    assert same({name: tensor for name, tensor in whole[2].items() if ".lora_" in name}, stored[2])
    contracts = [checkpoint(run_of(stages, stage), "best")["zoo"] for stage in (1, 2, 3)]
    assert "start" not in contracts[0] and {"path", "fingerprint"} == contracts[1]["start"].keys()
    assert [contract["format"] for contract in contracts] == [1, 2, 2]  # earlier releases read the first


def test_a_run_keeps_what_it_started_from(stages, tmp_path):
    """By links, which take no space; so a copy of its folder alone is whole."""
    third = run_of(stages, 3)
    named = [checkpoint(run_of(stages, stage), "best")["zoo"]["start"]["fingerprint"] for stage in (3, 2)]
    kept = [third / "checkpoints" / "starts" / f"{one[:12]}.ckpt" for one in named]
    assert set(kept) == set((third / "checkpoints" / "starts").iterdir())
    for file, stage in zip(kept, (2, 1), strict=True):
        assert file.samefile(run_of(stages, stage) / "checkpoints" / "best.ckpt")
    alone = shutil.copytree(third, tmp_path / "alone")
    config = alone / "config.yaml"
    config.write_text(config.read_text().replace(str(stages), "/nosuch/machine"))
    assert [link.path for link in read_chain(alone / "checkpoints" / "best.ckpt")[1:]] == [
        alone / "checkpoints" / "starts" / file.name for file in kept
    ]
    zoo("test", f"--ckpt_path={alone}")
    assert rows(alone) == rows(third)
    for name in ("best", "last"):
        (alone / "checkpoints" / f"{name}.ckpt").unlink()
    assert "holds no checkpoint" in refused("test", f"--ckpt_path={alone}")  # what it started from is another's


def test_a_start_may_be_trained_further_and_deleted(home, tmp_path):
    small = {"trainer__max_steps": 1, "trainer__limit_val_batches": 0}
    first = fit(tmp_path / "1", *options(home, **small))
    last = first / "checkpoints" / "last.ckpt"
    run = fit(tmp_path / "2", *options(home, **small, model__start_from=last), "--model.lora.r=2")
    before, start = checkpoints.load(str(run)).state_dict(), fingerprint(weights.read_checkpoint(last))
    zoo("fit", f"--ckpt_path={first}", "--trainer.max_steps=2")
    assert fingerprint(weights.read_checkpoint(last)) != start
    assert same(checkpoints.load(str(run)).state_dict(), before)
    shutil.rmtree(first)
    assert same(checkpoints.load(str(run)).state_dict(), before)
    zoo("test", f"--ckpt_path={run}")
    zoo("fit", f"--ckpt_path={run}", "--trainer.max_steps=2")
    after = checkpoints.load(str(run)).state_dict()
    assert same(plain(after), plain(before)) and not same(after, before)


def test_a_start_is_copied_where_no_link_can_be(stages, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    chain = read_chain(run_of(stages, 2) / "checkpoints" / "best.ckpt")
    start = Start("2", "", frozenset(), files_of(chain, fingerprint(chain[0])))
    keep(start, tmp_path)
    kept = sorted((tmp_path / "starts").iterdir())
    assert [file.name for file in kept] == sorted(f"{identity[:12]}.ckpt" for identity in start.files)
    assert not any(
        file.samefile(start.files[identity]) for file, identity in zip(kept, sorted(start.files), strict=True)
    )
    assert {fingerprint(weights.read_checkpoint(file)) for file in kept} == set(start.files)


def test_a_start_that_is_being_trained_is_noticed(stages, tmp_path):
    """Its file was replaced between the reading of it and the link."""
    file = run_of(stages, 1) / "checkpoints" / "best.ckpt"
    with pytest.raises(ValueError, match="best.ckpt was written anew after this run began with its weights 0123"):
        keep(Start("1", "", frozenset(), {"0123": file}), tmp_path)
    assert not any((tmp_path / "starts").iterdir()) and file.is_file()


def test_a_tree_of_runs_may_be_moved(tree, stages):
    assert "/nosuch/machine" in (run_of(tree, 3) / "config.yaml").read_text()
    moved, here = (checkpoints.load(str(run_of(place, 3))).state_dict() for place in (tree, stages))
    assert same(moved, here)
    # files of the old place are not what was found
    assert all(link.path.is_relative_to(tree) for link in read_chain(run_of(tree, 3) / "checkpoints" / "best.ckpt"))


def test_a_start_that_is_not_there_is_named(tree, stages, tmp_path):
    run = run_of(tree, 3)
    moved = shutil.move(tree / "2", tmp_path / "elsewhere")
    named = checkpoint(run, "best")["zoo"]["start"]["fingerprint"][:12]
    for verb in ("test", "fit"):
        said = refused(verb, f"--ckpt_path={run}", "--trainer.max_epochs=2")
        assert "holds only what was learnt since its start" in said and named in said
        assert "the run lightning_logs/version_0 with the weights" in said and "but it is not there, nor at" in said
        assert "Copy the whole run folder, where checkpoints/starts keeps it, or put that run beside this" in said
        assert "one as it was then, or say where it is: --model.start_from RUN" in said
    found = moved / "lightning_logs" / "version_0"
    said = refused("test", f"--ckpt_path={run}", f"--model.start_from={found}")
    assert "is not there" in said and "elsewhere/lightning_logs" in said  # that start's own start
    shutil.copytree(tree / "1", tmp_path / "1")
    zoo("test", f"--ckpt_path={run}", f"--model.start_from={found}")
    assert rows(run) == rows(run_of(stages, 3)) and metrics(run)["n"] == 7
    steps = checkpoint(run)["global_step"]
    zoo("fit", f"--ckpt_path={run}", f"--model.start_from={found}", "--trainer.max_epochs=2")
    assert checkpoint(run)["global_step"] == 2 * steps
    shutil.rmtree(moved)
    zoo("test", f"--ckpt_path={run}")  # which kept it when it went on


def test_another_start_is_refused(stages, tmp_path):
    run = shutil.copytree(run_of(stages, 3), tmp_path / "run")
    named = checkpoint(run, "best")["zoo"]["start"]["fingerprint"][:12]
    other = run_of(stages, 1)
    now = fingerprint(weights.read_checkpoint(other / "checkpoints" / "best.ckpt"))[:12]
    said = refused("fit", f"--ckpt_path={run}", f"--model.start_from={other}", "--trainer.max_epochs=2")
    assert (
        f"with the weights {named}, but --model.start_from {other} is not it: " in said and f"best.ckpt ({now})" in said
    )
    assert "Leave the option out, or give that run as it was then" in said
    assert "is not it: " in refused("test", f"--ckpt_path={run}", f"--model.start_from={other}")
    assert "no checkpoint" in refused("fit", f"--ckpt_path={run}", "--model.start_from=nosuch")
    assert not list(run.glob("config.resume-*.yaml"))


def test_a_start_may_lie_in_the_same_folder(stages, tmp_path):
    """Any file but the checkpoint itself, and what began at the same start, may be it."""
    for stage, names in ((1, ["theirs.ckpt"]), (2, ["best.ckpt", "last.ckpt"])):
        for name in names:
            shutil.copy(run_of(stages, stage) / "checkpoints" / "best.ckpt", tmp_path / name)
    file = tmp_path / "best.ckpt"
    named = weights.read_checkpoint(file).contract["start"]
    assert [link.path.name for link in read_starts(named, file, str(tmp_path / "theirs.ckpt"))] == ["theirs.ckpt"]
    with pytest.raises(FileNotFoundError, match=f"it is not there, nor at {tmp_path}"):
        read_starts({"path": "nosuch", "fingerprint": named["fingerprint"]}, file, str(tmp_path))


def test_what_cannot_be_read_is_passed_over_and_named(tree, tmp_path):
    file = run_of(tree, 2) / "checkpoints" / "best.ckpt"
    (tmp_path / "broken.ckpt").write_bytes(b"PK" + bytes(100))
    named = weights.read_checkpoint(file).contract["start"]
    (start,) = read_starts(named | {"path": str(run_of(tree, 1))}, file, str(tmp_path / "broken.ckpt"))
    assert start.path.is_relative_to(tree / "1")
    with pytest.raises(ValueError, match=r"what was found is not it: .*broken.ckpt \(unreadable: .*could not be read"):
        read_starts(named | {"path": "nosuch"}, file, str(tmp_path / "broken.ckpt"))


def test_a_start_of_another_shape_is_refused(tree):
    start, run = run_of(tree, 1), run_of(tree, 2)
    content = checkpoint(start, "best")
    name = "llm.model.model.layers.0.mlp.up_proj.weight"
    content["state_dict"][name] = content["state_dict"][name][:-1].clone()
    torch.save(content, start / "checkpoints" / "best.ckpt")
    later = checkpoint(run, "best")
    later["zoo"]["start"]["fingerprint"] = fingerprint(weights.read_checkpoint(start / "checkpoints" / "best.ckpt"))
    torch.save(later, run / "checkpoints" / "best.ckpt")
    said = refused("test", f"--ckpt_path={run}")
    assert f"{start / 'checkpoints' / 'best.ckpt'} has 1 tensors of another shape" in said and name in said


class Counting(CausalLM):
    """A model with a buffer, which peft renames as it renames parameters."""

    def build(self) -> None:
        super().build()
        self.llm.model.register_buffer("seen", torch.zeros(3))


def test_buffers_are_found_under_their_new_names(home, tmp_path):
    """All weights, then LoRA, then the same LoRA: the third knows the first's buffer by the name that peft gave it."""
    files: list[Path] = []
    for stage in range(3):
        start = str(files[-1]) if files else None
        model = Counting(llm=str(home / "llm"), start_from=start, lora=LoRA(r=2) if stage else None)
        model.configure_model()
        (buffer,) = (tensor for name, tensor in model.named_buffers() if name.endswith(".seen"))
        assert buffer.eq(stage).all()
        buffer += 1
        for parameter in model.parameters():
            parameter.data += 0.01 * parameter.requires_grad
        content: dict[str, Any] = {"state_dict": model.state_dict(), "global_step": 0}
        model.on_save_checkpoint(content)
        files.append(tmp_path / f"{stage}.ckpt")
        torch.save(content, files[-1])
    assert len(read_chain(files[-1])) == 3


def test_a_refusal_to_go_on_names_the_file_that_can(stages):
    file = run_of(stages, 1) / "checkpoints" / "best.ckpt"
    said = refused("fit", f"--ckpt_path={file}", "--trainer.max_epochs=2")
    assert f"no run can go on from it but from {file.with_name('last.ckpt')}" in said


def test_an_export_takes_what_the_file_holds(stages, tmp_path):
    """Not what a model made of it, whose dtype may be another."""
    run = shutil.copytree(run_of(stages, 3), tmp_path / "run")
    file = run / "checkpoints" / "best.ckpt"
    content = checkpoint(run, "best")
    content["state_dict"] = {name: tensor.double() for name, tensor in content["state_dict"].items()}
    torch.save(content, file)
    state, contract = _whole(file)
    assert contract.get("start") is None and len(state) > len(content["state_dict"])
    assert same({name: state[name] for name in content["state_dict"]}, content["state_dict"])


@pytest.mark.parametrize("how", ["trained further", "one number"])
def test_a_start_that_was_changed_is_noticed(how, tree, home):
    start = run_of(tree, 2)
    if how == "trained further":
        zoo("fit", f"--ckpt_path={start}", f"--model.start_from={run_of(tree, 1)}", "--trainer.max_epochs=2")
        shutil.copy(start / "checkpoints" / "last.ckpt", start / "checkpoints" / "best.ckpt")
    else:
        content = checkpoint(start, "best")
        tensor = content["state_dict"]["llm.model.model.layers.1.mlp.up_proj.weight"]
        tensor[3, 2] = torch.nextafter(tensor[3, 2], torch.tensor(9.0))
        torch.save(content, start / "checkpoints" / "best.ckpt")
        (start / "checkpoints" / "last.ckpt").unlink()  # which holds the same weights, and would do
    said = refused("test", f"--ckpt_path={run_of(tree, 3)}")
    now = fingerprint(weights.read_checkpoint(start / "checkpoints" / "best.ckpt"))[:12]
    assert "but what was found is not it: " in said and f"best.ckpt ({now})" in said
    assert "Trained further, written anew or damaged? Copy the whole run folder" in said
    assert checkpoint(run_of(tree, 3))["zoo"]["start"]["fingerprint"][:12] in said


def test_the_fingerprint_is_that_of_the_weights(stages, tmp_path):
    """Whatever else the file holds, and in which form: a last.ckpt with the optimizer, or safetensors."""
    file = run_of(stages, 1) / "checkpoints" / "best.ckpt"
    known = fingerprint(weights.read_checkpoint(file))
    torch.save(checkpoint(run_of(stages, 1)) | {"callbacks": {}}, tmp_path / "other.ckpt")
    assert fingerprint(weights.read_checkpoint(tmp_path / "other.ckpt")) == known
    content = checkpoint(run_of(stages, 1))
    name = next(iter(content["state_dict"]))
    for change in (lambda v: v.half(), lambda v: v[None], lambda v: v + 1):
        torch.save(
            content | {"state_dict": content["state_dict"] | {name: change(content["state_dict"][name])}},
            tmp_path / "other.ckpt",
        )
        assert fingerprint(weights.read_checkpoint(tmp_path / "other.ckpt")) != known


def test_adapters_on_a_start_are_trained_further(stages, home, tmp_path):
    """A fourth stage begins with the adapters of the third, whose base is that of the second and the first."""
    third = run_of(stages, 3)
    run = fit(tmp_path, *options(home, model__start_from=third, model__lr=0), *LORA)
    assert same(checkpoints.load(str(run)).state_dict(), checkpoints.load(str(third)).state_dict())
    assert len(read_chain(run / "checkpoints" / "best.ckpt")) == 4
    assert all(".lora_" in name for name in checkpoint(run)["state_dict"])


def test_a_checkpoint_of_an_earlier_release_still_loads(stages, tmp_path):
    """It holds its start's tensors, and names none; what goes on from it holds them, too."""
    run = shutil.copytree(run_of(stages, 3), tmp_path / "old" / "lightning_logs" / "version_0")
    whole = checkpoints.load(str(run)).state_dict()
    for name in ("best", "last"):
        content = checkpoint(run, name)
        content["state_dict"] = whole
        del content["zoo"]["start"]
        content["zoo"]["pristine"] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # of no names
        torch.save(content, run / "checkpoints" / f"{name}.ckpt")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(stages), "/nosuch/machine"))
    assert same(checkpoints.load(str(run)).state_dict(), whole)
    zoo("test", f"--ckpt_path={run}")
    assert rows(run) == rows(run_of(stages, 3))
    zoo("fit", f"--ckpt_path={run}", "--trainer.max_epochs=2")
    again = checkpoint(run)
    assert again["state_dict"].keys() == whole.keys() and "start" not in again["zoo"]
    assert "cannot go on with other values" in refused("fit", f"--ckpt_path={run}", "--model.start_from=elsewhere")


def test_a_system_that_is_exported_holds_everything(home, tmp_path):
    """It stands on its published base alone."""
    small = {"model__llm": "tiny-llama", "trainer__max_steps": 1, "trainer__limit_val_batches": 0}
    first = fit(tmp_path / "1", *options(home, **small))
    run = fit(tmp_path / "2", *options(home, **small, model__start_from=first), "--model.lora.r=2")
    zoo("test", f"--ckpt_path={run}")
    whole = checkpoints.load(str(run)).state_dict()
    zoo("export", f"--ckpt_path={run}", "--system", f"--out={tmp_path / 'system'}")
    shutil.rmtree(tmp_path / "1")
    shutil.move(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "starts")
    said = refused("export", f"--ckpt_path={tmp_path / 'run'}", "--system", f"--out={tmp_path / 'other'}")
    assert "needs it; but it is not there" in said and not (tmp_path / "other").exists()
    assert weights.read_checkpoint(tmp_path / "system" / "weights.safetensors").contract["start"] is None
    assert same(checkpoints.load(str(tmp_path / "system")).state_dict(), whole)
    data = flags(data__root=home / "meld", trainer__default_root_dir=tmp_path / "again")
    zoo("test", f"--ckpt_path={tmp_path / 'system'}", *data)
    assert rows(newest(tmp_path / "again")) == rows(tmp_path / "run")


def test_reading_weights_reads_no_optimizer(stages, tmp_path):
    """Damage among the optimizer's tensors stops a resume, and nothing that asks for weights alone."""
    run = shutil.copytree(run_of(stages, 1), tmp_path / "run")
    file = run / "checkpoints" / "last.ckpt"
    moment = checkpoint(run)["optimizer_states"][0]["state"][0]["exp_avg"].numpy().tobytes()
    content = bytearray(file.read_bytes())
    content[content.index(moment[:64]) + 8] ^= 1
    file.write_bytes(content)
    assert weights.read_checkpoint(file).state
    zoo("test", f"--ckpt_path={file}")
    assert "bytes were changed" in refused("fit", f"--ckpt_path={run}", "--trainer.max_epochs=2")


def test_what_cannot_be_mapped_is_read(stages, monkeypatch):
    """Some network file systems map no files."""
    file = run_of(stages, 1) / "checkpoints" / "last.ckpt"
    mapped = weights.read_checkpoint(file).state

    def refuse(name: str, *_: object) -> None:
        raise RuntimeError(f"unable to mmap 100 bytes from file <{name}>: No such device (19)")

    monkeypatch.setattr(torch.UntypedStorage, "from_file", refuse)
    with pytest.warns(UserWarning, match=r"last.ckpt is read whole, which takes memory: .*No such device"):
        assert same(weights.read_checkpoint(file).state, mapped)


# reads the weights of a file in a process of its own; prints by how many bytes its private memory grew
MEASURED = """
import sys
from pathlib import Path
from tests.memory_use import Memory
from zoo.weights import read_checkpoint

with Memory() as memory:
    checkpoint = read_checkpoint(Path(sys.argv[1]))
    assert sum(v.sum() for v in checkpoint.state.values()) == 0
print(memory.own)
"""


def test_weights_are_mapped_from_the_file(stages, tmp_path):
    """100 MB of them, and 200 MB of the optimizer's, are no memory of the process's own."""
    content = checkpoint(run_of(stages, 3))
    content["state_dict"] = {f"{i}": torch.zeros(2_500_000) for i in range(10)}
    content["optimizer_states"] = [{"state": {i: {"exp_avg": torch.ones(5_000_000)} for i in range(10)}}]
    torch.save(content, tmp_path / "large.ckpt")
    command = [sys.executable, "-c", MEASURED, tmp_path / "large.ckpt"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert int(done.stdout) < 20_000_000
