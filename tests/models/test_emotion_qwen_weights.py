"""The authors' tree to ours and back, on models of our own written under names that the authors may have used."""

import json

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from zoo.backbones import LLM
from zoo.backbones.patch_vision import PatchVision, small_patch_vision
from zoo.models.emotion_qwen.parts import HybridCompressor
from zoo.models.emotion_qwen.weights import from_published, read_published, to_published

WIDTH, TO, INNER = 16, 32, 24  # of the tower, of the language model, of an expert


@pytest.fixture(scope="module")
def own(tmp_path_factory, tiny_qwen2):
    """A model of ours, as the paper's module will hold it: name -> tensor, all different."""
    tower = small_patch_vision(tmp_path_factory.mktemp("towers") / "tower", 2, WIDTH, 2, 32, full_attention=(1,))
    model = nn.Module()
    model.vision, model.llm = PatchVision(str(tower)), LLM(str(tiny_qwen2))
    model.compressor = HybridCompressor(WIDTH, TO, inner=INNER, heads=4)
    torch.manual_seed(0)
    state = {k: torch.randn_like(v) for k, v in model.state_dict().items()}
    state["llm.model.lm_head.weight"] = state["llm.model.model.embed_tokens.weight"].clone()  # tied here
    return state


def renamed(state, experts, gate, decoder="llm.", joined=True):
    """The published dict of a state of ours, under the names that these two tables give the inner parts."""
    out = {}
    for name, tensor in state.items():
        part, rest = name.split(".", 1)
        if part == "vision":
            out[f"vpm.{rest.removeprefix('model.')}"] = tensor
        elif name.startswith("llm.model.lm_head."):
            out["lm_head.weight"] = tensor
        elif part == "llm":
            out[decoder + rest.removeprefix("model.model.")] = tensor
        elif rest.startswith("gate."):
            rest = rest.removeprefix("gate.")
            if "in_proj" in rest and not joined:
                leaf = rest.removeprefix("attention.in_proj_")
                for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                    out[f"gatenet.{gate[f'{letter}.{leaf}']}"] = third.clone()
            else:
                out[f"gatenet.{gate[rest]}"] = tensor
        else:
            expert, rest = rest.split(".", 1)
            out[f"{expert}compressor.{experts[rest]}"] = tensor
    return out


def both(names):
    """Module names -> names of weight and bias."""
    return {f"{a}.{leaf}": f"{b}.{leaf}" for a, b in names.items() for leaf in ("weight", "bias")}


