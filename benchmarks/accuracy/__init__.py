"""What a split base costs in quality, against its unsplit base and against controls."""
