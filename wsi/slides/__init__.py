"""Slides and their pixels: readers, spacing, overview, tissue, grid of cells, blocks that are read at once.

Every room may enter; this one knows only the words at the top of `wsi`."""
