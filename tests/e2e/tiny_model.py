"""Small models with seeded random weights: nothing is downloaded, and every run has the same tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


@dataclass(frozen=True)
class Shape:
    layers: int = 8
    hidden: int = 512
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 64
    intermediate: int = 1024
    vocab: int = 4096
    max_position: int = 16384
    sliding_window: int = 0  # 0: full attention (Llama); else Mistral


DEMO = Shape()
"""16 KiB of KV a token in float32: computing 4,000 tokens takes about 1.5 s on two cores."""
SMALL = Shape(layers=2, hidden=128, heads=4, kv_heads=2, head_dim=32, intermediate=256, vocab=1024)
"""For tests that care about tokens, not about time."""
SLIDING = Shape(
    layers=2, hidden=128, heads=4, kv_heads=2, head_dim=32, intermediate=256, vocab=1024, sliding_window=256
)


def _config(shape: Shape) -> dict[str, object]:
    config: dict[str, object] = {
        "architectures": ["MistralForCausalLM" if shape.sliding_window else "LlamaForCausalLM"],
        "model_type": "mistral" if shape.sliding_window else "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_position,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    if shape.sliding_window:
        config["sliding_window"] = shape.sliding_window
    return config


def byte_tokenizer() -> Tokenizer:
    """One token for each byte, behind three special ones."""
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {name: i for i, name in enumerate(["<unk>", "<s>", "</s>", *names])}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def add_tokenizer(model: Path) -> None:
    """For what needs text, such as structured outputs."""
    byte_tokenizer().save(str(model / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (model / "tokenizer_config.json").write_text(json.dumps(config))


def make_model(directory: Path, shape: Shape = SMALL, seed: int = 1) -> Path:
    """Writes the model unless it is there already. Files of one shape and seed have the same bytes everywhere."""
    done = directory / ".complete"
    stamp = f"{shape} {seed}"
    if done.exists() and done.read_text() == stamp:
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)

    def weight(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) / columns**0.5

    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    tensors = {
        "model.embed_tokens.weight": torch.randn(shape.vocab, shape.hidden, generator=generator),
        "model.norm.weight": torch.ones(shape.hidden),
        "lm_head.weight": weight(shape.vocab, shape.hidden),
    }
    for i in range(shape.layers):
        layer = f"model.layers.{i}."
        tensors[layer + "self_attn.q_proj.weight"] = weight(queries, shape.hidden)
        tensors[layer + "self_attn.k_proj.weight"] = weight(keys, shape.hidden)
        tensors[layer + "self_attn.v_proj.weight"] = weight(keys, shape.hidden)
        tensors[layer + "self_attn.o_proj.weight"] = weight(shape.hidden, queries)
        tensors[layer + "mlp.gate_proj.weight"] = weight(shape.intermediate, shape.hidden)
        tensors[layer + "mlp.up_proj.weight"] = weight(shape.intermediate, shape.hidden)
        tensors[layer + "mlp.down_proj.weight"] = weight(shape.hidden, shape.intermediate)
        tensors[layer + "input_layernorm.weight"] = torch.ones(shape.hidden)
        tensors[layer + "post_attention_layernorm.weight"] = torch.ones(shape.hidden)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(_config(shape), indent=1))
    done.write_text(stamp)
    return directory
