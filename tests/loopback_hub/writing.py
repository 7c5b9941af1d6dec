"""The endpoints that change what a Hub holds: repositories, branches, tags, uploads, commits."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from loopback_hub.catalog import ANONYMOUS, Catalog
from loopback_hub.messages import Answer, RefusedError, Request, json_answer
from loopback_hub.repositories import Blob, Commit, Repository, is_large

MAIN = "main"
STALE_PARENT = "A commit has happened since. Please refresh and try again."
MISSING_LARGE_FILE = (
    "Your push was rejected because an LFS pointer pointed to a file that does not exist."
    " Offending file: - {path}"
)
Parts = Mapping[str, str]


def create(catalog: Catalog, request: Request, _parts: Parts) -> Answer:
    """POST /api/repos/create."""
    user = catalog.user(request)
    if user is None:
        raise RefusedError(401, ANONYMOUS)
    asked = request.json()
    kind, what = f"{asked.get('type') or 'model'}s", asked.get("type") or "model"
    namespace = asked.get("organization") or user.name
    if user.role != "write" or not user.owns(namespace):
        fault = f'You don\'t have the rights to create a {what} under the namespace "{namespace}"'
        raise RefusedError(403, fault)
    name = f"{namespace}/{asked['name']}"
    url = f"{catalog.endpoint}/{name if kind == 'models' else f'{kind}/{name}'}"
    if (kind, name) in catalog.repositories:
        fault = f"You already created this {what} repo"
        headers = {"X-Error-Message": fault}
        return json_answer({"error": fault, "url": url}, 409, headers)
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    catalog.repositories[kind, name] = Repository(kind, name, user.name, private)
    return json_answer({"url": url, "name": name, "id": name, "private": private})


def create_branch(catalog: Catalog, request: Request, parts: Parts) -> Answer:
    """POST /api/{kind}/{repo}/branch/{branch}."""
    repository, _ = catalog.writable(request, parts["kind"], parts["repo"])
    branch = parts["branch"]
    if branch.startswith("refs/"):
        raise RefusedError(400, f"Invalid reference for a branch: {branch}")
    start = repository.resolve(request.json().get("startingPoint", MAIN))
    return _add_ref(repository, f"refs/heads/{branch}", start)


def create_tag(catalog: Catalog, request: Request, parts: Parts) -> Answer:
    """POST /api/{kind}/{repo}/tag/{rev}."""
    repository, _ = catalog.writable(request, parts["kind"], parts["repo"])
    target = repository.resolve(parts["rev"])
    return _add_ref(repository, f"refs/tags/{request.json()['tag']}", target)


def preupload(catalog: Catalog, request: Request, parts: Parts) -> Answer:
    """POST /api/{kind}/{repo}/preupload/{rev}: which files go to LFS, and what is there now."""
    repository, _ = catalog.writable(request, parts["kind"], parts["repo"])
    present = repository.resolve(parts["rev"]).files
    told = []
    for asked in request.json()["files"]:
        path = asked["path"]
        sample = base64.b64decode(asked.get("sample", ""))
        mode = "lfs" if is_large(path, asked["size"], sample) else "regular"
        file = {"path": path, "uploadMode": mode, "shouldIgnore": False}
        told.append(file | ({"oid": present[path].etag} if path in present else {}))
    return json_answer({"files": told, "commitOid": repository.resolve(parts["rev"]).sha})


def commit(catalog: Catalog, request: Request, parts: Parts) -> Answer:
    """POST /api/{kind}/{repo}/commit/{rev}: a commit, sent as one JSON value a line."""
    repository, user = catalog.writable(request, parts["kind"], parts["repo"])
    lines = [json.loads(line) for line in request.body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    opens_pr = request.flag("create_pr")
    parent, ref = header.get("parentCommit"), repository.find_ref(parts["rev"])
    if ref is None or ref.startswith("refs/tags/"):
        raise RefusedError(404, f"Invalid rev id: {parts['rev']}", "RevisionNotFound")
    base = repository.resolve(parent if opens_pr and parent else ref)
    if parent is not None and not base.sha.startswith(parent):
        raise RefusedError(412, STALE_PARENT)
    files = dict(base.files)
    for line in lines:
        _apply(catalog, repository, files, line["key"], line["value"])
    if opens_pr:
        ref = repository.open_pull_request(base)
    summary, description = header["summary"], header.get("description", "")
    made = repository.commit(ref, files, summary, description, user.name)
    web = f"{catalog.endpoint}/{repository.web_path}"
    told = {"success": True, "commitOid": made.sha, "commitUrl": f"{web}/commit/{made.sha}"}
    if ref.startswith("refs/pr/"):
        told["pullRequestUrl"] = f"{web}/discussions/{ref.rpartition('/')[2]}"
    return json_answer(told)


def _apply(
    catalog: Catalog,
    repository: Repository,
    files: dict[str, Blob],
    key: str,
    value: Mapping[str, Any],
) -> None:
    """Carry out one line of a commit on `files`."""
    path = value.get("path", "").rstrip("/")
    if key == "file":
        files[path] = Blob(base64.b64decode(value["content"]), large=False)
    elif key == "lfsFile":
        content = repository.large.get(value["oid"])
        if content is None and catalog.xet is not None:
            content = catalog.xet.read(value["oid"])
        if content is None:
            raise RefusedError(400, MISSING_LARGE_FILE.format(path=path))
        files[path] = Blob(content, large=True)
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise RefusedError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    elif key == "deletedFolder":
        for name in [name for name in files if name.startswith(f"{path}/")]:
            del files[name]


def _add_ref(repository: Repository, ref: str, target: Commit) -> Answer:
    if ref in repository.refs:
        raise RefusedError(409, f"Reference already exists: {ref}")
    repository.refs[ref] = target.sha
    return json_answer({"success": True})
