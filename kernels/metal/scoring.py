"""AttentionCall -> Scoring: how a kernel gets scores from q and k, and what that adds to its text."""

from __future__ import annotations

from dataclasses import dataclass

from ..call import AttentionCall


@dataclass(frozen=True)
class Scoring:
    """quantised: q and k are whole numbers, k as int8, with a scale per row and key. add_back: each row has a term
    that goes to its scores before score_mod."""

    quantised: bool = False
    add_back: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """The buffers that it adds, float32: a number per row of each query head, and per key of each kv head."""
        scales = ("row_scales", "key_scales") if self.quantised else ()
        return (*scales, "row_terms") if self.add_back else scales

    def key_type(self, element: str) -> str:
        return "int8_t" if self.quantised else element

    def hole(self) -> dict[str, str]:
        """Its parts of the generated mod.h."""
        return {
            "quantised": "true" if self.quantised else "false",
            "add_back": "true" if self.add_back else "false",
            "row_scale": "row_scales[row]" if self.quantised else "1.0f",
            "key_scale": "key_scales[key]" if self.quantised else "1.0f",
            "row_term": "row_terms[row]" if self.add_back else "0.0f",
        }


PLAIN = Scoring()


def scoring_of(call: AttentionCall) -> Scoring:
    """Nothing is left to quantise or smooth where there is no element."""
    if call.q.size * call.k.size == 0:
        return PLAIN
    return Scoring(call.quant is not None, call.smoothing is not None and call.smoothing.add_back)
