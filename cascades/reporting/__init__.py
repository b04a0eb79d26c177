"""What people see of a comparison: figures, tables, the page. Imports nothing by itself."""
