"""What is written for a slide: heatmaps in zarr, and files for other programs. Knows `wsi.marks` and `wsi.slides`."""
