"""The labelers' settings and their presets."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from promerge_d2.labeler.refine import DEVICE_REFINERS, NUMBA, REFINERS
from promerge_d2.utils.errors import UserError

Check = tuple[bool, str, str]  # whether all is well, the setting, what it should be
ConfigT = TypeVar("ConfigT", bound="GridConfig")


@dataclass(frozen=True)
class GridConfig:
    """Settings of every labeler that finds masks on a patch grid and refines them.

    Attributes:
        grid: rows and columns of the patch grid; the image is squashed to it.
        keep_aspect: instead, the grid takes the shape of the image, with as many patches.
        refine: the refiner: ``mean_field``, ``dense_crf``, ``guided`` or ``none``.
        refine_device: where it runs: ``numba``, compiled code on the CPU, or a device of torch such
            as ``cuda``, for ``mean_field`` and ``guided``: the same masks but for a few pixels.
            Each worker process opens the device.
        refine_min_iou: a mask that refinement changes to a lower IoU than this is not confirmed:
            ``promerge`` and ``maskcut`` drop it, ``regions`` leaves it as it was.
        pixels_per_patch: side of a patch in the working image of the refiner (the release
            refines at 480 pixels for 60 patches).
        apply_exif: turn photos as their EXIF says; the release does not, which leaves its masks
            turned against what detectron2 shows.
    """

    presets: ClassVar[dict[str, dict[str, Any]]]  # by name, unique over all labelers

    grid: tuple[int, int] = (60, 60)
    keep_aspect: bool = False
    refine: str = "mean_field"
    refine_device: str = NUMBA
    refine_min_iou: float = 0.5
    pixels_per_patch: int = 8
    apply_exif: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.grid, int):
            object.__setattr__(self, "grid", (self.grid, self.grid))
        object.__setattr__(self, "grid", tuple(self.grid))
        for ok, name, wanted in self._checks():
            if not ok:
                raise UserError(f"labeler setting {name} is {getattr(self, name)!r}, not {wanted}")

    def _checks(self) -> list[Check]:
        """Return what the values must be; a subclass adds its own."""
        return [
            (len(self.grid) == 2 and min(self.grid) >= 2, "grid", "two sides of 2 or more"),
            self._one_of("refine", REFINERS),
            (
                self.refine_device == NUMBA or self.refine in DEVICE_REFINERS,
                "refine_device",
                f"{NUMBA}: {self.refine} has no twin in torch",
            ),
            self._between("refine_min_iou", 0, 1),
            self._at_least("pixels_per_patch", 1),
        ]

    @property
    def devices(self) -> set[str]:
        """Return the devices of torch that stages run on: of all settings ``..._device``."""
        names = (field.name for field in dataclasses.fields(self))
        return {getattr(self, name) for name in names if name.endswith("_device")} - {NUMBA}

    def grid_for(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of an image's patch grid.

        Args:
            height: of the upright image, in pixels.
            width: likewise.

        Returns:
            H and W.
        """
        rows, columns = self.grid
        if not self.keep_aspect:
            return rows, columns
        side = (height * width / (rows * columns)) ** 0.5  # of a patch, in pixels
        most = rows * columns // 2  # of a strip that is thinner than two patches
        return (
            max(2, min(most, round(height / side))),
            max(2, min(most, round(width / side))),
        )

    def _one_of(self, name: str, names: tuple[str, ...] | dict) -> Check:
        return getattr(self, name) in names, name, " or ".join(names)

    def _between(self, name: str, low: int, high: int) -> Check:
        return low <= getattr(self, name) <= high, name, f"between {low} and {high}"

    def _at_least(self, name: str, low: int) -> Check:
        return getattr(self, name) >= low, name, f"{low} or more"

    @classmethod
    def from_preset(cls: type[ConfigT], preset: str | None = None, **overrides: Any) -> ConfigT:
        """Take a preset with some settings replaced.

        Args:
            preset: a name of ``presets``; None takes the first.
            **overrides: settings by name; a string is read as the setting's type.

        Returns:
            The settings.

        Raises:
            UserError: an unknown preset or setting (the nearest name is given), or a bad value.
        """
        preset = next(iter(cls.presets)) if preset is None else preset
        if preset not in cls.presets:
            raise UserError(f"no preset is named {preset!r}; known: {', '.join(cls.presets)}")
        known = {field.name: field for field in dataclasses.fields(cls)}
        for name, value in overrides.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" (did you mean {near[0]}?)" if near else ""
                raise UserError(
                    f"no labeler setting is named {name!r}{hint}; known: {', '.join(known)}"
                )
            if isinstance(value, str):
                overrides[name] = _parse(name, value, known[name].default)
        return cls(**{**cls.presets[preset], **overrides})


def _parse(name: str, text: str, default: Any) -> Any:
    """Read ``text`` as a value of the default's type."""
    try:
        if isinstance(default, tuple):
            sides = [int(side) for side in text.lower().split("x")]
            return (sides[0], sides[0]) if len(sides) == 1 else tuple(sides)
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        return type(default)(text)
    except (ValueError, KeyError) as error:
        kind = "HxW" if isinstance(default, tuple) else type(default).__name__
        raise UserError(f"labeler setting {name}: {text!r} is no {kind}") from error
