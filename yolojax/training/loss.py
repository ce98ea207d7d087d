"""The training loss: boxes (complete IoU), objectness and classes (binary cross-entropy); and its gradient, on one device or on the share of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.training.dynamic_scale import DynamicScale
from jax import Array
from jax.sharding import Mesh

from yolojax.exchange import Exchange, give, on_shares, varying
from yolojax.freezing.signals import norms
from yolojax.hyperparameters import Hyperparameters
from yolojax.mesh import AXIS, put_batch
from yolojax.model.boxes import boxes_in_cells, complete_iou
from yolojax.model.images import normalise
from yolojax.model.network import Network, Variables
from yolojax.model.spec import ModelSpec
from yolojax.training.state import Resting, WholeState, moving_statistics
from yolojax.training.targets import Targets, build_targets
from yolojax.tree import Tree, merge, partition
from yolojax.weights.teacher import Distillation

_LEAST_SURE = 0.01  # below it a teacher sees nothing


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Weights and options of the loss.

    Attributes:
      box: gain of the box part, already scaled to the number of levels; likewise ``obj`` and ``cls``.
      cls_pw: weight of positive examples in the class part; ``obj_pw`` in the objectness part.
      anchor_t: greatest ratio of the sides of a box and a matching anchor.
      label_smoothing: ε; class labels become 1 − ε/2 and ε/2.
      fl_gamma: γ of the focal loss; 0 is plain cross-entropy.
      distillation: what a teacher adds, where there is one.
    """

    box: float = 0.05
    obj: float = 1.0
    cls: float = 0.5
    cls_pw: float = 1.0
    obj_pw: float = 1.0
    anchor_t: float = 4.0
    label_smoothing: float = 0.0
    fl_gamma: float = 0.0
    distillation: Distillation | None = None

    @classmethod
    def from_hyperparameters(
        cls,
        hyp: Hyperparameters,
        spec: ModelSpec,
        image_size: int,
        label_smoothing: float = 0.0,
        distillation: Distillation | None = None,
    ) -> LossSettings:
        """Scale the gains of a hyperparameter file to a model and an image size.

        The file gives them for 80 classes, three levels and 640 px. Source: ``docs/yolov5.md`` §0.6.
        """
        scale = 3 / len(spec.networks[0].anchors)
        return cls(
            box=hyp.box * scale,
            obj=hyp.obj * (image_size / 640) ** 2 * scale,
            cls=hyp.cls * spec.classes / 80 * scale,
            cls_pw=hyp.cls_pw,
            obj_pw=hyp.obj_pw,
            anchor_t=hyp.anchor_t,
            label_smoothing=label_smoothing,
            fl_gamma=hyp.fl_gamma,
            distillation=distillation,
        )


