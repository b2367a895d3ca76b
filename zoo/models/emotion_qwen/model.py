"""Emotion-Qwen: a vision tower, two experts and a gate before a language model, trained in stages (Huang et al. 2025).

A video's frames, and those of them whose faces show an emotion, all else blackened (Sec. 3.2 -> `faces`), go through
a vision tower; the Hybrid Compressor (Sec. 3.3, Eqs. 1-4 -> `parts`) makes one token of four patches by an expert for
emotion and one for everything else, mixed by a gate per picture or video; the tokens stand in the prompt of a language
model (Sec. 3.4 -> `input`), which answers. Stage 1 trains the general expert, stage 2 the emotion expert, stage 3 the
language model (Sec. 5 -> `train` in configs/emotion_qwen/stage*.yaml), then one LoRA is tuned per data set
(Sec. 6 -> `EmotionQwenAdapters`).

Differs from the paper (P) and its published code (C, which lacks the model, stages 1 and 2 and the data):
- P names a CLIP ViT; the published tensors are Qwen2.5-VL's tower without its merger, in window order (`zoo.backbones.
  patches`). Inner widths, heads, and which of the gate's outputs is emotion are unstated: arguments here.
- Stage 1 starts with a random emotion expert, so ours forces the gate to the general one there (``force_gate``) and
  trains the gate in stage 2; P names it in both and says nothing about forcing.
- At small size (configs/emotion_qwen/sitcom_*.yaml) tower and words are trained first, and stage 2 shows questions
  beside emotions: from emotions alone the gate learnt to choose that expert always, and the questions were lost.
- C's LoRA scripts always train the token embeddings and the gate too, on q, k, v and o, 3 epochs; P freezes them, 5
  epochs. C's full tuning trains language model and emotion expert. `train` says which, the configs hold both.
- Face capture: P uses DeepFace and states neither detector nor threshold nor how the stream joins. Ours: any
  `FaceCapture`; the masked frames are a second video before the words; off if no face is sure of anything. C has it off
  by default.
- Budgets: P's "1280 x 784" is ``max_pixels`` 1280 * 28 * 28; C passes that of pictures under a name nobody reads.
  Video: 2 frames per second in C's training, 3 in P and its evaluation.
- Chat text: ours is the tokenizer's own format; C puts a newline before the end token of an answer, and hides padding
  by masking token id 0, which is a word.
- Prompts are worded by us. Answers are read strictly: the first line must name exactly one label. C counts a hit where
  the true word occurs anywhere in the answer; ``gold_in_answer`` reports that number beside ours, under its own name.
- Explanations: clue and label overlap by exact words (`zoo.metrics.reason_overlap`); P's are given by a language model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from zoo.backbones import LLM, LoRA, Prefix
from zoo.backbones.llm import Dtype
from zoo.backbones.patch_vision import PatchVision
from zoo.media import MAX_SECONDS, Media
from zoo.metrics import evaluate, reason_overlap
from zoo.models.emotion_qwen.faces import FaceCapture
from zoo.models.emotion_qwen.input import LARGEST, QwenCollator
from zoo.models.emotion_qwen.parts import Compressed, FusionProjector, HybridCompressor, MLPProjector, inner_to_match
from zoo.module import Rows, Supervised, label_scores, read_checkpoint, readable_parts
from zoo.prompts import escape, parse_label, words
from zoo.runs import find_checkpoint
from zoo.schema import Labels, Prediction, Sample
from zoo.senses import Remembered

ATTENTION = r"model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"
LORA = LoRA(r=64, alpha=64.0, dropout=0.05, targets=ATTENTION)  # P


class EmotionQwen(Supervised):
    """Pictures and videos as compressed tokens in a language model; every stage and every tuning of the paper.

    What is trained must be said: by `train` (names begin with ``vision.``, ``compressor.`` and ``llm.``), or by `lora`,
    which then is all that is trained. Without either, `zoo fit` is refused.

    Args:
        llm: folder, published name or hub id of the language model; P: Qwen2.5-7B.
        vision: folder, published name, hub id or ``shape:NAME`` of the tower (see `zoo.backbones.patch_vision`), also a
            whole Qwen2.5-VL, of which the tower alone is read.
        vision_dtype: dtype of tower and compressor.
        vision_revision: hub revision to pin.
        projector: ``hybrid`` (P), or of the ablation ``mlp`` or ``fusion``.
        inner: inner width of each expert; None: 4 times the tower's width.
        match_hybrid: give the MLP as many parameters as the Hybrid Compressor has (ours).
        heads: of the gate's attention.
        gate_pool: ``before`` or ``after`` attention (see `parts.Gate`).
        gate_order: which expert each output of the gate belongs to.
        force_gate: one expert alone, see above.
        token_scale: multiply what the last layer of each expert (or MLP) gives at first by this many times the
            deviation of the language model's input embeddings (ours: small models' are far from 1); None leaves
            PyTorch's initial weights.
        frames: frames of a video, evenly spaced; None: by ``fps``.
        fps: frames per second of a video (C: 2 in training; P: 3), up to ``max_frames``.
        min_pixels, max_pixels: budget of a picture.
        video_max_pixels: budget of each frame of a video (C: 448 * 448 in training, 768 * 28 * 28 in evaluation).
        face_capture: Facial Emotion Capture (P); None: off.
        mrope: channel pairs that turn by time, height and width (Qwen2.5-VL: 16, 24, 24 of heads of 128); None: tokens
            are counted.
        words: whether the utterance's words are shown.
        lora: adapters on the language model, all that is trained unless `train` names more; P: rank 64, alpha 64,
            dropout .05 on q, k, v and o.
        template: ``default``, ``plain`` (for small models), or a file.
        decode: ``score`` compares the log-probabilities of the label words, ``greedy`` writes and reads. Samples with
            an ``answer`` of their own (explanations, conversations) are always written.
        max_new_tokens: of written answers (C: 128, explanations 1024).
        gold_in_answer: also report the authors' gold-conditioned accuracy, as ``accuracy_gold_in_answer``: the true
            word occurs anywhere in the written answer, whatever else does.
        max_length: longest prompt; longer ones lose old words, never a clip. C: 2048, 14336 and more with videos.
        cache: folder of decoded clips (see `zoo.media.Media`); None decodes at every visit.
        timeout: seconds one clip may take to decode.
        max_clip_seconds: a longer clip or film is not read, and counted.
    """

    templates = Path(__file__).parent / "templates"

    def __init__(
        self,
        llm: str,
        vision: str,
        vision_dtype: Dtype = "float32",
        vision_revision: str | None = None,
        projector: Literal["hybrid", "mlp", "fusion"] = "hybrid",
        inner: int | None = None,
        match_hybrid: bool = False,
        heads: int = 8,
        gate_pool: Literal["before", "after"] = "before",
        gate_order: tuple[Literal["emotion", "general"], Literal["emotion", "general"]] = ("emotion", "general"),
        force_gate: Literal["none", "emotion", "general"] = "none",
        token_scale: float | None = None,
        frames: int | None = None,
        fps: float = 2.0,
        max_frames: int = 64,
        min_pixels: int = 56 * 56,
        max_pixels: int = 1280 * 28 * 28,
        video_max_pixels: int = 448 * 448,
        face_capture: FaceCapture | None = None,
        mrope: tuple[int, int, int] | None = None,
        words: bool = True,
        template: str = "default",
        decode: Literal["score", "greedy"] = "score",
        max_new_tokens: int = 128,
        gold_in_answer: bool = False,
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
            llm=llm,
            template=template,
            decode=decode,
            max_new_tokens=max_new_tokens,
            max_length=max_length,
            betas=betas,
            weight_decay=weight_decay,
            warmup=warmup,
            **kwargs,
        )
        if min(frames or 1, max_frames, max_new_tokens) < 1 or not fps > 0:
            raise ValueError(
                f"need frames, max_frames, max_new_tokens >= 1 and fps > 0; got {frames}, {max_frames}, "
                f"{max_new_tokens} and {fps}"
            )
        if projector != "hybrid" and force_gate != "none":
            raise ValueError(f"force_gate {force_gate} chooses an expert of the hybrid projector; {projector} has none")
        if match_hybrid and projector != "mlp":
            raise ValueError(f"match_hybrid widens the mlp projector; got projector {projector}")
        self.llm_args |= {"mrope": None if mrope is None else tuple(mrope)}
        self.vision_args = {
            "path": vision,
            "dtype": vision_dtype,
            "revision": vision_revision,
            "attention": self.llm_args["attention"],
            "gradient_checkpointing": self.llm_args["gradient_checkpointing"],
        }
        self.projector, self.inner, self.match_hybrid, self.heads = projector, inner, match_hybrid, heads
        self.gate = {"gate_pool": gate_pool, "gate_order": tuple(gate_order), "force_gate": force_gate}
        self.input = {
            "words": words,
            "frames": frames,
            "fps": fps,
            "max_frames": max_frames,
            "min_pixels": min_pixels,
            "max_pixels": max_pixels,
            "video_max_pixels": video_max_pixels,
            "capture": face_capture,
            "mrope": mrope is not None,
            "media": Media(Path(cache) if cache else None, timeout, max_clip_seconds, LARGEST),
        }
        self.gold_in_answer, self.token_scale = gold_in_answer, token_scale
        self.remembered = Remembered()

    template_variables = {"question": "", "earlier": "", "vision": "", "faces": "", "still": False}

    @property
    def reads(self) -> tuple[str, ...]:
        words = {"text"} if self.input["words"] else set()
        return readable_parts({*super().reads, "face"} - ({"text"} - words))

    # ---- parts
    def build(self) -> None:
        super().build()
        self.vision = PatchVision(**self.vision_args)
        self.compressor = self._projector().to(self.vision.dtype)
        if self.token_scale is not None:
            scale = self.token_scale * float(self.llm.causal_lm.get_input_embeddings().weight.detach().float().std())
            last = [getattr(m, "norm", m.fc2) for m in self.compressor.modules() if hasattr(m, "fc2")]
            with torch.no_grad():
                for parameter in (p for layer in last for p in layer.parameters()):
                    parameter.mul_(scale)
        for part in (self.vision, self.compressor):  # what trains them is `train`
            part.requires_grad_(False)

    def _projector(self) -> HybridCompressor | MLPProjector | FusionProjector:
        sizes = {"width": self.vision.width, "to": self.llm.width, "merge": self.vision.merge}
        inner = self.inner
        if self.match_hybrid:
            with torch.device("meta"):
                hybrid = HybridCompressor(**sizes, inner=inner, heads=self.heads)
            inner = inner_to_match(sum(p.numel() for p in hybrid.parameters()), **sizes)
        with torch.device("meta" if self.vision.model.patch_embed.proj.weight.is_meta else "cpu"):
            if self.projector == "hybrid":
                return HybridCompressor(**sizes, inner=inner, heads=self.heads, **self.gate)
            return {"mlp": MLPProjector, "fusion": FusionProjector}[self.projector](**sizes, inner=inner)

    def bases(self) -> dict[str, LLM | PatchVision]:
        return super().bases() | {"vision": self.vision}

    def shard(self, mesh: DeviceMesh) -> None:
        """FSDP2: every process holds its share of each block's weights, gradients and moments, and gathers the whole of
        a block while it computes. ValueError for a language model whose input and output embeddings are one."""
        decoder, head = self.llm.causal_lm.get_decoder(), self.llm.causal_lm.get_output_embeddings()
        if head.weight is decoder.embed_tokens.weight:
            raise ValueError(
                f"{self.llm.path} ties its embeddings, which two blocks cannot share; use --trainer.strategy ddp"
            )
        tower = self.vision.model
        blocks = [
            *decoder.layers,
            decoder.embed_tokens,
            decoder.norm,
            head,
            *tower.blocks,
            tower.patch_embed,
            *self.compressor.children(),
        ]
        for block in blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=True)

    def collator(self, training: bool) -> QwenCollator:
        own = {k: v for k, v in vars(super().collator(training)).items() if not k.startswith("_")}
        sizes = {"patch": self.vision.patch, "merge": self.vision.merge, "temporal": self.vision.temporal}
        return QwenCollator(**own | self.input | sizes)

    def shows(self, sample: Sample) -> bool:
        """Whether a prompt says anything about its sample."""
        told = bool(self.input["words"] and sample.target.text) or bool(
            set(self.descriptions) & set(sample.target.descriptions)
        )
        return told or sample.target.video is not None or sample.question is not None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.remembered.clear()
        if stage == "fit" and self.patterns is None and self.lora is None:
            raise ValueError(
                "say what is trained: --model.train with regular expressions of parameter names (a stage of "
                r"configs/emotion_qwen, e.g. ['compressor\.general\..*', 'vision\..*']), or --model.lora"
            )
        if stage in ("fit", "validate"):  # free answers are not counted as labels
            labelled = {s.labels.corpus for s in self.trainer.datamodule.samples("dev") if s.answer is None}
            self.val_metrics = {c: m for c, m in self.val_metrics.items() if c in labelled}

    unread_events = ("samples without a readable clip",)

    def needs(self, stage: str) -> Mapping[str, str]:
        words_alone = stage == "fit" and self.patterns and all(p.startswith("llm") for p in self.patterns)
        return {} if words_alone else {"video": ""}  # a language model may learn from words first

    def has_file(self, sample: Sample, part: str) -> bool:
        return any(getattr(turn, part) is not None for turn in (sample.target, *sample.history))

    # ---- input
    def see(self, batch: Mapping[str, Any]) -> Compressed | None:
        """Tokens (n, H) and gates (2,) of the pictures, videos and streams of faces of a batch; None if it has none."""
        if batch["patches"] is None:
            return None
        grid = batch["grid"]
        pieces = batch["patches"].split(grid.prod(1).tolist())

        def compute(which: list[int]) -> Compressed:
            some = grid[which].clone()
            features, order = self.vision.hidden(torch.cat([pieces[i] for i in which]), some)
            return self.compressor(features, some, order)

        if any(p.requires_grad for part in (self.vision, self.compressor) for p in part.parameters()):
            return compute(list(range(len(grid))))

        def each(part: list[int]) -> list[tuple[Tensor, Tensor | None]]:
            tokens, gates = compute(part)
            return list(zip(tokens, [None] * len(tokens) if gates is None else gates, strict=True))

        tokens, gates = zip(*self.remembered.rows(batch["keys"], each), strict=True)
        return Compressed(tokens, None if gates[0] is None else torch.stack(gates))

    def embedded(self, batch: dict[str, Any]) -> Tensor:
        """(B, T, D): the words' embeddings with compressed tokens in the slots."""
        return self._placed(batch, self.see(batch))

    def _placed(self, batch: dict[str, Any], seen: Compressed | None) -> Tensor:
        embedded = super().embedded(batch)
        if seen is None:
            return embedded
        return embedded.index_put((batch["slots"],), torch.cat(seen.tokens).to(embedded.dtype))

    def count(self, batch: Mapping[str, Any]) -> None:
        """Adds what a batch lacked to the events of a test."""
        self.counts["samples without a readable clip"] += batch["no_clip"]
        self.counts["clips without an expressive face"] += batch["no_faces"]
        self.counts["samples with nothing to go by"] += batch["nothing"]

    # ---- answers
    def candidates(self, labels: Labels) -> list[list[int]]:
        """Tokens of each label word as an answer."""
        return [self.answer_ids(word) for word in words(labels, self.verbalizer)]

    def read_answer(self, sample: Sample, text: str) -> str | None:
        """Label word of an answer; of an explanation, that of its last sentence (ours). None if it is unreadable."""
        if sample.answer is not None:
            text = ([""] + re.findall(r"[^.!?。！？\n]+", text.strip()))[-1]
        index = parse_label(text, words(sample.labels, self.verbalizer))
        return None if index is None else sample.labels.names[index]

    @torch.no_grad()
    def predict(self, batch: dict[str, Any]) -> list[Prediction]:
        self.count(batch)
        seen = self.see(batch)
        prefix = self.llm.encode(self._placed(batch, seen), batch["mask"], positions=batch.get("positions"))
        predictions = self.answer(prefix, batch["samples"])
        if seen is None or seen.gates is None:
            return predictions
        gates: dict[int, list[float]] = {}
        for row, gate in zip(batch["rows"], seen.gates[:, 0].tolist(), strict=True):
            gates.setdefault(row, []).append(gate)
        for row, own in gates.items():
            p = predictions[row]
            details = dict(p.details or {}) | {"gate_emotion": round(sum(own) / len(own), 4)}
            predictions[row] = Prediction(**vars(p) | {"details": details})
        return predictions

    def answer(self, prefix: Prefix, samples: Rows) -> list[Prediction]:
        """Scored labels; written answers where `decode` or the sample asks for them."""
        fitting = self._trainer is not None and self.trainer.state.fn in ("fit", "validate")
        ways: dict[Callable[[Prefix, Rows], list[Prediction]], list[int]] = {}
        for i, s in enumerate(samples):
            free = self._reference if fitting else self._written
            way = free if s.answer is not None else self._scored if self.decode == "score" else self._written
            ways.setdefault(way, []).append(i)
        if len(ways) == 1:
            return next(iter(ways))(prefix, samples)
        found: dict[int, Prediction] = {}
        for way, rows in ways.items():
            some = way(prefix.rows(torch.tensor(rows, device=prefix.mask.device)), Rows([samples[i] for i in rows]))
            found |= dict(zip(rows, some, strict=True))
        return [found[i] for i in range(len(samples))]

    def _scored(self, prefix: Prefix, samples: Rows) -> list[Prediction]:
        return label_scores(self.llm, prefix, samples, self.candidates)

    def _written(self, prefix: Prefix, samples: Rows) -> list[Prediction]:
        said = self.llm.sample(prefix, 1, max_new_tokens=self.max_new_tokens, temperature=0.0)
        texts = [
            self.llm.tokenizer.decode(ids[mask], skip_special_tokens=True).strip()
            for ids, mask in zip(said.ids[:, 0], said.mask[:, 0], strict=True)
        ]
        return [
            Prediction(s.id, s.dialogue, s.target.label, self.read_answer(s, text), text=text)
            for s, text in zip(samples, texts, strict=True)
        ]

    def _reference(self, prefix: Prefix, samples: Rows) -> list[Prediction]:
        """Validation: mean log-probability of the tokens of each reference answer, which takes one pass."""
        answers = [self.answer_ids(escape(s.answer)) + [self.llm.tokenizer.eos_token_id] for s in samples]
        ids = torch.full((len(answers), 1, max(map(len, answers))), self.llm.pad_id, device=prefix.mask.device)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, answer in enumerate(answers):
            ids[row, 0, : len(answer)] = torch.tensor(answer, device=ids.device)
            mask[row, 0, : len(answer)] = True
        mean = self.llm.logprobs(prefix, ids, mask)[:, 0].sum(1) / mask[:, 0].sum(1)
        return [
            Prediction(s.id, s.dialogue, s.target.label, None, details={"answer_logprob": round(x, 6)})
            for s, x in zip(samples, mean.tolist(), strict=True)
        ]

    # ---- scores
    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Labels are counted as ever; of free answers the mean log-probability per token is logged, ``val/answer``."""
        samples, predictions = batch["samples"], self.predict(batch)
        labelled = [(s, p) for s, p in zip(samples, predictions, strict=True) if s.answer is None]
        if labelled:
            self.judge(Rows([s for s, _ in labelled]), [p for _, p in labelled])
        told = [p.details["answer_logprob"] for p in predictions if "answer_logprob" in (p.details or {})]
        if told:
            self.log(
                "val/answer",
                sum(told) / len(told),
                on_step=False,
                on_epoch=True,
                batch_size=len(told),
                sync_dist=self.trainer.world_size > 1,
            )

    def summary(self, rows: Sequence[Mapping[str, Any]], run: Path) -> dict[str, Any]:
        data = self.trainer.datamodule
        told = {s.id: s.answer for s in data.samples("test") if s.answer is not None}
        of = {corpus: [r for r in rows if r["id"].startswith(f"{corpus}/")] for corpus in data.label_sets}
        if all(own and all(r["label"] is not None for r in own) for own in of.values()):
            found = super().summary(rows, run)
        else:  # some answers have no label: conversations
            parts = {}
            for corpus, own in of.items():
                labelled = [r for r in own if r["label"] is not None]
                parts[corpus] = evaluate(labelled, data.label_sets[corpus]) if labelled else {"n": len(own)}
            found = next(iter(parts.values())) if len(parts) == 1 else {"n": len(rows), "corpora": parts}
        for corpus, own in of.items():
            place = found["corpora"][corpus] if "corpora" in found else found
            gates = [r["details"]["gate_emotion"] for r in own if "gate_emotion" in (r.get("details") or {})]
            if gates:
                place["gate_emotion"] = sum(gates) / len(gates)
            explained = [r for r in own if r["id"] in told]
            if explained:
                references = {r["id"]: told[r["id"]] for r in explained}
                place["reasons"] = reason_overlap(explained, references)
            if self.gold_in_answer:
                place |= self._gold_in_answer(own, data.label_sets[corpus])
        return found

    def _gold_in_answer(self, rows: Sequence[Mapping[str, Any]], labels: Labels) -> dict[str, float]:
        """The authors' way of counting: the true word occurs in the answer, alone or not."""
        said = dict(zip(labels.names, words(labels, self.verbalizer), strict=True))
        texts = [(said[r["label"]], r["text"]) for r in rows if r["label"] is not None and "text" in r]
        hits = [re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None for word, text in texts]
        return {"accuracy_gold_in_answer": sum(hits) / len(hits)} if hits else {}


