"""What mkdocs.yml asks of us: links that leave docs/, and the pages' parts that are made from code.

- A link to a file of the repository outside docs/ goes to the repository's page; a picture there comes along.
- `<!-- help of srm-train -->` becomes what the command prints; `<!-- routes of srm-serve -->`, the server's OpenAPI document as text.
- gallery/report.html is the page of `srm-score --html` for the scores in docs/gallery.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
GALLERY = ROOT / "docs" / "gallery"
_LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)")
_HELP = re.compile(r"<!-- help of srm-(\w+) -->")
_ROUTES = "<!-- routes of srm-serve -->"
_PICTURES = (".png", ".svg")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the report, and the pictures outside docs/ that pages show."""
    files.append(File.generated(config, "gallery/report.html", content=report()))
    pictures = {
        target
        for file in files.documentation_pages()
        for target in outside(file.src_uri, file.content_string)
        if target.endswith(_PICTURES)
    }
    for picture in sorted(pictures):
        files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write the links and the generated parts of a page."""
    depth = page.file.src_uri.count("/")

    def link(found: re.Match[str]) -> str:
        target = leaves_docs(page.file.src_uri, found[1])
        if target is None:
            return found[0]
        if not (ROOT / target).exists():
            raise PluginError(f"{page.file.src_uri}: there is no {target} to link to")
        return f"]({'../' * depth if target.endswith(_PICTURES) else config.extra['repository']}{target}"

    markdown = _LINK.sub(link, markdown)
    markdown = _HELP.sub(lambda found: f"```text\n{help_of(found[1])}\n```", markdown)
    return markdown.replace(_ROUTES, routes()) if _ROUTES in markdown else markdown


def outside(page: str, markdown: str) -> Iterator[str]:
    """The repository's files that `page` links to and that are not in docs/."""
    for target in _LINK.findall(markdown):
        found = leaves_docs(page, target)
        if found is not None:
            yield found


def leaves_docs(page: str, target: str) -> str | None:
    """`target` of a link in `page`, seen from the repository's root; None where it stays in docs/."""
    path = os.path.normpath(os.path.join("docs", os.path.dirname(page), target)).replace(os.sep, "/")
    return None if path.startswith("docs/") else path


def report() -> str:
    """The page that `srm-score --html` writes for docs/gallery."""
    from srm.evaluation.pairs import scored_rows
    from srm.scoring.results import ScoredResponse
    from srm.views.page import ReportPair, write_html

    pairs = [
        ReportPair(
            id=chosen.row_id,
            section="",
            subset=chosen.extra["subset"],
            prompt=chosen.prompt,
            chosen=ScoredResponse.from_dict(good),
            rejected=ScoredResponse.from_dict(bad),
            marked=chosen.extra["damaged"],
        )
        for (chosen, good), (_, bad) in scored_rows(str(GALLERY / "pairs.jsonl"), GALLERY / "scores.jsonl")
    ]
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        write_html(page, pairs, title="Held-out pairs, scored by the notebook's model")
        return page.read_text(encoding="utf-8")


def help_of(command: str) -> str:
    """What `srm-COMMAND --help` prints."""
    printed = io.StringIO()
    main = importlib.import_module(f"srm.cli.{command}").main
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit), patch.dict(os.environ, {"COLUMNS": "82"}):
        main(["--help"])
    return printed.getvalue().strip()


def routes() -> str:
    """The server's routes: what each takes, answers and refuses."""
    from transformers import LlamaConfig

    from srm import SentenceRewardConfig, SentenceRewardModel
    from srm.serving import create_app

    smallest = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    app = create_app(SentenceRewardModel(SentenceRewardConfig(smallest.to_dict())), packing="none")
    document = app.openapi()
    lines = []
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            lines += [f"## {method.upper()} {path}", "", route["description"], "", *_body(route, document), *_answers(route, document)]
    lines += ["## Schemas", ""]
    for name, schema in document["components"]["schemas"].items():
        lines += [f"### {name}", "", schema.get("description", "").replace("\n", " "), "", *_fields(schema), *_examples(schema)]
    return "\n".join(lines)


def _body(route: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    if "requestBody" not in route:
        return []
    return [f"Takes {_type(route['requestBody']['content']['application/json']['schema'])}.", ""]


def _answers(route: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    lines = ["| status | answer |", "|---|---|"]
    for status, answer in route["responses"].items():
        schema = answer.get("content", {}).get("application/json", {}).get("schema")
        lines.append(f"| {status} | {_type(schema) if schema else answer['description']} |")
    return [*lines, ""]


def _fields(schema: Mapping[str, Any]) -> list[str]:
    lines = ["| field | type | |", "|---|---|---|"]
    for name, field in schema["properties"].items():
        needed = "" if name in schema.get("required", ()) else "optional; "
        lines.append(f"| `{name}` | {_type(field)} | {(needed + field.get('description', '')).rstrip('; ')} |")
    return [*lines, ""]


def _examples(schema: Mapping[str, Any]) -> list[str]:
    examples = schema.get("examples", ())
    return ["```json", *(json.dumps(example, indent=2) for example in examples), "```", ""] if examples else []


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    choices = schema.get("anyOf", schema.get("oneOf"))
    if choices:
        return " or ".join(_type(choice) for choice in choices)
    if "items" in schema:
        return f"list of {_type(schema['items'])}"
    return schema.get("type", "anything").replace("_", " ")
