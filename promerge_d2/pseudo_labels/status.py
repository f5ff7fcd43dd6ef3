"""Progress of a run: a bar on a terminal, a line now and then in a log, ``status.json``."""

from __future__ import annotations

import datetime
import logging
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import write_json

logger = logging.getLogger(__name__)

INTERVAL = 30.0  # seconds between lines of a log, and between writes of status.json


class ProgressReporter:
    """Counts images and reports how far the work is.

    Args:
        status: ``status.json``, rewritten every interval.
        total: images to do, those done before included.
        done: of them before this run.
        on_interval: called every interval too, such as to flush files.
    """

    def __init__(
        self, status: Path, total: int, done: int, on_interval: Callable[[], None]
    ) -> None:
        self._status = status
        self._total = total
        self._before = self._done = done
        self._masks = self._failures = 0
        self._on_interval = on_interval
        self._started = self._reported = time.monotonic()
        self._bar = tqdm(
            total=total, initial=done, desc="labelling", unit="image", disable=not _terminal()
        )
        self._write("running")

    def count_image(self, masks: int | None) -> None:
        """Count an image with so many masks; None is a failure."""
        self._done += 1
        self._masks += masks or 0
        self._failures += masks is None
        self._bar.update()
        if time.monotonic() - self._reported >= INTERVAL:
            self._reported = time.monotonic()
            self._on_interval()
            status = self._write("running")
            self._bar.set_postfix_str(
                f"{status['masks_per_image']} masks an image, {self._failures} failed"
            )
            if self._bar.disable:
                logger.info("%s", _line(status))

    def close(self, state: str) -> None:
        """Write the last status: ``finished``, ``stopped`` or ``failed``."""
        self._bar.close()
        status = self._write(state)
        if self._bar.disable:
            logger.info("%s: %s", state, _line(status))

    def _write(self, state: str) -> dict:
        seconds = time.monotonic() - self._started
        new = self._done - self._before
        good = new - self._failures
        status = {
            "state": state,
            "images": self._total,
            "done": self._done,
            "done_before": self._before,
            "failed": self._failures,
            "images_per_second": round(new / seconds, 3) if new else None,
            "seconds_left": round((self._total - self._done) * seconds / new) if new else None,
            "masks_per_image": round(self._masks / good, 2) if good else None,
            "process": os.getpid(),
            "host": platform.node(),
            "written": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        try:
            write_json(self._status, status, indent=1)
        except (OSError, UserError) as error:  # the labels matter more
            logger.warning("cannot write %s: %s", self._status, error)
        return status


def _terminal() -> bool:
    return sys.stderr.isatty()


def _line(status: dict) -> str:
    text = f"{status['done']} of {status['images']} images"
    if status["images_per_second"] is None:
        return text
    left = datetime.timedelta(seconds=status["seconds_left"])
    return (
        f"{text}, {status['images_per_second']:.3g} images/s, {left} left, "
        f"{status['masks_per_image'] or 0} masks an image, {status['failed']} failed"
    )
