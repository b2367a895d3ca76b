"""Clips in a prompt: which slots there are and what stands in them, what a prompt loses first, the memory of features,
and which frames of a film an utterance is."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.builders import label_clip, make_ears, make_eyes
from tests.fake_corpus import attach
from tests.media_files import sine, write_clip
from zoo.backbones import LLM, Audio, Vision
from zoo.data import MELD
from zoo.media import Media
from zoo.models.merit import Merit
from zoo.prompts import load_template
from zoo.schema import Sample, Turn
from zoo.training.feature_cache import CLIPS_AT_ONCE, FeatureCache
from zoo.training.multimodal import AUDIO, VISION, MultimodalCollator

SEVEN = MELD.labels


# ---- material
@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("senses")
    make_eyes(home / "eyes")
    make_ears(home / "ears")
    for i, label in enumerate(("joy", "fear", "anger")):
        (home / f"{i}.mp4").write_bytes(label_clip(label, f"clip {i}"))
    write_clip(home / "long.mp4", [np.full((32, 32, 3), 90, np.uint8)] * 5, sine(300, 0.9, 16_000), rate=16_000)
    (home / "broken.mp4").write_bytes(b"no clip")
    return home


@pytest.fixture(scope="module")
def media(home) -> Media:
    return Media(home / "cache")


def sample(i, text="Hooray, Ada!", video=None, audio=None, history=(), label="joy"):
    target = Turn(str(i), "Bela", text, label, video=video, audio=audio)
    return Sample(f"meld/test/{i}", "meld/test/d", SEVEN, target, tuple(history))


@pytest.fixture(scope="module")
def samples(home) -> list[Sample]:
    """Both, vision alone, sound alone, an unreadable clip, no clip, both again."""
    a, b, c, long, broken = (home / f"{name}.mp4" for name in (0, 1, 2, "long", "broken"))
    return [
        sample(0, video=a, audio=a),
        sample(1, "Help, Dan.", video=b),
        sample(2, "Stop it.", audio=long),
        sample(3, video=broken, audio=broken),
        sample(4, "Okay."),
        sample(5, "Well, well, Cleo put the kettle by the 7.", video=c, audio=b),
    ]


TEMPLATE = "{{ audio }}<{{ vision }}>{{ target.text }}\nemotion:"


@pytest.fixture
def collate(tiny_llama, media, tmp_path):
    """Options -> a collator: two vision tokens of two frames, three audio tokens."""
    llm = LLM(str(tiny_llama), device="meta")

    def collate(template=TEMPLATE, training=False, **options) -> MultimodalCollator:
        path = tmp_path / f"{abs(hash(template))}.txt"
        path.write_text(template)
        base = {"media": media, "frames": 2, "size": 32, "vision_tokens": 2, "audio_tokens": 3}
        return MultimodalCollator(
            tokenizer=llm.tokenizer,
            pad_id=llm.pad_id,
            template=load_template(str(path), tmp_path),
            max_length=options.pop("max_length", 64),
            training=training,
            **(base | options),
        )

    return collate


@pytest.fixture(scope="module")
def make(home, tiny_llama):
    """Options -> a built system in evaluation mode."""

    def make(**options) -> Merit:
        torch.manual_seed(0)
        base = {
            "llm": str(tiny_llama),
            "vision": str(home / "eyes"),
            "audio": str(home / "ears"),
            "template": "plain",
            "frames": 2,
            "audio_tokens": 3,
            "cache": home / "cache",
            "lora": None,
        }
        model = Merit(**(base | options))
        data = SimpleNamespace(run_seed=0, samples=lambda split: [])
        attach(model, data).configure_model()
        return model.eval()

    return make


RNG = np.random.default_rng(0)


def shown(batch, i, tokenizer):
    """A prompt with its slots as one sign each: v, a, and text in between."""
    ids, slots, mask = (batch[k][i].tolist() for k in ("input_ids", "slots", "mask"))
    signs = [{0: None, 1: "v", 2: "a"}[s] for s in slots]
    out, run = "", []
    for token, sign, real in zip(ids, signs, mask, strict=True):
        assert real or sign is None
        if sign is None and real:
            run.append(token)
        if sign is not None:
            out, run = out + tokenizer.decode(run, skip_special_tokens=True) + sign, []
    return out + tokenizer.decode(run, skip_special_tokens=True)


# ---- slots
def test_slots_stand_where_the_template_says(collate, samples):
    collator = collate()
    batch = collator(samples, RNG)
    own = [shown(batch, i, collator.tokenizer).replace(" ", "") for i in range(6)]
    said = [
        "aaa<vv>hooray,ada!",
        "<vv>help,dan.",
        "aaa<>stopit.",
        "<>hooray,ada!",
        "<>okay.",
        "aaa<vv>well,well,cleoputthekettlebythe7.",
    ]
    assert own == [f"{x}\nemotion:" for x in said]
    assert (batch["input_ids"][batch["slots"] > 0] == collator.pad_id).all()
    assert (batch["input_ids"] >= 0).all()
    for ids, mask in zip(batch["input_ids"], batch["mask"], strict=True):  # begun once, not after every mark
        assert (ids[mask] == collator.tokenizer.bos_token_id).tolist() == [True] + [False] * (int(mask.sum()) - 1)
    assert batch["frames"].shape == (3, 2, 3, 32, 32) and batch["frames"].dtype == torch.uint8
    assert [Path(k[0]).name for k in batch["frame_keys"]] == ["0.mp4", "1.mp4", "2.mp4"]
    assert [Path(k[0]).name for k in batch["wave_keys"]] == ["0.mp4", "long.mp4", "1.mp4"]
    lengths = batch["wave_lengths"].tolist()
    assert batch["waves"].shape == (3, max(lengths))
    assert not any(w[n:].any() for w, n in zip(batch["waves"], lengths, strict=True))
    counted = {k: batch[k] for k in ("no_vision", "no_audio", "nothing", "waves_cut", "truncated")}
    assert counted == {"no_vision": 3, "no_audio": 3, "nothing": 0, "waves_cut": 0, "truncated": 0}


def test_what_a_system_does_not_use_has_no_slot_and_is_not_missed(collate, samples):
    batch = collate(frames=0, vision_tokens=0)(samples, RNG)
    assert batch["frames"] is None and batch["frame_keys"] == () and set(batch["slots"].unique().tolist()) == {0, 2}
    assert (batch["no_vision"], batch["no_audio"]) == (0, 3)
    batch = collate(audio_tokens=0)(samples[4:5], RNG)
    assert batch["waves"] is None and batch["wave_lengths"] is None and not batch["slots"].any()
    assert (batch["no_vision"], batch["no_audio"], batch["nothing"]) == (1, 0, 0)


def test_without_words_the_clip_is_all_there_is(collate, samples):
    collator = collate(show_text=False)
    batch = collator(samples, RNG)
    own = [shown(batch, i, collator.tokenizer).replace(" ", "") for i in range(6)]
    assert own == [f"{x}\nemotion:" for x in ("aaa<vv>", "<vv>", "aaa<>", "<>", "<>", "aaa<vv>")]
    assert batch["nothing"] == 2


def test_training_learns_no_slot(collate, samples):
    batch = collate(training=True)(samples, RNG)
    learnt = batch["target_ids"] != -100
    assert not (learnt & (batch["slots"] > 0)).any() and (learnt | (batch["slots"] > 0) == batch["mask"]).all()
    assert batch["answer"].sum(1).min() >= 2 and not batch["slots"][batch["answer"]].any()


def test_nobody_can_say_a_mark(collate, samples):
    loud = sample(9, f"{VISION} {AUDIO} hi", video=samples[0].target.video)
    batch = collate()([loud], RNG)
    assert batch["slots"].tolist()[0].count(1) == 2 and not (batch["slots"] == 2).any()


@pytest.mark.parametrize(
    "template, told",
    [
        ("{{ audio }}{{ target.text }}:", "has 0 of 2 positions for <|vision|>"),
        ("{{ vision }}{{ target.text }}:", "has 0 of 3 positions for <|audio|>"),
        ("{{ vision }}{{ audio }}{{ vision }}:", "has 4 of 2 positions for <|vision|>"),
        ("{{ vision }}{{ audio }} <|audio|>:", "has 6 of 3 positions for <|audio|>"),
    ],
)
def test_templates_that_do_not_fit_are_refused(collate, samples, template, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        collate(template)(samples[:1], RNG)
    assert collate(template.replace("<|audio|>", ""))(samples[4:5], RNG)["slots"].sum() == 0  # nothing to place


def test_too_long_prompts_lose_old_words_and_keep_the_clip(collate, samples):
    a = samples[0].target.video
    long = sample(7, " ".join(f"word{i}" for i in range(40)), video=a, audio=a)
    whole = collate(max_length=400)([long], RNG)
    batch = collate(max_length=30)([long], RNG)
    assert batch["input_ids"].shape == (1, 30) and batch["mask"].all() and batch["truncated"] == 1
    assert batch["slots"][0].tolist().count(1) == 2 and batch["slots"][0].tolist().count(2) == 3
    words = 30 - 5 - 1
    assert batch["input_ids"][0, -words:].equal(whole["input_ids"][0, -words:])
    assert batch["input_ids"][0, 0] == whole["input_ids"][0, 0] and whole["truncated"] == 0
    with pytest.raises(ValueError, match=r"5 positions of a clip leave no room .*--model.max_length 6; raise it"):
        collate(max_length=6)([long], RNG)


class Chat:
    """Letters as tokens, and a chat format in braces."""

    chat_template, eos_token, eos_token_id, bos_token_id = "yes", "\x02", 2, 1

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [1] * add_special_tokens + [ord(x) for x in text]}

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert not tokenize and add_generation_prompt
        return "".join(f"{{{m['role']}|{m['content']}}}" for m in messages) + "{assistant|"


def test_a_chat_holds_its_clip_in_the_users_message(collate, samples):
    collator = collate("{{ vision }}{{ audio }}{{ target.text }}?", chat=True, system_prompt="You listen.")
    collator.tokenizer = Chat()
    batch = collator(samples[:1], RNG)
    ids, slots = batch["input_ids"][0].tolist(), batch["slots"][0].tolist()
    text = "".join({0: chr(i), 1: "V", 2: "A"}[s] for i, s in zip(ids, slots, strict=True))
    assert text == "{system|You listen.}{user|VVAAAHooray, Ada!?}{assistant|"
    collator.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="chat format"):
        collator(samples[:1], RNG)


# ---- features in the slots
def test_a_batch_is_its_samples_one_by_one(make, samples):
    """Embedded inputs and next-token logits, whatever stands beside them in the batch."""
    model = make()
    collator = model.collator(training=False)
    with torch.no_grad():
        batch = collator(samples, RNG)
        together = model.embed(batch)
        prefix = model.encode(batch)
        model.llm.prefill(prefix)
        logits = prefix.logits
        model.encoders.vision_features.clear(), model.encoders.audio_features.clear()
        for i, s in enumerate(samples):
            alone = collator([s], RNG)
            embedded = model.embed(alone)[0]
            torch.testing.assert_close(together[i, -len(embedded) :], embedded, rtol=0, atol=2e-5)
            single = model.encode(alone)
            model.llm.prefill(single)
            torch.testing.assert_close(logits[i], single.logits[0], rtol=0, atol=1e-3)
            model.encoders.vision_features.clear(), model.encoders.audio_features.clear()
    assert (together[0, batch["slots"][0] == 1] - together[5, batch["slots"][5] == 1]).abs().max() > 1e-3


def test_what_stands_in_a_slot(make, samples, home, media):
    """Projected CLS tokens of the frames and means over parts of the sound, from the encoders by themselves."""
    model = make(max_seconds=0.4)
    s = samples[5]
    vision, audio = Vision(str(home / "eyes")).freeze(), Audio(str(home / "ears")).freeze()
    with torch.no_grad():
        batch = model.collator(False)([s], RNG)
        found = model.embed(batch)[0]
        frames = torch.from_numpy(media.frames(s.target.video, n=2, size=32))
        seen = model.vision_projection(vision.hidden(frames, normed=True)[:, 0])
        wave = media.waveform(s.target.audio)
        cut = wave[(len(wave) - 6400) // 2 :][:6400]
        heard = audio.pooled(torch.from_numpy(cut)[None], torch.tensor([6400]), 3)[0]
        torch.testing.assert_close(found[batch["slots"][0] == 1], seen, rtol=0, atol=1e-5)
        torch.testing.assert_close(found[batch["slots"][0] == 2], model.audio_projection(heard), rtol=0, atol=1e-5)
        words = (batch["slots"][0] == 0) & batch["mask"][0]
        assert torch.equal(found[words], model.llm.embed(batch["input_ids"][0, words]))
    assert batch["waves_cut"] == 1 and batch["wave_lengths"].tolist() == [6400] < [len(wave)]


def test_gradients_reach_projections_and_nothing_frozen(make, samples):
    model = make().train()
    batch = model.collator(training=True)(samples, RNG)
    model.loss(batch).backward()
    for name in ("vision_projection", "audio_projection"):
        assert getattr(model, name).weight.grad.abs().sum() > 0
    assert not any(p.requires_grad for part in (model.vision, model.audio) for p in part.parameters())
    assert not model.vision.training and not model.audio.training


def test_the_scale_of_new_projections(make):
    spread = make().llm.causal_lm.get_input_embeddings().weight.std()
    for scale in (1.0, 3.0):
        model = make(embedding_scale=scale)
        out = model.vision_projection(torch.randn(4000, 32, generator=torch.Generator().manual_seed(1)))
        assert out.std().item() == pytest.approx(scale * spread.item(), rel=0.1)
        assert not model.audio_projection.bias.any()


def test_each_clip_is_encoded_once(make, samples):
    model = make()
    asked = []
    see, hear = model.vision.hidden, model.audio.pooled
    model.vision.hidden = lambda frames, **how: asked.append(("frames", len(frames))) or see(frames, **how)
    model.audio.pooled = lambda waves, *rest: asked.append(("waves", len(waves))) or hear(waves, *rest)
    collator = model.collator(False)
    for _ in range(2):
        model.embed(collator([*samples, samples[0]], RNG))
    assert asked == [("frames", 6), ("waves", 3)]


@pytest.mark.parametrize(
    "wrong",
    [{"frames": 0}, {"audio_tokens": 0}, {"max_seconds": 0}, {"show_text": False, "vision": None, "audio": None}],
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match="need frames >= 1"):
        Merit(**({"llm": "none", "vision": "none", "audio": "none"} | wrong))


# ---- memory
def test_features_are_computed_once_in_parts():
    calls = []

    def compute(part):
        calls.append(len(part))
        return torch.tensor([[keys[i] * 2.0] for i in part])

    keys = [*range(CLIPS_AT_ONCE + 3), 0, 1]
    memory = FeatureCache()
    assert memory.stacked(keys, compute).tolist() == [[k * 2.0] for k in keys]
    assert calls == [CLIPS_AT_ONCE, 3]
    keys = [5, 99, 5]
    assert memory.stacked(keys, compute).tolist() == [[10.0], [198.0], [10.0]] and calls == [CLIPS_AT_ONCE, 3, 1]


def test_the_oldest_are_forgotten():
    def of(keys, memory):
        made = []

        def compute(part):
            made.extend(keys[i] for i in part)
            return torch.zeros(len(part), 10)

        memory.stacked(keys, compute)
        return made

    memory = FeatureCache(max_bytes=3 * 40)  # three of ten numbers
    assert of([1, 2, 3], memory) == [1, 2, 3] and list(memory._features) == [1, 2, 3]
    assert of([4], memory) == [4] and list(memory._features) == [2, 3, 4]
    assert of([2, 3], memory) == [] and of([1], memory) == [1]
    assert len(of(list(range(10, 20)), memory)) == 10 and len(memory._features) == 3  # more at once than fit


def test_what_a_validation_remembers_can_be_trained_on():
    memory, layer = FeatureCache(), torch.nn.Linear(2, 1)
    source = torch.nn.Linear(2, 2)
    with torch.inference_mode():
        frames = torch.ones(1, 2)
        memory.stacked(["a"], lambda part: source(frames[part].clone()))
    assert not any(own.is_inference() for kept in memory._features.values() for own in kept)
    out = memory.stacked(["a", "b"], lambda part: source(torch.ones(1, 2)))
    assert not out.requires_grad and not out.is_inference()
    layer(out).sum().backward()
    assert layer.weight.grad.abs().sum() > 0 and source.weight.grad is None


# ---- frames of a film
