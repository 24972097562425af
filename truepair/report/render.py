"""A page from its template, escaped; and its way to the disk, whole or not at all."""

import os
from pathlib import Path
from typing import Any


def render(template: str, **values: Any) -> str:
    """The page: whatever stands in `values` is text, and escaped, but where the template says `safe`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("truepair.report", "")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return pages.get_template(template).render(values)


def write_page(out: Path, page: str) -> None:
    """Write `out`; what cannot be written in UTF-8 becomes a question mark."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        partial.write_text(page, encoding="utf-8", errors="replace")
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
