"""From one freezing phase to the next: labels change, what stays trainable keeps its moments."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh

from yolojax.freezing.adapters import add_adapters, is_adapter, merge_adapters
from yolojax.freezing.labels import fixed_bn
from yolojax.freezing.phases import Phase
from yolojax.freezing.signals import norms
from yolojax.model.network import Network, Variables
from yolojax.model.spec import ModelSpec
from yolojax.training.loss import LossSettings, compute_loss
from yolojax.training.optimizer import OptimizerSettings
from yolojax.training.state import TrainState, create_state, divide, separate
from yolojax.tree import Tree, flatten


def fixed_modules(phase: Phase, mode: str) -> frozenset[str]:
    """The BatchNorm modules that keep their statistics: those of frozen layers if ``mode`` is ``fixed``, none if it is ``track``."""
    return fixed_bn(phase.tree()) if mode == "fixed" else frozenset()


def enter_phase(variables: Variables, phase: Phase, key: Array) -> Variables:
    """The variables that a phase trains: plain ones, with adapters where it has them."""
    kernels = [
        path.removesuffix("adapter/down") + "kernel" for path, _ in phase.labels if path.endswith("adapter/down")
    ]
    params = merge_adapters(variables["params"])
    return {**variables, "params": add_adapters(params, kernels, phase.adapter_rank, key) if kernels else params}


def change_phase(
    state: TrainState,
    phase: Phase,
    settings: OptimizerSettings,
    key: Array,
    mesh: Mesh | None,
    fixed_bn: Collection[str] = (),
) -> TrainState:
    """The state at the start of another phase.

    Moments of parameters that train before and after carry over bit for bit; those that thaw start fresh. Averages, statistics and counters
    carry over. Adapters of the old phase are merged into their kernels, those of the new one start at no effect. ``fixed_bn`` are the BatchNorm
    modules that keep their statistics in the new phase.
    """
    whole = state.whole
    params, averages = whole.params, whole.ema_params
    if phase.adapter_rank or any(is_adapter(path) for path in flatten(params)):
        params, averages = (enter_phase({"params": tree}, phase, key)["params"] for tree in (params, averages))
    fresh = create_state({"params": params, "batch_stats": whole.batch_stats}, phase.tree(), settings, mesh).moving
    kept = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(whole.opt_state)[0]}
    opt_state = jax.tree_util.tree_map_with_path(
        lambda path, leaf: kept.get(jax.tree_util.keystr(path), leaf), fresh.opt_state
    )
    changed = whole._replace(params=params, ema_params=averages, opt_state=opt_state)
    return separate(divide(changed, phase.tree(), fixed_bn), mesh)


def gradient_norms(
    spec: ModelSpec, loss: LossSettings, variables: Variables, batches: Iterable[Mapping[str, Any]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Per path, the norm of the gradient of some batches together and that of the parameter: what a strategy may choose layers by."""
    network = Network(spec)

    @jax.jit
    def gradient(params: Tree, batch: Mapping[str, Any]) -> Tree:
        def total(params: Tree) -> Array:
            images = batch["images"].astype(jnp.float32) / 255
            heads, _ = network.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return compute_loss(heads, batch["boxes"], batch["mask"], spec, loss)[0]

        return jax.grad(total)(params)

    summed = None
    for batch in batches:
        found = gradient(variables["params"], {key: batch[key] for key in ("images", "boxes", "mask")})
        summed = found if summed is None else jax.tree.map(jnp.add, summed, found)
    return norms(summed or {}), norms(variables["params"])
