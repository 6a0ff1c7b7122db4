"""Groups of parameters: each takes the steps that its own optimizer would."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_options import optimizer_config

import configs
from edm_jax import tree
from edm_jax.models.build import count_params
from edm_jax.optim import chain, groups, weight_norm

RATE, BATCH = 0.1, 10


def toy_params():
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return {
        "conv": {"kernel": 3 * draw(3, 3, 2, 4), "bias": draw(4)},
        "linear": {"kernel": 2 * draw(6, 5), "gain": draw()},
    }


def gradients(steps=6):
    rng = np.random.default_rng(1)
    return [
        jax.tree.map(lambda w: jnp.float32(rng.standard_normal(w.shape)), toy_params())
        for _ in range(steps)
    ]


def run(opt, params=None, steps=6):
    """(weights after each step, the last state)."""
    tx = chain.make_optimizer(opt, 6 * BATCH / 1e6)
    params = toy_params() if params is None else params
    state, path = tx.init(params), []
    for each in gradients(steps):
        updates, state = tx.update(each, state, params)
        part = optax.apply_updates(opt.trained(params), updates)
        params = opt.trained.merged(part, params)
        path.append(tree.flatten(params))
    return path, state


@pytest.mark.slow
def adam_by_hand(name, rates, decay=0.0):
    """Kingma and Ba's Algorithm 1 in float64, with decoupled decay."""
    w = np.asarray(tree.flatten(toy_params())[name], np.float64)
    m = v = 0.0
    for t, (each, rate) in enumerate(zip(gradients(), rates, strict=True), 1):
        g = np.asarray(tree.flatten(each)[name], np.float64)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        u = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
        w = w - rate * (u + decay * w)
    return w


