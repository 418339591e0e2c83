"""Whole runs, reports and the command line."""
