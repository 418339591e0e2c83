"""Measures of scores and detections: arrays in, numbers out. Imports only boxes."""
