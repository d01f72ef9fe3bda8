"""Problems of numbers: columns of digits, brackets, small programs.

sum         346+58     6+8=14 4 / 4+5+1=10 04 / 3+0+1=4 404      what is found so far stands behind each column
difference  52-18      2-8+10=4 4 / 5-1-1=3 34                   +10: borrowed, -1: lent
product     47*6       7*6=42 2 / 4*6=24+4=28 282
brackets    (7+5)-4    7+5=12 12-4 / 12-4=8 8                    one operation, and what is left to do
program     b=a+5      b=a+5: 7+5=12 b=12 a=7                    a step, and the variables, the newest first
            in a loop  3 b=b+1: 12+1=13 b=13 a=7                 3 rounds are left
"""

import re
from random import Random

from omni.data.reasoning_parts import Solved

DIGITS = {1: 2, 2: 3, 3: 4}  # level -> most digits of a number that is worked on column by column
MOST = 99  # of what brackets and programs compute


# -- columns of digits -----------------------------------------------------------------------------------------------


def addition(rng: Random, level: int) -> Solved:
    a, b = _number(rng, DIGITS[level]), _number(rng, rng.randint(max(1, level - 1), DIGITS[level]))
    width, carry, found, lines = max(len(str(a)), len(str(b))), 0, "", []
    for column, (x, y) in enumerate(zip(_columns(a, width), _columns(b, width), strict=True), start=1):
        total = x + y + carry
        found = f"{total if column == width else total % 10}{found}"
        lines.append(f"{x}+{y}{'+1' if carry else ''}={total} {found}")
        carry = total // 10
    return Solved(_question(rng, f"{a}+{b}"), lines, str(a + b))


def subtraction(rng: Random, level: int) -> Solved:
    b, a = sorted((_number(rng, DIGITS[level]), _number(rng, rng.randint(max(1, level - 1), DIGITS[level]))))
    width, lent, found, lines = len(str(a)), 0, "", []
    for x, y in zip(_columns(a, width), _columns(b, width), strict=True):
        left = x - y - lent
        borrowed = left < 0
        left += 10 * borrowed
        found = f"{left}{found}"
        lines.append(f"{x}-{y}{'-1' if lent else ''}{'+10' if borrowed else ''}={left} {found}")
        lent = int(borrowed)
    return Solved(_question(rng, f"{a}-{b}"), lines, str(a - b))


def multiplication(rng: Random, level: int) -> Solved:
    a, b = _number(rng, DIGITS[level]), rng.randint(2, 5 if level == 1 else 9)
    width, carry, found, lines = len(str(a)), 0, "", []
    for column, x in enumerate(_columns(a, width), start=1):
        total = x * b + carry
        found = f"{total if column == width else total % 10}{found}"
        lines.append(f"{x}*{b}={x * b}{f'+{carry}={total}' if carry else ''} {found}")
        carry = total // 10
    return Solved(_question(rng, f"{a}*{b}"), lines, str(a * b))


def _number(rng: Random, digits: int) -> int:
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def _columns(number: int, width: int) -> list[int]:
    """Digits from the last one on."""
    return [int(digit) for digit in reversed(f"{number:0{width}d}")]


def _question(rng: Random, expression: str) -> str:
    return rng.choice((f"{expression}=?", f"What is {expression}?"))


# -- brackets --------------------------------------------------------------------------------------------------------

INNERMOST = re.compile(r"\(([^()]*)\)")
PRODUCT = re.compile(r"\d+\*\d+")
STEP = re.compile(r"\d+[+-]\d+")


def brackets(rng: Random, level: int) -> Solved:
    while True:
        expression = _expression(rng, level + 1)
        lines = _reduced(expression)
        if lines is not None:
            return Solved(_question(rng, expression), lines, lines[-1].rpartition(" ")[2])


def _expression(rng: Random, operations: int) -> str:
    """One-digit numbers and as many operations, some of them in brackets."""
    if operations == 0:
        return str(rng.randint(1, 9))
    left = rng.randint(0, operations - 1)
    parts = [_expression(rng, left), _expression(rng, operations - 1 - left)]
    sign = rng.choice("++--*")
    wrapped = [
        f"({part})" if len(part) > 1 and (sign == "*" or rng.random() < 0.5) and not part.startswith("(") else part
        for part in parts
    ]
    return sign.join(wrapped)


def _reduced(expression: str) -> list[str] | None:
    """The working, an operation a line; None where a number leaves 0 to 99, or a step takes more than one's head."""
    lines = []
    while not expression.isdigit():
        inner = INNERMOST.search(expression)
        start, stop = inner.span(1) if inner else (0, len(expression))
        found = PRODUCT.search(expression, start, stop) or STEP.search(expression, start, stop)
        if found is None:
            return None
        value = _stepped(found[0])
        if value is None:
            return None
        alone = inner is not None and found.span() == (start, stop)
        first, last = (start - 1, stop + 1) if alone else found.span()
        expression = f"{expression[:first]}{value}{expression[last:]}"
        lines.append(f"{found[0]}={value} {expression}")
    return lines


def _stepped(step: str) -> int | None:
    """A number of at most two digits with one of a single digit; a product of two such."""
    left, sign, right = re.fullmatch(r"(\d+)([*+-])(\d+)", step).groups()
    a, b = int(left), int(right)
    if (sign == "*" and max(a, b) > 9) or min(a, b) > 9:
        return None
    value = a * b if sign == "*" else a + b if sign == "+" else a - b
    return value if 0 <= value <= MOST else None


# -- programs --------------------------------------------------------------------------------------------------------


STATEMENTS = {1: 2, 2: 3, 3: 3}  # level -> assignments behind the first two


def program(rng: Random, level: int) -> Solved:
    """Assignments to two variables; at level 3 one of them is in a loop."""
    first, second = rng.sample("abcnxy", 2)
    values = {second: rng.randint(1, 9), first: rng.randint(1, 20)}
    source, lines = [f"{name}={values[name]}" for name in (first, second)], [_state(values)]
    loop = rng.randint(1, STATEMENTS[level]) if level == 3 else 0
    for at in range(1, STATEMENTS[level] + 1):
        line, values, steps = _assigned(rng, values, rng.randint(2, 3) if at == loop else 1)
        source += line
        lines += steps
    last = next(iter(values))
    return Solved("\n".join([*source, f"print({last})"]), lines, str(values[last]))


def _assigned(rng: Random, values: dict[str, int], times: int) -> tuple[list[str], dict[str, int], list[str]]:
    """One more assignment, ``times`` over, within reach: its lines, the variables after it, its working."""
    while True:
        target, left = rng.choice(sorted(values)), rng.choice(sorted(values))
        sign = rng.choice("++-" if times > 1 else "++-*")
        right = rng.choice([*sorted(set(values) - {left}), *[str(rng.randint(1, 9))] * 2])
        if times > 1 and left != target:
            continue  # each round would do the same
        line, state, steps = f"{target}={left}{sign}{right}", dict(values), []
        for round_ in range(times, 0, -1):
            step = f"{state[left]}{sign}{state.get(right, right)}"
            value = _stepped(step)
            if value is None:
                break
            state = {target: value} | {name: state[name] for name in state if name != target}
            steps.append(f"{f'{round_} ' if times > 1 else ''}{line}: {step}={value} {_state(state)}")
        if len(steps) == times:
            return [line] if times == 1 else [f"for i in range({times}):", f" {line}"], state, steps


def _state(values: dict[str, int]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())
