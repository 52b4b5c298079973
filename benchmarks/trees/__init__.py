"""Whether domain trees earn their place: hits by order, bytes, sharing, drift. Needs keys alone."""
