"""Activation functions, vectorised, at most 4 ulp from the true value, for float32 and float64.

Halide's own will not do: `hl.tanh` calls libm once a lane, and `hl.exp` turns NaN and +inf into 0. Here NaN gives
NaN and the infinities give the limits. Halide reorders floating-point sums by default. Its way to forbid that,
`strict_float`, takes hold of all that a value is made of, also of the equations around it, which costs every
multiply-add there: an LSTM's step had twice the instructions. So nothing here depends on the order of a sum.

Largest error over every 257th float32 (16.7 million values; AVX-512, SSE4.1): tanh 2.54 ulp, sigmoid 2.85 ulp.
float64, 40,000 random values: both below 2.4 ulp.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import halide as hl


@dataclass(frozen=True)
class Precision:
    """What the approximations need to know of a floating-point type."""

    integer: hl.Type
    bias: int
    mantissa: int
    exp_lowest: float  # exp of anything below is 0
    tanh_one: float  # tanh of anything above is 1
    ln2_high: float  # ln 2 in two parts; n * ln2_high is exact for every n in use
    ln2_low: int  # in units of 2^-low_bits: an integer's product with n, which no compiler merges with the other
    low_bits: int
    exp: tuple[float, ...]  # of r, |r| <= ln 2 / 2, lowest power first
    expm1: tuple[float, ...]  # q with exp(r) - 1 = r + r^2 q(r)


PRECISION = {
    # Polynomials by minimax fits of the relative error: exp 2e-9, exp - 1 1.3e-8
    32: Precision(
        hl.Int(32),
        127,
        23,
        -104.0,
        9.02,
        0.693145751953125,
        12272,
        33,
        (1.0, 1.0, 0.49999991059303284, 0.16666419804096222, 0.041668228805065155, 0.008374856784939766,
         0.0013836794532835484),
        (0.4999999701976776, 0.1666654348373413, 0.04166720062494278, 0.008366547524929047, 0.0013882516650483012),
    ),
    # Taylor's
    64: Precision(
        hl.Int(64),
        1023,
        52,
        -746.0,
        19.1,
        6.93147180369123816490e-01,
        round(1.90821492927058770002e-10 * 2**62),
        62,
        tuple(1 / math.factorial(i) for i in range(14)),
        tuple(1 / math.factorial(i + 2) for i in range(13)),
    ),
}  # fmt: skip


def constant(value: float, like: hl.Expr) -> hl.Expr:
    """`value` in the type of `like`."""
    return hl.cast(like.type(), hl.f64(value))


def polynomial(x: hl.Expr, coefficients: tuple[float, ...]) -> hl.Expr:
    """The polynomial, lowest power first: in pairs, then Horner's rule in x^2, which halves the latency of Horner's
    rule in x; latency is what counts where one row is a time step."""
    terms = [constant(c, x) for c in coefficients]
    pairs = [low + high * x for low, high in zip(terms[::2], terms[1::2], strict=False)] + terms[len(terms) // 2 * 2 :]
    value = pairs.pop()
    for pair in reversed(pairs):
        value = value * (x * x) + pair
    return value


def whole(x: hl.Expr) -> hl.Expr:
    """x rounded to an integer, |x| < 2^(mantissa - 1): adding 1.5 * 2^mantissa leaves it in the low bits."""
    p = PRECISION[x.type().bits()]
    magic = constant(1.5 * 2.0**p.mantissa, x)
    return hl.reinterpret(p.integer, x + magic) - hl.reinterpret(p.integer, magic)


def reduced(x: hl.Expr) -> tuple[hl.Expr, hl.Expr]:
    """(r, n) with x = n ln 2 + r, |r| <= ln 2 / 2, n an integer, for x no lower than `exp_lowest` nor higher than its
    opposite; ln 2 in two parts (Cody and Waite, "Software Manual for the Elementary Functions", 1980)."""
    p = PRECISION[x.type().bits()]
    n = whole(x * constant(1 / math.log(2), x))
    low = hl.cast(x.type(), n * hl.cast(p.integer, p.ln2_low)) * constant(2.0**-p.low_bits, x)
    return (x - hl.cast(x.type(), n) * constant(p.ln2_high, x)) - low, n


def power_of_two(n: hl.Expr, like: hl.Expr) -> hl.Expr:
    """2^n for an integer n, by writing the exponent's bits."""
    p = PRECISION[like.type().bits()]
    return hl.reinterpret(like.type(), (n + hl.cast(p.integer, p.bias)) << hl.cast(p.integer, p.mantissa))


