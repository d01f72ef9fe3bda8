"""The text world: tiny dialogues and short factual prose, drawn from a seed.

The dialogues teach a byte-level model of a few million parameters to follow a chat: to copy, count, reverse,
compare and remember what stands in the prompt, and to know a few lists by heart. Random strings stand among
the words, so a model that does not read the prompt fails. Every question has exactly one right answer, so exact
match is a fair measure. Everything is printable ASCII; answers have at most `MAX_ANSWER` characters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from omni.data import vocabulary as words
from omni.data.scenes import COLORS, SHAPES

Tale = tuple[list[str], list[tuple[str, str | int]]]  # three sentences; questions and answers

MAX_ANSWER = 60
SYSTEM_SHARE = 0.1  # dialogues that open with a system message
LONGER_SHARE = 0.25  # dialogues in which another exchange goes before
WORKING_SHARE = 0.25  # of the last answers that have a working; about a tenth of all dialogues

SYSTEMS = ("You are a helpful assistant.", "You are omni-tiny.", "Answer briefly.", "Be short and exact.")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Pairs separated by commas; the first word of each is its left side."""
    return tuple(tuple(pair.split(maxsplit=1)) for pair in text.split(","))


FRUIT = _pairs("""
banana yellow, lemon yellow, strawberry red, cherry red, raspberry red, tomato red, carrot orange,
pumpkin orange, blueberry blue, plum purple, eggplant purple, cucumber green, lime green, pea green, coconut brown
""")
OPPOSITES = _pairs("""
hot cold, big small, up down, left right, day night, fast slow, old new, open closed, full empty, wet dry,
early late, hard soft, high low, light dark, long short, happy sad, near far, in out, first last, loud quiet,
thick thin, strong weak, rich poor
""")
CAPITALS = _pairs("""
France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Norway Oslo, Sweden Stockholm,
Finland Helsinki, Denmark Copenhagen, Poland Warsaw, Austria Vienna, Greece Athens, Ireland Dublin,
Hungary Budapest, Belgium Brussels, Russia Moscow, Turkey Ankara, Iran Tehran, Japan Tokyo, China Beijing,
India New Delhi, Thailand Bangkok, Vietnam Hanoi, Egypt Cairo, Kenya Nairobi, Ghana Accra, Morocco Rabat,
Senegal Dakar, Canada Ottawa, Cuba Havana, Peru Lima, Chile Santiago, Brazil Brasilia, Australia Canberra
""")
SMALL_TALK = (
    (("Hi", "Hello", "Hey", "Hello there", "Hi there!"), "Hello! How can I help?"),
    (("Good morning", "Good morning!"), "Good morning! How can I help?"),
    (("Good evening", "Good evening!"), "Good evening! How can I help?"),
    (("How are you?", "How do you do?"), "I am fine, thank you."),
    (("Thanks", "Thank you", "Thanks a lot!", "Thank you very much."), "You are welcome!"),
    (("Bye", "Goodbye", "See you later."), "Goodbye!"),
)
IDENTITY = (
    (
        ("Who are you?", "What are you?", "Introduce yourself."),
        "I am omni-tiny. I read documents and draw shapes.",
    ),
    (("What is your name?", "What are you called?"), "My name is omni-tiny."),
    (("What can you do?", "How can you help me?"), "I read documents, answer questions and draw shapes."),
    (("Are you a human?", "Are you a person?"), "No, I am a very small language model."),
    (("Can you draw?", "Can you paint a picture?"), "Yes, I draw pictures of coloured shapes."),
    (("Can you read?", "Can you read a page?"), "Yes, show me a page and ask about it."),
    (("Are you a large model?", "How large are you?"), "I am very small."),
)
GOODS = (
    "apples",
    "pears",
    "plums",
    "books",
    "coins",
    "stamps",
    "cups",
    "pens",
    "eggs",
    "keys",
    "bags",
    "nuts",
)


@dataclass(frozen=True)
class Exchange:
    """A question with its answer, and the working of a model that thinks first ("" where there is none)."""

    question: str
    answer: str
    working: str = ""


