"""Features in files in the place of encoders: the same answers as the encoder, runs that train on them, bad files."""

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors

from tests.builders import make_corpus
from tests.fake_corpus import FakeCorpus, attach
from tests.runs_helper import checkpoint, fit, flags, metrics, refused, rows, zoo
from zoo.data import MELD, Synthetic
from zoo.media import Media
from zoo.models.emotion_qwen import EmotionQwen
from zoo.models.farcer import FARCER
from zoo.models.merit import Merit
from zoo.models.unimodal import FaceClassifier, VoiceClassifier
from zoo.schema import Sample, Turn
from zoo.training.given_features import FeatureFolder, GivenFeatures, UnusableFeatures, mean_of_parts, read_features

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")
RNG = np.random.default_rng(0)
WIDTH = 12


def put(path: Path, array, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.asarray(array), **options)
    return path


def folder(home: Path, **options) -> FeatureFolder:
    return FeatureFolder(f"features:{home}", "vision", Media(), **options)


def utterance(key="dia0_utt0", split="train", corpus="meld", **more) -> Sample:
    turn = Turn(key, "Ada", "Hi.", "joy", **more)
    return Sample(f"{corpus}/{split}/{key}", f"{corpus}/{split}/{key.partition('_')[0]}", MELD.labels, turn)


def read(given: FeatureFolder, sample: Sample, parts=1):
    problems = []
    clip = given.read(sample.dialogue, sample.target, parts, problems)
    return (None if clip is None else clip.features), problems


# ---- the same answers as the encoder whose features they are
@pytest.fixture(scope="module")
def sitcom(tmp_path_factory):
    home = tmp_path_factory.mktemp("sitcom") / "sitcom"
    zoo("prepare", "synthetic", "--seed=3", "--dialogues=3", f"--out={home}", "--workers=1")
    return home


@pytest.fixture(scope="module")
def utterances(sitcom):
    data = Synthetic(root=sitcom)
    return [*data.samples("train")[:4], *data.samples("test")[:4]]


def built(model, samples):
    """A system whose random weights are those of its seed, whatever encoders it has."""
    attach(model, FakeCorpus(samples)).configure_model()
    return model.eval()


def renamed(written: Path, model, samples, place: Path, modality: str) -> str:
    """The features that a system's `--model.feature_folder` holds as others publish them: a .npy for each utterance."""
    files, attribute = (
        (model.encoders.vision_files, "video") if modality == "vision" else (model.encoders.audio_files, "audio")
    )
    for s in samples:
        media = Media()
        key = (media.sha256_of(getattr(s.target, attribute)), None, None, None)
        put(place / s.id.split("/")[1] / f"{s.target.id}.npy", load_file(files.path(key))["features"])
    return f"features:{place}"


def test_features_of_the_sitcoms_encoders_give_the_same_answers(utterances, tiny_llama, tmp_path, monkeypatch):
    def merit(**options):
        torch.manual_seed(0)
        base = {"llm": str(tiny_llama), "template": "plain", "frames": 2, "audio_tokens": 3, "lora": None}
        return built(Merit(**base | options), utterances)

    def answers(model):
        model.on_test_start()
        batch = model.collator(training=False)(utterances, np.random.default_rng(0))
        assert batch["problems"] == [] and batch["no_vision"] == batch["no_audio"] == 0
        with torch.no_grad():
            return model.embed(batch), [p.scores for p in model.predict(batch)]

    encoder = merit(vision="tiny-vit-sitcom", audio="tiny-hubert-sitcom", feature_folder=tmp_path / "kept")
    projections = {
        k: v for k, v in encoder.state_dict().items() if k.startswith(("vision_projection.", "audio_projection."))
    }
    expected, scores = answers(encoder)
    by_key = [renamed(tmp_path, encoder, utterances, tmp_path / m, m) for m in ("vision", "audio")]
    homes = encoder.encoders.vision_files.home, encoder.encoders.audio_files.home
    by_clip = [f"features:{home}" for home in homes]  # as they were written
    monkeypatch.setattr(Media, "frames", None)  # no clip is decoded
    monkeypatch.setattr(Media, "waveform", None)
    for vision, audio in (by_key, by_clip):
        given = merit(vision=vision, audio=audio)
        # the projections alone: the frozen language model is the same, and has no part in them
        missing, unknown = given.load_state_dict(projections, strict=False)
        assert not unknown and len(projections) == 4 and all(k.startswith("llm.") for k in missing)
        embedded, same = answers(given)
        assert torch.equal(embedded, expected) and same == scores
    assert {k for k in given.state_dict() if k.startswith(("vision.", "audio."))} == set()


