"""FlexKV: keeps an inference engine's KV cache blocks outside the engine and loads a prefix that comes back."""

__version__ = "0.1.0"
