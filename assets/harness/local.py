"""Data of the tasks in this folder, read from the file beside them: nothing is downloaded."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset


def capitals(**_: Any) -> dict[str, Dataset]:
    lines = Path(__file__).with_name("capitals.jsonl").read_text(encoding="utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}
