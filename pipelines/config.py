"""YAML files to frozen configuration models, with errors a person can act on."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from wsi.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def load_config(
    path: Path,
    model: type[Model],
    overrides: dict[str, Any] | None = None,
    reset: Collection[str] = (),
) -> Model:
    """Read a YAML file strictly: unknown keys and wrong types are refused.

    Args:
        path: the file.
        model: what it must be.
        overrides: values from the command line that replace the file's; None values are left out.
        reset: keys of which the command line replaces all when it gives one: they exclude each other.

    Raises:
        ConfigError: names the file, the key and what is wrong.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); check the path") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold keys and values, got {type(value).__name__}")
    given = {k: v for k, v in (overrides or {}).items() if v is not None}
    if any(key in given for key in reset):
        value = {k: v for k, v in value.items() if k not in reset}
    return parse_config(str(path), value | given, model)


def parse_config(name: str, value: dict[str, Any], model: type[Model]) -> Model:
    """Check plain values against a model; through JSON, so that a list may be a tuple and text a path."""
    try:
        return model.model_validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        known = (
            f"; known keys are {', '.join(model.model_fields)}" if first["type"] == "extra_forbidden" else ""
        )
        raise ConfigError(
            f"{name}: {where}: {first['msg'].lower()} (got {_short(first['input'])}){known}"
        ) from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
