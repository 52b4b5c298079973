"""An executor's raw numbers as a prediction, by the model's task.

Knows tasks and labels; does not know how the numbers came about.
"""

from services.gateway.answers.prediction import prediction

__all__ = ["prediction"]
