"""Functions of other libraries -> what to write in a mod: the one table behind porting errors.

A row is `signature: replacement`, both in Python. The parameters of the signature stand for the user's arguments, in
the replacement too; an annotated one must be just that literal. Names say what a parameter takes: x, y, z a number;
i, j an int; condition a bool; dtype a type, annotated as mx has it; device a place; array a captured array; the rest
are options of the library's own names.
Several rows may share a name: the first that takes the call's arguments holds.
"""

from __future__ import annotations

ONE = (
    "exp expm1 log log2 log10 log1p sqrt rsqrt sin cos tan sinh cosh tanh arcsin arccos arctan arcsinh arccosh arctanh "
    "abs square reciprocal sign negative floor ceil isnan isinf isfinite isposinf isneginf erf sigmoid logical_not "
    "zeros_like ones_like degrees radians"
).split()
TWO = (
    "add subtract multiply divide floor_divide remainder power minimum maximum logaddexp arctan2 equal not_equal less "
    "less_equal greater greater_equal logical_and logical_or"
).split()
TWO_INTS = "bitwise_and bitwise_or bitwise_xor left_shift right_shift".split()
ALIASES = {  # other names of functions of mx -> its own
    **{f"a{name}": f"arc{name}" for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
    **{"absolute": "abs", "fabs": "abs", "neg": "negative", "sgn": "sign", "expit": "sigmoid", "logistic": "sigmoid"},
    **{"rad2deg": "degrees", "deg2rad": "radians", "sqrt_rn": "sqrt", "sub": "subtract", "mul": "multiply"},
    **{"div": "divide", "true_divide": "divide", "fdiv": "divide", "div_rn": "divide", "mod": "remainder"},
    **{"pow": "power", "float_power": "power", "atan2": "arctan2", "eq": "equal", "ne": "not_equal", "lt": "less"},
    **{"le": "less_equal", "gt": "greater", "ge": "greater_equal", "bitwise_left_shift": "left_shift"},
    **{"bitwise_right_shift": "right_shift", "shift_left": "left_shift", "shift_right_arithmetic": "right_shift"},
}
ELEMENTWISE: dict[str, str] = {
    **{f"{name}(x)": f"mx.{name}(x)" for name in ONE},
    **{f"{name}(x, y)": f"mx.{name}(x, y)" for name in TWO},
    **{f"{name}(i, j)": f"mx.{name}(i, j)" for name in TWO_INTS},
    **{f"{name}(x)": f"mx.{known}(x)" for name, known in ALIASES.items() if known in ONE},
    **{f"{name}(x, y)": f"mx.{known}(x, y)" for name, known in ALIASES.items() if known in TWO},
    **{f"{name}(i, j)": f"mx.{known}(i, j)" for name, known in ALIASES.items() if known in TWO_INTS},
    "where(condition, x, y)": "mx.where(condition, x, y)",
    "clip(x, min=None, max=None)": "mx.clip(x, min, max)",
    "clip(x, a_min, a_max)": "mx.clip(x, a_min, a_max)",
    "clamp(x, min=None, max=None)": "mx.clip(x, min, max)",
    "clamp_min(x, min)": "mx.maximum(x, min)",
    "clamp_max(x, max)": "mx.minimum(x, max)",
    "fmax(x, y)": "y if mx.isnan(x) or x < y else x",
    "fmin(x, y)": "y if mx.isnan(x) or y < x else x",
    "logical_xor(x, y)": "bool(x) != bool(y)",
    "bitwise_not(i)": "mx.bitwise_invert(i)",
    "invert(i)": "mx.bitwise_invert(i)",
    "round(x)": "mx.round(x)",
    "around(x)": "mx.round(x)",
    "rint(x)": "mx.round(x)",
    "trunc(x)": "np.trunc(x)",
    "fix(x)": "np.trunc(x)",
    "frac(x)": "x - np.trunc(x)",
    "positive(x)": "+x",
    "exp2(x)": "np.exp2(x)",
    "cbrt(x)": "mx.sign(x) * mx.abs(x) ** (1 / 3)",
    "erfc(x)": "1 - mx.erf(x)",
    "logit(x)": "mx.log(x / (1 - x))",
    "xlogy(x, y)": "mx.where(x == 0, 0.0, x * mx.log(y))",
    "fmod(x, y)": "math.fmod(x, y)",
    "hypot(x, y)": "math.hypot(x, y)",
    "copysign(x, y)": "math.copysign(x, y)",
    "signbit(x)": "math.copysign(1, x) < 0",
    "ldexp(x, i)": "x * 2.0 ** i",
    "fma(x, y, z)": "x * y + z",
    "cdiv(i, j)": "-(-i // j)",
    "lerp(x, y, weight)": "x + weight * (y - x)",
    "heaviside(x, y)": "mx.where(x == 0, y, float(x > 0))",
    "isclose(x, y, rtol=1e-05, atol=1e-08)": "mx.abs(x - y) <= atol + rtol * mx.abs(y)",
    "nan_to_num(x, nan=0.0)": "mx.clip(mx.where(mx.isnan(x), nan, x), -3.4028235e+38, 3.4028235e+38)",
    "stop_gradient(x)": "mx.stop_gradient(x)",
    "take(array, i)": "array[i]",
}
GELU = "0.5 * x * (1 + mx.erf(x / 2 ** 0.5))"
TANH_GELU = "0.5 * x * (1 + mx.tanh(0.7978845608028654 * (x + 0.044715 * x ** 3)))"
ACTIVATIONS: dict[str, str] = {
    "relu(x)": "mx.maximum(x, 0)",
    "relu6(x)": "mx.clip(x, 0, 6)",
    "leaky_relu(x, negative_slope=0.01)": "mx.where(x > 0, x, negative_slope * x)",
    "elu(x, alpha=1.0)": "mx.where(x > 0, x, alpha * mx.expm1(x))",
    "selu(x)": "1.0507009873554805 * mx.where(x > 0, x, 1.6732632423543772 * mx.expm1(x))",
    "silu(x)": "x * mx.sigmoid(x)",
    "swish(x)": "x * mx.sigmoid(x)",
    "mish(x)": "x * mx.tanh(mx.logaddexp(x, 0))",
    "gelu(x, approximate: 'none'='none')": GELU,
    "gelu(x, approximate: 'tanh')": TANH_GELU,
    "gelu_approx(x)": TANH_GELU,
    "softplus(x)": "mx.logaddexp(x, 0)",
    "softplus(x, beta)": "mx.logaddexp(beta * x, 0) / beta",
    "softplus(x, beta, threshold)": "mx.where(beta * x > threshold, x, mx.logaddexp(beta * x, 0) / beta)",
    "log_sigmoid(x)": "-mx.logaddexp(-x, 0)",
    "logsigmoid(x)": "-mx.logaddexp(-x, 0)",
    "hardtanh(x, min_val=-1.0, max_val=1.0)": "mx.clip(x, min_val, max_val)",
    "hard_tanh(x)": "mx.clip(x, -1, 1)",
    "hardsigmoid(x)": "mx.clip(x / 6 + 0.5, 0, 1)",
    "hard_sigmoid(x)": "mx.clip(x / 6 + 0.5, 0, 1)",
    "hardswish(x)": "x * mx.clip(x / 6 + 0.5, 0, 1)",
    "softsign(x)": "x / (1 + mx.abs(x))",
    "soft_sign(x)": "x / (1 + mx.abs(x))",
    "squareplus(x, b=4)": "0.5 * (x + mx.sqrt(x * x + b))",
    "tanhshrink(x)": "x - mx.tanh(x)",
    "threshold(x, threshold, value)": "mx.where(x > threshold, x, value)",
}
TYPES: dict[str, str] = {  # array types called like functions
    **{f"{name}(x)": "float(x)" for name in "float16 float32 float64 bfloat16 half single double".split()},
    **{f"{name}(x)": "int(x)" for name in "int8 int16 int32 int64 uint8 uint16 uint32 uint64 intc int_".split()},
    "bool(x)": "bool(x)",
    "bool_(x)": "bool(x)",
}


def _by_dtype(name: str, parameters: str, number: str, otherwise: str) -> dict[str, str]:
    """The rows of a function that fills an array with a number."""
    return {
        f"{name}({parameters}, dtype: mx.bool_, **options)": str(bool(int(number))),
        f"{name}({parameters}, dtype: mx.int32, **options)": number,
        f"{name}({parameters}, dtype: mx.float32, **options)": f"{number}.0",
        f"{name}({parameters}, **options)": otherwise,
    }


MAKERS: dict[str, str] = {  # a mod has numbers where these make arrays
    **{f"{name}(x, **options)": "x" for name in "tensor as_tensor asarray array scalar_tensor constant".split()},
    "full_like(x, fill_value, **options)": "fill_value",
    "full(shape, fill_value, *options, **more)": "fill_value",
    **_by_dtype("zeros", "shape", "0", "0.0"),
    **_by_dtype("ones", "shape", "1", "1.0"),
    **_by_dtype("zeros_like", "x", "0", "mx.zeros_like(x)"),
    **_by_dtype("ones_like", "x", "1", "mx.ones_like(x)"),
    "finfo(dtype)": "mx.finfo(dtype)",
    "iinfo(dtype)": "mx.iinfo(dtype)",
}
SHARED = {**ELEMENTWISE, **ACTIVATIONS, **TYPES, **MAKERS}


def _with(own: dict[str, str], shared: dict[str, str] = SHARED) -> dict[str, str]:
    """The rows of one library: its own, and the shared ones of other names."""
    names = {signature.partition("(")[0] for signature in own}
    return {**own, **{row: write for row, write in shared.items() if row.partition("(")[0] not in names}}


TORCH = {
    "max(x, y)": "mx.maximum(x, y)",
    "min(x, y)": "mx.minimum(x, y)",
    "add(x, y)": "mx.add(x, y)",
    "add(x, y, alpha)": "x + alpha * y",
    "sub(x, y)": "mx.subtract(x, y)",
    "sub(x, y, alpha)": "x - alpha * y",
    "div(x, y)": "mx.divide(x, y)",
    "div(x, y, rounding_mode: None)": "mx.divide(x, y)",
    "div(x, y, rounding_mode: 'floor')": "mx.floor_divide(x, y)",
    "div(x, y, rounding_mode: 'trunc')": "np.trunc(x / y)",
    "masked_fill(x, condition, value)": "mx.where(condition, value, x)",
    **_by_dtype("zeros", "*shape", "0", "0.0"),
    **_by_dtype("ones", "*shape", "1", "1.0"),
}
SYNONYMS: dict[str, tuple[str, ...]] = {  # parameters of torch's functions -> those of the rows
    "input": ("x", "i"),
    "other": ("y", "j"),
    "exponent": ("y",),
    "end": ("y",),
    "values": ("y",),
    "mask": ("condition",),
    "size": ("shape",),
}
LIBRARIES: dict[str, dict[str, str]] = {
    "torch": _with(TORCH),
    "jax": _with(
        {
            "gelu(x, approximate: True=True)": TANH_GELU,
            "gelu(x, approximate: False)": GELU,
            "astype(x, dtype)": "x.astype(dtype)",
        }
    ),
    "jax.lax": _with(
        {
            "select(condition, x, y)": "mx.where(condition, x, y)",
            "select_n(condition, x, y)": "mx.where(condition, y, x)",
            "max(x, y)": "mx.maximum(x, y)",
            "min(x, y)": "mx.minimum(x, y)",
            "rem(x, y)": "math.fmod(x, y)",
            "clamp(min, x, max)": "mx.clip(x, min, max)",
            "integer_pow(x, y)": "x ** y",
            "convert_element_type(x, dtype)": "x.astype(dtype)",
            "cond(condition, true_fun, false_fun)": "true_fun() if condition else false_fun()",
            "cond(condition, true_fun, false_fun, x)": "true_fun(x) if condition else false_fun(x)",
            "cond(condition, true_fun, false_fun, x, y)": "true_fun(x, y) if condition else false_fun(x, y)",
        }
    ),
    "triton": _with({"cast(x, dtype)": "x.astype(dtype)", "to_tensor(x)": "x"}),
    "tensorflow": _with({"cast(x, dtype)": "x.astype(dtype)"}),
    "numpy": {**ELEMENTWISE, **TYPES, **MAKERS},  # for what the table of functions lacks
    "mlx": SHARED,
    "math": _with(
        {
            "remainder(x, y)": "x - y * mx.round(x / y)",
            "fsum(numbers)": "sum(numbers)",
            "isclose(x, y, rel_tol=1e-09, abs_tol=0.0)": (
                "abs(x - y) <= mx.maximum(rel_tol * mx.maximum(abs(x), abs(y)), abs_tol)"
            ),
        },
        ELEMENTWISE,
    ),
}
METHODS: dict[str, str] = _with(  # methods of tensors, with the number itself as the first argument
    {
        **TORCH,
        **{f"{name}(x)": "float(x)" for name in "float double half bfloat16".split()},
        **{f"{name}(x)": "int(x)" for name in "int long short".split()},
        **{f"{name}(x)": "x" for name in "contiguous clone cpu cuda numpy requires_grad_ squeeze".split()},
        "detach(x)": "mx.stop_gradient(x)",
        **{f"{name}(x, *shape)": "x" for name in "expand expand_as view view_as reshape unsqueeze flatten".split()},
        "to(x, dtype, **options)": "x.astype(dtype)",
        "to(x, device, dtype, **options)": "x.astype(dtype)",
        "to(x, device, **options)": "x",
        "to(x, y, **options)": "x.astype(y.dtype)",
        "type(x, dtype)": "x.astype(dtype)",
        "type_as(x, y)": "x.astype(y.dtype)",
        "where(x, condition, y)": "mx.where(condition, x, y)",
        "new_tensor(x, data, **options)": "data",
        "new_full(x, shape, fill_value, **options)": "fill_value",
        **_by_dtype("new_zeros", "x, *shape", "0", "mx.zeros_like(x)"),
        **_by_dtype("new_ones", "x, *shape", "1", "mx.ones_like(x)"),
    }
)
ATTRIBUTES: dict[str, str] = {  # attributes of tensors -> what to do without them
    **dict.fromkeys("device is_cuda is_cpu is_mps".split(), "leave device= out: a number is on no device"),
    **dict.fromkeys("data T mT H mH real grad requires_grad".split(), "use the number itself"),
}
_POSITIONS = "a mod is called for one pair: use b, h, q_idx and kv_idx"
_ELEMENT = "index the captured array with numbers: array[h, q_idx]"
_LOOP = "write a Python `for` over a fixed range, and `if` for what stops it"
_CHOICE = "write `x if condition else y`, or mx.where(condition, x, y)"
ADVICE: dict[str, str] = {  # functions of any library that no expression replaces -> what to do
    **dict.fromkeys("arange linspace program_id iota broadcasted_iota meshgrid".split(), _POSITIONS),
    **dict.fromkeys("load gather index_select dynamic_slice dynamic_index_in_dim take_along_axis".split(), _ELEMENT),
    **dict.fromkeys("fori_loop while_loop scan".split(), _LOOP),
    **dict.fromkeys("select switch piecewise cond".split(), _CHOICE),
    **dict.fromkeys("store print device_print debug_barrier".split(), "leave it out: a mod only returns a number"),
    **dict.fromkeys("rand randn rand_like randn_like dropout".split(), "draw an array outside the mod and index it"),
    **dict.fromkeys("matmul dot einsum mm bmm".split(), "write the sum of products over a fixed range"),
}
DTYPES: dict[str, str] = {  # array types of other libraries -> of a mod
    **dict.fromkeys("float float16 float32 float64 bfloat16 half single double".split(), "mx.float32"),
    **dict.fromkeys("int int8 int16 int32 int64 uint8 uint16 uint32 long short".split(), "mx.int32"),
    **dict.fromkeys("bool bool_ int1".split(), "mx.bool_"),
}
