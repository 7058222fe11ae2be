"""Show an analysis: page, plots, tables and sentences."""
