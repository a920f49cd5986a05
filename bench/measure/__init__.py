"""From a run to its figures, and what the device could do at most."""
