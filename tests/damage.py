"""Files with bytes changed, cut out and put in, for readers that have to bear anything."""

from __future__ import annotations

import random
import struct


def damaged(content: bytes, chance: random.Random) -> bytes:
    """A file's bytes with up to four changes, half of them in its header."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(min(len(changed), chance.choice([60, len(changed)])) or 1)
        number = chance.choice([0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 1, chance.randrange(2**32)])
        some = chance.randint(1, 20)
        taken, put = chance.choice(
            [
                (1, chance.randbytes(1)),
                (4, struct.pack(chance.choice("<>") + "I", number)),
                (some, b""),
                (0, chance.randbytes(some)),
                (len(changed), b""),
            ]
        )
        changed[place : place + taken] = put
    return bytes(changed)
