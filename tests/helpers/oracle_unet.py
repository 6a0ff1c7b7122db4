"""The denoiser of configs A, B, C, D (= E), F and G again, in plain NumPy float64.

Written from the paper (Fig. 16-22, App. B, Eq. 4-8) as seven straight listings of one
small network: 8x8 images, channel_mult (1, 2), one block a level. Shares no code with
the library and knows of it the names and layout of the parameters only.
"""

import numpy as np

SIGMA_DATA = 0.5
HEAD = 4  # channels of an attention head


def denoise(letter, params, x, sigma, label, clamp=256.0):
    """D(x; sigma, label) (N, 8, 8, C) and u(sigma) (N,); label: (N, classes)."""
    sigma = np.asarray(sigma, np.float64).reshape(-1, 1, 1, 1)
    total = sigma**2 + SIGMA_DATA**2
    c_noise = np.log(sigma).reshape(-1) / 4
    inner = unet(letter, params["unet"], x / np.sqrt(total), c_noise, label, clamp)
    image = SIGMA_DATA**2 / total * x + sigma * SIGMA_DATA / np.sqrt(total) * inner
    if letter == "A":
        return image, np.zeros_like(c_noise)
    features = fourier(params["logvar_features"], c_noise)
    if letter == "G":
        features = features * np.sqrt(2)
    return image, linear(letter, params["logvar"], features)[:, 0]


def unet(letter, p, x, c_noise, label, clamp):
    emb = embedding(letter, p["embedding"], c_noise, label)
    at8 = letter == "A"  # only A attends at the highest of its resolutions

    def run(name, x, skip=None, resample=None, attend=False):
        if skip is not None:
            x = concatenate(letter, x, skip)
        side = "enc" if name.startswith("enc") else "dec"
        q = p[name]
        if letter in "FG":
            x = main_path_block(letter, side, q, x, emb, resample)
        else:
            x = branch_block(letter, q, x, emb, resample)
        assert ("attention" in q) == attend
        x = attention(letter, q["attention"], x) if attend else x
        return x if letter in "AB" else np.clip(x, -clamp, clamp)

    if letter not in "AB":
        x = np.concatenate([x, np.ones((*x.shape[:3], 1))], axis=-1)
    s0 = x = conv(letter, p["enc_8x8_conv"], x)
    s1 = x = run("enc_8x8_block0", x, attend=at8)
    s2 = x = run("enc_4x4_down", x, resample=half)
    s3 = x = run("enc_4x4_block0", x, attend=True)
    x = run("dec_4x4_in0", x, attend=True)
    x = run("dec_4x4_in1", x)
    x = run("dec_4x4_block0", x, skip=s3, attend=True)
    x = run("dec_4x4_block1", x, skip=s2, attend=True)
    x = run("dec_8x8_up", x, resample=double)
    x = run("dec_8x8_block0", x, skip=s1, attend=at8)
    x = run("dec_8x8_block1", x, skip=s0, attend=at8)
    if letter not in "FG":
        x = silu(letter, group_norm(letter, p.get("out_norm"), x))
    return conv(letter, p["out_conv"], x)


def branch_block(letter, p, x, emb, resample):
    """Fig. 16-20: everything acts on the residual branch."""
    q = p["branch"]
    y = silu(letter, group_norm(letter, q.get("norm0"), x))
    if resample:
        x, y = resample(x), resample(y)
    y = conv(letter, q["conv0"], y)
    modulation = linear(letter, q["emb_linear"], emb)[:, None, None, :]
    y = group_norm(letter, q.get("norm1"), y)
    if letter in "AB":
        scale, shift = np.split(modulation, 2, axis=-1)
        y = silu(letter, y * (1 + scale) + shift)
    else:
        y = silu(letter, y * (1 + modulation))
    y = conv(letter, q["conv1"], y)
    return (linear(letter, p["conv_skip"], x) if "conv_skip" in p else x) + y


def main_path_block(letter, side, p, x, emb, resample):
    """Fig. 21, 22: resampling and pixel norm act on the main path."""
    q = p["branch"]
    x = resample(x) if resample else x
    if side == "enc":
        x = linear(letter, p["conv_skip"], x) if "conv_skip" in p else x
        x = x / (1e-4 + np.sqrt(np.mean(x**2, axis=-1, keepdims=True)))
    y = conv(letter, q["conv0"], silu(letter, x))
    modulation = linear(letter, q["emb_linear"], emb)[:, None, None, :]
    y = conv(letter, q["conv1"], silu(letter, y * (1 + modulation)))
    if side == "dec" and "conv_skip" in p:
        x = linear(letter, p["conv_skip"], x)
    return blend(letter, x, y, 0.3)


