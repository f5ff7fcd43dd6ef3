"""One pass of a ViT for a labeler and for a detector on the same ViT.

Shape letters: N images, C channels, H and W rows and columns of the patch grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode

from promerge_d2.features import FeatureExtractor
from promerge_d2.modeling.frozen_vit import FrozenViT
from promerge_d2.modeling.token_cache import TokenCache
from promerge_d2.utils.errors import UserError


class SharedExtractor(FeatureExtractor):
    """Features for a labeler; the tokens of the same pass go to a detector's cache.

    It sees images as the detector does, ``FrozenViT.stride`` pixels a patch. Tokens are kept by the
    content of the image, so the detector finds those of images that are squares of its size, which
    neither of the two resizes.

    Args:
        net: the detector's network.
        cache: the detector's.
        side: of the square that the detector pads images to, in pixels; tokens of images of
            another size are not kept.
        facet: see ``FeatureExtractor``.
        center: see ``FeatureExtractor``.
    """

    def __init__(
        self,
        net: FrozenViT,
        cache: TokenCache,
        side: int,
        facet: str | None = None,
        center: bool | None = None,
    ) -> None:
        inner = net.extractor
        backbone = dataclasses.replace(inner.backbone, patch=net.stride)
        super().__init__(backbone, inner.vit, facet, center, inner.weights_sha256)
        self.net = net
        self.cache = cache
        self.side = side

    @classmethod
    def from_config(cls, extractor: FeatureExtractor, cfg: CfgNode) -> SharedExtractor:
        """Put a labeler's extractor and the cache of ``MODEL.FROZEN_VIT`` together.

        Args:
            extractor: the labeler's, with products in fp32.
            cfg: of the detector.

        Raises:
            UserError: the detector has no cache, or is on another backbone.
        """
        vit = cfg.MODEL.FROZEN_VIT
        if not (vit.CACHE_DIR and vit.SQUARE_PAD):
            raise UserError(
                "MODEL.FROZEN_VIT.CACHE_DIR and MODEL.FROZEN_VIT.SQUARE_PAD are to be set where "
                "labelling keeps the tokens of a detector"
            )
        if extractor.backbone.name != vit.BACKBONE or extractor.precision != "fp32":
            raise UserError(
                f"MODEL.FROZEN_VIT.BACKBONE is {vit.BACKBONE} in fp32, but the labels are made on "
                f"{extractor.backbone.name} in {extractor.precision}: nothing to share"
            )
        cache = TokenCache.from_config(cfg, extractor.weights_sha256)
        net = FrozenViT(extractor, layers=vit.LAYERS, relations=vit.RELATIONS)
        return cls(net, cache, vit.SQUARE_PAD, extractor.facet, extractor.center)

    def facets(self, images: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Compute several facets in one pass, uncentred, and keep the tokens.

        Args:
            images: (N, 3, H * stride, W * stride) float32.
            names: out of ``FACETS``.

        Returns:
            For each name (N, C, H, W) float32.
        """
        images = images.contiguous()  # as the detector has them: another layout rounds otherwise
        found = self.net.facets(images, [*names, "token"])
        if images.shape[2:] == (self.side, self.side):
            for image, tokens in zip(images, found["token"], strict=True):
                self.cache.write(self.cache.file(image), tokens)
        if "token" in names:  # the labeler's are the final ones alone
            found["token"] = found["token"][:, : self.net.extractor.backbone.width]
        return {name: found[name] for name in names}
