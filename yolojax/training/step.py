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

from yolojax.exchange import WHOLE_BATCH, Exchange
from yolojax.features.shared import Shared
from yolojax.freezing.labels import fixed_bn, trainable_mask
from yolojax.freezing.phases import Phase
from yolojax.mesh import replicated, split
from yolojax.model.network import Network, Variables
from yolojax.packing import Packing
from yolojax.training.loss import LossSettings, make_gradient
from yolojax.training.optimizer import OptimizerSettings, make_optimizer
from yolojax.training.schedule import Schedule
from yolojax.training.state import Resting, TrainState, WholeState, update_average
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
    exchange: Exchange = WHOLE_BATCH,
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
      exchange: what devices tell each other where they are several.

    Returns:
      A compiled ``step(state, batch, factors={}, size=None) -> (state, metrics)``. It consumes what moves of ``state``. ``batch`` holds ``images`` uint8
      ``(B, H, W, 3)`` RGB, ``boxes`` ``(B, M, 5)`` and ``mask`` ``(B, M)``; ``factors`` are the learning-rate factors by label (1 where none is
      given); ``size``, static, is ``(height, width)`` to which the device resizes the images. Metrics are scalars:
      ``loss`` (times the batch size), its parts ``box``, ``obj``, ``cls``,
      ``gradient_norm`` of this batch before clipping, and ``finite`` (loss and gradient are). Where the state has a loss scale, a gradient that
      overflows makes ``overflows`` true instead; the batch then counts for nothing but the statistics. ``loss_scale`` is that of this batch.

    Frozen leaves, their averages and fixed statistics pass through untouched; gradients are taken of the trainable leaves alone.
    """
    step = make_step_function(network, labels, loss, optimizer, schedule, mesh, exchange)
    out_shardings = None if mesh is None else replicated(mesh)
    return TrainStep(jax.jit(step, donate_argnums=0, static_argnames="size", out_shardings=out_shardings))


def make_step_function(
    network: Network,
    labels: Tree,
    loss: LossSettings,
    optimizer: OptimizerSettings,
    schedule: Schedule,
    mesh: Mesh | None = None,
    exchange: Exchange = WHOLE_BATCH,
) -> StepFunction:
    """What ``make_train_step`` compiles, for who compiles it as a part of something larger."""
    trainable = trainable_mask(labels)
    gradient = make_gradient(network, loss, mesh, exchange)

    def step(
        moving: WholeState,
        resting: Resting,
        batch: Batch,
        factors: Mapping[str, Any],
        size: tuple[int, int] | None,
    ) -> tuple[WholeState, dict[str, Array]]:
        if mesh is not None:
            batch = jax.lax.with_sharding_constraint(batch, split(mesh))
        result = gradient(moving, resting, batch, size)
        gradients, counts = result.gradients, result.counts
        if moving.loss_scale is None:
            norm = optax.tree.norm(gradients)
            metrics = {"finite": jnp.isfinite(result.loss) & jnp.isfinite(norm)}
        else:
            # A gradient that overflows is a scale that was tried too high, no fault: its batch is left out, and the next scale is half of it.
            gradients = jax.tree.map(lambda gradient: jnp.where(counts, gradient, 0), gradients)
            norm = optax.tree.norm(gradients)
            metrics = {
                "finite": jnp.isfinite(result.loss),
                "overflows": ~jnp.asarray(counts),
                "loss_scale": jnp.asarray(moving.loss_scale.scale),
            }
        state = _update(moving, resting, gradients, result.batch_stats, factors, counts)
        if "stop" in batch:  # by several processes; a sum, so that it goes with those of the loss
            metrics["stop"] = batch["stop"].sum()
        state = state._replace(loss_scale=result.loss_scale)
        return state, {"loss": result.loss, **result.parts, "gradient_norm": norm, **metrics}

    def _update(
        moving: WholeState,
        resting: Resting,
        gradients: Tree,
        statistics: Tree,
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
    exchange: Exchange,
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
        function = make_step_function(network, phase.tree(), loss, optimizer, schedule, mesh, exchange)
        return function(moving, resting, batch, given["factors"], size)

    return shared.program((network, phase, rest, mesh, exchange), lambda: step), numbers


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


# Of one dispatch, whose metrics lie in an array of this length.
MOST_STEPS = 256


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
        teacher: Variables | None = None,
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
          teacher: on the devices, where the loss of the step has one.
        """
        self._resting = state.resting
        leaves, moving = jax.tree.flatten(state.moving)
        # The step of a CPU outlasts Python a hundred times, and small arrays put together take its compiler a third of its time.
        on_cpu = (jax.default_backend() if mesh is None else mesh.devices.flat[0].platform) == "cpu"
        self._packing = packing = Packing.of(leaves, 0 if on_cpu and maker is None else 2)
        self._moving = packing.put(leaves, mesh)
        # Averages that rest are not read by a step.
        self._constant, constant = jax.tree.flatten((state.resting.params, state.resting.batch_stats, teacher))
        self._structure = moving
        placed = None if mesh is None else replicated(mesh)
        self._factors: dict[str, Any] = jax.device_put(dict(factors), placed)
        self._counts, self._placed, self._mesh = dict[int, Array](), placed, mesh

        def program(carried: Any, constants: Any, factors: Any, feed: Any, steps: Any, size: Any) -> Any:
            params, batch_stats, taught_by = jax.tree.unflatten(constant, constants)
            resting = Resting(params, batch_stats, params, batch_stats, taught_by)

            def iterate(leaves: Any) -> Any:
                state = jax.tree.unflatten(moving, leaves)
                batch = feed
                if steps is not None:
                    assert maker is not None
                    epoch, number = jnp.divmod(state.step, schedule.batches_per_epoch)
                    made = maker.make(feed, epoch, number)
                    batch = {**made, **{name: feed[name] for name in ("stop",) if name in feed}}
                state, metrics = step(state, resting, batch, factors, size)
                return jax.tree.leaves(state), metrics

            leaves = packing.unpack(carried)
            leaves, metrics = iterate(leaves) if steps is None else _repeat(iterate, leaves, steps)
            return packing.pack(leaves), metrics

        def compiled() -> Any:
            return jax.jit(program, donate_argnums=0, static_argnums=5, out_shardings=placed, keep_unused=True)

        self._program = compiled() if shared is None else shared.program((step, moving, constant, packing), compiled)

    def __call__(self, feed: Any, size: tuple[int, int] | None = None, steps: int | None = None) -> dict[str, Array]:
        """Train.

        Args:
          feed: a batch on the devices, or with ``steps`` the source of the maker.
          size: ``(height, width)`` to which the devices resize the images.
          steps: how many batches of the maker to train on, at most ``MOST_STEPS``, from the state's own iteration on, in one epoch.

        Returns:
          Metrics as of ``make_train_step``; with ``steps`` arrays ``(MOST_STEPS,)``, of which so many are filled.
        """
        arguments = (self._moving, self._constant, self._factors, feed, self._count(steps), size)
        self._moving, metrics = self._program(*arguments)
        return metrics

    def _count(self, steps: int | None) -> Array | None:
        """A number of steps on the devices, placed there once."""
        if steps is None:
            return None
        if steps not in self._counts:
            self._counts[steps] = jax.device_put(np.int32(steps), self._placed)
        return self._counts[steps]

    @property
    def state(self) -> TrainState:
        """The state as it is now; the next call consumes what moves of it."""
        leaves = self._packing.take(self._moving, self._mesh)
        return TrainState(jax.tree.unflatten(self._structure, leaves), self._resting)

    def lower(self, feed: Any, size: tuple[int, int] | None = None, steps: int | None = None) -> jax.stages.Lowered:
        """The program of such a call, before it is compiled."""
        count = self._count(steps)
        return self._program.lower(self._moving, self._constant, self._factors, feed, count, size)

    @property
    def traces(self) -> int:
        """How many programs were made: one per shape of batch and size, whatever the number of steps."""
        program: Any = self._program
        return program._cache_size()


