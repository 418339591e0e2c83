"""``python -m pipelines.cli`` is ``wsi``."""

from pipelines.cli import main

main()
