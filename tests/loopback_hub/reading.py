"""The endpoints that tell what a Hub holds: users, repositories, references, commits, trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlencode

from loopback_hub.cards import card_of, parse_card, tags_of
from loopback_hub.catalog import Catalog
from loopback_hub.messages import Answer, RefusedError, Request, json_answer
from loopback_hub.repositories import Blob, Commit, Files, Repository, folders

EXPANDED_PAGE_SIZE = 50
Parts = Mapping[str, str]


def validate_yaml(catalog: Catalog, request: Request, _parts: Parts) -> Answer:
    """POST /api/validate-yaml, which the client asks before it commits a README.md."""
    catalog.user(request)
    try:
        card = parse_card(request.json()["content"])
    except ValueError as error:
        return json_answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
    warning = {"message": "empty or missing yaml metadata in repo card"}
    return json_answer({"errors": [], "warnings": [] if card else [warning]})


def info(catalog: Catalog, request: Request, parts: Parts) -> Answer:
    """GET /api/{kind}/{repo} and .../revision/{rev}."""
    repository = catalog.readable(request, parts["kind"], parts["repo"])
    commit = repository.resolve(parts.get("rev", "main"))
    card = card_of(commit.files)
    told: dict[str, Any] = {
        "_id": repository.name,
        "id": repository.name,
        "author": repository.namespace,
        "sha": commit.sha,
        "createdAt": repository.history(commit)[-1].date,
        "lastModified": commit.date,
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags_of(card),
        "siblings": [
            _sibling(path, blob, request.flag("blobs"))
            for path, blob in sorted(commit.files.items())
        ],
    }
    if card:
        told["cardData"] = card
    if repository.kind == "models":
        told |= {"modelId": repository.name}
        told |= {name: card[name] for name in ("library_name", "pipeline_tag") if name in card}
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
    expand = request.flag("expand")
    told = [_entry(repository, commit, path, expand) for path in paths]
    size = min(catalog.page_size, EXPANDED_PAGE_SIZE) if expand else catalog.page_size
    return _page(catalog, request, told, size)


def paths_info(catalog: Catalog, request: Request, parts: Parts) -> Answer:
    """POST /api/{kind}/{repo}/paths-info/{rev}: the paths that exist among those of a form."""
    repository = catalog.readable(request, parts["kind"], parts["repo"])
    commit = repository.resolve(parts["rev"])
    form = parse_qs(request.body.decode())
    present = {*commit.files, *folders(commit.files)}
    asked = [path.strip("/") for path in form.get("paths", [])]
    expand = form.get("expand", [""])[-1].lower() == "true"
    return json_answer(
        [_entry(repository, commit, path, expand) for path in asked if path in present]
    )


def _sibling(path: str, blob: Blob, with_blobs: bool) -> dict[str, Any]:
    told: dict[str, Any] = {"rfilename": path}
    if with_blobs:
        told |= {"blobId": blob.oid, "size": len(blob.content)}
        if blob.large:
            size, pointer_size = len(blob.content), len(blob.pointer)
            told["lfs"] = {"sha256": blob.sha256, "size": size, "pointerSize": pointer_size}
    return told


def _entry(repository: Repository, commit: Commit, path: str, expand: bool) -> dict[str, Any]:
    told = _file_entry(commit.files, path)
    if expand:
        last = repository.changed(path, repository.history(commit))
        told["lastCommit"] = {"id": last.sha, "title": last.title, "date": last.date}
        if told["type"] == "file":
            told["securityFileStatus"] = {
                "status": "safe",
                "avScan": None,
                "pickleImportScan": None,
            }
    return told


def _file_entry(files: Files, path: str) -> dict[str, Any]:
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
