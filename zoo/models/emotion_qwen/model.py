"""Emotion-Qwen: a vision tower, two experts and a gate before a language model, trained in stages (Huang et al. 2025).

A video's frames, and those of them whose faces show an emotion, all else blackened (Sec. 3.2 -> `faces`), go through
a vision tower; the Hybrid Compressor (Sec. 3.3, Eqs. 1-4 -> `parts`) makes one token of four patches by an expert for
emotion and one for everything else, mixed by a gate per picture or video; the tokens stand in the prompt of a language
model (Sec. 3.4 -> `input`), which answers. Stage 1 trains the general expert, stage 2 the emotion expert, stage 3 the
language model (Sec. 5 -> `train` in configs/emotion_qwen/stage*.yaml), then one LoRA is tuned per data set
(Sec. 6 -> `EmotionQwenAdapters`).

Differs from the paper (P) and its published code (C, which lacks the model, stages 1 and 2 and the data):
- P names a CLIP ViT; the published tensors are Qwen2.5-VL's tower without its merger, in window order (see
  `zoo.backbones.patch_vision`). Inner widths, heads, and which of the gate's outputs is emotion are unstated: arguments
  here.
- Stage 1 starts with a random emotion expert, so ours forces the gate to the general one there (``force_gate``) and
  trains the gate in stage 2; P names it in both and says nothing about forcing.
- At small size (configs/emotion_qwen/sitcom_*.yaml) tower and words are trained first, and stage 2 shows questions
  beside emotions: from emotions alone the gate learnt to choose that expert always, and the questions were lost.
- C's LoRA scripts always train the token embeddings and the gate too, on q, k, v and o, 3 epochs; P freezes them, 5
  epochs. C's full tuning trains language model and emotion expert. `train` says which, the configs hold both.
- Face capture: P uses DeepFace and states neither detector nor threshold nor how the stream joins. Ours: any
  `FaceCapture`; masked frames are a second video before the words; off if no face is sure. C has it off by default.
- Budgets: P's "1280 x 784" is ``max_pixels`` 1280 * 28 * 28; C passes that of pictures under a name nobody reads.
  Video: 2 frames per second in C's training, 3 in P and its evaluation.
- Frames: ours are the middles of equal parts of a video, 1 to 64 of them, each of at least 56 * 56 pixels; C takes an
  even number of at least 4, from the first to the last, of at least 128 * 28 * 28 pixels. Published weights are asked
  about pictures of the size they know with ``frame_rule: authors``.
- A conversation of several answers is one sample per answer, each with the picture and all earlier turns, so steps and
  epochs count differently from C, which has all answers in one sample. ``--data.answers together`` is C's way.
- Chat text: ours is the tokenizer's own format; C puts a newline before the end token of an answer, and hides padding
  by masking token id 0, which is a word.
- Prompts are worded by us. Answers are read strictly: the first line must name exactly one label. C counts a hit where
  the true word occurs anywhere in the answer (DFEW), or takes the last label of the alphabet that does (MER2024);
  ``gold_in_answer`` and ``last_in_answer`` report those numbers beside ours, under their own names.
- Explanations: clue and label overlap by exact words (`zoo.metrics.reason_overlap`), and as P's by a language model
  (`judge`), which is asked in our own words.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from zoo.backbones import LoRA, Prefix
from zoo.backbones.divided import is_divided
from zoo.backbones.llm import Dtype
from zoo.backbones.patch_vision import PatchVision
from zoo.media import MAX_SECONDS, Media
from zoo.metrics import Judge
from zoo.models.emotion_qwen.faces import FaceCapture
from zoo.models.emotion_qwen.input import LARGEST, QwenCollator
from zoo.models.emotion_qwen.parts import (
    Compressed,
    FusionProjector,
    HybridCompressor,
    MergerProjector,
    MLPProjector,
    expert_of_merger,
    inner_to_match,
    take_merger,
)
from zoo.models.emotion_qwen.sampling import FrameSampling
from zoo.models.emotion_qwen.scores import summarise
from zoo.prompts import escape
from zoo.schema import Prediction, Sample
from zoo.training.batch import SampleBatch, answer_in_groups
from zoo.training.checkpointing import Backbone
from zoo.training.evaluation import ordered_parts
from zoo.training.feature_cache import FeatureCache
from zoo.training.given_features import is_given
from zoo.training.judge import ExplanationJudge
from zoo.training.sft import SupervisedFineTuning

ATTENTION = r"model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"
LORA = LoRA(r=64, alpha=64.0, dropout=0.05, targets=ATTENTION)  # P
Projector = HybridCompressor | MLPProjector | FusionProjector | MergerProjector


class EmotionQwen(SupervisedFineTuning):
    """Pictures and videos as compressed tokens in a language model; every stage and every tuning of the paper.

    What is trained must be said: by `train` (names begin with ``vision.``, ``compressor.`` and ``llm.``), or by `lora`,
    which then is all that is trained. Without either, `zoo fit` is refused.

    Args:
        vision: folder, published name, hub id or ``shape:NAME`` of the tower (see `zoo.backbones.patch_vision`), also a
            whole Qwen2.5-VL, of which the tower alone is read.
        vision_dtype: dtype of tower and compressor.
        vision_revision: hub revision to pin.
        projector: ``hybrid`` (P), of the ablation ``mlp`` or ``fusion``, or ``merger``: that of the whole Qwen2.5-VL
            that ``vision`` names, so that with the same folder as ``llm`` the system is Qwen2.5-VL (ours).
        general_start: what the general expert starts from: ``random`` weights, or the ``merger`` of that folder, whose
            shapes must be the expert's (ours; P: "pre-trained"); see `parts.expert_of_merger`.
        inner: inner width of each expert; None: 4 times the tower's width.
        match_hybrid: give the MLP as many parameters as the Hybrid Compressor has (ours).
        heads: of the gate's attention.
        gate_pool: ``before`` or ``after`` attention (see `parts.Gate`).
        gate_order: which expert each output of the gate belongs to.
        force_gate: one expert alone, see above.
        embedding_scale: multiply what the last layer of each expert (or MLP) gives at first by this many times the
            deviation of the language model's input embeddings (ours: small models' are far from 1); None leaves
            PyTorch's initial weights.
        frames: frames of a video, evenly spaced; None: by ``fps``.
        fps: frames per second of a video (C: 2 in training; P: 3), up to ``max_frames``.
        frame_rule: ``ours`` or ``authors``: which frames are taken, and the least pixels of each (see `FrameSampling`).
        min_pixels, max_pixels: budget of a picture.
        video_max_pixels: budget of each frame of a video (C: 448 * 448 in training, 768 * 28 * 28 in evaluation).
        face_capture: Facial Emotion Capture (P); None: off.
        mrope: channel pairs that turn by time, height and width (Qwen2.5-VL: 16, 24, 24); None: tokens are counted.
        show_text: whether the utterance's words are shown.
        lora: adapters on the language model, all that is trained unless `train` names more; P: rank 64, alpha 64,
            dropout .05 on q, k, v and o.
        template: ``default``, ``plain`` (for small models), or a file.
        decode: ``score`` compares the log-probabilities of the label words, ``greedy`` writes and reads. Samples with
            an ``answer`` of their own (explanations, conversations) are always written.
        max_new_tokens: of written answers (C: 128, explanations 1024).
        gold_in_answer: also report the authors' gold-conditioned accuracy, as ``accuracy_gold_in_answer``: the true
            word occurs anywhere in the written answer, whatever else does.
        last_in_answer: also report accuracy and weighted F1 by the authors' rule for MER2024, as
            ``accuracy_last_in_answer`` and ``weighted_f1_last_in_answer``: of the label words anywhere in the written
            answer the last one of the alphabet; without any the last of all ("worried").
        judge: a language model that rates explanations in ``zoo test``, beside the overlap of exact words; None: none
            is asked. P: gpt-3.5-turbo-16k.
        max_length: longest prompt; longer ones lose old words, and where clips leave no room for words, faces and the
            oldest clips, which is listed. An answer of more than ``max_new_tokens`` may take what the prompt leaves of
            it; beyond, it loses its end. C: 2048, 14336 and more with videos.
        cache: folder of decoded clips (see `zoo.media.Media`); None decodes at every visit.
        timeout: seconds one clip may take to decode.
        max_clip_seconds: a longer clip or film is not read, and counted.
    """

    renamed_options = {"token_scale": "embedding_scale", "words": "show_text"}
    unpublished_options = ("judge",)
    weightless_options = ("judge", "face_capture")
    answers_questions = True
    templates = Path(__file__).parent / "templates"
    template_variables = {"question": "", "earlier": "", "vision": "", "faces": "", "still": False}
    unreadable_events = ("samples without a readable clip",)

    def __init__(
        self,
        *,
        vision: str,
        vision_dtype: Dtype = "float32",
        vision_revision: str | None = None,
        projector: Literal["hybrid", "mlp", "fusion", "merger"] = "hybrid",
        general_start: Literal["random", "merger"] = "random",
        inner: int | None = None,
        match_hybrid: bool = False,
        heads: int = 8,
        gate_pool: Literal["before", "after"] = "before",
        gate_order: tuple[Literal["emotion", "general"], Literal["emotion", "general"]] = ("emotion", "general"),
        force_gate: Literal["none", "emotion", "general"] = "none",
        embedding_scale: float | None = None,
        frames: int | None = None,
        fps: float = 2.0,
        max_frames: int = 64,
        frame_rule: Literal["ours", "authors"] = "ours",
        min_pixels: int = 56 * 56,
        max_pixels: int = 1280 * 28 * 28,
        video_max_pixels: int = 448 * 448,
        face_capture: FaceCapture | None = None,
        mrope: tuple[int, int, int] | None = None,
        show_text: bool = True,
        decode: Literal["score", "greedy"] = "score",
        max_new_tokens: int = 128,
        gold_in_answer: bool = False,
        last_in_answer: bool = False,
        judge: ExplanationJudge | None = None,
        max_length: int = 2048,
        cache: Path | None = None,
        timeout: float = 30.0,
        max_clip_seconds: float = MAX_SECONDS,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
        warmup: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            decode=decode,
            max_new_tokens=max_new_tokens,
            max_length=max_length,
            betas=betas,
            weight_decay=weight_decay,
            warmup=warmup,
            **kwargs,
        )
        if min(frames or 1, max_frames) < 1 or not fps > 0:
            raise ValueError(f"need frames, max_frames >= 1 and fps > 0; got {frames}, {max_frames} and {fps}")
        if projector != "hybrid" and force_gate != "none":
            raise ValueError(f"force_gate {force_gate} chooses an expert of the hybrid projector; {projector} has none")
        if projector != "hybrid" and general_start != "random":
            raise ValueError(f"general_start {general_start} is of the hybrid projector's expert; {projector} has none")
        if projector == "merger" and not (inner is None and embedding_scale is None):
            raise ValueError("the merger comes with its weights and its width; leave inner and embedding_scale out")
        if match_hybrid and projector != "mlp":
            raise ValueError(f"match_hybrid widens the mlp projector; got projector {projector}")
        if is_given(vision):
            raise ValueError(
                f"--model.vision {vision}: Emotion-Qwen's compressor joins squares of neighbouring patches of a "
                "tower's grid, which features in files have none of; give a vision tower, or take MERIT or FARCER for "
                "these features"
            )
        self.make_vision = functools.partial(
            PatchVision,
            vision,
            dtype=vision_dtype,
            revision=vision_revision,
            attention=self.make_llm.keywords["attention"],
            gradient_checkpointing=self.make_llm.keywords["gradient_checkpointing"],
        )
        self.make_llm = functools.partial(self.make_llm, mrope=None if mrope is None else tuple(mrope))
        self.projector, self.inner, self.match_hybrid, self.heads = projector, inner, match_hybrid, heads
        self.general_start = general_start
        order: Any = tuple(gate_order)  # a config may give a list; the compressor checks what is in it
        self.make_hybrid = functools.partial(
            HybridCompressor, heads=heads, gate_pool=gate_pool, gate_order=order, force_gate=force_gate
        )
        self.show_text, self.face_capture, self.mrope = show_text, face_capture, mrope is not None
        self.sampling = FrameSampling(frames, fps, max_frames, frame_rule)
        self.min_pixels, self.max_pixels, self.video_max_pixels = min_pixels, max_pixels, video_max_pixels
        self.media = Media(Path(cache) if cache else None, timeout, max_clip_seconds, LARGEST)
        self.gold_in_answer, self.last_in_answer = gold_in_answer, last_in_answer
        self.embedding_scale = embedding_scale
        self.judge = judge
        self.ratings: Sequence[Judge] = ()
        self.compressed_clips = FeatureCache()

    @property
    def reads(self) -> tuple[str, ...]:
        """What the prompt shows, and faces."""
        return ordered_parts({*(super().reads or ()), "face"} - (set() if self.show_text else {"text"}))

    # ---- parts
    def build(self) -> None:
        """Make the language model, the vision tower and the compressor; `train` says which of them are trained."""
        super().build()
        if self.llm.stated_mrope not in (None, self.llm.mrope):
            raise ValueError(
                f"the language model in {self.llm.path} has positions of time, height and width; got --model.mrope "
                f"{self.llm.mrope}, give {self.llm.stated_mrope}"
            )
        self.vision = self.make_vision()
        self.compressor = self._make_projector().to(self.vision.dtype)
        self._read_merger()
        if self.embedding_scale is not None:
            self._scale_last_layers(self.embedding_scale)
        for part in (self.vision, self.compressor):
            part.requires_grad_(False)

    @torch.no_grad()
    def _scale_last_layers(self, embedding_scale: float) -> None:
        embeddings = cast(nn.Embedding, self.llm.causal_lm.get_input_embeddings())
        if embeddings.weight.is_meta:  # sizes alone are wanted
            return
        deviation = float(embeddings.weight.detach().float().std())
        last: list[Any] = [getattr(m, "norm", m.fc2) for m in self.compressor.modules() if hasattr(m, "fc2")]
        for parameter in (p for layer in last for p in layer.parameters()):
            parameter.mul_(embedding_scale * deviation)

    def _read_merger(self) -> None:
        """Give the projector, or the general expert, the weights of the merger that stands behind the tower."""
        if self.vision.model.patch_embed.proj.weight.is_meta:  # sizes alone are wanted
            return
        if self.projector == "merger" and not self.vision.path.startswith("shape:"):
            take_merger(self.compressor, self.vision.read_merger(), self.vision.path)
        elif self.general_start == "merger":
            general = cast(HybridCompressor, self.compressor).general
            take_merger(general, expert_of_merger(self.vision.read_merger()), self.vision.path)

    def _make_projector(self) -> Projector:
        sizes: dict[str, Any] = {"width": self.vision.width, "to": self.llm.width, "merge": self.vision.merge}
        inner = self.inner
        if self.match_hybrid:
            with torch.device("meta"):
                hybrid = HybridCompressor(**sizes, inner=inner, heads=self.heads)
            inner = inner_to_match(sum(p.numel() for p in hybrid.parameters()), **sizes)
        kinds: dict[str, Callable[..., Projector]] = {
            "hybrid": functools.partial(self.make_hybrid, inner=inner),
            "mlp": functools.partial(MLPProjector, inner=inner),
            "fusion": functools.partial(FusionProjector, inner=inner),
            "merger": MergerProjector,
        }
        with torch.device("meta" if self.vision.model.patch_embed.proj.weight.is_meta else "cpu"):
            return kinds[self.projector](**sizes)

    def backbones(self) -> Mapping[str, Backbone]:
        """Return the language model and the vision tower."""
        return {**super().backbones(), "vision": self.vision}

    def blocks(self, name: str) -> Sequence[nn.Module]:
        """Return the layers of a part; the compressor's are its experts and its gate."""
        return list(self.compressor.children()) if name == "compressor" else super().blocks(name)

    # ---- input
    def collator(self, training: bool) -> QwenCollator:
        """Return what writes samples as prompts with clips."""
        return (
            super()
            .collator(training)
            .as_type(
                QwenCollator,
                media=self.media,
                show_text=self.show_text,
                sampling=self.sampling,
                min_pixels=self.min_pixels,
                max_pixels=self.max_pixels,
                video_max_pixels=self.video_max_pixels,
                patch=self.vision.patch,
                merge=self.vision.merge,
                temporal=self.vision.temporal,
                capture=self.face_capture,
                mrope=self.mrope,
                tokens_per_second=self.vision.tokens_per_second,
            )
        )

    def on_new_data(self) -> None:
        """Forget the clips of an earlier run."""
        super().on_new_data()
        self.compressed_clips.clear()

    def has_input(self, sample: Sample) -> bool:
        """Return whether a prompt says anything about its sample."""
        words = bool(self.show_text and sample.target.text)
        described = bool(set(self.descriptions) & set(sample.target.descriptions))
        return words or described or sample.target.video is not None or sample.question is not None

    def setup(self, stage: str) -> None:
        """Check that it is said what is trained, beside what every prompted system checks."""
        super().setup(stage)
        if stage == "fit" and self.train_patterns is None and self.lora is None:
            raise ValueError(
                "say what is trained: --model.train with regular expressions of parameter names (a stage of "
                r"configs/emotion_qwen, e.g. ['compressor\.general\..*', 'vision\..*']), or --model.lora"
            )
        if stage == "test" and self.judge is not None:
            self.ratings = self.judge.ratings()  # before any work: an address, a key or a prompt may be wrong
        if stage in ("fit", "validate"):  # free answers are not counted as labels
            labelled = {s.labels.corpus for s in self.data.samples("dev") if s.answer is None}
            self.val_metrics = {c: m for c, m in self.val_metrics.items() if c in labelled}

    def required_files(self, stage: str) -> Mapping[str, str]:
        """Return that clips are read, unless the language model alone is trained: it may learn from words first."""
        patterns = self.train_patterns
        words_alone = stage == "fit" and patterns and all(p.startswith("llm") for p in patterns)
        return {} if words_alone else {"video": ""}

    def has_file(self, sample: Sample, part: str) -> bool:
        """Return whether the sample or a turn of its conversation has a clip."""
        return any(getattr(turn, part) is not None for turn in (sample.target, *sample.history))

    def lacks_file(self, sample: Sample, part: str) -> bool:
        """Return whether the sample should have a clip and has none: a question may be asked without a picture."""
        return sample.question is None and super().lacks_file(sample, part)

    def compress(self, batch: Mapping[str, Any]) -> Compressed | None:
        """Return tokens (n, H) and gates (2,) of the pictures, videos and streams of faces of a batch; None without."""
        if batch["patches"] is None:
            return self._compress_nothing() if is_divided(self.vision) or is_divided(self.compressor) else None
        grid = batch["grid"]
        pieces = batch["patches"].split(grid.prod(1).tolist())

        def compute(part: list[int]) -> Compressed:
            part_grid = grid[part].clone()
            features, order = self.vision.hidden(torch.cat([pieces[i] for i in part]), part_grid)
            return self.compressor(features, part_grid, order)

        if any(p.requires_grad for part in (self.vision, self.compressor) for p in part.parameters()):
            return compute(list(range(len(grid))))

        def rows(part: list[int]) -> list[tuple[Tensor, Tensor | None]]:
            tokens, gates = compute(part)
            return list(zip(tokens, [None] * len(tokens) if gates is None else gates, strict=True))

        tokens, gates = zip(*self.compressed_clips.rows(batch["keys"], rows), strict=True)
        return Compressed(tokens, None if gates[0] is None else torch.stack(gates))

    def _compress_nothing(self) -> Compressed:
        """Return no tokens, of the smallest picture: what is divided computes in every process together."""
        merge = self.vision.merge
        grid = torch.tensor([[1, merge, merge]], device=self.device)
        patches = torch.zeros(merge**2, 3 * self.vision.temporal * self.vision.patch**2, device=self.device)
        features, order = self.vision.hidden(patches, grid)
        tokens, gates = self.compressor(features, grid, order)
        return Compressed((tokens[0][:0],), None if gates is None else gates[:0])

    def embed(self, batch: Any) -> Tensor:
        """Return (B, T, D) input embeddings of a batch, with compressed tokens in the slots."""
        return self._embed_with(batch, self.compress(batch))

    def _embed_with(self, batch: Any, compressed: Compressed | None) -> Tensor:
        embedded = super().embed(batch)
        if compressed is None:
            return embedded
        return embedded.index_put((batch["slots"],), torch.cat(compressed.tokens).to(embedded.dtype))

    def count_missing(self, batch: Mapping[str, Any]) -> None:
        """Add what a batch lacked to the events of a test."""
        self.events["samples without a readable clip"] += batch["no_clip"]
        self.events["clips without an expressive face"] += batch["no_faces"]
        self.events["samples with nothing to go by"] += batch["nothing"]

    # ---- answers
    def read_label(self, sample: Sample, text: str) -> int | None:
        """Return the index of the label of an answer; of an explanation, that of its last sentence (ours)."""
        if sample.answer is not None:
            text = ([""] + re.findall(r"[^.!?。！？\n]+", text.strip()))[-1]
        return super().read_label(sample, text)

    @torch.no_grad()
    def predict(self, batch: Any) -> list[Prediction]:
        """Return the answers to a batch, with the mean weight of the emotion expert in ``details``."""
        self.count_missing(batch)
        compressed = self.compress(batch)
        embedded = self._embed_with(batch, compressed)
        prefix = self.llm.encode(embedded, batch["mask"], positions=batch.get("positions"))
        predictions = self.answer(prefix, batch["samples"])
        if compressed is None or compressed.gates is None:
            return predictions
        gates: dict[int, list[float]] = {}
        for row, gate in zip(batch["rows"], compressed.gates[:, 0].tolist(), strict=True):
            gates.setdefault(row, []).append(gate)
        for row, values in gates.items():
            p = predictions[row]
            details = dict(p.details or {}) | {"gate_emotion": round(sum(values) / len(values), 4)}
            predictions[row] = Prediction(**vars(p) | {"details": details})
        return predictions

    def answer(self, prefix: Prefix, samples: SampleBatch) -> list[Prediction]:
        """Return scored labels, and written answers where `decode` or the sample asks for them."""
        fitting = self._trainer is not None and self.trainer.state.fn in ("fit", "validate")

        def method(sample: Sample) -> Callable[[Prefix, SampleBatch], list[Prediction]]:
            if sample.answer is not None and fitting:
                return self._score_references
            return self._score_labels if sample.answer is None and self.decode == "score" else self._write_answers

        return answer_in_groups(prefix, samples, method)

    def _score_labels(self, prefix: Prefix, samples: SampleBatch) -> list[Prediction]:
        return self.scored_answers(prefix, samples)

    def _write_answers(self, prefix: Prefix, samples: SampleBatch) -> list[Prediction]:
        return self.read_answers(samples, self.writer.greedy_text(prefix, self.max_new_tokens))

    def read_answers(self, samples: SampleBatch, texts: Sequence[str]) -> list[Prediction]:
        """Return the predictions that written answers are, without white space around them."""
        return super().read_answers(samples, [text.strip() for text in texts])

    def _score_references(self, prefix: Prefix, samples: SampleBatch) -> list[Prediction]:
        """Return the mean log-probability of the tokens of each reference answer, which takes one pass."""
        answers = [self.answer_ids(escape(s.answer or "")) + [self.llm.tokenizer.eos_token_id] for s in samples]
        ids = torch.full((len(answers), 1, max(map(len, answers))), self.llm.pad_id, device=prefix.mask.device)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, answer in enumerate(answers):
            ids[row, 0, : len(answer)] = torch.tensor(answer, device=ids.device)
            mask[row, 0, : len(answer)] = True
        mean = self.llm.logprobs(prefix, ids, mask)[:, 0].sum(1) / mask[:, 0].sum(1)
        return [
            Prediction.of(s, None, details={"answer_logprob": round(x, 6)})
            for s, x in zip(samples, mean.tolist(), strict=True)
        ]

    # ---- scores
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Count labels; of free answers log the mean log-probability per token, ``val/answer``."""
        if self.keeps_step(batch):
            return
        samples, predictions = batch["samples"], self.predict(batch)
        labelled = [(s, p) for s, p in zip(samples, predictions, strict=True) if s.answer is None]
        if labelled:
            self.update_validation_metrics(SampleBatch([s for s, _ in labelled]), [p for _, p in labelled])
        details: list[Mapping[str, Any]] = [p.details or {} for p in predictions]
        self.answer_logprobs += [float(row["answer_logprob"]) for row in details if "answer_logprob" in row]

    def on_validation_epoch_start(self) -> None:
        """Begin a new list of log-probabilities of reference answers."""
        self.answer_logprobs: list[float] = []

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the labels, and of free answers ``val/answer``."""
        super().on_validation_epoch_end()
        sums = torch.tensor([sum(self.answer_logprobs), len(self.answer_logprobs)], dtype=torch.float64)
        total, n = self.sum_over_processes(sums).tolist()
        if n:
            self.log("val/answer", total / n)

    def summary(self, rows: Sequence[Mapping[str, Any]], run: Path) -> dict[str, Any]:
        """Return what metrics.json says, with gates, explanations and the authors' way of counting."""
        return summarise(self, rows, functools.partial(super().summary, rows, run))


__all__ = ["LORA", "EmotionQwen"]
