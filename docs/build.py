"""Build the documentation: the project's Markdown files and notebooks, whose links stay as they are, as a site.

    python docs/build.py [--run-dir papermill_runs/demo]

The site is in build/site. Notebooks are shown as they were executed in the run folder, and without outputs otherwise.
"""

import argparse
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = (
    "*.md",
    "LICENSE",
    "CITATION.cff",
    "docs/*",
    "docs/tour/*",
    "slurm/*",
    "benchmarks/*",
    "papermill_runs/README.md",
    "papermill_runs/reference/*.png",
    "notebooks/*.ipynb",
)


def copy_sources(to: Path, run_dir: Path) -> None:
    """Copy what the site is made of, in the same folders, so that relative links between the files hold."""
    shutil.rmtree(to, ignore_errors=True)
    for pattern in SOURCES:
        for path in filter(Path.is_file, ROOT.glob(pattern)):
            copy = to / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            executed = run_dir / path.name
            shutil.copyfile(executed if path.suffix == ".ipynb" and executed.is_file() else path, copy)


def main() -> None:
    """Build the site; a link that leads nowhere, or a page that is missing, is an error."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, default=ROOT / "papermill_runs" / "demo", help="executed notebooks")
    parser.add_argument("--build-dir", type=Path, default=ROOT / "build", help="gets docs and site")
    arguments = parser.parse_args()
    folders = {name: arguments.build_dir.resolve() / name for name in ("docs", "site")}
    copy_sources(folders["docs"], arguments.run_dir)
    paths = {f"{name}_dir": str(folder) for name, folder in folders.items()}
    build(load_config(str(ROOT / "docs" / "mkdocs.yml"), strict=True, **paths))
    print(folders["site"] / "index.html")


if __name__ == "__main__":
    main()
