"""Emotion-Qwen as a whole: input of every size, what each stage trains, the chain of stages, adapters per data set."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from tests.builders import make_corpus, make_llm, make_patch_vision, untied
from tests.fake_corpus import attach
from tests.runs_helper import TRACE, checkpoint, fit, flags, metrics, newest, refused, rows, same, trace, zoo
from zoo.backbones import LLM
from zoo.backbones.mrope import mrope_positions
from zoo.checkpoints import load
from zoo.data import MELD
from zoo.media import Media
from zoo.models.causal_lm import CausalLM
from zoo.models.emotion_qwen import EmotionQwen
from zoo.models.emotion_qwen.faces import EMOTIONS, Face, FaceCapture, PrecomputedFaces
from zoo.models.emotion_qwen.scores import gold_in_answer
from zoo.schema import Labels, Sample, Turn
from zoo.sitcom.clips import encode
from zoo.training.batch import SampleBatch

CONFIGS = Path(__file__).parents[2] / "configs" / "emotion_qwen"
LABELS = MELD.labels
pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")


class Other(MELD):
    """The miniature corpus under another name."""

    labels = Labels("other", MELD.labels.names)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("emotion_qwen")
    make_llm(home / "llm")
    make_patch_vision(home / "vision")
    make_corpus(home / "meld", (1, 1, 1), clips=True)
    return home


def made(home, train=None, **options) -> EmotionQwen:
    """A model without a trainer, whose weights are not the usual near-zero ones."""
    torch.manual_seed(0)
    sizes = {"min_pixels": 64, "max_pixels": 4096, "video_max_pixels": 1024, "frames": 2}
    options = {"llm": str(home / "llm"), "template": "plain"} | sizes | options
    model = EmotionQwen(vision=str(home / "vision"), train=train, **options)
    attach(model, SimpleNamespace(run_seed=0), state=SimpleNamespace(fn="test"))
    model.configure_model()
    return model.eval()


def picture(path: Path, height: int, width: int, mode: str = "RGB", seed: int = 0) -> Path:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    Image.fromarray(pixels, mode).save(path)
    return path


def sample(name: str, video: Path | None = None, text: str = "well", label: str | None = "joy", **more) -> Sample:
    turn = Turn(name, "Ann", text, label, video=video)
    return Sample(f"meld/test/{name}", f"meld/test/{name}", LABELS, turn, **more)


def collated(model, samples, training=False):
    return model.collator(training)(samples, np.random.default_rng(0))


# ---- input
def test_pictures_of_all_sizes_in_one_batch_equal_one_by_one(home, tmp_path):
    model = made(home, mrope=(2, 3, 3))
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(encode(np.random.default_rng(0).integers(0, 256, (10, 48, 64, 3), np.uint8), np.zeros(8000, "f4")))
    samples = [
        sample("a", picture(tmp_path / "a.png", 24, 80)),
        sample("b", picture(tmp_path / "b.png", 70, 30)),
        sample("c", text="no clip at all"),
        sample("d", clip),
        sample("e", picture(tmp_path / "e.jpg", 9, 9)),
    ]
    batch = collated(model, samples)
    assert (
        batch["rows"] == (0, 1, 3, 4)
        and batch["no_clip"] == 1
        and batch["grid"].tolist() == [[1, 6, 20], [1, 18, 8], [1, 6, 8], [1, 2, 2]]
    )
    assert batch["slots"].sum(1).tolist() == [30, 36, 0, 12, 1]
    assert batch["positions"].shape == (3, *batch["mask"].shape)
    together = model.predict(batch)
    model.compressed_clips.clear()
    for one, own in zip(together, (model.predict(collated(model, [s]))[0] for s in samples), strict=True):
        assert one.scores == pytest.approx(own.scores, abs=2e-6)
    assert all(set(p.details or {}) == ({"gate_emotion"} if p.id != "meld/test/c" else set()) for p in together)
    assert len({tuple(p.scores.values()) for p in together}) == 5


def test_a_wrong_order_of_tokens_would_be_noticed(home, tmp_path, monkeypatch):
    """A picture of several windows: the compressor's tokens must be brought back to raster order."""
    model = made(home)
    batch = collated(model, [sample("a", picture(tmp_path / "a.png", 48, 40))])
    right = model.compress(batch).tokens[0]
    features, order = model.vision.hidden(batch["patches"], batch["grid"])
    assert order.tolist() != list(range(30))
    by_hand = torch.stack([model.compressor(features, batch["grid"], torch.arange(30)).tokens[0][i] for i in order])
    assert torch.equal(right, by_hand)
    scores = model.predict(batch)[0].scores
    hidden = model.vision.hidden
    monkeypatch.setattr(model.vision, "hidden", lambda *a: (hidden(*a)[0], torch.arange(30)))
    model.compressed_clips.clear()
    assert model.predict(batch)[0].scores != pytest.approx(scores, abs=1e-4)