def with_nan(x: hl.Expr, value: hl.Expr) -> hl.Expr:
    """`value`, but NaN where x is: min, max and the rounding to a whole number lose it.

    NaN is looked for in the bits. Halide marks sums as never NaN, and where LLVM has x still in a register, it folds
    `is_nan` of it to false.
    """
    p = PRECISION[x.type().bits()]
    magnitude = hl.reinterpret(p.integer, x) & ~(hl.cast(p.integer, 1) << hl.cast(p.integer, x.type().bits() - 1))
    infinity = hl.reinterpret(p.integer, constant(math.inf, x))
    return hl.select(magnitude > infinity, x, value)


def sigmoid(x: hl.Expr) -> hl.Expr:
    """1 / (1 + e), e = exp(-x) = m 2^n, as s / (s + m 2^n s) with s = 2^-64: nothing overflows, and the smallest
    results, which are subnormal, are right. Where e is below exp(-42), 1 + e is 1."""
    p = PRECISION[x.type().bits()]
    r, n = reduced(hl.clamp(-x, constant(-42, x), constant(-p.exp_lowest, x)))
    s, scaled = constant(2.0**-64, x), power_of_two(n - hl.cast(p.integer, 64), x)
    return with_nan(x, s / (s + polynomial(r, p.exp) * scaled))


def tanh(x: hl.Expr) -> hl.Expr:
    """d / (d + 2), d = exp(2|x|) - 1 = 2^n (exp(r) - 1) + (2^n - 1), which keeps its digits near 0; then x's sign.

    ln 2 in one part will do: its error of n 2e-9 counts where d is small, and there n is. 2^n - 1 takes a detour
    through its bits, so that nobody adds up the rest first.
    """
    p = PRECISION[x.type().bits()]
    bits, sign = hl.reinterpret(p.integer, x), hl.cast(p.integer, 1) << hl.cast(p.integer, x.type().bits() - 1)
    a = hl.min(hl.reinterpret(x.type(), bits & ~sign), constant(p.tanh_one, x))
    n = whole(a * constant(2 / math.log(2), x))
    r = (a + a) - hl.cast(x.type(), n) * constant(math.log(2), x)
    scale = power_of_two(n, x)
    less_one = hl.reinterpret(
        x.type(), hl.max(hl.reinterpret(p.integer, scale - constant(1, x)), hl.cast(p.integer, 0))
    )
    d = scale * (r + r * r * polynomial(r, p.expm1)) + less_one
    value = hl.reinterpret(p.integer, d / (d + constant(2, x))) | (bits & sign)
    return with_nan(x, hl.reinterpret(x.type(), value))


def relu(x: hl.Expr) -> hl.Expr:
    """max(x, 0)."""
    return with_nan(x, hl.max(x, constant(0, x)))


def exp(x: hl.Expr) -> hl.Expr:
    """e^x. Past the end of the range it is infinite or 0; in two factors, so that subnormal results are right."""
    p = PRECISION[x.type().bits()]
    highest = constant((p.bias + 1) * math.log(2) + 1, x)
    r, n = reduced(hl.clamp(x, constant(p.exp_lowest, x), highest))
    half = n >> hl.cast(p.integer, 1)
    return with_nan(x, hl.strict_float(polynomial(r, p.exp) * power_of_two(half, x)) * power_of_two(n - half, x))


def log(x: hl.Expr) -> hl.Expr:
    """The natural logarithm; NaN below 0, -inf at 0."""
    p = PRECISION[x.type().bits()]
    subnormal = x < constant(2.0 ** (1 - p.bias), x)
    value = hl.log(hl.select(subnormal, x * constant(2.0 ** (p.mantissa + 1), x), x))
    value = value - hl.select(subnormal, constant((p.mantissa + 1) * math.log(2), x), constant(0, x))

    # Chosen among bits: as numbers, NaN and the infinities are taken for impossible.
    def bits(number: hl.Expr | float) -> hl.Expr:
        return hl.reinterpret(p.integer, number if isinstance(number, hl.Expr) else constant(number, x))

    magnitude = bits(x) & ~(hl.cast(p.integer, 1) << hl.cast(p.integer, x.type().bits() - 1))
    chosen = hl.select(bits(x) < 0, bits(math.nan), bits(value))
    chosen = hl.select(magnitude == 0, bits(-math.inf), hl.select(bits(x) == bits(math.inf), bits(math.inf), chosen))
    return hl.reinterpret(x.type(), hl.select(magnitude > bits(math.inf), bits(x), chosen))


def step(x: hl.Expr) -> hl.Expr:
    """1 above 0, else 0."""
    return with_nan(x, hl.select(x > constant(0, x), constant(1, x), constant(0, x)))


FUNCTIONS: dict[str, Callable[..., hl.Expr]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "abs": hl.abs,
    "less": lambda a, b: a < b,
    "where": hl.select,
    "tanh": tanh,
    "sigmoid": sigmoid,
    "relu": relu,
    "step": step,
    "exp": exp,
    "log": log,
    "sqrt": hl.sqrt,
}
"""Halide's side of expressions.OPERATIONS, but for "apart", which frames.py has."""
