"""Where the files that ship with the library lie: ``assets/`` of a checkout, ``omni/_data`` of an installed wheel."""

from pathlib import Path


def find_assets() -> Path:
    """The folder of shipped files."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "assets"
    if (package.parent / "pyproject.toml").exists() and checkout.is_dir():
        return checkout
    installed = package / "_data"
    if installed.is_dir():
        return installed
    raise FileNotFoundError(
        f"the shipped files are neither in {checkout} nor in {installed}: the installation is broken"
    )


def shipped() -> dict[str, Path]:
    """Every shipped checkpoint by the name that ``omni.load`` takes."""
    return {path.parent.name: path.parent for path in sorted(find_assets().glob("tiny*/config.json"))}
