"""Questions about a generated page, and the labelled values and table columns that they ask for.

Every answer is a string exactly as printed, a count, or "yes" or "no".
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from omni.data import vocabulary as words

MAX_ANSWER = 24  # characters
NOT_NOUNS = (
    "No",
    "Born",
    "Valid to",
    "Expires",
    "Due",
    "Pay by",
)  # labels that "What is the ...?" does not suit
Maker = Callable[[Random], str]


class Field(NamedTuple):
    """A labelled value: labels that mean the same, questions by meaning, and how to draw one."""

    labels: tuple[str, ...]
    questions: tuple[str, ...]
    make: Maker


def any_date(rng: Random) -> str:
    return words.date(rng, rng.randrange(4))


FIELDS = {
    "name": Field(("Name", "Full name"), ("What is the name?",), words.person),
    "phone": Field(("Phone", "Tel", "Mobile"), ("What is the phone number?",), words.phone),
    "date": Field(("Date",), ("What is the date?", "When was it dated?"), any_date),
    "city": Field(("City", "Town"), ("Which city is given?", "What is the city?"), words.city),
    "address": Field(("Address", "Street"), ("What is the address?",), words.address),
    "number": Field(("No", "Number", "No."), ("What is the number?",), words.code),
    "reference": Field(("Ref", "Reference", "Ref."), ("What is the reference?",), words.code),
    "born": Field(("Born", "Birth date"), ("What is the date of birth?", "When were they born?"), any_date),
    "id": Field(("ID", "ID No"), ("What is the ID?",), words.code),
    "room": Field(("Room",), ("Which room is it?",), lambda r: r.choice(("", "A", "B", "C")) + words.digits(r, 2)),
    "role": Field(("Role", "Job"), ("What is the role?",), words.value),
    "email": Field(
        ("Email", "Mail"),
        ("What is the email address?",),
        lambda r: f"{words.pseudo_word(r, 2)}@{words.pseudo_word(r, 1)}.{r.choice(('com', 'org', 'net'))}",
    ),
    "amount": Field(("Amount", "Fee"), ("What is the amount?",), lambda r: f"{words.amount(r):.2f}"),
    "time": Field(("Time",), ("What is the time?", "At what time is it?"), words.clock),
    "valid": Field(("Valid to", "Expires"), ("When does it expire?", "Until when is it valid?"), any_date),
    "contact": Field(("Contact", "Clerk"), ("Who is the contact?",), words.person),
    "code": Field(("Code", "Key"), ("What is the code?",), words.code),
    "age": Field(("Age",), ("What is the age?",), lambda r: str(r.randint(3, 98))),
    "paid": Field(("Paid",), ("Is it paid?",), lambda r: r.choice(("yes", "no"))),
    "signed": Field(("Signed",), ("Is it signed?",), lambda r: r.choice(("yes", "no"))),
    "weight": Field(("Weight",), ("What is the weight?",), lambda r: f"{r.randint(1, 999) / 10} kg"),
    "color": Field(("Color",), ("What is the color?",), lambda r: r.choice(("red", "blue", "green", "black", "white"))),
}

COLUMNS: dict[str, Maker] = {
    "Qty": lambda r: str(r.randint(1, 99)),
    "Price": lambda r: f"{words.amount(r):.2f}",
    "Stock": lambda r: str(r.randint(0, 999)),
    "Code": lambda r: words.letters(r, 1) + words.digits(r, r.randint(1, 3)),
    "Size": lambda r: r.choice(("S", "M", "L", "XL", str(r.randint(20, 60)))),
    "Year": lambda r: str(r.randint(1900, 2039)),
    "Score": lambda r: str(r.randint(0, 100)),
    "Room": lambda r: words.letters(r, 1) + words.digits(r, 1),
    "Kg": lambda r: str(r.randint(1, 99) / 10),
    "City": words.city,
    "Pct": lambda r: f"{r.randint(1, 99)}%",
}


class Questions:
    """Questions about one page, each with the answer as printed."""

    def __init__(self, rng: Random):
        self.rng = rng
        self.asked: dict[str, str] = {}
        self.ambiguous: set[str] = set()
        self.checks: list[tuple[str, str]] = []

    def ask(self, templates: Sequence[str], answer: str, *names: str) -> None:
        """Ask one of the templates, its ``{}`` filled with ``names``; not if the answer is too long."""
        if len(answer) > MAX_ANSWER:
            return
        question = self.rng.choice(templates).format(*names)
        if self.asked.setdefault(question, answer) != answer:
            self.ambiguous.add(question)

    def ask_label(self, label: str, answer: str, others: Sequence[str] = ()) -> None:
        """Ask for a labelled value by its label, or by one of the questions that mean the same."""
        label = label.rstrip(".")
        if others and (self.rng.random() < 0.5 or label.capitalize() in NOT_NOUNS):
            self.ask(others, answer)
            return
        shown = label if self.rng.random() < 0.5 or label.isupper() else label.lower()
        self.ask(("What is the {}?", "What is the {}?", "What does it say for {}?"), answer, shown)

    def check(self, templates: Sequence[str], present: Sequence[str], absent: Callable[[], str]) -> None:
        """A yes/no question about one of ``present`` or, as often, about something that is not there."""
        if self.rng.random() < 0.5:
            name, answer = self.rng.choice(present), "yes"
        else:
            name, answer = absent(), "no"
            if any(name.lower() in other.lower() or other.lower() in name.lower() for other in present):
                return
        self.checks.append((self.rng.choice(templates).format(name), answer))

    def choose(self, most: int = 8) -> tuple[tuple[str, str], ...]:
        """Up to ``most`` of them in random order, at most one of them a yes/no question."""
        pairs = [pair for pair in self.asked.items() if pair[0] not in self.ambiguous]
        self.rng.shuffle(pairs)
        pairs = pairs[: most - 1]
        pairs += self.checks[:1]
        self.rng.shuffle(pairs)
        return tuple(pairs)
