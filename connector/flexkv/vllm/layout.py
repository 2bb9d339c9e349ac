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


class UnknownLayoutError(Exception):
    """One sentence that says what is not understood."""


@dataclass(frozen=True)
class Layout:
    tensors: list[TensorFacts]
    descriptor: str


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
    return spec


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


def read_layout(kv_caches: dict[str, torch.Tensor], vllm_config: Any, kv_cache_config: Any, device: str) -> Layout:
    """Raises UnknownLayoutError."""
    spec = check_groups(vllm_config, kv_cache_config)
    if device != "cpu":
        raise UnknownLayoutError(f"KV caches on device {device} are not supported by this build")
    names = kv_cache_config.kv_cache_groups[0].layer_names
    missing = [name for name in names if name not in kv_caches]
    if missing:
        raise UnknownLayoutError(f"layer {missing[0]} has no KV cache tensor")
    tensors: list[TensorFacts] = []
    layers: list[dict[str, Any]] = []
    first_at: dict[int, int] = {}
    for name in names:
        tensor = kv_caches[name]
        if tensor.device.type != device:
            raise UnknownLayoutError(f"layer {name} lies on device {tensor.device.type}")
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
    return Layout(tensors, json.dumps(descriptor, sort_keys=True, separators=(",", ":")))
