"""The reader of TensorFlow bundles: what it reads, what it refuses, and its checksum."""
import contextlib
import os
import shutil
import struct

import make_checkpoints as make
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import checkpoint
from checkpoint import CheckpointError

INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"
fuzz = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def folder(tmp_path):
    make.write_tensorflow(tmp_path, tokenizer=False)
    return tmp_path


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A checkpoint, its parameters, and a place where its files are copied to be damaged."""
    folder = tmp_path_factory.mktemp("sound")
    params = make.write_tensorflow(folder, tokenizer=False)
    damaged = folder / "damaged"
    shutil.copytree(folder, damaged)
    return folder, params, damaged


# --- CRC-32C ---------------------------------------------------------------------------------


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
    assert checkpoint.crc32c(content) == crc


@pytest.mark.parametrize(
    "size", [1, 3, 4, 5, 7, 8, 9, 205, 208, 209, 210, 1671, 1672, 1673, 13379, 20001]
)
def test_crc32c_of_any_length_is_that_of_a_loop_over_bytes(size):
    content = np.random.default_rng(size).bytes(size)
    assert checkpoint.crc32c(content) == make.crc(content)


def test_crc32c_does_not_depend_on_how_the_message_is_cut(monkeypatch):
    content = np.random.default_rng(0).bytes(70_000)
    expected = make.crc(content)
    for unit, chunk in ((8, 8), (8, 4096), (64, 1024), (64, 2**15), (512, 2**14), (512, 2**16)):
        monkeypatch.setattr(checkpoint, "UNIT", unit)
        monkeypatch.setattr(checkpoint, "CHUNK", chunk)
        assert checkpoint.crc32c(content) == expected
        for size in (chunk - 1, chunk, chunk + 1, 2 * chunk):
            assert checkpoint.crc32c(content[:size]) == make.crc(content[:size])


def test_folding_distances_are_a_multiple_of_the_polynomial():
    polynomial = 0x11EDC6F41  # Castagnoli's, with the coefficient of x^32 as the highest bit
    last = checkpoint.FOLD[-1]
    remainder = sum(1 << (last - distance) for distance in (0, *checkpoint.FOLD))
    while remainder >> 32:
        remainder ^= polynomial << (remainder.bit_length() - 33)
    assert remainder == 0


def test_any_changed_bit_changes_the_crc():
    content = bytearray(np.random.default_rng(1).bytes(3000))
    crc = checkpoint.crc32c(content)
    for bit in range(0, 24000, 41):
        content[bit // 8] ^= 1 << bit % 8
        assert checkpoint.crc32c(content) != crc
        content[bit // 8] ^= 1 << bit % 8


# --- what is read ----------------------------------------------------------------------------


@pytest.mark.parametrize("block_bytes", [0, 300, 10**6])  # one entry a block, several, all in one
def test_bundle_gives_the_arrays_that_were_written(tmp_path, block_bytes):
    params = make.write_tensorflow(tmp_path, tokenizer=False, block_bytes=block_bytes)
    make.assert_same_params(checkpoint.load(tmp_path).params, params)


def test_tensors_have_the_checksums_of_their_bytes(folder):
    checkpoint.check_crcs(checkpoint.open_checkpoint(folder))


def test_a_flipped_bit_in_the_data_is_found_by_its_tensors_checksum(folder):
    tensor = checkpoint.read_index(folder / INDEX)["model/h1/mlp/c_fc/w"]
    content = bytearray((folder / DATA).read_bytes())
    content[tensor.start + 5] ^= 4
    (folder / DATA).write_bytes(content)
    opened = checkpoint.open_checkpoint(folder)
    with pytest.raises(CheckpointError, match=r"h1/mlp/c_fc/w.*CRC-32C [0-9a-f]{8}, expected"):
        checkpoint.check_crcs(opened)


# --- what is refused -------------------------------------------------------------------------


def entry_with(wanted, **fields):
    """A change of one tensor's entry: field1=3 sets field 1, field7=None leaves it out."""

    def change(name, entry):
        if name == wanted:
            entry |= {int(key.removeprefix("field")): value for key, value in fields.items()}

    return change


B = "model/ln_f/b"
ENTRIES = [
    ({"field1": 3}, "data type is 3, expected one of"),
    ({"field1": 0}, "data type is 0"),
    ({"field3": 1}, "another shard"),
    ({"field7": [make.proto({1: [b"x"]})]}, "slices"),
    ({"field4": 2**64}, "over 64 bits"),
    ({"field5": 31}, "31 bytes, expected 32"),
    ({"field5": 2**63}, "9223372036854775808 bytes, expected 32"),
    ({"field2": [make.proto({2: [make.proto({1: 9})]})]}, r"32 bytes, expected 36 .* \(9,\)"),
    ({"field2": [make.proto({2: [make.proto({1: 2**62})]})]}, "32 bytes, expected 18446744073"),
    ({"field2": [make.proto({2: [b"\x08\x04", b"\x08\x02"]})]}, r"expected .*\(8,\)"),
    ({"field2": [make.proto({2: [make.proto({1: 1})] * 5000})]}, "5000 axes, expected at most 8"),
    ({"field2": 5}, "field 2 is 5"),
    ({"field2": [make.proto({2: 5})]}, "found the number 5, expected a message"),
    ({"field4": [b"abc"]}, "field 4 is b'abc'"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), ENTRIES, ids=str)
