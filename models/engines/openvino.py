"""The CPU engine by OpenVINO, with batches of one size; converted networks are kept in a cache."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from models.card import INT8, ModelCard, SegmenterCard, read_card
from models.engines.contract import EngineConfig, Models
from models.engines.spec import ScoreSpec, keep
from wsi.arrays import RgbImage, Scores
from wsi.errors import ConfigError, ModelError
from wsi.files import cache_folder
from wsi.slides.blocks import PatchBlock

if TYPE_CHECKING:
    from torch import Tensor, nn

    from models.networks.faster_rcnn import Maps

log = logging.getLogger(__name__)

MAPS_AT_ONCE = 8  # tiles; each takes some hundred MB
BATCH = 8  # a larger batch takes more memory in each stream, but is not faster on a CPU
LIBRARY = f"openvino {ov.__version__.split('-')[0]}"
_MODELS = Path(__file__).resolve().parents[1]


@cache
def shared_core() -> ov.Core:
    """The one core of this process, which is never freed.

    Each core gives the main thread a stack for signal handlers. When two are freed in the order in which they were
    made, the thread is left with a stack that is gone, and the next Ctrl-C or SIGTERM ends Python by a segmentation
    fault (seen with OpenVINO 2026.4.1).
    """
    return ov.Core()


class OpenVinoEngine:
    """The OpenVINO engine; normalisation, orientations and softmax are inside its graph."""

    def __init__(self, models: Models, cfg: EngineConfig) -> None:
        self.models = models
        self._batch = cfg.batch or BATCH // cfg.orientations
        core = shared_core()
        int8 = _int8_form(models, cfg)
        # what int8 leaves out, the first and last few operations, is exact
        is_exact = cfg.output == "features" and cfg.precision == "auto"
        precision = "f32" if int8 or is_exact else _precision(cfg.precision, core)
        size = models.card.patch_px
        settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": precision}
        with nullcontext(int8) if int8 else _converted_output(models, cfg) as path:
            model = core.read_model(path)
            model.reshape([self._batch, size, size, 3])
            compiled = core.compile_model(model, "CPU", settings)
        self.width = int(compiled.output(0).get_partial_shape()[1].get_length())
        self._queue = ov.AsyncInferQueue(compiled)
        self._queue.set_callback(_receive)
        orientation_text = f", mean of {cfg.orientations} orientations" if cfg.orientations > 1 else ""
        shown = "int8" if int8 else precision.replace("f32", "fp32")
        output_text = ", features" if cfg.output == "features" else ""
        self.description = f"{LIBRARY}{output_text}, {shown}, batches of {self._batch}{orientation_text}, CPU"
        self.spec = ScoreSpec(models, cfg, self.description)
        keep(self.spec, self)

    def expect(self, patches: int) -> None:
        """Do nothing, as this engine needs no preparation."""

    def score(
        self, blocks: Iterable[PatchBlock], *, scored: Callable[[int], None] = lambda patches: None
    ) -> Iterator[Scores]:
        """Scores of each block; see `Engine`. One block waits while another is scored."""
        queue: deque[_Answer] = deque()
        for block in blocks:
            queue.append(self._start(block, scored))
            if len(queue) > 1:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()

    def _start(self, block: PatchBlock, scored: Callable[[int], None]) -> _Answer:
        starts = range(0, len(block), self._batch)
        answer = _Answer(len(block), self.width, len(starts), scored)
        for start in starts:
            patches = block.patches(start, start + self._batch)
            if len(patches) < self._batch:
                padding = np.zeros((self._batch - len(patches), *patches.shape[1:]), np.uint8)
                patches = np.concatenate([patches, padding])
            self._queue.start_async(patches, (answer, start))
        return answer


class OpenVinoConvolutions:
    """A detector's convolutions, tile by tile; compiled once for every size of tile."""

    def __init__(self, convolutions: nn.Module, precision: str, name: str) -> None:
        import torch

        self._core = shared_core()
        hint = _precision(precision, self._core)
        self._settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
        self._model = _graph(convolutions, torch.zeros((1, 3, 64, 64)), name)
        self._compiled: dict[tuple[int, ...], ov.CompiledModel] = {}

    def __call__(self, pixels: Tensor) -> Maps:
        """The maps of tiles; see `models.networks.detector.CapillaryDetector`."""
        import torch

        shape = (1, *pixels.shape[1:])
        if shape not in self._compiled:
            self._model.reshape(list(shape))
            self._compiled[shape] = self._core.compile_model(self._model, "CPU", self._settings)
        run = self._compiled[shape]
        maps = [[torch.from_numpy(m.copy()) for m in run(tile[None].numpy()).values()] for tile in pixels]
        return tuple(torch.cat(level) for level in zip(*maps, strict=True))