QWEN = both({"fc1": "mlp.0", "fc2": "mlp.2", "norm": "ln_q"})
PLAIN = both({"fc1": "fc1", "fc2": "fc2", "norm": "norm"})
ONE = both({"fc1": "net.0", "fc2": "net.2", "norm": "net.3"})
FUSED = {f"attention.in_proj_{leaf}": f"attn.in_proj_{leaf}" for leaf in ("weight", "bias")}
FUSED |= both({"attention.out_proj": "attn.out_proj", "linear": "fc"})
LINEAR = {f"attention.in_proj_{leaf}": f"qkv.{leaf}" for leaf in ("weight", "bias")}
LINEAR |= both({"attention.out_proj": "proj", "linear": "gate.0"})
APART = both({"q": "attn.q_proj", "k": "attn.k_proj", "v": "attn.v_proj", "attention.out_proj": "attn.o_proj"})
APART |= both({"linear": "head"})
WORDS = both({"q": "mha.query", "k": "mha.key", "v": "mha.value", "attention.out_proj": "mha.dense", "linear": "mha.w"})
STYLES = {
    "qwen merger, torch attention": (QWEN, FUSED, "llm.", True),
    "fc, one qkv map, llm.model.": (PLAIN, LINEAR, "llm.model.", True),
    "sequential, q k v apart": (ONE, APART, "llm.", False),
    "fc, query key value": (PLAIN, WORDS, "llm.model.", False),
}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def shards(folder, state, pieces=3):
    folder.mkdir()
    names, index = sorted(state), {}
    for piece in range(pieces):
        file = f"model-{piece + 1:05}-of-{pieces:05}.safetensors"
        save_file({n: state[n].contiguous() for n in names[piece::pieces]}, folder / file)
        index |= dict.fromkeys(names[piece::pieces], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


# ---- what fits
@pytest.mark.parametrize("style", STYLES)
def test_every_style_gives_our_names(own, tmp_path, style):
    published = renamed(own, *STYLES[style])
    assert len(published) == len(own) + (0 if STYLES[style][3] else 4)  # q, k, v of weight and bias
    got = read_published(shards(tmp_path / "published", published), model_state=own)
    assert same(got, own)
    shuffled = dict(sorted(published.items(), key=lambda item: hash(item[0])))  # the order in the file says nothing
    assert same(from_published(shuffled), own)


def test_round_trip_through_files(own, tmp_path):
    published = to_published(own)
    assert {k.split(".")[0] for k in published} == {
        "vpm",
        "llm",
        "lm_head",
        "generalcompressor",
        "emotioncompressor",
        "gatenet",
    }
    assert "llm.layers.0.self_attn.q_proj.weight" in published and "vpm.blocks.1.attn.qkv.bias" in published
    assert same(read_published(shards(tmp_path / "again", published, 1)), own)
    assert same(to_published(from_published(published)), published)


def test_the_experts_are_not_exchanged(own):
    published = renamed(own, QWEN, FUSED)
    got = from_published(published)
    assert torch.equal(got["compressor.emotion.fc2.bias"], published["emotioncompressor.mlp.2.bias"])
    assert torch.equal(got["compressor.general.norm.bias"], published["generalcompressor.ln_q.bias"])
    assert not torch.equal(got["compressor.general.fc1.weight"], got["compressor.emotion.fc1.weight"])


def square(state, size=4 * WIDTH):
    """The same model with experts whose two maps have one shape, and a language model of that width."""
    out = dict(state)
    for name in state:
        if name.startswith(("compressor.emotion.", "compressor.general.")):
            out[name] = torch.randn((size,) * state[name].ndim)
        elif name in ("llm.model.model.embed_tokens.weight", "llm.model.lm_head.weight"):
            out[name] = torch.randn(len(state[name]), size)
    return out


@pytest.mark.parametrize("experts", [QWEN, PLAIN, ONE])
def test_maps_of_one_shape_are_told_by_their_number(own, experts):
    state = square(own)
    got = from_published(renamed(state, experts, FUSED))
    assert same(got, state)
    assert not torch.equal(state["compressor.general.fc1.weight"], state["compressor.general.fc2.weight"])


def test_paper_size():
    """On the meta device: 385 tensors of the tower, 338 of the decoder, the head, 12 of the experts, 6 of the gate."""
    model = nn.Module()
    model.vision = PatchVision("shape:qwen2.5-vl-vision", device="meta")
    model.llm = LLM("shape:qwen2.5-7b", device="meta")
    with torch.device("meta"):
        model.compressor = HybridCompressor(model.vision.width, model.llm.width)
    own = model.state_dict()
    published = renamed(own, QWEN, LINEAR)
    assert len(published) == 385 + 338 + 1 + 12 + 6
    assert tuple(published["generalcompressor.mlp.0.weight"].shape) == (5120, 5120)
    assert tuple(published["vpm.blocks.31.mlp.down_proj.weight"].shape) == (1280, 3420)
    got = from_published(published, model_state=own)
    assert {k: v.shape for k, v in got.items()} == {k: v.shape for k, v in own.items()}


# ---- what is ambiguous, and the table
def test_maps_of_one_shape_without_numbers(own, tmp_path):
    state = square(own)
    published = renamed(state, both({"fc1": "enter", "fc2": "leave", "norm": "norm"}), FUSED)
    with pytest.raises(ValueError) as said:
        from_published(published)
    message = str(said.value)
    assert "generalcompressor.*: shapes and names leave 2 ways" in message
    assert "compressor.general.fc1.weight may be generalcompressor.enter.weight or generalcompressor.leave" in message
    assert "norm" not in message.split("Ambiguous")[1] and "write a table, a YAML file" in message
    table = {rf"(general|emotion)compressor\.enter\.{x}": rf"compressor.\1.fc1.{x}" for x in ("weight", "bias")}
    assert same(from_published(published, table), state)
    half = {r"(general|emotion)compressor\.enter\.weight": r"compressor.\1.fc1.weight"}  # the bias follows
    assert same(from_published(published, half), state)
    file = tmp_path / "table.yaml"
    file.write_text(yaml.safe_dump(table))
    assert same(read_published(shards(tmp_path / "published", published), file), state)


def test_loose_vectors_of_one_shape(own):
    loose = {"fc1.weight": "w1", "fc1.bias": "b1", "fc2.weight": "w2", "fc2.bias": "b2"}
    loose |= {"norm.weight": "gamma", "norm.bias": "beta"}
    published = renamed(own, loose, FUSED)
    with pytest.raises(ValueError, match="leave 6 ways. Ambiguous: compressor.general.fc2.bias may be .*b2 or .*beta"):
        from_published(published)
    table = {r"(\w+)compressor\.b2": r"compressor.\1.fc2.bias", r"(\w+)compressor\.gamma": r"compressor.\1.norm.weight"}
    assert same(from_published(published, table), own)
    table[r"(\w+)compressor\.gamma"] = r"compressor.\1.norm.bias"  # a wrong table is believed: it is the user's word
    assert not same(from_published(published, table), own)


def test_queries_without_a_name(own):
    nameless = APART | both({"q": "attn.a", "k": "attn.b", "v": "attn.c"})
    published = renamed(own, PLAIN, nameless, joined=False)
    with pytest.raises(ValueError, match=r"gatenet.\*: shapes and names leave 24 ways. Ambiguous: compressor.gate"):
        from_published(published)
    table = {rf"gatenet\.attn\.{a}\.(\w+)": rf"compressor.gate.attention.{x}.\1" for a, x in ("aq", "bk", "cv")}
    assert same(from_published(published, table), own)
    wrong = table | {r"gatenet\.attn\.a\.(\w+)": table[r"gatenet\.attn\.b\.(\w+)"]}
    with pytest.raises(ValueError, match="gatenet.attn.a.weight and gatenet.attn.b.weight would both be"):
        from_published(published, wrong)


def test_the_table_can_leave_out(own):
    published = renamed(own, QWEN, FUSED) | {"vpm.merger.ln_q.weight": torch.ones(WIDTH)}
    assert same(from_published(published, {r"vpm\.merger\..*": None}, own), own)
    with pytest.raises(ValueError, match=r"do not fit this model: 0 missing.*1 left over \['vision.model.merger.ln_q"):
        from_published(published, model_state=own)


@pytest.mark.parametrize(
    "table, said",
    [
        ({"gatenet.nothing": "compressor.gate.linear.weight"}, "is the name of no tensor; the names begin"),
        ({r"gatenet\.fc\.weight": "gate.weight"}, "'gate.weight' is none of our names; they begin with vision.model."),
        ({r"gatenet\.fc\.weight": "compressor.gate.head"}, r"\['compressor.gate.head'\] are none of our names"),
        ({r"gatenet\.fc\.weight": "compressor.gate.linear.bias"}, r"gatenet.fc.weight is \(2, 16\), but .* is \(2,\)"),
        ({"(": None}, "is no regular expression"),
        ({r"gatenet\.fc\.weight": r"compressor.gate.\1"}, "is no regular expression and name .*invalid group"),
        ({r"gatenet\.fc\.weight": None, r"gatenet\.fc\.w.*": None}, "gatenet.fc.weight is named twice"),
        ({r"gatenet\.fc\.weight": 3}, "must map regular expressions to our names"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(own, table, said):
    with pytest.raises(ValueError, match=said):
        from_published(renamed(own, QWEN, FUSED), table)


def test_table_files_that_cannot_be_used_are_refused(own, tmp_path):
    published = renamed(own, QWEN, FUSED)
    with pytest.raises(ValueError, match="nowhere.yaml could not be read .FileNotFoundError"):
        from_published(published, tmp_path / "nowhere.yaml")
    for text, said in (("[1, 2]", "must map regular"), ("a: [", "could not be read"), ("", "must map regular")):
        (tmp_path / "table.yaml").write_text(text)
        with pytest.raises(ValueError, match=said):
            from_published(published, tmp_path / "table.yaml")


# ---- what does not fit
def change(state, **by):
    state = dict(state)
    for name in by.get("without", ()):
        del state[name]
    return state | by.get("put", {})


@pytest.mark.parametrize(
    "by, said",
    [
        ({"without": ["generalcompressor.mlp.2.bias"]}, r"generalcompressor.\* does not.*has 5 tensors, expected 6"),
        ({"without": ["gatenet.fc.bias"]}, r"gatenet.\* does not fit.*\(missing\): \['linear.bias \(2,\)'\]"),
        (
            {"put": {"emotioncompressor.pre.weight": torch.ones(WIDTH)}},  # a norm before the maps, unlike Eq. 1
            r"emotioncompressor.\* does not fit .*has 7 tensors.*left over.*\['emotioncompressor.pre.weight \(16,\)'\]",
        ),
        ({"put": {"gatenet.norm.weight": torch.ones(WIDTH)}}, "gatenet.* does not fit .*has 7 tensors, expected 6"),
        (
            {"put": {"generalcompressor.mlp.0.weight": torch.ones(INNER, 3 * WIDTH)}},
            r"generalcompressor.mlp.0.weight \(24, 48\)'\].*\(missing\): \[\"fc1.weight \('inner', 64\)\"\]",
        ),
        (
            {"put": {"generalcompressor.mlp.0.bias": torch.ones(INNER + 1)}},  # unlike the matrix beside it
            r"generalcompressor.\* does not fit .*\['generalcompressor.mlp.0.bias \(25,\)'\].*fc1.bias \(24,\)",
        ),
        ({"put": {"gatenet.fc.weight": torch.ones(3, WIDTH)}}, r"gatenet.\* does not fit.*gatenet.fc.weight \(3, 16\)"),
        ({"put": {"audio.conv.weight": torch.ones(2)}}, "audio.conv.weight belongs to none of the published parts"),
        ({"put": {"llm.model.norm.weight": torch.ones(TO)}}, "llm.norm.weight and llm.model.norm.weight would both be"),
        ({"without": ["vpm.patch_embed.proj.weight"]}, "expected vpm.patch_embed.proj.weight with 5 axes.*is none"),
        ({"put": {"llm.embed_tokens.weight": torch.ones(2)}}, r"llm.embed_tokens.weight with 2 axes.*shape is \(2,\)"),
        ({"without": ["lm_head.weight"]}, "lm_head.weight is missing; expected the whole"),
    ],
)
def test_missing_extra_and_misshapen_tensors_are_refused(own, by, said):
    with pytest.raises(ValueError, match=said):
        from_published(change(renamed(own, QWEN, FUSED), **by))


@pytest.mark.parametrize(
    "by, said",
    [
        ({"without": ["vpm.blocks.1.norm1.weight"]}, r"1 missing \['vision.model.blocks.1.norm1.weight'\], 0 left"),
        ({"put": {"llm.layers.9.x": torch.ones(1)}}, r"0 missing \[\], 1 left over \['llm.model.model.layers.9.x'\]"),
        ({"put": {"llm.norm.weight": torch.ones(3)}}, r"llm.model.model.norm.weight is \(3,\), expected \(32,\)"),
    ],
)
def test_tower_and_decoder_are_held_against_the_model(own, by, said):
    meta = {k: v.to("meta") for k, v in own.items()}
    assert same(from_published(renamed(own, QWEN, FUSED), model_state=meta), own)
    with pytest.raises(ValueError, match=said):
        from_published(change(renamed(own, QWEN, FUSED), **by), model_state=meta)


def test_another_merge_is_refused(own):
    with pytest.raises(ValueError, match=r"fc1.weight \('inner', 144\)"):
        from_published(renamed(own, QWEN, FUSED), merge=3)


def test_what_has_no_place_is_not_written(own):
    wrapped = "llm.model.base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    for name in (wrapped, "compressor.mlp.fc1", "llm.model.model.layers.0.q_proj.lora_A.default.weight"):
        with pytest.raises(ValueError, match="has no place in the published model.*merge adapters"):
            to_published(own | {name: torch.ones(1)})


# ---- folders
def test_folders_that_cannot_be_read_are_refused(own, tmp_path):
    published = renamed(own, QWEN, FUSED)
    with pytest.raises(FileNotFoundError, match="no folder at .*expected the unpacked published model"):
        read_published(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no .*safetensors; expected the unpacked"):
        read_published(tmp_path / "empty")
    for suffix in ("bin", "pt", "pkl"):
        folder = tmp_path / suffix
        folder.mkdir()
        (folder / f"pytorch_model.{suffix}").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")  # would run if unpickled
        (folder / "modeling_emotionqwen_vl.py").write_text("raise SystemExit('remote code was run')")
        with pytest.raises(ValueError, match=rf"only \['pytorch_model.{suffix}'\]; a pickle can run any code"):
            read_published(folder)
    folder = shards(tmp_path / "short", published)
    piece = folder / "model-00002-of-00003.safetensors"
    piece.write_bytes(piece.read_bytes()[:100])
    with pytest.raises(ValueError, match="model-00002-of-00003.safetensors could not be read .*truncated"):
        read_published(folder)
    piece.unlink()
    with pytest.raises(FileNotFoundError, match="lacks model-00002-of-00003.safetensors, which"):
        read_published(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"index.json could not be read \(KeyError"):
        read_published(folder)


def test_without_an_index_every_file_is_read_and_none_twice(own, tmp_path):
    folder = shards(tmp_path / "published", renamed(own, QWEN, FUSED))
    (folder / "model.safetensors.index.json").unlink()
    (folder / "training_args.bin").write_bytes(b"never opened")
    assert same(read_published(folder), own)
    save_file({"lm_head.weight": torch.ones(1)}, folder / "more.safetensors")
    with pytest.raises(ValueError, match=r"\['lm_head.weight'\] stand in more than one file"):
        read_published(folder)


def test_dtype_is_kept(own, tmp_path):
    half = {k: v.bfloat16() for k, v in renamed(own, PLAIN, APART, joined=False).items()}
    assert {v.dtype for v in read_published(shards(tmp_path / "half", half)).values()} == {torch.bfloat16}