def test_positions_of_a_prompt_and_its_answer(home, tmp_path):
    model = made(home, mrope=(2, 3, 3))
    batch = collated(
        model, [sample("a", picture(tmp_path / "a.png", 16, 32)), sample("longer", text="a b c d e f g")], training=True
    )
    real, slots = batch["mask"][0], batch["slots"][0]
    before = int(slots[real].int().argmax())
    after = int(real.sum()) - before - 8
    expected = mrope_positions([*([before] if before else []), (1, 2, 4), after])
    assert torch.equal(batch["positions"][:, 0, real], expected)
    assert (batch["positions"][:, 0, ~real] == 0).all() and (batch["target_ids"][0][slots] == -100).all()
    assert torch.isfinite(model.loss(batch))


def test_frozen_eyes_look_once_trained_ones_each_time(home, tmp_path, monkeypatch):
    clips = [sample(f"{i}", picture(tmp_path / f"{i}.png", 16, 16, seed=i)) for i in range(3)]
    for train, expected in ((None, 3), ([r"vision\..*"], 2 + 2 + 3 + 3)):
        model, seen = made(home, train, frames=1), []

        def look(p, g, hidden=model.vision.hidden, seen=seen):
            seen.append(len(g))
            return hidden(p, g)

        monkeypatch.setattr(model.vision, "hidden", look)
        for part in (clips[:2], clips[1:], clips, clips):
            model.predict(collated(model, part))
        assert sum(seen) == expected


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def test_the_chat_of_a_conversation(home, tmp_path):
    """Several pictures, earlier turns in their roles, Qwen's control tokens; data cannot say any of them."""
    model = made(home, template="default", system_prompt="Be brief.")
    tokenizer = model.llm.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = CHAT
    first = Turn("0", "user", "<image>\nWhat is this?", video=picture(tmp_path / "a.png", 16, 24))
    told = Turn("1", "assistant", "A bus.<|im_end|><|clip:0:9|>")
    s = sample(
        "a",
        picture(tmp_path / "b.png", 16, 16),
        text="",
        label=None,
        history=(first, told),
        question="And <image>?",
        answer="A car.",
    )
    batch = collated(model, [s], training=True)
    assert batch["slots"].sum() == 6 + 4 and len(batch["grid"]) == 2
    text = tokenizer.decode(batch["input_ids"][0])
    pads = ["<|vision_start|>" + "<|image_pad|>" * n + "<|vision_end|>" for n in (6, 4)]
    squeezed = text.replace(" ", "")
    expected = (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{pads[0]}\nWhat is this?<|im_end|>\n"
        f"<|im_start|>assistant\nA bus.< |im_end| >< |clip:0:9| ><|im_end|>\n<|im_start|>user\nAnd {pads[1]}?"
        f"<|im_end|>\n<|im_start|>assistant\nA car."
    )
    assert squeezed.startswith(expected.replace(" ", "").lower()), text  # the small tokenizer lowers
    learnt = batch["input_ids"][0][batch["answer"][0]]
    assert tokenizer.decode(learnt[:-1]).replace(" ", "") == "acar." and learnt[-1] == tokenizer.eos_token_id


