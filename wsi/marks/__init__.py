"""Marks on a slide: outlines, boxes, masks and their files. Imports `wsi.slides`."""
