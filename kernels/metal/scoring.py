"""AttentionCall -> Scoring: how a kernel gets scores from q and k, and what that adds to its text."""

from __future__ import annotations

from dataclasses import dataclass

from ..call import AttentionCall

_CONSTANTS = """\
constexpr constant bool QUANTISED = {quantised};
constexpr constant bool SMOOTHED_Q = {smoothed_q};
constexpr constant bool ADD_BACK = {add_back};"""
_METHODS = """\
  // Of rows and keys, by their number among those of all batches and heads.
  float row_scale(int64_t row) const thread {{ return {row_scale}; }}
  float key_scale(int64_t key) const thread {{ return {key_scale}; }}
  float row_term(int64_t row) const thread {{ return {row_term}; }}
  int mean_of_row(int64_t row) const thread {{ return {mean_of_row}; }}
  float mean_score(int64_t at) const thread {{ return {mean_score}; }}"""


@dataclass(frozen=True)
class Scoring:
    """quantised: q and k are whole numbers, k as int8, with a scale per row and key. add_back: each row has a term
    that goes to its scores before score_mod. smoothed_q: what q lacks to its own values is one of some mean rows, of
    which there are scores too."""

    quantised: bool = False
    add_back: bool = False
    smoothed_q: bool = False

    @property
    def inputs(self) -> dict[str, str]:
        """The buffers that it adds, and their types: a number per row of each query head, or per key of each kv head;
        of mean_scores, for each mean row a number per key."""
        scales = {"row_scales": "float", "key_scales": "float"} if self.quantised else {}
        terms = {"row_terms": "float"} if self.add_back else {}
        return scales | terms | ({"mean_rows": "int", "mean_scores": "float"} if self.smoothed_q else {})

    @property
    def parameters(self) -> list[str]:
        return [f"const device {kind}* {name}" for name, kind in self.inputs.items()]

    def hole(self) -> dict[str, str]:
        """Its parts of the generated mod.h."""
        flags = {"quantised": self.quantised, "smoothed_q": self.smoothed_q, "add_back": self.add_back}
        bodies = {
            "row_scale": "row_scales[row]" if self.quantised else "1.0f",
            "key_scale": "key_scales[key]" if self.quantised else "1.0f",
            "row_term": "row_terms[row]" if self.add_back else "0.0f",
            "mean_of_row": "mean_rows[row]" if self.smoothed_q else "0",
            "mean_score": "mean_scores[at]" if self.smoothed_q else "0.0f",
        }
        written = {name: "true" if flag else "false" for name, flag in flags.items()}
        return {"scoring_constants": _CONSTANTS.format(**written), "scoring_methods": _METHODS.format(**bodies)}


PLAIN = Scoring()


def scoring_of(call: AttentionCall) -> Scoring:
    """Nothing is left to quantise or smooth where there is no element."""
    if call.q.size * call.k.size == 0:
        return PLAIN
    quant, smoothing = call.quant, call.smoothing
    return Scoring(
        quant is not None, smoothing is not None and smoothing.add_back, quant is not None and quant.smooth_q
    )