class OpenVinoMaps:
    """A segmenter's maps, several tiles at once, each by one thread; compiled once for every size of tile.

    With several threads for a tile, the last bits of its sums would depend on their number (seen on AVX2).

    Attributes:
        at_once: number of threads that may call it at once.
    """

    def __init__(self, folder: Path, card: SegmenterCard, precision: str) -> None:
        import torch

        from models.checkpoint import load_segmenter

        self._core = shared_core()
        hint = _precision(precision, self._core)
        self.precision = hint.replace("f32", "fp32")
        self.at_once = min(MAPS_AT_ONCE, os.cpu_count() or 1)
        self._settings: dict[str, int | str] = {
            "NUM_STREAMS": self.at_once,
            "INFERENCE_NUM_THREADS": self.at_once,
        }
        self._settings |= {"INFERENCE_PRECISION_HINT": hint}
        self._alone, self._requests = threading.Lock(), threading.local()
        side = card.segmenter.tile_px
        example = torch.zeros((1, side, side, 3), dtype=torch.uint8)
        self._model = _graph(load_segmenter(folder)[0], example, card.name)
        self._compiled: dict[tuple[int, ...], ov.CompiledModel] = {}

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Class probabilities (1, classes, cells, cells) of a tile (1, side, side, 3)."""
        shape = tiles.shape
        with self._alone:
            if shape not in self._compiled:
                self._model.reshape(list(shape))
                self._compiled[shape] = self._core.compile_model(self._model, "CPU", self._settings)
        if getattr(self._requests, "shape", None) != shape:  # of this thread
            self._requests.shape = shape
            self._requests.request = self._compiled[shape].create_infer_request()
        return np.array(self._requests.request.infer(tiles)[0], np.float32)


class OpenVinoFeatures:
    """The features half-way through a model's network, in fp32: how `models.engines.domain` compares patches."""

    def __init__(self, folder: Path, card: ModelCard, frame: ModelCard) -> None:
        """Prepare the model in ``folder`` for patches of the side and spacing of ``frame``."""
        side, core = frame.patch_px, shared_core()
        key = ["middle", card.model_dump_json(), str(side), str(frame.spacing_um)]
        with _converted(
            f"half of {card.name}", key, lambda: _convert_middle(folder, frame, card.name)
        ) as path:
            model = core.read_model(path)
            model.reshape([BATCH, side, side, 3])
            settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}
            self._queue = ov.AsyncInferQueue(core.compile_model(model, "CPU", settings))
        self._alone = threading.Lock()

    def __call__(self, patches: Sequence[RgbImage]) -> npt.NDArray[np.float32]:
        """The features of uint8 patches: (n, d); threads take turns."""
        with self._alone:
            return self._run(patches)

    def _run(self, patches: Sequence[RgbImage]) -> npt.NDArray[np.float32]:
        parts: dict[int, npt.NDArray[np.float32]] = {}

        def receive(request: Any, start: int) -> None:
            parts[start] = request.get_output_tensor(0).data.copy()

        self._queue.set_callback(receive)
        for start in range(0, len(patches), BATCH):
            batch = np.stack(patches[start : start + BATCH])
            padding = np.zeros((BATCH - len(batch), *batch.shape[1:]), np.uint8)
            self._queue.start_async(np.concatenate([batch, padding]), start)
        self._queue.wait_all()
        return np.concatenate([parts[start] for start in sorted(parts)])[: len(patches)]


class _Answer:
    """One block's scores, filled in by the queue's threads."""

    def __init__(self, patches: int, classes: int, batches: int, scored: Callable[[int], None]) -> None:
        self._scored = scored
        self._scores = np.empty((patches, classes), np.float32)
        self._batches_left = batches
        self._lock = threading.Lock()
        self._done = threading.Event()
        if batches == 0:
            self._done.set()

    def put(self, start: int, scores: Scores) -> None:
        stop = min(start + len(scores), len(self._scores))
        self._scores[start:stop] = scores[: stop - start]
        try:
            self._scored(stop - start)
        finally:  # no thread may wait for ever for the block if the callback fails
            with self._lock:
                self._batches_left -= 1
                if self._batches_left == 0:
                    self._done.set()

    def result(self) -> Scores:
        self._done.wait()
        return self._scores


def _receive(request: Any, place: tuple[_Answer, int]) -> None:
    answer, start = place
    answer.put(start, request.get_output_tensor(0).data)


def _precision(setting: str, core: ov.Core) -> str:
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if setting == "bf16" and not has_bf16:
        raise ConfigError("this CPU has neither AMX nor AVX512-bf16; use --precision fp32")
    return "bf16" if has_bf16 and setting in ("auto", "bf16") else "f32"


def _int8_form(models: Models, cfg: EngineConfig) -> Path | None:
    """The int8 graph that is to be run; None: another precision is.

    Raises:
        ConfigError: int8 is asked for, and cannot be had.
    """
    if cfg.precision not in ("int8", "auto"):
        return None
    folder, card = models.folders[0], models.cards[0]
    facts = card.int8
    lacks = ""
    if cfg.output == "features":
        lacks = "features are not computed in int8; leave out --precision"
    elif len(models.cards) > 1 or cfg.orientations > 1:
        lacks = "int8 runs one model in one orientation; leave out --orientations and the second --model"
    elif facts is None:
        lacks = f"{card.name} has no int8 form; make one: wsi models quantise"
    if cfg.precision == "int8":
        if lacks:
            raise ConfigError(f"{lacks}, or use --precision bf16 or fp32")
        if not has_vnni():
            log.warning("this processor has no VNNI: int8 may be slower here than --precision fp32")
    elif lacks or facts is None or not facts.cheap or not has_vnni():
        return None
    on_disk = read_card(folder, ModelCard)  # `--class` changes the card here, and no graph
    if facts is not None and facts.made_from != on_disk.graph_fingerprint:
        raise ModelError(
            f"the int8 form in {folder} is of other weights or another calibration; make it again: wsi models quantise"
        )
    return folder / INT8[0]


