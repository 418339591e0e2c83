"""Segmentation of slides: the class of every place, outlines, areas."""