def test_farcer_and_the_heads_read_what_the_encoder_gave(utterances, tiny_llama, tmp_path):
    def farcer(**options):
        torch.manual_seed(0)
        base = {"llm": str(tiny_llama), "template": "plain", "train_shots": 0, "shots": 0, "window": 1}
        return built(FARCER(**base | options), utterances)

    def features(model):
        batch = model.collator(training=False)(utterances, np.random.default_rng(0))
        with torch.no_grad():
            return model.features(batch), batch

    encoder = farcer(vision="tiny-vit-sitcom", feature_folder=tmp_path / "kept")
    expected, of_clips = features(encoder)
    given, batch = features(farcer(vision=f"features:{encoder.feature_files.home}"))
    assert torch.equal(given, expected) and torch.equal(batch["input_ids"], of_clips["input_ids"])
    for i, s in enumerate(utterances):
        put(tmp_path / "npy" / s.id.split("/")[1] / f"{s.target.id}.npy", np.full((3, WIDTH), i) + [[-1.0], [0], [1]])
    own = farcer(vision=f"features:{tmp_path / 'npy'}")
    means, batch = features(own)
    assert {int(x) for x in means.unique()} == set(range(8)) and batch["problems"] == []
    damaged = tmp_path / "npy" / "train" / f"{utterances[0].target.id}.npy"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1])
    # of an earlier turn it is no lost sample
    for part, lost in ((utterances[1:2], []), (utterances[:2], [utterances[0].id])):
        batch = own.collator(training=False)(part, RNG)
        assert [row["samples"] for row in batch["problems"]] == [lost] and batch["missing"] == len(part)
    damaged.write_bytes(content)
    head = FaceClassifier(vision=f"features:{tmp_path / 'npy'}", new_head=list(MELD.labels.names))
    batch = built(head, utterances).collator(training=True)(utterances, RNG)
    assert batch["present"].all() and torch.equal(head.pooled(batch), torch.arange(8.0)[:, None].expand(8, WIDTH))


# ---- runs
def write_features(corpus: Path, home: Path, frames: int | None = None, without: tuple[str, ...] = ()) -> Path:
    """Features in which the label can be read, at a scale of its own."""
    rng = np.random.default_rng(1)
    codes = rng.standard_normal((len(MELD.labels), WIDTH))
    for split, samples in ((s, MELD(root=corpus).samples(s)) for s in ("train", "dev", "test")):
        for s in samples:
            vector = 500 + 30 * codes[s.label] + rng.standard_normal((frames or 1, WIDTH))
            if f"{split}/{s.target.id}" not in without:
                put(home / split / f"{s.target.id}.npy", (vector if frames else vector[0]).astype(np.float16))
    return home


@pytest.fixture(scope="module")
def meld(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("given") / "meld", (4, 1, 2))  # without a single clip


def options(meld, **more):
    base = {"data": "MELD", "data__root": meld, "data__batch_size": 8, "trainer__max_epochs": 1}
    return flags(**base | more)


HEAD = {"model__new_head": f"[{','.join(MELD.labels.names)}]", "model__standardise": "true", "model__lr": 0.3}


@pytest.mark.parametrize(
    ("system", "option", "frames"), [("FaceClassifier", "vision", None), ("VoiceClassifier", "audio", 4)]
)
def test_a_head_learns_from_features_alone(system, option, frames, meld, tmp_path):
    home = write_features(meld, tmp_path / "features", frames)
    named = {"model": system, f"model__{option}": f"features:{home}", "trainer__max_epochs": 15}
    run = fit(tmp_path, *options(meld, **named | HEAD))
    zoo("test", f"--ckpt_path={run}")
    learnt = {s.target.label for s in MELD(root=meld).samples("train")}  # the features of others are noise
    answers = [(row["predicted"], row["label"]) for row in rows(run) if row["label"] in learnt]
    assert len(answers) > 9 and all(predicted == label for predicted, label in answers)
    assert "problems" not in metrics(run)
    state, contract = checkpoint(run)["state_dict"], checkpoint(run)["zoo"]
    mean, deviation = state[f"{option}.mean"], state[f"{option}.deviation"]
    train = np.stack([np.load(home / "train" / f"{s.target.id}.npy") for s in MELD(root=meld).samples("train")])
    rows_of_train = (train if frames is None else train.astype(np.float32).mean(1)).astype(np.float64)
    np.testing.assert_allclose(mean, rows_of_train.mean(0), rtol=1e-4)
    np.testing.assert_allclose(deviation, rows_of_train.std(0), rtol=0.05)
    assert contract["bases"][option]["features"]["width"] == WIDTH
    assert str(tmp_path) not in str(contract["bases"])  # no path of this machine


