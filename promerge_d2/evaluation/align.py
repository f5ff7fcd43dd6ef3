"""Align predictions with a ground truth: find each predicted image in it, by id or file name."""

from __future__ import annotations

import dataclasses
import logging
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass

from promerge_d2.coco.ground_truth import GroundTruth
from promerge_d2.coco.predictions import PredictionFile, on_images
from promerge_d2.coco.records import ImageId, ImageInfo, name_key
from promerge_d2.coco.table import InstanceTable
from promerge_d2.utils.errors import UserError

logger = logging.getLogger(__name__)

MATCH_MODES = ("auto", "id", "file_name")

_EXAMPLES = 5  # how many images a message names
_COCO_PREFIX = re.compile(r"^COCO_[a-z]+\d{4}_")  # of COCO 2014 and LVIS v0.5


class NoCommonImageError(UserError):
    """Not one predicted image is in the ground truth."""


@dataclass(frozen=True)
class Predictions:
    """Predictions whose images are those of a ground truth.

    Attributes:
        name: the file, for messages.
        instances: in the order of the file, which decides among equal scores of an image.
        listed: ids of the ground-truth images that the file lists, with predictions or without.
        unknown: the predicted images that the ground truth does not have; they are ignored.
        crowds_dropped: how many crowd records were left out.
    """

    name: str
    instances: InstanceTable
    listed: set[ImageId]
    unknown: list[str]
    crowds_dropped: int

    def restricted_to(self, image_ids: set[ImageId]) -> Predictions:
        """Return the predictions on the images ``image_ids`` only."""
        instances = self.instances.on_images(image_ids)
        return dataclasses.replace(self, instances=instances, listed=self.listed & image_ids)


def align_predictions(
    file: PredictionFile, ground_truth: GroundTruth, match: str = "auto"
) -> Predictions:
    """Find every predicted image in the ground truth and check the masks against its size.

    By file name: the exact relative path first, then a basename that is unique on both sides, then
    the same without a ``COCO_val2014_``-like prefix (LVIS v0.5). A basename that is not unique is
    refused if no path matches exactly; else it is taken for an image of another folder. Predicted
    images that are not found are ignored, and named in a warning.

    Args:
        file: the predictions.
        ground_truth: the ground truth.
        match: ``id``, ``file_name``, or ``auto``: by file name if the prediction file has an
            ``images`` section, else by id.

    Returns:
        The predictions on images that the ground truth has.

    Raises:
        NoCommonImageError: no predicted image is in the ground truth.
        UserError: file names are missing or ambiguous, or a size disagrees.
    """
    if match not in MATCH_MODES:
        raise UserError(f"unknown match mode {match!r}; choose from {', '.join(MATCH_MODES)}")
    if match == "auto":
        match = "id" if file.images is None else "file_name"
    if file.images is not None:
        predicted = list(file.images.values())
    else:
        predicted = [ImageInfo(i, None, None, None) for i in file.records.image_ids]
    if match == "id":
        known = {i.id: ground_truth.images[i.id] for i in predicted if i.id in ground_truth.images}
    else:
        known = _match_names(predicted, list(ground_truth.images.values()), file, ground_truth)
    unknown = [str(image) for image in predicted if image.id not in known]
    if predicted and not known:
        other = "file_name" if match == "id" else "id"
        hint = "" if file.images is None else f", or use --match {other}"
        raise NoCommonImageError(
            f"no image of the predictions {file.name} is in the ground truth {ground_truth.name} "
            f"(matched by {match}): the predictions have for example {predicted[0]}, the ground "
            f"truth {next(iter(ground_truth.images.values()))}; give the ground truth of these "
            f"images{hint}"
        )
    for image in predicted:
        if image.id in known:
            _check_size(image, known[image.id], file.name)
    images = [known.get(image_id) for image_id in file.records.image_ids]
    instances = on_images(file.records, images, list(ground_truth.images))
    aligned = Predictions(
        file.name, instances, {image.id for image in known.values()}, unknown, file.crowds_dropped
    )
    _log(aligned, file, ground_truth, match)
    return aligned


