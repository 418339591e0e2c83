"""The parts that every run over slides or patches shares: cohort, folder, settings, record of what made an output.

They know neither of the two applications.
"""
