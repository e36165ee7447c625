"""Which labels of a joint problem need no filtering, with a proven bound on what that changes.

A frozen label takes part in every softmax with a logit that no longer changes, so filtering it is
saved. Two rules decide. Notation: Q is a label's posterior, Q0 its normalized score, m its message
(the weighted sum of its filtered posteriors).

Messages are never negative, so the denominator of the softmax never falls below that of Q0, and
`Q <= Q0 exp(m)` at every pixel and iteration. Freezing the message anywhere between 0 and its true
value changes the denominator by a share of at most `Q0 (exp(m) - 1)`.

1. Before filtering: with W the message of a label that is certain everywhere and q the largest Q0,
   `m <= W max Q`; hence `Q <= q exp(e q W)` for ever as long as `e q W <= 1`.
2. After the first iteration: filters are linear and positive, so `m <= exp(max m) m1` with m1 the
   first message; hence `m <= exp(e max m1) m1` for ever as long as `e max m1 <= 1`.
"""

# N: pixels; M: labels.

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from latticecrf.checks import Float32Array
from latticecrf.mean_field.joint_updates import largest_products
from latticecrf.simd.rows import WIDE

Float64Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# How much the frozen labels together may change a softmax denominator, as a share of it.
_BUDGET_BEFORE = 1e-6
_BUDGET_AFTER = 5e-4


def largest_shares(
    scores_MN: Float32Array, floor: np.float32, inverse_N: Float32Array
) -> Float64Array:
    """The largest Q0 of every label, float64 [M].

    Args:
        scores_MN: Scores, float32 [M, N], clipped here.
        floor: Scores below it count as this much.
        inverse_N: One over the sum of the clipped ones, float32 [N].
    """
    shares_M = np.empty(len(scores_MN), np.float32)
    largest_products(WIDE, (0,), scores_MN, floor, inverse_N, shares_M)
    return shares_M.astype(np.float64)


def weak_labels(largest_M: Float64Array, strongest: float) -> Mask:
    """Labels to freeze before filtering, with no message at all (rule 1).

    Args:
        largest_M: See `largest_shares`.
        strongest: The W of rule 1.

    Returns:
        bool [M]; the strongest label is never frozen.
    """
    first_M = math.e * largest_M * strongest
    message_M = strongest * largest_M * np.exp(np.minimum(first_M, 1.0))
    with np.errstate(over="ignore"):
        cost_M = largest_M * np.expm1(message_M)
    return _within(cost_M, first_M <= 1.0, largest_M, _BUDGET_BEFORE)


def growth(highest_M: Float64Array) -> Float64Array:
    """The factor `exp(e max m1)` of rule 2; infinite where the rule does not hold.

    Args:
        highest_M: The largest first message of every label, float64 [M].
    """
    first_M = math.e * highest_M
    return np.where(first_M <= 1.0, np.exp(np.minimum(first_M, 1.0)), np.inf)


def settled_labels(cost_M: Float64Array, largest_M: Float64Array) -> Mask:
    """Labels to freeze at their first message (rule 2).

    Args:
        cost_M: The largest `Q0 (exp(m) - 1)` over the pixels, m as large as rule 2 lets it
            become, float64 [M]; infinite where the rule does not hold.
        largest_M: See `largest_shares`.

    Returns:
        bool [M]; the strongest label is never frozen.
    """
    return _within(cost_M, np.isfinite(cost_M), largest_M, _BUDGET_AFTER)


def _within(cost_M: Float64Array, allowed_M: Mask, size_M: Float64Array, budget: float) -> Mask:
    """The cheapest allowed labels whose costs fit the budget, never the largest one."""
    chosen_M = np.zeros(len(cost_M), np.bool_)
    cheapest_first = np.argsort(cost_M, kind="stable")
    cheapest_first = cheapest_first[cheapest_first != size_M.argmax()]
    fits = np.cumsum(cost_M[cheapest_first]) <= budget
    chosen_M[cheapest_first[fits & allowed_M[cheapest_first]]] = True
    return chosen_M
