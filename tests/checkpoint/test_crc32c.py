"""CRC-32C: the published values, and those of a plain loop over bytes."""
import make_checkpoints as make
import numpy as np
import pytest

from gpt2_np.checkpoint import crc32c


@pytest.mark.parametrize(
    ("content", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # this and the next three: RFC 3720, appendix B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
    ],
)
def test_crc32c_gives_the_published_values(content, crc):
    assert crc32c.crc32c(content) == crc


@pytest.mark.parametrize(
    "size", [1, 3, 4, 5, 7, 8, 9, 205, 208, 209, 210, 1671, 1672, 1673, 13379, 20001]
)
def test_crc32c_of_any_length_is_that_of_a_loop_over_bytes(size):
    content = np.random.default_rng(size).bytes(size)
    assert crc32c.crc32c(content) == make.crc(content)


def test_crc32c_does_not_depend_on_how_the_message_is_cut(monkeypatch):
    content = np.random.default_rng(0).bytes(70_000)
    expected = make.crc(content)
    for unit, chunk in ((8, 8), (8, 4096), (64, 1024), (64, 2**15), (512, 2**14), (512, 2**16)):
        monkeypatch.setattr(crc32c, "UNIT", unit)
        monkeypatch.setattr(crc32c, "CHUNK", chunk)
        assert crc32c.crc32c(content) == expected
        for size in (chunk - 1, chunk, chunk + 1, 2 * chunk):
            assert crc32c.crc32c(content[:size]) == make.crc(content[:size])


def test_folding_distances_are_a_multiple_of_the_polynomial():
    polynomial = 0x11EDC6F41  # Castagnoli's, with the coefficient of x^32 as the highest bit
    last = crc32c.FOLD[-1]
    remainder = sum(1 << (last - distance) for distance in (0, *crc32c.FOLD))
    while remainder >> 32:
        remainder ^= polynomial << (remainder.bit_length() - 33)
    assert remainder == 0


def test_any_changed_bit_changes_the_crc():
    content = bytearray(np.random.default_rng(1).bytes(3000))
    crc = crc32c.crc32c(content)
    for bit in range(0, 24000, 41):
        content[bit // 8] ^= 1 << bit % 8
        assert crc32c.crc32c(content) != crc
        content[bit // 8] ^= 1 << bit % 8
