from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flexkv.vllm.layout import UnknownLayoutError, read_layout
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, MambaSpec

SPEC = FullAttentionSpec(block_size=32, num_kv_heads=2, head_size=8, dtype=torch.float32)
VLLM = SimpleNamespace(parallel_config=SimpleNamespace(decode_context_parallel_size=1))
BLOCKS = 10


def read(tensors: dict[str, torch.Tensor], spec: Any = SPEC, blocks: int = BLOCKS) -> Any:
    config = KVCacheConfig(
        num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(list(tensors), spec)]
    )
    return read_layout(tensors, VLLM, config, "cpu")


def layer(*shape: int) -> dict[str, torch.Tensor]:
    return {"layer.0": torch.zeros(*shape)}


def test_packed_heads_outermost() -> None:
    name, _, element, shape, strides, dimension = read(layer(BLOCKS, 2, 32, 16)).tensors[0]
    assert (name, element, shape, dimension) == ("layer.0", 4, [BLOCKS, 2, 32, 16], 0)
    assert strides == [1024, 512, 16, 1]


def test_keys_and_values_apart() -> None:
    assert read(layer(2, BLOCKS, 32, 2, 8)).tensors[0][5] == 1


def test_kernel_blocks_smaller_than_blocks() -> None:
    _, _, _, shape, strides, dimension = read(layer(BLOCKS * 2, 2, 16, 16)).tensors[0]
    assert (shape, dimension) == ([BLOCKS, 2, 2, 16, 16], 0)
    assert strides == [1024, 512, 256, 16, 1]


def test_size_of_the_cache_is_not_part_of_the_descriptor() -> None:
    assert read(layer(10, 2, 32, 16)).descriptor == read(layer(20, 2, 32, 16), blocks=20).descriptor


def test_order_in_memory_is() -> None:
    token_major = {"layer.0": torch.zeros(BLOCKS, 32, 2, 16).permute(0, 2, 1, 3)}
    assert read(token_major).descriptor != read(layer(BLOCKS, 2, 32, 16)).descriptor


def test_shared_memory_is_told() -> None:
    tensor = torch.zeros(BLOCKS, 2, 32, 16)
    layers = json.loads(read({"a": tensor, "b": tensor}).descriptor)["layers"]
    assert [entry["same_memory_as"] for entry in layers] == [0, 0]


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (layer(BLOCKS + 1, 2, 32, 16), "no dimension counts 10 blocks"),
        (layer(3, BLOCKS, 32, 16), "no dimension counts 10 blocks"),
        (layer(BLOCKS, 2, 32, 8), "bytes a block"),
        (layer(BLOCKS, 2, 32, 32), "bytes a block"),
    ],
)
def test_unknown_layouts_are_refused(tensors: dict[str, torch.Tensor], sentence: str) -> None:
    with pytest.raises(UnknownLayoutError, match=sentence):
        read(tensors)


def test_ambiguous_block_dimension_is_refused() -> None:
    spec = FullAttentionSpec(block_size=32, num_kv_heads=1, head_size=8, dtype=torch.float32)
    with pytest.raises(UnknownLayoutError, match="two dimensions"):
        read(layer(2, 2, 32, 8), spec, blocks=2)


def test_other_kinds_of_state_are_refused() -> None:
    spec = MambaSpec(block_size=32, shapes=((4,),), dtypes=(torch.float32,))
    with pytest.raises(UnknownLayoutError, match="MambaSpec"):
        read(layer(BLOCKS, 4), spec)
