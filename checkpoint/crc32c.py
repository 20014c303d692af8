"""CRC-32C (Castagnoli; RFC 3720), the checksum that TensorFlow keeps of every tensor.

A loop over the bytes of a 124M takes more than a minute in Python. So NumPy first folds a long
message into a short one that has the same CRC, which takes less than a second.
"""
from __future__ import annotations

import functools
from typing import Any

import numpy as np

# x^209 + x^144 + x^54 + x^39 + x^14 + 1 is a multiple of CRC-32C's polynomial. Over GF(2) its
# square is the same sum in x^2, so it stays a multiple with x^8, x^16, x^32 ... in place of x.
# Hence, in a message cut into units of 1, 2, 4 ... bytes, the first unit can be XORed into the
# 65th, 155th, 170th, 195th and 209th unit after it and dropped: the CRC stays the same.
FOLD = (65, 155, 170, 195, 209)
UNIT, CHUNK = 512, 2**19  # bytes


def crc32c(data: Any) -> int:
    """Return the CRC-32C of a buffer of bytes."""
    data = np.frombuffer(data, np.uint8)
    first = len(data) % CHUNK
    # A CRC begins with a register of ones: these four bytes turn a register of zeros into it. A
    # register of zeros ignores zeros at the front, which fill up a word of eight bytes.
    front = bytes(-(first + 4) % 8) + b"\x54\x64\x1f\x64"
    message = np.concatenate([np.frombuffer(front, np.uint8), data[:first]])
    for start in range(first, len(data), CHUNK):
        message = np.concatenate([fold(message, UNIT), data[start : start + CHUNK]])
    for unit in (UNIT, 64, 8, 1):
        message = fold(message, unit)
    register, table = 0, byte_table()
    for byte in message.tolist():
        register = register >> 8 ^ table[(register ^ byte) & 255]
    return register ^ 0xFFFFFFFF


def fold(message: np.ndarray, unit: int) -> np.ndarray:
    """Return the last 209 units of a message, changed so that they have the CRC of the whole."""
    words = message.view(np.uint64) if unit % 8 == 0 else message
    unit //= words.itemsize
    end = max(len(words) - FOLD[-1] * unit, 0)
    for start in range(0, end, FOLD[0] * unit):
        stop = min(start + FOLD[0] * unit, end)
        for distance in FOLD:
            words[start + distance * unit : stop + distance * unit] ^= words[start:stop]
    return words[end:].view(np.uint8)


@functools.cache
def byte_table() -> list[int]:
    """Return the register that each byte leaves behind, after its eight bits."""

    def after_eight_bits(register):
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
        return register

    return [after_eight_bits(byte) for byte in range(256)]
