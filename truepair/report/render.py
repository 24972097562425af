"""A page from its template, escaped; and its way to the disk, whole or not at all."""

from pathlib import Path
from typing import Any

from truepair.pairs.columns import whole


def render(template: str, **values: Any) -> str:
    """The page: whatever stands in `values` is text, and escaped, but where the template says `safe`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("truepair.report", "")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return pages.get_template(template).render(values)


def write_page(out: Path, page: str) -> None:
    """Write `out`; what cannot be written in UTF-8 becomes a question mark."""
    with whole(out) as partial:
        partial.write_text(page, encoding="utf-8", errors="replace")
