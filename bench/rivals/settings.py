"""Settings of both rivals, and what they share: storing a message, and the keys that identify its case."""

import hashlib
import os
from pathlib import Path
from typing import Any

KAFKA = os.environ.get("BENCH_KAFKA", "")
PREFIX = os.environ.get("BENCH_PREFIX", "")
DSN = os.environ.get("BENCH_DSN", "")
MAILS = Path(os.environ.get("BENCH_MAILS", "."))
PORT = int(os.environ.get("BENCH_PORT", "0"))
TENANT = "0a1b2c3d-0000-4000-8000-0000000000aa"


def keep(raw: bytes, sha256: str) -> None:
    """Write a message so that its content and name survive a power failure."""
    folder = MAILS / sha256[:2]
    file = folder / sha256
    if file.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(f".{os.urandom(4).hex()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(descriptor, raw)
    os.fsync(descriptor)
    os.close(descriptor)
    aside.replace(file)
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def keys_of(message: dict[str, Any]) -> list[bytes]:
    """Return the identities of a message by which reports join a case."""
    names = [f"message-id {message['internet_message_id']}"]
    if message["fingerprint"]:
        names.append(f"fingerprint {message['fingerprint']}")
    return [hashlib.sha256(name.encode()).digest() for name in names]