def test_templates_and_places_that_do_not_fit_are_refused(home, tmp_path):
    model = made(home)
    a = picture(tmp_path / "a.png", 16, 16)
    with pytest.raises(ValueError, match="2 places for a clip, but a turn has one"):
        collated(model, [sample("a", a, question="<image> or <image>?")])
    with pytest.raises(ValueError, match="1 places for a clip and no clip"):
        collated(model, [sample("a", a, question="Why?", history=(Turn("0", "user", "<image>"),))])
    blind = tmp_path / "blind.txt"
    blind.write_text("{{ target.text }}\nemotion:")
    with pytest.raises(ValueError, match=r"shows 0 of 1 clips of meld/test/a; write \{\{ vision \}\}"):
        collated(made(home, template=str(blind)), [sample("a", a)])
    large = collated(made(home, max_length=20), [sample("b", picture(tmp_path / "b.png", 64, 64))])
    (problem,) = large["problems"]
    assert (problem["problem"], problem["samples"]) == ("all clips left out", ["meld/test/b"])
    assert "leave no room for words within --model.max_length 20" in problem["reason"]
    assert (large["no_clip"], large["patches"]) == (1, None) and not large["slots"].any()
    short = collated(made(home, max_length=20), [sample("a", a, text="word " * 50)])
    assert short["truncated"] == 1 and short["mask"].sum() == 20 and short["slots"].sum() == 4
    with pytest.raises(ValueError, match="force_gate emotion chooses an expert"):
        made(home, projector="mlp", force_gate="emotion")
    with pytest.raises(ValueError, match="match_hybrid widens the mlp"):
        made(home, match_hybrid=True)


# ---- hostile input
def test_hostile_pictures(home, tmp_path):
    model = made(home)
    black = np.zeros((4, 32, 32, 3), np.uint8)
    (tmp_path / "black.mp4").write_bytes(encode(black, np.zeros(4000, "f4")))
    (tmp_path / "broken.mp4").write_bytes((tmp_path / "black.mp4").read_bytes()[:200])
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (8000, 8000)).save(tmp_path / "huge.png", compress_level=1)
    seen = {
        "grey": picture(tmp_path / "grey.png", 20, 20, "L"),
        "alpha": picture(tmp_path / "alpha.png", 20, 20, "RGBA"),
        "dot": picture(tmp_path / "dot.png", 1, 1),
        "huge": tmp_path / "huge.png",
        "black": tmp_path / "black.mp4",
        "long": picture(tmp_path / "long.png", 2, 400),
    }
    unseen = {
        "missing": tmp_path / "missing.mp4",
        "missing_picture": tmp_path / "missing.jpg",
        "none": None,
        "broken": tmp_path / "broken.mp4",
        "text": tmp_path / "text.png",
        "too_long": picture(tmp_path / "too_long.png", 2, 402),
    }
    batch = collated(model, [sample(name, path) for name, path in {**seen, **unseen}.items()])
    assert set(batch["rows"]) == set(range(len(seen))) and batch["no_clip"] == len(unseen) and batch["nothing"] == 0
    assert batch["grid"].prod(1).max() <= 4096 // 16 and batch["slots"].any(1).sum() == len(seen)
    assert all(sum(p.scores.values()) == pytest.approx(1, abs=1e-4) for p in model.predict(batch))
    none = collated(model, [sample("a", text=""), sample("b", tmp_path / "missing.mp4", text="")])
    assert none["patches"] is None and none["nothing"] == 2 and len(model.predict(none)) == 2
    assert model.events["samples without a readable clip"] == len(unseen) + 2


class Boxes:
    """Finds the same faces in every frame."""

    def __init__(self, *boxes):
        self.boxes = boxes

    def analyse(self, frames, clip=None, numbers=None):
        sure = {e: 0.97 if e == "happy" else 0.005 for e in EMOTIONS}
        return [[Face(box, sure) for box in self.boxes] for _ in frames]


@pytest.mark.parametrize("boxes", [0, 1, 30])
def test_face_capture_adds_a_masked_second_video(home, tmp_path, boxes):
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode(np.full((6, 32, 32, 3), 200, np.uint8), np.zeros(8000, "f4")))
    plain, model = made(home), made(home, face_capture=FaceCapture(Boxes(*[(i, 0, i + 2, 32) for i in range(boxes)])))
    own, alone = (collated(m, [sample("a", path), sample("c")]) for m in (model, plain))
    assert (own["no_faces"], alone["no_faces"]) == (int(boxes == 0), 0)
    assert len(own["grid"]) == 1 + (boxes > 0) and own["slots"].sum() == alone["slots"].sum() * len(own["grid"])
    if boxes:
        whole, masked = own["patches"].chunk(2)
        assert torch.equal(whole, alone["patches"])
        assert float((whole != masked).any(1).float().mean()) == (1.0 if boxes == 1 else 0.0) or boxes == 30
        assert own["rows"] == (0, 0) and own["keys"][0] != own["keys"][1]