def sample_text(seed: int, kind: str | None = None) -> list[dict]:
    """Draw a dialogue: OpenAI-style messages that end with the assistant's answer.

    Where the last answer shows its working, its content is "<think>\\nworking\\n</think>\\nanswer" and the
    message has `"thinking": True`. With a `kind` (a key of `KINDS`) the last exchange is of that kind.

    Raises:
        ValueError: a negative seed or an unknown kind.
    """
    if seed < 0:
        raise ValueError(f"seed is {seed}, must not be negative")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind is {kind!r}, must be one of {', '.join(KINDS)}")
    kind = kind or _draw_kind(Random(f"text {seed}"))
    rng = Random(f"text {seed} {kind}")  # the kinds of one seed share nothing
    before = KINDS[_draw_kind(rng)][1](rng) if rng.random() < LONGER_SHARE else []
    exchanges = before + KINDS[kind][1](rng)
    messages = []
    if rng.random() < SYSTEM_SHARE:
        messages.append({"role": "system", "content": rng.choice(SYSTEMS)})
    for exchange in exchanges:
        messages.append({"role": "user", "content": exchange.question})
        messages.append({"role": "assistant", "content": exchange.answer})
    working = exchanges[-1].working
    if working and rng.random() < WORKING_SHARE:
        messages[-1] |= {"content": f"<think>\n{working}\n</think>\n{exchanges[-1].answer}", "thinking": True}
    return messages


def sample_tale(seed: int) -> str:
    """One to three short sentences of consistent facts, for language modelling and perplexity."""
    if seed < 0:
        raise ValueError(f"seed is {seed}, must not be negative")
    rng = Random(f"tale {seed}")
    sentences, _ = rng.choice(TALES)(rng)
    return " ".join(sentences[: rng.choice((1, 2, 3, 3))])


def _draw_kind(rng: Random) -> str:
    return rng.choices(tuple(KINDS), [weight for weight, _ in KINDS.values()])[0]


# ----------------------------------------------------------------------------------------------------
# helpers


def _one(rng: Random, questions: Sequence[str], answer: str | int, working: str = "") -> list[Exchange]:
    """A dialogue of one exchange; the wording and its punctuation vary."""
    question = rng.choice(questions)
    if rng.random() < 0.25:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.2:
        question = question.rstrip("?.")
    return [Exchange(question, str(answer), working)]


def _word(rng: Random) -> str:
    return rng.choice(words.WORDS) if rng.random() < 0.4 else words.pseudo_word(rng)


def _string(rng: Random) -> str:
    """A word, or letters that are none."""
    if rng.random() < 0.8:
        return _word(rng)
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 7)))


def _name(rng: Random) -> str:
    return rng.choice(words.FIRST_NAMES) if rng.random() < 0.4 else words.pseudo_word(rng).capitalize()


def _names(rng: Random, count: int) -> list[str]:
    names = []
    while len(names) < count:
        name = _name(rng)
        if name not in names:
            names.append(name)
    return names


def _number(rng: Random) -> int:
    return rng.randint(0, rng.choice((9, 20, 99)))


def _numbers(rng: Random, count: int) -> list[int]:
    top = rng.choice((9, 20, 99, 999))
    return rng.sample(range(top + 1), count)


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


# ----------------------------------------------------------------------------------------------------
# kinds of exchanges: each takes the random source and returns a list of exchanges


def _small_talk(rng: Random) -> list[Exchange]:
    questions, answer = rng.choice(SMALL_TALK)
    return _one(rng, questions, answer)


def _identity(rng: Random) -> list[Exchange]:
    questions, answer = rng.choice(IDENTITY)
    return _one(rng, questions, answer)


def _sum(rng: Random) -> list[Exchange]:
    a, b = _number(rng), _number(rng)
    forms = (f"What is {a} + {b}?", f"{a} + {b} = ?", f"Add {a} and {b}.", f"What is {a} plus {b}?")
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    working = f"{a % 10} + {b % 10} = {ones}\n{a // 10 * 10} + {b // 10 * 10} = {tens}\n{tens} + {ones} = {a + b}"
    return _one(rng, forms, a + b, working)


