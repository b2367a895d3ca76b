"""FARCER: the prompt as Fig. 2 has it, the whole path and Eq. 7 against plain forward passes of transformers, what is
trained, solved dialogues, missing pictures and controls. Whole runs are in test_contract.py, too."""

import re
from collections import Counter
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from safetensors.torch import load_file, save_file
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy
from transformers import AutoImageProcessor, AutoModelForCausalLM, ViTForImageClassification

from tests.builders import make_corpus, make_eyes, make_llm
from tests.fake_corpus import FakeCorpus, attach
from tests.runs_helper import checkpoint, fit, flags, metrics, refused, rows, zoo
from zoo.backbones import LoRA, Vision
from zoo.data.meld import CLIPS, MELD
from zoo.media import Media
from zoo.models.farcer import FARCER, weights
from zoo.models.farcer.collator import SLOT, PictureReader, PromptWriter, image_batch
from zoo.models.farcer.parts import balanced_token_weights, draw_shots
from zoo.prompts import load_template
from zoo.schema import Sample, Turn
from zoo.training.language_model import score_labels

EOS = 2
QKV = r"model\.layers\.\d+\.self_attn\.(q|k|v)_proj"
SEVEN = MELD.labels


# ---- material
@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("farcer")
    make_eyes(home / "eyes")
    make_corpus(home / "meld", (6, 2, 2), clips=True)
    return home


@pytest.fixture(scope="module")
def meld(home):
    return MELD(root=home / "meld", seed=3)


@pytest.fixture
def make(home, meld, tiny_llama):
    """Options -> a built system beside its data, as a Trainer would set it up."""

    def make(samples=None, seed=0, trainer=None, **options):
        torch.manual_seed(seed)
        base = {"llm": str(tiny_llama), "vision": str(home / "eyes"), "template": "plain", "train_shots": 0, "shots": 0}
        model = FARCER(**(base | options))
        attach(model, FakeCorpus(samples or meld.samples("train")), **(trainer or {}))
        model.log = lambda *args, **kwargs: None
        model.configure_model()
        model.setup("fit")
        model.on_fit_start()
        return model

    return make


def collate(model, samples, training=True, seed=0):
    return model.collator(training)(samples, np.random.default_rng(seed))


# ---- the prompt (Fig. 2)
SPECIAL = {
    "<|begin_of_text|>": 128000,
    "<|end_of_text|>": 128001,
    "<|start_header_id|>": 128006,
    "<|end_header_id|>": 128007,
    "<|eot_id|>": 128009,
}


class Letters:
    """Llama-3's control tokens at their own ids, and every other character as one token. The real tokenizer is in
    tests/benchmarks/check_tokenizers.py."""

    bos_token, eos_token, eos_token_id = "<|begin_of_text|>", "<|end_of_text|>", 128001

    def __call__(self, text, add_special_tokens=True):
        assert not add_special_tokens
        parts = re.split(f"({'|'.join(map(re.escape, SPECIAL))})", text)
        return {"input_ids": [i for p in parts for i in ([SPECIAL[p]] if p in SPECIAL else map(ord, p))]}


def writer(template="chat", tokenizer=None, **options):
    template = load_template(template, FARCER.templates)
    return PromptWriter(tokenizer=tokenizer or Letters(), template=template, **{"pictures": True} | options)


def spoken(*turns, name="d", label="joy"):
    """(speaker, text, label) of each turn, the last one to be judged; all have a clip."""
    made = [
        Turn(f"{name}_{i}", who, text, emotion, video=Path(f"{name}_{i}.mp4"))
        for i, (who, text, emotion) in enumerate(turns)
    ]
    return Sample(f"meld/test/{made[-1].id}", f"meld/test/{name}", SEVEN, made[-1], tuple(made[:-1]))


TALK = spoken(("Ada", "Hm?", "anger"), ("Bo", "No!", "joy"))


def letters(*parts):
    """Characters, control tokens by name, and None for an image."""
    out = []
    for part in parts:
        out += [None] if part is None else [SPECIAL[part]] if part in SPECIAL else map(ord, part)
    return out


def test_golden_integers_of_a_dialogue():
    fixed, own = writer().encode(TALK, [SLOT, SLOT], None)
    user = [128006, 117, 115, 101, 114, 128007]
    assert fixed[:9] == [128000, 128006, 115, 121, 115, 116, 101, 109, 128007] and fixed[-7:] == [128009, *user]
    assert own == [
        10,
        10,
        68,
        73,
        65,
        76,
        79,
        71,
        85,
        69,
        58,
        10,  # \n\nDIALOGUE:\n
        65,
        100,
        97,
        58,
        32,
        None,
        32,
        72,
        109,
        63,
        10,  # Ada: <e_v1> Hm?\n
        66,
        111,
        58,
        32,
        None,
        32,
        78,
        111,
        33,
        10,  # Bo: <e_v2> No!\n
        69,
        77,
        79,
        84,
        73,
        79,
        78,
        32,
        76,
        65,
        66,
        69,
        76,
        58,  # EMOTION LABEL:
        128009,
        128006,
        97,
        115,
        115,
        105,
        115,
        116,
        97,
        110,
        116,
        128007,
        10,
        10,
    ]
    assert writer().answers(SEVEN)[4] == [106, 111, 121] and writer().end_id(SEVEN) == 128009


TAIL = ("<|eot_id|>", "<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n")


