"""A small Hugging Face Hub on loopback, for the real clients `huggingface_hub` and `datasets`.

    client --HF_ENDPOINT--> hub origin --(302, LFS actions)--> cdn origin
                               |                                  |
                               +--- one LoopbackHub: repositories, users, faults, log

Everything is kept in memory. Large files go through LFS, so HF_HUB_DISABLE_XET=1 is needed; after
`LoopbackHub.use_xet`, processes without that setting may keep them in a folder by Xet. The server
is a proxy too, one that lets nothing out: with http_proxy set to it, what a client asks of any
other host ends here with 404 and stands in the log.
"""

from loopback_hub.catalog import User
from loopback_hub.faults import Fault
from loopback_hub.hub import LoopbackHub
from loopback_hub.messages import CDN, HUB, Request
from loopback_hub.repositories import Commit, Repository

__all__ = ["CDN", "HUB", "Commit", "Fault", "LoopbackHub", "Repository", "Request", "User"]
