"""SpeechCueLLM (Wu et al. 2024): how a voice sounds, told to a language model in words. Also known as VoiceERC.

arXiv 2407.21315. The model reads the dialogue up to the utterance, and a sentence that says of its intensity, its
pitch, how much both vary, and its speaking rate whether they are very low, low, medium, high or very high.

Differs from the paper (P) and its published code (C):
- Wording of prompt and sentence is ours, after their structure: conversation, sentence, question with the labels. The
  five levels, and the percentiles 10, 25, 75 and 90 between them, are P's.
- What is measured is `zoo.media.speech.measure`, in numpy. A voice that is not known, or of which something cannot be
  measured, is said to be unknown, and counted.
- P takes thresholds per gender. Here ``genders`` says whose voice is whose; of speakers who are not in it, and where it
  is not given, the thresholds are those of all. They are fitted on the training split when a run begins, and are part
  of its checkpoint: a test or a prediction uses those of the training.
- The utterance's own voice is told, none of an earlier turn.
- Settings of C are the defaults: LoRA on LLaMA-2-7B, lr 3e-4, 15 epochs of batch 8: ``configs/speech_cue/meld.yaml``.
- Answers are compared by the log-probabilities of the label words (``decode: score``); C generates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from zoo.backbones import LoRA
from zoo.media import MAX_SECONDS, Media
from zoo.models.speech_cue.cues import CueCollator, Ear, VoiceLevels
from zoo.schema import Prediction
from zoo.training.evaluation import ordered_parts
from zoo.training.sft import SupervisedFineTuning

NO_VOICE_EVENT = "samples without a voice that can be measured"


class SpeechCueLLM(SupervisedFineTuning):
    """A language model tuned to name the emotion of an utterance from the dialogue and a sentence on its sound.

    Args:
        llm: folder, published name or hub id of the language model; P: LLaMA-2-7B.
        lora: adapters; null trains all weights.
        genders: speaker -> gender, or any other group whose voices are compared with one another, e.g. ``{F: female,
            M: male}``; null compares all voices.
        template: ``default``, ``short`` (for small models), or a file; its variable ``voice`` is the sentence.
        window: earlier turns shown; P: 12.
        cache: folder of decoded clips (see `zoo.media.Media`); None decodes them once per process.
        timeout: seconds one clip may take to decode.
        max_clip_seconds: a longer clip or film is not read, and counted.
    """

    templates = Path(__file__).parent / "templates"
    template_variables = {"voice": ""}

    def __init__(
        self,
        *,
        lora: LoRA | None = None,
        genders: dict[str, str] | None = None,
        template: str = "default",
        window: int = 12,
        max_length: int = 1024,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup: float = 0.1,
        schedule: Literal["cosine", "linear", "constant"] = "linear",
        cache: Path | None = None,
        timeout: float = 30.0,
        max_clip_seconds: float = MAX_SECONDS,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            lora=lora,
            template=template,
            window=window,
            max_length=max_length,
            lr=lr,
            betas=betas,
            warmup=warmup,
            schedule=schedule,
            **kwargs,
        )
        if "" in (genders or {}).values():
            raise ValueError(f"a gender or group has no name in {genders}; leave such speakers out")
        media = Media(Path(cache) if cache else None, timeout=timeout, max_seconds=max_clip_seconds)
        self.ear = Ear(media, genders or {})

    # ---- parts
    def build(self) -> None:
        """Make the language model, and the place of the thresholds."""
        super().build()
        self.voice_levels = VoiceLevels(sorted(set(self.ear.groups.values())))

    # ---- input
    @property
    def reads(self) -> tuple[str, ...]:
        """What the prompt shows, and the voice."""
        return ordered_parts({*(super().reads or ()), "voice"})

    @property
    def unreadable_events(self) -> tuple[str, ...]:
        """The count of voices that could not be measured."""
        return (NO_VOICE_EVENT,)

    def required_files(self, stage: str) -> dict[str, str]:
        """Return the sound of an utterance."""
        return {"audio": "use a system that reads words alone"}

    def collator(self, training: bool) -> CueCollator:
        """Return what writes samples as prompts, by the thresholds of the training split or of the checkpoint."""
        if not self.voice_levels.fitted:
            self.voice_levels.fit(self.ear.hear_training(self.data.samples("train")))
        return super().collator(training).as_type(CueCollator, ear=self.ear, bins=self.voice_levels.bins())

    # ---- answers
    def predict(self, batch: Any) -> list[Prediction]:
        """Return the answers to a batch, and count the voices that it lacks."""
        self.events[NO_VOICE_EVENT] += batch["no_voice"]
        return super().predict(batch)
