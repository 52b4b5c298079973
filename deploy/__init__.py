"""Container and Kubernetes files, and the checks of them that need no container engine."""
