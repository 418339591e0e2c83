"""Slides and their pixels: readers, spacing, overview, tissue, grid of cells, blocks that are read at once.

Every other package of `wsi` may import this one; it imports only the modules at the top of `wsi`.
"""