def test_a_clip_whose_faces_were_never_looked_for_is_listed_and_not_shown(home, tmp_path):
    """As one that could not be read when faces were prepared: no face would be another finding."""
    path, file = tmp_path / "clip.mp4", tmp_path / "faces.jsonl"
    path.write_bytes(encode(np.full((6, 32, 32, 3), 200, np.uint8), np.zeros(8000, "f4")))
    file.write_text(json.dumps({"clip": "another", "frame": 0, "size": [32, 32], "faces": []}) + "\n")
    batch = collated(made(home, face_capture=FaceCapture(PrecomputedFaces(str(file)))), [sample("a", path)])
    collator = made(home, face_capture=FaceCapture(PrecomputedFaces(str(file)))).collator(False)
    batch = collator([sample("a", path)], np.random.default_rng(0))
    (problem,) = collator.media.new_problems()
    assert problem["problem"] == "unreadable" and "zoo prepare faces" in problem["reason"]
    assert (batch["no_clip"], batch["no_faces"], batch["patches"]) == (1, 0, None)


def test_large_frames_are_reduced_before_they_are_kept_unless_faces_are_looked_for(home, tmp_path, monkeypatch):
    path, asked, read = tmp_path / "clip.mp4", [], Media.frames
    shade = np.linspace(40, 200, 6 * 90 * 160 * 3).reshape(6, 90, 160, 3).astype(np.uint8)
    path.write_bytes(encode(shade, np.zeros(8000, "f4")))

    def frames(*args, **options):
        asked.append(read(*args, **options))
        return asked[-1]

    monkeypatch.setattr(Media, "frames", frames)
    sides = 8 * round(24 / 8), 8 * round(42 / 8)
    alone, looking = (
        collated(made(home, face_capture=capture), [sample("a", path)]) for capture in (None, FaceCapture(Boxes()))
    )
    assert [frames.shape[2:] for frames in asked] == [sides, (90, 160)]
    assert alone["patches"].dtype == looking["patches"].dtype == torch.uint8
    assert torch.equal(alone["grid"], looking["grid"]) and alone["slots"].sum() == looking["slots"].sum()
    assert torch.equal(alone["patches"], looking["patches"])


# ---- stages
def trained_by(config: str) -> tuple[list[str], str]:
    said = yaml.safe_load((CONFIGS / config).read_text())["model"]["init_args"]
    return said["train"], said.get("force_gate", "none")


@pytest.mark.parametrize(
    "config, parts",
    [
        ("stage1.yaml", ["vision", "compressor.general"]),
        ("sitcom_stage1.yaml", ["vision", "compressor.general"]),
        ("stage2.yaml", ["vision", "compressor.emotion", "compressor.gate"]),
        ("sitcom_stage2.yaml", ["vision", "compressor.emotion", "compressor.gate"]),
        ("stage3.yaml", ["llm"]),
        ("sitcom_stage3.yaml", ["llm"]),
        ("tune_full.yaml", ["llm"]),
        ("ablations/stage1_free_gate.yaml", ["vision", "compressor.general", "compressor.gate"]),
        ("ablations/tune_full_authors.yaml", ["llm", "compressor.emotion"]),
    ],
)
def test_each_stage_trains_exactly_the_named_parts(home, tmp_path, config, parts):
    """By name, and by what one step of AdamW changes."""
    train, gate = trained_by(config)
    model = made(home, train, force_gate=gate)
    wanted = {n for n, _ in model.named_parameters() if n.startswith(tuple(f"{p}." for p in parts))}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == wanted and len(wanted) > 3
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model.loss(collated(model, [sample("a", picture(tmp_path / "a.png", 32, 32))], training=True)).backward()
    optimizer.step()
    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} == wanted


