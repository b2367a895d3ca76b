from zoo.models.causal_lm.model import CausalLM

__all__ = ["CausalLM"]
