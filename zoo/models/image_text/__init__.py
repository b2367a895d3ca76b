"""Any image-text model of transformers (Qwen2.5-VL, LLaVA, ...) as it is, or with LoRA (baseline)."""

from zoo.models.image_text.model import ImageText

__all__ = ["ImageText"]
