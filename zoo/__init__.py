"""zoo: multimodal emotion recognition with large language models, one Lightning code path for every paper."""

__version__ = "0.1.0"
