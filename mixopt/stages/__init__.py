"""The steps of a search, each a function of what those before it gave."""
