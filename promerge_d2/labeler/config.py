"""The labelers' settings and their presets."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import ClassVar

from promerge_d2.labeler.filtering import FILTERS
from promerge_d2.labeler.prompting import SIDE_RULES
from promerge_d2.labeler.refinement import REFINERS, UPSAMPLINGS
from promerge_d2.utils.errors import UserError

SOLVERS = ("lanczos", "dense")

Check = tuple[bool, str, str]  # whether all is well, the setting, what it should be


@dataclass(frozen=True)
class GridConfig:
    """Settings of every labeler that finds masks on a patch grid and refines them.

    Attributes:
        grid: rows and columns of the patch grid; the image is squashed to it.
        keep_aspect: instead, the grid takes the shape of the image, with as many patches.
        upsampling: how masks of the grid become masks of pixels: ``nearest``, or ``linear`` and
            cut at a half.
        refine: refiner, a name of ``promerge_d2.labeler.refinement.REFINERS``.
        refine_min_iou: a mask that refinement changes to a lower IoU than this is not confirmed.
        unconfirmed: ``drop`` such masks, or ``keep`` them as they were before.
        min_fragment: fragments of a mask are dropped below this share of its largest one.
        max_iou: a mask is dropped that overlaps an earlier one by more; 1 keeps all.
        pixels_per_patch: side of a patch in the working image of the refiner (the release
            refines at 480 pixels for 60 patches).
        apply_exif: turn photos as their EXIF says; the release does not, which leaves its masks
            turned against what detectron2 shows.
    """

    presets: ClassVar[dict[str, dict[str, object]]] = {"release": {}}
    tiles = 1  # no setting, but of the labelers that know them

    grid: tuple[int, int] = (60, 60)
    keep_aspect: bool = False
    upsampling: str = "nearest"
    refine: str = "mean_field"
    refine_min_iou: float = 0.5
    unconfirmed: str = "drop"
    min_fragment: float = 0.0
    max_iou: float = 1.0
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
        """What the values must hold; a subclass adds its own."""
        return [
            (len(self.grid) == 2 and min(self.grid) >= 2, "grid", "two sides of 2 or more"),
            self._one_of("upsampling", UPSAMPLINGS),
            self._one_of("refine", REFINERS),
            self._between("refine_min_iou", 0, 1),
            self._one_of("unconfirmed", ("drop", "keep")),
            self._between("min_fragment", 0, 1),
            self._between("max_iou", 0, 1),
            self._at_least("pixels_per_patch", 1),
        ]

    def grid_for(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patch grid of an image of height x width pixels."""
        rows, columns = self.grid
        if not self.keep_aspect:
            return rows, columns
        side = (height * width / (rows * columns)) ** 0.5  # of a patch, in pixels
        return max(2, round(height / side)), max(2, round(width / side))

    def _one_of(self, name: str, names: tuple[str, ...] | dict) -> Check:
        return getattr(self, name) in names, name, " or ".join(names)

    def _between(self, name: str, low: int, high: int) -> Check:
        return low <= getattr(self, name) <= high, name, f"between {low} and {high}"

    def _at_least(self, name: str, low: int) -> Check:
        return getattr(self, name) >= low, name, f"{low} or more"

    @classmethod
    def from_preset(cls, preset: str, **overrides: object) -> GridConfig:
        """A preset with some settings replaced.

        Args:
            preset: a name of ``presets``.
            **overrides: settings by name; a string is read as the setting's type.

        Raises:
            UserError: an unknown preset or setting (the nearest name is given), or a bad value.
        """
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