def _difference(rng: Random) -> list[Exchange]:
    b, a = sorted((_number(rng), _number(rng)))
    forms = (f"What is {a} - {b}?", f"{a} - {b} = ?", f"Take {b} from {a}.", f"What is {a} minus {b}?")
    tens = b // 10 * 10
    return _one(rng, forms, a - b, f"{a} - {tens} = {a - tens}\n{a - tens} - {b % 10} = {a - b}")


def _backwards(rng: Random) -> list[Exchange]:
    word = _string(rng)
    forms = (f"Spell {word} backwards.", f"Write {word} backwards.", f"Reverse the word {word}.")
    return _one(rng, forms, word[::-1], f"{' '.join(word)}\n{' '.join(word[::-1])}")


def _letter_case(rng: Random) -> list[Exchange]:
    word = _string(rng)
    if rng.random() < 0.6:
        forms = (
            f"Write {word} in capitals.",
            f"Write {word} in upper case.",
            f"Put {word} in capital letters.",
        )
        return _one(rng, forms, word.upper())
    return _one(rng, (f"Write {word.upper()} in lower case.", f"Write {word.upper()} in small letters."), word)


def _spelling(rng: Random) -> list[Exchange]:
    word = _string(rng)
    draw = rng.randrange(3)
    if draw == 0:
        return _one(rng, (f"Spell {word}.", f"How do you spell {word}?"), "-".join(word))
    where, letter = ("first", word[0]) if draw == 1 else ("last", word[-1])
    return _one(rng, (f"What is the {where} letter of {word}?", f"Name the {where} letter of {word}."), letter)


def _letter_count(rng: Random) -> list[Exchange]:
    word = _string(rng)
    forms = (
        f"How many letters are in {word}?",
        f"How many letters has {word}?",
        f"Count the letters of {word}.",
    )
    return _one(rng, forms, len(word), " ".join(f"{letter}{at}" for at, letter in enumerate(word, start=1)))


def _word_count(rng: Random) -> list[Exchange]:
    phrase = [_word(rng) for _ in range(rng.randint(1, 6))]
    text = f'"{" ".join(phrase)}"'
    working = "\n".join(f"{at} {word}" for at, word in enumerate(phrase, start=1))
    return _one(rng, (f"How many words are in {text}", f"Count the words in {text}"), len(phrase), working)


def _copy(rng: Random) -> list[Exchange]:
    text = " ".join(words.token(rng) for _ in range(rng.randint(1, 3)))
    text = text.replace('"', "'").replace("<", "(").replace(">", ")")  # neither quotes nor markup within
    return _one(rng, (f'Repeat "{text}"', f'Say "{text}"', f'Copy this: "{text}"', f'Write "{text}"'), text)


def _fruit(rng: Random) -> list[Exchange]:
    fruit, answer = rng.choice(FRUIT)
    color = rng.choice(("color", "colour"))
    forms = (f"What {color} is {_article(fruit)}?", f"What is the {color} of {_article(fruit)}?")
    return _one(rng, forms, answer)


def _calendar(rng: Random) -> list[Exchange]:
    what, names = rng.choice((("day", DAYS), ("month", MONTHS)))
    at = rng.randrange(len(names))
    side, step = rng.choice((("after", 1), ("before", -1)))
    verb = "follows" if step == 1 else "precedes"
    forms = (f"Which {what} comes {side} {names[at]}?", f"What {what} is {side} {names[at]}?")
    return _one(rng, (*forms, f"Which {what} {verb} {names[at]}?"), names[(at + step) % len(names)])


def _opposite(rng: Random) -> list[Exchange]:
    word, other = rng.sample(rng.choice(OPPOSITES), 2)
    return _one(rng, (f"What is the opposite of {word}?", f"Name the opposite of {word}."), other)


