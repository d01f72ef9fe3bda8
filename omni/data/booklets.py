"""Booklets: a few pages and charts of one size with questions, each of which one page alone can answer.

Pages come from the document world. A question of one page belongs to a booklet if it names something that is printed
there and nowhere else (``foreign_question`` has the rule), so the answer says which page was read; the same rule finds
questions that a page cannot answer at all.
"""

import re
from dataclasses import dataclass
from random import Random

from omni.data import HELD_OUT_SEEDS, TRAIN_SEEDS
from omni.data.document_questions import COLUMNS, FIELDS
from omni.data.documents import SIZES, Document, sample_document
from omni.tokenizers.prompts import NOT_ANSWERABLE

FEWEST_PAGES, MOST_PAGES = 2, 6
FEWEST_QUESTIONS, MOST_QUESTIONS = 4, 8
CHART_SHARE = 0.4  # of the pages

# Words that many pages could be asked about, whether or not they are printed there.
_SAID = """
a above address addressed after all amount and apart are at axis bar bars be below between bigger biggest bill birth
bought brought by called can card cards cash cashier categories category clerk close code color come comes contact cost
costs customer date dated day difference do does due email expire fall far field file first form found given has have
heading help higher highest how in invoice is it item items label larger largest last least left letter line lines list
listed longest look low lowest many map more most much must name new no note notes number on open order orders page paid
part parcel pay plan point points price quote read record red report right rise room rows sale sales say see sell send
sent series served shop shortest should show shown sign signed size slice slices small smallest start stock street sum
table than the there they thing ticket time title to total town two until valid value visitor was were what when where
which who whose will with of for word work write wrote yes yet you your blue green orange purple pink gray brown black
white
"""
GENERIC = frozenset(_SAID.split()) | frozenset(
    word
    for text in (*COLUMNS, "item", "city", "team", *(label for field in FIELDS.values() for label in field.labels))
    for word in re.findall(r"[a-z]+", text.casefold())
)


@dataclass(frozen=True)
class Booklet:
    """Pages of one size, and questions with their answers and the number of the page that has them, from 1."""

    pages: tuple[Document, ...]
    qa: tuple[tuple[str, str, int], ...]


def sample_booklet(seed: int, pages: int | None = None) -> Booklet:
    """Draw the booklet of a seed: ``pages`` (2 to 6, drawn if not given) and four to eight questions.

    A held-out seed takes its pages from held-out seeds, any other from those of training.

    Raises:
        ValueError: ``pages`` is out of bounds.
    """
    if pages is not None and not FEWEST_PAGES <= pages <= MOST_PAGES:
        raise ValueError(f"pages is {pages}; it must be {FEWEST_PAGES} to {MOST_PAGES}")
    rng = Random(f"booklet {seed}")
    count = rng.randint(FEWEST_PAGES, MOST_PAGES)
    count = pages or count
    seeds = HELD_OUT_SEEDS if seed in HELD_OUT_SEEDS else TRAIN_SEEDS
    size = rng.choice(SIZES["page"])
    while True:
        drawn = tuple(
            sample_document(
                rng.randrange(seeds.start, seeds.stop), "chart" if rng.random() < CHART_SHARE else "page", size
            )
            for _ in range(count)
        )
        qa = _own_questions(drawn, rng)
        if len(qa) >= FEWEST_QUESTIONS:
            return Booklet(drawn, tuple(qa[: rng.randint(FEWEST_QUESTIONS, MOST_QUESTIONS)]))


def foreign_question(document: Document, other: Document, rng: Random) -> str | None:
    """A question of ``other`` that ``document`` cannot answer, or None where it has none.

    It names something (a label, an item) that is printed on ``other``, and none of its printed words, other than
    ``GENERIC`` ones, stands anywhere in ``document``. Questions of yes or no never qualify: a page without the thing
    would answer "no".
    """
    foreign = [question for question, answer in other.qa if _is_foreign(question, answer, other, document)]
    return rng.choice(foreign) if foreign else None


def _is_foreign(question: str, answer: str, own: Document, document: Document) -> bool:
    if answer in ("yes", "no") or any(question == asked for asked, _ in document.qa):
        return False
    text = document.text.casefold()
    named = subjects(question, own)
    return any(re.search("[a-z]", word) for word in named) and not any(word in text for word in named)


def subjects(question: str, own: Document) -> set[str]:
    """The words of a question, in lower case, that it takes from its page."""
    printed = set(_words(own.text))
    return {word for word in _words(question) if word in printed and word not in GENERIC}


def _words(text: str) -> list[str]:
    """Lower-case words without the punctuation around them."""
    return [word for part in text.casefold().split() if (word := part.strip(".,:;!?()"))]


def _own_questions(pages: tuple[Document, ...], rng: Random) -> list[tuple[str, str, int]]:
    """Questions that are foreign to all pages but one; every page's first, in random order, then their second, ..."""
    rounds = []
    for i, page in enumerate(pages):
        others = pages[:i] + pages[i + 1 :]
        own = [qa for qa in page.qa if all(_is_foreign(*qa, page, other) for other in others)]
        rng.shuffle(own)
        rounds += [(turn, rng.random(), (*qa, i + 1)) for turn, qa in enumerate(own)]
    return [entry for _, _, entry in sorted(rounds)]


__all__ = ["NOT_ANSWERABLE", "Booklet", "foreign_question", "sample_booklet", "subjects"]
