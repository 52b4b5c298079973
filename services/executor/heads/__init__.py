"""The task layers of a batch's rows."""

from services.executor.heads.run import BatchHeads

__all__ = ["BatchHeads"]
