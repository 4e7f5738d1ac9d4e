"""What `make docs` adds to the pages of docs/; mkdocs.yml names this file as a hook.

- Cards of policies are put into the menu below their families, each with its source and how to use it, all from the
  files of the policies; a new policy needs no line here.
- CONTRIBUTING.md, CHANGELOG.md and SECURITY.md, which lie above docs/, are pages too.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# mkdocs runs this file by its path.
sys.path.insert(0, str(ROOT / "tools"))

from catalogue.methods import families, methods_of, read_modules  # noqa: E402

#: Pages that are one wide table: the list of their headings leaves its place to them.
WIDE = ("answers.md", "combinations.md", "backbones.md")
#: Pages that lie above docs/.
ABOVE = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")


def on_config(config: Any) -> Any:
    """Complete the menu."""
    methods = methods_of(read_modules(ROOT), ROOT)
    by_family = [
        {family.capitalize(): [{m.name: f"policies/{m.name}.md"} for m in methods if m.family == family]}
        for family in families(ROOT)
    ]
    for entry in config.nav:
        for title, pages in entry.items():
            if title == "Policies":
                pages += [group for group in by_family if all(group.values())]
    return config


def on_files(files: Any, *, config: Any) -> Any:
    """Take in the pages that lie above docs/."""
    from mkdocs.structure.files import File

    for name in ABOVE:
        # Their links to pages below docs/ become links beside them, and those to other files are named only.
        text = (ROOT / name).read_text(encoding="utf-8")
        text = re.sub(r"\]\(docs/", "](", text)
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Mend links that lead above docs/, and head each card with its source and its use."""
    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["toc"]
    markdown = re.sub(rf"\]\((?:\.\./)((?:\.\./)*(?:{'|'.join(map(re.escape, ABOVE))}))", r"](\1", markdown)
    found = re.fullmatch(r"policies/(\w+)\.md", page.file.src_uri)
    if found is None or found[1] == "README":
        return markdown
    method = next(m for m in methods_of(read_modules(ROOT), ROOT) if m.name == found[1])
    paper = f"[{method.paper}]({method.url})" if method.url else method.paper
    use = f'`mixaug.create("{method.name}")` · `mixaug train policy={method.name}`'
    family = f"[{method.family}](README.md#{method.family.replace(' ', '-')})"
    title, _, rest = markdown.partition("\n")
    return f"{title}\n\n{paper} · family {family}\n\n{use}\n{rest}"
