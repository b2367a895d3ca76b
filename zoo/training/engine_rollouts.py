"""Rollouts of GRPO from an engine: asked for once, kept until a checkpoint is past them, weighted for its rounding."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from zoo.backbones import Prefix
from zoo.backbones.decoding import Completions, evaluation_mode
from zoo.backbones.sampling import Sampling
from zoo.backbones.sent_adapters import adapter_version
from zoo.rl import Rollout
from zoo.rl.correction import Correction, correction_weights
from zoo.runs import run_folder
from zoo.storage import write_whole

if TYPE_CHECKING:
    from zoo.training.grpo import GRPOModule

log = logging.getLogger(__name__)

FOLDER = "rollouts"  # in the run folder
KEPT = ("ids", "mask", "logprobs", "finished")  # the parts of `Completions` that an engine gives


class EngineRollouts:
    """The rollouts of a run whose answers an engine writes.

    Answers are on disk before anything is learnt from them, under a name made of all that they depend on: prompts,
    adapters, seeds and options. A run that is killed and resumed reads them there, so it repeats the step exactly,
    although an engine may answer the same question otherwise the second time.

    Args:
        module: whose rollouts.
        correction, threshold: see `correction_weights`.
    """

    def __init__(self, module: GRPOModule, correction: Correction, threshold: float) -> None:
        if correction not in get_args(Correction) or not 0 < threshold < float("inf"):
            raise ValueError(
                f"sampler_correction {correction!r}, sampler_threshold {threshold}: expected one of "
                f"{', '.join(get_args(Correction))}, and a finite number above 0"
            )
        if module.sampler.kind != "own" and module.lora is None:
            raise ValueError(
                f"--model.sampler.kind {module.sampler.kind} is sent the adapters of every step, and without "
                "--model.lora there are none; add it, or sample in this process (own)"
            )
        if module.sampler.kind != "own" and module.sampling != Sampling():
            raise ValueError(
                f"--model.sampler.kind {module.sampler.kind} gives log-probabilities of what it draws from, so answers "
                "are drawn from the whole distribution: leave out top_p, top_k, min_p and stop_strings, or sample in "
                "this process (own)"
            )
        self.module, self.correction, self.threshold = module, correction, threshold
        self._saved = (0, 0)  # steps of the last two checkpoints

    @torch.no_grad()
    def sample(self, window: Sequence[Any], n: int, prompts: Tensor | None = None) -> Rollout:
        """Return n answers to each prompt of a window, or to some (b,) of them, with both sides' log-probabilities."""
        module = self.module
        batches = [module.encode(batch) for batch in window]
        encoded = Prefix.join(batches)
        if prompts is not None:
            batches = [encoded.rows(rows) for rows in prompts.split(len(batches[0].mask))]
            encoded = encoded.rows(prompts)
        drawn = self._answers(encoded, n)
        logprobs: list[Tensor] = []  # of the policy
        start = 0
        with evaluation_mode(module.llm):
            for prefix in batches:  # as many at once as in training
                rows = slice(start, start + len(prefix.mask))
                logprobs.append(module.llm.logprobs(prefix, drawn.ids[rows], drawn.mask[rows], module.temperature))
                start = rows.stop
        mask = drawn.mask & drawn.finished[..., None] if module.mask_truncated_completions else drawn.mask
        trainer, sampler = (x.masked_fill(~mask, 0.0) for x in (torch.cat(logprobs), drawn.logprobs))
        return Rollout(drawn.ids, mask, trainer, drawn.finished, drawn.entropy, drawn.mask, sampler)

    def corrected(self, weights: Tensor, rollout: Rollout) -> Tensor:
        """Return token weights (B, n, T) that allow for the sampler's other probabilities."""
        if rollout.sampler_logprobs is None:
            return weights
        per_answer = self.module.objective.kind.startswith("ppo")
        return weights * correction_weights(
            rollout.old_logprobs,
            rollout.sampler_logprobs,
            rollout.loss_mask,
            self.correction,
            self.threshold,
            per_answer,
        )

    # ---- on disk
    @property
    def folder(self) -> Path:
        """Where the answers are."""
        return run_folder(self.module.trainer) / FOLDER

    def _answers(self, prefix: Prefix, n: int) -> Completions:
        """Return the answers of the engine, from the disk if they are there."""
        module = self.module
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))  # of the step, see `EmotionModule`
        digest = hashlib.sha256(
            json.dumps(
                [
                    *(module.sampler.model, adapter_version(module.llm), generator.initial_seed(), n),
                    *(module.max_new_tokens, module.temperature),
                ]
            ).encode()
        )
        digest.update(prefix.mask.cpu().numpy().tobytes())
        for prompt, real in zip(prefix.embeddings.float().cpu(), prefix.prompt_mask.cpu(), strict=True):
            digest.update(prompt[real].numpy().tobytes())
        step = f"{module.global_step:08d}-{module.global_rank}"
        path = self.folder / f"{step}-{digest.hexdigest()[:20]}.safetensors"
        drawn = _read(path, prefix.mask.device)
        if drawn is None:
            drawn = module.writer.sample(
                prefix, n, max_new_tokens=module.max_new_tokens, temperature=module.temperature, generator=generator
            )
            write_whole(path, save({name: getattr(drawn, name).contiguous().cpu() for name in KEPT}))
        else:
            log.info("the answers of step %d were kept, the engine is not asked again", module.global_step)
        return drawn

    def forget_before_checkpoint(self, step: int) -> None:
        """Remove the answers that come before the last checkpoint but this one, which is still being written."""
        if step > self._saved[1]:
            self._saved = (self._saved[1], step)
        if self.module.sampler.kind == "own":
            return
        for path in self.folder.glob(f"*-{self.module.global_rank}-*.safetensors"):
            if int(path.name.partition("-")[0]) < self._saved[0]:
                path.unlink(missing_ok=True)


def _read(path: Path, device: torch.device) -> Completions | None:
    """Return kept answers; None if there are none, or the file is damaged, which is as good as none."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            ids, mask, logprobs, finished = (file.get_tensor(name) for name in KEPT)
    except (FileNotFoundError, SafetensorError):
        return None
    return Completions(ids, mask, logprobs, finished, torch.full_like(logprobs, torch.nan))
