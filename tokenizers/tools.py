"""Tools in text: how they are offered to a model in XML, and how a call is written (the Nemotron 3 form)."""

import json
from typing import Any

from omni.tokenizers.messages import MessageError, ToolCall

INSTRUCTIONS = (
    "To call a function, write:\n\n"
    "<tool_call>\n<function=NAME>\n<parameter=PARAMETER>\nvalue\n</parameter>\n</function>\n</tool_call>"
)


def tools_text(tools: list[dict[str, Any]]) -> str:
    """The ``# Tools`` section of a system turn, from an OpenAI function list."""
    functions = "\n".join(_function_xml(_function(tool)) for tool in tools)
    return f"# Tools\n\n<tools>\n{functions}\n</tools>\n\n{INSTRUCTIONS}"


def call_text(call: ToolCall) -> str:
    """``<function=...>`` block of a call, without the ``<tool_call>`` around it."""
    parameters = [f"<parameter={name}>\n{_plain(value)}\n</parameter>" for name, value in call.arguments.items()]
    return "\n".join([f"<function={call.name}>", *parameters, "</function>"])


def _function(tool: Any) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise MessageError(f"a tool must be a function with a name, not {tool!r:.80}")
    return function


def _function_xml(function: dict[str, Any]) -> str:
    lines = ["<function>", f"<name>{function['name']}</name>"]
    if function.get("description"):
        lines.append(f"<description>{function['description']}</description>")
    schema = function.get("parameters") or {}
    lines.append("<parameters>")
    for name, about in (schema.get("properties") or {}).items():
        lines.extend(_parameter_xml(name, about))
    if schema.get("required"):
        lines.append(f"<required>{json.dumps(schema['required'])}</required>")
    return "\n".join([*lines, "</parameters>", "</function>"])


def _parameter_xml(name: str, about: dict[str, Any]) -> list[str]:
    lines = ["<parameter>", f"<name>{name}</name>"]
    for key, value in about.items():
        lines.append(f"<{key}>{_plain(value)}</{key}>")
    return [*lines, "</parameter>"]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