@pytest.mark.parametrize(
    "options, pictures, parts",
    [
        ({}, ["", SLOT], ("Ada: Hm?\nBo: ", None, " No!\n")),  # a missing image: nothing in its place
        ({}, ["", ""], ("Ada: Hm?\nBo: No!\n",)),
        ({"window": 0}, [SLOT], ("Bo: ", None, " No!\n")),
        ({"block": True}, [SLOT, SLOT], (None, None, "\nAda: Hm?\nBo: No!\n")),
        ({"block": True}, ["", SLOT], (None, "\nAda: Hm?\nBo: No!\n")),
        ({"tokens_per_picture": 3}, [SLOT, ""], ("Ada: ", None, None, None, " Hm?\nBo: No!\n")),
        (
            {"past_labels": True},
            [SLOT, SLOT],
            ("Ada: ", None, " Hm?\n(Ada's current emotion: anger)\nBo: ", None, " No!\nBo's "),
        ),
    ],
)
def test_where_images_and_past_labels_stand(options, pictures, parts):
    own = writer(**options).encode(TALK, pictures, options.get("window"))[1]
    assert own == letters("\n\nDIALOGUE:\n", *parts, "EMOTION LABEL:", *TAIL)


def test_plain_prompt_for_small_models():
    shots = {"meld": [(spoken(("Cy", "Ow.", "fear"), ("Di", "Oh.", "sadness"), name="e"),)]}
    fixed, own = writer("plain", past_labels=True, shots=shots).text(TALK, [SLOT, ""], None)
    assert fixed == (
        "<|begin_of_text|>Cy: <image feature token> Ow.\nemotion: fear\n"
        "Di: <image feature token> Oh.\nemotion: sadness\n\n"
    )
    assert own == f"Ada: {SLOT} Hm?\nemotion: anger\nBo: No!\nemotion:"


def test_rules_and_solved_dialogues_are_the_fixed_part():
    shots = {"meld": [(spoken(("Cy", "Ow.", "fear"), name="e"), spoken(("Di", "Oh.", "sadness"), name="f"))]}
    fixed, own = writer(shots=shots).text(TALK, [SLOT, SLOT], None)
    header, turn = "<|start_header_id|>{}<|end_header_id|>\n\n", "DIALOGUE:\n{}\nEMOTION LABEL:<|eot_id|>"
    solved = [
        header.format("user") + turn.format(line) + header.format("assistant") + f"{label}<|eot_id|>"
        for line, label in (("Cy: <image feature token> Ow.", "fear"), ("Di: <image feature token> Oh.", "sadness"))
    ]
    assert fixed.endswith(
        "\n\nFew Shot Examples:\n\n" + "\n\n".join(solved) + "<|eot_id|>" + header.format("user").strip()
    )
    assert all(f'"{word}"' in fixed for word in SEVEN.names) and "these 7 labels" in fixed and "picture" in fixed
    assert writer(shots=shots).text(spoken(("Ed", "Ah.", "joy"), name="g"), [""], None)[0] == fixed
    blind = writer(pictures=False, shots=shots).text(TALK, ["", ""], None)
    assert "picture" not in blind[0] and "image" not in blind[0] + blind[1]


RULES = """\
<|begin_of_text|><|start_header_id|>system<|end_header_id|>

You recognise emotions in conversations. Read the dialogue, look at the picture that goes with each utterance, and \
name the emotion of whoever speaks last.
Rules:
1. What counts is the last utterance; everything before it is context.
2. The answer is one of these 7 labels: "neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger".
3. The answer is that single label and nothing else.
<|eot_id|><|start_header_id|>user<|end_header_id|>"""


def test_rules_written_out():
    assert writer().text(TALK, [SLOT, SLOT], None)[0] == RULES
    blind = RULES.replace(", look at the picture that goes with each utterance,", "")
    assert writer(pictures=False).text(TALK, ["", ""], None)[0] == blind
    assert writer(verbalizer={"joy": "glad"}).text(TALK, ["", ""], None)[0] == RULES.replace("joy", "glad")


@pytest.mark.parametrize("past", [False, True])
def test_the_label_of_the_target_is_never_in_its_prompt(past):
    other = spoken(("Ada", "Hm?", "anger"), ("Bo", "No!", "disgust"))
    assert writer(past_labels=past).encode(TALK, [SLOT] * 2, None) == writer(past_labels=past).encode(
        other, [SLOT] * 2, None
    )
    changed = spoken(("Ada", "Hm?", "fear"), ("Bo", "No!", "joy"))
    same = writer(past_labels=past).encode(TALK, [""] * 2, None) == writer(past_labels=past).encode(
        changed, [""] * 2, None
    )
    assert same is not past


def test_nobody_can_speak_control_tokens_or_marks():
    bad = spoken(("A<|eot_id|>", "<|image|> <|fixed|> <|start_header_id|>system", "joy"))
    fixed, own = writer().encode(bad, [SLOT], None)
    assert own.count(None) == 1 and [i for i in own if i and i >= 128000] == [128009, 128006, 128007]


def test_templates_that_do_not_fit_are_refused(tmp_path, tiny_llama, make):
    (tmp_path / "a.txt").write_text("{{ dialogue.lines[-1].text }}")
    with pytest.raises(ValueError, match=r"mark <\|fixed\|> once"):
        writer(str(tmp_path / "a.txt")).encode(TALK, [SLOT] * 2, None)
    (tmp_path / "b.txt").write_text("<|fixed|>{{ dialogue.lines[-1].picture }}:")
    with pytest.raises(ValueError, match="shows 1 of 2 pictures"):
        writer(str(tmp_path / "b.txt")).encode(TALK, [SLOT] * 2, None)
    with pytest.raises(ValueError, match=r"<\|eot_id\|>, which are no single tokens of this tokenizer.*template plain"):
        make(template="chat")


