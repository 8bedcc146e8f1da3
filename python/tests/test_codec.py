"""`encode` and `decode`."""

import threading

import fl_client
import numpy as np
import pytest
from conftest import ROOT
from fl_client import _native

GOLDEN = sorted((ROOT / "quant" / "assets").glob("*.flq"))


def values(shape=(40, 50)):
    return (0.01 * np.random.default_rng(1).standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize("quantizer", _native.QUANTIZERS)
@pytest.mark.parametrize("entropy", [True, False])
def test_what_is_encoded_comes_back(quantizer, entropy):
    x = values()
    stream = fl_client.encode(x, quantizer, 8, entropy=entropy)
    y = fl_client.decode(stream, x.shape)
    assert y.shape == x.shape and y.dtype == np.float32
    bound = 0.4 if quantizer == "bin" else 2e-3
    assert ((x - y) ** 2).sum() <= bound * (x**2).sum()
    y += 1  # it is the caller's own


def test_the_default_is_four_bits_of_msq_v2():
    x = values((200, 300))
    stream = fl_client.encode(x)
    assert len(stream) < x.size * 3.9 / 8
    error = ((x - fl_client.decode(stream, x.shape)) ** 2).sum() / (x**2).sum()
    assert 0.008 < error < 0.0097
    assert stream == fl_client.encode(x), "the same input gives the same bytes"


def test_targets_hold():
    x = values((300, 300))
    for target in (0.05, 0.001):
        stream = fl_client.encode(x, bits="auto", target_nmse=target)
        assert ((x - fl_client.decode(stream, x.shape)) ** 2).sum() <= target * (x**2).sum()
    assert len(fl_client.encode(x, bits="auto", update_bytes=20_000)) <= 20_000


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_streams(path):
    expected = np.fromfile(path.with_suffix(".f32"), "<f4")
    assert np.array_equal(fl_client.decode(path.read_bytes()), expected)


def test_there_are_golden_streams():
    assert len(GOLDEN) > 10


def test_other_arrays_are_taken():
    for x in (values().astype(np.float64), values().T, np.arange(6), [1.0, 2.0], np.float32(3)):
        assert fl_client.decode(fl_client.encode(x, "none"), np.shape(x)).tolist() == np.asarray(x, np.float32).tolist()


def test_arguments_that_cannot_be_used_are_named():
    x = values()
    for bad, text in (
        (dict(array=np.array([1.0, np.nan])), "not finite"),
        (dict(array=np.array(["a"])), "give numbers"),
        (dict(array=x, quantizer="zip"), "StocQ, MSQ_v2"),
        (dict(array=x, bits=9), "1 to 8"),
        (dict(array=x, bits="auto", target_nmse=2.0), "1e-9 to 0.9"),
        (dict(array=x, update_bytes=100), 'bits="auto"'),
    ):
        with pytest.raises(fl_client.CodecError, match=text):
            fl_client.encode(**bad)


def test_damage_is_detected_at_every_length_and_byte():
    stream = fl_client.encode(values((5, 8)))
    for end in range(len(stream)):
        with pytest.raises(fl_client.CodecError):
            fl_client.decode(stream[:end])
    for place in range(len(stream)):
        broken = bytearray(stream)
        broken[place] ^= 1
        with pytest.raises(fl_client.CodecError):
            fl_client.decode(bytes(broken), 40)
    with pytest.raises(fl_client.CodecError):
        fl_client.decode(stream, (5, 9))


def test_threads_can_encode_side_by_side():
    x, results = values((300, 400)), []
    threads = [threading.Thread(target=lambda: results.append(fl_client.encode(x))) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(results) == 4 and len(set(results)) == 1
