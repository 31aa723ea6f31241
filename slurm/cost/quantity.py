"""A number with the interval in which it may lie, and arithmetic that carries the interval along."""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """A positive number (or 0) and its interval. Factors count as independent: their relative widths add in squares.

    Sums and maxima take the ends of their terms, which tend to be wrong together.
    """

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> "Quantity":
        return cls(value, value, value)

    def __mul__(self, other: "Quantity | float") -> "Quantity":
        other = _quantity(other)
        value = self.value * other.value
        if value == 0:
            return Quantity(0.0, self.low * other.low, self.high * other.high)
        down = math.hypot(_width(self.value, self.low), _width(other.value, other.low))
        up = math.hypot(_width(self.high, self.value), _width(other.high, other.value))
        return Quantity(value, value * math.exp(-down), value * math.exp(up))

    def __truediv__(self, other: "Quantity | float") -> "Quantity":
        other = _quantity(other)
        return self * Quantity(1 / other.value, 1 / other.high, 1 / other.low)

    def __add__(self, other: "Quantity | float") -> "Quantity":
        other = _quantity(other)
        return Quantity(self.value + other.value, self.low + other.low, self.high + other.high)

    def __sub__(self, other: "Quantity | float") -> "Quantity":
        """Not below 0."""
        other = _quantity(other)
        return Quantity(*(max(0.0, a - b) for a, b in zip(self._ends(), (other.value, other.high, other.low))))

    def __pow__(self, exponent: float) -> "Quantity":
        return Quantity(self.value**exponent, self.low**exponent, self.high**exponent)

    def inverse(self) -> "Quantity":
        return Quantity(1 / self.value, 1 / self.high, 1 / self.low)

    def ceiling(self) -> "Quantity":
        return Quantity(*(float(math.ceil(end)) for end in self._ends()))

    def _ends(self) -> tuple[float, float, float]:
        return self.value, self.low, self.high

    def __format__(self, spec: str) -> str:
        """`12 (9 to 15)`, each with `spec` (by default `.3g`)."""
        if self.low == self.high:
            return _text(self.value, spec)
        return f"{_text(self.value, spec)} ({_text(self.low, spec)} to {_text(self.high, spec)})"

    def __str__(self) -> str:
        return format(self)

    def as_list(self) -> list[float]:
        """[value, low, high], for JSON."""
        return [float(f"{end:.6g}") for end in self._ends()]


def largest(*quantities: Quantity) -> Quantity:
    return _each(max, quantities)


def total(quantities: "list[Quantity]") -> Quantity:
    return _each(lambda *ends: sum(ends), quantities or [Quantity.exact(0.0)])


def _each(combine: Callable[..., float], quantities: "tuple[Quantity, ...] | list[Quantity]") -> Quantity:
    return Quantity(*(combine(*ends) for ends in zip(*(quantity._ends() for quantity in quantities))))


def _quantity(number: Quantity | float) -> Quantity:
    return number if isinstance(number, Quantity) else Quantity.exact(number)


def _width(larger: float, smaller: float) -> float:
    """Of an interval in logarithms; that down to 0 counts as a factor of a thousand."""
    return math.log(larger / smaller) if smaller > 0 else math.log(1000.0)


def _text(number: float, spec: str) -> str:
    if spec:
        return format(number, spec)
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
