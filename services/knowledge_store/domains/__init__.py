"""Domain trees: their nodes, their tables, and the updates that change them."""
