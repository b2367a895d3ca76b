"""Ears: outputs, normalisation and key map against transformers and torchaudio, on small random weights."""

import json
import shutil

import numpy as np
import pytest
import torch
import torchaudio
from safetensors.torch import load_file, save_file
from transformers import (
    HubertConfig,
    HubertForCTC,
    HubertForSequenceClassification,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from tests.builders import spoil
from zoo.backbones import AUDIO_SHAPES, Audio
from zoo.backbones.hubert_weights import from_transformers, to_transformers
from zoo.backbones.tiny import make_hubert_folder

WORDS = ("angry", "happy", "neutral")
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 12,
    "id2label": dict(enumerate(WORDS)),
}
NORMS = {
    "base": {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False},
    "large": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
}
LENGTHS = torch.tensor([4000, 2777, 900, 400])


def waves(lengths=LENGTHS, seed=0):
    """(B, N) with the padding far from silent, and a mean far from zero."""
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(len(lengths), int(max(lengths)), generator=generator) + 0.2


def make(folder, norm, kind=HubertForSequenceClassification, normalise=True, **more):
    torch.manual_seed(0)
    model = kind(HubertConfig(**SIZES | NORMS[norm] | more)).eval()
    for name, p in model.named_parameters():  # as drawn, norms are all ones and zeros and a swap would not show
        if "norm" in name or name.endswith(("bias", "original0")):
            p.data += 0.2 * torch.randn_like(p)
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=normalise).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {norm: make(root / norm, norm) for norm in NORMS}


def theirs(folder, kind=HubertForSequenceClassification):
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


def prepared(wave):
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    return extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt").input_values


# ---- against transformers
@pytest.mark.parametrize("norm", NORMS)
def test_a_padded_batch_equals_transformers_on_each_clip_alone(folders, norm):
    audio, model, x = Audio(str(folders[norm])).eval(), theirs(folders[norm]), waves()
    hidden, frames = audio.hidden(x, LENGTHS)
    logits = audio.logits(x, LENGTHS)
    assert hidden.shape == (4, 12, 32) and frames.tolist() == [12, 8, 2, 1]
    for i, length in enumerate(LENGTHS):
        alone = prepared(x[i, :length])
        torch.testing.assert_close(audio.prepare(x, LENGTHS)[i, :length], alone[0], atol=1e-5, rtol=0)
        expected = model.hubert(alone).last_hidden_state[0]
        torch.testing.assert_close(hidden[i, : frames[i]], expected, atol=1e-5, rtol=0)
        assert not hidden[i, frames[i] :].any()
        torch.testing.assert_close(logits[i], model(alone).logits[0], atol=1e-5, rtol=0)
    assert (audio.width, audio.rate, audio.stride, audio.shortest) == (32, 16000, 320, 400)
    assert audio.labels == WORDS


