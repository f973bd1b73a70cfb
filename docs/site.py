"""What makes a site of pages that are also read where they lie: see mkdocs.yml.

Links lead to files of the repository, wherever they are. Those that are not in docs/ are put into
the site at the place that they have in the repository, and the README is its first page.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_HOME = Path(__file__).resolve().parents[1]
_DOCS, _README, _FIRST = "docs/", "README.md", "index.md"
_LINK = re.compile(r"(\]\()(?!https?://|#|mailto:)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README, and what pages link to outside of docs/, and what those pages link to."""
    waiting = [_README]
    for file in files.documentation_pages():
        waiting += _outside(file.content_string, _DOCS + file.src_uri)
    added: set[str] = set()
    while waiting:
        source = waiting.pop()
        if source in added or not (_HOME / source).is_file():
            continue  # a link to nothing is told by MkDocs
        added.add(source)
        path = str(_HOME / source)
        files.append(File.generated(config, _in_site(source), abs_src_path=path))
        if source.endswith(".md"):
            text = (_HOME / source).read_text(encoding="utf-8")
            waiting += _outside(text, source)
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Lead links from where the page is in the site."""
    place = _of_repository(page.file)

    def moved(link: re.Match[str]) -> str:
        target = _in_site(_target(link[2], place))
        return link[1] + posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")

    return _LINK.sub(moved, markdown)


def _of_repository(file: File) -> str:
    """Where a file of the site lies in the repository."""
    if file.generated_by is None:
        return _DOCS + file.src_uri
    return _README if file.src_uri == _FIRST else file.src_uri


def _in_site(source: str) -> str:
    return _FIRST if source == _README else source.removeprefix(_DOCS)


def _target(link: str, place: str) -> str:
    """What a link leads to in the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(place), link))


def _outside(text: str, place: str) -> list[str]:
    targets = [_target(link[2], place) for link in _LINK.finditer(text)]
    return [target for target in targets if not target.startswith(_DOCS)]
