"""A mix to a score: fused, evaluated, cached."""
