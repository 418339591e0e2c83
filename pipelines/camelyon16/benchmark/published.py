"""Results that others published on Camelyon16's real test slides, for comparison with ours; never mixed with them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Published:
    """A published result on the real test slides; None where the source does not state it.

    Attributes:
        froc: mean sensitivity at 1/4 to 8 false positives per slide, with its 95 % interval.
        auc: area under the ROC curve over slides, with its 95 % interval.
        note: what else the source says.
    """

    name: str
    source: str
    froc: float | None = None
    froc_interval: tuple[float, float] | None = None
    auc: float | None = None
    auc_interval: tuple[float, float] | None = None
    note: str = ""


JAMA = "Ehteshami Bejnordi et al., JAMA 2017;318:2199"
PATHOLOGIST_FOUND = (
    0.724  # share of lesions that the pathologist without time constraint found, with no false positive
)

PUBLISHED = (
    Published(
        "Wang et al. 2016, HMS and MIT, second entry",
        f"{JAMA}, table 2",
        0.807,
        (0.732, 0.889),
        0.994,
        (0.983, 0.999),
    ),
    Published(
        "Wang et al. 2016, HMS and MIT, first entry",
        f"{JAMA}, table 2",
        0.693,
        (0.600, 0.819),
        0.923,
        (0.855, 0.977),
    ),
    Published(
        "NCRF, Li and Ping 2018",
        "arXiv 1806.07064, abstract",
        0.8096,
        note="Test_049 and Test_114 left out",
    ),
    Published(
        "Liu et al. 2017",
        "arXiv 1703.02442, abstract",
        note="sensitivity 0.924 at 8 false positives per tumour-free slide; AUC above 0.97",
    ),
    Published(
        "pathologist without time constraint",
        f"{JAMA}, figure 1; AUC: Wang et al. 2016, abstract",
        auc=0.966,
        note=f"sensitivity {PATHOLOGIST_FOUND} with no false positive",
    ),
    Published(
        "11 pathologists, two hours for all slides",
        f"{JAMA}, abstract and key points",
        auc=0.810,
        note="mean; the best of them 0.884",
    ),
)
