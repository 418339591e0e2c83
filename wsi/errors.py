"""Errors that a user can mend: each message names the file, the value and the way out."""


class WsiError(Exception):
    """Base of every error that the command line prints as one sentence, without a traceback."""


class SlideError(WsiError):
    """A slide that cannot be opened or read."""


class UnknownFormatError(SlideError):
    """A file of a form that this reader does not know, but another reader may; never a broken file of a known form."""


class RegionError(SlideError):
    """One region of a slide that cannot be decoded; the rest may be fine."""


class MissingMppError(SlideError):
    """A slide whose micron size is missing, absurd or differs between x and y."""


class SpacingError(SlideError):
    """A slide too coarse for the wanted spacing."""


class AnnotationError(WsiError):
    """An annotation or mask file that cannot be used."""


class StoreError(WsiError):
    """An output folder that belongs to another run, or cannot be written."""


class ForeignStoreError(StoreError):
    """One slide's results that belong to another run, or are broken; other slides are not touched."""


class ConfigError(WsiError):
    """A configuration, manifest or option with a wrong name or value."""


class ModelError(WsiError):
    """A checkpoint that is broken, incomplete or of another kind."""
