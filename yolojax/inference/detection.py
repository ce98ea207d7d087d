"""Detection over many sources: what ``yolojax detect`` does."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from jax.sharding import SingleDeviceSharding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from yolojax.data.sample import ImageError, Pixels
from yolojax.inference.detector import Detector
from yolojax.inference.results import Detections
from yolojax.inference.sinks import Sink
from yolojax.inference.sources import Source, Video

log = logging.getLogger(__name__)

_PROBED = 1000  # photos whose shapes are looked at beforehand
_NAMED = 6  # classes that the line of a video names


@dataclass(frozen=True, eq=False, kw_only=True)
class Frame:
    """One image, or one frame of a video; ``number`` counts the frames of its file from 1."""

    source: Source
    image: Pixels
    number: int | None = None
    video: Video | None = None


@dataclass
class Totals:
    """What was done.

    Attributes:
      images: images looked at.
      frames: frames of videos looked at.
      counts: detections of each class, by name.
      problems: a sentence for each source that could not be read, or not to its end.
    """

    images: int = 0
    frames: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        """Report something that was left out, now and at the end."""
        self.problems.append(text)
        log.warning(text)


def detect_all(
    detector: Detector, sources: Sequence[Source], make_sink: Callable[[], Sink], totals: Totals, stride: int = 1
) -> Totals:
    """Look at everything; a source that cannot be read is reported, and the others are done.

    Ctrl-C ends a camera or a stream; what was written until then is complete.

    Args:
      detector: what looks.
      sources: what to look at, in this order.
      make_sink: is called when there is something to write.
      totals: counts on.
      stride: of the frames of videos.

    Returns:
      The totals.
    """
    sink: Sink | None = None
    console = _Console(sources)
    buckets = detector.buckets(_photo_sizes(sources))
    shapes = [(detector.batch_size, *bucket, 3) for bucket in buckets]
    try:
        with console.bars, detector.predict.compiled_ahead(shapes, SingleDeviceSharding(detector.device), sized=True):
            frames = _frames(sources, stride, totals)
            while chunk := list(islice(frames, detector.batch_size)):
                started, compiled_before = time.perf_counter(), len(detector.stopwatch.shapes)
                photos = all(frame.video is None for frame in chunk)  # all frames of a video have one shape
                all_rows = detector.detect([frame.image for frame in chunk], buckets if photos else None)
                milliseconds = 1000 * (time.perf_counter() - started) / len(chunk)
                compiled = len(detector.stopwatch.shapes) > compiled_before
                sink = sink or make_sink()
                for frame, rows in zip(chunk, all_rows, strict=True):
                    detections = detector.describe(frame.image, rows, frame.source.name)
                    sink.write(frame.source, detections, frame.number, frame.video.rate if frame.video else 0)
                    totals.images += frame.video is None
                    totals.frames += frame.video is not None
                    totals.counts.update(detections.labels)
                    console.show(frame, detections, milliseconds, compiled)
            console.end_video()
    except KeyboardInterrupt:
        if not any(source.kind == "live" for source in sources):
            raise
        console.end_video()
    finally:
        if sink is not None:
            sink.close()
    return totals


def _photo_sizes(sources: Iterable[Source]) -> Iterator[tuple[int, int]]:
    """(height, width) of the first photos, as their files say; of those that can be read."""
    for source in islice((source for source in sources if source.kind == "image"), _PROBED):
        with suppress(ImageError):
            yield source.size()


def _frames(sources: Iterable[Source], stride: int, totals: Totals) -> Iterator[Frame]:
    """Everything that can be read."""
    for source in sources:
        try:
            if source.kind == "image":
                yield Frame(source=source, image=source.read())
                continue
            video = Video(source, stride)
            try:
                for number, image in video:
                    yield Frame(source=source, image=image, number=number, video=video)
            finally:
                video.close()
        except ImageError as error:
            totals.problem(f"{source.name}: {error}")


class _Console:
    """A line for each image and each video; on a terminal also a bar for the video that is running."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.places = {source: place for place, source in enumerate(sources, 1)}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bars = Progress(*columns, transient=True)
        self.bars.disable = not self.bars.console.is_terminal
        self.source: Source | None = None
        self.bar = TaskID(0)

    def show(self, frame: Frame, detections: Detections, milliseconds: float, compiled: bool) -> None:
        if frame.video is None:
            self.end_video()
            with_what = " with compiling" if compiled else ""
            log.info("%s%s, %.0f ms%s", self._place(frame.source), detections, milliseconds, with_what)
            return
        if frame.source != self.source:
            self.end_video()
            self.source, self.counts, self.times = frame.source, Counter[str](), list[float]()
            self.size = f"{frame.image.shape[1]}x{frame.image.shape[0]}"
            total = frame.video.expected // frame.video.stride or None
            self.bar = self.bars.add_task(f"{self._place(frame.source)}{frame.source.name}", total=total)
        self.counts.update(detections.labels)
        self.times.append(milliseconds)
        self.bars.advance(self.bar)

    def end_video(self) -> None:
        if self.source is not None:
            counted = ", ".join(f"{count}× {name}" for name, count in self.counts.most_common(_NAMED)) or "nothing"
            if len(self.counts) > _NAMED:
                counted += ", and others"
            middle = sorted(self.times)[len(self.times) // 2]
            text = "%s%s: %d frames of %s px, in all %s, %.0f ms per frame"
            where: tuple[Any, ...] = (self._place(self.source), self.source.name)
            log.info(text, *where, len(self.times), self.size, counted, middle)
            self.bars.remove_task(self.bar)
            self.source = None

    def _place(self, source: Source) -> str:
        return f"[{self.places[source]}/{len(self.places)}] " if len(self.places) > 1 else ""
