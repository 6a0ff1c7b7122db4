"""One change at a time: config G without each feature, and config A with each.

A feature is a set of fields that a letter's section of the paper changes together. G gets
the values of the letter before; A gets the values that the letter brought. Invalid
combinations, such as forced normalization of plain weights, are left out.
"""

import configs
from edm_jax.studies import SAME, RunSpec, Variant, runs_of

# name: (the letter that brings it, its fields)
FEATURES = {
    "adam_beta2": ("b", ("optimizer.method.beta2",)),
    "noise_levels": ("b", ("loss.P_mean", "loss.P_std")),
    "uncertainty": ("b", ("loss.uncertainty",)),
    "less_attention": ("b", ("network.attention_resolutions",)),
    "no_bias": ("c", ("network.weights", "network.constant_channel")),
    "no_offset": ("c", ("network.modulation",)),
    "rms_group_norm": ("c", ("network.norm",)),
    "cosine_attention": ("c", ("network.attention",)),
    "uniform_init": ("c", ("network.init", "network.zero_last")),
    "unit_label": ("c", ("network.unit_variance_label",)),
    "fourier": ("c", ("network.noise_features",)),
    "mp_weights": (
        "d",
        (
            "network.weights",
            "network.init",
            "network.zero_last",
            "optimizer.alpha_ref",
        ),
    ),
    "forced_weight_norm": ("e", ("optimizer.forced_weight_norm",)),
    "decay": ("e", ("optimizer.schedule.name", "optimizer.schedule.t_ref")),
    "no_group_norm": ("f", ("network.norm", "network.pixel_norm")),
    "main_path": ("f", ("network.block",)),
    "no_output_silu": ("f", ("network.output_silu",)),
    "one_embedding_layer": ("f", ("network.embedding_layers",)),
    "mp_fourier": ("g", ("network.noise_features",)),
    "mp_silu": ("g", ("network.mp_activation",)),
    "mp_sum": ("g", ("network.add",)),
    "mp_cat": ("g", ("network.cat",)),
    "gain": ("g", ("network.gain",)),
}
# Forced weight normalization would fix a norm that matters without mp_weights.
ALSO_WITHOUT = {"mp_weights": {"optimizer.forced_weight_norm": False}}


def runs(workload: str) -> list[RunSpec]:
    """A and G unchanged, G minus each feature that it has, and A plus each."""
    fields = {
        letter: configs.flatten(configs.load(_reference(letter, workload)))
        for letter in configs.LETTERS
    }
    specs = []
    for letter in "ag":
        reference = _reference(letter, workload)
        specs += runs_of(letter, reference, [SAME])
        for name, (brought_by, names) in FEATURES.items():
            source = brought_by if letter == "a" else configs.parent_letter(brought_by)
            brought, own, changed = (
                {name: fields[of][name] for name in names if name in fields[of]}
                for of in (brought_by, "g", source)
            )
            if letter == "g" and brought != own:
                continue  # a later letter has replaced it
            if letter == "g":
                changed |= ALSO_WITHOUT.get(name, {})
            sign = "plus" if letter == "a" else "minus"
            (spec,) = runs_of(letter, reference, [Variant(f"{sign}-{name}", changed)])
            if _makes_sense(spec):
                specs.append(spec)
    return specs


def _reference(letter: str, workload: str) -> str:
    return f"{configs.letter_path(letter)}:{workload}"


def _makes_sense(spec: RunSpec) -> bool:
    try:
        configs.load(spec.config, spec.overrides)
    except ValueError:
        return False
    return True