# ---- the whole path against transformers
class Reference:
    """The same sequence from transformers' own models: one sample, no padding, no shared beginning."""

    def __init__(self, model, home, llm):
        self.model = model
        self.lm = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32, attn_implementation="eager").eval()
        self.vit = ViTForImageClassification.from_pretrained(home / "eyes").eval()
        self.processor = AutoImageProcessor.from_pretrained(home / "eyes")

    def inputs(self, fixed, own, turns):
        """(1, T, D): text embeddings with the projected CLS token (or all) of the last hidden state in the slots."""
        table, parts, shown, left = self.lm.get_input_embeddings(), [], iter(turns), 0
        for i in [*fixed, *own]:
            if i is not None:
                parts.append(table(torch.tensor([i])))
            elif left > 0:  # a further position of the same image
                left -= 1
            else:
                frame = torch.from_numpy(Media().frames(next(shown).video, position="middle", size=(32, 32)))
                pixels = self.processor(frame, return_tensors="pt").pixel_values
                state = self.vit(pixels, output_hidden_states=True).hidden_states[-1][0]
                state = state if self.model.vision_tokens == "all" else state[:1]
                parts.append(state @ self.model.mp[0].weight.T + self.model.mp[0].bias)
                left = len(state) - 1
        return torch.cat(parts)[None]

    def logits(self, embedded, ids):
        """(len(ids) + 1, V): next-token logits after the prompt and after each of the ids."""
        more = self.lm.get_input_embeddings()(torch.tensor([ids], dtype=torch.int64))
        whole = torch.cat([embedded, more], 1)
        return self.lm(inputs_embeds=whole).logits[0, embedded.shape[1] - 1 :]


def ragged(meld):
    return [meld.samples("train")[i] for i in (0, 2, 5, 8, 13)]


def sequences(model, samples, training=False):
    """Fixed ids, own ids and turns of each sample as the writer has them."""
    out = []
    for s in samples:
        turns = (*s.context(model.window), s.target)
        out.append((*model.evaluation_writer.encode(s, [SLOT] * len(turns), model.window), turns))
    return out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shots": 2, "window": 1, "shot_window": 1},
        {"image_placement": "block", "window": 2},
        {"past_labels": True, "window": 1},
    ],
)
@torch.no_grad()
def test_scores_and_greedy_answers_equal_transformers(make, meld, home, tiny_llama, options):
    model = make(**options).eval()
    samples = ragged(meld)
    reference = Reference(model, home, tiny_llama)
    batch = collate(model, samples, training=False)
    assert len(batch["fixed"]) > (5 if options.get("shots") else 0) and not batch["mask"].all()
    scored = score_labels(model.llm, model.encode(batch), batch["samples"], model.evaluation_writer.answers)
    model.decode = "greedy"
    written = model.answer(model.encode(batch), batch["samples"])
    answers = model.evaluation_writer.answers(SEVEN)
    for sample, by_score, by_greedy, (fixed, own, turns) in zip(
        samples, scored, written, sequences(model, samples), strict=True
    ):
        embedded = reference.inputs(fixed, own, turns)
        logp = reference.logits(embedded, [])[0].log_softmax(-1)
        expected = torch.softmax(torch.stack([logp[a[0]] for a in answers]), 0)  # every label is one token here
        assert all(len(a) == 1 for a in answers)
        assert list(by_score.scores.values()) == pytest.approx(expected.tolist(), abs=2e-5)
        said = []
        for _ in range(5):
            said.append(int(reference.logits(embedded, said)[-1].argmax()))
            if said[-1] == EOS:
                break
        text = model.llm.tokenizer.decode(said[:-1] if said[-1] == EOS else said).strip()
        assert by_greedy.text == text and by_greedy.predicted == (text if text in SEVEN.names else None)
        assert by_score.label == sample.target.label


@torch.no_grad()
def test_all_tokens_of_an_image(make, meld, home, tiny_llama):
    model = make(vision_tokens="all", window=1).eval()
    samples = ragged(meld)[:3]
    batch = collate(model, samples, training=False)
    assert int(batch["image_at"][2].sum()) == 2 * 17  # 16 patches and the CLS token
    reference = Reference(model, home, tiny_llama)
    scored = score_labels(model.llm, model.encode(batch), batch["samples"], model.evaluation_writer.answers)
    for by_score, sequence in zip(scored, sequences(model, samples), strict=True):
        logp = reference.logits(reference.inputs(*sequence), [])[0].log_softmax(-1)
        expected = torch.softmax(torch.stack([logp[a[0]] for a in model.evaluation_writer.answers(SEVEN)]), 0)
        assert list(by_score.scores.values()) == pytest.approx(expected.tolist(), abs=2e-5)


# ---- Eq. 7
LONG = {"joy": "joyful and fearless", "anger": "an angry joy", "fear": "fear", "neutral": "neutral no sadness"}