def _repeat(
    iterate: Callable[[Any], tuple[Any, dict[str, Array]]], leaves: Any, steps: Array
) -> tuple[Any, dict[str, Array]]:
    """Iterate so many times in a loop whose length is known when it runs, so that a program serves every number of steps."""
    shapes = jax.eval_shape(iterate, leaves)[1]
    filled = jax.tree.map(lambda value: jnp.zeros((MOST_STEPS, *value.shape), value.dtype), shapes)

    def body(number: Array, carried: tuple[Any, dict[str, Array]]) -> tuple[Any, dict[str, Array]]:
        leaves, metrics = iterate(carried[0])
        return leaves, jax.tree.map(lambda held, value: held.at[number].set(value), carried[1], metrics)

    return jax.lax.fori_loop(0, steps, body, (leaves, filled))


class Pace:
    """How many steps go into a dispatch: as many as take up to 100 ms, found on the first dispatches.

    A dispatch is as long as a person, a scheduler or a fault has to wait for the run to notice it, and as short as Python's own time per dispatch allows.

    Attributes:
      steps: of a dispatch from now on.
      settled: whether that stays.
    """

    _seconds = 0.1
    _measured = 4  # dispatches; the first of them compiles, and the second may wait for it

    def __init__(self, steps: int | None, most: int) -> None:
        """``steps`` is fixed, or None to be found; a dispatch has no more than ``most``."""
        most = min(most, MOST_STEPS)
        self.steps = min(steps or 1, most)
        self._most = most
        self.settled = steps is not None or most == 1
        self._times: list[float] = []

    def take(self, left: int) -> int:
        """Steps of the next dispatch, where so many may follow each other."""
        return min(self.steps, left)

    def finished(self, steps: int, seconds: float) -> None:
        """Note a dispatch that took so many seconds after the one before it."""
        if self.settled or steps != self.steps:
            return
        self._times.append(seconds / steps)
        if len(self._times) < self._measured:
            return
        fitting = max(int(self._seconds / max(min(self._times[2:]), 1e-6)), 1)
        steps = min(fitting, self._most)
        # What a small network takes alone is Python's time; among others in a dispatch it is found to be quicker, once.
        self.settled = steps <= self.steps or self.steps > 1
        self.steps, self._times = steps, []


def fixed_modules(phase: Phase, mode: str) -> frozenset[str]:
    """The BatchNorm modules that keep their statistics: those of frozen layers if ``mode`` is ``fixed``, none if it is ``track``."""
    return fixed_bn(phase.tree()) if mode == "fixed" else frozenset()
