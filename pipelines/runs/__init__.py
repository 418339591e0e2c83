"""What every run over slides or patches shares: the cohort, its folder, settings, what made an output.

Knows neither application.
"""
