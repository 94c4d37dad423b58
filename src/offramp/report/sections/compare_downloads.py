"""The tables of a comparison as files inside the page."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping

import pyarrow as pa
from markupsafe import Markup
from pyarrow import csv

from offramp.report.formats import counted
from offramp.report.html import fragment

LARGEST_PLAIN = 1_000_000
"""A table of more bytes is kept compressed, so that the page stays small."""


def downloads_section(tables: Mapping[str, pa.Table]) -> Markup:
    """A link for each table that has rows, with how large it is; nothing without one."""
    files = [_file(name, found) for name, found in tables.items() if found.num_rows]
    return fragment("comparison", "downloads", files) if files else Markup()


def _file(name: str, found: pa.Table) -> tuple[str, str, str]:
    """A table's file: its name, its content as a link, its size."""
    content = csv_bytes(found)
    size = f"{counted(found.num_rows, 'row')}, {file_size(len(content))}"
    file, kind = f"{name}.csv", "text/csv"
    if len(content) > LARGEST_PLAIN:
        content, file, kind = gzip.compress(content, mtime=0), f"{file}.gz", "application/gzip"
    return file, data_link(content, kind), size


def csv_bytes(found: pa.Table) -> bytes:
    """A table as CSV in UTF-8."""
    sink = pa.BufferOutputStream()
    csv.write_csv(found, sink)
    return bytes(sink.getvalue().to_pybytes())


def data_link(content: bytes, kind: str) -> str:
    """Content as a link that needs no file and no network."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def file_size(size: int) -> str:
    """Bytes in the unit that suits them: "12 kB", "3.4 MB"."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(size / 1e3, 0.1):.3g} kB"
