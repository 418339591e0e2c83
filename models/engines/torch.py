"""PyTorch: the fp32 reference on a CPU; fp16, channels-last, folded and compiled on a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.engines.contract import COMPILE_FROM, EngineConfig, Models
from models.engines.spec import ScoreSpec, keep
from models.forms.build import build_output, output_width
from models.networks.inception import BasicConv2d
from wsi.arrays import Scores
from wsi.errors import ConfigError, ModelError
from wsi.slides.blocks import PatchBlock

log = logging.getLogger(__name__)

BATCH_CPU, BATCH_GPU = 8, 256
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
    """The torch engine, which cuts patches on its device, so that a block is copied to a GPU once, as uint8."""

    def __init__(self, models: Models, cfg: EngineConfig) -> None:
        self.models = models
        self._gpu = torch.cuda.is_available()
        self._device = torch.device("cuda" if self._gpu else "cpu")
        automatic = "fp16" if self._gpu and cfg.output == "scores" else "fp32"
        precision = automatic if cfg.precision == "auto" else cfg.precision
        if precision == "fp16" and not self._gpu:
            raise ConfigError(
                "precision fp16 needs a GPU; use --precision fp32, or --engine openvino for bf16"
            )
        self._batch = cfg.batch or (BATCH_GPU if self._gpu else BATCH_CPU) // cfg.orientations
        network = build_output(models.folders, cfg.orientations, cfg.output)
        self.width = output_width(network, len(models.card.classes))
        if precision != "fp32":
            fold_batch_norm(network)
            network = network.to(_DTYPES[precision])
        self._network = network.to(self._device)
        if self._gpu:
            self._network = self._network.to(memory_format=torch.channels_last)
            torch.backends.cudnn.allow_tf32 = precision != "fp32"  # TF32 keeps 10 bits of a mantissa
        self._compiled: nn.Module | None = None
        self._run: nn.Module = self._network
        name = torch.cuda.get_device_name() if self._gpu else "CPU"
        output_text = ", features" if cfg.output == "features" else ""
        orientation_text = f", mean of {cfg.orientations} orientations" if cfg.orientations > 1 else ""
        how = f"{precision}, batches of {self._batch}{orientation_text}"
        self.description = f"torch {torch.__version__}{output_text}, {how}, {name}"
        self.spec = ScoreSpec(models, cfg, self.description)
        keep(self.spec, self)

    def expect(self, patches: int) -> None:
        """Compile for a large slide; the whole slide decides, so that a resumed run computes the same."""
        self._run = self._network
        if self._gpu and patches >= COMPILE_FROM:
            self._compiled = self._compiled or self._compile()
            self._run = self._compiled

    def score(
        self, blocks: Iterable[PatchBlock], *, scored: Callable[[int], None] = lambda patches: None
    ) -> Iterator[Scores]:
        """Scores of each block; see `Engine`."""
        for block in blocks:
            yield self._score_block(block, scored)

    def _score_block(self, block: PatchBlock, scored: Callable[[int], None]) -> Scores:
        pixels = torch.from_numpy(np.ascontiguousarray(block.pixels)).to(self._device)
        offsets = torch.from_numpy(block.offsets_px).to(self._device)
        block_scores = np.empty((len(block), self.width), np.float32)
        start = 0
        while start < len(block):
            try:
                scores = self._score_batch(pixels, offsets[start : start + self._batch], block.size_px)
            except torch.cuda.OutOfMemoryError as error:
                self._halve(error)
                continue
            block_scores[start : start + len(scores)] = scores
            start += len(scores)
            scored(len(scores))
        return block_scores

    @torch.inference_mode()
    def _score_batch(self, pixels: Tensor, offsets: Tensor, size: int) -> Scores:
        count = len(offsets)
        if (
            count < self._batch
        ):  # a single batch size needs one compiled graph only, and always gives the same sums
            offsets = torch.cat([offsets, offsets[:1].expand(self._batch - count, 2)])
        scores: Scores = self._run(cut(pixels, offsets, size))[:count].float().cpu().numpy()
        return scores

    def _halve(self, error: Exception) -> None:
        if self._batch == 1:
            raise ModelError("the GPU has no memory left for one patch; end other programs on it") from error
        self._batch //= 2
        torch.cuda.empty_cache()
        log.warning("the GPU ran out of memory; going on with batches of %d", self._batch)

    def _compile(self) -> nn.Module:
        log.info("compiling the network for the GPU (about half a minute)")
        try:
            # freezing lets the compiler fold the weights into the kernels
            compiled: nn.Module = torch.compile(self._network, options={"freezing": True})  # type: ignore[assignment]
            size = self.models.card.patch_px
            with torch.inference_mode():
                compiled(torch.zeros((self._batch, size, size, 3), dtype=torch.uint8, device=self._device))
        except Exception as error:  # without C compiler or Triton the back ends raise various classes
            log.warning("the network cannot be compiled (%s); going on without", type(error).__name__)
            return self._network
        return compiled


def cut(pixels: Tensor, offsets: Tensor, size: int) -> Tensor:
    """Patches (n, size, size, 3) of a block (h, w, 3) by their (n, 2) x, y corners, on its device."""
    steps = torch.arange(size, device=pixels.device)
    rows = (offsets[:, 1, None] + steps)[:, :, None]  # (n, size, 1)
    cols = (offsets[:, 0, None] + steps)[:, None, :]  # (n, 1, size)
    return pixels[rows, cols]


def fold_batch_norm(network: nn.Module) -> None:
    """Multiply every batch normalisation into the convolution before it, in fp32."""
    for module in network.modules():
        if isinstance(module, BasicConv2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()  # type: ignore[assignment]
