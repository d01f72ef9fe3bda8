"""The shape of the project: imports point one way, nothing is shadowed, and what the README says is true."""

import ast
import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from omni import cli

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("tokenizers", "encoders", "decoders", "pipelines")

# Low to high. A module imports from lower levels, or from its own folder. A name covers what is below it; the
# longest name counts.
LEVELS = {
    "omni.kernels": 1,
    "omni.assets": 2,
    "omni.blocks": 2,
    "omni.cache": 2,
    "omni.cache_slots": 2,
    "omni.config": 2,
    "omni.config_action": 2,
    "omni.config_checks": 2,
    "omni.config_generation": 2,
    "omni.config_latents": 2,
    "omni.config_media": 2,
    "omni.inputs": 2,
    "omni.layers": 2,
    "omni.losses": 2,
    "omni.metrics": 2,
    "omni.metrics_media": 2,
    "omni.quantization": 2,
    "omni.quantization.formats": 2,
    "omni.quantization.loading": 5,
    "omni.quantization.modules": 4,
    "omni.quantization.plans": 3,
    "omni.quantization.published": 3,
    "omni.quantization.training": 5,
    "omni.recipe": 2,
    "omni.recipe_teach": 2,
    "omni.rules": 2,
    "omni.tensorfile": 2,
    "omni.mixers": 3,
    "omni.tokenizers": 3,
    "omni.encoders": 3,
    "omni.decoders": 3,
    "omni.streams": 4,
    "omni.tower": 4,
    "omni.likelihood": 6,
    "omni.model": 5,
    "omni.mtp": 5,
    "omni.optim": 5,
    "omni.prepare": 5,
    "omni.checkpoint": 4,
    "omni.families": 6,
    "omni.compress": 7,
    "omni.pipelines": 7,
    "omni.data": 7,
    "omni.bench": 8,
    "omni.bench_decoding": 8,
    "omni.bench_generation": 8,
    "omni.bench_generation_peer": 8,
    "omni.bench_lowbits": 9,
    "omni.bench_nano": 8,
    "omni.bench_peer": 8,
    "omni.bench_tools": 8,
    "omni.bench_understanding": 8,
    "omni.calibration": 8,
    "omni.quantize": 8,
    "omni.demo": 9,
    "omni.demo_motion": 9,
    "omni.demo_text": 9,
    "omni.evaluation": 8,
    "omni.harness": 8,
    "omni.harness_lmms": 8,
    "omni.info": 8,
    "omni.training": 8,
    "omni.training_models": 8,
    "omni.training_parts": 7,
    "omni.training_callbacks": 8,
    "omni.training_steps": 8,
    "omni.training_diffusion": 8,
    "omni.training_drafts": 8,
    "omni.training_lessons": 8,
    "omni.training_student": 8,
    "omni.training_worlds": 8,
    "omni.compress_inputs": 8,
    "omni.studies": 9,
    "omni.cli_tools": 8,
    "omni.cli_bench": 10,
    "omni.cli_compress": 9,
    "omni.cli_generate": 9,
    "omni.cli": 11,
    "omni.__main__": 12,
}


@cache
def sources() -> dict[str, Path]:
    """Module name -> file, for the package and the stage folders."""
    found = {}
    for top in ("omni", *STAGES):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if top == "omni" else ("omni", *parts)
            found[".".join(p for p in parts if p != "__init__")] = path
    return found


@cache
def imported(path: Path, at_once: bool = False) -> list[tuple[int, str]]:
    """(line, module) of every import of a file; ``at_once`` leaves out those inside functions."""
    found = []
    tree = ast.parse(path.read_text())
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; write the full name"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def as_module(name: str, known: dict[str, Path]) -> str | None:
    """``omni.x.y.Name`` -> ``omni.x.y``; None for other packages and for the root package."""
    while name not in known and "." in name:
        name = name.rpartition(".")[0]
    return name if name in known and name != "omni" else None


def level(module: str) -> int:
    prefix = module
    while prefix not in LEVELS:
        assert "." in prefix, f"{module} has no level: add it to LEVELS, next to what may import it"
        prefix = prefix.rpartition(".")[0]
    return LEVELS[prefix]


def folder(module: str) -> str:
    """Name of the folder that holds a module: a stage's, a subpackage's, or omni's own."""
    return sources()[module].parent.name


