"""What comes in: layouts, tables, checks, splits, and the manifest that `prepare` writes."""
