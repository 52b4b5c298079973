"""The general hMiniLM encoder, and how it was made."""