def test_merit_trains_on_features_and_goes_on_only_with_them(meld, tiny_llama, tmp_path, caplog):
    home = write_features(meld, tmp_path / "features", 5, without=("train/dia0_utt0",))
    named = {"model": "Merit", "model__llm": tiny_llama, "model__template": "plain", "model__frames": 2}
    named |= {"model__vision": f"features:{home}", "model__standardise": "true", "model__embedding_scale": 1.0}
    message = refused("fit", *options(meld, **named | {"data__max_unreadable": 0}))
    assert "meld/train/dia0_utt0: has no vision features" in message and "1 of " in message
    run = fit(tmp_path, *options(meld, **named | {"data__max_unreadable": 0.1}))
    assert metrics(run)["problems"]["train"]["lost_samples"] == ["meld/train/dia0_utt0"]
    first = checkpoint(run)["state_dict"]
    assert first["vision.measured"] and float(first["vision.mean"].min()) > 400
    zoo("fit", f"--ckpt_path={run}", "--trainer.max_epochs=2")
    again = checkpoint(run)["state_dict"]
    assert torch.equal(again["vision.mean"], first["vision.mean"])
    assert not torch.equal(again["vision_projection.weight"], first["vision_projection.weight"])
    zoo("test", f"--ckpt_path={run}")
    assert len(rows(run)) == len(MELD(root=meld).samples("test"))
    # the next stages go on with them
    stage = {k: v for k, v in named.items() if k != "model__embedding_scale"} | {"data__max_unreadable": 0.1}
    stage |= {
        "model__start_from": run,
        "model__num_generations": 2,
        "model__max_new_tokens": 2,
        "trainer__max_steps": 1,
    }
    rlvr = {"model": "MeritRLVR", "model__reward_funcs+": "zoo.rl.rewards.Correct", "trainer__limit_val_batches": 0}
    alone = {k: v for k, v in stage.items() if k != "model__start_from"}  # measures the same utterances itself
    state = checkpoint(fit(tmp_path / "rlvr", *options(meld, **alone | rlvr)))["state_dict"]
    assert torch.equal(state["vision.mean"], first["vision.mean"])
    ttrl = {"model": "MeritTTRL", "data": "Adaptation", "data__corpus": "MELD", "data__corpus__root": meld}
    stage = {k: v for k, v in stage.items() if not k.startswith("data")} | {"data__batch_size": 8}
    state = checkpoint(fit(tmp_path / "ttrl", *flags(**stage | ttrl)))["state_dict"]
    assert torch.equal(state["vision.mean"], first["vision.mean"])
    assert "is 'features:" in refused("export", f"--ckpt_path={run}", "--system", f"--out={tmp_path / 'published'}")
    # other features
    assert "with standardise True, but" in refused("test", f"--ckpt_path={run}", "--model.standardise=false")
    assert "with parts 2, but" in refused("test", f"--ckpt_path={run}", "--model.frames=3")
    narrow = write_features(meld, tmp_path / "narrow", 5)
    for file in narrow.rglob("*.npy"):
        np.save(file, np.load(file)[:, 1:])
    assert "with width 12, but" in refused("test", f"--ckpt_path={run}", f"--model.vision=features:{narrow}")
    for file in narrow.rglob("*.npy"):
        np.save(file, RNG.standard_normal((5, WIDTH)))
    message = refused("test", f"--ckpt_path={run}", f"--model.vision=features:{narrow}")
    assert "was trained on other vision features" in message and "files compared" in message
    moved = tmp_path / "moved" / "meld"
    moved.mkdir(parents=True)
    os.rename(home / "test", moved / "test")
    with pytest.warns(UserWarning, match="whether the same encoder made these cannot be told"):
        zoo("test", f"--ckpt_path={run}", f"--model.vision=features:{moved.parent}")


