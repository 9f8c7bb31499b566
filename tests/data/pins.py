#!/usr/bin/env python3
"""Makes pins.json: bits of values that docs/arithmetic.md defines, computed by something that shares no code with the crate.

    python3 tests/data/pins.py

It needs nothing but Python 3.9. Every operation is done on exact fractions and rounded here, by integers; nothing is taken from the
crate, the constants of exp are made anew. Orders of sums are told apart by operands that a search finds: for each neighbour of an
order (groups of another size, another tree, another direction) there is one among them whose result has other bits in f32. The search
fails when there is none, unless the neighbour is the same order at that length.
"""

import functools
import json
import math
import struct
from decimal import Decimal, getcontext
from fractions import Fraction
from pathlib import Path

getcontext().prec = 60


# Rounding. Numbers are Python floats, which hold every f32 and f64.

def nearest(exact, bits, lowest, largest):
    """The nearest number of `bits` bits, ties to even, that is a multiple of 2^lowest; infinity past the `largest` one."""
    sign, exact = (-1 if exact < 0 else 1), abs(exact)
    if exact == 0:
        return 0.0
    size = exact.numerator.bit_length() - exact.denominator.bit_length()
    while Fraction(2) ** size > exact:
        size -= 1
    while Fraction(2) ** (size + 1) <= exact:
        size += 1
    unit = Fraction(2) ** max(size - bits + 1, lowest)
    quotient, rest = divmod(exact, unit)
    if 2 * rest > unit or (2 * rest == unit and quotient % 2):
        quotient += 1
    rounded = quotient * unit
    return sign * (math.inf if rounded > largest else float(rounded))


def f32(exact):
    return nearest(exact, 24, -149, Fraction(2 ** 24 - 1) * 2 ** 104)


def f64(exact):
    return nearest(exact, 53, -1074, Fraction(2 ** 53 - 1) * 2 ** 971)


F = Fraction


def fma(rounding, a, b, c):
    """a * b + c, rounded once. All finite; an exact zero is +0, which is what it is here wherever it happens."""
    return rounding(F(a) * F(b) + F(c))


def root32(x):
    """The square root of a positive f32, rounded to f32: exact, since it is never a tie."""
    wide = F(x) * 2 ** 300
    low = F(math.isqrt(int(wide))) / 2 ** 150
    return f32(low if low * low == F(x) else low + F(1, 2 ** 151))


def of_bits32(bits):
    return struct.unpack(">f", struct.pack(">I", bits))[0]


def bits32(x):
    return struct.unpack(">I", struct.pack(">f", x))[0]


def hex32(values):
    return "".join(f"{bits32(x):08x}" for x in values)


def hex64(values):
    return "".join(struct.pack(">d", x).hex() for x in values)


class Random:
    """SplitMix64, as tests/common/data.rs has it."""

    def __init__(self, seed):
        self.state = seed

    def bits(self):
        mask = 2 ** 64 - 1
        self.state = (self.state + 0x9E3779B97F4A7C15) & mask
        z = self.state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    def below(self, n):
        return self.bits() % n

    def number(self, exponent):
        """A number below 2^exponent, of several sizes: `Random::number` in Rust."""
        bits = self.bits()
        return float(((bits >> 40) - 2 ** 23) * F(2) ** (exponent - 23 - bits % 8))

    def numbers(self, exponent, count):
        return [self.number(exponent) for _ in range(count)]

    def pick(self, values):
        return values[self.below(len(values))]

    def shuffle(self, values):
        for i in range(len(values) - 1, 0, -1):
            j = self.below(i + 1)
            values[i], values[j] = values[j], values[i]


# exp, silu, SwiGLU.

def constant(x):
    return f32(F(x))


LN2 = Decimal(2).ln()
LOG2E = constant(F(1) / F(LN2))
LN2_HIGH = float(F(round(F(LN2) * 2 ** 16)) / 2 ** 16)  # so few bits that n * LN2_HIGH is exact
LN2_LOW = constant(F(LN2) - F(LN2_HIGH))
FACTORIALS = [constant(F(1, math.factorial(i))) for i in range(8)]


def scaled(x, n):
    half = n >> 1
    return f32(F(f32(F(x) * F(2) ** half)) * F(2) ** (n - half))


@functools.lru_cache(maxsize=None)
def exp(x):
    if x > of_bits32(0x42B17218):  # 88.72283, the last number with a finite result
        return math.inf
    if x < -104.0:
        return 0.0
    n = round(F(f32(F(x) * F(LOG2E))))  # to even
    t = fma(f32, n, -LN2_LOW, fma(f32, n, -LN2_HIGH, x))
    p = FACTORIALS[7]
    for c in reversed(FACTORIALS[:7]):
        p = fma(f32, p, t, c)
    return scaled(p, n)


def silu(x):
    e = exp(-x)
    if e == math.inf:
        return math.copysign(0.0, x)
    return math.copysign(f32(F(x) / F(f32(1 + F(e)))), x)


def swiglu(gate, up):
    factor = silu(gate)
    return math.copysign(f32(abs(F(factor) * F(up))), factor * up)


def near(x, count):
    """The f32 around x."""
    bits = bits32(x)
    return [of_bits32(bits + i) for i in range(-count, count + 1)]


