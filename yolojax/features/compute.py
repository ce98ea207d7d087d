"""Features computed: the front part as a compiled program, batch after batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from yolojax.mesh import put_batch, replicated, split
from yolojax.model.images import normalise
from yolojax.model.network import Network, Variables
from yolojax.model.spec import ModelSpec

Front: TypeAlias = Callable[[NDArray[np.uint8]], tuple[jax.Array, ...]]
Labels: TypeAlias = tuple[NDArray[np.float32], NDArray[np.bool_]]  # boxes and mask, as in ``data.batches.Batch``


def make_front(spec: ModelSpec, end: int, dtype: Any, mesh: Mesh, variables: Variables) -> Front:
    """The front part as a function of uint8 images ``(B, H, W, 3)``, compiled once per shape; all devices share a batch."""
    network, placed = Network(spec, dtype=dtype, end=end), jax.device_put(variables, replicated(mesh))
    program = jax.jit(lambda variables, images: network.apply(variables, normalise(images)), out_shardings=split(mesh))
    return lambda images: program(placed, put_batch({"images": images}, mesh)["images"])


def compute_ahead(front: Front, images: Iterable[NDArray[np.uint8]]) -> Iterator[list[NDArray[Any]]]:
    """The features of batch after batch, on the host. Two are computed at a time: a processor's program leaves some of its cores idle."""

    def compute(batch: NDArray[np.uint8]) -> list[NDArray[Any]]:
        return jax.device_get(front(batch))

    compiled = set[tuple[int, ...]]()
    running: deque[Future[list[NDArray[Any]]]] = deque()
    with ThreadPoolExecutor(2, "yolojax-features") as pool:
        for batch in images:
            running.append(pool.submit(compute, batch))
            if batch.shape not in compiled:  # by one thread, and not by both
                running[-1].result()
                compiled.add(batch.shape)
            if len(running) > 2:  # and one more is prepared
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def front_variables(variables: Variables, end: int) -> Variables:
    """Parameters and statistics of the layers before ``end``, on the host."""
    names = {f"model_{index}" for index in range(end)}
    return {
        collection: jax.tree.map(
            np.asarray, {name: tree for name, tree in variables[collection].items() if name in names}
        )
        for collection in ("params", "batch_stats")
    }


def join_labels(batches: Sequence[Labels], count: int) -> Labels:
    """Boxes and mask of ``count`` images, with room for the most that a batch has."""
    room = max(mask.shape[1] for _, mask in batches)
    boxes, mask = np.zeros((count, room, 5), np.float32), np.zeros((count, room), bool)
    start = 0
    for batch_boxes, batch_mask in batches:
        taken, own = min(len(batch_mask), count - start), batch_mask.shape[1]
        boxes[start : start + taken, :own] = batch_boxes[:taken]
        mask[start : start + taken, :own] = batch_mask[:taken]
        start += taken
    return boxes, mask