def _comparison(rng: Random) -> list[Exchange]:
    a, b = _numbers(rng, 2)
    if rng.random() < 0.3:
        sign = rng.choice(("larger", "smaller"))
        return _one(rng, (f"Is {a} {sign} than {b}?",), "Yes" if (a > b) == (sign == "larger") else "No")
    sign, pick = rng.choice((("larger", max), ("smaller", min)))
    return _one(rng, (f"Which is {sign}, {a} or {b}?", f"Which number is {sign}: {a} or {b}?"), pick(a, b))


def _parity(rng: Random) -> list[Exchange]:
    a = rng.randint(0, 999)
    answer = "odd" if a % 2 else "even"
    return _one(rng, (f"Is {a} even or odd?", f"Is {a} odd or even?"), answer, f"{a} ends in {a % 10}")


def _sorting(rng: Random) -> list[Exchange]:
    numbers = _numbers(rng, 3)
    text = ", ".join(map(str, numbers))
    low, middle, high = sorted(numbers)
    working = f"smallest {low}\nlargest {high}\nbetween {middle}"
    return _one(
        rng,
        (f"Sort {text}.", f"Put {text} in order.", f"Sort these: {text}"),
        f"{low}, {middle}, {high}",
        working,
    )


def _capital(rng: Random) -> list[Exchange]:
    country, city = rng.choice(CAPITALS)
    if rng.random() < 0.7:
        return _one(rng, (f"What is the capital of {country}?", f"Name the capital of {country}."), city)
    return _one(rng, (f"{city} is the capital of which country?", f"Which country's capital is {city}?"), country)


def _memory(rng: Random) -> list[Exchange]:
    """Something is told, perhaps something else comes between, then it is asked for."""
    told = rng.choice((_told_name, _told_color, _told_number, _told_code))(rng)
    between = rng.choice((_sum, _opposite, _small_talk, _capital))(rng) if rng.random() < 0.3 else []
    return [told[0], *between, told[1]]


def _told_name(rng: Random) -> tuple[Exchange, Exchange]:
    name = _name(rng)
    opening = rng.choice(("My name is", "I am", "Hello, my name is", "Hi, I am"))
    question = rng.choice(("What is my name?", "Do you know my name?", "Who am I?"))
    return Exchange(f"{opening} {name}.", f"Nice to meet you, {name}."), Exchange(question, f"Your name is {name}.")


def _told_color(rng: Random) -> tuple[Exchange, Exchange]:
    color = rng.choice((*COLORS, "black", "white", "brown", "pink"))
    spelling = rng.choice(("color", "colour"))
    told = Exchange(f"My favorite {spelling} is {color}.", f"I will remember: {color}.")
    return told, Exchange(f"What is my favorite {spelling}?", f"Your favorite {spelling} is {color}.")


def _told_number(rng: Random) -> tuple[Exchange, Exchange]:
    number = rng.randint(0, 999)
    told = Exchange(f"Remember the number {number}.", f"I will remember: {number}.")
    return told, Exchange(rng.choice(("What was the number?", "Which number was it?")), str(number))


def _told_code(rng: Random) -> tuple[Exchange, Exchange]:
    code = words.code(rng)
    told = Exchange(f"The code is {code}.", f"I will remember: {code}.")
    return told, Exchange(rng.choice(("What is the code?", "Tell me the code.")), code)


def _reading(rng: Random) -> list[Exchange]:
    sentences, questions = rng.choice(TALES)(rng)
    question, answer = rng.choice(questions)
    # The third sentence often says the answer outright, so it is left out.
    return [Exchange(f"{' '.join(sentences[:2])} {question}", str(answer))]


# ----------------------------------------------------------------------------------------------------
# tales: three sentences, and questions that the first two answer


def _picture_tale(rng: Random) -> Tale:
    (a, b), (tint, other) = rng.sample(SHAPES, 2), rng.sample(tuple(COLORS), 2)
    relation, inverse = rng.sample(rng.choice((("left of", "right of"), ("above", "below"))), 2)
    sentences = [
        f"The picture shows {_article(tint)} {a} and {_article(other)} {b}.",
        f"The {a} is {relation} the {b}.",
        f"So the {b} is {inverse} the {a}.",
    ]
    questions = [
        (f"What color is the {a}?", tint),
        (f"What color is the {b}?", other),
        (f"What is {relation} the {b}?", f"the {a}"),
    ]
    return sentences, questions