# Arguments, found by trying many millions, whose last bit is another one when a constant of exp (all but the highest coefficient) is the
# f32 beside it, when an fma is a product and a sum, when the reduction takes LN2_LOW first, or when n is rounded otherwise: two for each.
SENSITIVE = [
    0xC21346DC, 0x4063E14C, 0xC240C4FE, 0xBF5E815C, 0x3F5BB1F0, 0x3E8FA528, 0x3E8B4258, 0xC0CA5EDC, 0xC141D04D, 0xC20BCAF4,
    0xC29268E9, 0xC01C7F56, 0xC25F32B6, 0xC240F1B4, 0x40D4513D, 0xC219E0F0, 0xBF72874B, 0xBF7C887A, 0xC11606FF, 0xC2291C6F,
    0xBF7E0A07, 0xC299EE07, 0xC0D2B77C, 0xC290C087, 0xC22D39D1, 0xBF7D6F68, 0xC2918BE1, 0xBE97FAA0, 0xC2A4F9CA, 0xC2803B74,
    0xC2A2E3BC, 0xBE932116, 0xC22D3CEF, 0xBEB4453B, 0xC285C704, 0xC2A180D8, 0xC22D3CEF
]


def exp_arguments():
    random = Random(1)
    x = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf]
    x += near(88.72283, 12) + near(88.0, 3) + near(-104.0, 12) + near(-103.97208, 12) + near(-103.27893, 6)
    x += near(-87.33655, 12) + near(-88.02969, 6) + near(-87.68, 3)
    x += [float(of_bits32(1)), -float(of_bits32(1)), 2.0 ** -24, -(2.0 ** -25), 2.0 ** -23, 3.4028234663852886e38, -3.4028234663852886e38]
    # Where n changes, which is where t and the error are largest.
    for n in range(-150, 128, 7):
        x += near(constant((F(n) + F(1, 2)) * F(LN2)), 2)
    x += [-103.0 - random.below(1 << 16) / (1 << 16) for _ in range(60)]
    for exponent in (7, 5, 3, 1, -1, -4, -9):
        x += random.numbers(exponent, 90)
    # The worst of many: where the last bit is easily another one.
    worst = []
    for _ in range(4000):
        argument = random.number(random.below(8))
        if -87 < argument < 88:
            exact = F(Decimal(argument).exp())
            value = exp(argument)
            ulp = F(of_bits32(bits32(value) + 1)) - F(value)
            worst.append((abs(F(value) - exact) / ulp, argument))
    worst.sort(reverse=True)
    return x + [argument for _, argument in worst[:150]] + [of_bits32(bits) for bits in SENSITIVE]


# Sums. A variant is a neighbour of the order that docs/arithmetic.md defines; all take and give floats, whose additions are IEEE's.

def tree(values):
    while len(values) > 1:
        values = [values[i] + values[i + 1] for i in range(0, len(values), 2)]
    return values[0]


def halves(values):
    """The balanced tree that adds what is half the length apart."""
    while len(values) > 1:
        half = len(values) // 2
        values = [values[i] + values[i + half] for i in range(half)]
    return values[0]


def crossed(values):
    """The tree of neighbours, but for the pairs 0 + 2 and 1 + 3 of each four."""
    if len(values) < 4:
        return tree(values)
    fours = [values[i:i + 4] for i in range(0, len(values), 4)]
    return tree([(v[0] + v[2]) + (v[1] + v[3]) for v in fours])


def ascending(values):
    total = 0.0
    for value in values:
        total = total + value
    return total


def descending(values):
    return ascending(values[::-1])


def padded(values, size):
    return values + [0.0] * (-len(values) % size)


def groups(values, size=16, inner=tree, outer=ascending):
    values = padded(values, size)
    return outer([inner(values[i:i + size]) for i in range(0, len(values), size)])


def power_padded(values):
    return values + [0.0] * ((1 << max(len(values) - 1, 0).bit_length()) - len(values))


def rest_ascending(values):
    whole = len(values) // 16 * 16
    return ascending([groups(values[:whole]) if whole else 0.0] + [ascending(values[whole:])])


SUMS = {
    "ascending": ascending,
    "descending": descending,
    "groups of 8": lambda v: groups(v, 8),
    "groups of 32": lambda v: groups(v, 32),
    "groups of halves": lambda v: groups(v, inner=halves),
    "groups of crossed pairs": lambda v: groups(v, inner=crossed),
    "groups one by one": lambda v: groups(v, inner=ascending),
    "groups in descending order": lambda v: groups(v, outer=descending),
    "groups as a tree": lambda v: groups(v, outer=lambda g: tree(power_padded(g))),
    "one tree": lambda v: tree(power_padded(v)),
    "the rest one by one": rest_ascending,
    "reversed": lambda v: groups(v[::-1]),
}


def leaf4(p):
    return ((p[0] + p[1]) + p[2]) + p[3]


def dot(products, leaf=leaf4, leaf_size=4, lanes=tree, run=256, runs=groups):
    """tree_dot from the products, which are exact, so that an fma is an addition."""
    products = padded(products, run)
    sums = []
    for first in range(0, len(products), run):
        block = products[first:first + run]
        if any(block):
            sums.append(lanes([leaf(block[i:i + leaf_size]) for i in range(0, run, leaf_size)]))
        else:
            sums.append(0.0)
    return runs(sums)


DOTS = {
    "leaves descending": lambda p: dot(p, leaf=lambda q: leaf4(q[::-1])),
    "leaves as pairs": lambda p: dot(p, leaf=tree),
    "leaves of 8": lambda p: dot(p, leaf=ascending, leaf_size=8),
    "leaves of 2": lambda p: dot(p, leaf=ascending, leaf_size=2),
    "lanes ascending": lambda p: dot(p, lanes=ascending),
    "lanes descending": lambda p: dot(p, lanes=descending),
    "lanes of pairs of halves": lambda p: dot(p, lanes=lambda v: halves([v[i] + v[i + 1] for i in range(0, len(v), 2)])),
    "lanes of fours one by one": lambda p: dot(p, lanes=lambda v: groups(v, 4, ascending, tree)),
    "lanes of eights as a sum": lambda p: dot(p, lanes=lambda v: groups(v, 8, tree, ascending)),
    "lanes of halves": lambda p: dot(p, lanes=halves),
    "lanes of crossed pairs": lambda p: dot(p, lanes=crossed),
    "runs of 128": lambda p: dot(p, run=128),
    "runs of 512": lambda p: dot(p, run=512),
    **{f"runs, {name}": (lambda order: lambda p: dot(p, runs=order))(order) for name, order in SUMS.items()},
}