def has_vnni() -> bool:
    """Whether the processor multiplies whole numbers in one step; False where that cannot be asked for."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split()
    except (OSError, IndexError):
        return False
    return not {"avx512_vnni", "avx_vnni", "amx_int8"}.isdisjoint(flags)


def _converted_output(models: Models, cfg: EngineConfig) -> AbstractContextManager[Path]:
    key = [cfg.output, str(cfg.orientations), *(card.model_dump_json() for card in models.cards)]
    names = " and ".join(card.name for card in models.cards)
    return _converted(names, key, lambda: output_graph(models, cfg))


@contextmanager
def _converted(names: str, key: Sequence[str], convert: Callable[[], ov.Model]) -> Iterator[Path]:
    """The cached graph of a key, converted if it is missing; for this run only if it cannot be kept."""
    key = [ov.__version__, *key, *_library_versions()]
    key += [
        (_MODELS / source).read_text()
        for source in (
            "networks/contract.py",
            "networks/inception.py",
            "networks/efficientnet.py",
            "networks/backbone.py",
            "registry.py",
            "forms/wsinfer.py",
            "forms/timm_folder.py",
            "forms/build.py",
        )
    ]
    name = hashlib.sha256("\n".join(key).encode()).hexdigest()[:24]
    path = cache_folder() / "openvino" / f"{name}.xml"
    if os.path.exists(path):  # not Path.exists, which raises where the folder may not be looked into
        log.debug("using the converted model %s", path)
        yield path
        return
    log.info("converting %s for OpenVINO (once; kept in %s)", names, path.parent)
    model = convert()
    try:
        _save(model, path)
    except (OSError, RuntimeError) as error:  # OpenVINO raises RuntimeError where it cannot write
        log.warning(
            "cannot keep the converted model in %s (%s); it is for this run only", path.parent, _line(error)
        )
    else:
        yield path
        return
    try:
        folder = tempfile.TemporaryDirectory(prefix="slidewright-")
    except OSError as error:
        raise _no_room(error) from error
    with folder as name:
        path = Path(name) / path.name
        try:
            _save(model, path)
        except (OSError, RuntimeError) as error:
            raise _no_room(error) from error
        yield path


def _library_versions() -> list[str]:
    """Versions of the libraries whose networks are converted."""
    versions = []
    for library in ("torchvision", "timm"):
        try:
            versions.append(metadata.version(library))
        except metadata.PackageNotFoundError:
            versions.append("")
    return versions


def _no_room(error: Exception) -> ConfigError:
    return ConfigError(
        f"the converted model can be written neither to {cache_folder()} nor to {tempfile.gettempdir()} "
        f"({_line(error)}); free space there, or set XDG_CACHE_HOME to a folder that can be written"
    )


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def output_graph(models: Models, cfg: EngineConfig) -> ov.Model:
    """The graph of these weights.

    Raises:
        ConfigError: see `build_output`.
        ModelError: OpenVINO does not know a part of the network.
    """
    import torch

    from models.forms.build import build_output

    size = models.card.patch_px
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    names = " and ".join(card.name for card in models.cards)
    network = build_output(models.folders, cfg.orientations, cfg.output)
    return _graph(network, example, names)


def _convert_middle(folder: Path, frame: ModelCard, name: str) -> ov.Model:
    import torch

    from models.forms.build import build_middle

    example = torch.zeros((2, frame.patch_px, frame.patch_px, 3), dtype=torch.uint8)
    return _graph(build_middle(folder, frame), example, name)


def _graph(network: Any, example: Any, names: str) -> ov.Model:
    """A torch module as a graph of OpenVINO.

    Raises:
        ModelError: OpenVINO does not know a part of it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's and openvino's notes on tracing
        try:
            # a graph that shares the weights would read freed memory once the network is gone
            return ov.convert_model(network, example_input=example, share_weights=False)
        except MemoryError:
            raise
        except Exception as error:  # its front end raises several classes, some of its own
            raise ModelError(
                f"{names} cannot be converted for OpenVINO ({_line(error)}); use --engine torch"
            ) from error


def _save(model: ov.Model, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.{os.getpid()}.xml")
    try:
        ov.save_model(model, partial, compress_to_fp16=False)
        os.replace(partial.with_suffix(".bin"), path.with_suffix(".bin"))
        os.replace(partial, path)  # last, so that a graph that exists is complete
    finally:
        for leftover in (partial, partial.with_suffix(".bin")):
            with suppress(OSError):
                leftover.unlink(missing_ok=True)
