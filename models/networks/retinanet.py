"""RetinaNet (Lin et al. 2017): every place of a pyramid judged at once, with focal loss; torchvision's."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from models.card import DetectorConfig
from models.networks.faster_rcnn import MOST_BOXES, Maps
from models.networks.pyramids import pyramid_of

FIRST_LABEL = 0  # each class has a sigmoid of its own, and background is none of them
SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))  # of the anchors of a level
RATIOS = (0.5, 1.0, 2.0)


def make(cfg: DetectorConfig, classes: int) -> RetinaNet:
    """A network of random weights; focal loss with alpha 0.25 and gamma 2, prior 0.01, overlaps 0.5 and 0.4."""
    sizes = tuple(tuple(side * scale for scale in SCALES) for side in cfg.anchors_px)
    network = RetinaNet(
        pyramid_of(cfg),
        num_classes=classes,
        min_size=cfg.tile_px,  # its default, 800, would be another spacing
        max_size=cfg.tile_px,
        image_mean=[0.5, 0.5, 0.5],  # trained from scratch: no ImageNet statistics
        image_std=[0.5, 0.5, 0.5],
        anchor_generator=AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
        score_thresh=cfg.lowest_score,
        nms_thresh=cfg.iou,
        detections_per_img=MOST_BOXES,
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.4,
    )
    network.head.regression_head._loss_type = "smooth_l1"  # the paper's; torchvision's default is L1
    return network


class Convolutions(nn.Module):
    """Backbone, pyramid and both subnets: pixels (n, 3, h, w) in 0..1 to classes, then boxes, of each level."""

    def __init__(self, network: RetinaNet) -> None:
        super().__init__()
        self.backbone, self.head = network.backbone, network.head
        self.mean, self.std = network.transform.image_mean[0], network.transform.image_std[0]

    def forward(self, pixels: Tensor) -> Maps:
        """Logits of the classes of all levels, then changes of boxes of all levels, fine to coarse."""
        features = list(self.backbone((pixels - self.mean) / self.std).values())
        classes, boxes = self.head.classification_head, self.head.regression_head
        return (
            *(classes.cls_logits(classes.conv(level)) for level in features),
            *(boxes.bbox_reg(boxes.conv(level)) for level in features),
        )


def boxes_of(network: RetinaNet, maps: Maps, pixels: Tensor) -> list[dict[str, Tensor]]:
    """Boxes of every tile from the maps, as in torchvision's forward pass but without its resizing there and back."""
    levels = len(maps) // 2
    count, _, height, width = pixels.shape
    images = ImageList(pixels, [(height, width)] * count)
    anchors = network.anchor_generator(images, list(maps[:levels]))
    per_place = network.anchor_generator.num_anchors_per_location()[0]
    sizes = [level.shape[2] * level.shape[3] * per_place for level in maps[:levels]]
    outputs = {
        "cls_logits": [_by_anchor(level, per_place) for level in maps[:levels]],
        "bbox_regression": [_by_anchor(level, per_place) for level in maps[levels:]],
    }
    split = [list(one.split(sizes)) for one in anchors]
    results: list[dict[str, Tensor]] = network.postprocess_detections(outputs, split, images.image_sizes)
    return results


def _by_anchor(level: Tensor, per_place: int) -> Tensor:
    """(n, anchors * k, h, w) as (n, h * w * anchors, k), in the order of the anchors."""
    count, channels, height, width = level.shape
    values = level.view(count, per_place, channels // per_place, height, width)
    return values.permute(0, 3, 4, 1, 2).reshape(count, -1, channels // per_place)
