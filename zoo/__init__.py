"""zoo: multimodal emotion recognition with large language models, one Lightning code path for every paper."""

import logging

# where bitsandbytes is installed peft imports it, and it would warn at every start that it could download no kernel
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"
