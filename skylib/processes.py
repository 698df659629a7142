"""Work in several processes at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context
from typing import Any, TypeVar

T = TypeVar("T")


def in_processes(
    jobs: Sequence[Callable[[], T]],
    workers: int,
    *,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Iterator[T]:
    """Do jobs in several processes, and give the results in order; if one fails, the others are stopped.

    Parameters
    ----------
    jobs : sequence of callables
        They and their results are pickled.
    workers : int
    initializer, initargs
        What each process does first.
    """
    before = set(active_children())
    context: Any = get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=initializer, initargs=initargs) as pool:
        try:
            yield from (future.result() for future in [pool.submit(job) for job in jobs])
        except BaseException:  # Ctrl-C too
            for child in set(active_children()) - before:
                child.terminate()
            raise