def test_each_group_takes_its_own_steps_at_its_own_rate():
    """A decaying rate and weight decay for one, SGD for another; both by hand."""
    opt = optimizer_config(
        groups={
            "conv/*": {
                "rate": 0.5,
                "schedule": {"name": "linear"},
                "penalty": {"name": "weight_decay", "strength": 0.3},
            },
            "linear/kernel": {"rate": 3.0, "method": {"name": "sgd", "momentum": 0.0}},
            "rest": {},
        }
    )
    path, _ = run(opt)
    linear = [0.5 * RATE * (1 - i / 6) for i in range(6)]
    found = adam_by_hand("conv/kernel", linear, 0.3)
    np.testing.assert_allclose(path[-1]["conv/kernel"], found, rtol=1e-5, atol=1e-6)
    found = adam_by_hand("conv/bias", linear)  # penalties leave biases out
    np.testing.assert_allclose(path[-1]["conv/bias"], found, rtol=1e-5, atol=1e-6)
    found = adam_by_hand("linear/gain", [RATE] * 6)
    np.testing.assert_allclose(path[-1]["linear/gain"], found, rtol=1e-5, atol=1e-6)
    total = sum(
        np.asarray(each["linear"]["kernel"], np.float64) for each in gradients()
    )
    expected = np.asarray(toy_params()["linear"]["kernel"]) - 3 * RATE * total
    np.testing.assert_allclose(
        path[-1]["linear/kernel"], expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
def test_a_groups_rate_is_a_function_of_the_images_alone():
    """The same for any batch size, so for any number of devices and micro-batches."""
    label = {"rate": 0.5, "schedule": {"name": "cosine"}}
    parts = {"label": label, "rest": {"warmup": {"name": "linear", "rampup_mimg": 0.5}}}
    nimg = jnp.float32(250_000)
    for batch in (10, 400):
        rates = chain.group_rates(optimizer_config(batch_size=batch, groups=parts), 1.0)
        found = {name: float(rate(nimg)) for name, rate in rates.items()}
        cosine = (1 + np.cos(np.pi / 4)) / 2
        expected = {"label": 0.5 * RATE * cosine, "rest": RATE / 2}
        assert found == pytest.approx(expected, rel=1e-6)


def test_one_group_of_everything_is_the_chain_without_groups_to_the_bit():
    for more in ({}, {"clip": {"name": "global_norm", "limit": 1.0}}):
        plain, _ = run(optimizer_config(forced_weight_norm=True, **more))
        whole = {"rest": {"rate": 1.0}}
        grouped, _ = run(
            optimizer_config(forced_weight_norm=True, groups=whole, **more)
        )
        for a, b in zip(plain, grouped, strict=True):
            for name in a:
                np.testing.assert_array_equal(a[name], b[name])
    # Without groups the state has the layout it had.
    state = chain.make_optimizer(optimizer_config(), 1.0).init(toy_params())
    kinds = [type(each).__name__ for each in state]
    assert kinds == ["EmptyState", "GuardState", "ScaleByScheduleState"]


def test_a_frozen_group_moves_by_nothing_and_has_no_state():
    opt = optimizer_config(
        forced_weight_norm=True,
        penalty={"name": "weight_decay"},
        groups={"linear/*": {"frozen": True}, "rest": {}},
    )
    path, state = run(opt)
    start = tree.flatten(toy_params())
    for name in ("linear/kernel", "linear/gain"):
        np.testing.assert_array_equal(path[-1][name], start[name])
    shapes = {x.shape for x in jax.tree.leaves(state)}
    assert (6, 5) not in shapes and (1, 5) not in shapes  # moments, scales
    assert (3, 3, 2, 4) in shapes
    # Neither is it projected before the first step.
    begun = chain.initial(opt, toy_params())
    np.testing.assert_array_equal(begun["linear"]["kernel"], start["linear/kernel"])
    projected = weight_norm.project(toy_params())["conv"]["kernel"]
    np.testing.assert_array_equal(begun["conv"]["kernel"], projected)
    # Clipping sees what is trained: the others' gradients do not count.
    clipped = {"name": "global_norm", "limit": 1e-3}
    sgd = {"name": "sgd", "momentum": 0.0}
    parts = {"groups": {"linear/*": {"frozen": True}, "rest": {}}}
    path, _ = run(optimizer_config(clip=clipped, method=sgd, **parts), steps=1)
    step = [path[0][f"conv/{n}"] - start[f"conv/{n}"] for n in ("kernel", "bias")]
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in step))
    assert norm == pytest.approx(RATE * 1e-3, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        {"name": "prodigy"},
        {"name": "schedule_free"},
        {"name": "muon"},
        {"name": "lion"},
    ],
    ids=lambda method: method["name"],
)
def test_a_groups_method_is_that_method_alone(method):
    """Methods that apply the rate themselves, too, beside Adam."""
    both = {"conv/*": {"method": method, "rate": 0.5}, "linear/*": {}}
    path, _ = run(optimizer_config(groups=both))
    alone, _ = run(optimizer_config(method=method, alpha_ref=RATE / 2))
    adam, _ = run(optimizer_config())
    for name in path[-1]:
        wanted = alone if name.startswith("conv") else adam
        # Prodigy's estimate is of all that it sees.
        if name.startswith("conv") and method["name"] == "prodigy":
            only = {"conv": toy_params()["conv"]}
            tx = chain.make_optimizer(
                optimizer_config(method=method, alpha_ref=RATE / 2), 1.0
            )
            state, params = tx.init(only), only
            for each in gradients():
                updates, state = tx.update({"conv": each["conv"]}, state, params)
                params = optax.apply_updates(params, updates)
            wanted = [tree.flatten(params)]
        np.testing.assert_allclose(path[-1][name], wanted[-1][name], rtol=1e-6)


def test_a_group_follows_one_cycles_beta1_and_skips_as_one(caplog):
    """Beside a group whose method has none: both see the whole gradient's fault."""
    opt = optimizer_config(
        nonfinite="skip",
        groups={"conv/*": {"schedule": {"name": "one_cycle"}}, "rest": {}},
    )
    path, _ = run(opt)
    alone, _ = run(optimizer_config(schedule={"name": "one_cycle"}))
    np.testing.assert_array_equal(path[-1]["conv/kernel"], alone[-1]["conv/kernel"])
    tx, params = chain.make_optimizer(opt, 1.0), toy_params()
    bad = gradients()[0]
    bad["linear"]["gain"] = jnp.float32(np.nan)
    updates, _ = tx.update(bad, tx.init(params), params)
    assert not any(np.any(x) for x in jax.tree.leaves(updates))


def load(letter="g", **fields):
    fields = {f"optimizer.{k.replace('__', '.')}": str(v) for k, v in fields.items()}
    return configs.load(f"{configs.letter_path(letter)}:digits-tiny", fields)


NAMES = list(tree.flatten(load("b").model.shapes))


