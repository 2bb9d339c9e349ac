"""Sleep mode: vLLM takes the memory of the KV tensors away, and no hook tells its connectors.

A copy under way then would read or write memory that is gone, which on a GPU ends the engine. So the allocator that
takes it away is watched: before, the session over the tensors ends (copies under way are waited for); when the memory
is back, a new one begins, under a new epoch. Steps in between do not happen: the engine sleeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from flexkv.vllm import compat

KV_TAG = "kv_cache"


class SleepWatch:
    """Calls `leave` before the allocator takes KV memory away and `come_back` when it is there again.

    Whatever these raise is given to `failed`; the allocator's own work is done in any case.
    """

    def __init__(
        self, leave: Callable[[], None], come_back: Callable[[], None], failed: Callable[[str, Exception], None]
    ) -> None:
        self._leave = leave
        self._come_back = come_back
        self._failed = failed
        self._away = False

    def attach(self, allocator: Any) -> None:
        """The allocator is one object for the life of the process. Raises AttributeError when it is another kind."""
        sleep, discard, wake_up = allocator.sleep, allocator.discard, allocator.wake_up

        @wraps(sleep)
        def watched_sleep(*args: Any, **kwargs: Any) -> Any:
            self._going()
            return sleep(*args, **kwargs)

        @wraps(discard)
        def watched_discard(tags: Any, *args: Any, **kwargs: Any) -> Any:
            if KV_TAG in ((tags,) if isinstance(tags, str) else tags):
                self._going()
            return discard(tags, *args, **kwargs)

        @wraps(wake_up)
        def watched_wake_up(tags: Iterable[str] | None = None, *args: Any, **kwargs: Any) -> Any:
            result = wake_up(tags, *args, **kwargs)
            if tags is None or KV_TAG in tags:
                self._back()
            return result

        allocator.sleep, allocator.discard, allocator.wake_up = watched_sleep, watched_discard, watched_wake_up

    def _going(self) -> None:
        if self._away:
            return
        self._away = True
        try:
            self._leave()
        except Exception as error:
            self._failed("sleep", error)

    def _back(self) -> None:
        if not self._away:
            return
        self._away = False
        try:
            self._come_back()
        except Exception as error:
            self._failed("wake_up", error)


def watch_sleep(
    vllm_config: Any,
    leave: Callable[[], None],
    come_back: Callable[[], None],
    failed: Callable[[str, Exception], None],
) -> None:
    """Once per worker. Raises AttributeError or ImportError where this vLLM sleeps in another way."""
    if getattr(vllm_config.model_config, "enable_sleep_mode", False):
        SleepWatch(leave, come_back, failed).attach(compat.sleep_allocator())
