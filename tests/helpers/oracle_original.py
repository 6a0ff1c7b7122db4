"""The config-G denoiser on the original code's tensors as they lie in its snapshots.

Plain NumPy float64, one straight listing of one network: 8x8 images, two levels of any
width, one block a level. Images are (N, C, H, W) here. Shares no code with the library.
"""

import numpy as np

# What a network may be made with, as the original code names it.
PUBLISHED = {
    "sigma_data": 0.5,
    "channels_per_head": 64,
    "label_balance": 0.5,
    "concat_balance": 0.5,
    "res_balance": 0.3,
    "clip_act": 256,
}


def denoise(tensors, x, sigma, label, **given):
    """D(x; sigma, label) (N, C, 8, 8) and u(sigma) (N,); label: (N, classes)."""
    t = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    given = PUBLISHED | given
    s, sd = np.asarray(sigma, np.float64).reshape(-1, 1, 1, 1), given["sigma_data"]
    total = s**2 + sd**2
    c_noise = np.log(sigma) / 4
    inner = unet(t, x / np.sqrt(total), c_noise, label, given)
    image = sd**2 / total * x + s * sd / np.sqrt(total) * inner
    head = linear(t["logvar_linear.weight"], fourier(t, "logvar_fourier", c_noise))
    return image, head[:, 0]


def unet(t, x, c_noise, label, given):
    noise = linear(t["unet.emb_noise.weight"], fourier(t, "unet.emb_fourier", c_noise))
    label = linear(t["unet.emb_label.weight"], label * np.sqrt(label.shape[1]))
    emb = silu(blend(noise, label, given["label_balance"]))
    n, _, h, w = x.shape

    def join(x, skip):
        return cat(x, skip, given["concat_balance"])

    def run(name, x):
        y = block(t, f"unet.{name}", x, emb, given)
        if f"unet.{name}.attn_qkv.weight" in t:
            y = attention(t, f"unet.{name}", y, given)
        bound = given["clip_act"]
        return y if bound is None else np.clip(y, -bound, bound)

    x = np.concatenate([x, np.ones((n, 1, h, w))], axis=1)
    s0 = x = conv(t["unet.enc.8x8_conv.weight"], x)
    s1 = x = run("enc.8x8_block0", x)
    half = (x[:, :, ::2] + x[:, :, 1::2]) / 2
    x = (half[..., ::2] + half[..., 1::2]) / 2
    s2 = x = run("enc.4x4_down", x)
    s3 = x = run("enc.4x4_block0", x)
    x = run("dec.4x4_in0", x)
    x = run("dec.4x4_in1", x)
    x = run("dec.4x4_block0", join(x, s3))
    x = run("dec.4x4_block1", join(x, s2))
    x = run("dec.8x8_up", x.repeat(2, axis=2).repeat(2, axis=3))
    x = run("dec.8x8_block0", join(x, s1))
    x = run("dec.8x8_block1", join(x, s0))
    return conv(t["unet.out_conv.weight"], x) * t["unet.out_gain"]


def block(t, name, x, emb, given):
    encoder, skip = ".enc." in name, f"{name}.conv_skip.weight"
    if encoder:
        x = conv(t[skip], x) if skip in t else x
        x = x / (1e-4 + np.sqrt(np.mean(x**2, axis=1, keepdims=True)))
    y = conv(t[f"{name}.conv_res0.weight"], silu(x))
    scale = linear(t[f"{name}.emb_linear.weight"], emb) * t[f"{name}.emb_gain"]
    y = conv(t[f"{name}.conv_res1.weight"], silu(y * (1 + scale[:, :, None, None])))
    if not encoder and skip in t:
        x = conv(t[skip], x)
    return blend(x, y, given["res_balance"])


def attention(t, name, x, given):
    n, c, h, w = x.shape
    heads = max(c // given["channels_per_head"], 1)
    wide = c // heads
    y = conv(t[f"{name}.attn_qkv.weight"], x)
    out = np.zeros((n, c, h * w))
    for head in range(heads):
        # Of 3 c channels, a head's 3 * wide are neighbours: q0 k0 v0 q1 k1 v1 ...
        own = y[:, head * 3 * wide : (head + 1) * 3 * wide].reshape(n, 3 * wide, h * w)
        q, k, v = own[:, 0::3], own[:, 1::3], own[:, 2::3]
        q, k, v = (
            z / (1e-4 + np.sqrt(np.mean(z**2, axis=1, keepdims=True)))
            for z in (q, k, v)
        )
        weights = np.exp(np.einsum("ncq,nck->nqk", q, k) / np.sqrt(wide))
        weights /= weights.sum(axis=2, keepdims=True)
        out[:, head * wide : (head + 1) * wide] = np.einsum("nqk,nck->ncq", weights, v)
    y = conv(t[f"{name}.attn_proj.weight"], out.reshape(x.shape))
    return blend(x, y, given["res_balance"])


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


def blend(a, b, t):
    return ((1 - t) * a + t * b) / np.hypot(1 - t, t)


def cat(a, b, t):
    na, nb = a.shape[1], b.shape[1]
    scale = np.sqrt((na + nb) / ((1 - t) ** 2 + t**2))
    shares = scale * (1 - t) / np.sqrt(na) * a, scale * t / np.sqrt(nb) * b
    return np.concatenate(shares, axis=1)
