"""Draws `docs/images/architecture.svg`: the packages from top to bottom, and who imports whom.

`python tests/architecture.py` writes the file; `tests/test_packages.py` holds it against the imports.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

from test_packages import PACKAGE, PACKAGES, imports_of

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "architecture.svg"

LEFT, WIDTH, HEIGHT, STEP = 150, 560, 34, 46
"""In pixels: where the boxes begin, their size, and from one to the next."""


def edges() -> list[tuple[str, str]]:
    """Every pair of packages of which the first imports the second, from top to bottom."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        package = path.relative_to(PACKAGE).parts[0]
        for _, imported in imports_of(PACKAGE, path):
            target = imported.split(".")[1] if imported.startswith("offramp.") else ""
            if package in PACKAGES and target in PACKAGES and target != package:
                found.add((package, target))
    return sorted(found, key=lambda pair: (PACKAGES.index(pair[0]), PACKAGES.index(pair[1])))


def holds(package: str) -> str:
    """What a package holds: the first sentence of its docstring."""
    text = (PACKAGE / package / "__init__.py").read_text(encoding="utf-8").strip().strip('"')
    return text.splitlines()[0].rstrip('."').replace("`", "")


def picture() -> str:
    """The SVG: a box for each package, an arc on the right from each importer down to what it imports."""
    middle = {name: 20 + place * STEP + HEIGHT / 2 for place, name in enumerate(PACKAGES)}
    height = 20 + len(PACKAGES) * STEP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 {height}" role="img" '
        'aria-label="The packages of offramp, and which imports which" font-family="sans-serif">',
        f'<rect width="960" height="{height}" fill="#ffffff"/>',
    ]
    for importer, imported in edges():
        start, end = middle[importer], middle[imported]
        reach = LEFT + WIDTH + 18 + 0.38 * (end - start)
        lines.append(
            f'<path d="M{LEFT + WIDTH} {start:g} C{reach:.0f} {start:g} {reach:.0f} {end:g} '
            f'{LEFT + WIDTH} {end:g}" fill="none" stroke="#5b7db1" stroke-opacity="0.45">'
            f"<title>{importer} imports {imported}</title></path>"
        )
    for name in PACKAGES:
        top = middle[name] - HEIGHT / 2
        lines += [
            f'<rect x="{LEFT}" y="{top:g}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="#f2f5fa" '
            'stroke="#5b7db1"/>',
            f'<text x="{LEFT - 12}" y="{top + 22:g}" text-anchor="end" font-size="15" '
            f'font-weight="bold" fill="#1d2b44">{name}</text>',
            f'<text x="{LEFT + 12}" y="{top + 22:g}" font-size="12.5" fill="#1d2b44">'
            f"{escape(holds(name))}</text>",
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
