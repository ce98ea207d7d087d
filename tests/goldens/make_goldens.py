"""Writes the golden files of this folder by running the original.

In an environment of its own (Python 3.11; never a dependency of the project, never needed to pass the tests):

    pip install yolov5==7.0.14 torch==2.14.1 torchvision==0.29.1 "numpy<2.4" "setuptools<81"
    TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 python tests/goldens/make_goldens.py --data FOLDER [name ...]

``--data`` holds ``weights/yolov5n.pt`` and ``coco128/``; without names every file is written.
"""

import argparse
import random
import tempfile
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import oracle
import seeding
import torch
from oracle import FINETUNE, SCRATCH_LOW, Arrays, Timetable
from summary import Summary
from yolov5.utils import augmentations, dataloaders
from yolov5.utils.general import non_max_suppression, scale_boxes
from yolov5.utils.metrics import ConfusionMatrix, ap_per_class, bbox_iou
from yolov5.val import process_batch

FOLDER = Path(__file__).resolve().parent
SEED = 0
CLASSES = {"n": 80}  # of the networks with seeded weights; "n" and "real" can then share a compiled program
OTHER_CLASSES = 6
NETWORKS = ("n", "s", "m", "l", "x", "n6")
CONSTANT = ("large-batch.accumulate", "large-batch.steps")


