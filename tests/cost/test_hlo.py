"""The collectives of a program's text, by kind, size and loop."""

import jax
import jax.numpy as jnp

from edm_jax.cost.hlo import Collective, collectives, cycles, kinds

TEXT = """HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[]{:T(128)} add(%a, %b)
}

%inner (p: bf16[8]) -> bf16[8] {
  ROOT %all-reduce.1 = bf16[8]{0:T(8,128)} all-reduce(%p), replica_groups=[1,4]<=[4], to_apply=%sum
}

%body (state: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  ROOT %fusion = (s32[], bf16[8]) fusion(%state), kind=kCustom, calls=%inner, backend_config={"estimated_cycles":"70"}
}

%condition (state: (s32[], bf16[8])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[4,3]) -> f32[4,3] {
  %while = (s32[], bf16[8]) while(%start), condition=%condition, body=%body
  %all-reduce.2 = (f32[4,3]{1,0:T(8,128)S(1)}, /*index=1*/s32[2]{0}) all-reduce(%x, %y), to_apply=%sum
  %reduce-scatter = f32[1,3]{1,0} reduce-scatter(%x), replica_groups={{0,1,2,3}}, dimensions={0}
  %all-gather-start = (f32[1,3]{1,0:T(8,128)}, f32[4,3]{1,0}) all-gather-start(%z), dimensions={0}
  %fusion.2 = f32[4,3]{1,0} fusion(%x), kind=kLoop, backend_config={"estimated_cycles":"5"}
  ROOT %all-gather-done = f32[4,3]{1,0} all-gather-done(%all-gather-start)
}
"""


def test_collectives_are_found_once_with_their_bytes_and_loops():
    f32 = frozenset({"f32"})
    assert collectives(TEXT) == [
        Collective("all-reduce", frozenset({"bf16"}), 16, in_loop=True),
        Collective("all-reduce", frozenset({"f32", "s32"}), 48 + 8, in_loop=False),
        Collective("reduce-scatter", f32, 4 * 12, in_loop=False),
        Collective("all-gather", f32, 48, in_loop=False),
    ]


def test_cycles_of_a_loop_are_told_from_those_outside():
    assert cycles(TEXT) == (5, 70)


FUSED = """HloModule jit_step

%fused (a: f32[8,8], b: f32[8,8]) -> f32[8,8] {
  %dot.1 = f32[8,8]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %add.1 = f32[8,8]{1,0} add(%dot.1, %b)
}

ENTRY %main (x: f32[8,8]) -> f32[8,8] {
  %fusion.1 = f32[8,8]{1,0} fusion(%x, %x), kind=kOutput, calls=%fused
  %cudnn = (f32[8,8]{1,0}, u8[0]{0}) custom-call(%x, %y), custom_call_target="__cudnn$convForward", metadata={op_name="jit(step)/transpose(jvp(Conv))/conv_general_dilated" stack_frame_id=1}
  %sum-start = f32[8,8]{1,0:T(8,128)} all-reduce-start(%x), to_apply=%sum
  %copy.3 = f32[8,8]{0,1} copy(%x), metadata={op_name="jit(step)/reduce_sum"}
  %while.1 = (s32[], f32[8,8]) while(%x), condition=%condition, body=%body
  ROOT %tanh.1 = f32[8,8]{1,0} tanh(%fusion.1)
}
"""


def test_an_operation_is_of_the_kind_of_the_most_costly_that_it_fuses():
    assert kinds(FUSED) == {
        "dot.1": "matrix products",
        "add.1": "elementwise",
        "fusion.1": "matrix products",
        "cudnn": "convolutions",
        "sum-start": "collectives",
        "copy.3": "layout",
        "tanh.1": "elementwise",
    }


def test_a_compiled_programs_convolution_is_found_by_what_it_was_traced_from():
    def convolve(x, w):
        same = jax.lax.conv(x, w, (1, 1), "SAME")
        return jnp.tanh(same).sum()

    shapes = [jax.ShapeDtypeStruct(s, "float32") for s in ((2, 3, 8, 8), (4, 3, 3, 3))]
    text = jax.jit(jax.grad(convolve)).lower(*shapes).compile().as_text()
    found = list(kinds(text).values())
    assert found.count("convolutions") >= 2  # one forward, one of the gradient
    assert "matrix products" not in found
