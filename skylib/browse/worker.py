"""Work in the background: the kernel stays free, and only the latest of each kind of request is served."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

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
        self._waiting: dict[str, Callable[[], None]] = {}
        self._changed = threading.Condition()
        self._busy = False

    def submit(self, key: str, job: Callable[[], None]) -> None:
        """Ask for something to be done soon."""
        with self._changed:
            self._waiting.pop(key, None)
            self._waiting[key] = job
            if not self._busy:
                self._busy = True
                threading.Thread(target=self._serve, name="skylib-browser", daemon=True).start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is left to do; False if that took longer than `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, timeout)

    def _serve(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._busy = False
                    self._changed.notify_all()
                    return
                job = self._waiting.pop(next(iter(self._waiting)))
            try:
                job()
            except Exception as error:  # of whatever kind: a person who clicks looks at the widget, not at a log
                expected = isinstance(error, (ValueError, KeyError))  # such as a filter with a typing error
                log.log(logging.DEBUG if expected else logging.ERROR, "in the browser", exc_info=error)
                message = error.args[0] if isinstance(error, KeyError) and error.args else error
                self._on_error(str(message) if expected else f"{type(error).__name__}: {message}")
