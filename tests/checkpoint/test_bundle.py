"""Bundles of TensorFlow: the reader returns their arrays, and refuses every other file."""
import contextlib
import os
import shutil
import struct

import make_checkpoints as make
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gpt2_np import checkpoint
from gpt2_np.checkpoint import CheckpointError, bundle
from gpt2_np.checkpoint.downloading import check_crcs
from gpt2_np.checkpoint.files import Malformed

INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"
fuzz = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def folder(tmp_path):
    make.write_tensorflow(tmp_path, tokenizer=False)
    return tmp_path


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The folder of a checkpoint, its parameters, and a copy of the folder to damage."""
    folder = tmp_path_factory.mktemp("sound")
    params = make.write_tensorflow(folder, tokenizer=False)
    damaged = folder / "damaged"
    shutil.copytree(folder, damaged)
    return folder, params, damaged


# --- sound bundles ---------------------------------------------------------------------------


@pytest.mark.parametrize("block_bytes", [0, 300, 10**6])  # one entry a block, several, all in one
def test_bundle_gives_the_arrays_that_were_written(tmp_path, block_bytes):
    params = make.write_tensorflow(tmp_path, tokenizer=False, block_bytes=block_bytes)
    make.assert_same_params(checkpoint.load(tmp_path).params, params)


def test_tensors_have_the_checksums_of_their_bytes(folder):
    check_crcs(checkpoint.open_checkpoint(folder))


def test_a_flipped_bit_in_the_data_is_found_by_its_tensors_checksum(folder):
    tensor = bundle.read_index(folder / INDEX)["model/h1/mlp/c_fc/w"]
    content = bytearray((folder / DATA).read_bytes())
    content[tensor.start + 5] ^= 4
    (folder / DATA).write_bytes(content)
    opened = checkpoint.open_checkpoint(folder)
    with pytest.raises(CheckpointError, match=r"h1/mlp/c_fc/w.*CRC-32C [0-9a-f]{8}, expected"):
        check_crcs(opened)


# --- refused bundles -------------------------------------------------------------------------


def entry_with(wanted, **fields):
    """Return a change of one tensor's entry: field1=3 sets field 1."""

    def change(name, entry):
        if name == wanted:
            entry |= {int(key.removeprefix("field")): value for key, value in fields.items()}

    return change


B = "model/ln_f/b"
ENTRIES = [
    ({"field1": 7}, "data type is 7, expected one of"),
    ({"field1": 3}, "is I32 of shape .*expected F32"),
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
def test_tensors_that_overlap_or_leave_a_hole_or_the_file_are_refused(tmp_path, start):
    change = entry_with("model/wte", field4=start)
    make.write_tensorflow(tmp_path, tokenizer=False, change=change)
    with pytest.raises(CheckpointError, match=r"model/.* begins at byte \d+, expected \d+"):
        checkpoint.load(tmp_path)


HEADERS = [
    ({1: 2}, "number of shards is 2, expected 1"),
    ({}, "number of shards is 0"),
    ({1: 1, 2: 1}, "byte order is 1, expected 0"),
    ({1: 1, 3: [make.proto({1: 9, 2: 5})]}, "minimum version of a reader is 5, expected 0"),
]


@pytest.mark.parametrize(("header", "message"), HEADERS, ids=str)
def test_a_header_of_another_kind_is_refused(tmp_path, header, message):
    make.write_tensorflow(tmp_path, tokenizer=False, header=header)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(tmp_path)


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
    with pytest.raises(CheckpointError, match="restarts of a block do not point to keys in full"):
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
        ([(b"", b"\x1a\x7f")], "field 3 is longer than its message"),
    ],
)
@pytest.mark.parametrize("block_bytes", [0, 10**6])
def test_keys_and_header_must_be_in_order(folder, entries, message, block_bytes):
    (folder / INDEX).write_bytes(make.write_table(entries, block_bytes))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(folder)


def metaindex_of(content):
    """Return start and end of the metaindex block, as the footer gives them."""
    start, size, _ = bundle.handle(content[-48:], 0)
    return start, start + size


@pytest.mark.parametrize("which", ["metaindex", "index"])
def test_a_footer_that_points_out_of_the_file_is_refused(folder, which):
    content = (folder / INDEX).read_bytes()
    start, end = metaindex_of(content)
    sound, outside = make.varint(start) + make.varint(end - start), make.varint(2**50) + b"\x0a"
    handles = outside + sound if which == "metaindex" else sound + outside
    (folder / INDEX).write_bytes(content[:-48] + handles.ljust(40, b"\0") + content[-8:])
    message = "a block of 10 bytes at 1125899906842624 lies outside the file"
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(folder)


def test_any_flipped_bit_of_the_metaindex_its_compression_and_its_crc_is_refused(sound):
    folder, _, damaged = sound
    content = (folder / INDEX).read_bytes()
    start, end = metaindex_of(content)
    for bit in range(8 * start, 8 * (end + 5)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (damaged / INDEX).write_bytes(flipped)
        problem = "compression" if bit // 8 == end else "CRC-32C"
        with pytest.raises(CheckpointError, match=f"the block at {start} has {problem}"):
            bundle.read_index(damaged / INDEX)


@pytest.mark.parametrize(
    ("metaindex", "message"),
    [
        (b"", "cut off"),
        (struct.pack("<I", 0), "restarts of a block"),
        (struct.pack("<II", 3, 1), "restarts of a block"),
        (struct.pack("<II", 0, 2), "has 2 restarts, more than fit"),
        (b"\x01" + struct.pack("<II", 0, 1), "cut off|does not fit"),
    ],
)
def test_a_metaindex_that_is_not_a_block_is_refused_though_its_checksum_is_right(
    tmp_path, metaindex, message
):
    make.write_tensorflow(tmp_path, tokenizer=False, metaindex=metaindex)
    with pytest.raises(CheckpointError, match=f"{INDEX} is not a whole .*({message})"):
        checkpoint.load(tmp_path)


def test_blocks_that_are_the_same_bytes_are_refused(folder):
    block = make.write_block([HEADER], 16) + b"\0"
    table = block + struct.pack("<I", make.mask(make.crc(block)))
    handle = make.varint(0) + make.varint(len(block) - 1)
    index = make.write_block([(b"a", handle), (b"b", handle)], 1) + b"\0"
    footer = handle + make.varint(len(table)) + make.varint(len(index) - 1)
    table += index + struct.pack("<I", make.mask(make.crc(index)))
    (folder / INDEX).write_bytes(table + footer.ljust(40, b"\0") + bundle.MAGIC)
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


def test_a_tensor_that_does_not_belong_to_the_model_is_named(folder):
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
            bundle.read_index(damaged / INDEX)


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
@example(bytes(40) + bundle.MAGIC)
def test_any_bytes_as_a_message_are_parsed_or_refused(content):
    for parse in (
        lambda: bundle.bundle_tensor("x", content, None),
        lambda: bundle.check_header("", content),
        lambda: list(bundle.block_entries(content)),
        lambda: list(bundle.table_entries(content)),
    ):
        with contextlib.suppress(Malformed):
            parse()
