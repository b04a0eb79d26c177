"""FLAN2021: published data sets, worded as instructions in ten ways each."""