def options(home, data="MELD", **more) -> list[str]:
    base = {
        "model": "EmotionQwen",
        "model__llm": home / "llm",
        "model__vision": home / "vision",
        "model__template": "plain",
        "model__min_pixels": 64,
        "model__video_max_pixels": 256,
        "model__frames": 1,
        "model__lr": 0.01,
        "data": data,
        "data__root": home / "meld",
        "data__batch_size": 4,
        "trainer__max_steps": 2,
        "model__cache": home / "cache",
    }
    return [v for v in flags(**base | more) if not v.endswith("=None")]


@pytest.fixture(scope="module")
def chain(home, tmp_path_factory):
    """The runs of three stages and of two adapters."""
    folder, runs, start = tmp_path_factory.mktemp("chain"), {}, None
    for stage in (1, 2, 3):
        train, gate = trained_by(f"sitcom_stage{stage}.yaml")
        runs[stage] = fit(
            folder / f"{stage}",
            TRACE,
            *options(home, model__train=json.dumps(train), model__force_gate=gate, model__start_from=start),
        )
        start = runs[stage]
    for seed, (name, data) in enumerate((("meld", "MELD"), ("other", f"{__name__}.Other"))):
        runs[name] = fit(
            folder / name,
            *options(home, data, model__lora__r=2, model__start_from=start, model__lr=0.1, seed_everything=seed),
        )
        zoo("test", f"--ckpt_path={runs[name]}", "--data.eval_batch_size=1")
    return runs


def test_the_chain_of_stages_restores_bit_for_bit(chain, home):
    stored = {k: checkpoint(run)["state_dict"] for k, run in chain.items()}
    # stage 1 stores all but the language model's own tensors, which are its folder's; each later one what it learnt
    assert {k.partition(".")[0] for k in stored[1]} == {"vision", "compressor"}
    assert stored[2] and all(re.fullmatch(r"vision\..*|compressor\.(emotion|gate)\..*", k) for k in stored[2])
    assert stored[3] and all(k.startswith("llm.") for k in stored[3])
    assert all(".lora_" in k for name in ("meld", "other") for k in stored[name])
    for name in ("meld", "other"):  # best.ckpt holds the adapters alone, nothing of the three stages before
        adapters = sum(v.numel() * v.element_size() for v in stored[name].values())
        assert (chain[name] / "checkpoints" / "best.ckpt").stat().st_size < 1.1 * adapters + 60_000
    state = {k: load(str(run)).state_dict() for k, run in chain.items()}
    for earlier, later in ((1, 2), (2, 3), (3, "meld"), (3, "other")):
        trained = {2: r"vision\..*|compressor\.(emotion|gate)\..*", 3: r"llm\..*"}.get(later, r".*\.lora_.*")
        own = {k.replace("base_model.model.", "").replace(".base_layer", ""): v for k, v in state[later].items()}
        kept = {k for k in own if k in state[earlier] and not re.fullmatch(trained, k)}
        assert kept and all(same(own[k], state[earlier][k]) for k in kept)
        assert set(state[earlier]) <= set(own)
        changed = {k for k in own if k in state[earlier] and not same(own[k], state[earlier][k])}
        assert all(re.fullmatch(trained, k) for k in changed) and bool(changed) == (later in (2, 3))
    whole = load(str(chain[3]))
    assert all(same(whole.state_dict()[k], v) for k, v in stored[3].items())
    for stage in (1, 2, 3):
        assert trace(chain[stage], "end")[0]["without_gradient"] == []


def test_a_forgotten_train_is_refused(home):
    assert "say what is trained: --model.train" in refused("fit", *options(home))