def _trade_tale(rng: Random) -> Tale:
    (giver, taker), goods = _names(rng, 2), rng.choice(GOODS)
    has, given = rng.randint(2, 9), rng.randint(2, 9)
    sentences = [
        f"{taker} has {has} {goods}.",
        f"{giver} gives {taker} {given} more.",
        f"Now {taker} has {has + given} {goods}.",
    ]
    questions = [
        (f"How many {goods} has {taker} now?", has + given),
        (f"Who gives {goods} to {taker}?", giver),
    ]
    return sentences, questions


def _owner_tale(rng: Random) -> Tale:
    names, goods = _names(rng, 2), rng.sample(GOODS, 2)
    counts = rng.sample(range(2, 30), 2)
    more = names[counts[0] < counts[1]]
    sentences = [f"{name} has {count} {good}." for name, count, good in zip(names, counts, goods, strict=True)]
    sentences.append(f"{more} has more things.")
    questions = [(f"Who has the {good}?", name) for name, good in zip(names, goods, strict=True)]
    questions += [(f"How many {good} are there?", count) for count, good in zip(counts, goods, strict=True)]
    return sentences, [*questions, ("Who has more things?", more)]


def _size_tale(rng: Random) -> Tale:
    tall, middle, short = _names(rng, 3)
    sentences = [
        f"{tall} is taller than {middle}.",
        f"{middle} is taller than {short}.",
        f"So {short} is the shortest.",
    ]
    return sentences, [("Who is the tallest?", tall), ("Who is the shortest?", short)]


def _day_tale(rng: Random) -> Tale:
    name, thing, at = (
        _name(rng),
        rng.choice(("market", "concert", "meeting", "race", "party")),
        rng.randrange(7),
    )
    today, tomorrow, past = DAYS[at], DAYS[(at + 1) % 7], DAYS[at - 1]
    sentences = [f"Today is {today}.", f"{name} goes to the {thing} tomorrow.", f"That is on {tomorrow}."]
    questions = [
        (f"On which day is the {thing}?", tomorrow),
        (f"Who goes to the {thing}?", name),
        ("What day was yesterday?", past),
    ]
    return sentences, questions


def _city_tale(rng: Random) -> Tale:
    (country, city), name = rng.choice(CAPITALS), _name(rng)
    sentences = [
        f"{name} lives in {city}.",
        f"{city} is the capital of {country}.",
        f"So {name} lives in {country}.",
    ]
    return sentences, [(f"In which country does {name} live?", country), (f"Who lives in {city}?", name)]


def _number_tale(rng: Random) -> Tale:
    low, high = sorted(rng.sample(range(1, 50), 2))
    sentences = [
        f"{high} is larger than {low}.",
        f"{low} is smaller than {high}.",
        f"Together they are {low + high}.",
    ]
    return sentences, [("Which number is larger?", high), ("Which number is smaller?", low)]


TALES = (_picture_tale, _trade_tale, _owner_tale, _size_tale, _day_tale, _city_tale, _number_tale)

KINDS: dict[str, tuple[float, Callable[[Random], list[Exchange]]]] = {  # name -> (weight, exchanges)
    "small_talk": (3, _small_talk),
    "identity": (4, _identity),
    "sum": (9, _sum),
    "difference": (7, _difference),
    "backwards": (8, _backwards),
    "letter_case": (5, _letter_case),
    "spelling": (5, _spelling),
    "letter_count": (6, _letter_count),
    "word_count": (4, _word_count),
    "copy": (9, _copy),
    "fruit": (2, _fruit),
    "calendar": (4, _calendar),
    "opposite": (3, _opposite),
    "comparison": (6, _comparison),
    "parity": (3, _parity),
    "sorting": (6, _sorting),
    "capital": (6, _capital),
    "memory": (9, _memory),
    "reading": (10, _reading),
}
