"""Eyes: outputs and preprocessing against transformers, timm and a written-out numpy forward; small random weights."""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    SwinConfig,
    SwinForImageClassification,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from tests.builders import spoil
from zoo.backbones import VISION_SHAPES, Vision
from zoo.backbones.mini_xception import LABELS, WIDTHS, keras_arrays, keras_layers
from zoo.backbones.tiny import make_vit_folder

WORDS = ("angry", "happy", "neutral")
SIZES = [(1, 1), (24, 24), (31, 90), (90, 31), (241, 17)]


def frames(n=2, height=40, width=56, seed=0):
    return torch.randint(0, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(seed)).byte()


def vit_folder(folder, **changes):
    sizes = {"size": 24, "patch": 8, "width": 32, "layers": 2, "heads": 2, "intermediate_size": 48}
    return make_vit_folder(folder, WORDS, **sizes | changes)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return vit_folder(tmp_path_factory.mktemp("models") / "vit")


def clip_config(**more):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = sizes | {"image_size": 24, "patch_size": 8, "projection_dim": 16}
    text = sizes | {"vocab_size": 50, "projection_dim": 16, "bos_token_id": 1, "eos_token_id": 2}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=16, **more)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Folder of each kind of CLIP."""
    torch.manual_seed(0)
    config, root = clip_config(num_labels=3), tmp_path_factory.mktemp("models")
    models = [CLIPModel(config), CLIPForImageClassification(config)]
    models += [CLIPVisionModel(config.vision_config), CLIPVisionModelWithProjection(config.vision_config)]
    processor = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    for model in models:
        model.save_pretrained(root / type(model).__name__)
        processor.save_pretrained(root / type(model).__name__)
    return root


# ---- transformers' ViT
def test_vit_equals_transformers(vit):
    vision, x = Vision(str(vit)).eval(), frames(3)
    theirs = ViTForImageClassification.from_pretrained(vit, dtype=torch.float32).eval()
    pixels = AutoImageProcessor.from_pretrained(vit)(list(x), return_tensors="pt").pixel_values
    out = theirs(pixel_values=pixels, output_hidden_states=True)
    torch.testing.assert_close(vision.prepare(x), pixels, atol=1e-6, rtol=0)
    torch.testing.assert_close(vision.hidden(x), out.hidden_states[-1])
    torch.testing.assert_close(vision.hidden(x, normed=True), theirs.vit(pixel_values=pixels).last_hidden_state)
    assert not torch.allclose(vision.hidden(x), vision.hidden(x, normed=True), atol=0.1)
    torch.testing.assert_close(vision.logits(x), out.logits)
    assert torch.equal(vision.cls(x), vision.hidden(x)[:, 0])
    assert vision.hidden(x).shape == (3, vision.tokens, vision.width) == (3, 10, 32)
    assert (vision.size, vision.has_cls, vision.labels) == (24, True, WORDS)


def test_vit_without_head_and_pooler(vit, tmp_path):
    whole, x = Vision(str(vit)).eval(), frames()
    for name, pooler in (("with", True), ("without", False)):
        model = ViTModel.from_pretrained(vit, add_pooling_layer=pooler, dtype=torch.float32)
        model.save_pretrained(tmp_path / name)
        shutil.copy(vit / "preprocessor_config.json", tmp_path / name)
        vision = Vision(str(tmp_path / name)).eval()
        assert torch.equal(vision.hidden(x), whole.hidden(x)) and vision.labels is None
        assert (vision.model.pooler is not None) == pooler
        with pytest.raises(ValueError, match="no classification head; train one on"):
            vision.logits(x)


@pytest.mark.parametrize("height, width", SIZES)
def test_prepare_equals_the_processors(vit, clips, height, width):
    """Exactly torchvision's. PIL's differs by one step of 255; bicubic by more where pure noise overshoots the range,
    since PIL clips after each of the two directions."""
    x = frames(2, height, width)
    for folder in (vit, clips / "CLIPModel"):
        vision = Vision(str(folder))
        theirs = AutoImageProcessor.from_pretrained(folder)(list(x), return_tensors="pt").pixel_values
        torch.testing.assert_close(vision.prepare(x), theirs, atol=1e-6, rtol=0)
        pil = AutoImageProcessor.from_pretrained(folder, backend="pil")(list(x.numpy()), return_tensors="pt")
        step = 1 / 255 / min(vision.preparation.std) + 1e-6
        difference = (vision.prepare(x) - pil.pixel_values).abs()
        assert difference.max() <= (step if vision.preparation.resample == 2 else 12 * step)
        assert difference.mean() < 0.5 * step
        assert vision.hidden(x).shape == (2, 10, 32)


@pytest.mark.parametrize(
    "bad", [torch.zeros(2, 3, 8, 8), frames()[0], frames()[:, :1], frames()[:0], frames().permute(0, 2, 3, 1)]
)
def test_bad_frames_are_refused(vit, bad):
    with pytest.raises(ValueError, match=r"expected frames uint8 \(N, 3, H, W\) in RGB, got torch"):
        Vision(str(vit)).hidden(bad)


def test_dtype_is_the_one_asked_for(vit, tmp_path):
    half = tmp_path / "half"
    Vision(str(vit)).save(half, "bfloat16")
    assert {t.dtype for t in load_file(half / "model.safetensors").values()} == {torch.bfloat16}
    assert Vision(str(half)).dtype == torch.float32
    vision, x = Vision(str(half), dtype="bfloat16").eval(), frames()
    assert vision.hidden(x).dtype == vision.logits(x).dtype == torch.bfloat16
    torch.testing.assert_close(vision.logits(x).float(), Vision(str(vit)).eval().logits(x), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("kind", ["vit", "CLIPModel", "CLIPForImageClassification"])
def test_saved_folders_load_in_both(vit, clips, tmp_path, kind):
    vision, x = Vision(str(vit if kind == "vit" else clips / kind)).eval(), frames()
    folder = vision.save(tmp_path / "saved")
    again = Vision(str(folder)).eval()
    assert torch.equal(again.hidden(x), vision.hidden(x)) and again.labels == vision.labels
    assert again.preparation == vision.preparation
    theirs, info = type(vision.model).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    pixels = AutoImageProcessor.from_pretrained(folder)(list(x), return_tensors="pt").pixel_values
    out = theirs.eval()(pixel_values=pixels, output_hidden_states=True)
    torch.testing.assert_close(out.hidden_states[-1], vision.hidden(x))
    if kind == "vit":  # names on disk are the published ones, not those in memory
        assert "vit.encoder.layer.0.attention.attention.query.weight" in load_file(folder / "model.safetensors")
    with pytest.raises(FileExistsError, match="already holds a model"):
        vision.save(folder)


# ---- CLIP
@pytest.mark.parametrize("kind", ["CLIPModel", "CLIPVisionModel", "CLIPVisionModelWithProjection"])
def test_clip_equals_transformers(clips, kind):
    vision, x = Vision(str(clips / kind)).eval(), frames(2, 50, 33)
    theirs = CLIPVisionModel.from_pretrained(clips / kind, dtype=torch.float32).eval()
    out = theirs(pixel_values=vision.prepare(x), output_hidden_states=True)
    torch.testing.assert_close(vision.hidden(x), out.hidden_states[-1])
    torch.testing.assert_close(vision.cls(x, normed=True), out.pooler_output)
    assert (vision.tokens, vision.width, vision.labels) == (10, 32, None)
    with pytest.raises(ValueError, match="no classification head"):
        vision.logits(x)


def test_clip_with_a_head(clips):
    folder, x = clips / "CLIPForImageClassification", frames()
    vision = Vision(str(folder)).eval()
    theirs = CLIPForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    torch.testing.assert_close(vision.logits(x), theirs(pixel_values=vision.prepare(x)).logits)
    assert vision.labels is None  # LABEL_0 ... are no words


# ---- timm
@pytest.fixture
def no_download(monkeypatch):
    """`timm:NAME` would fetch weights: random ones of a fixed seed instead."""
    import timm

    made = timm.create_model

    def create(name, pretrained=False, **options):
        torch.manual_seed(0)
        return made(name, pretrained=pretrained and ":" in name, **options)

    monkeypatch.setattr(timm, "create_model", create)
    return create


def test_timm_vit(no_download, tmp_path):
    vision, x = Vision("timm:vit_tiny_patch16_224").eval(), frames(2, 100, 130)
    theirs = no_download("vit_tiny_patch16_224").eval()
    from timm.data import create_transform, resolve_model_data_config

    config = resolve_model_data_config(theirs)
    transform = create_transform(**config)
    pixels = torch.stack([transform(Image.fromarray(f.permute(1, 2, 0).numpy())) for f in x])
    assert (vision.prepare(x) - pixels).abs().max() <= 1 / 255 / min(config["std"]) + 1e-6
    pixels = vision.prepare(x)
    with torch.no_grad():
        torch.testing.assert_close(vision.hidden(x, normed=True), theirs.forward_features(pixels))
        torch.testing.assert_close(theirs.norm(vision.hidden(x)), theirs.forward_features(pixels))
        torch.testing.assert_close(vision.logits(x), theirs(pixels))
        assert (vision.width, vision.tokens, vision.size, vision.has_cls) == (192, 197, 224, True)
        again = Vision(str(vision.save(tmp_path / "timm"))).eval()  # timm's own folder format
        torch.testing.assert_close(again.hidden(x), vision.hidden(x))
        assert again.preparation == vision.preparation


def test_timm_convolutional(no_download):
    vision, x = Vision("timm:test_resnet").eval(), frames()
    assert not vision.has_cls and vision.hidden(x).shape == (2, vision.tokens, vision.width)
    assert all(not b.any() for n, b in vision.model.named_buffers() if n.endswith("num_batches_tracked"))
    with pytest.raises(ValueError, match=r"no CLS token; take the mean over its tokens: hidden\(frames\).mean\(1\)"):
        vision.cls(x)


def test_unknown_timm_name():
    with pytest.raises(ValueError, match="timm could not make 'no_such_model'"):
        Vision("timm:no_such_model")


# ---- mini-XCEPTION
def keras_file(path, change=None):
    """A file laid out as the published one, with random weights. `change` gets the arrays and the description."""
    layers, rng = keras_layers(), np.random.default_rng(0)
    inputs = {"1": 1, "2": 8, "7": WIDTHS[-1]} | {str(i + 3): (8, *WIDTHS)[i] for i in range(4)}
    arrays, described, channels = {}, [], 8
    for name, (kind, sources, settings, _) in layers.items():
        number = name.rsplit("_", 1)[-1]
        if kind == "Conv2D":
            shape = (*settings["kernel_size"], inputs[number], settings["filters"])
            arrays[f"{name}/kernel"] = rng.normal(size=shape) / np.sqrt(np.prod(shape[:3]))
            if settings["use_bias"]:
                arrays[f"{name}/bias"] = rng.normal(size=settings["filters"])
        elif kind == "SeparableConv2D":
            filters = settings["filters"]
            channels = filters if int(number) % 2 == 0 else ({16: 8}.get(filters, filters // 2))
            arrays[f"{name}/depthwise_kernel"] = rng.normal(size=(3, 3, channels, 1)) / 3
            arrays[f"{name}/pointwise_kernel"] = rng.normal(size=(1, 1, channels, filters)) / np.sqrt(channels)
        elif kind == "BatchNormalization":
            source = layers[sources[0]][2]["filters"]
            arrays[f"{name}/gamma"] = 1 + 0.1 * rng.normal(size=source)
            arrays[f"{name}/beta"] = 0.1 * rng.normal(size=source)
            arrays[f"{name}/moving_mean"] = 0.1 * rng.normal(size=source)
            arrays[f"{name}/moving_variance"] = rng.uniform(0.5, 2, size=source)
        nodes = [[[source, 0, 0, {}] for source in sources]] if sources else []
        described.append({"class_name": kind, "name": name, "config": dict(settings), "inbound_nodes": nodes})
    description = {"class_name": "Model", "config": {"layers": described}}
    if change:
        change(arrays, description)
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(description)
        for name, array in arrays.items():
            layer, array_name = name.split("/")
            file.create_dataset(f"model_weights/{layer}/{layer}_1/{array_name}:0", data=array.astype(np.float32))
    return arrays


def conv(x, kernel, stride=1, same=True):
    """(H, W, in) with (h, w, in, out), TensorFlow's padding."""
    h, w, _, out = kernel.shape
    if same:
        pads = [max((-(-n // stride) - 1) * stride + k - n, 0) for n, k in zip(x.shape, (h, w), strict=False)]
        x = np.pad(x, [(p // 2, p - p // 2) for p in pads] + [(0, 0)])
    rows, columns = (x.shape[0] - h) // stride + 1, (x.shape[1] - w) // stride + 1
    y = np.zeros((rows, columns, out))
    for i in range(h):
        for j in range(w):
            y += x[i : i + stride * rows : stride, j : j + stride * columns : stride][:rows, :columns] @ kernel[i, j]
    return y


def depthwise(x, kernel):
    padded, (rows, columns, _) = np.pad(x, [(1, 1), (1, 1), (0, 0)]), x.shape
    return sum(padded[i : i + rows, j : j + columns] * kernel[i, j, :, 0] for i in range(3) for j in range(3))


def pool(x):
    pads = [max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in x.shape[:2]]
    x = np.pad(x, [(p // 2, p - p // 2) for p in pads] + [(0, 0)], constant_values=-np.inf)
    rows, columns = (x.shape[0] - 3) // 2 + 1, (x.shape[1] - 3) // 2 + 1
    return np.array(
        [[x[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((0, 1)) for j in range(columns)] for i in range(rows)]
    )


def numpy_forward(arrays, grey):
    """(64, 64, 1) -> (4, 4, 128) features and (7,) logits, layer by layer as the Keras file describes them."""

    def norm(x, n):
        name = f"batch_normalization_{n}"
        scale = arrays[f"{name}/gamma"] / np.sqrt(arrays[f"{name}/moving_variance"] + 1e-3)
        return (x - arrays[f"{name}/moving_mean"]) * scale + arrays[f"{name}/beta"]

    def separable(x, n):
        name = f"separable_conv2d_{n}"
        return conv(depthwise(x, arrays[f"{name}/depthwise_kernel"]), arrays[f"{name}/pointwise_kernel"])

    x = np.maximum(norm(conv(grey, arrays["conv2d_1/kernel"], same=False), 1), 0)
    x = np.maximum(norm(conv(x, arrays["conv2d_2/kernel"], same=False), 2), 0)
    for i in range(4):
        side = norm(conv(x, arrays[f"conv2d_{i + 3}/kernel"], stride=2), 3 * i + 3)
        y = np.maximum(norm(separable(x, 2 * i + 1), 3 * i + 4), 0)
        x = pool(norm(separable(y, 2 * i + 2), 3 * i + 5)) + side
    return x, (conv(x, arrays["conv2d_7/kernel"]) + arrays["conv2d_7/bias"]).mean((0, 1))


def test_mini_xception_equals_numpy(tmp_path):
    arrays = keras_file(tmp_path / "faces.hdf5")
    vision, x = Vision(str(tmp_path / "faces.hdf5")).eval(), frames(2, 64, 64)
    luma = (x.double() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)  # ITU-R 601
    assert (vision.prepare(x)[:, 0] - (luma / 127.5 - 1)).abs().max() <= 1.03 / 127.5  # whole levels, rounded down
    for frame, hidden, logits in zip(vision.prepare(x), vision.hidden(x), vision.logits(x), strict=True):
        features, expected = numpy_forward(arrays, frame.permute(1, 2, 0).double().numpy())
        np.testing.assert_allclose(hidden.detach().view(4, 4, 128), features, atol=1e-4)
        np.testing.assert_allclose(logits.detach(), expected, atol=1e-4)
    assert (vision.tokens, vision.width, vision.size, vision.has_cls) == (16, 128, 64, False)
    assert vision.labels == LABELS == ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    assert sum(a.size for a in arrays.values()) == 58_423  # as published, statistics included
    assert vision.hidden(frames(1, 300, 200)).shape == (1, 16, 128)
    with pytest.raises(ValueError, match="no CLS token"):
        vision.cls(x)
    with pytest.raises(ValueError, match="no folder format"):
        vision.save(tmp_path / "out")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a, d: a.pop("conv2d_5/kernel"), r"1 arrays missing: \['conv2d_5/kernel'\]; 0 left over"),
        (lambda a, d: a.update({"dense_1/kernel": np.zeros(2)}), r"1 left over: \['dense_1/kernel'\]"),
        (lambda a, d: a.update({"conv2d_7/bias": np.zeros(2)}), r"conv2d_7/bias is \(2,\), expected \(7,\)"),
        (lambda a, d: a.update({"conv2d_7/bias": np.full(7, np.nan)}), "conv2d_7/bias is not finite"),
        (lambda a, d: d["config"]["layers"].pop(), r"1 layers missing: \['predictions'\]"),
        (
            lambda a, d: d["config"]["layers"].append({"name": "lambda_1", "class_name": "Lambda"}),
            r"1 left over: \['lambda_1'\]",
        ),
        (
            lambda a, d: d["config"]["layers"][2]["config"].update(epsilon=1e-5),
            "batch_normalization_1.epsilon is 1e-05, expected 0.001",
        ),
        (lambda a, d: d["config"]["layers"][3].update(class_name="Lambda"), "activation_1 is a Lambda, expected Act"),
    ],
)
def test_other_keras_files_are_refused(tmp_path, change, message):
    keras_file(tmp_path / "faces.hdf5", change)
    with pytest.raises(ValueError, match=message):
        Vision(str(tmp_path / "faces.hdf5"))


def test_damaged_keras_files_are_refused(tmp_path):
    (tmp_path / "text.hdf5").write_text("no HDF5")
    with pytest.raises(ValueError, match="not a readable HDF5 file"):
        Vision(str(tmp_path / "text.hdf5"))
    h5py.File(tmp_path / "empty.hdf5", "w").close()
    with pytest.raises(ValueError, match="lacks model_config or model_weights"):
        Vision(str(tmp_path / "empty.hdf5"))
    (tmp_path / "weights.bin").write_text("")
    with pytest.raises(ValueError, match=r"no \.hdf5 of mini-XCEPTION"):
        Vision(str(tmp_path / "weights.bin"))


def test_every_array_has_a_place_of_its_own():
    places = [ours for ours, _ in keras_arrays(keras_layers()).values()]
    assert len(places) == len(set(places)) == 80


# ---- weights that do not fit
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("vit.layernorm.weight"), r"1 missing keys: \['vit.layernorm.weight'\]"),
        (lambda t: t.update(extra=torch.zeros(1)), r"1 unexpected keys: \['extra'\]"),
        (lambda t: t.update({"classifier.bias": torch.zeros(9)}), "1 mismatched keys.*classifier.bias"),
        (lambda t: t.update({"classifier.bias": torch.full((3,), torch.nan)}), r"not finite.*classifier\.bias"),
    ],
)
def test_weights_are_strict(vit, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        Vision(spoil(vit, tmp_path / "bad", change))


def test_missing_things_say_what_to_do(vit, tmp_path):
    with pytest.raises(FileNotFoundError, match="no image encoder at 'nowhere'.*Give --model.vision the folder"):
        Vision("nowhere")
    with pytest.raises(ValueError, match="unknown shape 'x'; expected one of vit-base-face, clip-vit-large-patch14"):
        Vision("shape:x")
    for name, kind, message in (
        ("preprocessor_config.json", FileNotFoundError, "no preprocessor_config.json"),
        ("model.safetensors", FileNotFoundError, r"no \*\.safetensors"),
    ):
        folder = shutil.copytree(vit, tmp_path / name.split(".")[0])
        (folder / name).unlink()
        with pytest.raises(kind, match=message):
            Vision(str(folder))
    folder = shutil.copytree(vit, tmp_path / "size")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    with pytest.raises(ValueError, match="makes 32 pixels, but the model takes 24"):
        Vision(str(folder))
    SwinForImageClassification(SwinConfig(embed_dim=8, depths=[1], num_heads=[1])).save_pretrained(tmp_path / "swin")
    with pytest.raises(ValueError, match="holds a SwinForImageClassification; image encoders.*ViTModel"):
        Vision(str(tmp_path / "swin"))


# ---- training
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_weight(vit, checkpointing):
    vision = Vision(str(vit), gradient_checkpointing=checkpointing)
    assert vision.training
    vision.logits(frames()).square().sum().backward()
    assert not [n for n, p in vision.named_parameters() if p.grad is None or not p.grad.any()]


def test_frozen_stays_frozen(tmp_path):
    keras_file(tmp_path / "faces.hdf5")
    vision = Vision(str(tmp_path / "faces.hdf5")).freeze()
    before = {k: v.clone() for k, v in vision.state_dict().items()}
    vision.train()
    assert not vision.training and not vision.hidden(frames()).requires_grad
    assert all(torch.equal(v, before[k]) for k, v in vision.state_dict().items())


def test_a_small_one_learns_dark_from_bright(vit):
    """Twenty steps are enough: frames whose upper or lower half is bright."""
    torch.manual_seed(0)
    vision = Vision(str(vit))
    optimizer = torch.optim.AdamW(vision.parameters(), 3e-3)
    label = torch.arange(16) % 2
    x = frames(16, 24, 24) // 4
    x[label == 0, :, :12] += 150
    x[label == 1, :, 12:] += 150
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(vision.logits(x), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


# ---- sizes, identity
@pytest.mark.parametrize(
    "name, count, tokens, width",
    [("vit-base-face", 85_804_039, 197, 768), ("clip-vit-large-patch14", 303_179_776, 257, 1024)],
)
def test_shapes_on_the_meta_device(name, count, tokens, width):
    vision = Vision(f"shape:{name}", dtype="bfloat16", device="meta")
    assert sum(p.numel() for p in vision.parameters()) == count
    assert {p.device.type for p in vision.parameters()} == {"meta"} and vision.dtype == torch.bfloat16
    assert (vision.tokens, vision.width, vision.size) == (tokens, width, 224)
    assert vision.prepare(frames(1, 30, 50)).shape == (1, 3, 224, 224)


def test_every_shape_is_counted():
    assert set(VISION_SHAPES) == {"vit-base-face", "clip-vit-large-patch14"}


def test_the_tiny_one(tmp_path):
    vision = Vision(str(make_vit_folder(tmp_path / "a", LABELS)))
    assert sum(p.numel() for p in vision.parameters()) == 1_118_599
    assert (vision.tokens, vision.size, vision.width, vision.labels) == (65, 96, 144, LABELS)
    with pytest.raises(FileExistsError, match="already holds a model"):
        make_vit_folder(tmp_path / "a", LABELS)
    with pytest.raises(ValueError, match="size 96 is no multiple of patch 10"):
        make_vit_folder(tmp_path / "b", LABELS, patch=10)


def test_fingerprints_tell_weights_apart(vit, tmp_path):
    copy = spoil(vit, tmp_path / "copy", lambda t: None)
    other = spoil(vit, tmp_path / "other", lambda t: t["classifier.bias"].add_(1))
    assert Vision(copy).fingerprint() == Vision(copy).fingerprint() != Vision(other).fingerprint()
    keras_file(tmp_path / "faces.hdf5")
    assert len(Vision(str(tmp_path / "faces.hdf5")).fingerprint()) == 64
