"""Results of a slide: heatmaps in zarr, and files for other programs. Imports `wsi.marks` and `wsi.slides`."""
