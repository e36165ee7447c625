"""Images read and decoded by tasks of their own, a few ahead of the process that maps them.

So an actor that holds a model, on a GPU or not, waits for no file. Only a few images are ahead: a
slow model does not fill the object store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmm_ray.runtime.cluster.connect import inference_process
from pmm_ray.runtime.core.errors import RowError

AHEAD = 4
"""Images on their way to one actor."""

# Next to nothing: tasks must not wait for CPUs that their actors hold. Not zero: a head that was
# started without CPUs must get none. An actor on a CPU leaves room for two such tasks.
READER_CPUS = 0.05

Read = Callable[[Mapping[str, Any]], NDArray[np.uint8]]


def read_ahead(
    rows: Sequence[Mapping[str, Any]], read: Read, ahead: int = AHEAD
) -> Iterator[NDArray[np.uint8] | RowError]:
    """The images of rows, in their order; what cannot be read is a RowError in its place.

    Args:
        read: one image of one row, uint8; sent to the tasks, so it must be small.
        ahead: images that are read while others are mapped; 0 reads here, without Ray.

    Raises:
        ray.exceptions.RayError: a task died again and again.
    """
    if not ahead:
        yield from (_image(read, row) for row in rows)
        return
    import ray

    task, shared = _task(), ray.put(read)
    under_way: deque[Any] = deque()
    for row in rows:
        under_way.append(task.remote(shared, row))
        if len(under_way) > ahead:
            yield ray.get(under_way.popleft())
    while under_way:
        yield ray.get(under_way.popleft())


@cache
def _task() -> Any:
    """One remote function for all chunks: Ray keeps each that it is given."""
    import ray

    return ray.remote(num_cpus=READER_CPUS, max_retries=2)(_in_task)


def _in_task(read: Read, row: Mapping[str, Any]) -> NDArray[np.uint8] | RowError:
    inference_process()
    return _image(read, row)


def _image(read: Read, row: Mapping[str, Any]) -> NDArray[np.uint8] | RowError:
    try:
        return read(row)
    except RowError as error:
        return error
