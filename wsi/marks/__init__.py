"""What is marked on a slide: outlines, boxes, masks, their classes and files. Knows `wsi.slides`."""
