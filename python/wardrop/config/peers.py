"""Settings of the routers that share a fleet."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from wardrop.config.fields import ConfigError, require_within, setting


@dataclass(frozen=True)
class Peers:
    """Other routers in front of the same workers, which share what is in flight."""

    listen: str = setting(
        "", "HOST:PORT on which peers follow this router's bookings; empty: none may", "peer-listen"
    )
    routers: tuple[str, ...] = setting(
        (), "HOST:PORT of a peer to follow; a name stands for each address that it has", "peer"
    )
    token_file: str = setting(
        "",
        "file whose first line is the secret of all routers; empty: every caller may follow",
        "peer-token-file",
    )
    silence_ms: int = setting(3_000, "silence after which the bookings of a peer expire")
    heartbeat_ms: int = setting(500, "time between two messages to a peer while nothing changes")
    max_peers: int = setting(64, "peers to follow, and peers that may follow")
    max_bookings_per_peer: int = setting(65_536, "bookings of one peer; further ones are ignored")
    max_bookings: int = setting(262_144, "bookings of all peers; further ones are ignored")
    outgoing_changes: int = setting(
        4_096, "changes kept for peers that read slowly; one further behind gets a snapshot"
    )
    hash_blocks: int = setting(
        1_024, "hashes of leading blocks that a booking carries to peers; 0: only their number"
    )

    def __post_init__(self) -> None:
        for key, addresses in (("listen", (self.listen,)), ("routers", self.routers)):
            for address in addresses:
                if address or key == "routers":
                    _require_host_port(f"peers.{key}", address)
        require_within("peers.silence_ms", self.silence_ms, 1, 600_000)
        require_within("peers.heartbeat_ms", self.heartbeat_ms, 1, 600_000)
        if self.heartbeat_ms >= self.silence_ms:
            raise ConfigError(
                f"peers.heartbeat_ms: got {self.heartbeat_ms}, expected less than "
                f"peers.silence_ms ({self.silence_ms}); otherwise an idle peer counts as silent"
            )
        require_within("peers.max_peers", self.max_peers, 1, 1024)
        require_within("peers.max_bookings_per_peer", self.max_bookings_per_peer, 1, 1 << 24)
        require_within("peers.max_bookings", self.max_bookings, 1, 1 << 24)
        require_within("peers.outgoing_changes", self.outgoing_changes, 1, 1 << 20)
        require_within("peers.hash_blocks", self.hash_blocks, 0, 16_384)

    def native(self) -> dict[str, Any] | None:
        """The stage as the native doors read it; None where nothing is shared."""
        if not self.listen and not self.routers:
            return None
        return asdict(self) | {
            "listen": self.listen or None,
            "token_file": self.token_file or None,
        }


def _require_host_port(name: str, address: str) -> None:
    """Refuse an address that is not `HOST:PORT`.

    Raises:
        ConfigError: The host or the port is missing or wrong.
    """
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65_535:
        raise ConfigError(f"{name}: got {address!r}, expected HOST:PORT")
