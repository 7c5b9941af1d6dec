"""Which endpoint answers which path."""

from __future__ import annotations

import re
from urllib.parse import unquote

from loopback_hub import files, reading, writing
from loopback_hub.catalog import ANONYMOUS, Catalog, Endpoint
from loopback_hub.messages import CDN, HUB, Answer, RefusedError, Request

REPO = r"(?P<repo>[^/]+/[^/]+?)"
API = rf"/api/(?P<kind>models|datasets|spaces)/{REPO}"
WEB = rf"/(?:(?P<kind>datasets|spaces)/)?{REPO}"
REV = r"(?P<rev>refs/(?:pr|convert)/[^/]+|[^/]+)"
STORED = rf"(?P<kind>models|datasets|spaces)/{REPO}/(?P<oid>[0-9a-f]{{64}})"

ROUTES: tuple[tuple[str, str, str, Endpoint], ...] = (
    (HUB, "POST", r"/api/validate-yaml", reading.validate_yaml),
    (HUB, "POST", r"/api/repos/create", writing.create),
    (HUB, "GET", rf"{API}", reading.info),
    (HUB, "GET", rf"{API}/revision/{REV}", reading.info),
    (HUB, "GET", rf"{API}/refs", reading.refs),
    (HUB, "GET", rf"{API}/tree/{REV}(?:/(?P<path>.+))?", reading.tree),
    (HUB, "POST", rf"{API}/paths-info/{REV}", reading.paths_info),
    (HUB, "POST", rf"{API}/branch/(?P<branch>.+)", writing.create_branch),
    (HUB, "POST", rf"{API}/tag/{REV}", writing.create_tag),
    (HUB, "POST", rf"{API}/preupload/{REV}", writing.preupload),
    (HUB, "POST", rf"{API}/commit/{REV}", writing.commit),
    (HUB, "GET", rf"{API}/xet-(?P<access>read|write)-token/{REV}", files.xet_token),
    (HUB, "POST", rf"{WEB}\.git/info/lfs/objects/batch", files.lfs_batch),
    (HUB, "POST", rf"{WEB}\.git/info/lfs/objects/verify", files.lfs_verify),
    (HUB, "GET", rf"{WEB}/resolve/{REV}/(?P<path>.+)", files.resolve),
    (CDN, "GET", rf"/download/{STORED}/.+", files.cdn_download),
    (CDN, "PUT", rf"/upload/{STORED}", files.cdn_upload),
)

_COMPILED = tuple(
    (origin, method, re.compile(path), endpoint) for origin, method, path, endpoint in ROUTES
)


def carry_out(catalog: Catalog, request: Request) -> Answer:
    """The answer to a request; a HEAD request is answered as a GET, its body left to the server."""
    asked = "GET" if request.method == "HEAD" else request.method
    try:
        for origin, method, path, endpoint in _COMPILED:
            if (origin, method) == (request.origin, asked):
                match = path.fullmatch(request.path)
                if match is not None:
                    return endpoint(catalog, request, _unquoted(match))
        raise _unknown(catalog, request)
    except RefusedError as refusal:
        return refusal.answer()


def _unquoted(match: re.Match[str]) -> dict[str, str]:
    return {name: unquote(part) for name, part in match.groupdict().items() if part is not None}


def _unknown(catalog: Catalog, request: Request) -> RefusedError:
    """What the Hub says of a path without endpoint: most often a repository without namespace."""
    if request.origin == HUB and re.match(
        r"/api/(models|datasets|spaces)/|.*/resolve/", request.path
    ):
        if catalog.user(request) is None:
            return RefusedError(401, ANONYMOUS, "RepoNotFound")
        return RefusedError(404, "Repository not found", "RepoNotFound")
    return RefusedError(404, "Not Found")
