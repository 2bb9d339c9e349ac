"""KV tensors on CPU as vLLM 0.32 makes them: every layout it names, by its own code."""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.kv_cache_interface import KVCacheTensor, compute_layout_strides, create_kv_cache_views
from vllm.v1.kv_cache_layout import KVCacheLayout

LAYOUTS = [layout.name for layout in KVCacheLayout]


def make_tensors(
    spec: Any,
    names: list[str],
    num_blocks: int,
    layout_name: str,
    *,
    kernel_tokens: int | None = None,
    block_padding: int = 0,
) -> dict[str, torch.Tensor]:
    """`block_padding`: bytes behind all layers of a block, as where caches of other groups are larger."""
    layout = KVCacheLayout[layout_name]
    page = spec.page_size_bytes
    block_stride = page * len(names) + block_padding if layout.is_block_outermost else None
    layer_stride, block_stride, *_ = compute_layout_strides(
        spec, num_blocks, len(names), layout, fixed_strides=(None, block_stride, None, None, None)
    )
    size = max(page * len(names) * num_blocks, block_stride * num_blocks)
    placed = KVCacheTensor(size=size, layers=names, layer_stride=layer_stride, block_stride=block_stride)
    raw = torch.zeros(size, dtype=torch.int8)
    views = create_kv_cache_views(raw, spec, num_blocks, layout, placed, kernel_block_size=kernel_tokens)
    return dict(zip(names, views, strict=True))
