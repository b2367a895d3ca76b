"""Features of frozen encoders on disk: nothing is decoded or encoded twice, and nobody gets another one's features."""

import json
import multiprocessing
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from tests.builders import label_clip, make_ears, make_eyes, spoil
from tests.fake_corpus import attach
from tests.media_files import grey, sine, write_clip
from zoo.backbones import Vision
from zoo.data import MELD
from zoo.media import Media
from zoo.models.merit import Merit
from zoo.schema import Sample, Turn
from zoo.training.feature_files import ClipFacts, DamagedFeatures, FeatureFiles

RNG = np.random.default_rng(0)


@pytest.fixture
def home(tmp_path):
    make_eyes(tmp_path / "eyes")
    make_ears(tmp_path / "ears")
    for name, label in (("a", "joy"), ("b", "fear")):
        (tmp_path / f"{name}.mp4").write_bytes(label_clip(label, f"clip {name}"))
    write_clip(tmp_path / "long.mp4", [np.full((32, 32, 3), 90, np.uint8)] * 5, sine(300, 0.9, 16_000), rate=16_000)
    return tmp_path


@pytest.fixture
def make(home, tiny_llama):
    """Options -> a system whose features are kept."""

    def make(**options) -> Merit:
        torch.manual_seed(0)
        base = {"llm": str(tiny_llama), "vision": str(home / "eyes"), "audio": str(home / "ears"), "template": "plain"}
        base |= {"frames": 2, "audio_tokens": 3, "max_seconds": 0.6, "feature_folder": home / "features", "lora": None}
        precision = options.pop("precision", "32-true")
        model = Merit(**(base | options))
        data = SimpleNamespace(run_seed=0, samples=lambda split: [])
        attach(model, data, precision=precision).configure_model()
        return model.eval()

    return make


def sample(home, name, **part):
    path = home / f"{name}.mp4"
    target = Turn(name, "Bela", "Hooray!", "joy", video=path, audio=path, **part)
    return Sample(f"meld/test/{name}", "meld/test/d", MELD.labels, target)


@pytest.fixture
def samples(home):
    return [sample(home, "a"), sample(home, "long"), sample(home, "b"), sample(home, "b", start=0.1, end=0.3)]


def embedded(model, samples):
    with torch.no_grad():
        batch = model.collator(training=False)(samples, RNG)
        return model.embed(batch), batch


def close(a, b):
    """The same features, in batches of another size."""
    return torch.allclose(a, b, rtol=0, atol=1e-5)


def written(home):
    return sorted((home / "features").glob("*/*/*.safetensors"))


@pytest.fixture
def once(make, samples):
    """The input of the samples as a first run embeds it, which fills the folder."""
    return embedded(make(), samples)


def counted(model, monkeypatch):
    """What a system decodes and encodes from now on."""
    done = []
    for kind in ("frames", "waveform"):
        read = getattr(Media, kind)
        monkeypatch.setattr(Media, kind, lambda *a, read=read, kind=kind, **k: done.append(kind) or read(*a, **k))
    see, hear = model.vision.hidden, model.audio.pooled
    model.vision.hidden = lambda frames, **how: done.append("vision") or see(frames, **how)
    model.audio.pooled = lambda *a: done.append("audio") or hear(*a)
    return done


def test_a_later_run_decodes_and_encodes_nothing(home, make, samples, once, monkeypatch):
    first, batch = once
    assert len(written(home)) == 8 and batch["frames_known"] == batch["waves_known"] == (False,) * 4
    plain, _ = embedded(make(feature_folder=None), samples)
    later = make()
    done = counted(later, monkeypatch)
    again, batch = embedded(later, samples)
    assert done == [] and torch.equal(again, first) and torch.equal(first, plain)
    assert batch["frames"] is None and batch["waves"] is None and batch["frame_features"].shape == (4, 2, 32)
    mixed, batch = embedded(later, [samples[1], sample(home, "a", start=0.0, end=0.2), samples[0]])
    assert batch["frames_known"] == (True, False, True) and sorted(set(done)) == [
        "audio",
        "frames",
        "vision",
        "waveform",
    ]
    assert close(mixed[0], again[1]) and close(mixed[2], again[0]) and not close(mixed[1], again[0])


def test_a_renamed_clip_keeps_its_features_and_a_changed_one_does_not(home, make, samples, once, monkeypatch):
    (home / "a.mp4").rename(home / "c.mp4")
    later = make()
    done = counted(later, monkeypatch)
    assert close(embedded(later, [sample(home, "c")])[0][0], once[0][0]) and done == []
    shutil.copy(home / "b.mp4", home / "a.mp4")  # under a name whose features were another clip's
    assert close(embedded(later, [sample(home, "a")])[0][0], once[0][2]) and done == []
    assert not close(once[0][0], once[0][2])


