"""The CPU engine: OpenVINO, static batches, two streams, converted once and cached."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from models.engines.contract import EngineConfig, Models, cache_folder
from wsi.arrays import Scores
from wsi.blocks import PatchBlock
from wsi.errors import ConfigError

log = logging.getLogger(__name__)

BATCH = 8  # a stream's memory grows with it, its speed on a CPU does not
_MODELS = Path(__file__).resolve().parents[1]


class OpenVinoEngine:
    """Runs uint8 patches; normalisation, orientations and softmax are inside the graph."""

    def __init__(self, models: Models, cfg: EngineConfig) -> None:
        self.models = models
        self._batch = cfg.batch or BATCH // cfg.orientations
        core = ov.Core()
        precision = _precision(cfg.precision, core)
        path = _converted(models, cfg.orientations)
        size = models.card.patch_px
        model = core.read_model(path)
        model.reshape([self._batch, size, size, 3])
        settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": precision}
        compiled = core.compile_model(model, "CPU", settings)
        self._queue = ov.AsyncInferQueue(compiled)
        self._queue.set_callback(_receive)
        turned = f", mean of {cfg.orientations} orientations" if cfg.orientations > 1 else ""
        self.description = (
            f"openvino {ov.__version__.split('-')[0]}, {precision.replace('f32', 'fp32')}, "
            f"batches of {self._batch}{turned}, CPU"
        )

    def expect(self, patches: int) -> None:
        """Nothing depends on it here."""

    def score(self, blocks: Iterable[PatchBlock]) -> Iterator[Scores]:
        """See `Engine`; one block waits behind the one that is worked on."""
        waiting: deque[_Answer] = deque()
        for block in blocks:
            waiting.append(self._start(block))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _start(self, block: PatchBlock) -> _Answer:
        starts = range(0, len(block), self._batch)
        answer = _Answer(len(block), len(self.models.card.classes), len(starts))
        for start in starts:
            patches = block.patches(start, start + self._batch)
            if len(patches) < self._batch:
                padding = np.zeros((self._batch - len(patches), *patches.shape[1:]), np.uint8)
                patches = np.concatenate([patches, padding])
            self._queue.start_async(patches, (answer, start))
        return answer


class _Answer:
    """One block's scores, filled in by the queue's threads."""

    def __init__(self, patches: int, classes: int, batches: int) -> None:
        self._scores = np.empty((patches, classes), np.float32)
        self._left = batches
        self._lock = threading.Lock()
        self._done = threading.Event()
        if batches == 0:
            self._done.set()

    def put(self, start: int, scores: Scores) -> None:
        stop = min(start + len(scores), len(self._scores))
        self._scores[start:stop] = scores[: stop - start]
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._done.set()

    def result(self) -> Scores:
        self._done.wait()
        return self._scores


def _receive(request: Any, place: tuple[_Answer, int]) -> None:
    answer, start = place
    answer.put(start, request.get_output_tensor(0).data)


def _precision(wanted: str, core: ov.Core) -> str:
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if wanted == "bf16" and not has_bf16:
        raise ConfigError("this CPU has neither AMX nor AVX512-bf16; use --precision fp32")
    return "bf16" if has_bf16 and wanted in ("auto", "bf16") else "f32"


def _converted(models: Models, orientations: int) -> Path:
    """The cached graph of these weights, converted when it is not there."""
    key = [ov.__version__, str(orientations), *(card.model_dump_json() for card in models.cards)]
    key += [
        (_MODELS / source).read_text() for source in ("network.py", "inception.py", "wsinfer.py", "build.py")
    ]
    name = hashlib.sha256("\n".join(key).encode()).hexdigest()[:24]
    path = cache_folder() / "openvino" / f"{name}.xml"
    if path.exists():
        return path
    try:
        _convert(models, orientations, path)
    except OSError as error:
        log.warning(
            "cannot keep the converted model in %s (%s); converting for this run only", path.parent, error
        )
        path = Path(tempfile.mkdtemp(prefix="slidewright-")) / path.name
        _convert(models, orientations, path)
    return path


def _convert(models: Models, orientations: int, path: Path) -> None:
    import torch

    from models.build import build_network

    size = models.card.patch_px
    log.info("converting %s for OpenVINO (once; kept in %s)", models.card.name, path.parent)
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    network = build_network(models.folders, orientations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's and openvino's notes on tracing
        model = ov.convert_model(network, example_input=example)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.{os.getpid()}.xml")
    ov.save_model(model, partial, compress_to_fp16=False)
    os.replace(partial.with_suffix(".bin"), path.with_suffix(".bin"))
    os.replace(partial, path)  # last: a graph that is there is whole
