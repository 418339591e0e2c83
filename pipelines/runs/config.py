"""YAML files to frozen configuration models, with errors a person can act on."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from wsi.config import shortened
from wsi.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: a few bytes of them can stand for more than memory holds, or for themselves."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]
            where = f"line {event.start_mark.line + 1} uses the alias *{event.anchor}"
            raise yaml.YAMLError(f"{where}, and aliases are not read: write it out")
        return super().compose_node(parent, index)


def load_config(
    path: Path,
    model: type[Model],
    overrides: dict[str, Any] | None = None,
    reset: Collection[str] = (),
) -> Model:
    """Read a YAML file strictly: unknown keys and wrong types are refused.

    Args:
        path: the file.
        model: the configuration model that the file must match.
        overrides: values from the command line that replace the file's; None values are left out.
        reset: keys that exclude each other: if the command line gives one of them, it replaces all of them.

    Raises:
        ConfigError: names the file, the key and what is wrong.
    """
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _PlainLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} cannot be read ({reason}); check the path") from error
    except RecursionError as error:
        raise ConfigError(f"{path} nests lists or keys too deeply; no setting does") from error
    except (yaml.YAMLError, ValueError) as error:  # YAML raises a ValueError for an impossible date
        raise ConfigError(f"{path} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold keys and values, got {type(value).__name__}")
    settings = {k: v for k, v in (overrides or {}).items() if v is not None}
    if any(key in settings for key in reset):
        value = {k: v for k, v in value.items() if k not in reset}
    return parse_config(str(path), value | settings, model)


def parse_config(name: str, value: dict[str, Any], model: type[Model]) -> Model:
    """Check plain values against a model. They pass through JSON, so that a list may be a tuple and text a path."""
    try:
        return model.model_validate_json(json.dumps(value, default=str))
    except (RecursionError, OverflowError) as error:
        raise ConfigError(f"{name} holds a value that no setting takes ({error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        path_parts = (
            str(part) for part in first["loc"] if "[" not in str(part)
        )  # pydantic's name of a union's branch
        key_path = ".".join(path_parts) or "the file"
        level = _level(model, first["loc"][:-1])
        is_unknown_key = first["type"] == "extra_forbidden" and level is not None
        key_text = f"; known keys are {', '.join(level.model_fields)}" if is_unknown_key and level else ""
        raise ConfigError(
            f"{name}: {shortened(key_path)}: {shortened(first['msg'].lower())} (got {_short(first['input'])}){key_text}"
        ) from error


def _level(model: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel] | None:
    """The model at a path inside another model; None where there is no model."""
    for key in path:
        field = model.model_fields.get(str(key))
        types = [] if field is None else [field.annotation, *get_args(field.annotation)]
        models = [kind for kind in types if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not models:
            return None
        model = models[0]
    return model


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
