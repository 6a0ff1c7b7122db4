"""The config-G denoiser on the original code's tensors as they lie in its snapshots.

Plain NumPy float64, one straight listing of one network: 8x8 images, channel_mult
(1, 2), one block a level, attention at 4x4. Images are (N, C, H, W) here. Shares no code
with the library, and knows of it nothing.
"""

import numpy as np

SIGMA_DATA = 0.5
HEAD = 64  # channels of an attention head


def denoise(tensors, x, sigma, label):
    """D(x; sigma, label) (N, C, 8, 8) and u(sigma) (N,); label: (N, classes)."""
    t = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    s = np.asarray(sigma, np.float64).reshape(-1, 1, 1, 1)
    total = s**2 + SIGMA_DATA**2
    c_noise = np.log(sigma) / 4
    inner = unet(t, x / np.sqrt(total), c_noise, label)
    image = SIGMA_DATA**2 / total * x + s * SIGMA_DATA / np.sqrt(total) * inner
    head = linear(t["logvar_linear.weight"], fourier(t, "logvar_fourier", c_noise))
    return image, head[:, 0]


def unet(t, x, c_noise, label):
    noise = linear(t["unet.emb_noise.weight"], fourier(t, "unet.emb_fourier", c_noise))
    label = linear(t["unet.emb_label.weight"], label * np.sqrt(label.shape[1]))
    emb = silu((noise + label) / np.sqrt(2))
    n, _, h, w = x.shape
    x = np.concatenate([x, np.ones((n, 1, h, w))], axis=1)
    s0 = x = conv(t["unet.enc.8x8_conv.weight"], x)
    s1 = x = block(t, "unet.enc.8x8_block0", x, emb)
    half = (x[:, :, ::2] + x[:, :, 1::2]) / 2
    x = (half[..., ::2] + half[..., 1::2]) / 2
    s2 = x = block(t, "unet.enc.4x4_down", x, emb)
    s3 = x = attention(
        t, "unet.enc.4x4_block0", block(t, "unet.enc.4x4_block0", x, emb)
    )
    x = attention(t, "unet.dec.4x4_in0", block(t, "unet.dec.4x4_in0", x, emb))
    x = block(t, "unet.dec.4x4_in1", x, emb)
    for name, skip in (("block0", s3), ("block1", s2)):
        x = block(t, f"unet.dec.4x4_{name}", cat(x, skip), emb)
        x = attention(t, f"unet.dec.4x4_{name}", x)
    x = block(t, "unet.dec.8x8_up", x.repeat(2, axis=2).repeat(2, axis=3), emb)
    x = block(t, "unet.dec.8x8_block0", cat(x, s1), emb)
    x = block(t, "unet.dec.8x8_block1", cat(x, s0), emb)
    return conv(t["unet.out_conv.weight"], x) * t["unet.out_gain"]


def block(t, name, x, emb):
    encoder, skip = ".enc." in name, f"{name}.conv_skip.weight"
    if encoder:
        x = conv(t[skip], x) if skip in t else x
        x = x / (1e-4 + np.sqrt(np.mean(x**2, axis=1, keepdims=True)))
    y = conv(t[f"{name}.conv_res0.weight"], silu(x))
    scale = linear(t[f"{name}.emb_linear.weight"], emb) * t[f"{name}.emb_gain"]
    y = conv(t[f"{name}.conv_res1.weight"], silu(y * (1 + scale[:, :, None, None])))
    if not encoder and skip in t:
        x = conv(t[skip], x)
    return blend(x, y)


def attention(t, name, x):
    n, c, h, w = x.shape
    y = conv(t[f"{name}.attn_qkv.weight"], x)
    out = np.zeros((n, c, h * w))
    for head in range(c // HEAD):
        # Of 3 c channels, a head's 3 * 64 are neighbours: q0 k0 v0 q1 k1 v1 ...
        own = y[:, head * 3 * HEAD : (head + 1) * 3 * HEAD].reshape(n, 3 * HEAD, h * w)
        q, k, v = own[:, 0::3], own[:, 1::3], own[:, 2::3]
        q, k, v = (
            z / (1e-4 + np.sqrt(np.mean(z**2, axis=1, keepdims=True)))
            for z in (q, k, v)
        )
        weights = np.exp(np.einsum("ncq,nck->nqk", q, k) / np.sqrt(HEAD))
        weights /= weights.sum(axis=2, keepdims=True)
        out[:, head * HEAD : (head + 1) * HEAD] = np.einsum("nqk,nck->ncq", weights, v)
    return blend(x, conv(t[f"{name}.attn_proj.weight"], out.reshape(x.shape)))


def fourier(t, name, c_noise):
    angles = np.outer(c_noise, t[f"{name}.freqs"]) + t[f"{name}.phases"]
    return np.sqrt(2) * np.cos(angles)


def effective(w):
    flat = w.reshape(len(w), -1)
    rms = np.sqrt(np.mean(flat**2, axis=1, keepdims=True))
    return (flat / (1e-4 + rms) / np.sqrt(flat.shape[1])).reshape(w.shape)


def linear(w, x):
    return x @ effective(w).T


def conv(w, x):
    kernel, size = effective(w), w.shape[-1]
    _, _, h, width = x.shape
    edge = size // 2
    x = np.pad(x, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
    return sum(
        np.einsum("oi,nihw->nohw", kernel[:, :, i, j], x[..., i : i + h, j : j + width])
        for i in range(size)
        for j in range(size)
    )


def silu(x):
    return x / (1 + np.exp(-x)) / 0.596


def blend(a, b, t=0.3):
    return ((1 - t) * a + t * b) / np.hypot(1 - t, t)


def cat(a, b):
    na, nb = a.shape[1], b.shape[1]
    scale = np.sqrt((na + nb) / 2)
    return np.concatenate([a * scale / np.sqrt(na), b * scale / np.sqrt(nb)], axis=1)
