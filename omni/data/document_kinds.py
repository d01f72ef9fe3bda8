"""What stands on a generated page: eight kinds, each a function that writes a page and asks about it.

Names that questions point at (labels, items, row keys) occur once on a page, so a question has one answer.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random

from omni.data import vocabulary as words
from omni.data.document_questions import COLUMNS, FIELDS, Maker, Questions, any_date
from omni.data.page import Cell, Page


def heading(page: Page, questions: Questions, text: str) -> str:
    """Write the title of a page in one of several manners and ask for it; returns it as printed."""
    rng, draw = page.rng, page.rng.random()
    text = text.upper() if rng.random() < 0.3 and page.measure(text.upper(), "bold") <= page.span else text
    face = rng.choice(("bold", "bold", "regular"))
    page.aligned(text, rng.choice("ccl"), face, bar=draw < 0.25)
    if draw >= 0.75:
        page.rule()
    questions.ask(("What is the title?", "What is the heading?", "What is in the first line?"), text)
    return text


def title(page: Page, make: Callable[[], str]) -> str:
    return page.fit(make, page.span - 2, "bold")


def labelled(page: Page, label: str, make: Callable[[], str], manner: str | None = None) -> tuple[str, str] | None:
    """Write a label and a value that fits beside it; returns both, or None where none fits."""
    manner = manner or page.style.pair
    label = label.upper() if page.style.upper_labels else label
    shown = label + ("" if manner in ("right", "leader") and page.rng.random() < 0.6 else ":")
    gap = page.measure("  ") + 6 * (manner == "leader")
    value = page.draw_fitting(make, page.span - page.measure(shown) - gap)
    if value is None:
        return None
    page.pair(shown, value, pair=manner)
    return label, value


def asked_line(page: Page, questions: Questions, label: str, make: Maker, templates: Sequence[str]) -> None:
    """A labelled value that is asked for by what it means."""
    if written := labelled(page, label, lambda: make(page.rng)):
        questions.ask(templates, written[1])


def field(page: Page, questions: Questions, name: str) -> str | None:
    """Write one of ``FIELDS`` and ask for it; returns its label."""
    spec = FIELDS[name]
    written = labelled(page, page.rng.choice(spec.labels), lambda: spec.make(page.rng))
    if written is None:
        return None
    questions.ask_label(*written, spec.questions)
    return written[0]


def invented(page: Page, questions: Questions) -> str | None:
    """A field with a made-up label, which can only be found by reading."""
    rng = page.rng
    name = page.fit(lambda: words.pseudo_word(rng, 2).capitalize(), page.span * 0.45)
    written = labelled(page, name, lambda: words.value(rng))
    if written is None:
        return None
    questions.ask_label(*written)
    return written[0]


def distinct(make: Callable[[], str], count: int) -> list[str]:
    """``count`` texts none of which is part of another."""
    found: list[str] = []
    while len(found) < count:
        text = make()
        if not any(text.lower() in other.lower() or other.lower() in text.lower() for other in found):
            found.append(text)
    return found


def item_rows(page: Page, questions: Questions, names: list[str], prices: list[str], manner: str) -> None:
    """Lines of a name and a price, on some pages with a count before the name, and questions about them."""
    rng = page.rng
    space = page.span - max(page.measure(price) for price in prices) - page.measure("  ")
    counted = rng.random() < 0.25 and all(page.measure(f"88 {name}") <= space for name in names)
    page.rows = len(page.lines), len(page.lines) + len(names)
    for name, price in zip(names, prices, strict=True):
        count = str(rng.randint(1, 60))
        page.pair(f"{count} {name}" if counted else name, price, pair=manner)
        questions.ask(("How much is the {}?", "What is the price of {}?", "What does {} cost?"), price, name)
        if counted and rng.random() < 0.6:
            questions.ask(("How many {} were bought?",), count, name)
        if prices.count(price) == 1 and rng.random() < 0.3:
            questions.ask(("Which item costs {}?",), name, price)
    questions.ask(("How many items are listed?",), str(len(names)))
    questions.check(("Is there a line for {}?", "Is {} on the list?"), names, lambda: words.item(rng))


def priced_items(page: Page, count: int) -> tuple[list[str], list[float], str]:
    """Names that leave room for a price, their amounts, and the currency sign of the page."""
    rng = page.rng
    space = page.span - page.measure("$888.88") - page.measure("  ")
    names = distinct(lambda: page.fit(lambda: words.item(rng), space), count)
    return names, [words.amount(rng) for _ in names], rng.choice(("", "", "$"))


def receipt(page: Page, questions: Questions) -> None:
    """A till receipt: shop, date, items with prices, total, way of payment."""
    rng, manner = page.rng, page.rng.choice(("right", "right", "leader"))
    shop = heading(page, questions, title(page, lambda: words.shop(rng)))
    questions.ask(("Which shop is it?", "What is the name of the shop?"), shop)
    if page.room > 7 and rng.random() < 0.5:
        make, asked = rng.choice(((words.address, "What is the address?"), (words.phone, "What is the phone number?")))
        line = page.fit(lambda: make(rng), page.span)
        page.aligned(line, rng.choice("ccl"))
        questions.ask((asked,), line)
    if page.room > 6 and rng.random() < 0.7:
        style = rng.randrange(4)
        date, time = page.fit(lambda: words.date(rng, style), page.span * 0.6), words.clock(rng)
        page.row(Cell(date, page.left), Cell(time, page.right, "r"))
        questions.ask(("What is the date?", "When was it bought?"), date)
        questions.ask(("What is the time?", "At what time was it bought?"), time)
    page.rule(dashed=rng.random() < 0.4)
    closing = rng.random() < 0.6
    count = max(1, min(rng.randint(2, 7), page.room - 1 - closing))
    names, amounts, sign = priced_items(page, count)
    item_rows(page, questions, names, [f"{sign}{a:.2f}" for a in amounts], manner)
    page.rule(dashed=rng.random() < 0.4, gap=2)
    total(page, questions, sum(amounts), sign, manner)
    if closing and page.room:
        payment(page, questions, sum(amounts), sign, manner)


def total(page: Page, questions: Questions, amount: float, sign: str, manner: str) -> None:
    value = f"{sign}{amount:.2f}"
    page.pair(
        page.rng.choice(("Total", "TOTAL", "Total due", "Sum")),
        value,
        page.rng.choice(("bold", "regular")),
        manner,
    )
    questions.ask(("What is the total?", "What is the total?", "How much is it in all?"), value)


def payment(page: Page, questions: Questions, amount: float, sign: str, manner: str) -> None:
    """The last line of a receipt."""
    rng, draw = page.rng, page.rng.random()
    if draw < 0.2:
        page.aligned(page.fit(lambda: rng.choice(("Thank you!", "Come again", "Thanks!")), page.span), "c")
    elif draw < 0.45:
        given = f"{sign}{amount + words.amount(rng) / 10:.2f}"
        page.pair("Cash", given, pair=manner)
        questions.ask(("How much cash was paid?", "How much cash was given?"), given)
    elif draw < 0.75:
        number = words.digits(rng, 4)
        page.pair("Card", number, pair=manner)
        questions.ask(("What is the card number?",), number)
    else:
        label = rng.choice(("Clerk", "Cashier", "Served by"))
        asked_line(page, questions, label, words.person, ("Who was the cashier?", "Who served the customer?"))


def invoice(page: Page, questions: Questions) -> None:
    """An invoice: number, dates, customer, items, total."""
    rng, style = page.rng, page.rng.randrange(4)
    kind = rng.choice(("Invoice", "Invoice", "Bill", "Quote", "Order"))
    heading(page, questions, kind)
    label = rng.choice((f"{kind} No", "No", "Number"))
    asked_line(page, questions, label, words.code, (f"What is the {kind.lower()} number?",))
    dates = ("What is the date?", f"What is the {kind.lower()} date?")
    asked_line(page, questions, "Date", lambda r: words.date(r, style), dates)
    if page.room > 5 and rng.random() < 0.4:
        label = rng.choice(("Due", "Pay by"))
        asked_line(
            page,
            questions,
            label,
            lambda r: words.date(r, style),
            ("When is it due?", "By when must it be paid?"),
        )
    label, maker = rng.choice(("To", "Bill to", "For")), rng.choice((words.person, words.shop))
    asked_line(page, questions, label, maker, ("Who is it addressed to?", "Who is the customer?"))
    page.rule()
    count = max(1, min(rng.randint(2, 5), page.room - 1))
    names, amounts, sign = priced_items(page, count)
    manner = rng.choice(("right", "right", "leader"))
    item_rows(page, questions, names, [f"{sign}{a:.2f}" for a in amounts], manner)
    page.rule(gap=2)
    total(page, questions, sum(amounts), sign, manner)


def form(page: Page, questions: Questions) -> None:
    """A form: a title and labelled values, some under made-up labels."""
    rng = page.rng
    name = rng.choice(("form", "sheet", "card", "record", "report", "file"))
    heading(
        page,
        questions,
        title(page, lambda: f"{words.vary_case(rng, words.pseudo_word(rng))} {name}".capitalize()),
    )
    ruled = rng.random() < 0.2 and page.style.pitch > 15
    names = rng.sample(sorted(FIELDS), 10)
    labels = []
    for name in names[: rng.randint(4, 9)]:
        if not page.room:
            break
        label = invented(page, questions) if rng.random() < 0.35 else field(page, questions, name)
        if label is None:
            continue
        labels.append(label)
        if ruled and page.room:
            page.rule(gap=2)
    if labels:
        missing = [n for n in FIELDS if n not in names]
        questions.check(
            ("Is there a field for {}?", "Does it have a line for {}?"),
            labels,
            lambda: FIELDS[rng.choice(missing)].labels[0],
        )


def table(page: Page, questions: Questions) -> None:
    """A table: title, header row, rows with a key in the first column."""
    rng = page.rng
    if rng.random() < 0.75:
        heading(
            page,
            questions,
            title(page, lambda: f"{rng.choice(words.WORDS)} {words.pseudo_word(rng)}".capitalize()),
        )
    count = max(2, min(rng.randint(3, 8), page.room - 1))
    key, make_key = rng.choice(
        (
            ("Item", words.item),
            ("Name", words.person),
            ("City", words.city),
            ("Part", words.code),
            ("Team", words.pseudo_word),
        )
    )
    keys = distinct(lambda: page.fit(lambda: make_key(rng), page.span * 0.52), count)
    columns = [name for name in rng.sample(sorted(COLUMNS), 4) if name != key][: rng.choice((1, 2, 2, 3))]
    cells = {name: [COLUMNS[name](rng) for _ in keys] for name in columns}
    if rng.random() < 0.2:
        invented_name = words.pseudo_word(rng, 1).capitalize()
        cells = {invented_name if i == 0 else name: column for i, (name, column) in enumerate(cells.items())}
    places = column_places(page, key, keys, cells)
    cells = {name: cells[name] for name in places}
    write_table(page, key, keys, cells, places)
    ask_table(questions, key, keys, cells)


def column_places(page: Page, key: str, keys: list[str], cells: dict[str, list[str]]) -> dict[str, float]:
    """Right edges of the columns that fit beside the keys, spread over the width of the page."""
    gap = page.measure("  ")
    used = max(page.measure(text, "bold") for text in (key, *keys))
    kept: dict[str, float] = {}
    for name, column in cells.items():
        width = max(page.measure(text, "bold") for text in (name, *column)) + gap
        if used + width <= page.span:
            used += width
            kept[name] = used
    slack = (page.span - used) / max(1, len(kept))
    return {name: page.left + edge + slack * (i + 1) for i, (name, edge) in enumerate(kept.items())}


def write_table(page: Page, key: str, keys: list[str], cells: dict[str, list[str]], places: dict[str, float]) -> None:
    rng, top = page.rng, page.top
    bar = rng.random() < 0.35
    header = (Cell(key, page.left), *(Cell(name, x, "r") for name, x in places.items()))
    page.row(*header, face=rng.choice(("bold", "regular")), bar=bar)
    if not bar and rng.random() < 0.7:
        page.rule(gap=2)
    page.rows = len(page.lines), len(page.lines) + len(keys)
    for i, name in enumerate(keys):
        page.row(Cell(name, page.left), *(Cell(cells[column][i], x, "r") for column, x in places.items()))
    if rng.random() < 0.2 and places and not bar:
        widest = max(page.measure(text, "bold") for text in (key, *keys))
        page.vertical(page.left + widest + page.measure(" "), top + 1, page.top)


def ask_table(questions: Questions, key: str, keys: list[str], cells: dict[str, list[str]]) -> None:
    rng = questions.rng
    for name, column in cells.items():
        for row, value in zip(keys, column, strict=True):
            questions.ask(("What is the {} of {}?", "What is the {} for {}?"), value, name, row)
        unique = [i for i, value in enumerate(column) if column.count(value) == 1]
        if unique:
            i = rng.choice(unique)
            questions.ask((f"Which {key.lower()} has {{}} {{}}?",), keys[i], name, column[i])
    questions.ask(("How many rows does the table have?",), str(len(keys)))
    maker = {
        "Item": words.item,
        "Name": words.person,
        "City": words.city,
        "Part": words.code,
        "Team": words.pseudo_word,
    }
    questions.check(("Is there a line for {}?", "Is {} in the table?"), keys, lambda: maker[key](rng))


def _sentence(rng: Random, which: int) -> tuple[list[str], list[tuple[str, str]]]:
    """One sentence in pieces that are not broken over lines, and the questions it answers."""
    place, day, time, code = words.city(rng), any_date(rng), words.clock(rng), words.code(rng)
    thing, person, money = words.item(rng), words.person(rng), f"${words.amount(rng):.2f}"
    sentences = (
        (
            f"The meeting is on|{day}|at|{time}|in|{place}.",
            [
                ("When is the meeting?", day),
                ("At what time is the meeting?", time),
                ("Where is the meeting?", place),
            ],
        ),
        (
            f"Please pay|{money}|by|{day}.",
            [("How much must be paid?", money), ("By when must it be paid?", day)],
        ),
        (
            f"Your order|{code}|was sent to|{place}.",
            [("What is the order number?", code), ("Which city was it sent to?", place)],
        ),
        (f"{person}|will bring the|{thing}.", [("Who will come?", person), ("What will be brought?", thing)]),
        (
            f"We found your|{thing}|in room|{code}.",
            [("What was found?", thing), ("In which room was it found?", code)],
        ),
        (f"The code for the door is|{code}.", [("What is the code for the door?", code)]),
        (
            f"Our new shop in|{place}|opens at|{time}.",
            [("Where is the new shop?", place), ("When does it open?", time)],
        ),
        (f"Call|{person}|for help.", [("Who can help?", person), ("Who should be called?", person)]),
    )
    text, asked = sentences[which]
    fixed = {answer for _, answer in asked}
    pieces: list[str] = []
    for part in text.split("|"):
        pieces += [part] if part.rstrip(".") in fixed or part in fixed else part.split(" ")
    return pieces, asked


def letter(page: Page, questions: Questions) -> None:
    """A short letter: perhaps a date, a greeting, prose with facts, and a signature."""
    rng = page.rng
    if rng.random() < 0.3:
        heading(page, questions, title(page, lambda: words.shop(rng)))
    prose: list[str] = []
    greeting = rng.choice(("Dear", "Hello", "Hi"))
    receiver = page.fit(lambda: words.person(rng), page.span - page.measure(f"{greeting} ,"))
    page.aligned(f"{greeting} {receiver},", "l")
    questions.ask(("Who is it addressed to?", "Who is the letter for?"), receiver)
    room, asked = page.room - 2, []
    for which in rng.sample(range(8), 4):
        pieces, facts = _sentence(rng, which)
        lines = wrap(page, prose + pieces)
        if len(lines) > room or max(page.measure(line) for line in lines) > page.span:
            continue
        prose += pieces
        asked += facts
    for line in wrap(page, prose):
        page.aligned(line, "l")
    for question, answer in asked:
        questions.ask((question,), answer)
    face = rng.choice(("italic", "regular"))
    sender = page.fit(lambda: words.person(rng), page.span, face)
    if page.room > 1:
        page.aligned(rng.choice(("Regards,", "Yours,", "Thank you,", "Best wishes,")), "l")
    page.aligned(sender, rng.choice("lr"), face)
    questions.ask(("Who signed it?", "Who wrote the letter?"), sender)


def wrap(page: Page, pieces: Sequence[str]) -> list[str]:
    """Lines of whole pieces, each as long as the page allows."""
    lines: list[str] = []
    for piece in pieces:
        if lines and page.measure(f"{lines[-1]} {piece}") <= page.span:
            lines[-1] += f" {piece}"
        else:
            lines.append(piece)
    return lines


def card(page: Page, questions: Questions) -> None:
    """A badge, ticket, parcel label or the like: a frame, a big name and a few fields."""
    rng = page.rng
    if rng.random() < 0.7:
        page.frame(rng.choice((0, 1, 2)))
    kind, fields, who = rng.choice(
        (
            ("Member card", ("number", "valid", "city"), "Whose card is it?"),
            ("Staff badge", ("role", "id", "room", "phone"), "Whose badge is it?"),
            ("Visitor", ("contact", "date", "room", "time"), "Who is the visitor?"),
            ("Ticket", ("date", "time", "room", "code", "amount"), "Whose ticket is it?"),
            ("Parcel", ("address", "city", "phone", "weight"), "Who is it addressed to?"),
            ("Library card", ("id", "valid", "born", "address"), "Whose card is it?"),
        )
    )
    heading(page, questions, kind)
    if rng.random() < 0.5:
        page.top += page.style.pitch / 3
    name = page.fit(lambda: words.person(rng), page.span - 2, "bold")
    page.aligned(name, rng.choice("lc"), "bold")
    questions.ask((who, "What is the name?"), name)
    if rng.random() < 0.5:
        page.top += page.style.pitch / 3
    for name in fields:
        if page.room:
            field(page, questions, name)
    for _ in range(rng.randint(1, 3)):
        if page.room:
            invented(page, questions)


def schedule(page: Page, questions: Questions) -> None:
    """Opening hours by day, or a programme by time."""
    rng = page.rng
    hours = rng.random() < 0.4
    heading(page, questions, title(page, lambda: words.shop(rng) if hours else f"{words.city(rng)} plan"))
    if hours:
        days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[: max(3, min(7, page.room))]
        for day in days[rng.randrange(2) :]:
            opening, closing = (
                f"{rng.randint(6, 12)}:{rng.randrange(60):02d}",
                f"{rng.randint(13, 22)}:{rng.randrange(60):02d}",
            )
            page.pair(day, f"{opening} - {closing}")
            questions.ask(("When does it open on {}?",), opening, day)
            questions.ask(("When does it close on {}?",), closing, day)
        return
    times = sorted(distinct(lambda: words.clock(rng), max(2, min(rng.randint(4, 8), page.room))))
    space = page.span - page.measure("88:88   ")
    events = distinct(lambda: page.fit(lambda: words.item(rng), space), len(times))
    first_time = rng.random() < 0.7
    page.rows = len(page.lines), len(page.lines) + len(times)
    for time, event in zip(times, events, strict=True):
        page.pair(*((time, event) if first_time else (event, time)))
        questions.ask(("When is {}?", "At what time is {}?"), time, event)
        questions.ask(("What is at {}?",), event, time)
    questions.check(("Is {} in the plan?", "Is there a line for {}?"), events, lambda: words.item(rng))


def numbered_list(page: Page, questions: Questions) -> None:
    """A numbered or dashed list of things under a title."""
    rng = page.rng
    heading(
        page,
        questions,
        title(page, lambda: f"{rng.choice(words.WORDS)} {rng.choice(('list', 'notes', 'plan'))}".capitalize()),
    )
    count = max(2, min(rng.randint(4, 9), page.room))
    mark = rng.choice(("{}.", "{})", "-", "*"))
    things = distinct(lambda: page.fit(lambda: thing(rng), page.span - page.measure("9.  ")), count)
    page.rows = len(page.lines), len(page.lines) + count
    for i, text in enumerate(things, 1):
        page.pair(mark.format(i), text, pair="adjacent")
        if "{}" in mark:
            questions.ask(("What is number {}?", "What is item {}?"), text, str(i))
    for before, after in pairwise(things):
        questions.ask(("What comes after {}?",), after, before)
    questions.ask(("What is the last item?",), things[-1])
    questions.ask(("What is the first item?",), things[0])
    questions.ask(("How many items are listed?",), str(count))
    questions.check(("Is there a line for {}?", "Is {} on the list?"), things, lambda: thing(rng))


def thing(rng: Random) -> str:
    draw = rng.random()
    if draw < 0.5:
        return words.item(rng)
    return (
        f"{rng.randint(2, 60)} {words.item(rng)}"
        if draw < 0.7
        else f"{rng.choice(words.WORDS)} {words.pseudo_word(rng)}"
    )


KINDS: dict[str, Callable[[Page, Questions], None]] = {
    "receipt": receipt,
    "invoice": invoice,
    "form": form,
    "table": table,
    "letter": letter,
    "card": card,
    "schedule": schedule,
    "list": numbered_list,
}
