"""Presentation of a comparison: figures, tables, the HTML report. Imports nothing by itself."""
