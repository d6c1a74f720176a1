"""Known causes of a disagreement, recognised by their numbers.

A hint is given where the numbers leave no other way, up to rounding. Nothing here raises, whatever arrays hold, and of
what layers take and give only a part is looked at where it is large. In what a hint says, "there" is the reference and
"here" the candidate.
"""

from ...core.activation_functions import FUNCTIONS
from .between import explain_between
from .layer import explain_layer
from .numerics import padded, unpadded
from .values import explain_values

__all__ = ["FUNCTIONS", "explain_between", "explain_layer", "explain_values", "padded", "unpadded"]
