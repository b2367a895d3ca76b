"""The parts of FaceClassifier and VoiceClassifier; whole runs are in test_contract.py."""

import shutil

import numpy as np
import pytest
import torch

from tests.builders import make_corpus, make_ears, make_eyes
from tests.runs_helper import fit, flags, metrics, refused, rows, zoo
from zoo.backbones import Audio, Vision
from zoo.data.meld import CLIPS
from zoo.media import Media
from zoo.models.unimodal.model import FaceClassifier, FaceCollator, VoiceCollator
from zoo.schema import Labels, Sample, Turn

pytestmark = pytest.mark.usefixtures("one_threaded", "elsewhere")
LABELS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("unimodal")
    make_eyes(home / "eyes")
    make_ears(home / "ears")
    make_corpus(home / "meld", (2, 1, 1), clips=True)
    return home


def face(home, **more):
    base = {
        "model": "FaceClassifier",
        "model__vision": home / "eyes",
        "model__size": 32,
        "data": "MELD",
        "data__root": home / "meld",
        "data__batch_size": 4,
        "trainer__max_steps": 2,
    }
    return flags(**(base | more))


def sample(path):
    turn = Turn("x", "", "hi", "joy", video=path, audio=path)
    return Sample("meld/test/x", "meld/test/d", Labels("meld", LABELS), turn)


def clips(home):
    return sorted((home / "meld" / CLIPS["train"]).glob("*.mp4"))


# ---- input processing
def test_evaluation_takes_the_middle_frames_and_training_one_of_them(home):
    path = clips(home)[0]
    every = Media().frames(path, n=4, size=32)
    rng = np.random.default_rng(0)
    seen = FaceCollator(Media(), 2, 0.5, 32, training=False)([sample(path)], rng)["frames"]
    assert seen.shape == (1, 2, 3, 32, 32) and (seen[0].numpy() == every[1:3]).all()
    training = FaceCollator(Media(), 2, 0.5, 32, training=True)
    picked = [training([sample(path)], rng)["frames"][0].numpy() for _ in range(20)]
    assert {bool((p == every[1:2]).all()) for p in picked} == {True, False}
    assert all((p == every[1:2]).all() or (p == every[2:3]).all() for p in picked)


def test_a_wide_picture_loses_its_sides(home, tmp_path):
    from tests.media_files import write_clip

    frames = np.zeros((4, 32, 64, 3), np.uint8)
    frames[:, :, 16:48] = 255  # white in the middle square
    write_clip(tmp_path / "wide.mp4", frames)
    seen = FaceCollator(Media(), 1, 1.0, 32, training=False)([sample(tmp_path / "wide.mp4")], np.random.default_rng(0))
    assert seen["frames"].shape[-2:] == (32, 32) and seen["frames"].float().mean() > 240


def test_a_film_gives_the_seconds_and_the_half_of_the_speaker(tmp_path):
    """A film of two people: grey tells the time, the left half is dark, the right one light."""
    from tests.media_files import write_clip

    pictures = np.zeros((40, 48, 128, 3), np.uint8)
    pictures[:, :, :64] = np.arange(40)[:, None, None, None] * 2
    pictures[:, :, 64:] = 150 + np.arange(40)[:, None, None, None] * 2
    write_clip(tmp_path / "film.mp4", pictures, fps=10)
    for crop, base in (("left", 0), ("right", 150)):
        turn = Turn("x", "", "hi", "joy", video=tmp_path / "film.mp4", start=2.0, end=3.0, crop=crop)
        film = Sample("iemocap/test/x", "iemocap/test/d", Labels("iemocap", LABELS), turn)
        seen = FaceCollator(Media(), 2, 0.5, 32, training=False)([film], np.random.default_rng(0))["frames"]
        assert seen.shape == (1, 2, 3, 32, 32)
        level = (seen.float().mean((0, 2, 3, 4)) - base) / 2  # number of the frame, 0.1 s each
        np.testing.assert_allclose(level, [23, 26], atol=2.0)  # at 2.375 and 2.625 s


def test_what_training_varies(home):
    path = clips(home)[0]
    still = FaceCollator(Media(), 1, 1.0, 32, training=True)

    def one(collator, seed=0):
        return collator([sample(path)], np.random.default_rng(seed))["frames"].float()

    assert (one(still, 0) == one(still, 1)).all()
    for change in ({"shift": 4}, {"light": 0.3}, {"flip": True}):
        moving = FaceCollator(Media(), 1, 1.0, 32, True, **change)
        assert any((one(moving, s) != one(still)).any() for s in range(4)), change
        assert (one(moving, 3) == one(moving, 3)).all()
    mirrored = {tuple(one(FaceCollator(Media(), 1, 1.0, 32, True, flip=True), s).flatten().tolist()) for s in range(8)}
    assert mirrored == {tuple(x.flatten().tolist()) for x in (one(still), one(still).flip(-1))}


def test_a_missing_clip_changes_nothing_for_the_others(home):
    paths = clips(home)[:3]
    for collator in (FaceCollator(Media(), 2, 0.5, 32, True, 3, 0.2, True), VoiceCollator(Media(), 9.0, True, 6.0)):
        whole = collator([sample(p) for p in paths], np.random.default_rng(0))
        torn = collator([sample(paths[0]), sample(None), sample(paths[2])], np.random.default_rng(0))
        key = "frames" if "frames" in whole else "waves"
        assert torn["present"].tolist() == [True, False, True]
        assert (torn[key][[0, 2]] == whole[key][[0, 2]]).all() and (torn[key][1] == 0).all()