def exact_sum(values):
    """The definition again, on fractions."""
    def add(a, b):
        return f64(F(a) + F(b))

    def exact_tree(v):
        return v[0] if len(v) == 1 else add(exact_tree(v[:len(v) // 2]), exact_tree(v[len(v) // 2:]))

    total = 0.0
    values = padded(values, 16)
    for i in range(0, len(values), 16):
        total = add(total, exact_tree(values[i:i + 16]))
    return total


def exact_dot(a, b):
    a, b = padded(a, 256), padded(b, 256)
    sums = []
    for first in range(0, len(a), 256):
        leaves = []
        for i in range(first, first + 256, 4):
            leaf = f64(F(a[i]) * F(b[i]))
            for n in range(1, 4):
                leaf = fma(f64, a[i + n], b[i + n], leaf)
            leaves.append(leaf)
        while len(leaves) > 1:
            leaves = [f64(F(leaves[i]) + F(leaves[i + 1])) for i in range(0, len(leaves), 2)]
        sums.append(leaves[0])
    return exact_sum(sums)


def same_order(variant, definition, length):
    """Whether a variant is the definition at that length: it never differs for numbers of many sizes."""
    random = Random(99)
    for _ in range(12):
        values = [random.number(4) * 2.0 ** random.below(60) for _ in range(length)]
        if variant(values) != definition(values):
            return False
    return True


def cancelling(random, length, filled):
    """Large numbers that cancel, and small ones that survive only beside each other."""
    count = length if filled >= length else filled
    values = []
    for _ in range(random.below(max(count // 3, 1)) + 1):
        large = 2.0 ** random.pick([60, 58, 55, 54])
        values += [large, -large]
    values = values[:count // 2 * 2]
    while len(values) < count:
        values.append(random.pick([1.0, -1.0, 3.0, 5.0, -7.0, 2.0 ** 6, 9.0 * 2.0 ** 4]) * random.pick([1.0, 1.0, 4.0, 64.0]))
    random.shuffle(values)
    if count == length:
        return values
    # Neighbours, and numbers that are far apart.
    places = set()
    while len(places) < count:
        base = random.below(length)
        for _ in range(random.below(5) + 1):
            if len(places) < count:
                places.add(min(base + random.below(9), length - 1))
    row = [0.0] * length
    for place, value in zip(sorted(places), values):
        row[place] = value
    return row


def telling(what, variants, definition, length, make, result, seen=lambda row: row, tries=6000, least=6):
    """Operands that tell every variant from the definition: `make` proposes them, `seen` is what variants get of them, of that length, and
    `result` is what is compared."""
    open_variants = {name: v for name, v in variants.items() if not same_order(v, definition, length)}
    rows = []
    for _ in range(tries):
        if not open_variants and len(rows) >= least:
            break
        row = make()
        values = seen(row)
        total = definition(values)
        sums = {name: variant(values) for name, variant in open_variants.items()}
        others = {name: other for name, other in sums.items() if other != total}
        if open_variants and not others:
            continue
        expected = result(total, row)
        told = [name for name, other in others.items() if result(other, row) != expected]
        if told or not open_variants:
            rows.append(row)
            for name in told:
                del open_variants[name]
    assert not open_variants, f"{what} of {length}: not told {sorted(open_variants)}"
    return rows


def run_sums(products):
    """The sums of the runs of 256."""
    products = padded(products, 256)
    return [dot(products[i:i + 256]) for i in range(0, len(products), 256)]


def telling_dots(what, cols, products, make, result, tries):
    """Rows that tell the orders of a tree_dot apart: of few columns all of them, of more those of the runs."""
    if cols in (8, 64, 72, 80, 128, 192, 256, 768):
        variants = DOTS if cols <= 256 or what == "dots" else {name: v for name, v in DOTS.items() if name.startswith("runs")}
        return telling(what, variants, dot, cols, make, result, products, tries)
    return telling(what, SUMS, groups, -(-cols // 256), make, result, lambda row: run_sums(products(row)), tries)


def to_f32(x, _):
    return f32(F(x))


def sums():
    random = Random(2)
    lengths = [1, 2, 3, 4, 5, 7, 8, 9, 10, 12, 15, 16, 17, 24, 31, 32, 33, 34, 40, 48, 64]
    out = []
    for length in lengths:
        def make():
            return cancelling(random, length, length)
        for row in telling("sums", SUMS, groups, length, make, to_f32, least=3):
            total = exact_sum(row)
            assert total == groups(row)
            out.append({"values": hex32(row), "sum": hex64([total])})
    return out


def sparse(row):
    places = [i for i, x in enumerate(row) if x != 0]
    return {"cols": len(row), "places": places, "values": hex32([row[i] for i in places])}


def dots():
    random = Random(3)
    out = []
    for cols in (64, 80, 256, 512, 768, 2048, 2304, 4096, 4352):
        def make():
            return cancelling(random, cols, random.pick([4, 8, 12, 24, 64, 200]))
        for row in telling_dots("dots", cols, lambda row: row, make, to_f32, 6000):
            total = exact_dot(row, [1.0] * cols)
            assert total == dot(row)
            out.append({**sparse(row), "dot": hex64([total])})
    return out


def dense_dots():
    """Rows of numbers of several sizes: their sums in f64 tell orders apart as they are."""
    out = []
    for seed, cols in enumerate((1, 3, 4, 5, 64, 255, 256, 257, 700, 4500)):
        random = Random(100 + seed)
        a, b = random.numbers(3, cols), random.numbers(-2, cols)
        out.append({"seed": 100 + seed, "cols": cols, "dot": hex64([exact_dot(a, b)])})
    return out


# RMSNorm.

def inverse_rms(total, n, eps):
    """r from the sum of squares; exact."""
    m = f64(F(f64(F(total) * F(f64(F(1, n))))) + F(eps))
    assert m > 2.0 ** -1022
    k = (math.frexp(m)[1] - 1) >> 1
    within = f32(F(m) / F(4) ** k)
    return scaled(f32(1 / F(root32(within))), -k)


def normed(x, weight, eps):
    r = inverse_rms(exact_dot(x, x), len(x), eps)
    return [f32(F(f32(F(v) * F(r))) * F(w)) for v, w in zip(x, weight)]


def norm_row(random, n):
    """A row with many squares of the size of the last place of their sum in f64, and an eps with which its mean square is the middle of two
    f32, or one place above: when the sum becomes more, or less, the norm is another."""
    odd = n
    while odd % 2 == 0:
        odd //= 2
    # In units of 2^-40, an f32 with an even last place, half of that, and not quite: one large square and others that fill up to it.
    unit = 1 + random.below(2)
    total = odd * ((4 * unit * (2 ** 22 + random.below(2 ** 22)) + unit) * 2 ** 16 - 1)
    numbers = [math.isqrt(int(total * (0.5 + random.below(1000) / 2001)))]
    rest = total - numbers[0] ** 2
    while rest:
        numbers.append(math.isqrt(rest))
        rest -= numbers[-1] ** 2
    row = [0.0] * n
    places = list(range(n))
    random.shuffle(places)
    for number in numbers[:max(n // 2, 4)]:
        row[places.pop()] = number * 2.0 ** -20 * random.pick([1.0, -1.0])
    last = math.frexp(total * 2.0 ** -40)[1] - 53
    for place in places[:random.pick([3, n // 8, n // 3, n])][:200]:
        row[place] = 2.0 ** ((last - random.below(3)) // 2)
    m = f64(F(dot([x * x for x in row])) * F(f64(F(1, n))))
    place = math.ulp(m)
    # The next middle above whose lower neighbour is even.
    half = F(2) ** (math.frexp(m)[1] - 25)
    middle = (F(m) // (4 * half)) * 4 * half + half
    if middle < F(m):
        middle += 4 * half
    eps = middle - F(m) + random.below(2) * F(place)
    return row, float(eps)


def norms():
    random = Random(4)
    out = []
    for cols in (8, 64, 72, 80, 128, 192, 256, 512, 768, 1024, 2048, 2304, 4096, 4352):
        def make():
            while True:
                row, eps = norm_row(random, cols)
                total = dot([x * x for x in row])
                above, below = (inverse_rms(total * (1 + sign * 2.0 ** -49), cols, eps) for sign in (1, -1))
                if F(f32(F(eps))) == F(eps) and above != below:
                    return row, eps
        found = telling_dots("norms", cols, lambda row: [x * x for x in row[0]], make,
                             lambda total, row: inverse_rms(total, cols, row[1]), 20000)
        for row, eps in found:
            r = inverse_rms(exact_dot(row, row), cols, eps)
            out.append({**sparse(row), "eps": hex32([eps]), "r": hex32([r])})
    return out


def norm_values():
    """Whole rows, of every size of numbers."""
    out = []
    for case, (cols, exponent, eps) in enumerate(
            [(8, 0, 1e-6), (64, 2, 1e-6), (128, 1, 1e-5), (256, 0, 1e-6), (256, -60, 1e-6), (256, -60, 0.0), (256, 60, 1e-6), (300, 3, 1e-6),
             (768, -3, 1e-6), (128, -10, 1e-6), (128, 120, 0.0), (8, -100, 0.0)]):
        seed = 200 + case
        random, eps = Random(seed), constant(F(eps))
        x, weight = random.numbers(exponent, cols), random.numbers(1, cols)
        out.append({"seed": seed, "cols": cols, "exponent": exponent, "eps": hex32([eps]), "y": hex32(normed(x, weight, eps))})
    return out


# RoPE.

def rope():
    random = Random(5)
    x0, x1, c, s, y0, y1 = ([] for _ in range(6))
    for i in range(300):
        a, b, cosine, sine = (random.number(exponent) for exponent in (3, 3, 0, 0))
        if i % 3 == 0 and sine:
            # The products all but cancel.
            b = f32(F(a) * F(cosine) / F(sine))
        if not all((a, b, cosine, sine)):
            continue
        x0.append(a), x1.append(b), c.append(cosine), s.append(sine)
        y0.append(fma(f32, a, cosine, -F(f32(F(b) * F(sine)))))
        y1.append(fma(f32, a, sine, F(f32(F(b) * F(cosine)))))
    return dict(zip(("x0", "x1", "cos", "sin", "y0", "y1"), map(hex32, (x0, x1, c, s, y0, y1))))


# Tables of RoPE, in decimal numbers of 60 digits.

D = Decimal


@functools.cache
def pi():
    """Machin's formula."""
    def arctangent(n):
        total, power, k = D(0), D(1) / n, 0
        while power > D(10) ** -65:
            total += power / (2 * k + 1) * (-1) ** k
            power, k = power / (n * n), k + 1
        return total
    return 4 * (4 * arctangent(5) - arctangent(239))


def sine(x):
    x %= 2 * pi()
    total, term, k = D(0), x, 1
    while abs(term) > D(10) ** -58:
        total += term
        term *= -x * x / ((k + 1) * (k + 2))
        k += 2
    return total


def rope_row(case, position):
    """Cosine and sine of each pair, one behind the other."""
    dim, base = case["head_dim"], D(case["base"])
    frequencies = [(base.ln() * D(-2 * i) / D(dim)).exp() for i in range(dim // 2)]
    size = D(1)
    if case["type"] == "linear":
        frequencies = [frequency / D(case["factor"]) for frequency in frequencies]
    if case["type"] == "yarn":
        factor = D(case["factor"])

        def pair(turns):
            return dim * (D(case["original_context"]) / (D(turns) * 2 * pi())).ln() / (2 * base.ln())

        low = max(math.floor(pair(case["beta_fast"])), 0)
        high = min(math.ceil(pair(case["beta_slow"])), dim - 1)
        width = max(D(high - low), D(0.001))
        for i in range(dim // 2):
            share = min(max((i - low) / width, D(0)), D(1))
            frequencies[i] = frequencies[i] / factor * share + frequencies[i] * (1 - share)
        size = D(case["attn_factor"]) * (1 + D("0.1") * factor.ln())
    row = []
    for frequency in frequencies:
        angle = position * frequency
        row += [f32(F(size * sine(angle + pi() / 2))), f32(F(size * sine(angle)))]
    return row


def rope_tables():
    def yarn(head_dim, base, factor, original_context, beta_fast=32.0, beta_slow=1.0, attn_factor=1.0):
        return {"type": "yarn", "head_dim": head_dim, "base": base, "factor": factor, "original_context": original_context,
                "beta_fast": beta_fast, "beta_slow": beta_slow, "attn_factor": attn_factor}
    cases = [
        {"type": "none", "head_dim": 128, "base": 1e6},
        {"type": "linear", "head_dim": 64, "base": 1e4, "factor": 4.0},
        {"type": "linear", "head_dim": 64, "base": 1e4, "factor": 0.75},
        # Files of 128K positions.
        yarn(128, 1e6, 4.0, 32768),
        yarn(64, 1e4, 2.5, 4096, 16.0, 2.0, 1.5),
        yarn(64, 1e4, 1.0, 2048),
        # Every pair turns less often than beta_fast, or more often than beta_slow, and both are in the wrong order.
        yarn(64, 1e4, 4.0, 64),
        yarn(64, 1.5, 4.0, 1 << 24),
        yarn(64, 1e4, 3.0, 4096, 1.0, 32.0),
    ]
    positions = [0, 1, 2, 37, 1000]
    return [case | {"positions": positions, "rows": hex32([x for at in positions for x in rope_row(case, at)])} for case in cases]


# Attention.

def scale_of(head_dim):
    """1 / sqrt(head_dim) in f64, rounded to f32."""
    root = f64(F(math.isqrt(head_dim * 4 ** 200)) / F(2) ** 200)
    return f32(F(f64(1 / F(root))))


def add32(a, b):
    return f32(F(a) + F(b))


def tree_of_eight(values, add):
    return add(add(add(values[0], values[1]), add(values[2], values[3])), add(add(values[4], values[5]), add(values[6], values[7])))


def attention(q, k, v, scale):
    """One head. k and v: a row for each position that is seen."""
    dim, seen = len(q), len(k)
    segment = dim // 8
    scores, parts = [], []
    for first in range(0, seen, 64):
        s = []
        for row in k[first:first + 64]:
            chains = []
            for g in range(8):
                chain = f32(F(q[g * segment]) * F(row[g * segment]))
                for d in range(g * segment + 1, (g + 1) * segment):
                    chain = fma(f32, q[d], row[d], chain)
                chains.append(chain)
            s.append(f32(F(tree_of_eight(chains, add32)) * F(scale)))
        scores += s
        largest = max(s)
        p = [exp(f32(F(x) - F(largest))) for x in s] + [0.0] * (64 - len(s))
        total = p
        while len(total) > 1:
            total = [f64(F(total[i]) + F(total[i + 1])) for i in range(0, len(total), 2)]
        o = []
        for d in range(dim):
            chains = []
            for g in range(8):
                value = [v[first + i][d] if first + i < seen else 0.0 for i in range(8 * g, 8 * g + 8)]
                chain = f32(F(p[8 * g]) * F(value[0]))
                for i in range(1, 8):
                    chain = fma(f32, p[8 * g + i], value[i], chain)
                chains.append(chain)
            o.append(tree_of_eight(chains, add32))
        parts.append((largest, total[0], o))
    most = max(part[0] for part in parts)
    l, o = [0.0] * 8, [[0.0] * 8 for _ in range(dim)]
    for c, (largest, weight, values) in enumerate(parts):
        factor = exp(f32(F(largest) - F(most)))
        l[c % 8] = fma(f64, weight, factor, l[c % 8])
        for d in range(dim):
            o[d][c % 8] = fma(f64, values[d], factor, o[d][c % 8])

    def add64(a, b):
        return f64(F(a) + F(b))
    inverse = f64(1 / F(tree_of_eight(l, add64)))
    return [f32(F(f64(F(tree_of_eight(chains, add64)) * F(inverse)))) for chains in o], scores


def attention_rows():
    out = []
    for case, (dim, seen, exponent) in enumerate(
            [(8, 1, 1), (8, 5, 1), (16, 63, 2), (8, 64, 1), (8, 65, 3), (64, 70, 1), (128, 3, 2), (8, 130, 1), (8, 600, 2), (24, 200, 1)]):
        seed = 300 + case
        random = Random(seed)
        q = random.numbers(exponent, dim)
        k = [random.numbers(exponent, dim) for _ in range(seen)]
        v = [random.numbers(2, dim) for _ in range(seen)]
        y, scores = attention(q, k, v, scale_of(dim))
        out.append({"seed": seed, "dim": dim, "seen": seen, "exponent": exponent, "y": hex32(y), "scores": hex32(scores)})
    return out


def chains(values, count=8, joined=tree, contiguous=False):
    size = -(-len(values) // count)
    parts = [values[g * size:(g + 1) * size] if contiguous else values[g::count] for g in range(count)]
    return joined([ascending(part) for part in parts])


CHUNKS = {"ascending": ascending, "descending": descending, "halves": halves, "crossed pairs": crossed,
          "groups of 8": lambda v: groups(v, 8), "groups of 16": groups, "groups of 32": lambda v: groups(v, 32),
          "pairs one by one": lambda v: ascending([v[i] + v[i + 1] for i in range(0, 64, 2)])}
JOINS = {"ascending": ascending, "descending": descending, "4 chains": lambda v: chains(v, 4), "16 chains": lambda v: chains(v, 16),
         "chains of neighbours": lambda v: chains(v, contiguous=True), "chains joined by halves": lambda v: chains(v, joined=halves),
         "chains joined one by one": lambda v: chains(v, joined=ascending),
         "chains descending": lambda v: chains(padded(v, 8)[::-1]),
         "one tree": lambda v: tree(power_padded(v)), "groups": groups}


def value_that_tells(total, wrong):
    """A number V of 24 bits such that V * (1 / total) and wrong(V) are rounded to different f32, or nothing: a convergent p / q of
    1 / total whose p is in the middle of two f32, V = q."""
    y = f64(1 / F(total))
    a, (p0, q0), (p1, q1) = F(y), (0, 1), (1, 0)
    while True:
        whole = a.numerator // a.denominator
        for n in range(max(1, whole - 2), whole + 1):
            p, q = n * p1 + p0, n * q1 + q0
            middle = 2 ** 24 <= p < 2 ** 25 and p % 2 and q // (q & -q) < 2 ** 24
            if middle and f32(F(f64(F(q) * F(y)))) != f32(F(wrong(q))):
                return float(q)
        p0, q0, p1, q1 = p1, q1, whole * p1 + p0, whole * q1 + q0
        if p1 >= 2 ** 26 or a == whole:
            return None
        a = 1 / (a - whole)


def by_another(other):
    """V times the inverse of another denominator."""
    z = f64(1 / F(other))
    return lambda q: f64(F(q) * F(z))


def denominator(chunks, step, scores, values):
    """A case: q = (8, 0, ...), head_dim = 64 and a scale of 1/8, so that the keys' first dimensions are the scores."""
    seen = 64 if chunks == 1 else 64 * (chunks - 1) + 1
    k = [[scores[i // step] if i % step == 0 else -400.0] + [0.0] * 63 for i in range(seen)]
    v = [[0.0] * 64 for _ in range(seen)]
    place = scores.index(0.0) * step
    v[place][:len(values)] = values
    y, _ = attention([8.0] + [0.0] * 63, k, v, 0.125)
    return {"chunks": chunks, "step": step, "scores": hex32(scores), "place": place, "values": hex32(values), "y": hex32(y[:len(values)])}


def quotients():
    """Denominators whose values show that a chunk's sum is added by an fma, and that 1 / L is a factor."""
    random = Random(10)
    out, open_variants = [], {"not fused", "divided"}
    while open_variants:
        # The first and the ninth chunk, which have a chain in common; all others are nothing beside them.
        scores = [-250.0] * (64 * 9 + 1)
        for place in list(range(64)) + list(range(512, 576)):
            scores[place] = -random.below(1 << 20) / 2.0 ** 17
        scores[random.below(64)] = 0.0
        first, ninth = scores[:64], scores[512:576]
        weight, other_weight = (tree([exp(f32(F(x) - F(max(s)))) for x in s]) for s in (first, ninth))
        factor = exp(max(ninth))
        total = fma(f64, other_weight, factor, weight)
        wrong = {"not fused": by_another(f64(F(weight) + F(f64(F(other_weight) * F(factor))))),
                 "divided": lambda q: f64(F(q) / F(total))}
        values = {name: value_that_tells(total, wrong[name]) for name in open_variants}
        told = sorted(name for name, value in values.items() if value is not None)
        if told:
            open_variants -= set(told)
            out.append(denominator(10, 1, scores, [values[name] for name in told]))
    return out


TINY = (-37.4375, -37.5, -38.125, -36.8125)


def denominators(all_chunks=(1, 9, 17, 20)):
    """Scores whose softmax's denominator depends on its order, with values that show it: of one chunk the scores of all 64 positions, of
    more chunks those of each one's first position (the others are far below)."""
    out = []
    for chunks in all_chunks:
        random = Random(60 + chunks)
        length, variants, order = (64, CHUNKS, tree) if chunks == 1 else (chunks, JOINS, chains)
        open_variants = {name: v for name, v in variants.items() if not same_order(v, order, length)}
        for _ in range(200000):
            if not open_variants:
                break
            scores = [-200.0] * length
            for _ in range(2 + random.below(20)):
                scores[random.below(length)] = random.pick(TINY)
            scores[random.below(length)] = -random.below(1 << 20) / 2.0 ** 18 - 0.125
            scores[random.below(length)] = 0.0
            if 0.0 not in scores:
                continue
            p = [exp(s) for s in scores]
            total = order(p)
            told, values = [], []
            for name, variant in open_variants.items():
                other = variant(p)
                if other != total:
                    value = value_that_tells(total, by_another(other))
                    if value is not None:
                        told.append(name)
                        if value not in values:
                            values.append(value)
            for name in told:
                del open_variants[name]
            if told:
                out.append(denominator(chunks, 1 if chunks == 1 else 64, scores, values))
        assert not open_variants, f"{chunks} chunks: not told {sorted(open_variants)}"
    return out


def joins():
    """Values of chunks whose weighted sum depends on the order of chunks: all scores are equal, a chunk has one value."""
    random = Random(7)
    out = []
    for chunks in (2, 3, 8, 9, 16, 17, 20, 130):
        def make():
            return cancelling(random, chunks, chunks)

        def result(total, _=None):
            # The last chunk has one position, the others 64.
            inverse = f64(1 / F(64 * (chunks - 1) + 1))
            return f32(F(f64(F(total) * F(inverse))))
        for row in telling("joins", JOINS, chains, chunks, make, result):
            out.append({"chunks": chunks, "values": hex32(row), "y": hex32([result(chains(row))])})
    return out


# Router.

def weigh(logits, order=ascending, product=False):
    """Weights of the chosen experts, in their order."""
    p = [exp(f32(F(x) - F(logits[0]))) for x in logits]
    total = order(p)
    if product:
        return [f32(F(f64(F(x) * F(f64(1 / F(total)))))) for x in p]
    return [f32(F(f64(F(x) / F(total)))) for x in p]


def argument_of(p):
    """The f32 whose exp is the largest one that is at most p."""
    best = None
    for x in near(constant(F(Decimal(p).ln())), 4):
        e = exp(x)
        if e <= p and (best is None or e > best[1]):
            best = (x, e)
    return best


ROUTERS = {
    "descending": lambda x: weigh(x, descending),
    "as a tree": lambda x: weigh(x, lambda p: tree(power_padded(p))),
    "as groups of 4": lambda x: weigh(x, lambda p: groups(p, 4)),
    "in f32": lambda x: weigh(x, lambda p: sum32(p)),
    "times the inverse": lambda x: weigh(x, product=True),
}


def sum32(p):
    total = 0.0
    for x in p:
        total = add32(total, x)
    return total


def router():
    random = Random(8)
    open_variants = dict(ROUTERS)
    rows = []
    for _ in range(20000):
        if not open_variants:
            break
        # p1 / S, or 1 / S, shall lie in the middle of two f32: S is made so from ever smaller probabilities.
        first = argument_of(0.02 + random.below(1 << 30) / 2.0 ** 30 * 0.9)
        of = random.pick([1.0, first[1]])
        middle = f32(F(of) / (1 + F(first[1])))
        middle = (F(middle) + F(of_bits32(bits32(middle) - 1 - random.below(3)))) / 2
        middle -= (F(of_bits32(bits32(float(f32(middle))) + 1)) - F(f32(middle))) * random.below(2)
        rest = F(of) / middle - 1 - F(first[1])
        logits = [0.0, first[0]]
        while len(logits) < 6 and rest > F(2) ** -56:
            found = argument_of(float(rest))
            if found is None:
                break
            logits.append(found[0])
            rest -= F(found[1])
        logits += [random.pick(TINY) for _ in range(random.below(12))]
        logits.sort(reverse=True)
        expected = weigh(logits)
        told = [name for name, variant in open_variants.items() if variant(logits) != expected]
        if told:
            for name in told:
                del open_variants[name]
            rows.append(logits)
    assert not open_variants, f"router: not told {sorted(open_variants)}"
    for top_k in (1, 2, 4, 8, 10, 32):
        for size in (0.5, 2.0, 30.0):
            logits = sorted((random.number(2) * size for _ in range(top_k)), reverse=True)
            rows.append(logits)
    # Around the argument from which on exp is 0.
    rows.append([0.0] + sorted((-103.0 - random.below(1 << 16) / (1 << 16) for _ in range(15)), reverse=True))
    rows.append([1.0, 1.0 - 103.0, 1.0 - 103.27893, 1.0 - 103.5, 1.0 - 103.9, 1.0 - 103.97, 1.0 - 104.0, 1.0 - 104.25])
    rows = [[f32(F(x)) for x in row] for row in rows]
    return [{"logits": hex32(row), "weights": hex32(weigh(row)), "of_all": hex32(weigh(row, groups))} for row in rows]


# Experts.

def weighted_sums():
    out = []
    for case, top_k in enumerate((1, 2, 3, 4, 8, 9, 16, 17, 32)):
        seed = 400 + case
        random = Random(seed)
        weights, values = random.numbers(1, top_k), random.numbers(6, top_k)
        products = [f64(F(w) * F(x)) for w, x in zip(weights, values)]
        out.append({"seed": seed, "top_k": top_k, "sum": hex32([f32(F(exact_sum(products)))])})
    return out


def swiglus():
    random = Random(9)
    gate, up = [], []
    for exponent in (0, 3, 6, -20):
        gate += random.numbers(exponent, 60)
        up += random.numbers(4, 60)
    gate += [20.0, -20.0, 87.5, -87.5, 100.0, -86.0, -88.8, -103.5]
    up += [1.5, -2.5, 3.25, 1e30, -3.5, 1e10, 1e38, 1e38]
    gate, up = [f32(F(x)) for x in gate], [f32(F(x)) for x in up]
    kept = [(g, u) for g, u in zip(gate, up) if g and u]
    return {"gate": hex32([g for g, _ in kept]), "up": hex32([u for _, u in kept]), "out": hex32([swiglu(g, u) for g, u in kept])}


# Fixed point and products.

def fixed(x):
    """The integers and the exponent of the unit of 256 activations."""
    largest = max(abs(v) for v in x)
    e = 0 if largest == 0 else math.frexp(largest)[1]
    return [round(F(v) * F(2) ** (38 - e)) for v in x], e - 38


def digits(x):
    """[8 sub-blocks][5 planes][32]."""
    out = [[[0] * 32 for _ in range(5)] for _ in range(8)]
    for i, rest in enumerate(x):
        for plane in range(5):
            digit = (rest + 128) % 256 - 128
            out[i // 32][plane][i % 32] = digit
            rest = (rest - digit) // 256
        assert rest == 0
    return out


def quantized():
    out = []
    for case, exponent in enumerate((0, 1, 20, -30, 127, -120, -126)):
        seed = 500 + case
        # Denormal numbers have fewer bits.
        x = [f32(F(value)) for value in Random(seed).numbers(exponent, 256)]
        integers, unit = fixed(x)
        d = digits(integers)
        sums = [[sum(d[j][plane]) for j in range(8)] for plane in range(5)]
        low = [[(s + 128) % 256 - 128 for s in row] for row in sums]
        high = [[(s - l) // 256 for s, l in zip(row, lows)] for row, lows in zip(sums, low)]
        as_hex = bytes(v % 256 for j in d for plane in j for v in plane).hex()
        sums_hex = bytes(v % 256 for rows in (low, high) for row in rows for v in row).hex()
        out.append({"seed": seed, "exponent": exponent, "unit": hex64([float(F(2) ** unit)]), "digits": as_hex, "sums": sums_hex})
    return out


def half(bits):
    """A finite f16."""
    sign, exponent, fraction = bits >> 15, bits >> 10 & 31, bits & 1023
    size = F(fraction, 1024) * F(2) ** -14 if exponent == 0 else (1 + F(fraction, 1024)) * F(2) ** (exponent - 15)
    return -size if sign else size


def block_bytes(random, kind):
    """Random bytes with factors below 2: `Weights::pinned` in Rust."""
    data = bytearray((random.bits() >> 32) % 256 for _ in range(144 if kind == "Q4_K" else 210))
    for place in ((1, 3) if kind == "Q4_K" else (209,)):
        data[place] &= 0xBF
    return bytes(data)


def contribution(kind, data, x):
    """v of docs/arithmetic.md."""
    if kind == "Q4_K":
        s, qs = data[4:16], data[16:]
        scales = [s[j] & 63 if j < 4 else (s[j + 4] & 15) | (s[j - 4] >> 6) << 4 for j in range(8)]
        mins = [s[j + 4] & 63 if j < 4 else s[j + 4] >> 4 | (s[j] >> 6) << 4 for j in range(8)]
        quant = [qs[32 * (i // 64) + i % 32] >> (4 * (i // 32 % 2)) & 15 for i in range(256)]
        t = sum(scales[i // 32] * quant[i] * x[i] for i in range(256))
        m = sum(mins[i // 32] * x[i] for i in range(256))
        d, dmin = half(data[0] | data[1] << 8), half(data[2] | data[3] << 8)
        return f64(-dmin * m + F(f64(d * F(f64(F(t))))))
    ql, qh, scales = data[:128], data[128:192], [s - 256 if s > 127 else s for s in data[192:208]]
    t = 0
    for i in range(256):
        h, within = divmod(i, 128)
        low = ql[64 * h + within % 64] >> (4 * (within // 64)) & 15
        high = qh[32 * h + within % 32] >> (2 * (within // 32)) & 3
        t += scales[i // 16] * ((low | high << 4) - 32) * x[i]
    return f64(half(data[208] | data[209] << 8) * F(f64(F(t))))


def product(kind, blocks, x):
    numbers = []
    for b, data in enumerate(blocks):
        integers, unit = fixed(x[256 * b:256 * b + 256])
        numbers.append(f64(F(contribution(kind, data, integers)) * F(2) ** unit))
    return f32(F(exact_sum(numbers)))


def products():
    out = []
    case = 0
    for kind in ("Q4_K", "Q6_K"):
        for blocks in (1, 2, 3, 8, 15, 16, 17, 33):
            seed = 600 + case
            case += 1
            random = Random(seed)
            x = random.numbers(2, 256 * blocks)
            y = [product(kind, [block_bytes(random, kind) for _ in range(blocks)], x) for _ in range(3)]
            out.append({"kind": kind, "seed": seed, "blocks": blocks, "y": hex32(y)})
    return out


def split_products():
    """A row with d T = dmin M: what is left is what the first product lost when it was rounded, and nothing where the second one is
    rounded, too."""
    out = []
    for case, d in enumerate((0x3C01, 0x3D55, 0x3AAB, 0x33FF, 0xBC01, 0x3C03)):
        seed = 700 + case
        random = Random(seed)
        # Of two sizes, so that the integers use all of their bits.
        x = random.numbers(1, 128) + random.numbers(-14, 128)
        factors = d.to_bytes(2, "little") * 2
        # Scales and mins of 63, quants of 1: sums that want more bits, times d, than an f64 has.
        data = factors + bytes([0xFF] * 12) + bytes([0x11] * 128)
        y = product("Q4_K", [data], x)
        # Where the first product lost nothing, there is nothing to see.
        if y != 0:
            out.append({"d": d, "seed": seed, "y": hex32([y])})
    assert len(out) >= 4
    return out


def main():
    arguments = exp_arguments()
    silu_arguments = [x for x in arguments if math.isfinite(x)][::2]
    table = {
        "exp": {"x": hex32(arguments), "y": hex32([exp(x) for x in arguments])},
        "silu": {"x": hex32(silu_arguments), "y": hex32([silu(x) for x in silu_arguments])},
        "swiglu": swiglus(),
        "sums": sums(),
        "dots": dots(),
        "dense_dots": dense_dots(),
        "norms": norms(),
        "norm_values": norm_values(),
        "rope": rope(),
        "rope_tables": rope_tables(),
        "scales": [{"head_dim": d, "scale": hex32([scale_of(d)])} for d in (8, 16, 32, 64, 80, 96, 128, 160, 192, 256)],
        "attention": attention_rows(),
        "denominators": denominators() + quotients(),
        "joins": joins(),
        "router": router(),
        "weighted_sums": weighted_sums(),
        "quantize": quantized(),
        "products": products(),
        "split_products": split_products(),
    }
    lines = []
    for name, entries in table.items():
        if isinstance(entries, dict):
            text = json.dumps(entries)
        else:
            text = "[\n" + ",\n".join(" " + json.dumps(entry) for entry in entries) + "\n]"
        lines.append(f'"{name}": {text}')
    Path(__file__).with_name("pins.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
