"""Makes split bases: local encoders distilled from a base, and adapted to a domain."""
