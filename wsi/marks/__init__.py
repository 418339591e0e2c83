"""Marks on a slide: outlines, boxes, masks, their classes and files. Imports `wsi.slides`."""