def test_a_long_waveform_keeps_its_middle(home):
    path = clips(home)[0]
    wave = Media().waveform(path)
    batch = VoiceCollator(Media(), 0.1, training=False)([sample(path)], np.random.default_rng(0))
    start = (len(wave) - 1600) // 2
    assert batch["cut"] == 1 and batch["lengths"].tolist() == [1600]
    np.testing.assert_array_equal(batch["waves"][0].numpy(), wave[start : start + 1600])


# ---- heads
def test_scores_are_the_mean_log_probabilities_of_the_frames(home):
    module = FaceClassifier(str(home / "eyes"), size=32)
    module.configure_model()
    module.labels = Labels("meld", LABELS)
    frames = torch.randint(0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        own = Vision(str(home / "eyes")).eval()
        by_hand = torch.stack([own.logits(frames[:, i]).log_softmax(-1) for i in range(3)]).mean(0)
        torch.testing.assert_close(module.eval().logits({"frames": frames}), by_hand)


def test_labels_are_matched_by_name(home):
    """A head with another order and other words: verbalized, its columns come in the order of the corpus."""
    module = FaceClassifier(str(home / "eyes"), size=32, verbalizer={"joy": "happy"})
    module.configure_model()
    module.labels = Labels("meld", LABELS)
    module.vision.labels = ("anger", "happy", "neutral", "disgust", "sadness", "fear", "surprise", "contempt")
    assert module.order == [2, 6, 5, 4, 1, 3, 0]
    module.vision.labels = ("anger", "happy")
    with pytest.raises(ValueError, match="no class .'neutral'.*new_head"):
        _ = module.order


def test_a_new_head_is_trained_and_comes_back(home, tmp_path):
    run = fit(tmp_path, *face(home, model__new_head="[neutral, joy, surprise, fear, sadness, disgust, anger]"))
    zoo("test", f"--ckpt_path={run}")
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert state["head.1.weight"].shape == (7, 32)
    assert len(rows(run)) == 7


# ---- runs
def test_missing_and_broken_clips_are_counted_and_never_guessed(home, tmp_path):
    shutil.copytree(home / "meld", tmp_path / "meld")
    held = sorted((tmp_path / "meld" / CLIPS["test"]).glob("*.mp4"))
    held[0].unlink()
    held[1].write_bytes(b"not a clip")
    for name, option in (("FaceClassifier", "vision"), ("VoiceClassifier", "audio")):
        more = ["--model.size=32"] if option == "vision" else []
        part = {"vision": "eyes", "audio": "ears"}[option]
        zoo(
            "test",
            f"--model={name}",
            f"--model.{option}={home / part}",
            *more,
            "--data=MELD",
            "--zero_shot=true",
            f"--data.root={tmp_path / 'meld'}",
            "--data.max_unreadable=0.3",
            f"--trainer.default_root_dir={tmp_path / name}",
        )
        run = tmp_path / name / "lightning_logs" / "version_0"
        answers = {r["id"].rsplit("/")[-1]: r["predicted"] for r in rows(run)}
        assert [k for k, v in answers.items() if v is None] == [p.stem for p in held[:2]]
        said = metrics(run)
        assert said["unparsed"] == pytest.approx(2 / 7)
        assert 2 in said["events"].values() and said["population"]["notes"]["clips missing"] == 1


def test_no_clips_at_all_says_so(home, tmp_path):
    make_corpus(tmp_path / "text", (1, 1, 1))
    said = refused("fit", *face(home, data__root=tmp_path / "text", trainer__accelerator="cpu"))
    assert "no train sample of MELD has a clip or picture (video), so FaceClassifier would read nothing" in said
    assert f"the folder {tmp_path / 'text'} has none where its reader looks" in said  # it was given


def test_export_is_an_ordinary_encoder(home, tmp_path):
    run = fit(tmp_path, *face(home))
    zoo("export", "--ckpt_path", run / "checkpoints" / "last.ckpt", "--out", tmp_path / "eyes")
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    exported = Vision(str(tmp_path / "eyes")).state_dict()
    for key, value in exported.items():
        torch.testing.assert_close(value, state[f"vision.{key}"], rtol=0, atol=0)
    assert "has no audio" in refused("export", "--ckpt_path", run, "--part", "audio", "--out", tmp_path / "x")
    assert "only a language model" in refused("export", "--ckpt_path", run, "--merge", "--out", tmp_path / "x")


def test_export_of_a_voice(home, tmp_path):
    run = fit(
        tmp_path,
        *flags(
            model="VoiceClassifier",
            model__audio=home / "ears",
            data="MELD",
            trainer__max_steps=1,
            data__root=home / "meld",
        ),
    )
    zoo("export", "--ckpt_path", run, "--dtype", "float16", "--out", tmp_path / "ears")
    wave = torch.randn(1, 8000)
    assert Audio(str(tmp_path / "ears")).logits(wave, torch.tensor([8000])).shape == (1, 7)


@pytest.mark.parametrize(
    "options, said",
    [({"frames": 0}, "frames >= 1"), ({"middle": 0.0}, "middle"), ({"light": 1.0}, "light"), ({"shift": -1}, "shift")],
)
def test_what_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        FaceClassifier("anything", **options)


def test_class_weights(home, tmp_path):
    """They change what is learned where labels are not equally frequent."""
    states = []
    for power in (0.0, 1.0):
        shutil.rmtree(tmp_path / "odd", ignore_errors=True)
        shutil.copytree(home / "meld", tmp_path / "odd")
        table = (tmp_path / "odd" / "train_sent_emo.csv").read_text().replace(",joy,", ",anger,")
        (tmp_path / "odd" / "train_sent_emo.csv").write_text(table)
        more = {"model__class_weight": power, "trainer__max_steps": 4, "model__lr": 0.01}
        run = fit(tmp_path / str(power), *face(home, data__root=tmp_path / "odd", **more))
        states.append(torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    assert any(not torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