def test_the_parts_partition_the_network():
    """U-Net, conditioning and the head; and finer, but for what lies across."""
    all_in = groups.Group()
    for chosen in (
        ["unet", "conditioning", "logvar"],
        ["encoder", "decoder", "embedding", "label", "logvar"],
        ["attention", "unet,!attention", "rest"],
        ["biases", "norms", "encoder,!biases,!norms", "rest"],
    ):
        found = groups.members(tuple((name, all_in) for name in chosen), NAMES)
        everything = [name for each in found.values() for name in each]
        assert sorted(everything) == sorted(NAMES) and all(found.values())
    found = groups.members((("unet/dec_4x4_*", all_in), ("rest", all_in)), NAMES)
    level = found["unet/dec_4x4_*"]
    assert level and all(name.startswith("unet/dec_4x4_") for name in level)
    biases = groups.members((("biases", all_in), ("rest", all_in)), NAMES)["biases"]
    assert not any("norm" in name for name in biases)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"groups__encoder__rate": 2},
            "leaves out logvar/kernel, .*groups.rest.rate=1",
        ),
        (
            {"groups__encoder__rate": 1, "groups__attention__rate": 1},
            r"are in both '\w+' and '\w+': leave one out .* !",
        ),
        (
            {"groups__encodr__rate": 1, "groups__rest__rate": 1},
            "encodr has 'encodr', which matches no parameter.*Did you mean 'encoder'",
        ),
        (
            {"groups__decoder,!attension__rate": 1, "groups__rest__rate": 1},
            "has '!attension', which matches no parameter",
        ),
        ({"groups__rest__frozen": True}, "all frozen: leave one to train"),
        (
            {"groups__logvar__frozen": True, "groups__logvar__rate": 2},
            "frozen is True, so",
        ),
        ({"groups__rest__rate": 0}, "must be positive"),
        ({"groups__rest__rat": 1}, "Did you mean 'optimizer.groups.rest.rate'"),
        (
            {"groups__rest__schedule__name": "plateau"},
            "choose it as optimizer.schedule",
        ),
        ({"groups__rest__method__name": "schedule_free"}, "ScheduleFree"),
        (
            {"groups__rest__warmup__name": "linear"},
            "optimizer.groups.rest.warmup.rampup_mimg",
        ),
        (
            {
                "depth_decay": 0.9,
                "method__name": "prodigy",
                "forced_weight_norm": False,
            },
            "depth_decay scales updates",
        ),
    ],
)
def test_what_is_no_partition_is_refused_in_one_sentence(fields, said):
    with pytest.raises(ValueError, match=said) as caught:
        load(**fields)
    assert "\n" not in str(caught.value)


def test_the_config_holds_groups_as_fields():
    """Overrides, config.json and its hash, and the table that describe.py prints."""
    fields = {
        "groups__embedding,label__rate": 0.5,
        "groups__rest__schedule__name": "cosine",
        "groups__rest__schedule__final": 0.1,
    }
    config = load(**fields)
    flat = configs.flatten(config)
    assert flat["optimizer.groups.embedding,label.rate"] == 0.5
    assert flat["optimizer.groups.rest.schedule.final"] == 0.1
    again = configs.from_json(config.to_dict(), "config.json")
    assert again == config
    changed = configs.changed(config, {"optimizer.groups.rest.rate": "2"})
    assert dict(changed.optimizer.groups)["rest"].rate == 2
    assert not any("groups" in name for name in configs.flatten(load()))
    opt = config.optimizer
    rows = groups.table(opt.groups, opt.alpha_ref, config.model.shapes)
    assert [row.group for row in rows] == ["embedding,label", "rest"]
    assert sum(row.parameters for row in rows) == count_params(config.model.shapes)
    assert [row.rate for row in rows] == [0.5 * opt.alpha_ref, opt.alpha_ref]
    assert rows[1].own["schedule"]["name"] == "cosine"


@pytest.mark.slow
def test_depth_counts_blocks_back_from_the_output():
    """In the order of a forward pass."""
    found = groups.depths(NAMES)
    order = load("b").model.forward_order()
    inside = [n for n in order if n.startswith("unet/") and "embedding" not in n]
    depth = [found[name] for name in inside]
    assert depth == sorted(depth, reverse=True)
    assert depth[-1] == 0 == found["logvar/kernel"]
    assert depth[0] == len({n.split("/")[1] for n in inside} - {"out_norm"}) - 1
    assert found["unet/embedding/label/kernel"] == depth[0]


def test_rates_decay_with_depth():
    """Adam's first step is the rate itself in every element."""
    places = ["enc_8x8_conv", "dec_8x8_block0", "out_conv"]
    params = {"unet": {name: {"kernel": jnp.ones((2, 3))} for name in places}}
    tx = chain.make_optimizer(optimizer_config(depth_decay=0.5), 1.0)
    updates, _ = tx.update(params, tx.init(params), params)
    for name, factor in zip(places, (0.25, 0.5, 1.0), strict=True):
        found = updates["unet"][name]["kernel"]
        np.testing.assert_allclose(found, -RATE * factor, rtol=1e-5)
