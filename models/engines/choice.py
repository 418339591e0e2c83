"""Choice of the library that runs a network on this machine."""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from typing import Literal

log = logging.getLogger(__name__)
Library = Literal["openvino", "torch"]


@cache
def engine_for(wanted: Literal["auto", "openvino", "torch"]) -> Library:
    """The library that ``wanted`` names; ``auto`` is torch where it can use a GPU, else OpenVINO."""
    if wanted != "auto":
        return wanted
    if not _has_driver():
        return "openvino"
    import torch  # takes seconds, so it is imported only when needed

    if torch.cuda.is_available():
        return "torch"
    log.warning(
        "there is a GPU, but this torch cannot use it (its driver is too old, or torch was built for CPUs)"
    )
    return "openvino"


def _has_driver() -> bool:
    """Whether a CUDA driver answers and has a GPU; the check does not load torch."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