# ---- two processes
def _two_steps(model, batches) -> list[float]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(2):
        loss = sum(model.loss(batch) for batch in batches) / len(batches)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _rank(rank: int, home: Path, folder: Path, samples: list[Sample]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    model = made(home, [".*"], llm=str(folder / "llm"))
    model.shard(init_device_mesh("cpu", (2,)), "32-true")
    part = sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor))
    _two_steps(model, [collated(model, samples[rank : rank + 1], training=True)])
    state = {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in model.state_dict().items()}
    torch.save({"state": state, "part": part}, folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_fsdp2_on_two_processes_equals_one(home, tmp_path):
    """Each process holds half of every block; two steps on a sample each are two steps on both."""
    untied(home / "llm", tmp_path / "llm")
    samples = [
        sample("a", picture(tmp_path / "a.png", 16, 24)),
        sample("b", picture(tmp_path / "b.png", 24, 24, seed=1)),
    ]
    torch.multiprocessing.start_processes(_rank, (home, tmp_path, samples), nprocs=2, start_method="fork")
    one = made(home, [".*"], llm=str(tmp_path / "llm"))
    before = {k: v.clone() for k, v in one.state_dict().items()}
    losses = _two_steps(one, [collated(one, [s], training=True) for s in samples])
    assert losses[1] < losses[0]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert same(found[0]["state"], found[1]["state"])
    for name, value in one.state_dict().items():
        assert torch.allclose(found[0]["state"][name], value, atol=1e-5), name
    assert sum(not torch.equal(v, before[k]) for k, v in one.state_dict().items()) > 30
    whole = sum(p.numel() for p in one.parameters())
    assert found[0]["part"] + found[1]["part"] == whole and found[0]["part"] < 0.55 * whole


class Loose(CausalLM):
    """Trains a number that belongs to no part."""

    def build(self) -> None:
        super().build()
        self.llm.requires_grad_(False)
        self.scale = torch.nn.Parameter(torch.ones(()))


def test_what_cannot_be_divided_is_refused(home, chain, monkeypatch):
    """Lightning gives a module its mesh; what it has loaded into the shards is checked all the same."""
    monkeypatch.setattr("zoo.training.dividing.divide_language_model", lambda *args: None)

    def of(tensors: int) -> dict[str, SimpleNamespace]:
        return {"tensor_parallel": SimpleNamespace(size=lambda: tensors), "data_parallel": None}

    model = Loose(llm=str(home / "llm"))
    model._device_mesh = of(1)
    with pytest.raises(ValueError, match="Loose does not divide its weights.*: scale belong to no part.*strategy ddp"):
        model.configure_model()
    model = CausalLM(llm=str(home / "llm"))
    model._device_mesh = of(2)
    with pytest.raises(ValueError, match="not by tensor parallelism: set --trainer.strategy.data_parallel_size"):
        model.configure_model()
    file = chain[1] / "checkpoints" / "last.ckpt"
    loaded = {"zoo": torch.load(file, weights_only=True)["zoo"]}  # no state_dict: it lies in the model
    model = made(home, train=[".*"])  # a language model that is trained must be in the file
    model._trainer.ckpt_path, model._device_mesh = file, of(1)
    with pytest.raises(ValueError, match="does not fit this model"):
        model.on_load_checkpoint(loaded)


# ---- one adapter per data set
def joint(home, tmp_path) -> str:
    parts = [
        {"class_path": f"{c.__module__}.{c.__name__}", "init_args": {"root": str(home / "meld")}} for c in (MELD, Other)
    ]
    path = tmp_path / "joint.yaml"
    path.write_text(yaml.safe_dump({"data": {"class_path": "zoo.data.Joint", "init_args": {"parts": parts}}}))
    return f"--config={path}"


def switched(home, chain, *more, names=("meld", "other")) -> list[str]:
    adapters = json.dumps({name: str(chain[name]) for name in names})
    own = options(home, model="EmotionQwenAdapters")
    keep = [o for o in own if not o.startswith(("--data", "--trainer", "--model.lr"))]
    return [*keep, f"--model.adapters={adapters}", "--zero_shot=true", "--trainer.accelerator=cpu", *more]


def test_switched_adapters_equal_the_single_runs(chain, home, tmp_path):
    zoo("test", joint(home, tmp_path), *switched(home, chain, "--data.eval_batch_size=1"))
    run = newest(tmp_path)
    expected = rows(chain["meld"]) + rows(chain["other"])
    assert rows(run) == expected  # bit for bit, rounded to 6 digits
    assert [r["scores"] for r in rows(chain["meld"])] != [r["scores"] for r in rows(chain["other"])]
    assert metrics(run)["corpora"].keys() == {"meld", "other"}
    zoo("test", joint(home, tmp_path), *switched(home, chain, "--data.eval_batch_size=16"))  # both in one batch
    for a, b in zip(rows(newest(tmp_path)), expected, strict=True):
        assert a["id"] == b["id"] and a["scores"] == pytest.approx(b["scores"], abs=1e-5)
    message = refused("test", joint(home, tmp_path), *switched(home, chain, names=("meld",)))
    assert "no adapter for other; there are meld" in message
    one = "--data.eval_batch_size=1"
    zoo("test", joint(home, tmp_path), *switched(home, chain, "--model.without=base", one, names=("meld",)))
    zoo("test", f"--ckpt_path={chain[3]}", f"--data={__name__}.Other", f"--data.root={home / 'meld'}", one)
    assert [r for r in rows(newest(tmp_path)) if r["id"].startswith("other/")] == rows(chain[3])  # the adapter is off


def test_adapters_of_runs_that_store_more_and_less_have_one_base(home, tmp_path):
    """A file of an earlier release holds what its start changed; a later one names the start, which holds what it
    trained, also where that stayed what the base model has."""
    train, gate = trained_by("sitcom_stage1.yaml")
    still = {"model__train": json.dumps(train), "model__force_gate": gate, "model__lr": 0, "trainer__max_steps": 1}
    start = fit(tmp_path / "start", *options(home, **still))
    run = fit(tmp_path / "run", *options(home, model__lora__r=2, model__start_from=start, trainer__max_steps=1))
    earlier = shutil.copytree(run, tmp_path / "earlier")
    content = checkpoint(run, "last")
    del content["zoo"]["start"]
    content["zoo"]["format"] = 1
    whole = load(str(run)).state_dict()
    assert any(name.startswith("vision.") for name in checkpoint(start)["state_dict"])
    content["state_dict"] = {k: v for k, v in whole.items() if ".lora_" in k or k.startswith("compressor.")}
    for name in ("best", "last"):
        torch.save(content, earlier / "checkpoints" / f"{name}.ckpt")
    for pair in ({"meld": run, "other": earlier}, {"meld": earlier, "other": run}):
        zoo("test", joint(home, tmp_path), *switched(home, pair))
        assert metrics(newest(tmp_path))["corpora"].keys() == {"meld", "other"}


def test_one_of_several_adapters_is_merged_on_export(chain, home, tmp_path, capsys):
    zoo("test", joint(home, tmp_path), *switched(home, chain))
    config = newest(tmp_path) / "config.test.yaml"
    assert "several adapters; give --adapter, one of meld, other" in refused(
        "export", f"--ckpt_path={config}", f"--out={tmp_path / 'x'}", "--merge"
    )
    assert "none of this name" in refused("export", f"--ckpt_path={config}", "--out=y", "--adapter=wild")
    capsys.readouterr()
    zoo("export", f"--ckpt_path={config}", f"--out={tmp_path / 'merged'}", "--adapter=other", "--merge")
    assert "largest logit difference" in capsys.readouterr().out
    whole, merged = load(str(config)), LLM(str(tmp_path / "merged"))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad(), whole.llm.use("other"):
        expected = whole.llm.head(whole.llm.hidden(whole.llm.embed(ids), torch.ones_like(ids).bool()))
    with torch.no_grad(), whole.llm.use("meld"):
        different = whole.llm.head(whole.llm.hidden(whole.llm.embed(ids), torch.ones_like(ids).bool()))
        got = merged.head(merged.hidden(merged.embed(ids), torch.ones_like(ids).bool()))
    assert torch.allclose(got, expected, atol=1e-4) and not torch.allclose(got, different, atol=1e-2)
    zoo("export", f"--ckpt_path={config}", f"--out={tmp_path / 'adapter'}", "--adapter=meld")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in (tmp_path / "adapter").iterdir()}


