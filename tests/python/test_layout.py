from __future__ import annotations

import ctypes
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flexkv.vllm import layout
from flexkv.vllm.layout import UnknownLayoutError, preferred_layout, read_layout
from kv_layouts import LAYOUTS, make_tensors
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    MLAAttentionSpec,
)

from flexkv import _core

SPEC = FullAttentionSpec(block_size=32, num_kv_heads=2, head_size=8, dtype=torch.float32)
MLA = MLAAttentionSpec(block_size=32, num_kv_heads=1, head_size=72, dtype=torch.bfloat16)
PADDED_MLA = MLAAttentionSpec(
    block_size=32, num_kv_heads=1, head_size=72, dtype=torch.bfloat16, page_size_padded=32 * 72 * 2 + 512
)
VLLM = SimpleNamespace(parallel_config=SimpleNamespace(decode_context_parallel_size=1))
BLOCKS = 10


def read(tensors: dict[str, torch.Tensor], spec: Any = SPEC, blocks: int = BLOCKS, name: str | None = None) -> Any:
    config = KVCacheConfig(
        num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(list(tensors), spec)]
    )
    config.kv_cache_layout = name
    return read_layout(tensors, VLLM, config)


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


def test_the_descriptor_of_a_cpu_engine_stays_what_it_was() -> None:
    """Written down: a change would empty every cache there is."""
    descriptor = json.loads(read(layer(BLOCKS, 2, 32, 16), name="LBHNC").descriptor)
    assert descriptor.pop("spec") == repr(SPEC)
    assert descriptor == {
        "format": 1,
        "layout": "LBHNC",
        "layers": [
            {
                "layer": "layer.0",
                "dtype": "torch.float32",
                "element_bytes": 4,
                "dimensions": 3,
                "block_dimension": 0,
                "order": [[0, 2], [1, 32], [2, 16]],
                "same_memory_as": 0,
            }
        ],
    }


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


def test_a_layout_of_a_new_name_is_refused() -> None:
    with pytest.raises(UnknownLayoutError, match="layout BXHNC"):
        read(layer(BLOCKS, 2, 32, 16), name="BXHNC")


def test_ambiguous_block_dimension_is_refused() -> None:
    spec = FullAttentionSpec(block_size=32, num_kv_heads=1, head_size=8, dtype=torch.float32)
    with pytest.raises(UnknownLayoutError, match="two dimensions"):
        read(layer(2, 2, 32, 8), spec, blocks=2)


def test_other_kinds_of_state_are_refused() -> None:
    spec = MambaSpec(block_size=32, shapes=((4,),), dtypes=(torch.float32,))
    with pytest.raises(UnknownLayoutError, match="MambaSpec"):
        read(layer(BLOCKS, 4), spec)


def test_several_groups_are_refused() -> None:
    groups = [KVCacheGroupSpec(["a"], SPEC), KVCacheGroupSpec(["b"], SPEC)]
    config = KVCacheConfig(num_blocks=BLOCKS, kv_cache_tensors=[], kv_cache_groups=groups)
    with pytest.raises(UnknownLayoutError, match="2 KV cache groups"):
        read_layout({}, VLLM, config)


def test_tensors_elsewhere_are_refused() -> None:
    with pytest.raises(UnknownLayoutError, match="device meta"):
        read({"a": torch.zeros(BLOCKS, 2, 32, 16, device="meta")})


def test_no_tensors_are_refused() -> None:
    with pytest.raises(UnknownLayoutError, match="no KV cache tensor"):
        read({})


# --- what vLLM makes, through the client's own description ------------------------------------------------------------

NAMES = ["layer.0", "layer.1", "layer.2"]
CASES = [(name, SPEC, None, 0) for name in LAYOUTS]
CASES += [(name, MLA, None, 0) for name in LAYOUTS]
CASES += [(name, spec, None, 256) for name in ("BLHNC", "BLNHC", "BHLNC") for spec in (SPEC, MLA)]
CASES += [(name, spec, 16, 0) for name in ("LBHNC", "LBNHC") for spec in (SPEC, MLA)]
CASES += [(name, PADDED_MLA, None, 0) for name in ("LBHNC", "LBNHC", "BLHNC", "BLNHC")]


