"""The verbs: one module each, and the run folder that they share."""
