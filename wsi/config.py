"""The base of every configuration model."""

from pydantic import BaseModel, ConfigDict, ValidationError


class Config(BaseModel):
    """A frozen model with exact types that refuses unknown keys; its defaults are in the class."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def first_mistake(error: ValidationError) -> str:
    """Place and kind of the first mistake, on one line; both are shortened, as a damaged file may hold long names."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the whole of it"
    return f"{shortened(where)}: {shortened(first['msg'])}"


def shortened(text: str, most: int = 120) -> str:
    """The text on one line, cut to at most ``most`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."
