"""Many slides or patches whose truth is known: rules of a data set, truth as cells, folders of patches.

Imports `wsi.marks` and `wsi.slides`.
"""
