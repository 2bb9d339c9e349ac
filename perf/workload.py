"""Workloads for a real engine, and the loop that serves them."""

from __future__ import annotations

import json
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Turn = tuple[list[int], int]  # tokens that a user adds, tokens to generate


@dataclass
class Chat:
    """Turns that follow each other: each prompt is all before it plus the user's new tokens."""

    turns: list[Turn]
    context: list[int] = field(default_factory=list)
    next_turn: int = 0


@dataclass
class Served:
    ttft_ms: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0  # found in any cache, as the engine counts
    seconds: float = 0.0
    outputs: list[list[int]] = field(default_factory=list)  # by chat and turn

    def as_json(self) -> dict[str, Any]:
        return self.__dict__


def tokens(rng: random.Random, count: int, vocab: int) -> list[int]:
    return [rng.randrange(3, vocab) for _ in range(count)]


def chats(
    vocab: int,
    count: int = 8,
    turns: int = 4,
    systems: int = 4,
    system_tokens: int = 512,
    turn_tokens: int = 384,
    output_tokens: int = 32,
    seed: int = 1,
) -> list[Chat]:
    """Chats with shared system prompts."""
    rng = random.Random(seed)
    prompts = [tokens(rng, system_tokens, vocab) for _ in range(systems)]
    made = []
    for i in range(count):
        first = prompts[i % systems] + tokens(rng, turn_tokens, vocab)
        later = [tokens(rng, turn_tokens, vocab) for _ in range(turns - 1)]
        made.append(Chat([(user, output_tokens) for user in [first, *later]]))
    return made


def single(prompts: list[list[int]], output_tokens: int) -> list[Chat]:
    return [Chat([(prompt, output_tokens)]) for prompt in prompts]


def _first_sessions(entries: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """All requests of the sessions that begin first, in order, as many sessions as it takes for `count` requests.

    A trace's first requests alone hold almost no reuse; whole sessions hold as much as the whole trace.
    """
    sizes = Counter(entry["hash_ids"][0] for entry in entries)
    chosen: set[int] = set()
    requests = 0
    for session, size in sizes.items():  # in the order of their beginning
        if requests >= count:
            break
        chosen.add(session)
        requests += size
    return [entry for entry in entries if entry["hash_ids"][0] in chosen]


def trace(path: Path, vocab: int, limit: int, block_tokens: int, max_tokens: int, output_tokens: int) -> list[Chat]:
    """Sessions of a trace in Mooncake's format (JSON lines with hash_ids, each standing for 512 tokens), scaled down.

    Each id becomes `block_tokens` tokens that depend on the id alone.
    """
    with path.open() as file:
        entries = [entry for line in file if line.strip() and (entry := json.loads(line))["hash_ids"]]
    made = []
    for entry in _first_sessions(entries, limit):
        prompt: list[int] = []
        for block in entry["hash_ids"]:
            prompt += tokens(random.Random(block), block_tokens, vocab)
        scaled = max(1, entry["input_length"] * block_tokens // 512)
        outputs = max(1, min(output_tokens, entry["output_length"] * block_tokens // 512))
        made.append(Chat([(prompt[: min(scaled, max_tokens - outputs)], outputs)]))
    return made


def serve(
    engine: Any, work: list[Chat], concurrency: int, progress: Callable[[int, int], None] | None = None
) -> Served:
    """Serves all turns of all chats, chat after chat in turn, at most `concurrency` at a time."""
    served = Served()
    by_turn: dict[tuple[int, int], list[int]] = {}
    total = sum(len(chat.turns) for chat in work)
    waiting = deque(range(len(work)))
    running: dict[str, tuple[int, float]] = {}
    begin = time.monotonic()
    while waiting or running:
        while waiting and len(running) < concurrency:
            index = waiting.popleft()
            chat = work[index]
            user, outputs = chat.turns[chat.next_turn]
            chat.context += user
            served.prompt_tokens += len(chat.context)
            running[engine.add(chat.context, outputs)] = (index, time.monotonic())
        for output in engine.engine.step():
            index, started = running[output.request_id]
            if started:
                served.ttft_ms.append((time.monotonic() - started) * 1e3)
                served.cached_tokens += output.num_cached_tokens or 0
                running[output.request_id] = (index, 0.0)
            if not output.finished:
                continue
            del running[output.request_id]
            chat = work[index]
            answer = list(output.outputs[0].token_ids)
            by_turn[index, chat.next_turn] = answer
            chat.context += answer
            chat.next_turn += 1
            if chat.next_turn < len(chat.turns):
                waiting.append(index)
            if progress is not None:
                progress(len(by_turn), total)
    served.seconds = time.monotonic() - begin
    served.outputs = [by_turn[key] for key in sorted(by_turn)]
    return served
