"""The int8 form of a classifier: a graph of OpenVINO whose convolutions compute in whole numbers.

NNCF makes it from the distribution of each layer's values on patches like those that will be scored. Whoever runs it
needs OpenVINO alone.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov

from models.card import INT8
from models.engines.contract import EngineConfig, Models
from models.engines.openvino import output_graph
from wsi.arrays import RgbImage
from wsi.errors import ConfigError
from wsi.files import write_bytes

FITTED_ON = 300  # patches that the ranges of values are taken from, as NNCF does unless told otherwise
# around the convolutions: pixels become inputs before them; after them features become scores, which must stay exact
_EXACT = {"Add", "Subtract", "Multiply", "Divide", "MatMul", "ReduceMean", "Concat", "Softmax", "Sigmoid"}


def int8_graph(models: Models, patches: Sequence[RgbImage]) -> ov.Model:
    """The graph of one model, quantised.

    Args:
        models: the one model.
        patches: uint8 patches of its side, `FITTED_ON` of them or fewer.

    Raises:
        ConfigError: NNCF is not installed.
    """
    try:
        import nncf
    except ImportError as error:
        raise ConfigError(
            "int8 needs NNCF, which is not installed: pip install 'slidewright[int8]'"
        ) from error
    logging.getLogger("nncf").setLevel(logging.ERROR)
    graph = output_graph(models, EngineConfig())
    side = models.card.patch_px
    graph.reshape([1, side, side, 3])
    data = nncf.Dataset([np.ascontiguousarray(patch[None]) for patch in patches])
    return nncf.quantize(
        graph,
        data,
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(patches),
        ignored_scope=nncf.IgnoredScope(names=_names_of_exact(graph)),
    )


def _names_of_exact(graph: ov.Model) -> list[str]:
    """Operations before the first convolution, and after the activation of the last."""
    operations = graph.get_ordered_ops()
    kinds = [operation.get_type_name() for operation in operations]
    convolutions = [i for i, kind in enumerate(kinds) if kind in ("Convolution", "GroupConvolution")]
    means = [i for i, kind in enumerate(kinds) if kind in ("ReduceMean", "AvgPool") and i > convolutions[-1]]
    end = means[0] if means else convolutions[-1]
    return [
        operation.get_friendly_name()
        for i, (operation, kind) in enumerate(zip(operations, kinds, strict=True))
        if kind in _EXACT and (i < convolutions[0] or i >= end)
    ]


def write_int8(folder: Path, graph: ov.Model) -> None:
    """Write the graph's two files into a model's folder.

    Raises:
        StoreError: they cannot be written.
    """
    for key in list(graph.rt_info):  # how NNCF was called is of no use here, and may hold paths
        del graph.rt_info[key]
    for number, operation in enumerate(
        graph.get_ordered_ops()
    ):  # else names count all operations of the process
        operation.set_friendly_name(f"{operation.get_type_name()}_{number}")
    with tempfile.TemporaryDirectory(prefix="slidewright-") as name:
        path = Path(name) / INT8[0]
        ov.save_model(graph, path, compress_to_fp16=False)
        for file in INT8:
            write_bytes(folder / file, path.with_name(file).read_bytes())
