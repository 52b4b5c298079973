"""What the executor tells the knowledge store of the n-grams it looked up."""

from services.executor.observe.counter import Counter
from services.executor.observe.shipping import Shipper

__all__ = ["Counter", "Shipper"]
