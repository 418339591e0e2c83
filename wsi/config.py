"""The base of every configuration model."""

from pydantic import BaseModel, ConfigDict, ValidationError


class Config(BaseModel):
    """Frozen, exact types, unknown keys refused; defaults live in the class."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def first_mistake(error: ValidationError) -> str:
    """Where the first mistake is, and what it is, on one line; names in a damaged file may be of any length."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the whole of it"
    return f"{shortened(where)}: {shortened(first['msg'])}"


def shortened(text: str, most: int = 120) -> str:
    """The text on one line, cut where it is longer than a sentence has room for."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."