def test_a_wrong_entry_is_refused_with_the_name_of_its_tensor(tmp_path, fields, message):
    make.write_tensorflow(tmp_path, tokenizer=False, change=entry_with(B, **fields))
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert B in str(caught.value)


@pytest.mark.parametrize("start", [0, 4, 7000, 2**40, 2**64 - 4])
def test_tensors_that_overlap_or_leave_the_file_or_a_hole_are_refused(tmp_path, start):
    change = entry_with("model/wte", field4=start)
    make.write_tensorflow(tmp_path, tokenizer=False, change=change)
    with pytest.raises(CheckpointError, match=r"model/.* begins at byte \d+, expected \d+"):
        checkpoint.load(tmp_path)


HEADERS = [
    ({1: 2}, "number of shards is 2, expected 1"),
    ({}, "number of shards is 0"),
    ({1: 1, 2: 1}, "byte order is 1, expected 0"),
    ({1: 1, 3: [make.proto({1: 9, 2: 5})]}, "version that reads it is 5"),
]


@pytest.mark.parametrize(("header", "message"), HEADERS, ids=str)
def test_a_header_of_another_kind_is_refused(tmp_path, header, message):
    make.write_tensorflow(tmp_path, tokenizer=False, header=header)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path)


def flip(content, at):
    content = bytearray(content)
    content[at] ^= 1
    return bytes(content)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"compression": 1}, "has compression 1, expected 0"),
        ({"damage": lambda block: block[:-4] + struct.pack("<I", 10**6)}, "has 1000000 restarts"),
        ({"damage": lambda block: block[:-8] + struct.pack("<II", 3, 1)}, "restarts of a block"),
        ({"damage": lambda block: block[:-4] + struct.pack("<III", 0, 0, 3)}, "restarts|not fit"),
        ({"damage": lambda block: block[:3]}, "cut off"),
        ({"damage": lambda block: b"\x00\xff\x7f" + block[3:]}, "does not fit"),
        ({"damage": lambda block: b"\x05" + block[1:]}, "does not fit"),
        ({"damage": lambda block: b"\xff" * 10 + b"\x01" + block}, "over 64 bits"),
        ({"damage": lambda block: b"\xff" * len(block)}, "restarts"),
    ],
)
def test_a_damaged_block_is_refused_though_its_checksum_is_right(tmp_path, table, message):
    make.write_tensorflow(tmp_path, tokenizer=False, **table)
    with pytest.raises(CheckpointError, match=f"{INDEX} is not a whole .*{message}"):
        checkpoint.load(tmp_path)


def test_a_restart_inside_an_entry_is_refused(tmp_path):
    def restart_at_1(block):  # of one restart, at 0
        return block[:-8] + struct.pack("<III", 0, 1, 2)

    make.write_tensorflow(tmp_path, tokenizer=False, damage=restart_at_1)
    with pytest.raises(CheckpointError, match="restarts of a block are not where"):
        checkpoint.load(tmp_path)


HEADER = (b"", make.proto({1: 1}))
ENTRY = make.proto({1: 1, 5: 4})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([HEADER, (b"b", ENTRY), (b"a", ENTRY)], "b'a' comes after b'b'"),
        ([HEADER, (b"a", ENTRY), (b"a", ENTRY)], "b'a' comes after b'a'"),
        ([HEADER, HEADER], "b'' comes after b''"),
        ([(b"a", ENTRY)], "does not begin with a header"),
        ([], "does not begin with a header"),
        ([HEADER, (b"a" * 300, ENTRY)], "does not fit"),
        ([(b"", b"\x0b\x00")], "wire type 3"),
        ([(b"", b"\x1a\x7f")], "field 3 leaves its message"),
    ],
)
@pytest.mark.parametrize("block_bytes", [0, 10**6])
def test_keys_and_header_must_be_in_order(folder, entries, message, block_bytes):
    (folder / INDEX).write_bytes(make.write_table(entries, block_bytes))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(folder)


def test_a_footer_that_points_out_of_the_file_is_refused(folder):
    content = (folder / INDEX).read_bytes()
    handles = make.varint(0) + make.varint(0) + make.varint(2**50) + make.varint(10)
    (folder / INDEX).write_bytes(content[:-48] + handles.ljust(40, b"\0") + content[-8:])
    with pytest.raises(CheckpointError, match="a block of 10 bytes at 1125899906842624 leaves"):
        checkpoint.load(folder)


