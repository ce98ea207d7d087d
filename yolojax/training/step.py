"""One training iteration: loss, gradients, update and moving average in one compiled, donated program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from yolojax.freezing.labels import fixed_bn, trainable_mask
from yolojax.freezing.phases import Phase
from yolojax.freezing.signals import norms
from yolojax.mesh import replicated, split
from yolojax.model.images import normalise
from yolojax.model.network import Network, Variables
from yolojax.model.spec import ModelSpec
from yolojax.training.loss import LossSettings, compute_loss
from yolojax.training.optimizer import OptimizerSettings, make_optimizer
from yolojax.training.schedule import Schedule
from yolojax.training.state import Resting, TrainState, WholeState, moving_statistics, update_average
from yolojax.tree import Tree, merge, partition

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class TrainStep:
    """A training step of one freezing phase; ``program`` is its jitted function of the moving and the resting state, which consumes the moving one."""

    program: jax.stages.Wrapped

    def __call__(
        self,
        state: TrainState,
        batch: Batch,
        factors: Mapping[str, Any] | None = None,
        size: tuple[int, int] | None = None,
    ) -> tuple[TrainState, dict[str, Array]]:
        """Train on a batch; see ``make_train_step``."""
        moving, metrics = self.program(state.moving, state.resting, batch, factors or {}, size=size)
        return TrainState(moving, state.resting), metrics

    def lower(
        self,
        state: TrainState,
        batch: Batch,
        factors: Mapping[str, Any] | None = None,
        size: tuple[int, int] | None = None,
    ) -> jax.stages.Lowered:
        """The program for these shapes, before it is compiled."""
        return self.program.lower(state.moving, state.resting, batch, factors or {}, size=size)


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
      A compiled ``step(state, batch, factors={}, size=None) -> (state, metrics)``. It consumes what moves of ``state``. ``batch`` holds ``images`` uint8
      ``(B, H, W, 3)`` RGB, ``boxes`` ``(B, M, 5)`` and ``mask`` ``(B, M)``; ``factors`` are the learning-rate factors by label (1 where none is
      given); ``size``, static, is ``(height, width)`` to which the device resizes the images. Metrics are scalars:
      ``loss`` (times the batch size), its parts ``box``, ``obj``, ``cls``,
      ``gradient_norm`` of this batch before clipping, and ``finite`` (loss and gradient are). Where the state has a loss scale, a gradient that
      overflows makes ``overflows`` true instead; the batch then counts for nothing but the statistics.

    Frozen leaves, their averages and fixed statistics pass through untouched; gradients are taken of the trainable leaves alone.
    """
    trainable = trainable_mask(labels)

    def step(
        moving: WholeState,
        resting: Resting,
        batch: Batch,
        factors: Mapping[str, Any],
        size: tuple[int, int] | None,
    ) -> tuple[WholeState, dict[str, Array]]:
        if mesh is not None:
            batch = jax.lax.with_sharding_constraint(batch, split(mesh))
        images = _network_images(batch["images"], jnp.result_type(*jax.tree.leaves(moving.params)), size)
        statistics = merge(moving.batch_stats, resting.batch_stats)

        def forward(learned: Tree) -> tuple[Array, tuple[dict[str, Array], Tree]]:
            variables = {"params": merge(learned, resting.params), "batch_stats": statistics}
            heads, mutated = network.apply(variables, images, train=True, mutable=["batch_stats"])
            total, parts = compute_loss(heads, batch["boxes"], batch["mask"], network.spec, loss)
            return total, (parts, mutated["batch_stats"])

        if moving.loss_scale is None:
            (total, (parts, batch_stats)), gradients = jax.value_and_grad(forward, has_aux=True)(moving.params)
            norm = optax.tree.norm(gradients)
            metrics = {"finite": jnp.isfinite(total) & jnp.isfinite(norm)}
            state = _update(moving, resting, gradients, batch_stats, factors, True)
        else:
            # A gradient that overflows is a scale that was tried too high, no fault: its batch is left out, and the next scale is half of it.
            scale, counts, (total, (parts, batch_stats)), gradients = moving.loss_scale.value_and_grad(
                forward, has_aux=True
            )(moving.params)
            gradients = jax.tree.map(lambda gradient: jnp.where(counts, gradient, 0), gradients)
            norm = optax.tree.norm(gradients)
            metrics = {"finite": jnp.isfinite(total), "overflows": ~counts}
            state = _update(moving, resting, gradients, batch_stats, factors, counts)._replace(loss_scale=scale)
        return state, {"loss": total, **parts, "gradient_norm": norm, **metrics}

    def _update(
        moving: WholeState,
        resting: Resting,
        gradients: Tree,
        batch_stats: Tree,
        factors: Mapping[str, Any],
        counts: Array | bool,
    ) -> WholeState:
        rates = schedule.rates(moving.step, jnp.result_type(*jax.tree.leaves(moving.params)))
        ready = (moving.step - moving.last_update >= rates.accumulate) & counts
        restart = moving.step % schedule.batches_per_epoch == 0
        transformation = make_optimizer(labels, optimizer, rates, factors, ready, restart)
        # Frozen leaves need a gradient for the shape of the tree alone; zeros made here are folded away.
        every_gradient = merge(gradients, jax.tree.map(jnp.zeros_like, resting.params))
        every_parameter = merge(moving.params, resting.params)
        updates, opt_state = transformation.update(every_gradient, moving.opt_state, every_parameter)
        if not optimizer.accumulates and moving.loss_scale is not None:
            opt_state = jax.tree.map(lambda old, new: jnp.where(ready, new, old), moving.opt_state, opt_state)
        params = jax.tree.map(
            lambda value, update: jnp.where(ready, value + update, value),
            moving.params,
            partition(updates, trainable)[0],
        )
        statistics, _ = partition(batch_stats, moving_statistics(batch_stats, network.fixed_bn))
        count = moving.ema_updates + 1
        return WholeState(
            step=moving.step + 1,
            params=params,
            batch_stats=statistics,
            ema_params=update_average(moving.ema_params, params, count, ready),
            ema_batch_stats=update_average(moving.ema_batch_stats, statistics, count, ready),
            opt_state=opt_state,
            ema_updates=jnp.where(ready, count, moving.ema_updates),
            last_update=jnp.where(ready, moving.step, moving.last_update),
        )

    out_shardings = None if mesh is None else replicated(mesh)
    return TrainStep(jax.jit(step, donate_argnums=0, static_argnames="size", out_shardings=out_shardings))


