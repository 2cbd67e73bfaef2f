"""Hooks of mkdocs: the repository's own pages as pages of the site, links between all of them kept.

README.md, CONTRIBUTING.md and CHANGELOG.md lie beside docs/, where links of the repository lead.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the repository's pages under their names in the site."""
    root = Path(config.config_file_path).parent
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(root / name).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links that hold in the repository into links that hold in the site."""
    if page.file.src_uri in PAGES.values():
        markdown = re.sub(r"\]\(docs/", "](", markdown)
        above = ""
    else:
        above = r"\.\./"
    for name, target in PAGES.items():
        markdown = re.sub(rf"\]\({above}{re.escape(name)}", f"]({target}", markdown)
    return markdown