@dataclass(frozen=True)
class LabelerConfig(GridConfig):
    """Settings of ``promerge``. The defaults are the released ones (promerge.md A3).

    Attributes:
        proposals: ``prompts``: the paper's, by point prompts, background vote, cascade filter
            and merging; or ``tree``: regions of all scales, scored (``merge_tree``, ``scoring``).
        stride: patches between prompts. 4 on a 60x60 grid makes K = 225 prompts, 6 makes 100.
        tau_b: cosine above which a patch belongs to a prompt's mask (paper: tau_b). Raise it for
            smaller, tighter masks.
        side_rule: when a side counts as covered by a mask: ``more_than_half`` or
            ``at_least_half`` of its patches.
        component_share: a component stays if it has this share of the prompt's own component.
        background_vote: share of the candidates that must call a patch background.
        min_background: an image whose background is a smaller share of the grid gets no masks.
        background_filter: ``cascade``, ``ioa``, ``feature`` or ``none``.
        tau_ioa: a mask leaves when this share of its new patches is background.
        tau_f: a mask leaves when its mean feature times the background's is this or more.
        tau_merge_ioa: masks merge above this overlap share (paper: tau_merge^IoA).
        tau_merge_gate: below this overlap share, features are not asked.
        tau_merge_f: masks that pass the gate merge at this product of mean features or more
            (paper: tau_merge^f).
        min_patches: regions of the tree with fewer patches are left out.
        max_share: regions of the tree of more than this share of the grid are left out.
        background_quantile: of the tree's regions, see ``scoring.score_masks``.
        max_masks: of the tree's regions, the best are kept, at most so many.
        tiles: more than 1: so many overlapping parts along each side go through the network as
            well, for small objects; with 2 it sees five pictures an image.

    Settings from ``stride`` to ``tau_merge_f`` act on ``prompts``, those after it on ``tree``.
    """

    presets: ClassVar[dict[str, dict[str, object]]] = {
        # K = 100 evenly spaced prompts, and a side is covered by "at least half" of it.
        "paper": {"stride": 6, "side_rule": "at_least_half"},
        # What the released code does: 225 prompts, a side is covered by more than half of it.
        "release": {},
        # Regions of all scales with scores (our own): finds more, ranks it, costs more.
        "best": {
            "proposals": "tree",
            "keep_aspect": True,
            "upsampling": "linear",
            "refine": "mean_field_near",
            "refine_min_iou": 0.7,
            "unconfirmed": "keep",
            "min_fragment": 0.1,
            "max_iou": 0.7,
        },
    }

    proposals: str = "prompts"
    stride: int = 4
    tau_b: float = 0.2
    side_rule: str = "more_than_half"
    component_share: float = 0.5
    background_vote: float = 0.5
    min_background: float = 0.1
    background_filter: str = "cascade"
    tau_ioa: float = 0.8
    tau_f: float = 0.1
    tau_merge_ioa: float = 0.5
    tau_merge_gate: float = 0.1
    tau_merge_f: float = 0.1
    min_patches: int = 4
    max_share: float = 0.95
    background_quantile: float = 0.7
    max_masks: int = 100
    tiles: int = 1

    def _checks(self) -> list[Check]:
        shares = ("component_share", "background_vote", "min_background", "tau_ioa")
        shares += ("tau_merge_ioa", "tau_merge_gate", "max_share", "background_quantile")
        return [
            *super()._checks(),
            self._one_of("proposals", ("prompts", "tree")),
            self._at_least("stride", 1),
            self._one_of("side_rule", SIDE_RULES),
            self._one_of("background_filter", FILTERS),
            *(self._between(name, -1, 1) for name in ("tau_b", "tau_f", "tau_merge_f")),
            *(self._between(name, 0, 1) for name in shares),
            self._at_least("min_patches", 2),
            self._at_least("max_masks", 1),
            self._at_least("tiles", 1),
            (
                self.tiles == 1 or self.proposals == "tree",
                "tiles",
                "1, unless proposals is tree (preset best)",
            ),
        ]


@dataclass(frozen=True)
class MaskCutConfig(GridConfig):
    """Settings of ``maskcut``. The defaults are the released ones (promerge.md B7).

    Attributes:
        tau: patches whose cosine is this or more are joined in the graph (CutLER: tau^ncut).
        masks: masks an image, at most (CutLER: N).
        void_iou: a later mask with a higher IoU than this with the one before is void.
        min_area: a later mask of at most this share of the grid is void.
        solver: of the eigenproblem: ``lanczos``, or ``dense`` as in the releases (for comparison;
            tens of times slower on a 60x60 grid).
    """

    tau: float = 0.15
    masks: int = 3
    void_iou: float = 0.5
    min_area: float = 0.01
    solver: str = "lanczos"

    def _checks(self) -> list[Check]:
        return [
            *super()._checks(),
            self._between("tau", -1, 1),
            self._at_least("masks", 1),
            self._between("void_iou", 0, 1),
            self._between("min_area", 0, 1),
            self._one_of("solver", SOLVERS),
        ]


def _parse(name: str, text: str, default: object) -> object:
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
