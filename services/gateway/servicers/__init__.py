"""The gateway's RPCs: each parses, calls and replies; none decides anything."""