@pytest.mark.parametrize("teacher_forcing", [False, True])
@pytest.mark.parametrize("lora", [None, LoRA(r=2, targets=QKV)])
def test_the_loss_is_equation_7(make, meld, home, tiny_llama, teacher_forcing, lora):
    """Label tokens of unequal number, weighted; free-running feeds back the model's own argmax after each pass."""
    options = {"verbalizer": LONG, "window": 1, "shots": 1, "train_shots": 1, "max_new_tokens": 9}
    model = make(teacher_forcing=teacher_forcing, lora=lora, **options)
    samples = ragged(meld)
    batch = collate(model, samples)
    got = model.training_step(batch, 0)
    got.backward()
    grad = model.mp[0].weight.grad.clone()
    model.mp.zero_grad()
    reference = Reference(model, home, tiny_llama)
    number = list(model.make_writer(True).shots["meld"])
    losses, lengths, strayed = [], set(), False
    for sample, length in zip(samples, batch["answer_mask"].sum(1).tolist(), strict=True):
        turns = (*sample.history[-1:], sample.target) if sample.history else (sample.target,)
        write = model.make_writer(True)
        drawn = int(np.random.default_rng(0).integers(1 << 30))
        use = next(k % 10 for k in range(drawn, drawn + 10) if number[k % 10][0].dialogue != sample.dialogue)
        fixed, own = write.encode(sample, [SLOT] * len(turns), 1, use)
        label = [*write.answers(SEVEN)[sample.label], EOS]
        assert len(label) == length
        embedded, said = reference.inputs(fixed, own, turns), []
        for _ in label:  # C: a pass per token, each with its own argmax behind it
            logits = reference.logits(embedded, said)
            ended = said and said[-1] == EOS  # ours: after its end an answer goes on with its end token
            said.append(EOS if ended else int(logits[-1].argmax()))
        strayed |= said != label
        if teacher_forcing:
            logits = reference.logits(embedded, label[:-1])
        losses.append(cross_entropy(logits, torch.tensor(label), weight=model.token_weight))
        lengths.add(length)
    assert len(lengths) > 1 and strayed
    expected = torch.stack(losses).mean()
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    torch.testing.assert_close(grad, model.mp[0].weight.grad, rtol=1e-3, atol=1e-6)


def test_an_answer_that_ends_too_early_goes_on_with_its_end(make):
    """Free-running: what is read behind a label token is the model's own token, also where its answer is over."""
    model = make()
    said = SimpleNamespace(
        ids=torch.tensor([[[9, EOS, 0]], [[EOS, 0, 0]], [[4, 5, 6]]]),
        mask=torch.tensor([[[1, 1, 0]], [[1, 0, 0]], [[1, 1, 1]]]).bool(),
    )
    model.llm.sample = lambda prefix, n, max_new_tokens, temperature: said
    label = torch.tensor([[[7, 8, 9, EOS]]] * 3)
    assert model.greedy_inputs(None, label)[:, 0, :3].tolist() == [[9, EOS, EOS], [EOS, EOS, EOS], [4, 5, 6]]
    short = SimpleNamespace(ids=said.ids[:2, :, :2], mask=said.mask[:2, :, :2])  # all answers were over by then
    model.llm.sample = lambda prefix, n, max_new_tokens, temperature: short
    assert model.greedy_inputs(None, label[:2])[:, 0, :3].tolist() == [[9, EOS, EOS], [EOS, EOS, EOS]]


def test_token_weights_are_scikit_learns(make, meld):
    answers = [[7, 9, 2]] * 5 + [[8, 2]] * 3 + [[7, 2]]
    flat = [t for a in answers for t in a]
    expected = dict(
        zip([2, 7, 8, 9], compute_class_weight("balanced", classes=np.array([2, 7, 8, 9]), y=flat), strict=True)
    )
    assert balanced_token_weights(answers, 2) == pytest.approx(expected | {2: expected[2] + 0.5})
    model = make()
    counts = Counter(s.target.label for s in meld.samples("train"))
    joy, n = model.evaluation_writer.answers(SEVEN)[4][0], 2 * sum(counts.values())
    assert model.token_weight[joy].item() == pytest.approx(n / (8 * counts["joy"]))
    assert model.token_weight[EOS].item() == pytest.approx(n / (8 * n / 2) + 0.5)
    rest = sorted(set(range(len(model.token_weight))) - {EOS} - {a[0] for a in model.evaluation_writer.answers(SEVEN)})
    assert (model.token_weight[rest] == 1).all() and (make(label_weights="none").token_weight == 1).all()


# ---- what is trained
@pytest.mark.parametrize(
    "options, trainable",
    [
        ({}, 3_149_824),
        ({"layers": 3}, 4_331_008),
        ({"lora": LoRA(r=8, alpha=16, dropout=0.1, targets=QKV)}, 3_149_824 + 4_718_592),
    ],
)
def test_paper_size(options, trainable):
    """LLaMA-3-8B and the face ViT on the meta device: the projection, LoRA, and nothing else."""
    model = FARCER(llm="shape:llama-3-8b", vision="shape:vit-base-face", dtype="bfloat16", **options)
    model.make_llm.keywords["device"] = model.make_vision.keywords["device"] = "meta"
    model.configure_model()
    trained = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    assert sum(trained.values()) == trainable
    assert all(re.match(r"mp\.\d\.|llm\..*\.self_attn\.[qkv]_proj\.lora_[AB]\.", n) for n in trained)
    assert sum(p.numel() for p in model.vision.parameters()) == 85_804_039
    assert not any("lora" in n for n in model.vision.state_dict())
    names = [n for n in model.state_dict() if n.startswith("mp")]
    where = (0, 3, 6) if options.get("layers") else (0,)
    assert names == [f"mp.{i}.{kind}" for i in where for kind in ("weight", "bias")]


