"""`tests/benchmarks/gpu_suite.py`: on a GPU as it is, without one in tiny shapes on a pretended one."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.pretended_graph import pretended_graphs

SUITE = Path(__file__).parent / "benchmarks" / "gpu_suite.py"
# what a machine with a GPU need not have: the command line's parser, decoders of video and sound, what tests use
WITHOUT = ("jsonargparse", "av", "soundfile", "h5py", "pandas", "sklearn", "statsmodels", "pytest", "trl")


@pytest.fixture
def suite():
    spec = importlib.util.spec_from_file_location("gpu_suite", SUITE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tables = [module.shapes.SHAPES, module.shapes.VISION_SHAPES, module.shapes.AUDIO_SHAPES]
    before = [dict(table) for table in tables]  # tiny shapes take their place
    yield module
    for table, shapes in zip(tables, before, strict=True):
        table.clear()
        table.update(shapes)


@pytest.mark.gpu
def test_on_a_gpu():
    done = subprocess.run([sys.executable, str(SUITE)], timeout=600)
    assert done.returncode == 0


def test_on_the_pretended_gpu(suite, gpu):
    with pretended_graphs():
        rows = suite.run(torch.device("cuda:0"), small=True, only=["verbs", "steps", "decoding", "grpo"])
    assert [row for row in rows if not row.ok] == []
    assert {row.part for row in rows} == {"verbs", "steps", "decoding", "grpo"}
    assert gpu.launches > 10_000
    families = {row.what for row in rows if row.part == "steps"}
    assert {family.system for family in suite.FAMILIES} <= families
    assert sum("CUDA graph" in row.what for row in rows) == 2


def test_a_difference_from_the_cpu_is_a_failure(suite, gpu, monkeypatch):
    monkeypatch.setattr(suite.LLM, "head", lambda llm, hidden: _head(llm, hidden) * (1.5 if hidden.is_cuda else 1.0))
    rows = suite.run(torch.device("cuda:0"), small=True, only=["verbs"])
    failed = {row.what for row in rows if not row.ok}
    assert "llama logprobs" in failed and "qwen3 score" in failed


def _head(llm, hidden):
    return llm.causal_lm.get_output_embeddings()(hidden).float()


def test_a_part_that_fails_is_said_and_the_others_run(suite, monkeypatch):
    def broken(device, small):
        raise RuntimeError("a kernel is missing")
        yield

    monkeypatch.setattr(suite, "PARTS", {"verbs": broken, "grpo": suite.grpo})
    rows = suite.run(torch.device("cpu"), small=True)
    assert rows[0] == ("verbs", "the part", "RuntimeError: a kernel is missing", False)
    assert rows[-1].part == "grpo" and rows[-1].ok


def test_it_needs_neither_parser_nor_decoder(tmp_path):
    code = f"""
import sys
class Without:
    def __init__(self, finder): self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {WITHOUT!r} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name): return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
sys.argv = ["gpu_suite.py", "--small", "--only", "verbs,resume", "--device", "cpu"]
import runpy
runpy.run_path({str(SUITE)!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed and resumed on cpu" in done.stdout and "0 failed" in done.stdout


def test_without_a_gpu_it_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, str(SUITE)], capture_output=True, text=True)
    assert done.returncode == 2 and "there is no CUDA device; --small runs tiny shapes" in done.stderr
