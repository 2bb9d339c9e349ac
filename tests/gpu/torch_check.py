#!/usr/bin/env python3
"""torch CUDA tensors in every layout that vLLM names, stored and loaded by the CUDA agent.

Usage: torch_check.py build/gpu/bin/flexkv_gpu_c.so

Needs torch and a GPU, and nothing of FlexKV's Python package: the agent is driven through ctypes, in the order in which
vLLM's two model runners call a connector's hooks, with a captured graph replayed as the step's forward pass. The last
line counts.
"""

from __future__ import annotations

import ctypes
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

LAYERS, BLOCKS, HEADS, TOKENS, ELEMENTS = 3, 8, 4, 16, 64
SIZES = {"L": LAYERS, "B": BLOCKS, "H": HEADS, "N": TOKENS, "C": ELEMENTS}
ENGINES = {"by size": 0, "copy engine": 1, "kernel": 2}


class Tensor(ctypes.Structure):
    _fields_ = [
        ("layer", ctypes.c_char_p),
        ("data", ctypes.c_uint64),
        ("element_bytes", ctypes.c_uint32),
        ("dimensions", ctypes.c_uint32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("block_dimension", ctypes.c_uint32),
    ]


@dataclass
class Cache:
    """An engine's KV tensors: one per layer, each with its block dimension; integers, so that all bits count."""

    name: str
    tensors: list[torch.Tensor]
    block_dimension: int

    def block(self, layer: int, block: int) -> torch.Tensor:
        return self.tensors[layer].select(self.block_dimension, block)

    def packed(self, block: int) -> bytes:
        """The block as the arena holds it: layer by layer, dimensions by falling stride."""
        parts = []
        for layer in range(len(self.tensors)):
            part = self.block(layer, block)
            order = sorted(range(part.dim()), key=lambda i: -part.stride(i))
            parts.append(bytes(part.permute(order).contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes()))
        return b"".join(parts)


def integers(*shape: int, dtype: torch.dtype = torch.int16) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device="cuda")


def permuted(order: str) -> Cache:
    """One allocation whose dimensions lie in this order, seen as [B, H, N, C] per layer."""
    memory = integers(*(SIZES[name] for name in order))
    seen = memory.permute(*(order.index(name) for name in "LBHNC"))
    return Cache(order, [seen[layer] for layer in range(LAYERS)], 0)


def apart(name: str, shape: tuple[int, ...], block_dimension: int = 0, dtype: torch.dtype = torch.int16) -> Cache:
    """A tensor of its own per layer."""
    return Cache(name, [integers(*shape, dtype=dtype) for _ in range(LAYERS)], block_dimension)


def caches() -> list[Callable[[], Cache]]:
    made: list[Callable[[], Cache]] = [
        partial(permuted, order) for order in ("LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC")
    ]
    made += [
        partial(apart, "packed K/V, blocks first", (BLOCKS, 2, TOKENS, HEADS, ELEMENTS)),
        partial(apart, "packed K/V, K and V first", (2, BLOCKS, TOKENS, HEADS, ELEMENTS), block_dimension=1),
        partial(apart, "K and V side by side", (BLOCKS, HEADS, TOKENS, 2 * ELEMENTS)),
        partial(apart, "MLA pages", (BLOCKS, TOKENS, 576)),
        partial(apart, "MLA pages of 656 bytes a token", (BLOCKS, TOKENS, 656), dtype=torch.int8),
    ]
    return made


def randomise(cache: Cache) -> None:
    for tensor in cache.tensors:
        info = torch.iinfo(tensor.dtype)
        tensor.copy_(torch.randint(info.min, info.max, tensor.shape, dtype=tensor.dtype, device="cuda"))