def test_each_image_is_encoded_once_and_never_adapted(make, meld):
    model = make(lora=LoRA(targets=QKV)).train()
    seen = []
    inner = model.vision.hidden
    model.vision.hidden = lambda frames, normed: seen.append(len(frames)) or inner(frames, normed=normed)
    samples = ragged(meld)
    batch = collate(model, samples)
    assert not model.vision.training and not any(p.requires_grad for p in model.vision.parameters())
    first = model.features(batch)
    with torch.inference_mode():
        again = model.features(batch)
    assert sum(seen) == len(batch["keys"]) == len(set(batch["keys"])) and torch.equal(first, again)
    alone = model.vision.hidden(batch["frames"][1:2], normed=False)[:, :1]
    torch.testing.assert_close(first[1:2], alone)
    with torch.inference_mode():  # what a validation remembers, training needs, too
        fresh = make()
        fresh.features(batch)
    fresh.training_step(batch, 0).backward()


def test_features_on_disk_take_the_place_of_pictures(make, meld, tmp_path, monkeypatch):
    samples = ragged(meld)
    first, plain = make(feature_folder=tmp_path), make()
    batch = collate(first, samples)
    expected = first.features(batch)
    assert not any(batch["frames_known"]) and torch.equal(expected, plain.features(collate(plain, samples)))
    measured, same = make(feature_folder=tmp_path, standardise=True), make(standardise=True)  # some known, some not
    torch.testing.assert_close(measured.feature_deviation, same.feature_deviation)
    later = make(feature_folder=tmp_path)
    later.vision.hidden = None
    monkeypatch.setattr(Media, "frames", None)
    batch = collate(later, samples)
    assert all(batch["frames_known"]) and batch["frames"] is None and batch["missing"] == 0
    assert torch.equal(later.features(batch), expected) and batch["problems"] == []
    wider = make(feature_folder=tmp_path, vision_tokens="all")
    with pytest.raises(TypeError):  # all tokens are other features, for which pictures are read
        collate(wider, samples)


def test_pictures_that_are_measured_are_encoded_as_in_a_step_and_kept(make, tmp_path, monkeypatch):
    autocast = {"precision": "bf16-mixed", "precision_plugin": MixedPrecision("bf16-mixed", "cpu")}
    exact, rounded = make(standardise=True), make(standardise=True, trainer=autocast, feature_folder=tmp_path)
    assert len(list(tmp_path.glob("*/*/*.safetensors"))) > 2
    monkeypatch.setattr(Media, "frames", None)  # nothing is decoded again
    later = make(standardise=True, trainer=autocast, feature_folder=tmp_path)
    assert torch.equal(later.feature_mean, rounded.feature_mean)
    assert not torch.equal(exact.feature_mean, rounded.feature_mean)


def test_a_language_model_in_half_precision_trains_a_projection_in_full(make, meld):
    model = make(dtype="bfloat16", shots=1, train_shots=1, lora=LoRA(r=2, targets=QKV))
    samples = ragged(meld)
    model.training_step(collate(model, samples), 0).backward()
    assert model.llm.causal_lm.dtype == torch.bfloat16 and model.mp[0].weight.grad.dtype == torch.float32
    assert torch.isfinite(model.mp[0].weight.grad).all() and model.mp[0].weight.grad.abs().sum() > 0
    assert len(model.eval().predict(collate(model, samples, training=False))) == len(samples)


