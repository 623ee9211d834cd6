"""medqa as a DICOM node: images come in by C-STORE, results go out by C-STORE."""

from .node import serve
from .settings import Limits, Peer, Sender, Settings, Tls

__all__ = ["Limits", "Peer", "Sender", "Settings", "Tls", "serve"]
