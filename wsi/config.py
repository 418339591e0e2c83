"""The base of every configuration model."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Frozen, exact types, unknown keys refused; defaults live in the class."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