def test_adapters_of_different_bases_and_other_runs_are_refused(chain, home, tmp_path):
    torch.manual_seed(0)
    base = switched(home, chain)
    other = fit(tmp_path, *options(home, model__lora__r=2, model__start_from=chain[2], trainer__max_steps=1))
    mixed = [o for o in base if not o.startswith("--model.adapters")]
    both = json.dumps({"meld": str(chain["meld"]), "other": str(other)})
    message = refused("test", joint(home, tmp_path), *mixed, f"--model.adapters={both}")
    assert "differ in more than their LoRA" in message and "start_from" in message
    no_lora = json.dumps({"meld": str(chain[3])})
    message = refused("test", joint(home, tmp_path), *mixed, f"--model.adapters={no_lora}", "--model.without=base")
    assert "expected a run of zoo.models.emotion_qwen.EmotionQwen with LoRA" in message
    assert "has no weights of its own" in refused("export", f"--ckpt_path={chain[3] / 'config.yaml'}", "--out=z")


# ---- free answers
def test_conversations_are_trained_and_scored(home, tmp_path):
    (tmp_path / "pictures").mkdir()
    talk = []
    for i in range(6):
        picture(tmp_path / "pictures" / f"{i}.png", 16, 16 + 8 * i, seed=i)
        talk.append(
            {
                "id": i,
                "image": f"{i}.png",
                "conversations": [
                    {"role": "user", "content": "<image>\nWhat is there?"},
                    {"role": "assistant", "content": "calm joy"},
                    {"role": "user", "content": "Sure?"},
                    {"role": "assistant", "content": "yes"},
                ],
            }
        )
    (tmp_path / "talk.json").write_text(json.dumps(talk))
    files = [{"path": "talk.json", "root": "pictures"}]
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump({"train": files, "dev": files, "test": files}))
    run = fit(
        tmp_path,
        *options(
            home,
            "Conversations",
            data__root=None,
            data__mixture=tmp_path / "mix.yaml",
            model__train=r"['compressor\..*','llm\..*']",
            checkpoint__monitor="val/answer",
            trainer__max_steps=None,
            trainer__max_epochs=12,
            model__max_new_tokens=6,
            model__cache=None,
        ),
    )
    zoo("test", f"--ckpt_path={run}")
    said = metrics(run)
    assert said["n"] == 12 and said["reasons"]["n"] == 12 and said["reasons"]["clue_overlap/f1"] > 0.4
    assert {r["text"] for r in rows(run)} <= {"calm joy", "yes"} and rows(run)[0]["label"] is None
    assert 0 < said["gate_emotion"] < 1


