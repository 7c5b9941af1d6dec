"""The endpoints that bytes go through: downloads with redirects, LFS batches, and the CDN."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from urllib.parse import quote

from loopback_hub.catalog import Catalog
from loopback_hub.messages import Answer, RefusedError, Request, in_range, json_answer
from loopback_hub.repositories import Repository

Parts = Mapping[str, str]
MEDIA_TYPES = {"json": "application/json", "md": "text/plain; charset=utf-8"}
BINARY = "application/octet-stream"
XET_EXPIRY = 2**32  # seconds since 1970


def resolve(catalog: Catalog, request: Request, parts: Parts) -> Answer:
    """GET /{repo}/resolve/{rev}/{path}: the file, or a redirect to the CDN."""
    repository = catalog.downloadable(request, _kind(parts), parts["repo"])
    commit = repository.resolve(parts["rev"])
    headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    path = parts["path"]
    blob = commit.files.get(path)
    if blob is None:
        raise RefusedError(404, "Entry not found", "EntryNotFound", headers)
    headers["ETag"] = f'"{blob.etag}"'
    if not blob.large:
        headers["Content-Type"] = MEDIA_TYPES.get(path.rpartition(".")[2], BINARY)
        return in_range(request, Answer(200, headers, blob.content))
    stored = catalog.xet.find(blob.sha256) if catalog.xet is not None else None
    if stored is not None:
        route = f"{catalog.endpoint}/api/{repository.kind}/{repository.name}/xet-read-token"
        headers |= {"X-Xet-Hash": stored.hash, "X-Xet-Refresh-Route": f"{route}/{commit.sha}"}
    location = f"{catalog.cdn}/download/{_stored(repository)}/{blob.sha256}/{quote(path)}"
    headers |= {
        "Location": location,
        "X-Linked-ETag": f'"{blob.sha256}"',
        "X-Linked-Size": str(len(blob.content)),
    }
    return Answer(302, headers, f"Found. Redirecting to {location}".encode())


def lfs_batch(catalog: Catalog, request: Request, parts: Parts) -> Answer:
    """POST {repo}.git/info/lfs/objects/batch: where to upload what is not there yet."""
    repository = _writable(catalog, request, parts)
    told = []
    for asked in request.json()["objects"]:
        entry = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in repository.large:
            upload = f"{catalog.cdn}/upload/{_stored(repository)}/{asked['oid']}"
            verify = f"{catalog.endpoint}/{repository.web_path}.git/info/lfs/objects/verify"
            entry["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        told.append(entry)
    return json_answer({"transfer": "basic", "objects": told})


def lfs_verify(catalog: Catalog, request: Request, parts: Parts) -> Answer:
    """POST {repo}.git/info/lfs/objects/verify: whether an upload arrived whole."""
    repository = _writable(catalog, request, parts)
    asked = request.json()
    content = repository.large.get(asked["oid"])
    if content is None or len(content) != asked["size"]:
        raise RefusedError(404, f"Object {asked['oid']} does not exist")
    return json_answer({})


def cdn_download(catalog: Catalog, request: Request, parts: Parts) -> Answer:
    """GET /download/... of the CDN."""
    content = _on_cdn(catalog, request, parts).large.get(parts["oid"])
    if content is None:
        raise RefusedError(404, "NoSuchKey")
    headers = {"ETag": f'"{parts["oid"]}"', "Accept-Ranges": "bytes", "Content-Type": BINARY}
    return in_range(request, Answer(200, headers, content))


def cdn_upload(catalog: Catalog, request: Request, parts: Parts) -> Answer:
    """PUT /upload/... of the CDN."""
    repository = _on_cdn(catalog, request, parts)
    found = hashlib.sha256(request.body).hexdigest()
    if found != parts["oid"]:
        raise RefusedError(400, f"BadDigest: the content has the sha256 {found}")
    repository.large[found] = request.body
    return Answer(200, {"ETag": f'"{found}"'})


def xet_token(catalog: Catalog, request: Request, parts: Parts) -> Answer:
    """GET /api/{kind}/{repo}/xet-{read,write}-token/{rev}: where the chunks are kept."""
    if parts["access"] == "write":
        catalog.writable(request, parts["kind"], parts["repo"])
    else:
        catalog.downloadable(request, parts["kind"], parts["repo"])
    if catalog.xet is None:
        raise RefusedError(404, "This Hub was set up without Xet")
    headers = {
        "X-Xet-Cas-Url": catalog.xet.url,
        "X-Xet-Access-Token": "xet",
        "X-Xet-Token-Expiration": str(XET_EXPIRY),
    }
    told = {"casUrl": catalog.xet.url, "accessToken": "xet", "exp": XET_EXPIRY}
    return json_answer(told, headers=headers)


def _kind(parts: Parts) -> str:
    return parts.get("kind") or "models"


def _stored(repository: Repository) -> str:
    return f"{repository.kind}/{quote(repository.name)}"


def _writable(catalog: Catalog, request: Request, parts: Parts) -> Repository:
    return catalog.writable(request, _kind(parts), parts["repo"])[0]


def _on_cdn(catalog: Catalog, request: Request, parts: Parts) -> Repository:
    """The repository whose store is meant.

    The address carries the permission; as S3 does, the CDN refuses a second way to prove it. A
    client that sends its token to another origin is caught by this.
    """
    if "authorization" in request.headers:
        raise RefusedError(400, "InvalidArgument: Only one auth mechanism allowed")
    repository = catalog.repositories.get((_kind(parts), parts["repo"]))
    if repository is None:
        raise RefusedError(403, "AccessDenied")
    return repository
