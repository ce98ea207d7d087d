"""One training iteration: loss, gradients, update and moving average in one compiled, donated program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from yolojax.freezing.adapters import merge_adapters
from yolojax.freezing.labels import trainable_mask
from yolojax.mesh import replicated, split
from yolojax.model.images import normalise
from yolojax.model.network import Network
from yolojax.training.loss import LossSettings, compute_loss
from yolojax.training.optimizer import OptimizerSettings, make_optimizer
from yolojax.training.schedule import Schedule
from yolojax.training.state import TrainState, update_average
from yolojax.tree import map_with_path, merge, partition

Tree = Any
Batch = Mapping[str, Any]
TrainStep = Callable[..., tuple[TrainState, dict[str, Array]]]


def make_train_step(
    network: Network,
    labels: Tree,
    loss: LossSettings,
    optimizer: OptimizerSettings,
    schedule: Schedule,
    mesh: Mesh | None = None,
) -> TrainStep:
    """Compile-ready training step for one freezing phase.

    Args:
      network: with its compute dtype and its ``fixed_bn`` (BatchNorm modules that keep their statistics).
      labels: tree of ``frozen`` or the name of a trainable group, structure of the parameters. Static: another choice is another step.
      loss: gains and options.
      optimizer: fixed settings.
      schedule: gives the rates at every iteration.
      mesh: devices that share the batch; None is the default device.

    Returns:
      A jitted ``step(state, batch, factors={}, size=None) -> (state, metrics)``. It consumes ``state``. ``batch`` holds ``images`` uint8
      ``(B, H, W, 3)`` RGB, ``boxes`` ``(B, M, 5)`` and ``mask`` ``(B, M)``; ``factors`` are the learning-rate factors by label (1 where none is
      given); ``size``, static, is ``(height, width)`` to which the device resizes the images. Metrics are scalars:
      ``loss`` (times the batch size), its parts ``box``, ``obj``, ``cls``,
      ``gradient_norm`` of this batch before clipping, and ``finite`` (loss and gradient are).

    Frozen leaves, their averages and fixed statistics pass through untouched; gradients are taken of the trainable leaves alone.
    """
    trainable = trainable_mask(labels)

    def step(
        state: TrainState, batch: Batch, factors: Mapping[str, Any] | None = None, size: tuple[int, int] | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        if mesh is not None:
            batch = jax.lax.with_sharding_constraint(batch, split(mesh))
        learned, frozen = partition(state.params, trainable)
        images = _network_images(batch["images"], jnp.result_type(*jax.tree.leaves(state.params)), size)

        def forward(learned: Tree) -> tuple[Array, tuple[dict[str, Array], Tree]]:
            variables = {"params": merge_adapters(merge(learned, frozen)), "batch_stats": state.batch_stats}
            heads, mutated = network.apply(variables, images, train=True, mutable=["batch_stats"])
            total, parts = compute_loss(heads, batch["boxes"], batch["mask"], network.spec, loss)
            return total, (parts, mutated["batch_stats"])

        (total, (parts, batch_stats)), gradients = jax.value_and_grad(forward, has_aux=True)(learned)
        norm = optax.tree.norm(gradients)
        metrics = {"loss": total, **parts, "gradient_norm": norm, "finite": jnp.isfinite(total) & jnp.isfinite(norm)}
        return _update(state, gradients, batch_stats, factors or {}), metrics

    def _update(state: TrainState, gradients: Tree, batch_stats: Tree, factors: Mapping[str, Any]) -> TrainState:
        rates = schedule.rates(state.step, jnp.result_type(*jax.tree.leaves(state.params)))
        ready = state.step - state.last_update >= rates.accumulate
        restart = state.step % schedule.batches_per_epoch == 0
        transformation = make_optimizer(labels, optimizer, rates, factors, ready, restart)
        # Frozen leaves need a gradient for the shape of the tree alone; zeros made here are folded away.
        full = jax.tree.map(
            lambda learns, gradient, value: gradient if learns else jnp.zeros_like(value),
            trainable,
            gradients,
            state.params,
            is_leaf=lambda leaf: leaf is None,
        )
        updates, opt_state = transformation.update(full, state.opt_state, state.params)
        params = jax.tree.map(
            lambda learns, value, update: jnp.where(ready, value + update, value) if learns else value,
            trainable,
            state.params,
            updates,
        )
        count = state.ema_updates + 1
        moving = map_with_path(lambda path, _: path.rpartition("/")[0] not in network.fixed_bn, batch_stats)
        return TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            ema_params=update_average(state.ema_params, params, trainable, count, ready),
            ema_batch_stats=update_average(state.ema_batch_stats, batch_stats, moving, count, ready),
            opt_state=opt_state,
            ema_updates=jnp.where(ready, count, state.ema_updates),
            last_update=jnp.where(ready, state.step, state.last_update),
        )

    out_shardings = None if mesh is None else replicated(mesh)
    return jax.jit(step, donate_argnums=0, static_argnames="size", out_shardings=out_shardings)


def _network_images(images: Array, dtype: Any, size: tuple[int, int] | None) -> Array:
    """Bytes to 0…1, resized bilinearly if a size is given."""
    scaled = normalise(images, dtype)
    if size is None or size == images.shape[1:3]:
        return scaled
    return jax.image.resize(scaled, (len(images), *size, 3), "linear", antialias=False)


def program_record(lowered: Any) -> dict[str, Any]:
    """The cost of a program as XLA counts it.

    Args:
      lowered: what ``jitted.lower(...)`` gives; a program that was just called is not compiled again.

    Returns:
      ``flops`` of one call and its ``argument_bytes``, ``temporary_bytes``; None where the platform does not say.
    """
    compiled = lowered.compile()
    costs = compiled.cost_analysis() or lowered.cost_analysis() or {}
    memory = compiled.memory_analysis()
    return {
        "flops": costs.get("flops"),
        "argument_bytes": None if memory is None else memory.argument_size_in_bytes,
        "temporary_bytes": None if memory is None else memory.temp_size_in_bytes,
    }


def device_peak_bytes(device: jax.Device) -> int | None:
    """The most memory that this process ever held on a device, in bytes; None where the device does not say (CPU)."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")
