"""Files to one matrix of weights, and mixes of its columns back to files."""
