"""One training iteration: loss, gradients, update and moving average in one compiled, donated program; or several iterations in one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from yolojax.features.shared import Shared
from yolojax.freezing.labels import fixed_bn, trainable_mask
from yolojax.freezing.phases import Phase
from yolojax.mesh import replicated, split
from yolojax.model.images import normalise
from yolojax.model.network import Network
from yolojax.training.loss import LossSettings, compute_loss
from yolojax.training.optimizer import OptimizerSettings, make_optimizer
from yolojax.training.schedule import Schedule
from yolojax.training.state import Resting, TrainState, WholeState, moving_statistics, update_average
from yolojax.tree import Tree, merge, partition

Batch = Mapping[str, Any]
StepFunction = Callable[[WholeState, Resting, Batch, Mapping[str, Any], "tuple[int, int] | None"], Any]


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
      network: with its compute dtype and its ``fixed_bn`` (BatchNorm modules that keep their statistics). One that starts behind the first layer reads
        ``features`` of a batch, a tuple of arrays, in place of ``images``.
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
      overflows makes ``overflows`` true instead; the batch then counts for nothing but the statistics. ``loss_scale`` is that of this batch.

    Frozen leaves, their averages and fixed statistics pass through untouched; gradients are taken of the trainable leaves alone.
    """
    step = make_step_function(network, labels, loss, optimizer, schedule, mesh)
    out_shardings = None if mesh is None else replicated(mesh)
    return TrainStep(jax.jit(step, donate_argnums=0, static_argnames="size", out_shardings=out_shardings))


def make_step_function(
    network: Network,
    labels: Tree,
    loss: LossSettings,
    optimizer: OptimizerSettings,
    schedule: Schedule,
    mesh: Mesh | None = None,
) -> StepFunction:
    """What ``make_train_step`` compiles, for who compiles it as a part of something larger."""
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
        dtype = jnp.result_type(*jax.tree.leaves(moving.params))
        inputs = batch["features"] if network.start else _network_images(batch["images"], dtype, size)
        statistics = merge(moving.batch_stats, resting.batch_stats)

        def forward(learned: Tree) -> tuple[Array, tuple[dict[str, Array], Tree]]:
            variables = {"params": merge(learned, resting.params), "batch_stats": statistics}
            heads, mutated = network.apply(variables, inputs, train=True, mutable=["batch_stats"])
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
            metrics = {
                "finite": jnp.isfinite(total),
                "overflows": ~counts,
                "loss_scale": jnp.asarray(moving.loss_scale.scale),
            }
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

    return step


# What a step only multiplies and adds with: runs that differ in nothing else can train with one program.
_NUMBERS: tuple[tuple[str, ...], ...] = (
    ("box", "obj", "cls"),
    ("weight_decay", "momentum"),
    ("epochs", "initial", "final_fraction", "momentum", "warmup_momentum", "warmup_bias_rate"),
)


def shared_step_function(
    network: Network,
    phase: Phase,
    settings: tuple[LossSettings, OptimizerSettings, Schedule],
    mesh: Mesh,
    shared: Shared,
) -> tuple[StepFunction, list[dict[str, float]]]:
    """A step that is the same for all runs of a process that differ in rates and gains alone.

    Returns:
      It, and the numbers of this run. It takes ``{"factors": ..., "numbers": ...}`` for factors. What is a constant of the program elsewhere is an
      argument here, so that figures differ by rounding.
    """
    pairs: list[tuple[Any, tuple[str, ...]]] = list(zip(settings, _NUMBERS, strict=True))
    numbers = [{name: float(getattr(own, name)) for name in names} for own, names in pairs]
    rest = tuple(replace(own, **dict.fromkeys(names, 0)) for own, names in pairs)

    def step(moving: WholeState, resting: Resting, batch: Batch, given: Mapping[str, Any], size: Any) -> Any:
        loss, optimizer, schedule = (replace(own, **new) for own, new in zip(rest, given["numbers"], strict=True))
        function = make_step_function(network, phase.tree(), loss, optimizer, schedule, mesh)
        return function(moving, resting, batch, given["factors"], size)

    return shared.program((network, phase, rest, mesh), lambda: step), numbers


class BatchMaker(Protocol):
    """Makes batches on the devices, inside a program that trains on them."""

    def source(self, epoch: int) -> Any:
        """What batches of an epoch are made from: arrays on the devices."""
        ...

    def samples(self, epoch: int, number: int) -> np.ndarray:
        """The sample that each image of a batch begins with, ``(B,)``, for who has to name it."""
        ...

    def make(self, source: Any, epoch: Array, number: Array) -> Batch:
        """The batch with a number in an epoch.

        Args:
          source: of ``source``, traced.
          epoch: int32 scalar, traced.
          number: int32 scalar, traced.
        """
        ...


