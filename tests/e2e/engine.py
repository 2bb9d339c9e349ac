"""A real vLLM on CPU in this process, so that a test sees its connector and may step it by hand."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.engine.llm_engine import LLMEngine


def transfer_config(socket_path: str, **extra: Any) -> dict[str, Any]:
    return {
        "kv_connector": "FlexKVConnector",
        "kv_connector_module_path": "flexkv.vllm.connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "flexkv.socket": socket_path,
            "flexkv.autostart": False,
            **{f"flexkv.{name}": value for name, value in extra.items()},
        },
    }


class RealEngine:
    def __init__(self, model: Path, transfer: dict[str, Any] | None, **arguments: Any) -> None:
        defaults: dict[str, Any] = {
            "skip_tokenizer_init": True,
            "dtype": "float32",
            "max_model_len": 2048,
            "max_num_batched_tokens": 512,
            "max_num_seqs": 16,
            "block_size": 32,
            "enable_prefix_caching": True,
            "enforce_eager": True,
            "disable_log_stats": False,
        }
        arguments = {**defaults, **arguments}
        if transfer is not None:
            arguments["kv_transfer_config"] = transfer
        self.engine = LLMEngine.from_engine_args(EngineArgs(model=str(model), **arguments))
        self.scheduler: Any = self.engine.engine_core.engine_core.scheduler  # type: ignore[attr-defined]
        self.connector: Any = self.scheduler.connector
        self.outputs: dict[str, list[int]] = {}
        self.errored: set[str] = set()  # requests that the engine ended with an error
        self._ids = itertools.count()

    def wait_ready(self) -> None:
        assert self.connector._scheduler.session.wait_ready(10_000), "the daemon does not report the engine as ready"

    def add(
        self,
        prompt: list[int],
        max_tokens: int = 8,
        salt: str | None = None,
        schema: dict[str, Any] | None = None,
        hint: Any = None,
    ) -> str:
        """With a JSON schema the answer ends where the schema does."""
        request_id = f"r{next(self._ids)}"
        self.outputs[request_id] = []
        inputs: dict[str, Any] = {"prompt_token_ids": list(prompt)}
        if salt is not None:
            inputs["cache_salt"] = salt
        parameters = SamplingParams(
            max_tokens=max_tokens,
            temperature=0,
            ignore_eos=schema is None,
            detokenize=False,
            structured_outputs=StructuredOutputsParams(json=schema) if schema is not None else None,
            extra_args={"kv_transfer_params": {"flexkv.hint": hint}} if hint is not None else None,
        )
        self.engine.add_request(request_id, inputs, parameters)  # type: ignore[arg-type]
        return request_id

    def step(self) -> None:
        for output in self.engine.step():
            self.outputs[output.request_id] = list(output.outputs[0].token_ids)
            if output.outputs[0].finish_reason == "error":
                self.errored.add(output.request_id)

    def run(self) -> None:
        while self.engine.has_unfinished_requests():
            self.step()

    def abort(self, request_id: str) -> None:
        self.engine.abort_request([request_id])

    def generate(
        self,
        prompts: list[list[int]],
        max_tokens: int = 8,
        salt: str | None = None,
        schema: dict[str, Any] | None = None,
        hint: Any = None,
    ) -> list[list[int]]:
        """Greedy tokens of all prompts, served at the same time."""
        ids = [self.add(prompt, max_tokens, salt, schema, hint) for prompt in prompts]
        self.run()
        return [self.outputs[request_id] for request_id in ids]

    def drop_local_cache(self) -> None:
        assert self.engine.reset_prefix_cache()

    def stats(self) -> dict[str, Any]:
        """Totals of both sides, the worker's when it is in this process."""
        totals: dict[str, Any] = self.connector._scheduler.totals()
        from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

        if has_kv_transfer_group():  # else the workers are processes of their own
            worker: Any = get_kv_transfer_group()
            totals["worker"] = worker._worker.totals()
        return totals

    def close(self) -> None:
        from vllm.distributed import cleanup_dist_env_and_memory
        from vllm.distributed.kv_transfer import ensure_kv_transfer_shutdown

        self.engine.engine_core.shutdown()
        ensure_kv_transfer_shutdown()
        cleanup_dist_env_and_memory()


def random_prompt(rng: random.Random, length: int, vocab: int = 1024) -> list[int]:
    return [rng.randrange(3, vocab) for _ in range(length)]
