"""Problems of words and lists: sorting, editing, tables.

    sort_numbers, sort_words  43 12 70    12: 43 70 / 43: 70             the next in order, and what is left
    edit                      plane       delete n: plae / reverse: ealp
    lookup                    qty of bob  age qty / ann 25 4 / bob: 61 9: 9
    largest                   qty         age qty / ann 25 4: 4 ann 4 / bob 61 9: 9 bob 9
    total                     qty         age qty / ann 25 4: 4 / bob 61 9: 9 4+9=13

Of a column: the heads up to the one in question; then the rows up to the one in question, and its number; or each row,
its number, and the best or the sum so far.
"""

from random import Random

from omni.data.reasoning_parts import Solved

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOWELS, CONSONANTS = "aeiou", "bdfgklmnprst"
NAMES = ("ann", "bob", "cat", "dan", "eve", "fay", "gus", "hal", "ian", "joe", "kim", "lee", "max", "ned", "oli", "pam")
HEADS = ("age", "fee", "kg", "qty", "pay")


# -- sorting ---------------------------------------------------------------------------------------------------------


def sort_numbers(rng: Random, level: int) -> Solved:
    """Numbers of two digits."""
    return _sorted(rng, [str(number) for number in rng.sample(range(10, 100), level + 3)])


def sort_words(rng: Random, level: int) -> Solved:
    """Words that begin with different letters."""
    firsts = rng.sample(LETTERS, level + 2)
    return _sorted(rng, [f"{first}{_syllable(rng)}" for first in firsts])


def _sorted(rng: Random, items: list[str]) -> Solved:
    """The smallest of those that are left, again and again."""
    question, left, lines = " ".join(items), list(items), []
    while len(left) > 1:
        least = min(left)
        left.remove(least)
        lines.append(f"{least}: {' '.join(left)}")
    wording = rng.choice((f"Sort {question}.", f"Put in order: {question}"))
    return Solved(wording, lines, " ".join(sorted(items)))


def _syllable(rng: Random) -> str:
    return rng.choice(VOWELS) + rng.choice(CONSONANTS) + rng.choice(("", rng.choice(VOWELS)))


# -- editing ---------------------------------------------------------------------------------------------------------


def edit(rng: Random, level: int) -> Solved:
    """One rule after another, as many as the level. No letter of the word comes twice."""
    word = "".join(rng.sample(LETTERS, rng.randint(4, 5)))
    question, now, rules, lines = word, word, [], []
    while len(rules) < level:
        rule, now = _rule(rng, now, rules[-1] if rules else "")
        rules.append(rule)
        lines.append(f"{rule}: {now}")
    return Solved(f"Take {question}, {', '.join(rules)}.", lines, now)


def _rule(rng: Random, word: str, before: str) -> tuple[str, str]:
    """A rule in words, and what it makes of ``word``."""
    old, new = rng.choice(word), rng.choice([letter for letter in LETTERS if letter not in word])
    kinds = ["delete", "replace", "insert"] + ["reverse"] * (before != "reverse")
    kind = rng.choice([k for k in kinds if k != "delete" or len(word) > 3])
    if kind == "delete":
        return f"delete {old}", word.replace(old, "")
    if kind == "replace":
        return f"replace {old} by {new}", word.replace(old, new)
    if kind == "insert":
        return f"insert {new} after {old}", word.replace(old, old + new)
    return "reverse", word[::-1]


# -- tables ----------------------------------------------------------------------------------------------------------


def lookup(rng: Random, level: int) -> Solved:
    heads, rows = _table(rng, level, 99)
    names, at = list(rows), rng.randrange(2)
    wanted = rng.choice(names)
    value = str(rows[wanted][at])
    before = [_row(name, rows[name]) for name in names[: names.index(wanted)]]
    lines = [" ".join(heads[: at + 1]), *before, f"{_row(f'{wanted}:', rows[wanted])}: {value}"]
    return Solved(_shown(heads, rows, f"{heads[at]} of {wanted}?"), lines, value)


def largest(rng: Random, level: int) -> Solved:
    """Whose number is the largest; it is the only one."""
    while True:
        heads, rows = _table(rng, level, 99)
        at = rng.randrange(2)
        column = [row[at] for row in rows.values()]
        if column.count(max(column)) == 1:
            break
    best, lines = None, [" ".join(heads[: at + 1])]
    for name, row in rows.items():
        best = name if best is None or row[at] > rows[best][at] else best
        lines.append(f"{_row(name, row)}: {row[at]} {best} {rows[best][at]}")
    return Solved(_shown(heads, rows, f"largest {heads[at]}?"), lines, best)


def total(rng: Random, level: int) -> Solved:
    heads, rows = _table(rng, level, 9)
    at, found = rng.randrange(2), None
    lines = [" ".join(heads[: at + 1])]
    for name, row in rows.items():
        step = "" if found is None else f" {found}+{row[at]}={found + row[at]}"
        found = (found or 0) + row[at]
        lines.append(f"{_row(name, row)}: {row[at]}{step}")
    return Solved(_shown(heads, rows, f"total {heads[at]}?"), lines, str(found))


def _row(name: str, row: tuple[int, int]) -> str:
    return f"{name} {row[0]} {row[1]}"


def _table(rng: Random, level: int, most: int) -> tuple[list[str], dict[str, tuple[int, int]]]:
    """Two columns and level + 1 rows, whose names begin with different letters."""
    names = rng.sample(NAMES, level + 1)
    return rng.sample(HEADS, 2), {name: (rng.randint(1, most), rng.randint(1, most)) for name in names}


def _shown(heads: list[str], rows: dict[str, tuple[int, int]], question: str) -> str:
    lines = ["name " + " ".join(heads), *(_row(name, row) for name, row in rows.items())]
    return "\n".join([*lines, question])