def gather(view: Any, block: int) -> bytes:
    """A block of a layer view as the agent packs it: its loops in order, each contiguous run as it is."""
    base, block_stride, fragment, loops = view
    addresses = [base + block * block_stride]
    for count, stride in loops:
        addresses = [address + i * stride for address in addresses for i in range(count)]
    return b"".join(ctypes.string_at(address, fragment) for address in addresses)


def scatter(view: Any, block: int, packed: bytes) -> None:
    base, block_stride, fragment, loops = view
    addresses = [base + block * block_stride]
    for count, stride in loops:
        addresses = [address + i * stride for address in addresses for i in range(count)]
    for i, address in enumerate(addresses):
        ctypes.memmove(address, packed[i * fragment : (i + 1) * fragment], fragment)


@pytest.mark.parametrize(("name", "spec", "kernel_tokens", "padding"), CASES)
def test_every_layout_that_vllm_names(name: str, spec: Any, kernel_tokens: int | None, padding: int) -> None:
    source = make_tensors(spec, NAMES, BLOCKS, name, kernel_tokens=kernel_tokens, block_padding=padding)
    target = make_tensors(spec, NAMES, BLOCKS, name, kernel_tokens=kernel_tokens, block_padding=padding)
    random = np.random.default_rng(7)
    for tensor in source.values():
        tensor.copy_(torch.from_numpy(random.integers(1, 100, tuple(tensor.shape))))
    found, other = read(source, spec, name=name), read(target, spec, name=name)
    assert (found.device, found.descriptor) == (-1, other.descriptor)
    views = _core.layer_views(found.tensors, spec.block_size)
    other_views = _core.layer_views(other.tensors, spec.block_size)
    assert len(views) == len(NAMES)
    page = spec.unpadded_page_size_bytes
    moves = {block: (block * 7 + 3) % BLOCKS for block in range(BLOCKS)}  # every block elsewhere
    for view, other_view in zip(views, other_views, strict=True):
        for block, new_block in moves.items():
            packed = gather(view, block)
            assert len(packed) == page
            scatter(other_view, new_block, packed)
    split = spec.block_size // (kernel_tokens or spec.block_size)
    for layer_name in NAMES:
        for block, new_block in moves.items():
            was = source[layer_name][block * split : (block + 1) * split]
            now = target[layer_name][new_block * split : (new_block + 1) * split]
            assert torch.equal(was, now), (layer_name, block)


@pytest.mark.parametrize("name", ["BLHNC", "BLNHC"])
def test_layers_of_a_block_lie_side_by_side(name: str) -> None:
    """What the preferred layouts are for: the layers' runs adjoin, so a block is one copy."""
    found = read(make_tensors(SPEC, NAMES, BLOCKS, name), name=name)
    page = SPEC.page_size_bytes
    views = _core.layer_views(found.tensors, SPEC.block_size)
    first = views[0][0]
    for i, (base, block_stride, fragment, loops) in enumerate(views):
        assert (base - first, block_stride, fragment, loops) == (i * page, len(NAMES) * page, page, [])


# --- which layout is asked for ----------------------------------------------------------------------------------------


def engine(device: str = "cuda", block_size: int | None = 16, hybrid: bool = False, hisparse: Any = None) -> Any:
    return SimpleNamespace(
        device_config=SimpleNamespace(device_type=device),
        model_config=SimpleNamespace(is_hybrid=hybrid),
        cache_config=SimpleNamespace(block_size=block_size),
        attention_config=SimpleNamespace(hisparse_config=hisparse),
    )


@pytest.mark.parametrize(("tokens_first", "expected"), [(True, "BLNHC"), (False, "BLHNC")])
def test_block_first_on_gpus(monkeypatch: pytest.MonkeyPatch, tokens_first: bool, expected: str) -> None:
    monkeypatch.setattr(layout, "_prefers_tokens_first", lambda: tokens_first)
    assert preferred_layout(engine()) == expected
    assert preferred_layout(engine(block_size=64)) == expected


@pytest.mark.parametrize(
    "config",
    [engine("cpu"), engine(block_size=128), engine(block_size=None), engine(hybrid=True), engine(hisparse=object())],
)
def test_no_preference_where_it_could_do_harm(config: Any) -> None:
    assert preferred_layout(config) is None