class EmotionQwenAdapters(EmotionQwen):
    """One LoRA per data set (Sec. 6): the adapters of finished runs on their common base, each used for the samples of
    its corpus, which may stand in one batch.

    It has no weights of its own: everything comes from the runs, so it is tested with ``--zero_shot=true``. Its
    config.test.yaml is what ``zoo export --ckpt_path .../config.test.yaml --adapter NAME`` takes.

    Args:
        adapters: corpus -> folder or checkpoint of the run of `EmotionQwen` that tuned a LoRA on it. Everything but the
            LoRA must be equal in all of them.
        without: what becomes of the samples of a corpus without an adapter: the run is refused (``refuse``), or the
            model answers as it is (``base``).
    """

    weights_elsewhere = True

    def __init__(self, adapters: dict[str, str], without: Literal["refuse", "base"] = "refuse", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not adapters:
            raise ValueError("adapters is empty; expected corpus names with the folders of the runs tuned on them")
        if self.lora is not None or self.start_from is not None or self.patterns is not None:
            raise ValueError("the runs say what the weights are; leave lora, train and start_from out")
        self.runs, self.without = dict(adapters), without

    def setup(self, stage: str) -> None:
        if stage == "fit":
            raise ValueError("one LoRA per data set is trained in one run each (EmotionQwen with lora), then used here")
        super().setup(stage)
        absent = sorted(set(self.trainer.datamodule.label_sets) - set(self.runs))
        if absent and self.without == "refuse":
            raise ValueError(
                f"no adapter for {', '.join(absent)}; there are {', '.join(self.runs)}. Give one with "
                "--model.adapters, or answer without one: --model.without base"
            )

    def after_start(self) -> None:
        common: dict[str, Tensor] = {}
        of: str | None = None
        for name, run in self.runs.items():
            path = find_checkpoint(run)
            content = read_checkpoint(path)
            said = content["zoo"]
            expected = f"{EmotionQwen.__module__}.{EmotionQwen.__qualname__}"
            if said["class"] != expected or "llm" not in said["adapters"]:
                raise ValueError(
                    f"{path} holds a {said['class']} with LoRA on {list(said['adapters']) or 'nothing'}; "
                    "expected a run of EmotionQwen with LoRA on llm"
                )
            self._check_bases(said, path)
            state = content["state_dict"]
            lora = {k.removeprefix("llm."): v for k, v in state.items() if ".lora_" in k}
            frozen = {_unwrapped(k): v for k, v in state.items() if ".lora_" not in k}
            if of is not None:
                self._same(frozen, common, path, of)
            common, of = frozen, str(path)
            self.llm.add_adapter(name, LoRA(**said["adapters"]["llm"]), lora)
        own = self.state_dict()
        places = {_unwrapped(k): k for k in own if ".lora_" not in k}
        missing = sorted(n for n, k in places.items() if n not in common and not k.startswith(tuple(self._known())))
        unknown = sorted(set(common) - set(places))
        if missing or unknown:
            raise ValueError(
                f"{of} does not fit this model: {len(missing)} tensors are missing {missing[:3]}, {len(unknown)} are "
                f"unknown {unknown[:3]}; give the model options of the runs"
            )
        wrong = [n for n, v in common.items() if own[places[n]].shape != v.shape]
        if wrong:
            raise ValueError(f"{of} has tensors of another shape: {wrong[:3]}; give the model options of the runs")
        with torch.no_grad():
            for n, v in common.items():
                own[places[n]].copy_(v)
        hub = {_unwrapped(n) for n in self.from_hub} & set(places) - set(common)
        self.from_hub = {places[n] for n in hub}
        self.requires_grad_(False)

    def _known(self) -> list[str]:
        """Beginnings of the names of backbones that have weights of their own."""
        return [f"{name}." for name in self.identities]

    @staticmethod
    def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor], path: Path, other: str) -> None:
        differ = sorted(set(a) ^ set(b)) + [k for k in a.keys() & b.keys() if not torch.equal(a[k], b[k])]
        if differ:
            raise ValueError(
                f"{path} and {other} differ in more than their LoRA: {len(differ)} tensors, {sorted(differ)[:3]}; "
                "adapters are switched on one base, so tune them from the same --model.start_from"
            )

    def answer(self, prefix: Prefix, samples: Rows) -> list[Prediction]:
        by: dict[str | None, list[int]] = {}
        for i, s in enumerate(samples):
            by.setdefault(s.labels.corpus if s.labels.corpus in self.runs else None, []).append(i)
        found: dict[int, Prediction] = {}
        for name, rows in by.items():
            own = prefix if len(by) == 1 else prefix.rows(torch.tensor(rows, device=prefix.mask.device))
            with self.llm.use(name):
                some = super().answer(own, Rows([samples[i] for i in rows]))
            found |= dict(zip(rows, some, strict=True))
        return [found[i] for i in range(len(samples))]


def _unwrapped(name: str) -> str:
    """A tensor's name without what peft adds."""
    return name.replace("llm.model.base_model.model.", "llm.model.").replace(".base_layer.", ".")


__all__ = ["LORA", "EmotionQwen", "EmotionQwenAdapters"]