@pytest.mark.parametrize(
    "other",
    [
        {"frames": 3},
        {"audio_tokens": 4},
        {"max_seconds": 0.5},
        {"precision": "bf16-mixed"},
        {"vision_dtype": "bfloat16"},
        {"max_clip_seconds": 5.0},
        {"vision": "darker", "audio": "deafer"},
    ],
    ids=str,
)
def test_other_settings_or_weights_have_features_of_their_own(home, make, samples, once, other):
    if "audio" in other:
        for name, source, key in (("darker", "eyes", "projection.weight"), ("deafer", "ears", "k_proj.weight")):
            spoil(home / source, home / name, lambda t, key=key: t[next(k for k in t if k.endswith(key))].mul_(1.5))
        other = {k: str(home / v) for k, v in other.items()}
    before = len(written(home))
    embedded(make(**other), samples)
    assert len(written(home)) > before


def test_weights_of_a_checkpoint_count_and_not_the_path_that_they_once_had(home, make, samples, once):
    model = make()
    with torch.no_grad():
        next(model.vision.parameters()).mul_(1.1)
    _, batch = embedded(model, samples)
    assert not any(batch["frames_known"]) and all(batch["waves_known"])


def truncated(file, other):
    file.write_bytes(file.read_bytes()[:-7])


def flipped(file, other):
    content = bytearray(file.read_bytes())
    content[-5] ^= 8
    file.write_bytes(content)


def exchanged(file, other):
    shutil.copy(other, file)


def emptied(file, other):
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncated, flipped, exchanged, emptied])
def test_a_damaged_file_is_computed_again_and_told(home, make, samples, once, damage):
    sound = safe_open(written(home)[0], "np").metadata()["encoder"]
    files = [f for f in written(home) if f.parts[-3] == sound]
    before = load_file(files[0])["features"]
    damage(files[0], files[1])
    again, batch = embedded(make(), samples)
    assert torch.equal(again, once[0]) and (load_file(files[0])["features"] == before).all()
    (row,) = batch["problems"]
    assert (
        row["problem"] == "damaged features"
        and row["reason"].endswith("computed again")
        and row["name"] == files[0].name
    )
    assert embedded(make(), samples)[1]["problems"] == []


def test_what_was_wrong_with_a_clip_is_still_told(home, make, samples, once):
    torn = home / "torn.mp4"
    write_clip(torn, [grey(i) for i in range(38)], codecs=("mpeg4", "aac"), container="avi")
    torn.write_bytes(torn.read_bytes()[:-3000])
    told = []
    for _ in range(2):
        model = make(audio=None)
        _, batch = embedded(model, [sample(home, "torn")])
        told.append(model.encoders.media.new_problems())
    assert batch["frames_known"] == (True,) and told[0] == told[1]
    assert [row["problem"] for row in told[0]] == ["damaged"]
    assert once[1]["waves_cut"] == embedded(make(), samples)[1]["waves_cut"] == 1


def test_an_encoder_that_is_trained_has_no_features_to_keep(make):
    model = make()
    model.vision.requires_grad_(True)
    with pytest.raises(
        ValueError, match=r"--model.feature_folder keeps features of frozen encoders, and .* is trained"
    ):
        model.collator(training=True)


def test_a_file_is_one_tensor_that_others_can_read_too(home, make, samples, once):
    content = [load_file(file) for file in written(home)]
    assert {tuple(c) for c in content} == {("features",)}
    assert {c["features"].dtype.name for c in content} == {"float32"}
    assert sorted(len(c["features"]) for c in content) == [2] * 4 + [3] * 4
    made_by = [json.loads(f.read_text()) for f in (home / "features").glob("*/encoder.json")]
    assert sorted(m["encoder"] for m in made_by) == ["Audio", "Vision"] and str(home) not in str(made_by)


# ---- several processes
CLIP = ("ab" * 32, None, None, None)


def work(home, seed, barrier, errors):
    torch.set_num_threads(1)
    files = FeatureFiles(home / "features", Vision(str(home / "eyes")).freeze(), {})
    barrier.wait()
    for i in range(200):
        files.write(CLIP, torch.full((40, 50), float(seed * 100 + i)), ClipFacts())
        try:
            found = files.read(CLIP)
            if found is None or found.features.unique().numel() != 1:
                errors.put("mixed")
        except DamagedFeatures as error:
            errors.put(str(error))


def test_several_processes_write_one_clip(home):
    context = multiprocessing.get_context("spawn")
    barrier, errors = context.Barrier(2), context.SimpleQueue()
    workers = [context.Process(target=work, args=(home, seed, barrier, errors)) for seed in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert errors.empty() and [w.exitcode for w in workers] == [0, 0]
    assert len(written(home)) == 1 and not list((home / "features").glob("*/*/.*"))
