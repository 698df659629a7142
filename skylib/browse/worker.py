"""Work in the background: the kernel stays free, and only the latest of each kind of request is served."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

log = logging.getLogger(__name__)


class Worker:
    """One thread that serves requests in turn.

    A request replaces one with the same key that has not begun yet: of many moves of a slider only the last is drawn.

    Parameters
    ----------
    on_error : callable
        Is given the text of an exception that a request raised.
    """

    def __init__(self, on_error: Callable[[str], None]) -> None:
        self._on_error = on_error
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="skylib-browser")
        self._latest: dict[str, Future[None]] = {}  # by key

    def submit(self, key: str, job: Callable[[], None]) -> None:
        """Ask for something to be done soon."""
        if key in self._latest:
            self._latest[key].cancel()  # without effect on one that has begun
        self._latest[key] = self._thread.submit(self._do, job)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is left to do; False if that took longer than `timeout` seconds."""
        while left := [future for future in tuple(self._latest.values()) if not future.done()]:  # one may ask for more
            if wait(left, timeout).not_done:
                return False
        return True

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:  # of whatever kind: a person who clicks looks at the widget, not at a log
            expected = isinstance(error, (ValueError, KeyError))  # such as a filter with a typing error
            log.log(logging.DEBUG if expected else logging.ERROR, "in the browser", exc_info=error)
            message = error.args[0] if isinstance(error, KeyError) and error.args else error
            self._on_error(str(message) if expected else f"{type(error).__name__}: {message}")
