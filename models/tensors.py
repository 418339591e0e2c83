"""Arrays of a model on disk: safetensors, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from wsi.files import replacing


def write_tensors(path: Path, arrays: Mapping[str, Tensor], facts: dict[str, str] | None = None) -> None:
    """Write named arrays, from any device.

    Args:
        path: the file, which is replaced.
        arrays: by name.
        facts: texts that are kept in the file's header.

    Raises:
        StoreError: the file cannot be written.
    """
    whole = {name: array.detach().cpu().contiguous() for name, array in arrays.items()}
    with replacing(path) as partial:
        try:
            save_file(whole, partial, facts)
        except SafetensorError as error:  # safetensors raises it for a full disk
            raise OSError(str(error)) from error
