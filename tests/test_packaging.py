"""The package works as a wheel from any folder, and as ``python -m`` from the sources."""

import subprocess
import sys
from pathlib import Path

import pytest

import omni

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str, cwd: Path, path: Path | None = None) -> str:
    """Output of a Python command; ``path`` alone stands before the installed packages."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(path) if path else "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that holds only what the wheel installs."""
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "sources"  # a build writes beside the sources, so it gets its own
    sources.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "omni", "assets", *STAGES):
        (sources / name).symlink_to(ROOT / name)
    pip = ("-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", str(sources), "--no-deps", "--no-build-isolation", "-w", str(folder), cwd=folder)
    (wheel,) = folder.glob("omni-*.whl")
    run(*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel), cwd=folder)
    return folder / "site"


STAGES = ("tokenizers", "encoders", "decoders", "pipelines")


def test_the_wheel_has_every_module_and_asset(installed):
    for folder in ("omni", *STAGES):
        for path in (ROOT / folder).rglob("*.py"):
            inside = path.relative_to(ROOT if folder == "omni" else ROOT.parent / ROOT.name)
            target = installed / inside if folder == "omni" else installed / "omni" / inside
            assert target.exists(), f"the wheel lacks {inside}"
    for path in (ROOT / "assets").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert (installed / "omni" / "_data" / path.relative_to(ROOT / "assets")).exists()
    assert sorted(p.name for p in installed.iterdir() if "dist-info" not in p.name) == ["bin", "omni"]


def test_the_wheel_works_from_another_folder(installed, tmp_path):
    code = (
        "import omni, omni.tokenizers.image, omni.decoders.flow, tokenizers\n"
        "print(omni.__file__); print(omni.tokenizers.image.__file__); print(tokenizers.__file__)\n"
        "from omni.assets import find_assets; print(find_assets())"
    )
    own, stage, foreign, assets = map(Path, run("-c", code, cwd=tmp_path, path=installed).split())
    assert own == installed / "omni" / "__init__.py"
    assert stage == installed / "omni" / "tokenizers" / "image.py"
    assert installed not in foreign.parents
    assert assets == installed / "omni" / "_data"
    assert assets.is_dir()


def test_the_installed_command_runs(installed, tmp_path):
    shown = run("-m", "omni", "--version", cwd=tmp_path, path=installed)
    assert shown.strip() == f"omni {omni.__version__}"


def test_the_sources_run_in_place():
    code = "import omni.tokenizers.image as ours, tokenizers as theirs; print(ours.__file__, theirs.__file__)"
    ours, theirs = run("-c", code, cwd=ROOT).split()
    assert Path(ours) == ROOT / "tokenizers" / "image.py"
    assert ROOT / "tokenizers" not in Path(theirs).parents
    assert "ask" in run("-m", "omni", "--help", cwd=ROOT)
