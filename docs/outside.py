"""A hook of mkdocs: files of the repository that the pages link to (results, recipes) are copied
into the site, and the links lead there.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)(\))")


def _outside(page: str, link: str) -> str:
    """The path in the repository of a link that leaves docs/; empty where it does not."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return "" if path.startswith(("docs/", "..")) or not (ROOT / path).is_file() else path


def on_files(files, config):
    """Add the files of the repository that pages link to."""
    for page in list(files.documentation_pages()):
        for _, link, _ in LINK.findall(page.content_string):
            path = _outside(page.src_uri, link)
            if path and not files.get_file_from_path(f"repository/{path}"):
                content = (ROOT / path).read_bytes()
                files.append(File.generated(config, f"repository/{path}", content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Lead the links of a page that leave docs/ to the copies."""

    def within(match: re.Match) -> str:
        path = _outside(page.file.src_uri, match[2])
        if not path:
            return match[0]
        here = posixpath.dirname(page.file.src_uri)
        return match[1] + posixpath.relpath(f"repository/{path}", here or ".") + match[3]

    return LINK.sub(within, markdown)