def _network_images(images: Array, dtype: Any, size: tuple[int, int] | None) -> Array:
    """Bytes to 0…1, resized bilinearly if a size is given."""
    scaled = normalise(images, dtype)
    if size is None or size == images.shape[1:3]:
        return scaled
    return jax.image.resize(scaled, (len(images), *size, 3), "linear", antialias=False)


def fixed_modules(phase: Phase, mode: str) -> frozenset[str]:
    """The BatchNorm modules that keep their statistics: those of frozen layers if ``mode`` is ``fixed``, none if it is ``track``."""
    return fixed_bn(phase.tree()) if mode == "fixed" else frozenset()


def gradient_norms(
    spec: ModelSpec, loss: LossSettings, variables: Variables, batches: Iterable[Mapping[str, Any]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Per path, the norm of the gradient of some batches together and that of the parameter: what a strategy may choose layers by."""
    network = Network(spec)

    @jax.jit
    def gradient(params: Tree, batch: Mapping[str, Any]) -> Tree:
        def total(params: Tree) -> Array:
            images = normalise(batch["images"])
            heads, _ = network.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return compute_loss(heads, batch["boxes"], batch["mask"], spec, loss)[0]

        return jax.grad(total)(params)

    summed = None
    for batch in batches:
        batch_gradient = gradient(variables["params"], {key: batch[key] for key in ("images", "boxes", "mask")})
        summed = batch_gradient if summed is None else jax.tree.map(jnp.add, summed, batch_gradient)
    return norms(summed or {}), norms(variables["params"])


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
