"""Golden values of the feature networks, by other people's code, with random weights.

With PyTorch, torchvision, timm and torch-fidelity installed (in an environment of its
own), from the repository's root:

    PYTHONPATH=tests/helpers python tests/oracles/feature_networks.py make

writes feature_networks.npz and two small files of torch.save beside this script. The
check of the whole DINOv2 ViT-L/14 and of FID on sets of images takes gigabytes and
minutes, and is done by hand:

    PYTHONPATH=tests/helpers python tests/oracles/feature_networks.py full /tmp/full
    PYTHONPATH=.:tests/helpers .venv/bin/python tests/oracles/feature_networks.py compare /tmp/full
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import random_weights

HERE = Path(__file__).parent
INCEPTION = (2, 40, 56)  # images: count, height, width
FID_SETS = 24, 32, 32
VIT = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 14}
GRID, SIDE = 5, 4  # of patches: when trained, and as used
LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 16, "patch_size": 14}


def make():
    import torch

    packages = torch_packages()
    golden = {"versions": str(packages["versions"])}
    golden |= resizes(packages) | inception(packages) | small_vit(packages)
    golden |= distances(packages)
    np.savez_compressed(HERE / "feature_networks.npz", **golden)
    tensors = {
        "conv.weight": torch.arange(24.0).reshape(4, 6).T,  # not contiguous
        "count": torch.tensor(7),
        "half": torch.ones(2, 3).half(),
    }
    module = torch.nn.BatchNorm2d(3)
    for name, new in (("zip.pth", True), ("legacy.pth", False)):
        whole = module.state_dict()  # with versions, as an attribute
        whole.update(tensors)
        torch.save(whole, HERE / name, _use_new_zipfile_serialization=new)


def full(place):
    import torch

    packages = torch_packages()
    place.mkdir(exist_ok=True)
    net = vit(packages, LARGE, 16)
    state = random_state(net)
    whole = random_weights.tensor("pos_embed", (1, 1 + 37**2, 1024))
    state["pos_embed"] = interpolated(torch.from_numpy(whole), 37, 16)
    net.load_state_dict(state)
    images = random_weights.pictures(2, 64, 64)
    with torch.no_grad():
        found = {"dinov2": net(dinov2_input(images, 224)).numpy()}
    state["pos_embed"] = torch.from_numpy(whole)
    torch.save(state, place / "dinov2_vitl14_pretrain.pth")
    extract = inception_extractor(packages, place / "pt_inception.pth")
    sets = [random_weights.pictures(*FID_SETS, seed=seed) for seed in (1, 2)]
    vectors = [features(extract, images)[0] for images in sets]
    fid = packages["fid"](*map(packages["fid_stats"], vectors))
    kid = packages["kid"](
        *map(torch.from_numpy, vectors),
        kid_subset_size=20,
        kid_subsets=5,
        verbose=False,
    )
    found |= {"fid": next(iter(fid.values())), "kid": next(iter(kid.values()))}
    np.savez(place / "full.npz", **found)


def compare(place):
    from edm_jax.evals import distances as ours
    from edm_jax.evals import frechet
    from edm_jax.evals.features.extraction import Extractor
    from edm_jax.evals.features.networks import NETWORKS

    golden = np.load(place / "full.npz")
    files = {"dinov2": "dinov2_vitl14_pretrain.pth", "inception": "pt_inception.pth"}
    found = {}
    for name, file in files.items():
        extract = Extractor(NETWORKS[name].load(place / file), batch_size=8)
        if name == "dinov2":
            found[name] = extract(random_weights.pictures(2, 64, 64)).vectors
            continue
        sets = [random_weights.pictures(*FID_SETS, seed=seed) for seed in (1, 2)]
        vectors = [extract(images).vectors for images in sets]
        fits = map(frechet.gaussian_fit, vectors)
        found["fid"] = frechet.frechet_distance(*fits)
        found["kid"] = ours.kid(*vectors, subsets=5, size=20)[0]
    for name, value in found.items():
        error = np.max(abs(value - golden[name])) / np.max(abs(golden[name]))
        print(f"{name}: {np.ravel(value)[0]:.8g}, relative error {error:.2g}")


def torch_packages():
    import torch

    # torchvision is imported by the others; of its operators nothing is needed.
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        try:
            library.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
        except RuntimeError:
            pass
    import timm
    import torch_fidelity
    import torchvision  # noqa: F401
    from timm.models.vision_transformer import VisionTransformer
    from torch_fidelity import interpolate_compat_tensorflow as tensorflow
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return {
        "library": library,
        "versions": {m.__name__: m.__version__ for m in (torch, timm, torch_fidelity)},
        "vit": VisionTransformer,
        "inception": FeatureExtractorInceptionV3,
        "tf1": tensorflow.interpolate_bilinear_2d_like_tensorflow1x,
        "fid": lambda a, b: metric_fid.fid_statistics_to_metric(a, b, verbose=False),
        "fid_stats": lambda x: metric_fid.fid_features_to_statistics(
            torch.from_numpy(x)
        ),
        "isc": metric_isc.isc_features_to_metric,
        "kid": metric_kid.kid_features_to_metric,
        "prc": metric_prc.prc_features_to_metric,
    }


def random_state(net):
    import torch

    return {
        name: torch.from_numpy(random_weights.tensor(name, tuple(value.shape)))
        if value.is_floating_point()
        else value
        for name, value in net.state_dict().items()
    }


def channels_first(images):
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def channels_last(tensor):
    return tensor.numpy().transpose(0, 2, 3, 1)


def resizes(packages):
    import torch.nn.functional as F

    images = channels_first(random_weights.pictures(1, 20, 50).astype(np.float32))
    cubic = {"mode": "bicubic", "align_corners": False, "antialias": True}
    tf1 = packages["tf1"](images, size=(31, 31), align_corners=False)
    return {
        "bilinear_tf1": channels_last(tf1),
        "bicubic": channels_last(F.interpolate(images, (28, 28), **cubic)),
        "positions": np.stack([
            np.asarray(interpolated(arange_positions(g), g, s))[0, 1:, 0][: 3 * 3]
            for g, s in ((37, 16), (GRID, SIDE))
        ]),
    }  # fmt: skip


def arange_positions(grid):
    import torch

    drawn = random_weights.tensor("pos_embed", (1, 1 + grid**2, 2))
    return torch.from_numpy(drawn)


def interpolated(positions, grid, side):
    """As facebookresearch/dinov2 does it, with its offset of 0.1 and no antialiasing."""
    import torch
    import torch.nn.functional as F

    first, rest = positions[:, :1], positions[:, 1:]
    rest = rest.reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    factor = (side + 0.1) / grid
    rest = F.interpolate(rest, scale_factor=(factor, factor), mode="bicubic")
    assert rest.shape[2:] == (side, side)
    return torch.cat([first, rest.permute(0, 2, 3, 1).reshape(1, side**2, -1)], dim=1)


def inception_extractor(packages, path):
    import torch

    shapes = inception_shapes()
    state = {
        k: torch.from_numpy(random_weights.tensor(k, v)) for k, v in shapes.items()
    }
    torch.save(state, path)
    return packages["inception"](
        "inception-v3-compat", ["2048", "logits_unbiased"],
        feature_extractor_weights_path=str(path),
    )  # fmt: skip


def inception_shapes():
    """Of torch-fidelity's module, without loading weights."""
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    shapes = {}

    class Shapes(theirs.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict, *args, **kwargs):
            shapes.update({k: tuple(v.shape) for k, v in self.state_dict().items()})

    torch_load, torch.load = torch.load, lambda *_, **__: {}
    try:
        Shapes("inception-v3-compat", ["2048"], feature_extractor_weights_path="none")
    finally:
        torch.load = torch_load
    return {k: v for k, v in shapes.items() if not k.endswith("num_batches_tracked")}


