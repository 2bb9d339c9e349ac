"""From the engine's KV tensors to what the client library registers. Nothing is guessed: the unknown is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# layer, address of the first element, bytes per element, shape, strides in elements, block dimension
TensorFacts = tuple[str, int, int, list[int], list[int], int]

KNOWN_SPECS = ("FullAttentionSpec", "SlidingWindowSpec", "MLAAttentionSpec")
# Permutations of [layers, blocks, heads, tokens, content]. A layer's view is told by its strides whatever the name is;
# a new name may stand for more than a permutation, and is refused.
KNOWN_LAYOUTS = ("LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC", "reduced", "None")
MAX_BLOCK_FIRST_TOKENS = 64


class UnknownLayoutError(Exception):
    """One sentence that says what is not understood."""


@dataclass(frozen=True)
class Layout:
    tensors: list[TensorFacts]
    descriptor: str
    device: int = -1  # CUDA device index; -1: host memory


def check_groups(vllm_config: Any, kv_cache_config: Any) -> Any:
    """The spec of the only KV cache group. Raises UnknownLayoutError."""
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        raise UnknownLayoutError(f"the model has {len(groups)} KV cache groups, and one is supported")
    spec = groups[0].kv_cache_spec
    kind = type(spec).__name__
    if kind not in KNOWN_SPECS:
        raise UnknownLayoutError(f"KV caches of kind {kind} are not supported")
    if getattr(spec, "non_causal", False):
        raise UnknownLayoutError("attention is not causal, so a prefix does not decide its KV")
    parallel = vllm_config.parallel_config
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            raise UnknownLayoutError("context parallelism is not supported")
    hash_tokens = getattr(kv_cache_config, "hash_block_size", None)
    if hash_tokens is not None and hash_tokens != spec.block_size:
        raise UnknownLayoutError(f"a block hash stands for {hash_tokens} tokens and a block for {spec.block_size}")
    if getattr(spec, "tokens_per_state", 1) != 1:
        raise UnknownLayoutError("KV states that stand for several tokens are not supported")
    name = str(getattr(kv_cache_config, "kv_cache_layout", None))
    if name not in KNOWN_LAYOUTS:
        raise UnknownLayoutError(f"KV caches of layout {name} are not supported")
    return spec


def preferred_layout(vllm_config: Any) -> str | None:
    """All layers of a block side by side: one long copy a block instead of one for each layer and more.

    None where that could keep the engine from starting: vLLM cannot cut such blocks into the smaller ones of an
    attention kernel, and all kernels for NVIDIA GPUs take blocks of up to 64 tokens as they are. vLLM itself drops a
    preference that its attention backend does not know.
    """
    if vllm_config.device_config.device_type != "cuda":
        return None
    model, block_tokens = vllm_config.model_config, vllm_config.cache_config.block_size
    if getattr(model, "is_hybrid", False) or not block_tokens or block_tokens > MAX_BLOCK_FIRST_TOKENS:
        return None
    if getattr(getattr(vllm_config, "attention_config", None), "hisparse_config", None) is not None:
        return None
    return "BLNHC" if _prefers_tokens_first() else "BLHNC"


def _prefers_tokens_first() -> bool:
    """As vLLM's own default is; from Blackwell on its kernels want heads first."""
    from vllm.platforms import current_platform

    capability = current_platform.get_device_capability()
    return capability is not None and int(capability.major) < 10


def block_tables_change(spec: Any) -> bool:
    """Whether the engine gives blocks of running requests back: those that fell out of a sliding window."""
    return type(spec).__name__ == "SlidingWindowSpec"


