"""An engine in place of `LLM.sample`: the same answers, the adapters of now, and every fault of it named."""

import json
import threading
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.conftest import make_tiny
from tests.fake_vllm import CASES, JSON, FakeVLLM, contract
from zoo import endpoints
from zoo.backbones import LLM, LoRA
from zoo.backbones import engine as engine_module
from zoo.backbones.engine import Engine, Sampler
from zoo.backbones.sent_adapters import adapter_version, write_adapter

SEEDS = 11


@pytest.fixture
def server(tiny_llama):
    fake = FakeVLLM(tiny_llama)
    yield fake
    fake.stop()


@pytest.fixture
def waits(monkeypatch):
    """Seconds that the client would have waited between tries."""
    seconds = []
    monkeypatch.setattr(endpoints.time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def llm(tiny_llama):
    return adapted(tiny_llama)


def adapted(folder, r=4, seed=0, **options):
    """A language model with adapters that change its answers."""
    torch.manual_seed(seed)
    model = LLM(str(folder), **options)
    model.add_lora(LoRA(r=r, targets=r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"))
    learn(model)
    return model.eval()


@torch.no_grad()
def learn(model):
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.add_(0.3 * torch.randn(parameter.shape))


def connect(llm, server, tmp_path, **options):
    options = {"timeout": 20.0, "tries": 3} | options
    return Engine(llm, Sampler("vllm", server.url, **options), tmp_path / "adapters")


def prompts(llm, embedded=False):
    ids = torch.randint(5, 100, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[2, :1] = 0
    return llm.encode(llm.embed(ids) if embedded else ids, mask)


def drawn(engine, prefix, n=2, temperature=1.3):
    seeds = torch.Generator().manual_seed(SEEDS)
    return engine.sample(prefix, n, max_new_tokens=6, temperature=temperature, generator=seeds)


def same_by_ourselves(llm, prefix, n=2, temperature=1.3):
    """The same answers without an engine: the k-th to a prompt has its seed + k."""
    seeds = torch.randint(2**31, (len(prefix.mask),), generator=torch.Generator().manual_seed(SEEDS)).tolist()
    rows = []
    for i, seed in enumerate(seeds):
        for k in range(n):
            generator = torch.Generator().manual_seed(seed + k)
            one = prefix.rows(torch.tensor([i]))
            made = llm.sample(one, 1, max_new_tokens=6, temperature=temperature, generator=generator)
            real = made.mask[0, 0]
            rows.append((made.ids[0, 0][real].tolist(), made.logprobs[0, 0][real], bool(made.finished)))
    return rows


def assert_same(answers, expected):
    ids, logprobs, finished = zip(*expected, strict=True)
    real = [i[m].tolist() for i, m in zip(answers.ids.flatten(0, 1), answers.mask.flatten(0, 1), strict=True)]
    assert real == list(ids)
    torch.testing.assert_close(answers.logprobs[answers.mask], torch.cat(logprobs), rtol=0, atol=1e-4)
    assert answers.finished.flatten().tolist() == list(finished)
    assert answers.entropy.isnan().all() and not answers.logprobs[~answers.mask].any()


# ---- the contract
def test_the_fake_answers_as_vllm_did(server, llm, tmp_path):
    write_adapter(llm, tmp_path)
    recorded = json.loads((Path(__file__).parents[1] / "vllm_contract.json").read_text())
    assert recorded.keys() == CASES.keys()
    replies = contract(server.url, tmp_path)
    assert {name: replies[name] for name in recorded} == recorded


# ---- answers
@pytest.mark.parametrize("embedded", [False, True])
def test_answers_are_those_of_the_model(server, llm, tmp_path, embedded):
    engine = connect(llm, server, tmp_path)
    prefix = prompts(llm, embedded)
    assert_same(drawn(engine, prefix), same_by_ourselves(llm, prefix))
    asked = server.completions()
    assert len(asked) == 3 and all(("prompt_embeds" in body) == embedded for body in asked)
    assert embedded or sorted(len(body["prompt"]) for body in asked) == [3, 6, 7]  # without padding
    # what a server may have other defaults for is said
    assert {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}.items() <= asked[0].items()


def test_answers_behind_a_fixed_beginning(server, llm, tmp_path):
    static = llm.cache_prefix(torch.arange(20, 25))
    ids = torch.arange(30, 38).view(2, 4)
    behind = [llm.encode(x, torch.ones(2, 4), static) for x in (ids, llm.embed(ids))]
    whole = llm.encode(torch.cat([static.ids.expand(2, -1), ids], 1), torch.ones(2, 9))
    engine = connect(llm, server, tmp_path)
    for prefix in behind:
        assert_same(drawn(engine, prefix), same_by_ourselves(llm, whole))


def test_greedy_answers(server, llm, tmp_path):
    engine, prefix = connect(llm, server, tmp_path), prompts(llm)
    assert_same(drawn(engine, prefix, 2, 0.0), same_by_ourselves(llm, prefix, 2, 0.0))
    assert engine.greedy_text(prefix, 6) == llm.greedy_text(prefix, 6)
    assert {body["n"] for body in server.completions()} == {1}  # vLLM takes no other


def test_sampling_can_be_repeated(server, llm, tmp_path):
    engine, prefix = connect(llm, server, tmp_path), prompts(llm)
    first, second = drawn(engine, prefix), drawn(engine, prefix)
    assert torch.equal(first.ids, second.ids)
    torch.manual_seed(3)
    other = engine.sample(prefix, 2, max_new_tokens=6, temperature=1.3)
    torch.manual_seed(3)
    assert torch.equal(other.ids, engine.sample(prefix, 2, max_new_tokens=6, temperature=1.3).ids)
    assert len({body["seed"] for body in server.completions()}) == 6  # one for every prompt of a draw


# ---- adapters
def test_the_adapters_of_now_are_used_and_old_ones_let_go(server, llm, tmp_path):
    engine, prefix = connect(llm, server, tmp_path), prompts(llm)
    first = drawn(engine, prefix)
    drawn(engine, prefix)
    assert len(server.loads) == 1
    learn(llm)
    assert_same(second := drawn(engine, prefix), same_by_ourselves(llm, prefix))
    assert not torch.equal(first.ids, second.ids)
    assert len(server.loads) == 2 and server.unloads == server.loads[:1]
    assert list(server.adapters) == [p.name for p in (tmp_path / "adapters").glob("zoo-*")] == server.loads[1:]


def test_peft_reads_what_is_sent(llm, tiny_llama, tmp_path):
    write_adapter(llm, tmp_path)
    read = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32), tmp_path)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, llm.model(ids).logits, rtol=0, atol=1e-5)


def test_other_folders_are_left_alone(server, llm, tmp_path):
    mine = tmp_path / "adapters" / "mine"
    mine.mkdir(parents=True)
    drawn(connect(llm, server, tmp_path), prompts(llm))
    assert mine.is_dir()


def test_a_model_without_adapters_is_asked_by_its_name(server, tiny_llama, tmp_path):
    plain = LLM(str(tiny_llama)).eval()
    prefix = prompts(plain)
    assert_same(drawn(connect(plain, server, tmp_path), prefix), same_by_ourselves(plain, prefix))
    assert not server.loads


# ---- the check at the start
@pytest.mark.parametrize("embedded", [False, True])
def test_a_right_engine_passes(server, llm, tmp_path, embedded):
    before = {n: p.clone() for n, p in llm.named_parameters()}
    assert connect(llm, server, tmp_path).check(1000, 1.4, embedded) < 1e-4
    assert all(torch.equal(p, before[n]) for n, p in llm.named_parameters())
    assert any(body["temperature"] == 1.4 for body in server.completions())


def test_new_adapters_are_checked_with_numbers_in_them(server, tiny_llama, tmp_path):
    """As they are, they change nothing, so an engine that ignores them would pass."""
    new = LLM(str(tiny_llama))
    new.add_lora(LoRA(r=4))
    connect(new, server, tmp_path).check(100)
    ignore_adapters(server)
    with pytest.raises(ValueError, match="differ by .* other weights or adapters"):
        connect(new, server, tmp_path).check(100)


def ignore_adapters(server):
    server._reply, right = (
        lambda path, body: right(path, body | {"model": "base"} if path == "/v1/completions" else body),
        server._reply,
    )


def test_another_name_or_length(server, llm, tmp_path):
    with pytest.raises(ValueError, match=r"serves base, not 'mine' \(--model.sampler.model\).*zoo rollouts serve"):
        connect(llm, server, tmp_path, model="mine").check(100)
    with pytest.raises(
        ValueError, match="of 1100 tokens together, but they may have 1101; start it with --max-model-len"
    ):
        connect(llm, server, tmp_path).check(1101)


def test_another_tokenizer(llm, tmp_path):
    texts = [f"{a} {b} he did not smile" for a in ("weather", "today") for b in ("fine", "she", "said", "him")] * 9
    fake = FakeVLLM(make_tiny(tmp_path / "other", texts=texts))
    with pytest.raises(ValueError, match="another tokenizer"):
        connect(llm, fake, tmp_path).check(100)
    fake.stop()


def test_other_weights(llm, tmp_path):
    fake = FakeVLLM(make_tiny(tmp_path / "other", seed=5))
    with pytest.raises(ValueError, match=r"differ by .* more than --model.sampler.tolerance 0.1: other weights"):
        connect(llm, fake, tmp_path).check(100)
    fake.stop()


def test_raw_logprobs(server, llm, tmp_path):
    """An engine without ``--logprobs-mode processed_logprobs`` gives those at temperature 1."""
    right = server._reply

    def raw(path, body):
        status, kind, reply = right(path, body)
        if path == "/v1/completions" and body["temperature"]:
            values = reply["choices"][0]["logprobs"]["token_logprobs"]
            values[:] = [value * body["temperature"] - 1 for value in values]
        return status, kind, reply

    server._reply = raw
    with pytest.raises(ValueError, match="at temperature 2 differ .* raw log-probabilities"):
        connect(llm, server, tmp_path).check(100, 2.0)


def test_rank(tiny_llama, tmp_path, waits):
    fake = FakeVLLM(tiny_llama, max_rank=8)
    with pytest.raises(
        ValueError, match="adapters of rank 9 .*LoRA rank 9 is greater than max_lora_rank 8.*--max-lora"
    ):
        connect(adapted(tiny_llama, r=9), fake, tmp_path).check(100)
    assert not waits  # it will not change its mind
    fake.stop()


def test_loading_is_not_allowed(server, llm, tmp_path):
    missing = (404, JSON, {"detail": "Not Found"})
    server.fault = lambda path, body: missing if "lora" in path else None
    with pytest.raises(ValueError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        connect(llm, server, tmp_path).check(100)


def test_models_that_no_engine_can_serve(server, tiny_llama, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no folder that an engine could serve"):
        connect(LLM("shape:llama-2-7b", device="meta"), server, tmp_path)
    with pytest.raises(ValueError, match="mrope"):
        connect(LLM(str(tiny_llama), mrope=(1, 1, 2)), server, tmp_path)
    monkeypatch.setattr(engine_module, "is_divided", lambda llm: True)
    with pytest.raises(ValueError, match="use ddp"):
        connect(LLM(str(tiny_llama)), server, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "trl"}, "unknown sampler.kind 'trl'; expected one of own, vllm"),
        ({"tries": 0}, "sampler.tries"),
        ({"timeout": 0.0}, "sampler.timeout"),
        ({"tolerance": float("nan")}, "sampler.tolerance"),
        ({"kind": "vllm", "url": "127.0.0.1:8000"}, "is no address"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**options)


# ---- faults
def changed(change):
    """A right reply, changed."""

    def reply(server, path, body):
        status, kind, made = server._reply(path, body)
        change(made["choices"])
        return status, kind, made

    return reply


FAULTS = {
    "500": lambda *_: (500, JSON, {"error": {"message": "CUDA error"}}),
    "503": lambda *_: (503, None, "busy"),
    "hangs up": lambda *_: "hang up",
    "slow": lambda *_: (200, JSON, [1.5, "{}"]),
    "html": lambda *_: (200, "text/html", "<html>"),
    "a list": lambda *_: (200, JSON, "[]"),
    "no choices": changed(lambda choices: choices.clear()),
    "one too few": changed(lambda choices: choices.pop()),
    "one twice": changed(lambda choices: choices[1].update(index=0)),
    "no logprobs": changed(lambda choices: choices[1].update(logprobs=None)),
    "fewer logprobs": changed(lambda choices: choices[1]["logprobs"]["token_logprobs"].pop()),
    "NaN": changed(lambda choices: choices[0]["logprobs"]["token_logprobs"].__setitem__(0, float("nan"))),
    "positive": changed(lambda choices: choices[0]["logprobs"]["token_logprobs"].__setitem__(0, 0.5)),
    "no ids": changed(lambda choices: choices[0].pop("token_ids")),
    "an id of another vocabulary": changed(lambda choices: choices[0]["token_ids"].__setitem__(0, 10**6)),
    "a text for an id": changed(lambda choices: choices[0]["token_ids"].__setitem__(0, "5")),
    "an empty answer": changed(lambda choices: choices[0].update(token_ids=[], logprobs={"token_logprobs": []})),
    "aborted": changed(lambda choices: choices[0].update(finish_reason="abort")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_changes_nothing(server, llm, tmp_path, waits, fault):
    prefix, faulty = prompts(llm), [True]

    def once(path, body):
        return FAULTS[fault](server, path, body) if path == "/v1/completions" and faulty and faulty.pop() else None

    server.fault = once
    answers = drawn(connect(llm, server, tmp_path, timeout=1.0 if fault == "slow" else 20.0), prefix)
    assert_same(answers, same_by_ourselves(llm, prefix))
    assert len(server.completions()) == 4 and not faulty


@pytest.mark.parametrize("fault", ["500", "hangs up", "html", "no logprobs", "an id of another vocabulary"])
def test_a_lasting_fault_is_refused(server, llm, tmp_path, waits, fault):
    server.fault = lambda path, body: FAULTS[fault](server, path, body) if path == "/v1/completions" else None
    with pytest.raises(ValueError, match=r"gave no usable answer: .*\(3 tries\)\. Nothing is lost.*resume the run"):
        drawn(connect(llm, server, tmp_path), prompts(llm))


def test_what_it_refuses_is_not_asked_again(server, llm, tmp_path, waits):
    server.max_len = 8
    with pytest.raises(ValueError, match="HTTP 400.*maximum context length"):
        drawn(connect(llm, server, tmp_path), prompts(llm))
    assert not waits


def test_nobody_there(server, llm, tmp_path, waits):
    server.stop()
    with pytest.raises(ValueError, match="no reply.*3 tries.*zoo rollouts serve"):
        connect(llm, server, tmp_path).check(100)


def test_a_restarted_engine_gets_the_adapters_again(server, llm, tmp_path):
    engine, prefix = connect(llm, server, tmp_path), prompts(llm)
    drawn(engine, prefix)
    server.restart()
    assert_same(drawn(engine, prefix), same_by_ourselves(llm, prefix))
    assert server.loads == server.loads[:1] * 2  # under the same name, once for all questions


def test_an_engine_that_comes_back_is_waited_for(server, llm, tmp_path, monkeypatch):
    engine, prefix = connect(llm, server, tmp_path, tries=5), prompts(llm)
    drawn(engine, prefix)
    server.stop()
    server.restart()
    back, lock = [], threading.Lock()

    def wait(seconds):
        with lock:
            if not back:
                back.append(seconds)
                server.start()

    monkeypatch.setattr(endpoints.time, "sleep", wait)
    assert_same(drawn(engine, prefix), same_by_ourselves(llm, prefix))
    assert back


def test_an_engine_that_comes_back_with_another_model(server, llm, tmp_path):
    engine, prefix = connect(llm, server, tmp_path), prompts(llm)
    drawn(engine, prefix)
    server.restart()
    server.name = "another"
    with pytest.raises(ValueError, match="serves another, not 'base'"):
        drawn(engine, prefix)


def test_names_of_adapters_stand_for_their_numbers(tiny_llama):
    assert adapter_version(adapted(tiny_llama)) == adapter_version(adapted(tiny_llama))
    assert adapter_version(adapted(tiny_llama)) != adapter_version(adapted(tiny_llama, seed=1))