def _log(aligned: Predictions, file: PredictionFile, ground_truth: GroundTruth, match: str) -> None:
    """Log what was matched, and what counts in a way that the user may not expect."""
    unlisted = len(ground_truth.images) - len(aligned.listed)
    if unlisted:
        logger.info(
            "matched by %s: the predictions list %d of the %d ground-truth images; the other %d "
            "count as images without predictions",
            match,
            len(aligned.listed),
            len(ground_truth.images),
            unlisted,
        )
    if aligned.unknown:
        more = ", ..." if len(aligned.unknown) > _EXAMPLES else ""
        logger.warning(
            "%d predicted images are not in the ground truth and are ignored: %s%s",
            len(aligned.unknown),
            ", ".join(aligned.unknown[:_EXAMPLES]),
            more,
        )
    if aligned.crowds_dropped:
        logger.info("%d crowd records of the predictions were dropped", aligned.crowds_dropped)
    if file.without_score:
        logger.info(
            "%d of %d predictions have no score and count as 1.0",
            file.without_score,
            len(file.records),
        )


def _without_prefix(path: str) -> str:
    return _COCO_PREFIX.sub("", posixpath.basename(path))


def _match_names(
    predicted: list[ImageInfo],
    truth: list[ImageInfo],
    file: PredictionFile,
    ground_truth: GroundTruth,
) -> dict[ImageId, ImageInfo]:
    """Map the id of each predicted image that was found to its image of the ground truth."""
    if file.images is None:
        raise UserError(
            f"the predictions {file.name} have no 'images' section and so no file names; use "
            "--match id"
        )
    for images, name in ((predicted, file.name), (truth, ground_truth.name)):
        nameless = [image for image in images if image.file_name is None]
        if nameless:
            raise UserError(
                f"{name}: the image {nameless[0]} has no file_name; add one, or use --match id"
            )
        for same in _by_key(images, str).values():
            if len(same) > 1:
                raise UserError(
                    f"{name}: the images with id {same[0].id!r} and id {same[1].id!r} have the "
                    f"same file_name {same[0].file_name}; use --match id"
                )
    by_path = {name_key(image.file_name or ""): image for image in truth}
    keys = {image.id: name_key(image.file_name or "") for image in predicted}
    found = {image_id: by_path[key] for image_id, key in keys.items() if key in by_path}
    any_exact = bool(found)
    taken = {image.id for image in found.values()}
    for key in (posixpath.basename, _without_prefix):
        ours, theirs = _by_key(predicted, key), _by_key(truth, key)
        for name, images in ours.items():
            candidates = theirs.get(name, [])
            free = [image for image in images if image.id not in found]
            if not candidates or not free:
                continue
            if len(images) == len(candidates) == 1:
                if candidates[0].id not in taken:
                    found[free[0].id] = candidates[0]
                    taken.add(candidates[0].id)
            elif not any_exact:  # else the paths do agree, and this one is of another folder
                raise UserError(
                    f"the file name {name} is ambiguous: the predictions {file.name} have "
                    f"{', '.join(map(str, images[:_EXAMPLES]))}, the ground truth "
                    f"{ground_truth.name} {', '.join(map(str, candidates[:_EXAMPLES]))}; use the "
                    "same relative paths on both sides, or --match id"
                )
    return found


def _by_key(images: list[ImageInfo], key: Callable[[str], str]) -> dict[str, list[ImageInfo]]:
    groups: dict[str, list[ImageInfo]] = {}
    for image in images:
        groups.setdefault(key(name_key(image.file_name or "")), []).append(image)
    return groups


def _check_size(predicted: ImageInfo, truth: ImageInfo, name: str) -> None:
    ours, theirs = (predicted.width, predicted.height), (truth.width, truth.height)
    if None in ours or ours == theirs:
        return
    swapped = " (width and height look swapped)" if ours == theirs[::-1] else ""
    raise UserError(
        f"{name}: the image {predicted} is listed as {ours[0]} x {ours[1]} pixels "
        f"(width x height), but the ground truth has {theirs[0]} x {theirs[1]}{swapped}; "
        "predictions must be in pixels of the original image"
    )
