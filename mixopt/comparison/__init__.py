"""Named recipes to rows of a table."""