class Agent:
    def __init__(self, library: ctypes.CDLL, cache: Cache, engine: int) -> None:
        self.library = library
        views = (Tensor * len(cache.tensors))()
        self.keep: list[Any] = [views]
        for i, tensor in enumerate(cache.tensors):
            shape = (ctypes.c_int64 * tensor.dim())(*tensor.shape)
            strides = (ctypes.c_int64 * tensor.dim())(*tensor.stride())
            self.keep += [shape, strides]
            views[i] = Tensor(
                b"layer %d" % i, tensor.data_ptr(), tensor.element_size(), tensor.dim(), shape, strides,
                cache.block_dimension,
            )  # fmt: skip
        error = ctypes.create_string_buffer(256)
        self.agent = library.flexkv_gpu_open(0, views, len(views), TOKENS, BLOCKS, engine, error, len(error))
        if not self.agent:
            raise RuntimeError(error.value.decode())
        self.shard_bytes = library.flexkv_gpu_shard_bytes(self.agent)

    def close(self) -> None:
        self.library.flexkv_gpu_close(self.agent)

    def slot(self, slot: int) -> bytes:
        return ctypes.string_at(self.library.flexkv_gpu_slot(self.agent, slot), self.shard_bytes)

    def bind(self) -> None:
        self.library.flexkv_gpu_bind(self.agent, torch.cuda.current_stream().cuda_stream)

    def fence(self, blocks: list[int]) -> None:
        self.library.flexkv_gpu_fence(self.agent, (ctypes.c_uint32 * len(blocks))(*blocks), len(blocks))

    def submit(self, key: int, load: bool, blocks: list[int], slots: list[int], layerwise: bool = False) -> None:
        numbers = ctypes.c_uint32 * len(blocks)
        if self.library.flexkv_gpu_submit(
            self.agent, key, load, layerwise, numbers(*blocks), numbers(*slots), len(blocks)
        ):
            raise RuntimeError("the op was refused")

    def expect(self, key: int, load: bool) -> None:
        status = self.library.flexkv_gpu_result(self.agent, key, load, 10000)
        if status != 0:
            raise AssertionError(f"{'load' if load else 'store'} {key} ended with {status}")


class Forward:
    """The model's part of a step, as a captured graph: computes for a while, then writes one block of every layer."""

    def __init__(self, cache: Cache, block: int) -> None:
        self.sources = [torch.zeros_like(cache.block(layer, block)) for layer in range(len(cache.tensors))]
        self.work = torch.rand(1024, 1024, device="cuda")
        torch.tanh(self.work @ self.work)  # the library behind it is made ready before the capture
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream()):
            for _ in range(20):
                self.work = torch.tanh(self.work @ self.work)
            for layer, source in enumerate(self.sources):
                cache.block(layer, block).copy_(source)

    def replay(self) -> None:
        for source in self.sources:
            info = torch.iinfo(source.dtype)
            source.copy_(torch.randint(info.min, info.max, source.shape, dtype=source.dtype, device="cuda"))
        self.graph.replay()


def step(agent: Agent, runner: int, forward: Forward, submit: Callable[[], None], fenced: list[int]) -> None:
    """The hooks in the order of vLLM's model runners: 1 binds first and finishes late, 2 tells of preemptions first."""
    if runner == 2:
        agent.bind()
        agent.fence(fenced)
        submit()
        forward.replay()
        agent.library.flexkv_gpu_step_done(agent.agent)
    else:
        agent.bind()
        submit()
        forward.replay()
        forward.graph.replay()  # a draft model's pass, before the step is finished
        agent.library.flexkv_gpu_step_done(agent.agent)