def network(name: str, data: Path, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """``real`` is the published yolov5n (80 classes), every other name a size with seeded weights."""
    if name == "real":
        return oracle.pretrained(data / "weights" / "yolov5n.pt", dtype)
    return oracle.seeded(name, CLASSES.get(name, OTHER_CLASSES), SEED, dtype)


def write(name: str, content: Arrays) -> None:
    """One compressed file; refuses constant or empty figures."""
    for key, values in content.items():
        values = np.asarray(values)
        assert values.size, f"{name}: {key} is empty"
        if values.dtype.kind == "f":
            assert np.isfinite(values).all(), f"{name}: {key} is not finite"
            constant = values.size > 1 and np.ptp(values) == 0
            assert not constant or key in CONSTANT, f"{name}: {key} is constant"
    file = FOLDER / f"{name}.npz"
    np.savez_compressed(file, **content)
    print(f"{file.name}: {file.stat().st_size / 1e3:.0f} kB", flush=True)


def inference(name: str, data: Path) -> Arrays:
    """Decoded boxes in both precisions, every layer and head in float64, heads in float32; test-time augmentation once."""
    images = seeding.images(f"inference {name}", 1 if name in ("n", "real") else 2, 64)
    result: Arrays = {}
    for dtype, suffix in ((torch.float64, "64"), (torch.float32, "32")):
        model = network(name, data, dtype).eval()
        layers: Arrays = {}
        for index, layer in enumerate(model.model[:-1]):

            def keep(_: object, __: object, output: torch.Tensor, index: int = index, layers: Arrays = layers) -> None:
                layers[f"model_{index}"] = output.detach().permute(0, 2, 3, 1).contiguous().numpy()

            layer.register_forward_hook(keep)
        with torch.no_grad():
            boxes, raw = model(oracle.tensor(images, dtype))
        # The classes after the sigmoid tell nothing that the heads do not: one of them is enough.
        result[f"boxes{suffix}"] = boxes[..., :6].numpy()
        if suffix == "32":
            result |= {f"heads32.{level}": head for level, head in enumerate(oracle.heads(raw))}
        else:
            layers |= {f"level_{level}": head for level, head in enumerate(oracle.heads(raw))}
            result |= Summary.of(layers).store("layers")
            if name == "real":
                with torch.no_grad():
                    result["augmented"] = model(oracle.tensor(images, dtype), augment=True)[0][..., :6].numpy()
    return result


def training(name: str, data: Path) -> Arrays:
    """One training step: targets, loss parts, gradients, statistics after the forward pass, parameters after SGD."""
    model = network(name, data).train()
    size = 192 if name == "n6" else 64
    images = seeding.images(f"training {name}", 4, size)
    labels = torch.from_numpy(seeding.rows(*seeding.labels(f"training {name}", 4, model.model[-1].nc)))
    compute = oracle.loss_of(model, SCRATCH_LOW, size)
    raw = model(oracle.tensor(images))
    result = oracle.targets_of(compute, raw, labels)
    cells = np.concatenate([np.insert(result[f"cells{level}"], 0, level, 1) for level in range(len(raw))])
    assert len(np.unique(cells, axis=0)) < len(cells), "no two targets share a cell"
    total, parts = compute(raw, labels)
    total.backward()
    result["parts"] = np.array([*parts.tolist(), total.item()])
    gradients = oracle.paths({name: parameter.grad for name, parameter in model.named_parameters()})
    assert min(np.abs(gradient).max() for gradient in gradients.values()) > 0
    result |= Summary.of(gradients).store("gradients")
    result |= Summary.of(oracle.paths(dict(model.named_buffers()))).store("statistics")
    timetable = Timetable(SCRATCH_LOW, epochs=5, batches=10, batch_size=4)
    optimizer = timetable.optimizer(model)
    optimizer.param_groups[0]["lr"] = 0.05
    result["gradient_norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0).numpy()
    optimizer.step()
    result |= Summary.of(oracle.paths(dict(model.named_parameters()))).store("stepped")
    print(f"  loss {total.item():.4f}, gradient norm {result['gradient_norm']:.4f}, targets {len(cells)}")
    return result


def optimizers(_: str, __: Path) -> Arrays:
    """Some parameters after two steps of SGD, Adam and AdamW on seeded gradients, clipped in the second step only."""
    result: Arrays = {}
    for kind in ("SGD", "Adam", "AdamW"):
        model = network("n", Path())
        optimizer = Timetable(SCRATCH_LOW, epochs=5, batches=10, batch_size=4).optimizer(model, kind)
        some = {n: p for n, p in model.named_parameters() if n.startswith(("model.0.", "model.9.", "model.24."))}
        for step, scale in enumerate((1e-3, 1.0)):
            for name, parameter in some.items():
                path = oracle.names.to_path(name)[1]
                shape = oracle.names.to_jax(parameter.detach().numpy()).shape
                gradient = scale * seeding.uniform(seeding.generator("gradient", step, path), -1, 1, shape)
                parameter.grad = torch.from_numpy(oracle.names.to_torch(gradient))
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=10.0)
            assert (norm > 10) == (step == 1)
            optimizer.step()
        result |= Summary.of(oracle.paths(some)).store(kind)
    return result


def losses(_: str, __: Path) -> Arrays:
    """Loss parts and gradients at seeded heads for every setting of the loss; complete IoU of seeded pairs."""
    variants = {
        "plain": (SCRATCH_LOW, 6, 0.0),
        "no-labels": (SCRATCH_LOW, 6, 0.0),
        "one-class": (SCRATCH_LOW, 1, 0.0),
        "focal-weighted-smoothed": (FINETUNE | {"fl_gamma": 1.5}, 6, 0.1),
    }
    result: Arrays = {}
    for variant, (hyp, classes, smoothing) in variants.items():
        model = oracle.build("n", classes).double()
        compute = oracle.loss_of(model, hyp, 320, smoothing)
        boxes, mask = seeding.labels(variant, 3, classes)
        labels = torch.from_numpy(seeding.rows(boxes, mask & (variant != "no-labels")))
        raw = []
        for level, cells in enumerate((40, 20, 10)):
            values = seeding.uniform(
                seeding.generator("head", variant, level), -4, 2, (3, cells, cells, 3, 5 + classes)
            )
            raw.append(torch.from_numpy(values.transpose(0, 3, 1, 2, 4).copy()).requires_grad_())
        total, parts = compute(raw, labels)
        total.backward()
        result[f"{variant}.parts"] = np.array([*parts.tolist(), total.item()])
        gradients = oracle.heads([head.grad for head in raw])
        result |= Summary.of({f"level{level}": g for level, g in enumerate(gradients)}).store(f"{variant}.gradients")
    rng = seeding.generator("complete IoU")
    first = np.hstack([seeding.uniform(rng, -0.5, 1.5, (200, 2)), seeding.uniform(rng, 1e-3, 12, (200, 2))])
    second = np.hstack([seeding.uniform(rng, 0, 1, (200, 2)), seeding.uniform(rng, 0.05, 12, (200, 2))])
    first[0] = second[0]
    first[1, 2:] = 1e-4
    prediction = torch.from_numpy(first).requires_grad_()
    overlap = bbox_iou(prediction, torch.from_numpy(second), CIoU=True).squeeze()
    overlap.sum().backward()
    return result | {
        "iou.first": first, "iou.second": second, "iou.complete": overlap.detach().numpy(),
        "iou.gradient": prediction.grad.numpy(),
    }  # fmt: skip


def schedules(_: str, __: Path) -> Arrays:
    """Rates at every iteration of five epochs."""
    tables = {
        "linear": Timetable(SCRATCH_LOW, epochs=5, batches=40, batch_size=16),
        "cosine": Timetable(FINETUNE, epochs=5, batches=45, batch_size=24, cosine=True),
        "large-batch": Timetable(FINETUNE, epochs=5, batches=30, batch_size=100),
        "trajectory": TRAJECTORY,
    }
    return {f"{case}.{key}": value for case, table in tables.items() for key, value in table.table().items()}


# At 64 px the usual gains give gradients that are never clipped.
TRAJECTORY = Timetable(SCRATCH_LOW | {"box": 0.2, "cls": 2.0}, epochs=5, batches=10, batch_size=4)


def trajectory(name: str, data: Path) -> Arrays:
    """Fifty steps on ten fixed batches at freeze 0, 10 and 24, the BatchNorm of frozen layers as the original has it."""
    model = network(name.removeprefix("trajectory_"), data)
    batches = [
        (
            seeding.images(f"{name} {index}", TRAJECTORY.batch_size, 64),
            seeding.rows(*seeding.labels(f"{name} {index}", TRAJECTORY.batch_size, model.model[-1].nc)),
        )
        for index in range(TRAJECTORY.batches)
    ]
    result: Arrays = {}
    for layers in (0, 10, 24):
        run = oracle.train(model, TRAJECTORY, batches, layers)
        before = oracle.arrays(model)
        fixed = {path for path, values in run.model.items() if np.array_equal(values, before[path])}
        parameters = oracle.paths(dict(model.named_parameters()))
        assert fixed == {path for path in parameters if int(path.split("/")[0][6:]) < layers}
        assert run.norms.max() > 10 or layers == 24, "the clip never bites"
        result |= {f"{layers}.losses": run.losses, f"{layers}.updates": np.array(run.updates)}
        for part, tree in (("model", run.model), ("average", run.average)):
            moved = {path: values for path, values in tree.items() if path not in fixed}
            result |= Summary.of(moved).store(f"{layers}.{part}", np.float32)
        print(
            f"  freeze {layers}: loss {run.losses[0, 3]:.4f} to {run.losses[-1, 3]:.4f}, {run.updates} updates, "
            f"gradient norms {run.norms.min():.3f} to {run.norms.max():.3f}"
        )
    return result


def suppression(_: str, data: Path) -> Arrays:
    """Predictions of the published yolov5n on photos, and the boxes the original keeps under several settings."""
    model = network("real", data, torch.float32).eval()
    settings = {
        "validation": {"conf_thres": 0.001, "iou_thres": 0.6, "multi_label": True},
        "detection": {"conf_thres": 0.25, "iou_thres": 0.45, "max_det": 1000},
        "agnostic": {"conf_thres": 0.001, "iou_thres": 0.6, "agnostic": True, "multi_label": True},
        "classes": {"conf_thres": 0.05, "iou_thres": 0.45, "classes": [0, 2, 15]},
        "few": {"conf_thres": 0.01, "iou_thres": 0.6, "multi_label": True, "max_det": 7},
    }
    result: Arrays = {}
    files = sorted((data / "coco128" / "images").rglob("*.jpg"))
    for photo, file in enumerate(files[index] for index in (21, 43, 75, 101)):
        image, _, _ = augmentations.letterbox(cv2.imread(str(file)), 256, auto=False)
        with torch.no_grad():
            predictions = model(oracle.tensor(image[None, ..., ::-1], torch.float32))[0][0]
        # A class whose score can never reach .001 decides nothing: without them the golden is small.
        useful = predictions[:, 4:5] * predictions[:, 5:] > 0.001
        predictions[:, 5:] *= useful
        predictions = predictions[(predictions[:, 4] > 0.001) & useful.any(1)]
        result[f"{photo}.predictions"] = predictions.numpy()
        for setting, arguments in settings.items():
            result[f"{photo}.{setting}"] = non_max_suppression(predictions[None].clone(), **arguments)[0].numpy()
        single = torch.cat([predictions[:, :5], predictions[:, 5:].amax(1, keepdim=True)], 1)
        kept = non_max_suppression(single[None].clone(), conf_thres=0.001, iou_thres=0.6, multi_label=True)[0]
        result[f"{photo}.one-class"] = kept.numpy()
        native = (image.shape[0] * 2 + 30, image.shape[1] * 3)
        boxes = scale_boxes(image.shape[:2], torch.from_numpy(result[f"{photo}.validation"][:, :4].copy()), native)
        result[f"{photo}.scaled"] = boxes.numpy()
    return result


def detections(_: str, data: Path) -> Arrays:
    """What the published yolov5n finds in photos of 640x480 and 480x640, from the file to pixels of the photo."""
    model = network("real", data, torch.float32).eval()
    names, counts, rows = [], [], []
    for file in sorted((data / "coco128" / "images").rglob("*.jpg")):
        photo = cv2.imread(str(file))
        if sorted(photo.shape[:2]) != [480, 640]:
            continue
        image, _, _ = augmentations.letterbox(photo, 320, stride=32, auto=True)
        with torch.no_grad():
            predictions = model(oracle.tensor(image[None, ..., ::-1], torch.float32))[0]
        detections = non_max_suppression(predictions, conf_thres=0.01, iou_thres=0.45, max_det=1000)[0]
        detections[:, :4] = scale_boxes(image.shape[:2], detections[:, :4], photo.shape)
        names.append(file.name)
        counts.append(len(detections))
        rows.append(detections.numpy())
    return {"names": np.array(names), "counts": np.array(counts), "rows": np.concatenate(rows)}


def precision(_: str, __: Path) -> Arrays:
    """Matches, average precision and confusion matrix for random detections around random labels."""
    result: Arrays = {}
    for case, (classes, images, noise, extra) in {
        "easy": (3, 6, 0.03, 2), "hard": (5, 12, 0.12, 9), "one": (1, 4, 0.08, 3), "sparse": (12, 8, 0.08, 4),
    }.items():  # fmt: skip
        rng = seeding.generator("precision", case)
        matched, scored, wanted = [], [], []
        for image in range(images):
            count = 0 if image == 2 else 1 + int(8 * rng.random())
            corners = seeding.uniform(rng, 0, 400, (count, 2))
            truth = np.hstack([corners, corners + seeding.uniform(rng, 20, 200, (count, 2))])
            # The last class never occurs among the labels of "sparse" and the one before it is never detected.
            present = max(classes - (case == "sparse"), 1)
            category = np.floor(present * rng.random(count))
            copies = np.repeat(np.arange(count), 2)
            boxes = truth[copies] + noise * 100 * seeding.uniform(rng, -1, 1, (2 * count, 4))
            more = seeding.uniform(rng, 0, 400, (extra, 2))
            boxes = np.vstack([boxes, np.hstack([more, more + seeding.uniform(rng, 20, 200, (extra, 2))])])
            guess = np.concatenate([category[copies], np.floor(classes * rng.random(extra))])
            wrong = rng.random(len(guess)) < 0.2
            guess = np.where(wrong, np.floor(classes * rng.random(len(guess))), guess)
            detections = np.hstack([boxes, rng.random((len(guess), 1)), guess[:, None]]).astype(np.float32)
            if case == "sparse":
                detections = detections[guess != classes - 2]
            labels = np.hstack([category[:, None], truth]).astype(np.float32)
            correct = torch.zeros(len(detections), 10, dtype=torch.bool)
            if count:
                iouv = torch.linspace(0.5, 0.95, 10)
                correct = process_batch(torch.from_numpy(detections), torch.from_numpy(labels), iouv)
            matrix = ConfusionMatrix(nc=classes)
            matrix.process_batch(torch.from_numpy(detections), torch.from_numpy(labels))
            result |= {f"{case}.{image}.detections": detections, f"{case}.{image}.correct": correct.numpy()}
            result[f"{case}.{image}.confusion"] = matrix.matrix.astype(np.int32)
            if count:
                result[f"{case}.{image}.labels"] = labels
            matched.append(correct.numpy())
            scored.append(detections[:, 4:])
            wanted.append(labels[:, 0])
        stack, target = np.concatenate(scored), np.concatenate(wanted)
        figures = ap_per_class(np.concatenate(matched), stack[:, 0], stack[:, 1], target, names={})
        keys = ("true_positives", "false_positives", "precision", "recall", "f1", "average_precision", "classes")
        result |= {f"{case}.{key}": np.asarray(value) for key, value in zip(keys, figures, strict=True)}
        result |= {f"{case}.images": np.array(images), f"{case}.class_count": np.array(classes)}
    return {key: value for key, value in result.items() if value.size}


def geometry(_: str, __: Path) -> Arrays:
    """Letterbox, sizes of loaded images, random perspective with its draws written down, box filter, HSV."""
    result: Arrays = {}
    boxes = []
    for height, width in ((480, 640), (640, 480), (333, 500), (100, 37), (1, 9), (721, 1279), (64, 64)):
        for size in (64, 320, 640):
            for auto in (False, True):
                for enlarge in (False, True):
                    image = np.zeros((height, width, 3), np.uint8)
                    canvas, ratio, padding = augmentations.letterbox(image, size, auto=auto, scaleup=enlarge)
                    inside = np.argwhere((canvas == 0).all(2))
                    top, left = inside.min(0)
                    bottom, right = inside.max(0) + 1
                    row = [height, width, size, auto, enlarge, *canvas.shape[:2], top, left, bottom, right]
                    boxes.append([*row, *ratio, *padding])
    result["letterbox"] = np.array(boxes, np.float64)

    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        shapes = [(480, 640), (640, 480), (333, 500), (100, 37), (721, 1279), (11, 640), (426, 640)]
        for index, shape in enumerate(shapes):
            cv2.imwrite(f"{folder}/{index}.png", np.full((*shape, 3), index, np.uint8))
            Path(f"{folder}/{index}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
        for size in (64, 320, 416, 640):
            dataset = dataloaders.LoadImagesAndLabels(folder, img_size=size, workers=1)
            for index, shape in enumerate(shapes):
                _, native, resized = dataset.load_image(index)
                assert native == shape
                sizes.append([*shape, size, *resized])
    result["load_image"] = np.array(sizes, np.int32)

    rng = seeding.generator("geometry")
    image = seeding.images("perspective", 1, 64)[0]
    corners = seeding.uniform(rng, 0, 48, (9, 2))
    truth = np.hstack([np.floor(5 * rng.random((9, 1))), corners, corners + seeding.uniform(rng, 3, 16, (9, 2))])
    truth = truth.astype(np.float32)
    result |= {"perspective.image": image, "perspective.boxes": truth}
    cases = {
        "translate": {"degrees": 0, "translate": 0.1, "scale": 0.5, "shear": 0},
        "everything": {"degrees": 20, "translate": 0.2, "scale": 0.4, "shear": 8, "perspective": 0.001},
        "mosaic": {"degrees": 0.373, "translate": 0.245, "scale": 0.898, "shear": 0.602, "border": (-16, -16)},
    }
    for case, arguments in cases.items():
        draws: list[list[float]] = []

        def record(low: float, high: float, draws: list[list[float]] = draws) -> float:
            draws.append([low, high, low + (high - low) * float(rng.random())])
            return draws[-1][2]

        with mock.patch.object(random, "uniform", record):
            warped, moved = augmentations.random_perspective(image.copy(), truth.copy(), **arguments)
        result |= {f"perspective.{case}.image": warped, f"perspective.{case}.boxes": moved}
        result[f"perspective.{case}.draws"] = np.array(draws)

    before = np.hstack([corners, corners + seeding.uniform(rng, 1, 16, (9, 2))]).T
    after = before + seeding.uniform(rng, -7, 7, before.shape)
    result |= {"candidates.before": before, "candidates.after": after}
    for threshold in (0.1, 0.01):
        result[f"candidates.{threshold}"] = augmentations.box_candidates(before, after, area_thr=threshold)

    gains = np.array([0.015, 0.7, 0.4])
    bgr = np.ascontiguousarray(image[..., ::-1])
    draws_hsv = seeding.uniform(rng, -1, 1, (3,))
    with mock.patch.object(np.random, "uniform", return_value=draws_hsv):
        augmentations.augment_hsv(bgr, *gains)
    return result | {"hsv.gains": gains, "hsv.draws": draws_hsv, "hsv.image": bgr[..., ::-1]}


MAKERS = {
    **{f"inference_{name}": (inference, name) for name in (*NETWORKS, "real")},
    **{f"training_{name}": (training, name) for name in (*NETWORKS, "real")},
    **{f"trajectory_{name}": (trajectory, f"trajectory_{name}") for name in ("n", "real")},
    **{
        maker.__name__: (maker, maker.__name__)
        for maker in (optimizers, losses, schedules, suppression, detections, precision, geometry)
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write golden files by running the original.")
    parser.add_argument("--data", type=Path, required=True, help="folder with weights/yolov5n.pt and coco128/")
    parser.add_argument("names", nargs="*", choices=[[], *MAKERS], help="files to write; default: all")
    arguments = parser.parse_args()
    for name in arguments.names or MAKERS:
        maker, argument = MAKERS[name]
        wide = maker not in (suppression, detections, precision, geometry)
        with oracle.precision(torch.float64 if wide else torch.float32):
            write(name, maker(argument, arguments.data))


if __name__ == "__main__":
    main()