def test_files_that_cannot_be_used_are_listed_and_counted(meld, tmp_path):
    home = write_features(meld, tmp_path / "features")
    put(home / "test" / "dia0_utt0.npy", np.full(WIDTH, np.nan))
    (home / "test" / "dia0_utt1.npy").write_bytes(b"no numpy")
    named = {"model": "FaceClassifier", "model__vision": f"features:{home}", "trainer__max_steps": 1} | HEAD
    run = fit(tmp_path, *options(meld, **named))
    message = refused("test", f"--ckpt_path={run}")
    assert (
        "of 14 test samples have no clip, picture or features that can be read" in message
        and "NaN or infinity" in message
    )
    zoo("test", f"--ckpt_path={run}", "--data.max_unreadable=0.5")
    told = metrics(run)["problems"]["test"]
    assert told["lost_samples"] == ["meld/test/dia0_utt0", "meld/test/dia0_utt1"]
    assert [Path(name).name for name in told["listed"]["unreadable"]] == ["dia0_utt0.npy", "dia0_utt1.npy"]
    assert sum(row["predicted"] is None for row in rows(run)) == 2


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["other"], "no train sample of MELD has vision features: .* holds 1 files such as other.npy; name them after"),
        (["dia0_utt0", "dia0_utt1"], "dia0_utt0.npy would stand for an utterance of meld/train and one of meld/dev"),
        ([], "no .npy or .safetensors there"),
        (None, "no such folder"),
    ],
)
def test_a_folder_that_does_not_fit_the_corpus_is_refused_before_any_work(names, expected, meld, tmp_path):
    home = tmp_path / "features"
    if names is not None:
        home.mkdir()
    for name in names or ():
        put(home / f"{name}.npy", np.ones(WIDTH))
    named = {"model": "FaceClassifier", "model__vision": f"features:{home}"} | HEAD
    message = refused("fit", *options(meld, **named, data__max_unreadable=1))
    assert re.search(expected, message), message
    assert not list(tmp_path.rglob("*.ckpt"))


# ---- where a file is looked for
def test_the_folder_of_the_corpus_and_split_comes_first(tmp_path):
    for value, place in enumerate(("meld/train", "train", ".")):
        put(tmp_path / place / "dia0_utt0.npy", np.full(WIDTH, float(value)))
    given = folder(tmp_path)
    assert [
        float(read(given, utterance(corpus=c, split=s))[0][0, 0])
        for c, s in (("meld", "train"), ("emorynlp", "train"), ("meld", "dev"))
    ] == [0, 1, 2]
    with pytest.raises(ValueError, match="one of meld/test; put the files into a folder for each split"):
        read(given, utterance(split="test"))
    missing, (problem,) = read(given, utterance("dia9_utt9"))
    assert missing is None and problem["problem"] == "missing" and problem["samples"] == ["meld/train/dia9_utt9"]
    assert read(given, utterance("../dia0_utt0"))[0] is None  # a key leads nowhere but into the folder


def test_two_files_of_one_utterance_are_refused(tmp_path):
    put(tmp_path / "train" / "a.npy", np.ones(3))
    save_file({"features": np.ones(3)}, tmp_path / "train" / "a.safetensors")
    with pytest.raises(ValueError, match=r"train/a.npy and train/a.safetensors; keep one"):
        _ = folder(tmp_path).files


def test_a_file_of_another_shape_than_the_others_is_listed(tmp_path):
    for i in range(5):
        put(tmp_path / f"dia0_utt{i}.npy", np.ones((4, WIDTH)))
    put(tmp_path / "dia0_utt0.npy", np.ones((4, 7)))
    put(tmp_path / "dia0_utt1.npy", np.ones(WIDTH))
    given = folder(tmp_path)
    assert given.shape == (True, WIDTH) and given.positions(3) == 3
    for key, shape in (("dia0_utt0", r"(4, 7)"), ("dia0_utt1", "(12,)")):
        found, (problem,) = read(given, utterance(key))
        assert found is None and problem["problem"] == "unreadable" and problem["name"].endswith(f"{key}.npy")
        assert problem["reason"] == f"holds {shape}; expected (T, 12) as the other files"
    vectors = tmp_path / "vectors"
    put(vectors / "a.npy", np.ones(WIDTH))
    assert folder(vectors).positions(3) == 1 and read(folder(vectors), utterance("a"), 3)[0].shape == (1, WIDTH)


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    for i in range(100):
        put(tmp_path / f"u{i:03}.npy", np.ones(WIDTH))
    opened = []
    monkeypatch.setattr("zoo.training.given_features.read_features", lambda p: opened.append(p) or read_features(p))
    given = folder(tmp_path)
    assert given.has("meld/train/d", utterance("u050").target) and not opened
    read(given, utterance("u050"))
    assert len(opened) == 17  # 16 that say what the folder holds