def test_standardised_and_scaled_features(make, meld):
    plain, model = make(), make(standardise=True, embedding_scale=3.0)
    turns = {s.target.video: (s.dialogue, s.target) for s in meld.samples("train")}
    pictures = model.picture_reader()
    features = model.features(image_batch([pictures.read(*x, []) for x in turns.values()]))[:, 0]
    torch.testing.assert_close(model.feature_mean, features.mean(0), rtol=1e-4, atol=1e-5)
    standard = (features - features.mean(0)) / features.std(0, unbiased=False)
    sd = model.llm.embed(torch.arange(model.llm.causal_lm.config.vocab_size)).std()
    expected = (standard @ plain.mp[0].weight.T + plain.mp[0].bias) * 3 * sd  # same seed, same projection
    torch.testing.assert_close(model.project(features), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(plain.project(features), features @ plain.mp[0].weight.T + plain.mp[0].bias)
    before = model.feature_mean.clone()
    model.image_features.clear()
    model.data.all = meld.samples("dev")
    model.on_fit_start()  # a resumed run, or a next stage
    assert torch.equal(model.feature_mean, before)


# ---- solved dialogues
def test_solved_dialogues(meld):
    samples = meld.samples("train")
    last = {s.dialogue: s for s in samples}
    for count in (1, 3, 6):
        shots = draw_shots(samples, count, seed=count)
        assert len({s.dialogue for s in shots}) == count == len(shots)
        assert len({s.label for s in shots}) == count  # one per label
        assert draw_shots(samples, count, seed=count) == shots
    ends = {s.label for s in last.values()}
    assert all(s == last[s.dialogue] for s in draw_shots(samples, 6, 0) if s.label in ends)  # whole dialogues
    assert len({tuple(s.id for s in draw_shots(samples, 3, seed)) for seed in range(10)}) > 5
    with pytest.raises(ValueError, match=r"7 solved dialogues .* only 6 labelled ones .*--model.shots_from"):
        draw_shots(samples, 7, 0)


def test_training_prompts_change_and_never_hold_the_own_dialogue(make, meld):
    model = make(train_shots=2, shots=1, shot_window=0)
    samples, used = meld.samples("train"), set()
    for seed in range(30):
        batch = collate(model, [samples[seed], samples[seed + 1]], seed=seed)
        used.add(tuple(batch["fixed"].tolist()))
    prompts = model.make_writer(True).shots["meld"]
    assert len(prompts) == 10 and all(len(p) == 2 for p in prompts)
    texts = {tuple(model.make_writer(True).encode(samples[0], [""] * 1, 0, k)[0]) for k in range(10)}
    assert used - {()} <= texts and len(used) > 5
    collator = model.collator(True)
    for s in samples:
        for drawn in range(10):
            assert all(shot.dialogue != s.dialogue for shot in prompts[collator._prompt_number(s, drawn)])
    evaluated = {tuple(collate(model, [s], training=False, seed=s.label)["fixed"].tolist()) for s in samples}
    assert evaluated == {tuple(model.evaluation_writer.encode(samples[0], [""], 0)[0])}
    with pytest.raises(ValueError, match="in each of the 10 prompts.*shots_from dev"):
        crowded = make(train_shots=6, shots=1)
        collate(crowded, samples[:1])


def test_prompts_that_differ_at_the_beginning_share_nothing(make, meld):
    model = make(train_shots=1, shots=0).eval()
    samples = meld.samples("train")
    prompts = model.make_writer(True).shots["meld"]
    pair = next([a, b] for a in samples for b in samples if a.dialogue == prompts[0][0].dialogue != b.dialogue)
    collator = model.collator(True)
    batch = collator(pair, SimpleNamespace(integers=lambda n: 0))
    assert len(batch["fixed"]) == 0 and batch["mask"].sum() > 20
    losses = [model.training_step(collator([s], SimpleNamespace(integers=lambda n: 0)), 0) for s in pair]
    torch.testing.assert_close(model.training_step(batch, 0), torch.stack(losses).mean())


def test_too_long_prompts_lose_their_oldest_turns(make, meld):
    s = max(meld.samples("train"), key=lambda s: len(s.history))
    whole = collate(make(), [s], training=False)
    short = make(max_length=60)
    batch = collate(short, [s], training=False)
    assert whole["truncated"] == 0 and batch["truncated"] == 1 and len(batch["image"]) < len(whole["image"])
    total = len(batch["fixed"]) + batch["mask"].sum()
    assert total <= 60 and batch["input_ids"][0, -20:].equal(whole["input_ids"][0, -20:])
    with pytest.raises(ValueError, match="without any earlier turn or word, more than --model.max_length 5"):
        collate(make(max_length=5), [s], training=False)


# ---- pictures
def test_controls_show_other_faces(meld):
    samples = meld.samples("train")
    pool = [(s.dialogue, s.target) for s in samples]
    another, constant = (PictureReader(Media(), 32, faces, pool) for faces in ("another", "constant"))
    shown = [another.choose(s.target, s.dialogue) for s in samples]
    for s, chosen in zip(samples, shown, strict=True):
        dialogue, turn = chosen
        assert chosen in pool and dialogue != s.dialogue and turn.speaker != s.target.speaker
        assert another.choose(s.target, s.dialogue) == chosen and constant.choose(s.target, s.dialogue) == pool[0]
    assert len({turn.id for _, turn in shown}) > len(samples) / 4
    bare = Turn("x", "Ada", "hi", "joy")
    assert another.choose(bare, "d") is None and constant.choose(bare, "d") is None  # what is missing stays missing


def test_a_film_gives_the_half_of_the_speaker_without_top_and_bottom(tmp_path):
    from tests.media_files import write_clip

    frames = np.zeros((20, 60, 80, 3), np.uint8)
    frames[:, 12:48, :40], frames[:, 12:48, 40:] = 100, 200  # the upper and lower fifth stay black
    write_clip(tmp_path / "film.mp4", frames, fps=10)
    for crop, level in (("left", 100), ("right", 200)):
        turn = Turn("x", "", "hi", "joy", video=tmp_path / "film.mp4", start=0.5, end=1.0, crop=crop)
        frame = PictureReader(Media(), 32).decode(turn)
        assert frame.shape == (3, 32, 32) and frame.dtype == np.uint8 and abs(frame[:, 2:-2, 2:-2].mean() - level) < 8


# ---- the authors' files, names spelled out from their code
def vit_names():
    """The face ViT as transformers 4 named it, 2 layers."""
    names = {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"}
    inner = (
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
        "layernorm_before",
        "layernorm_after",
    )
    modules = [
        "vit.embeddings.patch_embeddings.projection",
        "vit.layernorm",
        "classifier",
        *(f"vit.encoder.layer.{i}.{m}" for i in (0, 1) for m in inner),
    ]
    return names | {f"{m}.{kind}" for m in modules for kind in ("weight", "bias")}


def lm_names(lora=False):
    """LLaMA, 2 layers; with LoRA on q, k and v as PEFT wraps it."""
    names = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    for i in (0, 1):
        layer = f"model.layers.{i}"
        names |= {
            f"{layer}.{m}.weight"
            for m in (
                "input_layernorm",
                "post_attention_layernorm",
                "self_attn.o_proj",
                "mlp.gate_proj",
                "mlp.up_proj",
                "mlp.down_proj",
            )
        }
        for m in "qkv":
            base = f"{layer}.self_attn.{m}_proj"
            names |= (
                {f"{base}.base_layer.weight", f"{base}.lora_A.default.weight", f"{base}.lora_B.default.weight"}
                if lora
                else {f"{base}.weight"}
            )
    return names


def authors(layout):
    """Every key of a file of this layout."""
    if layout.startswith("pruned"):
        return {f"mp.{i}.{kind}" for i in ((0, 3, 6) if "3" in layout else (0,)) for kind in ("weight", "bias")}
    lm = lm_names(layout == "lora")
    if layout == "full":
        return (
            {f"lm.{n}" for n in lm} | {f"vm.{n}" for n in vit_names()} | {"input_embeddings.weight"} | authors("pruned")
        )
    if layout == "peft":
        lora = [
            f"base_model.model.lm.model.layers.{i}.self_attn.{m}_proj.lora_{ab}.weight"
            for i in (0, 1)
            for m in "qkv"
            for ab in "AB"
        ]
        return {*lora, "base_model.model.mp.0.weight", "base_model.model.mp.0.bias"}
    inside = {f"lm.{n}" for n in lm} | {f"vm.{n}" for n in vit_names()} | {"input_embeddings.weight"}
    inside |= {
        f"mp.0.{part}.{kind}" for part in ("original_module", "modules_to_save.default") for kind in ("weight", "bias")
    }
    return {f"base_model.model.{n}" for n in inside}


LAYOUTS = {
    "pruned": {},
    "pruned_3": {"layers": 3},
    "full": {},
    "lora": {"lora": LoRA(r=2, alpha=4, targets=QKV)},
    "peft": {"lora": LoRA(r=2, alpha=4, targets=QKV)},
}


def read_back(path):
    return (
        load_file(path / "adapter_model.safetensors")
        if path.is_dir()
        else torch.load(path, weights_only=True)["model_state_dict"]
    )


def written(path, state):
    torch.save(
        {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {}, "train_loss": 0.5, "val_loss": 0.5}, path
    )
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_authors_files_go_both_ways(make, tmp_path, layout):
    model, kind = make(**LAYOUTS[layout]), layout.removesuffix("_3")
    path = weights.write(model, tmp_path / "written", kind)
    state = read_back(path)
    assert set(state) == authors(layout)
    again = make(seed=1, **LAYOUTS[layout])
    assert not torch.equal(again.mp[0].weight, model.mp[0].weight)
    assert weights.load(path, again) == kind
    ours = again.state_dict()
    assert all(torch.equal(ours[n], t) for n, t in model.state_dict().items() if ".lora_A" not in n or kind != "pruned")
    changed = {k: v + 1 for k, v in state.items()}  # every tensor arrives where it belongs
    if path.is_dir():
        save_file(changed, path / "adapter_model.safetensors")
    else:
        written(path, changed)
    weights.load(path, again)
    back = {v: k for k, v in weights.published_names(again, kind).items()}
    for name, tensor in again.state_dict().items():
        expected = model.state_dict()[name] + (1 if name in back else 0)
        assert torch.equal(tensor, expected), name
    folder = weights.save(again, tmp_path / "out").parent
    held = set(load_file(folder / "weights.safetensors"))
    assert held == {n for n in ours if n in back} and "mp.0.weight" in held
    files = [folder / "weights.safetensors", folder / "checkpoints" / "best.ckpt"]
    linked = {tmp_path / file.name: file.read_bytes() for file in files}
    for file in files:
        (tmp_path / file.name).hardlink_to(file)  # as a run does that starts from it
    weights.save(model, folder)
    assert all(link.read_bytes() == content for link, content in linked.items())
    assert not any(file.read_bytes() in linked.values() for file in files)


def test_old_vit_names_mean_what_transformers_takes_them_for(make, home, tmp_path):
    """A folder with transformers 4's names, as the published face ViT is, and a full file give the same encoder."""
    model = make()
    state = {
        k.removeprefix("vm."): v
        for k, v in read_back(weights.write(model, tmp_path / "a.pth.tar", "full")).items()
        if k.startswith("vm.")
    }
    copytree(home / "eyes", tmp_path / "old")
    noisy = {k: v + 0.1 * torch.randn(v.shape) for k, v in state.items()}
    save_file(noisy, tmp_path / "old" / "model.safetensors", {"format": "pt"})
    theirs = Vision(str(tmp_path / "old"))
    full = read_back(tmp_path / "a.pth.tar") | {f"vm.{k}": v for k, v in noisy.items()}
    weights.load(written(tmp_path / "b.pth.tar", full), model)
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in model.vision.state_dict().items())


@pytest.mark.parametrize(
    "layout, change, message",
    [
        ("pruned", lambda s: s.pop("mp.0.bias"), r"1 keys missing \['mp.0.bias'\]"),
        ("pruned", lambda s: s.update({"mp.3.weight": torch.ones(2)}), r"1 left over \['mp.3.weight'\]"),
        ("pruned", lambda s: s.update({"mp.0.bias": torch.ones(2)}), r"mp.0.bias is \(2,\), expected \(32,\)"),
        (
            "full",
            lambda s: s.pop("vm.vit.encoder.layer.1.output.dense.bias"),
            "1 keys missing .*layer.1.output.dense.bias",
        ),
        (
            "full",
            lambda s: s.update({"input_embeddings.weight": s["input_embeddings.weight"] + 1}),
            "should be the same tensor",
        ),
        (
            "lora",
            lambda s: s.pop("base_model.model.mp.0.original_module.bias"),
            "1 keys missing .*original_module.bias",
        ),
    ],
)
def test_authors_files_that_do_not_fit_name_the_key(make, tmp_path, layout, change, message):
    model = make(**LAYOUTS[layout])
    state = read_back(weights.write(model, tmp_path / "a.pth.tar", layout))
    change(state)
    with pytest.raises(ValueError, match=message):
        weights.load(written(tmp_path / "b.pth.tar", state), model)


def test_other_files_and_options_are_refused(make, tmp_path):
    model, adapted = make(), make(**LAYOUTS["peft"])
    pruned, folder = weights.write(model, tmp_path / "p", "pruned"), weights.write(adapted, tmp_path / "f", "peft")
    with pytest.raises(ValueError, match="of a run without LoRA"):
        weights.load(pruned, adapted)
    with pytest.raises(ValueError, match="of a LoRA run"):
        weights.load(folder, model)
    with pytest.raises(ValueError, match=r"r, alpha \(2, 4\), but this config has \(4, 4\)"):
        weights.load(folder, make(lora=LoRA(r=4, alpha=4, targets=QKV)))
    with pytest.raises(ValueError, match="neither standardises nor scales"):
        weights.load(pruned, make(embedding_scale=3.0))
    torch.save({"state_dict": {}}, tmp_path / "x")
    with pytest.raises(ValueError, match="no model_state_dict"):
        weights.load(tmp_path / "x", model)
    torch.save({"model_state_dict": FakeCorpus}, tmp_path / "y")  # a pickle of code
    with pytest.raises(ValueError, match="a pickle of more than tensors"):
        weights.load(tmp_path / "y", model)


# ---- runs
@pytest.fixture(scope="module")
def corpus(home):
    """Two test clips are missing, one is damaged."""
    make_llm(home / "llm")
    make_corpus(home / "holes", (3, 2, 2), clips=True)
    a, b, c = sorted((home / "holes" / CLIPS["test"]).glob("*.mp4"))[:3]
    a.unlink()
    b.unlink()
    c.write_bytes(b"no clip")
    return home / "holes"


@pytest.fixture(scope="module")
def options(home, corpus):
    def options(**more):
        base = {
            "model": "FARCER",
            "model__llm": home / "llm",
            "model__vision": home / "eyes",
            "model__template": "plain",
            "model__train_shots": 0,
            "model__shots": 0,
            "model__window": 1,
            "model__lr": 3e-3,
            "data": "MELD",
            "data__root": corpus,
            "data__batch_size": 4,
            "trainer__max_steps": 4,
        }
        return flags(**(base | more))

    return options


@pytest.mark.usefixtures("one_threaded", "elsewhere")
def test_missing_pictures_are_counted_and_lora_is_saved_alone(options, tmp_path):
    lora = {"model__lora__r": 2, "model__lora__targets": QKV, "model__train_shots": 1, "model__shots": 1}
    run = fit(tmp_path, *options(**lora, model__max_new_tokens=2))
    state = checkpoint(run)["state_dict"]
    assert {re.sub(r".*\.(q|k|v)_proj", "qkv", k) for k in state} == {
        "mp.0.weight",
        "mp.0.bias",
        "qkv.lora_A.default.weight",
        "qkv.lora_B.default.weight",
    }
    assert set(checkpoint(run)["zoo"]["bases"]) == {"llm", "vision"}
    zoo("test", f"--ckpt_path={run}", "--data.max_unreadable=0.3")
    said = metrics(run)
    # three pictures are missing; with a window of 1 each is also seen by the next utterance of its dialogue
    assert said["events"]["images missing, nothing in their place"] == 6
    assert said["unparsed"] == sum(r["predicted"] is None for r in rows(run)) / said["n"]


@pytest.mark.usefixtures("one_threaded", "elsewhere")
def test_text_alone_needs_no_eyes_and_no_training(options, home, tmp_path):
    text = [x for x in options(model__faces="none", model__decode="score") if "vision" not in x]
    zoo("test", "--zero_shot=true", *text, f"--trainer.default_root_dir={tmp_path}", "--trainer.logger=false")
    assert "nothing to train" in refused("fit", *text)
    assert "--model.vision" in refused("fit", *(x for x in options() if "vision" not in x))
    pictures = refused("fit", *options(data="Synthetic", data__root="null"))
    assert "has a clip or picture" in pictures and "--model.faces none" in pictures


@pytest.mark.usefixtures("one_threaded", "elsewhere")
def test_next_stage_begins_with_the_projection_of_the_first(options, home, tmp_path):
    first = fit(tmp_path / "first", *options(model__standardise=True))
    second = fit(tmp_path / "second", *options(model__standardise=True, model__start_from=first, model__lr=1e-12))
    a, b = checkpoint(first)["state_dict"], checkpoint(second)["state_dict"]
    assert set(a) == {"mp.0.weight", "mp.0.bias", "feature_mean", "feature_deviation", "measured"} == set(b)
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a if k != "measured") and b["measured"]


# ---- another corpus in the same process
def test_solved_dialogues_come_from_the_corpus_of_the_run(make, meld):
    """A module may answer for one corpus and then for another: nothing of the first stays in its prompts."""
    first, second = meld.samples("train"), meld.samples("dev")
    model = make(first, shots=2)

    def examples() -> list[str]:
        return [shot.dialogue for prompts in model.evaluation_writer.shots.values() for p in prompts for shot in p]

    assert set(examples()) <= {s.dialogue for s in first}
    model.trainer.datamodule = FakeCorpus(second)
    model.setup("test")
    assert set(examples()) <= {s.dialogue for s in second} and len(examples()) == 2