def expect_equal(what: str, found: bytes, wanted: bytes) -> None:
    if found != wanted:
        first = next(i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
        raise AssertionError(f"{what}: byte {first} of {len(wanted)} is wrong")


def check_steps(library: ctypes.CDLL, engine: int, runner: int, cache: Cache) -> None:
    agent = Agent(library, cache, engine)
    try:
        forward = Forward(cache, block=2)
        stored, into = [0, 2, 3, 5], [7, 6, 1, 4]
        for turn in range(3):
            key = 1 + 10 * turn
            randomise(cache)
            step(agent, runner, forward, partial(agent.submit, key, False, stored, stored), [])
            agent.expect(key, load=False)
            torch.cuda.synchronize()
            wanted = {block: cache.packed(block) for block in stored}
            for block in stored:
                expect_equal(f"stored block {block}", agent.slot(block), wanted[block])

            randomise(cache)
            before = {block: cache.packed(block) for block in (0, 3, 5)}
            step(agent, runner, forward, partial(agent.submit, key + 1, True, into, stored), [])
            agent.expect(key + 1, load=True)
            torch.cuda.synchronize()
            for block, slot in zip(into, stored, strict=True):
                expect_equal(f"loaded block {block}", cache.packed(block), wanted[slot])
            for block, content in before.items():
                expect_equal(f"block {block} beside the loaded ones", cache.packed(block), content)
    finally:
        agent.close()


def check_layerwise(library: ctypes.CDLL, engine: int, cache: Cache) -> None:
    agent = Agent(library, cache, engine)
    try:
        blocks, into = list(range(4)), [5, 4, 7, 6]
        randomise(cache)
        agent.bind()
        agent.submit(1, False, blocks, blocks)
        library.flexkv_gpu_step_done(agent.agent)
        agent.expect(1, load=False)
        wanted = [[cache.block(layer, block).clone() for block in blocks] for layer in range(len(cache.tensors))]
        for turn in range(3):
            randomise(cache)
            agent.bind()
            agent.submit(10 + turn, True, into, blocks, layerwise=True)
            library.flexkv_gpu_start_layer_loads(agent.agent, 1000)
            seen = []
            for layer in range(len(cache.tensors)):
                library.flexkv_gpu_wait_for_layer(agent.agent, library.flexkv_gpu_view(agent.agent, layer))
                seen.append([cache.block(layer, block).clone() for block in into])
            library.flexkv_gpu_step_done(agent.agent)
            torch.cuda.current_stream().synchronize()
            agent.expect(10 + turn, load=True)
            for layer, (found, right) in enumerate(zip(seen, wanted, strict=True)):
                for i in range(len(blocks)):
                    if not torch.equal(found[i], right[i]):
                        raise AssertionError(f"layer {layer} of block {into[i]} was not there when asked for")
    finally:
        agent.close()


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, u32, u64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
    numbers = ctypes.POINTER(u32)
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "open": (pointer, [ctypes.c_int, ctypes.POINTER(Tensor), u32, u32, u32, u32, ctypes.c_char_p, ctypes.c_size_t]),
        "close": (None, [pointer]),
        "shard_bytes": (u64, [pointer]),
        "slot": (pointer, [pointer, u32]),
        "view": (u32, [pointer, u32]),
        "bind": (None, [pointer, u64]),
        "fence": (None, [pointer, numbers, u32]),
        "submit": (ctypes.c_int, [pointer, u64, ctypes.c_int, ctypes.c_int, numbers, numbers, u32]),
        "start_layer_loads": (None, [pointer, u32]),
        "wait_for_layer": (None, [pointer, u32]),
        "step_done": (None, [pointer]),
        "result": (ctypes.c_int, [pointer, u64, ctypes.c_int, u32]),
    }
    for name, (returns, takes) in signatures.items():
        function = getattr(library, f"flexkv_gpu_{name}")
        function.restype, function.argtypes = returns, takes
    return library


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    if not torch.cuda.is_available():
        print("skipped: torch sees no GPU\n0 passed, 0 failed, 1 skipped")
        return 0
    library = declare(ctypes.CDLL(sys.argv[1]))
    seed = int.from_bytes(torch.randint(0, 255, (4,), dtype=torch.uint8).numpy().tobytes(), "little")
    torch.manual_seed(seed)
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, seed {seed}")
    passed = failed = 0
    with torch.cuda.stream(torch.cuda.Stream()):
        for make in caches():
            for name, engine in ENGINES.items():
                checks: dict[str, Callable[[Cache], None]] = {
                    "model runner 1": partial(check_steps, library, engine, 1),
                    "model runner 2": partial(check_steps, library, engine, 2),
                    "layer by layer": partial(check_layerwise, library, engine),
                }
                for what, check in checks.items():
                    cache = make()
                    try:
                        check(cache)
                        passed += 1
                    except Exception:
                        failed += 1
                        print(f"FAILED: {cache.name}, {name}, {what}\n{traceback.format_exc(limit=3)}")
    print(f"{passed} passed, {failed} failed, 0 skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
