"""The steps of a search, each a function of frozen values."""