def _block_dimension(name: str, shape: list[int], num_blocks: int, split: int) -> tuple[int, bool]:
    """Which dimension counts blocks, and whether it counts kernel blocks, `split` to a block."""
    candidates: list[tuple[int, bool]] = []
    if shape and shape[0] == num_blocks:
        candidates.append((0, False))
    elif split > 1 and shape and shape[0] == num_blocks * split:
        candidates.append((0, True))
    if len(shape) > 1 and shape[0] == 2 and shape[1] == num_blocks:
        candidates.append((1, False))
    if not candidates:
        raise UnknownLayoutError(f"layer {name} has shape {shape}, in which no dimension counts {num_blocks} blocks")
    if len(candidates) > 1:
        raise UnknownLayoutError(f"layer {name} has shape {shape}, in which two dimensions may count blocks")
    return candidates[0]


def _describe_tensor(name: str, tensor: torch.Tensor, spec: Any, num_blocks: int) -> TensorFacts:
    shape, strides = list(tensor.shape), list(tensor.stride())
    element = tensor.element_size()
    # Attention kernels with smaller blocks of their own see each block as `split` of them, one after the other.
    split = shape[0] // num_blocks if shape and shape[0] > num_blocks and shape[0] % num_blocks == 0 else 1
    dimension, is_split = _block_dimension(name, shape, num_blocks, split)
    page_bytes = getattr(spec, "unpadded_page_size_bytes", spec.page_size_bytes)
    if prod(shape) * element != num_blocks * page_bytes:
        raise UnknownLayoutError(
            f"layer {name} holds {prod(shape) * element // num_blocks} bytes a block, "
            f"and its specification says {page_bytes}"
        )
    if is_split:
        shape = [num_blocks, split, *shape[1:]]
        strides = [strides[0] * split, strides[0], *strides[1:]]
    return name, tensor.data_ptr(), element, shape, strides, dimension


def _packed_order(facts: TensorFacts, dtype: str) -> dict[str, Any]:
    """How one block of the layer lies in the arena: dimensions by falling stride.

    The number of blocks and where the tensor lies in memory do not matter there: engines with caches of different
    size share.
    """
    _, _, element, shape, strides, dimension = facts
    inner = [(i - (i > dimension), shape[i], strides[i]) for i in range(len(shape)) if i != dimension and shape[i] != 1]
    inner.sort(key=lambda item: -item[2])
    return {
        "layer": facts[0],
        "dtype": dtype,
        "element_bytes": element,
        "dimensions": len(shape) - 1,
        "block_dimension": dimension,
        "order": [[i, size] for i, size, _ in inner],
    }


def _device_index(device: Any) -> int:
    if device.type == "cpu":
        return -1
    if device.type != "cuda":
        raise UnknownLayoutError(f"KV caches on device {device.type} are not supported")
    if device.index is not None:
        return int(device.index)
    import torch

    return int(torch.cuda.current_device())


def read_layout(kv_caches: dict[str, torch.Tensor], vllm_config: Any, kv_cache_config: Any) -> Layout:
    """Raises UnknownLayoutError."""
    spec = check_groups(vllm_config, kv_cache_config)
    names = kv_cache_config.kv_cache_groups[0].layer_names
    missing = [name for name in names if name not in kv_caches]
    if missing:
        raise UnknownLayoutError(f"layer {missing[0]} has no KV cache tensor")
    if not names:
        raise UnknownLayoutError("there are no KV cache tensors")
    device = kv_caches[names[0]].device
    index = _device_index(device)
    tensors: list[TensorFacts] = []
    layers: list[dict[str, Any]] = []
    first_at: dict[int, int] = {}
    for name in names:
        tensor = kv_caches[name]
        if tensor.device != device:
            raise UnknownLayoutError(f"layer {name} lies on device {tensor.device}, and the others on {device}")
        facts = _describe_tensor(name, tensor, spec, kv_cache_config.num_blocks)
        layer = _packed_order(facts, str(tensor.dtype))
        layer["same_memory_as"] = first_at.setdefault(facts[1], len(tensors))
        tensors.append(facts)
        layers.append(layer)
    descriptor = {
        "format": 1,
        "spec": repr(spec),
        "layout": str(getattr(kv_cache_config, "kv_cache_layout", None)),
        "layers": layers,
    }
    return Layout(tensors, json.dumps(descriptor, sort_keys=True, separators=(",", ":")), index)