def test_blocks_that_are_the_same_bytes_are_refused(folder):
    block = make.write_block([HEADER], 16) + b"\0"
    table = block + struct.pack("<I", make.mask(make.crc(block)))
    handle = make.varint(0) + make.varint(len(block) - 1)
    index = make.write_block([(b"a", handle), (b"b", handle)], 1) + b"\0"
    footer = handle + make.varint(len(table)) + make.varint(len(index) - 1)
    table += index + struct.pack("<I", make.mask(make.crc(index)))
    (folder / INDEX).write_bytes(table + footer.ljust(40, b"\0") + checkpoint.MAGIC)
    with pytest.raises(CheckpointError, match="a block begins at 0, inside"):
        checkpoint.load(folder)


def test_an_index_too_large_to_be_one_is_refused_unread(folder):
    with open(folder / INDEX, "wb") as file:
        file.truncate(10**9)
    with pytest.raises(CheckpointError, match=r"over \d+ bytes"):
        checkpoint.load(folder)


@pytest.mark.parametrize("bytes_more", [-1, 1, 1000])
def test_data_of_another_length_are_refused(folder, bytes_more):
    content = (folder / DATA).read_bytes()
    (folder / DATA).write_bytes((content + bytes(1000))[: len(content) + bytes_more])
    found, expected = len(content) + bytes_more, len(content)
    with pytest.raises(CheckpointError, match=f"{DATA}.*{found} bytes, expected {expected}"):
        checkpoint.load(folder)


@pytest.mark.parametrize("name", [INDEX, DATA])
@pytest.mark.parametrize("instead", [None, "a folder"])
def test_a_missing_file_is_named(folder, name, instead):
    (folder / name).unlink()
    if instead:
        (folder / name).mkdir()
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(folder)


def rewrite(folder, change):
    """Write the bundle again with its dict of arrays changed."""
    tensors = make.tensorflow_tensors(make.random_params(make.SMALL))
    change(tensors)
    make.write_bundle(folder, tensors)


def test_a_missing_tensor_is_named_with_its_shape(folder):
    rewrite(folder, lambda tensors: tensors.pop("model/h1/attn/c_proj/w"))
    with pytest.raises(CheckpointError, match=r"no tensor 'model/h1/attn/c_proj/w'.*\(1, 8, 8\)"):
        checkpoint.load(folder)


def test_a_tensor_that_is_no_part_of_the_model_is_named(folder):
    rewrite(folder, lambda tensors: tensors.update({"model/h2/ln_1/g": np.zeros(8)}))
    with pytest.raises(CheckpointError, match=r"model/h2/ln_1/g.*n_layer=2"):
        checkpoint.load(folder)


@pytest.mark.parametrize("shape", [(8, 8), (1, 64), (1, 8, 8, 1), (64,), ()])
def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder, shape):
    name = "model/h0/attn/c_proj/w"
    rewrite(folder, lambda tensors: tensors.update({name: np.zeros(shape)}))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder)
    for part in (name, f"shape {shape}", "expected", "(1, 8, 8)"):
        assert part in str(caught.value)


# --- fuzzing ---------------------------------------------------------------------------------


def assert_equal_or_refused(folder, params):
    try:
        model = checkpoint.load(folder)
    except CheckpointError as error:
        assert len(str(error)) < 2000
    else:
        make.assert_same_params(model.params, params)


def test_an_index_cut_anywhere_is_refused(sound):
    folder, _, damaged = sound
    content = (folder / INDEX).read_bytes()
    (damaged / INDEX).write_bytes(content)
    for size in reversed(range(len(content))):
        os.truncate(damaged / INDEX, size)
        with pytest.raises(CheckpointError, match=INDEX):
            checkpoint.read_index(damaged / INDEX)


@fuzz
@given(st.data())
def test_an_index_with_changed_bytes_is_read_right_or_refused(sound, data):
    folder, params, damaged = sound
    content = bytearray((folder / INDEX).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at, n = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 8))
        content[at : at + n] = data.draw(st.binary(max_size=8))
    (damaged / INDEX).write_bytes(content)
    assert_equal_or_refused(damaged, params)


@fuzz
@given(st.data())
def test_blocks_with_changed_bytes_and_right_checksums_are_read_right_or_refused(sound, data):
    _, params, damaged = sound
    blocks = iter(range(10**6))
    where = data.draw(st.integers(0, 4))

    def damage(block):
        block = bytearray(block)
        if next(blocks) == where:
            at, n = data.draw(st.integers(0, len(block) - 1)), data.draw(st.integers(0, 3))
            block[at : at + n] = data.draw(st.binary(max_size=3))
        return bytes(block)

    make.write_bundle(damaged, make.tensorflow_tensors(params), damage=damage)
    assert_equal_or_refused(damaged, params)


@fuzz
@given(st.binary(max_size=200))
@example(bytes(40) + checkpoint.MAGIC)
def test_any_bytes_as_a_message_are_parsed_or_refused(content):
    for parse in (
        lambda: checkpoint.bundle_tensor("x", content, None),
        lambda: checkpoint.check_header("", content),
        lambda: list(checkpoint.block_entries(content)),
        lambda: list(checkpoint.table_entries(content)),
    ):
        with contextlib.suppress(checkpoint.Malformed):
            parse()