def test_transformers_own_batch_agrees_where_no_norm_runs_over_time(folders):
    audio, model, x = Audio(str(folders["large"])).eval(), theirs(folders["large"]), waves()
    mask = (torch.arange(x.shape[1]) < LENGTHS[:, None]).long()
    expected = model(audio.prepare(x, LENGTHS), attention_mask=mask).logits
    torch.testing.assert_close(audio.logits(x, LENGTHS), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_padding_changes_nothing(folders, norm):
    audio, x = Audio(str(folders[norm])).eval(), waves()
    whole, frames = audio.hidden(x, LENGTHS)
    longer = torch.cat([x, torch.full((4, 5000), 7.0)], 1)
    padded = longer.masked_fill(torch.arange(longer.shape[1]) >= LENGTHS[:, None], float("nan"))
    for other in (longer, padded):  # not even what is not finite
        torch.testing.assert_close(audio.hidden(other, LENGTHS)[0][:, :12], whole, atol=1e-5, rtol=0)
        for segments in (1, 3):
            expected = audio.pooled(x, LENGTHS, segments)
            torch.testing.assert_close(audio.pooled(other, LENGTHS, segments), expected, atol=1e-5, rtol=0)
    for i, length in enumerate(LENGTHS):
        alone, count = audio.hidden(x[i : i + 1, :length], LENGTHS[i : i + 1])
        torch.testing.assert_close(alone[0], whole[i, : frames[i]], atol=1e-5, rtol=0)
        assert count.item() == frames[i]


@pytest.mark.parametrize("norm", NORMS)
def test_weighted_sum_of_layers(tmp_path, norm):
    folder = make(tmp_path / norm, norm, use_weighted_layer_sum=True)
    spoiled = spoil(folder, tmp_path / "uneven", lambda t: t["layer_weights"].copy_(torch.tensor([0.0, 1.0, 3.0])))
    audio, model, x = Audio(spoiled).eval(), theirs(spoiled), waves()[:1]
    torch.testing.assert_close(audio.logits(x, LENGTHS[:1]), model(prepared(x[0])).logits, atol=1e-5, rtol=0)
    saved = audio.save(tmp_path / "saved")
    assert torch.equal(Audio(str(saved)).eval().logits(x, LENGTHS[:1]), audio.logits(x, LENGTHS[:1]))


def test_do_normalize_is_read(tmp_path):
    audio = Audio(str(make(tmp_path / "raw", "base", HubertModel, normalise=False))).eval()
    model, x = theirs(tmp_path / "raw", HubertModel), waves()[:1]
    assert torch.equal(audio.prepare(x, LENGTHS[:1]), x) and not audio.normalises
    torch.testing.assert_close(audio.hidden(x, LENGTHS[:1])[0], model(x).last_hidden_state, atol=1e-5, rtol=0)


def test_a_recognisers_encoder_is_read(tmp_path):
    audio = Audio(str(make(tmp_path / "ctc", "large", HubertForCTC))).eval()
    model, x = theirs(tmp_path / "ctc", HubertForCTC), waves()[:1]
    torch.testing.assert_close(audio.hidden(x, LENGTHS[:1])[0], model.hubert(prepared(x[0])).last_hidden_state)
    with pytest.raises(ValueError, match="no classification head; train one on pooled"):
        audio.logits(x, LENGTHS[:1])


# ---- the key map
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("old", [False, True])
def test_key_map_both_ways(folders, norm, old):
    """Over names and over transformers' own loader, and the weights at the place of each name do the same."""
    audio, model = Audio(str(folders[norm])), theirs(folders[norm]).hubert
    there = to_transformers(audio.hubert.state_dict(), old_weight_norm=old)
    assert ("encoder.pos_conv_embed.conv.weight_g" in there) == old
    back = from_transformers({f"hubert.{k}": v for k, v in there.items()})
    assert back.keys() == audio.hubert.state_dict().keys() == from_transformers(there).keys()
    assert all(torch.equal(v, back[k]) for k, v in audio.hubert.state_dict().items())
    if not old:
        assert there.keys() == model.state_dict().keys()
        assert all(torch.equal(v, there[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("norm", NORMS)
def test_files_of_old_transformers(folders, tmp_path, norm):
    """pytorch_model.bin with weight_g and weight_v, no safetensors: as hubert-base-ls960 is published."""
    audio, x = Audio(str(folders[norm])).eval(), waves()
    old = to_transformers(audio.hubert.state_dict(), old_weight_norm=True)
    config = json.loads((folders[norm] / "config.json").read_text()) | {"architectures": ["HubertModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(folders[norm] / "preprocessor_config.json", tmp_path)
    torch.save(old, tmp_path / "pytorch_model.bin")
    again = Audio(str(tmp_path)).eval()
    assert torch.equal(again.hidden(x, LENGTHS)[0], audio.hidden(x, LENGTHS)[0]) and again.labels is None
    assert len(again.fingerprint()) == 64 and again.fingerprint() != audio.fingerprint()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("hubert.encoder.layer_norm.bias"), r"1 missing: \['hubert.encoder.transformer.layer_norm.b"),
        (lambda t: t.pop("classifier.bias"), r"1 missing: \['classifier.bias'\]"),
        (lambda t: t.update(extra=torch.zeros(1)), r"1 left over: \['hubert.extra'\]"),
        (
            lambda t: t.update({"projector.bias": torch.zeros(2)}),
            r"1 of another shape: .*projector.bias: \(2,\) in the",
        ),
        (lambda t: t["projector.bias"].fill_(torch.inf), r"not finite.*'projector\.bias'"),
    ],
)
def test_weights_are_strict(folders, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        Audio(spoil(folders["base"], tmp_path / "bad", change))


def test_specaugments_vector_may_be_absent(folders, tmp_path):
    """It is used by nothing here; what is saved then tells transformers not to expect it."""
    x = waves()
    audio = Audio(spoil(folders["base"], tmp_path / "bad", lambda t: t.pop("hubert.masked_spec_embed"))).eval()
    assert torch.equal(audio.logits(x, LENGTHS), Audio(str(folders["base"])).eval().logits(x, LENGTHS))
    _, info = HubertForSequenceClassification.from_pretrained(audio.save(tmp_path / "out"), output_loading_info=True)
    assert not any(info.values())


# ---- torchaudio's own files
@pytest.mark.parametrize("ending", ["pt", "pth", "safetensors"])
def test_torchaudios_own_state_dict(tmp_path, monkeypatch, ending):
    values = {k: v for k, v in SIZES.items() if k not in ("id2label", "conv_dim", "hidden_size", "num_attention_heads")}
    values |= {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 1, "conv_dim": (8,) * 7}
    monkeypatch.setitem(AUDIO_SHAPES, "hubert-base", (values | NORMS["base"], True))  # the real one takes seconds
    model = torchaudio.models.wav2vec2_model(
        "group_norm",
        [(8, k, s) for k, s in zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), strict=True)],
        False,
        768,
        0.0,
        16,
        4,
        1,
        12,
        0.0,
        48,
        0.0,
        0.0,
        False,
        0.0,
        None,
    ).eval()
    file = tmp_path / f"hubert.{ending}"
    save_file(model.state_dict(), file) if ending == "safetensors" else torch.save(model.state_dict(), file)
    audio, x = Audio(str(file)).eval(), waves(torch.tensor([3000]))
    assert not audio.normalises  # as torchaudio's bundle of hubert_base
    torch.testing.assert_close(audio.hidden(x, torch.tensor([3000]))[0], model(x)[0])
    again = Audio(str(audio.save(tmp_path / "out"))).eval()
    assert torch.equal(again.hidden(x, torch.tensor([3000]))[0], audio.hidden(x, torch.tensor([3000]))[0])


def test_other_files_are_refused(tmp_path):
    torch.save({"encoder.feature_projection.projection.bias": torch.zeros(5)}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match="no state dict of torchaudio's hubert_base .*got width 5"):
        Audio(str(tmp_path / "odd.pt"))
    torch.save({"state_dict": {}}, tmp_path / "nested.pt")
    with pytest.raises(ValueError, match=r"no plain state dict.*save model\.state_dict\(\) alone"):
        Audio(str(tmp_path / "nested.pt"))
    torch.save(Wav2Vec2FeatureExtractor(), tmp_path / "object.pt")
    with pytest.raises(ValueError, match="could not be read"):  # nothing but tensors is unpickled
        Audio(str(tmp_path / "object.pt"))


# ---- pooled
def test_pooled_is_the_mean_of_equal_parts(folders):
    audio, x = Audio(str(folders["base"])).eval(), waves()
    hidden, frames = audio.hidden(x, LENGTHS)
    for segments in (1, 2, 3, 5, 8):
        pooled = audio.pooled(x, LENGTHS, segments)
        assert pooled.shape == (4, segments, 32)
        for i, count in enumerate(frames):
            expected = torch.nn.functional.adaptive_avg_pool1d(hidden[i, :count].T, segments).T
            torch.testing.assert_close(pooled[i], expected, atol=1e-5, rtol=0)
    assert torch.equal(audio.pooled(x, LENGTHS, 4)[3], hidden[3, :1].expand(4, -1))  # one frame, repeated
    with pytest.raises(ValueError, match="segments must be at least 1, got 0"):
        audio.pooled(x, LENGTHS, 0)


# ---- odd input
def test_short_clips_are_padded_to_one_frame(folders):
    audio = Audio(str(folders["base"])).eval()
    x, lengths = waves(torch.tensor([100, 1])), torch.tensor([100, 1])
    hidden, frames = audio.hidden(x, lengths)
    assert frames.tolist() == [1, 1] and hidden.shape == (2, 1, 32) and torch.isfinite(hidden).all()
    silence = torch.nn.functional.pad(prepared(x[0]), (0, 300))
    expected = theirs(folders["base"]).hubert(silence).last_hidden_state
    torch.testing.assert_close(hidden[:1], expected, atol=1e-5, rtol=0)


def test_silence_is_finite(folders):
    for folder in folders.values():
        assert torch.isfinite(Audio(str(folder)).eval().logits(torch.zeros(1, 2000), torch.tensor([2000]))).all()


@pytest.mark.parametrize(
    "x, lengths, message",
    [
        (torch.zeros(2, 1, 500), [500, 500], r"expected waves float \(B, N\)"),
        (torch.zeros(2, 500, dtype=torch.int64), [500, 500], r"expected waves float \(B, N\)"),
        (torch.zeros(2, 500), [500], r"expected waves float \(B, N\) and lengths \(B,\)"),
        (torch.zeros(2, 500), [500, 501], r"1\.\.500, got \[500, 501\]"),
        (torch.zeros(2, 500), [500, 0], r"1\.\.500, got \[500, 0\]"),
        (torch.full((1, 500), torch.nan), [500], "samples must be finite"),
    ],
)
def test_bad_waves_are_refused(folders, x, lengths, message):
    with pytest.raises(ValueError, match=message):
        Audio(str(folders["base"])).hidden(x, torch.tensor(lengths))


def test_missing_and_other_things_say_what_to_do(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="no audio encoder at 'nowhere'.*Give --model.audio the folder"):
        Audio("nowhere")
    with pytest.raises(ValueError, match="unknown shape 'x'; expected one of hubert-base, hubert-large"):
        Audio("shape:x")
    for name, message in (
        ("preprocessor_config.json", "no preprocessor_config.json"),
        ("model.safetensors", r"lacks \['model.safetensors'\], and pytorch_model.bin"),
    ):
        folder = shutil.copytree(folders["base"], tmp_path / name.split(".")[0])
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=message):
            Audio(str(folder))
    sizes = {k: v for k, v in SIZES.items() if k != "id2label"}
    Wav2Vec2Model(Wav2Vec2Config(**sizes)).save_pretrained(tmp_path / "wav2vec2")
    with pytest.raises(ValueError, match="holds a Wav2Vec2Model .*expected one of HubertModel"):
        Audio(str(tmp_path / "wav2vec2"))
    with pytest.raises(ValueError, match="torchaudio's HuBERT has no {'feat_proj_layer_norm': False}"):
        Audio(str(make(tmp_path / "odd", "base", feat_proj_layer_norm=False)))
    folder = shutil.copytree(folders["base"], tmp_path / "rate")
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(folder)
    with pytest.raises(ValueError, match="takes 8000 samples a second, expected 16000"):
        Audio(str(folder))


# ---- saving, dtype
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", [HubertModel, HubertForSequenceClassification])
def test_saved_folders_load_in_both(tmp_path, norm, kind):
    audio, x = Audio(str(make(tmp_path / "made", norm, kind))).eval(), waves()
    folder = audio.save(tmp_path / "saved")
    before, after = load_file(tmp_path / "made" / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(v, after[k]) for k, v in before.items())
    again = Audio(str(folder)).eval()
    assert torch.equal(again.hidden(x, LENGTHS)[0], audio.hidden(x, LENGTHS)[0]) and again.labels == audio.labels
    model, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    out = model.eval()(audio.prepare(x[:1], LENGTHS[:1]), output_hidden_states=False)
    ours = audio.hidden(x[:1], LENGTHS[:1])[0] if kind is HubertModel else audio.logits(x[:1], LENGTHS[:1])
    torch.testing.assert_close(ours, out[0], atol=1e-5, rtol=0)
    with pytest.raises(FileExistsError, match="already holds a model"):
        audio.save(folder)


@pytest.mark.parametrize("norm", NORMS)
def test_bfloat16(folders, tmp_path, norm):
    x, full = waves(), Audio(str(folders[norm])).eval()
    audio = Audio(str(full.save(tmp_path / "half", "bfloat16")), dtype="bfloat16").eval()
    assert audio.dtype == audio.logits(x, LENGTHS).dtype == audio.pooled(x, LENGTHS, 2).dtype == torch.bfloat16
    torch.testing.assert_close(audio.logits(x, LENGTHS).float(), full.logits(x, LENGTHS), atol=0.05, rtol=0.1)
    assert Audio(str(tmp_path / "half")).dtype == torch.float32


# ---- training
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_weight(tmp_path, norm, checkpointing):
    audio = Audio(str(make(tmp_path / norm, norm, layerdrop=0.0)), gradient_checkpointing=checkpointing)
    assert audio.training
    audio.logits(waves(), LENGTHS).square().sum().backward()
    assert not [n for n, p in audio.named_parameters() if p.grad is None or not p.grad.any()]


def test_frozen_stays_frozen(folders):
    audio = Audio(str(folders["base"])).freeze()  # dropout and layer drop are .1 in its config
    audio.train()
    x = waves()
    assert torch.equal(audio.logits(x, LENGTHS), audio.logits(x, LENGTHS))
    assert not audio.training and not audio.logits(x, LENGTHS).requires_grad


def test_a_small_one_learns_low_from_high(tmp_path):
    folder = make_hubert_folder(tmp_path, WORDS, 32, 1, 2, 48, (8, 8, 16, 16, 16, 32, 32))
    audio = Audio(str(folder))
    torch.manual_seed(0)
    label = torch.arange(16) % 2
    pitch = torch.where(label == 1, 220.0, 130.0) * (1 + 0.1 * torch.rand(16))
    x = torch.sin(2 * np.pi * pitch[:, None] * torch.arange(6400) / 16000) + 0.05 * torch.randn(16, 6400)
    lengths = torch.randint(4000, 6401, (16,))
    optimizer = torch.optim.AdamW(audio.parameters(), 3e-3)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(audio.logits(x, lengths), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


# ---- sizes
@pytest.mark.parametrize("name, count, width", [("hubert-base", 94_371_712, 768), ("hubert-large", 315_438_720, 1024)])
def test_shapes_on_the_meta_device(name, count, width):
    audio = Audio(f"shape:{name}", dtype="bfloat16", device="meta")
    state = audio.state_dict()
    assert sum(t.numel() for t in state.values()) == count  # HubertModel's own, SpecAugment's vector included
    assert sum(p.numel() for p in audio.parameters()) == count - width
    assert {t.device.type for t in state.values()} == {"meta"} and audio.dtype == torch.bfloat16
    with torch.device("meta"):
        there = HubertModel(HubertConfig(**AUDIO_SHAPES[name][0])).state_dict()
    ours = to_transformers({k.removeprefix("hubert."): v for k, v in state.items()})
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in there.items()}
    assert (audio.width, audio.stride, audio.shortest) == (width, 320, 400)


def test_every_shape_is_counted():
    assert set(AUDIO_SHAPES) == {"hubert-base", "hubert-large"}


def test_the_tiny_one(tmp_path):
    audio = Audio(str(make_hubert_folder(tmp_path / "a", [*WORDS, "d", "e", "f", "g"])))
    assert sum(p.numel() for p in audio.parameters()) == 990_695
    assert (audio.width, audio.stride, audio.labels[:3]) == (144, 320, WORDS)
    assert audio.frames(torch.tensor([24000])).item() == 74
    with pytest.raises(FileExistsError, match="already holds a model"):
        make_hubert_folder(tmp_path / "a", WORDS)
