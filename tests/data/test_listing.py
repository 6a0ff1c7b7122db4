"""Claims about long lists of labels: the fast way gives what the parser gives, or nothing."""

import json

import numpy as np
import pytest

from edm_jax.data import labels, listing

NAMES = np.array(sorted([b"0/a.npy", b"0/long name.npy", b"1/\xc3\xa4.png", b"z.png"]))
PAIRS = [[name.decode(), 7 * i] for i, name in enumerate(NAMES.tolist())]
FORMS = {
    "as json.dump writes it": json.dumps({"labels": PAIRS}, ensure_ascii=False),
    "compact": json.dumps({"labels": PAIRS}, ensure_ascii=False, separators=(",", ":")),
    "indented": json.dumps({"labels": PAIRS}, ensure_ascii=False, indent=1),
    "with more": json.dumps({"labels": PAIRS, "x": [[1], 2]}, ensure_ascii=False),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_plain_list_is_read_at_once(form):
    found = listing.numbers(NAMES, FORMS[form].encode())
    assert found.tolist() == [0, 7, 14, 21] and found.dtype == np.int32


PLAIN = '{"labels": [["0/a.npy", 3], ["0/b.npy", 12]]}'
TWO = np.array([b"0/a.npy", b"0/b.npy"])
OTHERS = {
    "another order": '{"labels": [["0/b.npy", 3], ["0/a.npy", 12]]}',
    "an escape": '{"labels": [["0\\u002fa.npy", 3], ["0/b.npy", 12]]}',
    "no label": '{"labels": [["0/a.npy", null], ["0/b.npy", 12]]}',
    "a vector": '{"labels": [["0/a.npy", [3, 4]], ["0/b.npy", 12]]}',
    "a negative number": '{"labels": [["0/a.npy", -3], ["0/b.npy", 12]]}',
    "a fraction": '{"labels": [["0/a.npy", 3.5], ["0/b.npy", 12]]}',
    "a number beyond 32 bits": '{"labels": [["0/a.npy", 3], ["0/b.npy", 9999999999]]}',
    "fewer": '{"labels": [["0/a.npy", 3]]}',
    "a text": '{"labels": [["0/a.npy", "3"], ["0/b.npy", 12]]}',
    "other keys before": '{"x": 1, "labels": [["0/a.npy", 3], ["0/b.npy", 12]]}',
    "no labels": '{"labels": null}',
    "a longer name": '{"labels": [["0/a.npyx", 3], ["0/b.npy", 12]]}',
    "a cut one": PLAIN[:-1],
    "two numbers": '{"labels": [["0/a.npy", 3 4], ["0/b.npy", 12]]}',
    "a number elsewhere": '{"labels": [["0/a.npy", 3], 5["0/b.npy", ]]}',
    "none": "",
}


def test_other_lists_are_left_to_the_parser():
    assert listing.numbers(TWO, PLAIN.encode()).tolist() == [3, 12]
    for name, text in OTHERS.items():
        found = listing.numbers(TWO, text.encode())
        assert found is None, name


def test_either_way_gives_the_same_numbers(monkeypatch):
    rng = np.random.default_rng(0)
    names = np.array([b"%05d/img%08d.png" % (i // 1000, i) for i in range(70_000)])
    listed = rng.integers(0, 2**31 - 1, len(names)) % 10 ** rng.integers(
        1, 9, len(names)
    )
    pairs = [[n.decode(), k] for n, k in zip(names.tolist(), listed.tolist())]
    raw = json.dumps({"labels": pairs}).encode()
    fast = listing.numbers(names, raw)
    assert fast.tolist() == listed.tolist()
    monkeypatch.setattr(listing, "numbers", lambda *_: None)
    np.testing.assert_array_equal(labels.of_list(names, raw, "dataset.json")[0], fast)
