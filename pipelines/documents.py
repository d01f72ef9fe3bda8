"""Questions about documents: a picture, a PDF, or a list of pages.

    pages apart     each page, and looks at it ──> read once ──> cache      (small models; as the checkpoint asks for)
                    (optional) the page read aloud ──> its text, added to the cache
                    a question ──> the answer of the page that is surest that it holds one
    pages together  all pages in one prompt ──> read once ──> cache ──> answer, and the page that it came from

Further questions about the same document find it read.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from omni.decoders.autoregressive import Row
from omni.model import Omni
from omni.pipelines.reading import TOLD_TOKENS as READ_TOKENS
from omni.pipelines.reading import Answer, Reading, check_questions, ends_of, greedy, identity, to_text
from omni.pipelines.views import check_views, default_views
from omni.tokenizers.image import open_document
from omni.tokenizers.prompts import NOT_ANSWERABLE

TRANSCRIBE = "Read the page."
WHICH_PAGE = "On which page is that? Answer with the page number."
PDF_PIXELS = 1536  # longest side of a rendered page, where the model takes that much
PAGES_KEPT = 64  # readings of single pages that wait for further questions


class DocumentQA:
    """``DocumentQA(model)(document, question) -> Answer``; a list of questions gives a list of answers."""

    def __init__(self, model: Omni) -> None:
        if model.config.vision is None:
            raise ValueError("this model reads no images; documents need one with a vision encoder")
        if model.tokenizer is None:
            raise ValueError("this model was loaded without a tokenizer; documents need one")
        self.model = model
        self.ends = ends_of(model)
        self._known: Any = None  # what tells the document that was read last from others
        self._readings: dict[tuple, Reading] = {}

    @classmethod
    def from_pretrained(cls, name_or_path: str = "tiny", **options: Any) -> "DocumentQA":
        """``options``: device, dtype."""
        import omni

        return cls(omni.load(name_or_path, **options))

    def __call__(
        self,
        document: Any,
        question: str | Sequence[str],
        page: int | None = None,
        max_new_tokens: int = 48,
        views: int | None = None,
        read_first: bool | None = None,
        together: bool | None = None,
    ) -> Answer | list[Answer]:
        """Answer from the whole document, or from ``page`` (counted from 1) alone.

        ``document`` is a path, bytes, a picture, or a list of pictures. Every page is read once, also for the questions
        of later calls. ``together`` puts all pages into one prompt; otherwise each is asked for itself, ``views`` looks
        at it are answered together (:mod:`omni.pipelines.views`), and with ``read_first`` the model transcribes it and
        answers with that text before the questions. All three are by default as the checkpoint asks for.

        Raises ValueError for a bad document, page, question or number of views.
        """
        views = self._views(views)
        read_first = reads_first(self.model) if read_first is None else read_first
        together = reads_together(self.model) if together is None else together
        questions = [question] if isinstance(question, str) else list(question)
        check_questions(questions)
        self._remember(document)
        pages = self._pages(document, page)
        if together and page is None:
            answers = self._together(pages, questions, max_new_tokens)
        else:
            answers = self._apart(pages, questions, max_new_tokens, views, read_first)
        return answers[0] if isinstance(question, str) else answers

    def transcribe(
        self, document: Any, page: int | None = None, max_new_tokens: int = 1024, views: int | None = None
    ) -> list[str]:
        """The text of each page, in reading order."""
        views = self._views(views)
        self._remember(document)
        readings = ((n, self._page(n, picture, views)) for n, picture in self._pages(document, page))
        return [reading.ask([TRANSCRIBE], max_new_tokens)[0].text for _, reading in readings]

    def _views(self, views: int | None) -> int:
        views = default_views(self.model) if views is None else views
        check_views(views)
        return views

    def _pages(self, document: Any, page: int | None) -> Iterable[tuple[int, Image.Image]]:
        """Page numbers and pictures, each opened when its turn comes."""
        vision = self.model.config.vision
        pages = open_document(document, longest=min(PDF_PIXELS, vision.max_grid * vision.patch_size))
        if page is not None and not 1 <= page <= len(pages):
            raise ValueError(f"page is {page}; the document has {len(pages)}")
        numbers = range(1, len(pages) + 1) if page is None else [page]
        if len(numbers) > 1:
            console = Console(stderr=True)
            numbers = track(numbers, "pages", console=console, transient=True, disable=not console.is_terminal)
        return ((number, pages[number - 1]) for number in numbers)

    # -- what was read -------------------------------------------------------------------------------------------------

    def _remember(self, document: Any) -> None:
        """Forget the readings of another document."""
        known = identity(document)
        if known is None or known != self._known:
            self._known, self._readings = known, {}

    def _page(self, number: int, picture: Image.Image, views: int, read_first: bool = False) -> Reading:
        """The reading of one page."""
        key = (number, views, read_first)
        if key not in self._readings:
            if len(self._readings) >= PAGES_KEPT:
                self._readings.pop(next(iter(self._readings)))
            tell = TRANSCRIBE if read_first else None
            self._readings[key] = Reading(self.model, [_image(picture)], tell, views)
        return self._readings[key]

    # -- answers -------------------------------------------------------------------------------------------------------

    def _apart(
        self, pages: Iterable[tuple[int, Image.Image]], questions: list[str], limit: int, views: int, read_first: bool
    ) -> list[Answer]:
        """Of each question the answer of the page that is surest of it; pages that hold none come last."""
        found = []
        for number, picture in pages:
            answers = self._page(number, picture, views, read_first).ask(questions, limit)
            found.append([Answer(**{**answer.as_dict(), "pages": (number,)}) for answer in answers])
        return [max(own, key=lambda a: (a.text != NOT_ANSWERABLE, a.confidence)) for own in zip(*found, strict=True)]

    def _together(self, pages: Iterable[tuple[int, Image.Image]], questions: list[str], limit: int) -> list[Answer]:
        """Answers from one prompt with all pages; which page each came from is the model's own word."""
        if ("together",) not in self._readings:
            parts: list[dict] = []
            for _, picture in pages:
                parts += [_image(picture), {"type": "text", "text": "\n"}]
            self._readings["together",] = Reading(self.model, parts)
        reading = self._readings["together",]
        count = len(reading.media)
        answers = reading.ask(questions, limit)
        return [
            Answer(**{**answer.as_dict(), "pages": self._which(reading, question, answer.text, count)})
            for question, answer in zip(questions, answers, strict=True)
        ]

    def _which(self, reading: Reading, question: str, answer: str, count: int) -> tuple[int, ...]:
        """The likeliest page number behind the answer."""
        if count == 1:
            return (1,)
        asked = f"{question}\nThe answer is: {answer}\n{WHICH_PAGE}"
        scores = reading.score(asked, [str(n) for n in range(1, count + 1)])
        return (1 + scores.index(max(scores)),)

    # -- one prompt ----------------------------------------------------------------------------------------------------

    def prompt(self, page: Image.Image, question: str, text: str | None = None) -> tuple[list[int], tuple[Tensor, ...]]:
        """Ids and pixels of a question about ``page``, which has been read aloud as ``text`` before."""
        asked = [TRANSCRIBE, question] if text is not None else [question]
        contents = [[_image(page), {"type": "text", "text": asked[0]}], *asked[1:]]
        messages = [{"role": "user", "content": content} for content in contents]
        if text is not None:
            messages.insert(1, {"role": "assistant", "content": text})
        inputs = self.model.prepare(messages, thinking=False)
        return inputs.input_ids[0].tolist(), inputs.pixels

    def row(self, limit: int) -> Row:
        """A greedy answer of at most ``limit`` tokens, for the next-token loop."""
        return greedy(self.model, limit)


def reads_first(model: Omni) -> bool:
    """Whether the checkpoint asks for pages to be read aloud before their questions."""
    return bool(model.config.sampling.get("document_read_first", False))


def reads_together(model: Omni) -> bool:
    """Whether the checkpoint reads all pages of a document in one prompt."""
    return bool(model.config.sampling.get("document_together", True))


def _image(picture: Image.Image) -> dict[str, Any]:
    return {"type": "image", "image": picture}


__all__ = ["READ_TOKENS", "TRANSCRIBE", "Answer", "DocumentQA", "reads_first", "to_text"]