def compute_loss(
    heads: Sequence[Array],
    boxes: Array,
    mask: Array,
    spec: ModelSpec,
    settings: LossSettings,
    valid: Array | None = None,
    axis: str | None = None,
    taught: Sequence[Array] | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Loss of a batch.

    Args:
      heads: per level raw logits ``(B, ny, nx, A, 5 + classes)``.
      boxes: ``(B, M, 5)`` float: class, then centre, width and height as fractions of the image.
      mask: ``(B, M)`` bool, which rows are boxes.
      spec: gives the anchors and strides.
      settings: gains and options.
      valid: ``(B,)`` bool, the images that count; all by default.
      axis: inside ``shard_map``, the axis of the mesh over which a batch is divided into equal shares, of which this is one. What is returned is then
        its share of the loss of the whole batch: their sum over the devices is that loss. (Not with ``valid``.)
      taught: the heads of the teacher that ``settings.distillation`` describes, for the same images. (Not with ``valid``.)

    Returns:
      The sum of the parts times the number of images that count, and the parts ``box``, ``obj``, ``cls`` (with a teacher also ``distil``) with their
      gains; scalars in the dtype of the heads. Where the network has several Detects, the sum of what each has on the boxes of its classes.

    Source: ``docs/yolov5.md`` §1.4.
    """
    if spec.branches:
        return _branches_loss(heads, boxes, mask, spec, settings, valid, axis)
    # In double precision all of it is, the arctangents of the boxes' own shapes too.
    boxes = boxes.astype(heads[0].dtype)
    if valid is not None:
        mask = mask & valid[:, None]
    box, obj, cls = jnp.zeros((3,), heads[0].dtype)
    for head, anchors, stride, weight in zip(heads, spec.anchors, spec.strides, _balance(heads), strict=False):
        shapes = np.asarray(anchors) / stride
        _, ny, nx, _, _ = head.shape
        targets = build_targets(boxes, mask, shapes, (ny, nx), settings.anchor_t)
        level_box, level_obj, level_cls = _level_loss(head, targets, shapes, settings, valid, axis)
        box, obj, cls = box + level_box, obj + level_obj * weight, cls + level_cls
    parts = {"box": box * settings.box, "obj": obj * settings.obj, "cls": cls * settings.cls}
    if taught is not None and settings.distillation is not None:
        parts["distil"] = _distillation_loss(heads, taught, spec, settings, settings.distillation, axis)
    images = heads[0].shape[0] * (jax.lax.axis_size(axis) if axis else 1)
    return sum(parts.values()) * (images if valid is None else valid.sum()), parts


def _branches_loss(
    heads: Sequence[Array],
    boxes: Array,
    mask: Array,
    spec: ModelSpec,
    settings: LossSettings,
    valid: Array | None,
    axis: str | None,
) -> tuple[Array, dict[str, Array]]:
    losses = []
    for own, network, labels in zip(spec.split(heads), spec.networks, spec.branches, strict=True):
        numbers = np.full(spec.classes, -1)
        numbers[list(labels)] = np.arange(len(labels))
        label = jnp.asarray(numbers)[boxes[..., 0].astype(jnp.int32)]
        relabelled = jnp.concatenate([label[..., None].astype(boxes.dtype), boxes[..., 1:]], -1)
        gains = replace(settings, cls=settings.cls * network.classes / spec.classes)
        losses.append(compute_loss(own, relabelled, mask & (label >= 0), network, gains, valid, axis))
    totals, parts = zip(*losses, strict=True)
    return sum(totals), jax.tree.map(lambda *values: sum(values), *parts)


def _level_loss(
    head: Array,
    targets: Targets,
    anchors: np.ndarray,
    settings: LossSettings,
    valid: Array | None,
    axis: str | None,
) -> tuple[Array, Array, Array]:
    batch, _, columns, count, channels = head.shape
    rows = head.reshape(batch, -1, channels)
    held = targets.mask.reshape(batch, -1)
    cells = targets.cells[..., 1] * columns + targets.cells[..., 0]
    places = (cells[:, :, None] * count + np.arange(count)[:, None]).reshape(batch, -1)

    # Slots that do not hold get a place outside: they read zeros, and in the gradient, where all would meet in one cell, their adds are dropped.
    places = jnp.where(held, places, rows.shape[1])
    matched = jnp.take_along_axis(rows, places[..., None], 1, mode="fill", fill_value=0)
    wanted = jnp.broadcast_to(targets.boxes[:, :, None], (*targets.mask.shape, 4)).reshape(batch, -1, 4)
    wanted = jnp.where(held[..., None], wanted, 1)
    shapes = np.broadcast_to(anchors[:, None], (*targets.mask.shape[1:], 2)).reshape(-1, 2)
    iou = complete_iou(boxes_in_cells(matched, shapes), wanted)
    box = _masked_mean(1 - iou, held, axis)

    overlap = _last_written(jax.lax.stop_gradient(jnp.maximum(iou, 0)), places, rows.shape[1])
    everywhere = _cross_entropy(rows[..., 4], overlap.astype(head.dtype), settings.obj_pw, settings.fl_gamma)
    obj = (
        everywhere.mean()
        if valid is None
        else _masked_mean(everywhere, jnp.broadcast_to(valid[:, None], everywhere.shape))
    )
    obj = obj / jax.lax.axis_size(axis) if axis else obj

    classes = channels - 5
    if classes == 1:
        return box, obj, jnp.zeros_like(box)
    labels = jnp.broadcast_to(targets.classes[:, None, None], targets.mask.shape).reshape(batch, -1)
    off = settings.label_smoothing / 2
    truth = jnp.where(labels[..., None] == np.arange(classes), 1 - off, off).astype(head.dtype)
    cls = _cross_entropy(matched[..., 5:], truth, settings.cls_pw, settings.fl_gamma).mean(-1)
    return box, obj, _masked_mean(cls, held, axis)


def _balance(heads: Sequence[Array]) -> tuple[float, ...]:
    """Weights of the objectness of the levels."""
    return (4.0, 1.0, 0.4) if len(heads) == 3 else (4.0, 1.0, 0.25, 0.06, 0.02)


def _distillation_loss(
    heads: Sequence[Array],
    taught: Sequence[Array],
    spec: ModelSpec,
    settings: LossSettings,
    distillation: Distillation,
    axis: str | None,
) -> Array:
    """The loss with what a teacher predicts in place of labels; a cell counts as much as the teacher is sure of an object of a class that both know.

    Source: Mehta and Ozturk 2018 (arXiv:1805.06361), objectness scaled distillation, with this network's own losses; old classes alone as in Shmelkov et al.
    2017 (arXiv:1708.06977). There all cells count for objectness; here the teacher has no say where it sees nothing, because that may be of a new class.
    """
    own, of_teacher = np.array(distillation.classes).T
    box, obj, cls = jnp.zeros((3,), heads[0].dtype)
    devices = jax.lax.axis_size(axis) if axis else 1
    for head, teacher, anchors, stride, weight in zip(
        heads, taught, spec.anchors, spec.strides, _balance(heads), strict=False
    ):
        objectness, classes = jax.nn.sigmoid(teacher[..., 4]), jax.nn.sigmoid(teacher[..., 5 + of_teacher])
        sure = objectness * classes.max(-1)
        held = sure > _LEAST_SURE
        sure = jnp.where(held, sure, 0)
        shapes = np.asarray(anchors) / stride
        # Where nothing is held, sides may be 0, and the gradient of a shape that is no number would be none either.
        boxes = (jnp.where(held[..., None], boxes_in_cells(logits, shapes), 1) for logits in (head, teacher))
        box += _weighted_mean(1 - complete_iou(*boxes), sure, axis)
        everywhere = _cross_entropy(head[..., 4], objectness, settings.obj_pw, settings.fl_gamma)
        obj += (everywhere * sure).mean() / devices * weight
        if spec.classes > 1:
            each = _cross_entropy(head[..., 5 + own], classes, settings.cls_pw, settings.fl_gamma)
            cls += _weighted_mean(each.sum(-1) / spec.classes, sure, axis)
    return distillation.gain * (box * settings.box + obj * settings.obj + cls * settings.cls)


def _weighted_mean(values: Array, weights: Array, axis: str | None) -> Array:
    """Mean by weight, of at least 1 in all. With ``axis``, this device's share of the mean over all of it."""
    total, weight = (values * weights).sum(), weights.sum()
    weight = jax.lax.psum(weight, axis) if axis else weight
    return total / jnp.maximum(weight, 1)


def _masked_mean(values: Array, mask: Array, axis: str | None = None) -> Array:
    """Mean of the values where ``mask`` is true; 0 where none is. With ``axis``, this device's share of the mean over all of it."""
    total, count = jnp.where(mask, values, 0).sum(), mask.sum()
    count = jax.lax.psum(count, axis) if axis else count
    return total / jnp.maximum(count, 1).astype(values.dtype)


def _last_written(values: Array, places: Array, length: int) -> Array:
    """Write ``values`` ``(B, S)`` to their places in ``(B, length)`` zeros; those at ``length`` are dropped. Where several share a place the last one stays.

    The original's indexed assignment leaves the winner open; here it is always the last in the original's order
    (``docs/yolov5.md`` §0.7).
    """
    slots = jnp.arange(places.shape[1], dtype=jnp.int32)

    def last_slot(places: Array) -> Array:
        return jnp.full((length,), -1, jnp.int32).at[places].max(slots, mode="drop")

    winner = jax.vmap(last_slot)(places)
    return jnp.where(winner >= 0, jnp.take_along_axis(values, winner, 1, mode="clip"), 0)


def _cross_entropy(logits: Array, labels: Array, positive_weight: float, gamma: float) -> Array:
    """Binary cross-entropy per element, focal (α = .25, arXiv:1708.02002) where ``gamma`` is above 0."""
    weight = 1 + (positive_weight - 1) * labels
    loss = (1 - labels) * logits + weight * jax.nn.softplus(-logits)
    if gamma > 0:
        probability = jax.nn.sigmoid(logits)
        missed = labels * (1 - probability) + (1 - labels) * probability
        loss = loss * (labels * 0.25 + (1 - labels) * 0.75) * missed**gamma
    return loss


class Gradient(NamedTuple):
    """What a batch says.

    Attributes:
      loss: times the batch size.
      parts: of the loss, by name.
      batch_stats: statistics that move, after the batch.
      gradients: of what trains.
      loss_scale: for the next batch; None where the loss is not scaled.
      counts: whether no gradient left float16.
    """

    loss: Array
    parts: dict[str, Array]
    batch_stats: Tree
    gradients: Tree
    loss_scale: DynamicScale | None
    counts: Array | bool


def make_gradient(
    network: Network, loss: LossSettings, mesh: Mesh | None, exchange: Exchange
) -> Callable[[WholeState, Resting, Mapping[str, Any], tuple[int, int] | None], Gradient]:
    """The function ``(moving, resting, batch, size) -> Gradient`` of a step; arguments as of ``step.make_train_step``."""
    shared = mesh is not None and mesh.size > 1
    axis = AXIS if shared and exchange.sync_bn else None
    network = network.clone(axis=axis)
    teacher = None if loss.distillation is None else Network(loss.distillation.spec, dtype=network.dtype)

    def share(
        params: Tree, statistics: Tree, scale: DynamicScale | None, resting: Resting, batch: Any, size: Any
    ) -> Gradient:
        dtype = jnp.result_type(*jax.tree.leaves(params))
        inputs = batch["features"] if network.start else _network_images(batch["images"], dtype, size)
        resting = varying(resting) if shared else resting
        before = merge(statistics, resting.batch_stats)
        taught: Any = None if teacher is None else teacher.apply(resting.teacher or {}, inputs)

        def forward(learned: Tree) -> tuple[Array, tuple[dict[str, Array], Tree]]:
            learned = give(jnp.dtype(exchange.gradient_sum), learned) if shared else learned
            variables = {"params": merge(learned, resting.params), "batch_stats": before}
            heads, mutated = network.apply(variables, inputs, train=True, mutable=["batch_stats"])
            total, parts = compute_loss(
                heads, batch["boxes"], batch["mask"], network.spec, loss, axis=axis, taught=taught
            )
            return total, (parts, mutated["batch_stats"])

        counts: Array | bool = True
        if scale is None:
            (total, (parts, after)), gradients = jax.value_and_grad(forward, has_aux=True)(params)
        else:
            scale, counts, (total, (parts, after)), gradients = scale.value_and_grad(forward, has_aux=True)(params)
        after, _ = partition(after, moving_statistics(after, network.fixed_bn))
        if shared:
            total = jax.lax.psum(total, AXIS)
            parts = jax.lax.psum(parts, AXIS) if axis else jax.lax.pmean(parts, AXIS)
            after = after if axis else jax.lax.pmean(after, AXIS)
        return Gradient(total, parts, after, gradients, scale, counts)

    def whole(moving: WholeState, resting: Resting, batch: Mapping[str, Any], size: tuple[int, int] | None) -> Gradient:
        function: Callable[..., Gradient] = partial(share, size=size)
        function = on_shares(function, mesh) if mesh is not None and shared else function
        return function(moving.params, moving.batch_stats, moving.loss_scale, resting, dict(batch))

    return whole


def _network_images(images: Array, dtype: Any, size: tuple[int, int] | None) -> Array:
    """Bytes to 0…1, resized bilinearly if a size is given."""
    scaled = normalise(images, dtype)
    if size is None or size == images.shape[1:3]:
        return scaled
    return jax.image.resize(scaled, (len(images), *size, 3), "linear", antialias=False)


def gradient_norms(
    spec: ModelSpec, loss: LossSettings, variables: Variables, batches: Iterable[Mapping[str, Any]], mesh: Mesh
) -> tuple[dict[str, float], dict[str, float]]:
    """Per path, the norm of the gradient of some batches together and that of the parameter: what a strategy may choose layers by.

    Every process gives its part of the batches; the norms are those of whole ones, and the same in all.
    """
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
        placed = put_batch({key: batch[key] for key in ("images", "boxes", "mask")}, mesh)
        batch_gradient = gradient(variables["params"], placed)
        summed = batch_gradient if summed is None else jax.tree.map(jnp.add, summed, batch_gradient)
    return norms(summed or {}), norms(variables["params"])
