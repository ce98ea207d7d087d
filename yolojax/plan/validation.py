"""The programs of a validation, compiled for a device that may be absent: prediction, and NMS beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from jax.stages import Compiled, Lowered

from yolojax.evaluation.nms import NmsSettings, suppress_batch
from yolojax.mesh import make_mesh
from yolojax.model.network import abstract_variables
from yolojax.model.spec import ModelSpec
from yolojax.training.validator import make_predict


def validation_programs(
    spec: ModelSpec,
    device: jax.Device,
    *,
    batch: int,
    size: tuple[int, int],
    dtype: str = "float32",
    settings: NmsSettings | None = None,
    with_nms: bool = True,
) -> Mapping[str, Compiled]:
    """Compile what a validation while training runs for every batch of one shape; the loss is left out.

    Args:
      spec: the network.
      device: one to compile for, as ``devices.open_device`` gives it.
      batch: images of a batch.
      size: height and width in pixels.
      dtype: of the computation; predictions are float32 in any case.
      settings: of the suppression; validation's by default.
      with_nms: whether the device suppresses; on a CPU the host does.

    Returns:
      ``predict``, from variables and images to predictions and heads, and ``nms``, from predictions to detections and their numbers.
    """
    placed = SingleDeviceSharding(device)

    def abstract(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)

    images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.uint8, sharding=placed)
    predict = make_predict(spec, make_mesh([device]), jnp.dtype(dtype)).lower(
        jax.tree.map(abstract, abstract_variables(spec)), images
    )
    programs = {"predict": predict}
    if with_nms:
        predictions = abstract(predict.out_info[0])
        programs["nms"] = jax.jit(suppress_batch, static_argnums=1).lower(predictions, settings or NmsSettings())
    return {name: compile_quickly(lowered, device) for name, lowered in programs.items()}


def compile_quickly(lowered: Lowered, device: jax.Device) -> Compiled:
    """Compile; operations and buffers are decided before machine code is made, which takes half of the time on CPU."""
    options: Any = {"xla_backend_optimization_level": 0} if device.platform == "cpu" else None
    return lowered.compile(options)
