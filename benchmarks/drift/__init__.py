"""Traffic that moves, and traffic that floods, through running services: what tables make of it."""
