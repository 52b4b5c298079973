"""Models that this repository ships, and how they were made."""
