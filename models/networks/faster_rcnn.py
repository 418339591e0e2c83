"""Faster R-CNN (Ren et al. 2015), with all relevant defaults of torchvision set."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign

from models.card import DetectorConfig
from models.networks.pyramids import pyramid_of

MOST_BOXES = 400  # in one tile of 256 or 320 um, which holds far fewer capillaries
FIRST_LABEL = 1  # 0 is its background
Maps = tuple[Tensor, ...]
"""Features of all levels, then objectness of all levels, then changes of boxes of all levels."""


def make(cfg: DetectorConfig, classes: int) -> FasterRCNN:
    """A network of random weights that tells so many classes from background."""
    backbone = pyramid_of(cfg)
    hidden = 256 if cfg.backbone == "small" else 1024  # that of torchvision is 1024
    outputs = classes + 1  # and the background
    names = [str(i) for i in range(len(cfg.anchors_px))]
    return FasterRCNN(
        backbone,
        box_head=TwoMLPHead(backbone.out_channels * 7**2, hidden),
        box_predictor=FastRCNNPredictor(hidden, outputs),
        min_size=cfg.tile_px,  # its default, 800, would be another spacing
        max_size=cfg.tile_px,
        image_mean=[0.5, 0.5, 0.5],  # trained from scratch: no ImageNet statistics
        image_std=[0.5, 0.5, 0.5],
        rpn_anchor_generator=AnchorGenerator(
            tuple((side,) for side in cfg.anchors_px), ((0.5, 1.0, 2.0),) * len(cfg.anchors_px)
        ),
        rpn_pre_nms_top_n_train=1000,
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_train=500,
        rpn_post_nms_top_n_test=2 * MOST_BOXES,
        rpn_batch_size_per_image=256,
        rpn_nms_thresh=0.7,
        box_roi_pool=MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
        box_batch_size_per_image=128,
        box_score_thresh=cfg.lowest_score,
        box_nms_thresh=cfg.iou,
        box_detections_per_img=MOST_BOXES,  # its default, 100, would cap a count
    )


class Convolutions(nn.Module):
    """Backbone, pyramid and the head of the region proposals: pixels (n, 3, h, w) in 0..1 to `Maps`."""

    def __init__(self, network: FasterRCNN) -> None:
        super().__init__()
        self.backbone, self.head = network.backbone, network.rpn.head
        self.mean, self.std = network.transform.image_mean[0], network.transform.image_std[0]

    def forward(self, pixels: Tensor) -> Maps:
        """The pyramid's features, then the objectness, then the changes of boxes; of each level, fine to coarse."""
        features = list(self.backbone((pixels - self.mean) / self.std).values())
        objectness, changes = self.head(features)
        return (*features, *objectness, *changes)


def boxes_of(network: FasterRCNN, maps: Maps, pixels: Tensor) -> list[dict[str, Tensor]]:
    """Boxes of every tile from the maps, as in torchvision's forward pass but without its resizing there and back."""
    levels = len(maps) // 3
    features, objectness, changes = maps[:levels], maps[levels : 2 * levels], maps[2 * levels :]
    count, _, height, width = pixels.shape
    images = ImageList(pixels, [(height, width)] * count)
    anchors = network.rpn.anchor_generator(images, list(features))
    sizes = [level_objectness[0].numel() for level_objectness in objectness]  # anchors of each level
    flat, coded = concat_box_prediction_layers(list(objectness), list(changes))
    proposals = network.rpn.box_coder.decode(coded, anchors).view(count, -1, 4)
    boxes, _ = network.rpn.filter_proposals(proposals, flat, images.image_sizes, sizes)
    pyramid = {str(i): level for i, level in enumerate(features)}
    results: list[dict[str, Tensor]] = network.roi_heads(pyramid, boxes, images.image_sizes)[0]
    return results