def features(extract, images):
    import torch

    with torch.no_grad():
        return [x.numpy() for x in extract(channels_first(images))]


def inception(packages):
    with tempfile.TemporaryDirectory() as place:
        extract = inception_extractor(packages, Path(place) / "random.pth")
    vectors, logits = features(extract, random_weights.pictures(*INCEPTION))
    return {"inception": vectors, "inception_logits": logits}


def vit(packages, config, side):
    return packages["vit"](
        img_size=side * config["patch_size"], init_values=1.0, num_classes=0, **config
    ).eval()


def dinov2_input(images, side):
    import torch.nn.functional as F

    x = channels_first(images.astype(np.float32))
    cubic = {"mode": "bicubic", "align_corners": False, "antialias": True}
    x = channels_last(F.interpolate(x, (side, side), **cubic)) / 255
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return channels_first(((x - mean) / std).astype(np.float32))


def small_vit(packages):
    import torch

    images = random_weights.pictures(2, 40, 30)
    found = {}
    for name, grid in (("vit", SIDE), ("vit_interpolated", GRID)):
        net = vit(packages, VIT, SIDE)
        state = random_state(net)
        whole = random_weights.tensor("pos_embed", (1, 1 + grid**2, VIT["embed_dim"]))
        positions = torch.from_numpy(whole)
        if grid != SIDE:
            positions = interpolated(positions, grid, SIDE)
        net.load_state_dict(state | {"pos_embed": positions})
        with torch.no_grad():
            found[name] = net(dinov2_input(images, 14 * SIDE)).numpy()
    return found


def distances(packages):
    import torch

    real, fake = (torch.from_numpy(x) for x in random_features())
    kid = packages["kid"](real, fake, kid_subset_size=20, kid_subsets=5, verbose=False)
    isc = packages["isc"](fake)
    prc = packages["prc"](fake, real, verbose=False)  # its first set is the samples
    fid = packages["fid"](*(packages["fid_stats"](x.numpy()) for x in (real, fake)))
    found = {**kid, **isc, **prc, **fid}
    print(found)
    return {k: float(v) for k, v in found.items()}


def random_features():
    rng = np.random.default_rng(0)
    return rng.standard_normal((80, 8)), 0.3 + 1.2 * rng.standard_normal((70, 8))


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make()
    else:
        {"full": full, "compare": compare}[sys.argv[1]](Path(sys.argv[2]))
