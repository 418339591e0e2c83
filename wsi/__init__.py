"""Slides, tissue, grids, heatmaps and geometry, without any network."""
