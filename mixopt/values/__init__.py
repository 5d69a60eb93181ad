"""Values that flow between the parts: frozen, and without torch."""
