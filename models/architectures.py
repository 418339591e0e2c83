"""The networks that can be trained here: what each is for, where it comes from, under which licence it is used."""

from __future__ import annotations

from dataclasses import dataclass

from models.card import Task

OWN = "Apache-2.0 (written here)"
TORCHVISION = "BSD-3-Clause (torchvision)"


@dataclass(frozen=True, slots=True)
class ArchitectureFacts:
    """What is known of an architecture.

    Attributes:
        name: as a recipe and a card state it; of a detector, with its backbone.
        source: the paper that describes it.
        licence: of the code, and of weights that it can start from.
        note: in which it differs from the paper; may be empty.
    """

    name: str
    task: Task
    source: str
    licence: str
    note: str = ""


_TRUNK = "on a small residual trunk instead of VGG or ResNet"
ARCHITECTURES: tuple[ArchitectureFacts, ...] = (
    ArchitectureFacts(
        "inception_v3",
        "classify",
        "Szegedy et al. 2016",
        f"{OWN}; ImageNet weights: {TORCHVISION}",
        "of any width up to 1",
    ),
    ArchitectureFacts(
        "efficientnet_lite0",
        "classify",
        "Tan and Le 2019; lite form of Liu 2020",
        f"{OWN}; ImageNet weights: Apache-2.0",
        "ReLU6, no squeeze and excitation",
    ),
    *(
        ArchitectureFacts(
            f"efficientnet_b{i}",
            "classify",
            "Tan and Le 2019",
            TORCHVISION,
            f"the paper's side: input_px {side}",
        )
        for i, side in enumerate((224, 240, 260, 300, 380, 456, 528, 600))
    ),
    *(
        ArchitectureFacts(f"resnet{layers}", "classify", "He et al. 2016", TORCHVISION)
        for layers in (18, 34, 50, 101)
    ),
    ArchitectureFacts(
        "timm",
        "classify",
        "any network of timm by its name, Vision Transformers included",
        "Apache-2.0 (timm); weights: as their publisher says",
        "needs slidewright[timm]",
    ),
    ArchitectureFacts(
        "faster_rcnn, small", "detect", "Ren et al. 2015", TORCHVISION, "three stages at strides 4, 8 and 16"
    ),
    ArchitectureFacts("faster_rcnn, resnet50", "detect", "Ren et al. 2015; He et al. 2016", TORCHVISION),
    ArchitectureFacts(
        "retinanet, small", "detect", "Lin et al. 2017", TORCHVISION, "three levels at strides 4, 8 and 16"
    ),
    ArchitectureFacts(
        "retinanet, resnet50",
        "detect",
        "Lin et al. 2017; He et al. 2016",
        TORCHVISION,
        "four levels, from stride 4",
    ),
    ArchitectureFacts(
        "yolo_v3, small", "detect", "Redmon and Farhadi 2018", OWN, "three levels at strides 4, 8 and 16"
    ),
    ArchitectureFacts(
        "yolo_v3, darknet53", "detect", "Redmon and Farhadi 2018", OWN, "strides 8, 16 and 32, as published"
    ),
    ArchitectureFacts(
        "yolo_v3, resnet50",
        "detect",
        "Redmon and Farhadi 2018; He et al. 2016",
        OWN,
        "four levels, from stride 4",
    ),
    ArchitectureFacts(
        "cornernet",
        "detect",
        "Law and Deng 2018",
        OWN,
        "one hourglass of 48 channels and three halvings instead of two of 256 and five",
    ),
    ArchitectureFacts("unet", "segment", "Ronneberger et al. 2015", OWN, "padded, with batch normalisation"),
    ArchitectureFacts(
        "unet_valid", "segment", "Ronneberger et al. 2015", OWN, "as published: 572 px give 388"
    ),
    ArchitectureFacts("fcn_32s", "segment", "Long et al. 2015", OWN, _TRUNK),
    ArchitectureFacts("fcn_16s", "segment", "Long et al. 2015", OWN, _TRUNK),
    ArchitectureFacts("fcn_8s", "segment", "Long et al. 2015", OWN, _TRUNK),
    ArchitectureFacts("deeplab_v2", "segment", "Chen et al. 2016", OWN, f"{_TRUNK}; without the CRF"),
    ArchitectureFacts(
        "deeplab_v3",
        "segment",
        "Chen et al. 2017",
        f"{OWN}; atrous pyramid: {TORCHVISION}",
        f"{_TRUNK}; the mean of the tile is one of its inputs, so borders of tiles may show",
    ),
    ArchitectureFacts("dilated_context", "segment", "Yu and Koltun 2016", OWN, _TRUNK),
    ArchitectureFacts(
        "refinenet",
        "segment",
        "Lin et al. 2017",
        OWN,
        f"{_TRUNK}; 256 channels at width 64; one convolution for the classes, without residual units before it",
    ),
    ArchitectureFacts(
        "two_path", "segment", "Havaei et al. 2017", OWN, "two phases of training are not done"
    ),
    ArchitectureFacts(
        "input_cascade", "segment", "Havaei et al. 2017", OWN, "both networks are trained as one"
    ),
)
