"""Parts about bits: the same gradients as on the CPU, frozen leaves that stay, runs that repeat."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.bench import CLASSES, ROWS, Bench, half_precision, make_bench, network_of, row, same_bits
from benchmarks.batch import batch_of
from yolojax.hyperparameters import Hyperparameters
from yolojax.model.images import normalise
from yolojax.model.network import Network, init_variables
from yolojax.training.loss import LossSettings, compute_loss
from yolojax.tree import flatten

STEPS = 20
# Relative errors that pass: of the loss, of the norm of the gradient.
LIMITS = {"highest": (1e-5, 1e-5), "default": (1e-3, 5e-3), "narrow": (1e-2, 5e-2)}


def parity(case: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Loss, its parts and every leaf of the gradient beside those of the CPU in float32."""
    spec, narrow = network_of(case), half_precision()
    loss = LossSettings.from_hyperparameters(Hyperparameters(), spec, case["size"])
    batch = batch_of(case["batch"], case["size"], CLASSES, ROWS)
    variables = jax.device_get(init_variables(spec, jax.random.key(0)))

    def computed(device: jax.Device, precision: str, dtype: str) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        network = Network(spec, dtype=jnp.dtype(dtype))

        def total(params: Any, variables: Any, batch: Any) -> Any:
            images = normalise(batch["images"], jnp.dtype("float32"))
            heads, _ = network.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return compute_loss(heads, batch["boxes"], batch["mask"], spec, loss)

        with jax.default_matmul_precision(precision):
            placed, images = jax.device_put((variables, batch), device)
            (value, parts), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(
                placed["params"], placed, images
            )
        figures = {name: float(part) for name, part in {"loss": value, **parts}.items()}
        return figures, {path: np.asarray(leaf, np.float64) for path, leaf in flatten(jax.device_get(gradient)).items()}

    expected, reference = computed(jax.devices("cpu")[0], "highest", "float32")
    norm = _norm(reference)
    for name, precision, dtype in (
        ("highest", "highest", "float32"),
        ("default", "default", "float32"),
        ("narrow", "default", narrow),
    ):
        losses, gradient = computed(jax.devices()[0], precision, dtype)
        off = {part: abs(losses[part] - value) / abs(value) for part, value in expected.items()}
        norm_off = abs(_norm(gradient) - norm) / norm
        apart = _norm({path: leaf - reference[path] for path, leaf in gradient.items()}) / norm
        leaves = {
            path: float(np.abs(leaf - reference[path]).max() / np.abs(reference[path]).max())
            for path, leaf in gradient.items()
        }
        worst = max(leaves, key=leaves.__getitem__)
        loss_limit, norm_limit = LIMITS[name]
        yield row(
            f"{dtype}, precision {precision}, against float32 on the CPU",
            f"loss {off['loss']:.1e}, norm of the gradient {norm_off:.1e}, their difference {apart:.1e}; worst leaf {leaves[worst]:.1e} ({worst})",
            limit=f"loss {loss_limit:g}, norm {norm_limit:g}",
            passes=bool(off["loss"] <= loss_limit and norm_off <= norm_limit),
            loss_parts=off,
            norm_error=norm_off,
            gradient_error=apart,
            leaves=leaves,
        )


def _norm(tree: Mapping[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.square(leaf).sum() for leaf in tree.values())))


def frozen(case: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Some steps; frozen leaves and their averages keep every bit and have no state, trained ones all get a gradient."""
    bench = make_bench({**case, "dtype": half_precision()})
    names = ("params", "ema_params", "batch_stats", "ema_batch_stats")
    before = {
        name: flatten(tree) for name, tree in jax.device_get(bench.state.whole)._asdict().items() if name in names
    }
    program = bench.lower().compile()
    jax.block_until_ready(bench.run(program, STEPS))
    after = {name: flatten(tree) for name, tree in jax.device_get(bench.state.whole)._asdict().items() if name in names}

    held: dict[str, bool] = {}  # paths with a state of the optimizer, and whether it has a number in it
    for place, state in jax.tree_util.tree_flatten_with_path(jax.device_get(bench.state.moving.opt_state))[0]:
        held[_names(place)] = held.get(_names(place), False) or bool(np.any(state))
    moved: list[str] = []
    still: list[str] = []
    for name, leaves in before.items():
        for path, leaf in leaves.items():
            trains = bench.phase.trains(path) if "params" in name else path.rpartition("/")[0] not in bench.fixed
            same = same_bits(leaf, after[name][path])
            if not trains and not same:
                moved.append(f"{name}/{path}")
            # A small gradient may be rounded away where it is added to a 1; it is in the optimizer's state then.
            if trains and same and not held.get(path):
                still.append(f"{name}/{path}")
    kept = {path for path in before["params"] if not bench.phase.trains(path)}
    states = sorted(kept & set(held))
    yield row(
        f"{STEPS} steps, freeze {case['freeze']}, {case['frozen_bn']}, {case['optimizer']}, {half_precision()}",
        f"{len(kept)} frozen leaves: {len(moved)} moved; {len(before['params']) - len(kept)} trained: {len(still)} stayed; "
        f"{len(states)} states of frozen leaves",
        limit="0, 0, 0",
        passes=not moved and not still and not states and bool(kept),
        moved=moved,
        still=still,
        states=states,
    )


def _names(place: tuple[Any, ...]) -> str:
    """The path of the parameter that an array of the optimizer's state belongs to."""
    keys = [str(part.key) for part in place if isinstance(part, jax.tree_util.DictKey)]
    return "/".join(keys[next((n for n, key in enumerate(keys) if key.startswith("model_")), len(keys)) :])


def determinism(case: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The same steps on crowded boxes three times, the third in a process of its own: are the parameters the same to the bit?"""
    bench = make_bench({**case, "dtype": half_precision(), "crowded": True})
    program, start = bench.lower().compile(), jax.device_get(bench.state)
    first = _digest(bench, program)
    if case.get("once"):
        yield row("in a process of its own", first, digest=first)
        return
    bench.state = jax.device_put(start, bench.sharding)
    second = _digest(bench, program)
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.accelerator", "--case", json.dumps({**case, "once": True})],
        capture_output=True,
        text=True,
    )
    if run.returncode:
        raise RuntimeError(run.stderr[-2000:])
    third = json.loads(run.stdout.splitlines()[-1])["digest"]
    here, there = first == second, first == third
    yield row(
        f"{STEPS} steps twice, " + ("deterministic operations only" if case["deterministic"] else "as it is"),
        f"in one process {_same(here)}, in another {_same(there)}",
        limit="the same" if case["deterministic"] else "",
        passes=here and there if case["deterministic"] else None,
        same_process=here,
        other_process=there,
    )


def _same(equal: bool) -> str:
    return "the same bits" if equal else "other bits"


def _digest(bench: Bench, program: Any) -> str:
    jax.block_until_ready(bench.run(program, STEPS))
    sums = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(bench.state.moving.params)):
        sums.update(np.asarray(leaf).tobytes())
    return sums.hexdigest()