def edges(at_once: bool = False) -> list[tuple[str, int, str]]:
    """(importing module, line, imported module) within the project; omni.load imports inside its call."""
    known = sources()
    pairs = []
    for module, path in known.items():
        for line, name in imported(path, at_once):
            target = as_module(name, known)
            if target and target != module and module != "omni":
                pairs.append((module, line, target))
    return pairs


def test_every_level_is_of_something():
    stale = sorted(set(LEVELS) - set(sources()) - {f"omni.{stage}" for stage in STAGES})
    assert not stale, f"LEVELS names {stale}, which do not exist"


def test_imports_point_downwards():
    wrong = []
    for module, line, target in edges():
        same_folder = folder(module) == folder(target)
        allowed = level(target) < level(module) or (same_folder and level(target) == level(module))
        if not allowed:
            wrong.append(f"{module}:{line} (level {level(module)}) imports {target} (level {level(target)})")
    assert not wrong, "\n".join(wrong)


def test_stages_do_not_import_each_other_and_data_imports_no_model():
    wrong = []
    for module, line, target in edges():
        a, b = folder(module), folder(target)
        if (a in STAGES[:3] and b in STAGES and a != b) or (a == "data" and b != a and level(target) > 3):
            wrong.append(f"{module}:{line} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_imports_have_no_cycle():
    graph: dict[str, set[str]] = {}
    for module, _, target in edges(at_once=True):
        graph.setdefault(module, set()).add(target)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import cycle: {' -> '.join((*path, module))}"
        if module not in done:
            for target in sorted(graph.get(module, ())):
                visit(target, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_stage_folders_shadow_nothing():
    for stage in STAGES:
        assert not (ROOT / stage / "__init__.py").exists(), f"{stage}/__init__.py would shadow a package"
    spec = importlib.util.find_spec("tokenizers")
    assert spec.origin is not None
    assert ROOT / "tokenizers" not in Path(spec.origin).parents, "tokenizers is ours, not Hugging Face's"
    for module, path in sources().items():
        for line, name in imported(path):
            top = name.split(".")[0]
            assert top not in STAGES[1:], f"{module}:{line} imports a stage by its bare name"
            assert not name.startswith(("tokenizers.bytes", "tokenizers.image", "tokenizers.text"))


def test_every_package_is_in_the_wheel():
    text = (ROOT / "pyproject.toml").read_text()
    listed = set(re.findall(r'"(omni(?:\.\w+)*)"', text[text.index("packages = [") : text.index("include-package")]))
    held = {m.rpartition(".")[0] for m in sources() if "." in m} | {"omni", "omni._data"}
    assert listed == held


# -- README ------------------------------------------------------------------------------------------------


def fences(kind: str) -> list[str]:
    text = (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    return re.findall(rf"^```{kind}\n(.*?)^```", text, flags=re.M | re.S)


def tree() -> list[Path]:
    """Paths of the README's file tree: two spaces of indent a level, names up to the first double space."""
    block = next(b for b in fences("text") if b.startswith("omni/"))
    stack: list[str] = []
    paths = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = line.strip().split("  ")[0].split()
        stack = stack[:depth]
        paths += [ROOT.joinpath(*stack, name) for name in names]
        if names[0].endswith("/"):
            stack.append(names[0].rstrip("/"))
    return paths


def test_readme_tree_is_true():
    shown = tree()
    missing = [str(p.relative_to(ROOT)) for p in shown if not p.exists()]
    assert not missing, f"the README shows {missing}"
    named = {p.resolve() for p in shown}
    unnamed = []
    for path in sources().values():
        in_named_folder = path.parent not in (ROOT / "omni", *(ROOT / s for s in STAGES)) and path.parent in named
        if path not in named and not in_named_folder and path.name != "__init__.py":
            unnamed.append(str(path.relative_to(ROOT)))
    assert not unnamed, f"the README's tree does not show {unnamed}"


def commands(program: str) -> list[list[str]]:
    lines = [line.strip() for block in fences("sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(f"{program} ")]


def test_readme_commands_are_true():
    assert commands("omni")
    for arguments in commands("omni"):
        cli.build_parser().parse_args(arguments)  # exits on anything unknown
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for arguments in commands("make"):
        assert set(arguments) <= targets
    shown = {arguments[0] for arguments in commands("omni")}
    assert shown == set(cli.COMMANDS), "the README shows an example of every command"


def test_readme_python_is_true():
    """Every import of the README's examples resolves, and every example parses."""
    examples = fences("python")
    assert examples
    for example in examples:
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_of_the_documents_exist(name):
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), f"{name} links to {target}"
