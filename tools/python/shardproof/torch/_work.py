"""What torch.distributed's functions return: calls under way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import torch
import torch.distributed as dist

from .._group import Handle

After = Callable[[], None]


class Work(dist.Work):
    """Calls under way. What is never waited for is waited for when the rank's program ends."""

    def __init__(self, pending: dict[int, Work], result: Any) -> None:
        super().__init__()
        self._calls: list[tuple[Handle, Optional[After]]] = []
        self._result = result
        self._pending = pending
        self._failure: Optional[BaseException] = None
        pending[id(self)] = self

    def add(self, handle: Handle, after: Optional[After] = None) -> None:
        self._calls.append((handle, after))

    def wait(self, timeout: Any = None) -> bool:
        try:
            while self._calls:
                handle, after = self._calls.pop(0)
                handle.wait()
                if after is not None:
                    after()
        except BaseException as error:
            self._calls.clear()
            self._failure = error
            raise
        finally:
            if not self._calls:
                self._pending.pop(id(self), None)
        return True

    def synchronize(self) -> None:
        self.wait()

    def block_current_stream(self) -> None:
        self.wait()

    def is_completed(self) -> bool:
        """Asking completes it: whether others have come yet would depend on the schedule."""
        return self.wait()

    def is_success(self) -> bool:
        return self._failure is None and not self._calls

    def exception(self) -> Optional[BaseException]:
        return self._failure

    def result(self) -> Any:
        self.wait()
        return self._result

    def get_future(self) -> torch.futures.Future:
        """Complete already: a rank that waits in a future of torch's could not be seen waiting."""
        self.wait()
        future: torch.futures.Future = torch.futures.Future()
        future.set_result(self._result)
        return future
