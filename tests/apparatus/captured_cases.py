"""Score mods that capture a float array in every way that it may be read: for the gradients of captured arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from zoo import ArrayMaker

B, H, L, S = 2, 2, 21, 27
SHAPE = (B, H, L, 8, 1, 1, S, 8)  # batches and heads share keys
rng = np.random.default_rng(0)
SLOPES, ROWS, KEYS = (rng.normal(size=n) for n in ((B, H), (H, L), (H, S)))
BIAS, NEAR, BUCKETS = (rng.normal(size=n) for n in ((H, L + S), (L + S,), (9, H)))
DENSE, OWN, PAIR = (rng.normal(size=n) for n in ((H, L, S), (B, H, S, L), (L, S)))
TABLE, SUM, LEVELS = (rng.normal(size=n) for n in ((5, 6), (L + S,), (7,)))
IDS, KINDS = rng.integers(0, 5, L), rng.integers(0, 6, S)


def of(values: np.ndarray, formula: Any, *ints: np.ndarray) -> Any:
    """A maker of a score_mod that captures one float array, and arrays of ints."""

    def made(array: ArrayMaker) -> Any:
        a, given = array(values), [array(each, "int32") for each in ints]
        return lambda s, b, h, q, k: formula(s, a, *given, b, h, q, k)

    return made


CASES = {
    "number": of(np.array(0.7), lambda s, a, b, h, q, k: s * a),
    "head": of(SLOPES[0], lambda s, a, b, h, q, k: s * a[h]),
    "batch, head": of(SLOPES, lambda s, a, b, h, q, k: s + a[b, h] * (q - k) * 0.1),
    "row": of(ROWS[0], lambda s, a, b, h, q, k: s * a[q]),
    "head, row": of(ROWS, lambda s, a, b, h, q, k: s * a[h, q]),
    "id of a row": of(TABLE[:, 0], lambda s, a, x, b, h, q, k: s * a[x[q]], IDS),
    "key": of(KEYS[0], lambda s, a, b, h, q, k: s * s * a[k]),
    "head, key": of(KEYS, lambda s, a, b, h, q, k: s + a[h][k]),
    "distance": of(NEAR, lambda s, a, b, h, q, k: s + a[q - k + S]),
    "head, distance": of(BIAS, lambda s, a, b, h, q, k: s + a[h, q - k + S]),
    "bucket, head": of(BUCKETS, lambda s, a, b, h, q, k: s + a[min(abs(q - k), 8), h]),
    "head, row, key": of(DENSE, lambda s, a, b, h, q, k: s + a[h, q, k]),
    "batch, head, key, row": of(OWN, lambda s, a, b, h, q, k: s + a[b, h, k, q]),
    "row, key": of(PAIR, lambda s, a, b, h, q, k: s + a[q, k]),
    "ids of both": of(TABLE, lambda s, a, x, y, b, h, q, k: s + a[x[q], y[k]], IDS, KINDS),
    "sum of both": of(SUM, lambda s, a, b, h, q, k: s + a[q + k]),
    "score": of(LEVELS, lambda s, a, b, h, q, k: s + a[int(s * 0.83 + 3.37) % 7]),
    "several times": of(BIAS, lambda s, a, b, h, q, k: s * a[h, q] + a[h, q - k + S] + a[0, k]),
}

LONG_IDS, LONG_KINDS = rng.integers(0, 5, 70), rng.integers(0, 6, 75)
WIDE = {  # of more than one tile
    "head, distance": of(rng.normal(size=(1, 145)), lambda s, a, b, h, q, k: s + a[h, q - k + 74]),
    "row, key": of(rng.normal(size=(70, 75)), lambda s, a, b, h, q, k: s + a[q, k]),
    "ids of both": of(TABLE, lambda s, a, x, y, b, h, q, k: s + a[x[q], y[k]], LONG_IDS, LONG_KINDS),
}
