"""The endpoints that tell what a Hub holds: repositories, references, trees; and check cards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlencode

import yaml

from loopback_hub.catalog import Catalog
from loopback_hub.messages import Answer, RefusedError, Request, json_answer
from loopback_hub.repositories import Files, folders

FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
Parts = Mapping[str, str]


def validate_yaml(catalog: Catalog, request: Request, _parts: Parts) -> Answer:
    """POST /api/validate-yaml, which the client asks before it commits a README.md."""
    catalog.user(request)
    found = FRONT_MATTER.match(request.json()["content"].replace("\r\n", "\n"))
    try:
        card = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError as error:
        card = str(error)
    if isinstance(card, dict):
        warning = {"message": "empty or missing yaml metadata in repo card"}
        return json_answer({"errors": [], "warnings": [] if card else [warning]})
    fault = card if isinstance(card, str) else "metadata should be an object"
    return json_answer({"errors": [{"message": fault}], "warnings": []}, 400)


def info(catalog: Catalog, request: Request, parts: Parts) -> Answer:
    """GET /api/{kind}/{repo} and .../revision/{rev}."""
    repository = catalog.readable(request, parts["kind"], parts["repo"])
    commit = repository.resolve(parts.get("rev", "main"))
    told = {
        "id": repository.name,
        "sha": commit.sha,
        "private": repository.private,
        "gated": repository.gated,
        "tags": [],
        "siblings": [{"rfilename": path} for path in sorted(commit.files)],
    }
    return json_answer(told)


def refs(catalog: Catalog, request: Request, parts: Parts) -> Answer:
    """GET /api/{kind}/{repo}/refs."""
    repository = catalog.readable(request, parts["kind"], parts["repo"])
    told = {
        "branches": repository.refs_under("refs/heads/"),
        "converts": [],
        "tags": repository.refs_under("refs/tags/"),
    }
    if request.flag("include_prs"):
        told["pullRequests"] = repository.refs_under("refs/pr/")
    return json_answer(told)


def tree(catalog: Catalog, request: Request, parts: Parts) -> Answer:
    """GET /api/{kind}/{repo}/tree/{rev}[/{path}], in pages."""
    repository = catalog.readable(request, parts["kind"], parts["repo"])
    commit = repository.resolve(parts["rev"])
    top = parts.get("path", "").strip("/")
    if top and top not in folders(commit.files):
        raise RefusedError(404, f'{top} does not exist on "{parts["rev"]}"', "EntryNotFound")
    prefix = f"{top}/" if top else ""
    paths = [*sorted(folders(commit.files)), *sorted(commit.files)]
    paths = [path for path in paths if path.startswith(prefix)]
    if not request.flag("recursive"):
        paths = [path for path in paths if "/" not in path.removeprefix(prefix)]
    told = [_entry(commit.files, path) for path in paths]
    return _page(catalog, request, told, catalog.page_size)


def paths_info(catalog: Catalog, request: Request, parts: Parts) -> Answer:
    """POST /api/{kind}/{repo}/paths-info/{rev}: the paths that exist among those of a form."""
    repository = catalog.readable(request, parts["kind"], parts["repo"])
    commit = repository.resolve(parts["rev"])
    form = parse_qs(request.body.decode())
    present = {*commit.files, *folders(commit.files)}
    asked = [path.strip("/") for path in form.get("paths", [])]
    return json_answer([_entry(commit.files, path) for path in asked if path in present])


def _entry(files: Files, path: str) -> dict[str, Any]:
    blob = files.get(path)
    if blob is None:
        return {"type": "directory", "oid": folders(files)[path], "size": 0, "path": path}
    size = len(blob.content)
    told: dict[str, Any] = {"type": "file", "oid": blob.oid, "size": size, "path": path}
    if blob.large:
        told["lfs"] = {"oid": blob.sha256, "size": size, "pointerSize": len(blob.pointer)}
    return told


def _page(catalog: Catalog, request: Request, entries: Sequence[object], size: int) -> Answer:
    query = request.query
    start = int(query.get("cursor", "0"))
    headers = {}
    if start + size < len(entries):
        following = urlencode(query | {"cursor": str(start + size)})
        headers["Link"] = f'<{catalog.endpoint}{request.path}?{following}>; rel="next"'
    return json_answer(entries[start : start + size], headers=headers)
