"""Manual pages as plain text: what a reader sees of the macros of man(7), well enough to learn from."""

from __future__ import annotations

import re

SPECIAL = {
    "em": " - ", "en": "-", "aq": "'", "dq": '"', "rs": "\\", "bu": "*", "co": "(C)", "lq": '"', "rq": '"',
    "oq": "'", "cq": "'", "ti": "~", "ha": "^", "mu": "x", "+-": "+-", ">=": ">=", "<=": "<=", "->": "->",
    "Fo": '"', "Fc": '"', "ga": "`", "lB": "[", "rB": "]", "lC": "{", "rC": "}", "hy": "-", "mi": "-",
}  # fmt: skip
"""Of groff_char(7), those that occur."""

# What is not closed ends with the line, as roff has it; looking for its end from each beginning would take
# the square of a line's length.
_SPECIAL = re.compile(r"\\\[([^\]]*)\]?|\\\((..)|\\\*\[[^\]]*\]?|\\\*\(..|\\\*.")
_FONT = re.compile(r"\\f(?:\[[^\]]*\]?|\(..|.)|\\s(?:[+-]?\d|\[[^\]]*\]?)|\\[%&|^/,c]|\\[hvwlLD]'[^']*'?")
_SHOWN = re.compile(r"^\.\s*(?:SH|SS|B|I|BR|BI|IB|IR|RB|RI|SM|SB|TP|IP|MR|UR|UE|TQ)\b ?(.*)$")
_ALTERNATING = re.compile(r"^\.\s*(?:BR|BI|IB|IR|RB|RI|MR)\b")
_QUOTED = re.compile(r'"((?:[^"]|"")*+)"?|(\S+)')
_PARAGRAPH = re.compile(r"^\.\s*(?:PP|P|LP|SH|SS|TP|IP|TQ|sp)\b")


def plain_text(page: str) -> str:
    """The text of a page in roff; "" for one that only sends the reader to another (`.so`)."""
    if re.search(r"^\.so ", page, flags=re.MULTILINE):
        return ""
    lines: list[str] = []
    for line in page.splitlines():
        if line.startswith(('.\\"', "'\\\"")):
            continue
        if _PARAGRAPH.match(line):
            lines.append("")
        if not line.startswith((".", "'")):
            lines.append(_plain(re.sub(r'\\".*$', "", line)))
        elif shown := _SHOWN.match(line):
            words = [quoted or word for quoted, word in _QUOTED.findall(shown[1])]
            lines.append(_plain(("" if _ALTERNATING.match(line) else " ").join(words)))
    text = "\n".join(line.rstrip() for line in lines)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _plain(line: str) -> str:
    """A line without fonts and with plain characters in the place of special ones."""
    line = _FONT.sub("", line)
    line = _SPECIAL.sub(lambda found: SPECIAL.get(found[1] or found[2] or "", ""), line)
    return (
        line.replace("\\-", "-")
        .replace("\\~", " ")
        .replace("\\ ", " ")
        .replace("\\e", "\\")
        .replace("\\0", " ")
    )
