"""A conversation in the terminal: what is typed goes to a :class:`~omni.pipelines.chat.Chat`, the answer streams back.

Works in a pipe too: then nothing but the answers is printed, and every line of the input is a message.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from omni.pipelines.chat import Chat, Delta

HELP = """\
[bold]/image PATH[/]  show a picture with the next message
[bold]/think[/]       let the model reason first, or not
[bold]/system TEXT[/] set the system message and start over
[bold]/reset[/]       start over
[bold]/exit[/]        leave (or Ctrl-D)
Ctrl-C stops an answer. A line that ends with \\ goes on in the next one."""

CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
"""An answer must not move the cursor or rename the window."""


class Session:
    """The conversation so far, and the commands that change it."""

    def __init__(
        self, chat: "Chat", messages: Sequence[dict], pictures: Sequence[dict], console: Console, **options: Any
    ):
        self.chat = chat
        self.console = console
        self.options = options
        self._reasoned = False  # reasoning was printed last: the text goes below it
        self._opening = [m for m in messages if m["role"] == "system"]
        self.messages = list(messages)
        self.pictures = list(pictures)
        self.commands: dict[str, Callable[[str], None]] = {
            "help": self._help,
            "image": self._image,
            "think": self._think,
            "system": self._system,
            "reset": self._reset,
        }

    def take(self, line: str) -> bool:
        """One line of input. False when it says to leave."""
        line = line.strip()
        if not line:
            return True
        if not line.startswith("/"):
            self.say(line)
            return True
        name, _, rest = line[1:].partition(" ")
        if name in ("exit", "quit"):
            return False
        command = self.commands.get(name)
        if command is None:
            self._note(f"unknown command /{name}; /help lists them")
        else:
            command(rest.strip())
        return True

    def say(self, text: str) -> None:
        """Send a message and print the answer as it comes. A failed or empty turn leaves no trace."""
        content = [*self.pictures, {"type": "text", "text": text}] if self.pictures else text
        turns = [*self.messages, {"role": "user", "content": content}]
        try:
            answer = self._stream(turns)
        except ValueError as error:
            self._note(str(error))
            return
        self.pictures = []
        self.messages = [*turns, answer]

    def _stream(self, turns: list[dict]) -> dict[str, Any]:
        """Print the answer; the message it makes, as far as it came."""
        deltas = []
        try:
            for delta in self.chat(turns, stream=True, **self.options):
                deltas.append(delta)
                self._show(delta)
        except KeyboardInterrupt:
            self._end_line()
            self._note("stopped")
        else:
            self._end_line()
            if deltas[-1].finish_reason == "length":
                self._note("cut off: the answer reached its longest length")
        calls = [call.as_dict() for delta in deltas for call in delta.tool_calls]
        answer = {"role": "assistant", "content": "".join(d.text for d in deltas)}
        return {**answer, "tool_calls": calls} if calls else answer

    # -- printing ----------------------------------------------------------------------------------------

    def _show(self, delta: "Delta") -> None:
        if delta.reasoning and self.console.is_terminal:
            self._write(delta.reasoning, style="dim italic")
        if delta.text:
            if self._reasoned:
                self._write("\n\n")
                self._reasoned = False
            self._write(delta.text)
        if delta.reasoning:
            self._reasoned = self.console.is_terminal
        for call in delta.tool_calls:
            self._write(f"\n{call.name}({call.arguments})", style="cyan")

    def _write(self, text: str, style: str | None = None) -> None:
        if self.console.is_terminal:
            shown = text.translate(CONTROLS)
            self.console.print(shown, style=style, end="", markup=False, highlight=False, soft_wrap=True)
        else:
            self.console.file.write(text)  # as it is: a pipe has no cursor, and its reader may want every byte
        self.console.file.flush()

    def _end_line(self) -> None:
        self._reasoned = False
        self.console.print()

    def _note(self, text: str) -> None:
        if self.console.is_terminal:
            self.console.print(f"[yellow]{escape(text)}[/]")
        else:
            print(text, file=sys.stderr)

    # -- commands ----------------------------------------------------------------------------------------

    def _help(self, _: str) -> None:
        self.console.print(HELP, highlight=False)

    def _image(self, path: str) -> None:
        from omni.tokenizers.image import open_image

        if not path:
            self._note("/image needs the path of a picture")
            return
        try:
            picture = open_image(Path(path).expanduser())
        except ValueError as error:
            self._note(str(error))
            return
        self.pictures.append({"type": "image", "image": picture})
        self._note(f"{picture.width}x{picture.height} pixels; the next message shows it")

    def _think(self, _: str) -> None:
        self.options["thinking"] = not self.options.get("thinking")
        self._note(f"thinking is {'on' if self.options['thinking'] else 'off'}")

    def _system(self, text: str) -> None:
        self._opening = [{"role": "system", "content": text}] if text else []
        self._reset("")

    def _reset(self, _: str) -> None:
        self.messages = list(self._opening)
        self.pictures = []
        self._note("started over")


def talk(
    chat: "Chat",
    messages: Sequence[dict] = (),
    pictures: Sequence[dict] = (),
    source: TextIO | None = None,
    console: Console | None = None,
    **options: Any,
) -> None:
    """Read lines until the end of the input or ``/exit``. ``options`` go to every call of ``chat``."""
    console = console or Console()
    source = source or sys.stdin
    session = Session(chat, messages, pictures, console, **options)
    typed = source is sys.stdin and source.isatty() and console.is_terminal
    if typed:
        import readline  # noqa: F401 - gives input() its line editing and history

        console.print("[dim]Say something. /help lists commands, /exit leaves.[/]", highlight=False)
    while True:
        try:
            line = _read(source, typed)
        except KeyboardInterrupt:
            console.print()
            continue
        if line is None or not session.take(line):
            return


def _read(source: TextIO, typed: bool) -> str | None:
    """A line and those it continues into; None at the end of the input."""
    lines = []
    while True:
        try:
            line = input("… " if lines else "› ") if typed else source.readline()
        except EOFError:
            line = ""
            typed_end = True
        else:
            typed_end = not typed and line == ""
        if typed_end:
            return "\n".join(lines) if lines else None
        line = line.rstrip("\n")
        lines.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            return "\n".join(lines)