class Dispatch:
    """The steps of a phase, on a state that it holds: one batch from the host per call, or several batches that are made on the devices.

    The trees of the state are taken apart once for the whole phase, and the factors go to the devices once: with a small network and an accelerator, that
    would take Python longer than the devices need for a step.
    """

    def __init__(
        self,
        step: StepFunction,
        state: TrainState,
        factors: Mapping[str, Any],
        schedule: Schedule,
        mesh: Mesh | None = None,
        maker: BatchMaker | None = None,
        shared: Shared | None = None,
    ) -> None:
        """Take a state over.

        Args:
          step: of ``make_step_function``.
          state: what moves of it is consumed by the first call.
          factors: learning-rate factors by label.
          schedule: of the run.
          mesh: devices that share the batch.
          maker: of the batches, where they are made on the devices.
          shared: where programs of runs before this one are; with a step of ``shared_step_function``.
        """
        self._resting = state.resting
        self._moving, moving = jax.tree.flatten(state.moving)
        # Averages that rest are not read by a step.
        self._constant, constant = jax.tree.flatten((state.resting.params, state.resting.batch_stats))
        self._structure = moving
        placed = None if mesh is None else replicated(mesh)
        self._factors: dict[str, Any] = jax.device_put(dict(factors), placed)

        def program(leaves: Any, constants: Any, factors: Any, feed: Any, size: Any, steps: int | None) -> Any:
            params, batch_stats = jax.tree.unflatten(constant, constants)
            resting = Resting(params, batch_stats, params, batch_stats)

            def iterate(leaves: Any, _: Any) -> Any:
                state = jax.tree.unflatten(moving, leaves)
                batch = feed
                if steps is not None:
                    assert maker is not None
                    epoch, number = jnp.divmod(state.step, schedule.batches_per_epoch)
                    batch = maker.make(feed, epoch, number)
                state, metrics = step(state, resting, batch, factors, size)
                return tuple(jax.tree.leaves(state)), metrics

            return iterate(leaves, None) if steps is None else jax.lax.scan(iterate, leaves, length=steps)

        def compiled() -> Any:
            return jax.jit(program, donate_argnums=0, static_argnums=(4, 5), out_shardings=placed, keep_unused=True)

        self._program = compiled() if shared is None else shared.program((step, moving, constant), compiled)

    def __call__(self, feed: Any, size: tuple[int, int] | None = None, steps: int | None = None) -> dict[str, Array]:
        """Train.

        Args:
          feed: a batch on the devices, or with ``steps`` the source of the maker.
          size: ``(height, width)`` to which the devices resize the images.
          steps: how many batches of the maker to train on, from the state's own iteration on, in one epoch.

        Returns:
          Metrics as of ``make_train_step``; with ``steps`` arrays ``(steps,)``.
        """
        self._moving, metrics = self._program(tuple(self._moving), self._constant, self._factors, feed, size, steps)
        return metrics

    @property
    def state(self) -> TrainState:
        """The state as it is now; the next call consumes what moves of it."""
        return TrainState(jax.tree.unflatten(self._structure, self._moving), self._resting)

    def lower(self, feed: Any, size: tuple[int, int] | None = None, steps: int | None = None) -> jax.stages.Lowered:
        """The program of such a call, before it is compiled."""
        return self._program.lower(tuple(self._moving), self._constant, self._factors, feed, size, steps)

    @property
    def traces(self) -> int:
        """How many programs were made: one per shape of batch, size and number of steps."""
        program: Any = self._program
        return program._cache_size()


class Pace:
    """How many steps go into a dispatch: a power of two for which it takes 50 to 100 ms, found on the first dispatches.

    A dispatch is as long as a person, a scheduler or a fault has to wait for the run to notice it, and as short as Python's own time per dispatch allows.

    Attributes:
      steps: of a dispatch from now on.
      settled: whether that stays.
    """

    _seconds = 0.1
    _measured = 4  # dispatches; the first of them compiles, and the second may wait for it

    def __init__(self, steps: int | None, most: int) -> None:
        """``steps`` is fixed, or None to be found; a dispatch has no more than ``most``."""
        self.steps = min(steps or 1, most)
        self._most = most
        self.settled = steps is not None or most == 1
        self._times: list[float] = []

    def take(self, number: int, end: int) -> int:
        """Steps of the dispatch that begins with a batch of the epoch, which has ``end`` batches.

        Dispatches of several steps begin at multiples of their length, so that a resumed epoch has the same ones as one that was not interrupted.
        """
        return self.steps if number % self.steps == 0 and number + self.steps <= end else 1

    def finished(self, steps: int, seconds: float) -> None:
        """Note a dispatch that took so many seconds after the one before it."""
        if self.settled or steps != self.steps:
            return
        self._times.append(seconds / steps)
        if len(self._times) < self._measured:
            return
        fitting = max(int(self._seconds / max(min(self._times[2:]), 1e-6)), 1)
        steps = 1 << (min(fitting, self._most).bit_length() - 1)
        # What a small network takes alone is Python's time; among others in a dispatch it is found to be quicker, once.
        self.settled = steps <= self.steps or self.steps > 1
        self.steps, self._times = steps, []


def _network_images(images: Array, dtype: Any, size: tuple[int, int] | None) -> Array:
    """Bytes to 0…1, resized bilinearly if a size is given."""
    scaled = normalise(images, dtype)
    if size is None or size == images.shape[1:3]:
        return scaled
    return jax.image.resize(scaled, (len(images), *size, 3), "linear", antialias=False)


def fixed_modules(phase: Phase, mode: str) -> frozenset[str]:
    """The BatchNorm modules that keep their statistics: those of frozen layers if ``mode`` is ``fixed``, none if it is ``track``."""
    return fixed_bn(phase.tree()) if mode == "fixed" else frozenset()


def device_peak_bytes(device: jax.Device) -> int | None:
    """The most memory that this process ever held on a device, in bytes; None where the device does not say (CPU)."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")
