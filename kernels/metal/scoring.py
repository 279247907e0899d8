"""AttentionCall -> Scoring: how a kernel gets scores from q and k and rows from v, and what that adds to its text."""

from __future__ import annotations

from dataclasses import dataclass

from ..call import AttentionCall

_OF_KEY = "{0}[batch * {0}_strides[0] + head * {0}_strides[1] + key * {0}_strides[2]]"


@dataclass(frozen=True)
class Scoring:
    """quantised: q and k are whole numbers, k as int8, with a scale per row and key. add_back: each row has a term
    that goes to its scores before score_mod. smoothed_q: what q lacks to its own values is one of some mean rows, of
    which there are scores too. int8_values: v is int8, with a scale per key; value_means: and lacks a mean row."""

    quantised: bool = False
    add_back: bool = False
    smoothed_q: bool = False
    int8_values: bool = False
    value_means: bool = False

    @property
    def inputs(self) -> dict[str, str]:
        """The buffers that it adds, and their types: a number per row of each query head, per key of each kv head, or
        per column of v of each kv head; of mean_scores, for each mean row a number per key."""
        scales = {"row_scales": "float", "key_scales": "float"} if self.quantised else {}
        terms = {"row_terms": "float"} if self.add_back else {}
        means = {"mean_rows": "int", "mean_scores": "float"} if self.smoothed_q else {}
        values = {"value_scales": "float"} if self.int8_values else {}
        return scales | terms | means | values | ({"value_means": "float"} if self.value_means else {})

    @property
    def strided(self) -> tuple[str, ...]:
        """Those of its inputs that are read where they lie, [kv_batches, kv_heads, kv_len] by strides, like k and v."""
        return tuple(name for name in self.inputs if name in ("key_scales", "value_scales"))

    @property
    def parameters(self) -> list[str]:
        found = []
        for name, kind in self.inputs.items():
            found.append(f"const device {kind}* {name}")
            found += [f"const constant int64_t* {name}_strides"] if name in self.strided else []
        return found

    @property
    def values(self) -> dict[str, str]:
        """Its parts of the hole, where they are not as mod.h lies: constants, and what functions of one line return."""
        quantised = {"QUANTISED": "true", "key_scale": _OF_KEY.format("key_scales"), "row_scale": "row_scales[row]"}
        smoothed = {"SMOOTHED_Q": "true", "mean_of_row": "mean_rows[row]", "mean_score": "mean_scores[at]"}
        parts = (
            (self.quantised, quantised),
            (self.smoothed_q, smoothed),
            (self.add_back, {"ADD_BACK": "true", "row_term": "row_terms[row]"}),
            (self.int8_values, {"INT8_VALUES": "true", "value_scale": _OF_KEY.format("value_scales")}),
            (self.value_means, {"VALUE_MEANS": "true", "value_mean": "value_means[column]"}),
        )
        return {name: value for wanted, values in parts if wanted for name, value in values.items()}


PLAIN = Scoring()


def scoring_of(call: AttentionCall) -> Scoring:
    """Nothing is left to quantise or smooth of q and k where they have no element."""
    values = {"int8_values": call.v_scales is not None, "value_means": call.v_means is not None}
    if call.q.size * call.k.size == 0:
        return Scoring(**values)
    quant, smoothing = call.quant, call.smoothing
    return Scoring(
        quant is not None,
        smoothing is not None and smoothing.add_back,
        quant is not None and quant.smooth_q,
        **values,
    )