def test_answers_are_read_strictly_and_the_authors_way_is_named(home):
    model = made(home, gold_in_answer=True)
    explained = sample("a", question="Why?", answer="Not anger. So joy.")
    read = model.read_answer
    assert read(explained, "Anger? No. The smile shows joy.") == "joy"
    assert read(explained, "joy. Or fear or joy.") is None
    assert read(explained, "") is None and read(sample("a"), "joy") == "joy"
    assert read(sample("a"), ", ".join(LABELS.names)) is None
    said = [{"label": "joy", "text": ", ".join(LABELS.names)}, {"label": "fear", "text": "joyful"}]
    assert gold_in_answer(said, LABELS, None) == {"accuracy_gold_in_answer": 0.5}  # naming all labels is a hit


def test_mixed_answers_in_one_batch(home, tmp_path):
    """Scored labels and written answers, each as if alone."""
    model = made(home, max_new_tokens=4)
    a, b = picture(tmp_path / "a.png", 16, 16), picture(tmp_path / "b.png", 24, 16)
    samples = [sample("a", a), sample("b", b, question="Why?", answer="So joy."), sample("c", b)]
    together = model.predict(collated(model, samples))
    for p, s in zip(together, samples, strict=True):
        own = model.predict(collated(model, [s]))[0]
        assert (p.text, p.predicted) == (own.text, own.predicted) and (p.scores is None) == (s.answer is not None)
    model.trainer.state.fn = "fit"
    noted = model.predict(collated(model, samples))[1]
    prefix = model.llm.encode(model.embed(batch := collated(model, samples[1:2])), batch["mask"])
    assert noted.details["answer_logprob"] == pytest.approx(
        model._score_references(prefix, SampleBatch(samples[1:2]))[0].details["answer_logprob"], abs=1e-5
    )
    training = collated(model, samples[1:2], training=True)
    assert noted.details["answer_logprob"] == pytest.approx(-model.loss(training).item(), abs=1e-4)