def embedding(letter, p, c_noise, label):
    if letter in "AB":
        mc = p["noise0"]["kernel"].shape[0]
        frequencies = [(1 / 10000) ** (i / (mc / 2)) for i in range(mc // 2)]
        angles = c_noise[:, None] * np.array(frequencies)
        emb = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    else:
        emb = fourier(p["noise_features"], c_noise)
        label = label * np.sqrt(label.shape[-1])
    emb = emb * np.sqrt(2) if letter == "G" else emb
    emb = linear(letter, p["noise0"], emb)
    if letter not in "FG":
        emb = linear(letter, p["noise1"], silu(letter, emb))
    return silu(letter, blend(letter, emb, linear(letter, p["label"], label), 0.5))


def fourier(p, c_noise):
    return np.cos(2 * np.pi * (np.outer(c_noise, p["freqs"]) + p["phases"]))


def attention(letter, p, x):
    n, h, w, c = x.shape
    y = group_norm(letter, p["norm"], x) if letter in "AB" else x
    qkv = linear(letter, p["qkv"], y).reshape(n, h * w, 3, c // HEAD, HEAD)
    if letter not in "AB":
        qkv = qkv / (1e-4 + np.sqrt(np.mean(qkv**2, axis=-1, keepdims=True)))
    out = np.zeros((n, h * w, c))
    for i in range(n):
        for j in range(c // HEAD):
            q, k, v = qkv[i, :, 0, j], qkv[i, :, 1, j], qkv[i, :, 2, j]
            weights = np.exp(q @ k.T / np.sqrt(HEAD))
            weights /= weights.sum(axis=1, keepdims=True)
            out[i, :, j * HEAD : (j + 1) * HEAD] = weights @ v
    return blend(letter, x, linear(letter, p["proj"], out.reshape(x.shape)), 0.3)


def group_norm(letter, p, x):
    n, _, _, c = x.shape
    groups = min(32, c // 4)
    width = c // groups
    y = np.empty_like(x)
    for i in range(n):
        for g in range(groups):
            part = np.s_[i, :, :, g * width : (g + 1) * width]
            if letter in "AB":
                y[part] = (x[part] - x[part].mean()) / np.sqrt(x[part].var() + 1e-5)
            else:
                y[part] = x[part] / np.sqrt(np.mean(x[part] ** 2) + 1e-4)
    return y * p["scale"] + p["bias"] if letter in "AB" else y


def effective(letter, p):
    """A layer's weights as they are used, (..., out), with fan-in over all but out."""
    w = np.asarray(p["kernel"], np.float64)
    if letter in "ABC":
        return w
    flat = w.reshape(-1, w.shape[-1])
    unit = flat / (1e-4 + np.sqrt(np.mean(flat**2, axis=0)))
    return (unit / np.sqrt(len(flat)) * p.get("gain", 1.0)).reshape(w.shape)


def linear(letter, p, x):
    return x @ effective(letter, p) + p.get("bias", 0.0)


def conv(letter, p, x):
    n, h, w, _ = x.shape
    kernel = effective(letter, p)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = np.zeros((n, h, w, kernel.shape[-1]))
    for i in range(3):
        for j in range(3):
            y += padded[:, i : i + h, j : j + w] @ kernel[i, j]
    return y + p.get("bias", 0.0)


def silu(letter, x):
    return x / (1 + np.exp(-x)) / (0.596 if letter == "G" else 1.0)


def blend(letter, a, b, t):
    if letter != "G":
        return a + b
    return ((1 - t) * a + t * b) / np.sqrt((1 - t) ** 2 + t**2)


def concatenate(letter, a, b, t=0.5):
    if letter == "G":
        na, nb = a.shape[-1], b.shape[-1]
        c = np.sqrt((na + nb) / ((1 - t) ** 2 + t**2))
        a, b = a * c * (1 - t) / np.sqrt(na), b * c * t / np.sqrt(nb)
    return np.concatenate([a, b], axis=-1)


def half(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def double(x):
    return x.repeat(2, axis=1).repeat(2, axis=2)
