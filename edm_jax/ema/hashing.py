"""XXH3 of 64 bits in NumPy, for where the xxhash library is not installed.

The checksum of snapshots. It follows the algorithm's public description
(github.com/Cyan4973/xxHash, doc/xxhash_spec.md); the library is 50 times as fast.
"""

import struct

import numpy as np

_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578"
    "825ad07dccff7221b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea3"
    "71644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931"
    "c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
_P32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
_P64 = (
    *(0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9),
    *(0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5),
)
_MASK = 2**64 - 1
_BLOCK = 1024  # bytes between two scrambles: 16 stripes of 64
_START = (_P32[2], *_P64[:4], _P32[1], _P64[4], _P32[0])
_KEYS = np.stack([np.frombuffer(_SECRET, "<u8", 8, 8 * stripe) for stripe in range(16)])
_SCRAMBLE = np.frombuffer(_SECRET, "<u8", 8, len(_SECRET) - 64)
_LAST = np.frombuffer(_SECRET, "<u8", 8, len(_SECRET) - 64 - 7)


class xxh3_64:
    """Like xxhash.xxh3_64: takes bytes in parts."""

    def __init__(self, data: bytes | memoryview = b""):
        self.reset()
        self.update(data)

    def reset(self) -> None:
        self._sums = np.array(_START, np.uint64)
        self._length, self._before, self._pending = 0, b"", bytearray()

    def update(self, data: bytes | memoryview) -> None:
        self._pending += data
        self._length += len(data)
        # The last block is not scrambled, so one waits until there is more.
        blocks = (len(self._pending) - 1) // _BLOCK
        if blocks > 0:
            done = bytes(self._pending[: blocks * _BLOCK])
            del self._pending[: blocks * _BLOCK]
            self._before = done[-64:]
            for sums in _accumulated(np.frombuffer(done, "<u8").reshape(-1, 16, 8)):
                self._sums += sums
                self._sums ^= (self._sums >> np.uint64(47)) ^ _SCRAMBLE
                self._sums *= np.uint64(_P32[0])

    def hexdigest(self) -> str:
        data, length = bytes(self._pending), self._length
        if length <= 240:
            return f"{_short(data):016x}"
        sums = self._sums.copy()
        stripes = (len(data) - 1) // 64
        if stripes:
            rows = np.frombuffer(data, "<u8", 8 * stripes).reshape(1, stripes, 8)
            sums += _accumulated(rows)[0]
        last = np.frombuffer((self._before + data)[-64:], "<u8").reshape(1, 1, 8)
        sums += _accumulated(last, _LAST[None])[0]
        found = length * _P64[0]
        values = [int(each) for each in sums]
        for i in range(4):
            low, high = struct.unpack_from("<QQ", _SECRET, 11 + 16 * i)
            found += _folded(values[2 * i] ^ low, values[2 * i + 1] ^ high)
        return f"{_avalanche(found & _MASK):016x}"


def xxh3_64_hexdigest(data: bytes | memoryview) -> str:
    """The checksum of all of the bytes, as 16 characters."""
    return xxh3_64(data).hexdigest()


def _accumulated(rows: np.ndarray, keys: np.ndarray = _KEYS) -> np.ndarray:
    """What blocks (n, stripes, 8) add to the eight sums, (n, 8)."""
    keyed = rows ^ keys[: rows.shape[1]]
    products = (keyed & np.uint64(0xFFFFFFFF)) * (keyed >> np.uint64(32))
    swapped = rows[:, :, [1, 0, 3, 2, 5, 4, 7, 6]]
    return (products + swapped).sum(axis=1, dtype=np.uint64)


def _short(data: bytes) -> int:
    """The checksum of up to 240 bytes."""
    count = len(data)
    if count == 0:
        a, b = struct.unpack_from("<QQ", _SECRET, 56)
        return _avalanche64(a ^ b)
    if count <= 3:
        a, b = struct.unpack_from("<II", _SECRET)
        first, middle, last = data[0], data[count >> 1], data[-1]
        joined = first << 16 | middle << 24 | last | count << 8
        return _avalanche64(joined ^ a ^ b)
    if count <= 8:
        a, b = struct.unpack_from("<QQ", _SECRET, 8)
        first, last = (
            struct.unpack("<I", data[:4])[0],
            struct.unpack("<I", data[-4:])[0],
        )
        h = (last + (first << 32)) ^ a ^ b
        h ^= _rotated(h, 49) ^ _rotated(h, 24)
        h = h * 0x9FB21C651E98DF25 & _MASK
        h ^= (h >> 35) + count
        h = h * 0x9FB21C651E98DF25 & _MASK
        return h ^ h >> 28
    if count <= 16:
        a, b, c, d = struct.unpack_from("<QQQQ", _SECRET, 24)
        low = struct.unpack("<Q", data[:8])[0] ^ a ^ b
        high = struct.unpack("<Q", data[-8:])[0] ^ c ^ d
        swapped = int.from_bytes(low.to_bytes(8, "little"), "big")
        return _avalanche((count + swapped + high + _folded(low, high)) & _MASK)
    found = count * _P64[0]
    if count <= 128:
        for i in range((count - 1) // 32, -1, -1):
            found += _mixed(data, 16 * i, 32 * i)
            found += _mixed(data, count - 16 * (i + 1), 32 * i + 16)
        return _avalanche(found & _MASK)
    for i in range(8):
        found += _mixed(data, 16 * i, 16 * i)
    found = _avalanche(found & _MASK)
    for i in range(8, count // 16):
        found += _mixed(data, 16 * i, 16 * (i - 8) + 3)
    found += _mixed(data, count - 16, 136 - 17)
    return _avalanche(found & _MASK)


def _mixed(data: bytes, at: int, secret: int) -> int:
    low, high = struct.unpack_from("<QQ", data, at)
    a, b = struct.unpack_from("<QQ", _SECRET, secret)
    return _folded(low ^ a, high ^ b)


def _folded(a: int, b: int) -> int:
    product = a * b
    return (product & _MASK) ^ product >> 64


def _rotated(h: int, bits: int) -> int:
    return (h << bits | h >> (64 - bits)) & _MASK


def _avalanche(h: int) -> int:
    h ^= h >> 37
    h = h * 0x165667919E3779F9 & _MASK
    return h ^ h >> 32


def _avalanche64(h: int) -> int:
    h ^= h >> 33
    h = h * _P64[1] & _MASK
    h ^= h >> 29
    h = h * _P64[2] & _MASK
    return h ^ h >> 32