# ---- one file
def test_floating_point_of_any_kind_is_read(tmp_path):
    array = RNG.standard_normal((3, 4)).astype(np.float32)
    for kind in (np.float16, np.float32, np.float64, ">f4"):
        found = read_features(put(tmp_path / "a.npy", array.astype(kind)))
        assert found.dtype == torch.float32 and np.allclose(found, array, atol=2e-3)
    assert np.array_equal(read_features(put(tmp_path / "a.npy", np.asfortranarray(array))), array)
    for dtype in (torch.bfloat16, torch.float64):
        save_tensors({"features": torch.from_numpy(array).to(dtype)}, tmp_path / "a.safetensors")
        assert np.allclose(read_features(tmp_path / "a.safetensors"), array, atol=2e-2)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


BAD = {
    "integers": (lambda p: put(p, np.ones((2, 3), int)), r"holds int64 \(2, 3\); expected floating point, \(W,\) or"),
    "truth": (lambda p: put(p, np.ones(3, bool)), "holds bool"),
    "complex": (lambda p: put(p, np.ones(3, complex)), "holds complex128"),
    "three axes": (lambda p: put(p, np.ones((2, 3, 4))), r"holds float64 \(2, 3, 4\)"),
    "a number": (lambda p: put(p, 1.0), r"holds float64 \(\)"),
    "nothing": (lambda p: put(p, np.ones((0, 3))), r"not empty|cannot be read"),
    "no width": (lambda p: put(p, np.ones((3, 0))), r"not empty|cannot be read"),
    "NaN": (lambda p: put(p, [1.0, np.nan]), "NaN or infinity"),
    "infinity": (lambda p: put(p, [1.0, np.inf]), "NaN or infinity"),
    "too large for float32": (lambda p: put(p, [1e300]), "NaN or infinity"),
    "objects": (lambda p: put(p, np.array([Evil()], object)), "cannot be read as .npy .*[Oo]bject"),
    "a pickle": (lambda p: p.write_bytes(pickle.dumps(Evil())), "cannot be read as .npy"),
    "no bytes": (lambda p: p.write_bytes(b""), "cannot be read as .npy"),
    "an archive": (lambda p: np.savez(p.open("wb"), features=np.ones(3)), "cannot be read as .npy"),
    "half": (lambda p: p.write_bytes(put(p, np.ones((9, 9))).read_bytes()[:-100]), "cannot be read as .npy"),
    "a folder": (lambda p: p.mkdir(), "is no file"),
    "a pipe": (lambda p: os.mkfifo(p), "is no file"),
}  # fmt: skip
BAD_TENSORS = {
    "another name": ({"x": np.ones(3)}, r"holds the tensors \['x'\]; expected one, named 'features'"),
    "two": ({"features": np.ones(3), "x": np.ones(3)}, "holds the tensors"),
    "integers": ({"features": np.ones(3, int)}, r"holds int64 \(3,\)"),
    "damaged": (None, "cannot be read as .safetensors"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_arrays_are_refused(what, tmp_path):
    write, expected = BAD[what]
    write(tmp_path / "a.npy")
    with pytest.raises(UnusableFeatures, match=expected):
        read_features(tmp_path / "a.npy")
    assert not Path("unpickled").exists()


@pytest.mark.parametrize("what", BAD_TENSORS)
def test_bad_tensors_are_refused(what, tmp_path):
    tensors, expected = BAD_TENSORS[what]
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"\x08" * 40) if tensors is None else save_file(tensors, file)
    with pytest.raises(UnusableFeatures, match=expected):
        read_features(file)


def test_a_header_that_promises_more_than_there_is_takes_no_memory(tmp_path):
    put(tmp_path / "a.npy", np.ones((10, 10)))
    content = (tmp_path / "a.npy").read_bytes()
    promising = content.replace(b"10), }" + b" " * 8, b"9999999999), }")
    assert len(promising) == len(content) and promising != content
    (tmp_path / "a.npy").write_bytes(promising)
    with pytest.raises(UnusableFeatures, match="cannot be read"):
        read_features(tmp_path / "a.npy")


# ---- numbers
def test_parts_are_means_over_equal_parts():
    x = torch.arange(6.0)[:, None]
    assert mean_of_parts(x, 3).flatten().tolist() == [0.5, 2.5, 4.5]
    assert torch.equal(mean_of_parts(x, 6), x) and mean_of_parts(x, 1).item() == 2.5
    assert mean_of_parts(x[:2], 4).flatten().tolist() == [0, 0, 1, 1]  # fewer frames are repeated
    assert mean_of_parts(x, 4).flatten().tolist() == [0.5, 1.5, 3.5, 4.5]  # a frame that two parts share


def test_standardised_features_are_measured_once_on_training_utterances(tmp_path):
    values = RNG.standard_normal((6, 2, WIDTH)) * 50 + 7
    values[..., 3] = 5  # constant
    samples = [utterance(f"u{i}") for i in range(7)]  # the last without features
    for i, value in enumerate(values):
        put(tmp_path / f"u{i}.npy", value)
    part = GivenFeatures(folder(tmp_path), 2, standardise=True)
    part.measure(samples)
    given = part(torch.from_numpy(values).float()).flatten(0, 1)
    changing = [i for i in range(WIDTH) if i != 3]
    assert torch.allclose(given.mean(0), torch.zeros(WIDTH), atol=1e-3) and torch.isfinite(given).all()
    assert torch.allclose(given[:, changing].std(0, unbiased=False), torch.ones(WIDTH - 1), atol=1e-3)
    before = part.mean.clone()
    part.measure(samples[:1])
    assert torch.equal(part.mean, before)
    with pytest.raises(ValueError, match="0 of 1 training utterances have vision features"):
        GivenFeatures(folder(tmp_path), 2, standardise=True).measure(samples[6:])
    assert list(GivenFeatures(folder(tmp_path), 2).state_dict()) == []


# ---- options that make no sense
def test_options_that_would_do_nothing_are_refused(tiny_llama, tmp_path):
    given, names = f"features:{tmp_path}", list(MELD.labels.names)
    for make, expected in (
        (lambda: Merit(llm=str(tiny_llama), vision="tiny-vit-sitcom", standardise=True), "and there are none"),
        (lambda: Merit(llm=str(tiny_llama), vision=given, feature_folder=tmp_path), "here all are given in files"),
        (lambda: Merit(llm=str(tiny_llama), vision=given, vision_dtype="bfloat16"), "no dtype or revision"),
        (lambda: FARCER(llm=str(tiny_llama), vision=given, vision_tokens="all"), "stand for whole pictures"),
        (lambda: FaceClassifier(vision=given, new_head=names, flip=True), "leave out flip"),
        (lambda: VoiceClassifier(audio=given, new_head=names, gain=3.0), "leave out gain"),
        (lambda: VoiceClassifier(audio=given), "put a head on them"),
        (lambda: FaceClassifier(vision="tiny-vit-sitcom", standardise=True), "and there are none"),
        (lambda: EmotionQwen(llm=str(tiny_llama), vision=given), "compressor joins squares"),
    ):
        with pytest.raises(ValueError, match=expected):
            make()


def test_one_encoder_and_features_of_the_other_go_together(utterances, tiny_llama, tmp_path):
    for s in utterances:
        put(tmp_path / "npy" / s.id.split("/")[1] / f"{s.target.id}.npy", np.ones(WIDTH))
    kept = tmp_path / "kept"
    model = Merit(llm=str(tiny_llama), template="plain", vision=f"features:{tmp_path / 'npy'}",
                  audio="tiny-hubert-sitcom", audio_tokens=3, lora=None, feature_folder=kept)  # fmt: skip
    batch = built(model, utterances).collator(training=False)(utterances, RNG)
    with torch.no_grad():
        model.embed(batch)
    assert len(list(kept.glob("*/*/*.safetensors"))) == 8  # of the sound alone
    assert ((batch["slots"] == 1).sum(1) == 1).all() and ((batch["slots"] == 2).sum(1) == 3).all()
