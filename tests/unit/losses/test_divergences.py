"""Divergences by hand, with the arithmetic beside the number, and what plausible wrong versions give."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.unit.losses.cases import INF, logits_of, random_pair
from trd_ray.losses import DivergenceOptions, GateOptions, RewardOptions, token_divergence

# In most tests below q = (1/2, 1/4, 1/4) is the teacher's and p = (1/4, 1/4, 1/2) the student's.
Q = logits_of(0.5, 0.25, 0.25)
P = logits_of(0.25, 0.25, 0.5)
LN2, LN3 = math.log(2), math.log(3)


def value(student: Tensor = P, teacher: Tensor = Q, **options: object) -> float:
    return token_divergence(student, teacher, **options).item()  # type: ignore[arg-type]


def gradient(student: Tensor = P, teacher: Tensor = Q, **options: object) -> list[float]:
    leaf = student.clone().requires_grad_()
    token_divergence(leaf, teacher, **options).sum().backward()  # type: ignore[arg-type]
    assert leaf.grad is not None
    return leaf.grad[0].tolist()


def test_forward_kl_by_hand() -> None:
    # q = (1/2, 1/2), p = (1/4, 3/4).
    # KL(q || p) = 1/2 ln(1/2 : 1/4) + 1/2 ln(1/2 : 3/4) = 1/2 ln 2 + 1/2 ln(2/3) = 1/2 ln(4/3)
    got = value(logits_of(0.25, 0.75), logits_of(0.5, 0.5))
    assert got == pytest.approx(0.5 * math.log(4 / 3))  # 0.14384
    # d KL(q || p) / dz = p - q = (1/4 - 1/2, 3/4 - 1/2)
    assert gradient(logits_of(0.25, 0.75), logits_of(0.5, 0.5)) == pytest.approx([-0.25, 0.25])


def test_reverse_kl_by_hand_differs_from_forward() -> None:
    # KL(p || q) = 1/4 ln(1/4 : 1/2) + 3/4 ln(3/4 : 1/2) = -1/4 ln 2 + 3/4 ln(3/2)
    got = value(logits_of(0.25, 0.75), logits_of(0.5, 0.5), divergence="reverse_kl")
    assert got == pytest.approx(-0.25 * LN2 + 0.75 * math.log(1.5))  # 0.13081
    assert got != pytest.approx(0.5 * math.log(4 / 3), rel=1e-2)
    # d/dz_v = p_v (ln(p_v / q_v) - KL): 1/4 (-ln 2 - 0.13081), 3/4 (ln 1.5 - 0.13081)
    assert gradient(logits_of(0.25, 0.75), logits_of(0.5, 0.5), divergence="reverse_kl") == pytest.approx(
        [0.25 * (-LN2 - got), 0.75 * (math.log(1.5) - got)]
    )


def test_jsd_by_hand_and_beta_swapped() -> None:
    # q = (1, 0), p = (1/2, 1/2), beta = 1/4: m = 1/4 q + 3/4 p = (1/4 + 3/8, 3/8) = (5/8, 3/8)
    # 1/4 KL(q || m) = 1/4 ln(8/5); 3/4 KL(p || m) = 3/8 ln(4/5) + 3/8 ln(4/3)
    right = 0.25 * math.log(8 / 5) + 0.375 * (math.log(4 / 5) + math.log(4 / 3))
    got = value(logits_of(0.5, 0.5), logits_of(1.0, 0.0), divergence="jsd", beta=0.25)
    assert got == pytest.approx(right)  # 0.14171
    # With the weights swapped: m = 3/4 q + 1/4 p = (7/8, 1/8); 3/4 ln(8/7) + 1/8 ln(4/7) + 1/8 ln 4
    swapped = 0.75 * math.log(8 / 7) + 0.125 * (math.log(4 / 7) + math.log(4))
    assert value(logits_of(0.5, 0.5), logits_of(1.0, 0.0), divergence="jsd", beta=0.75) == pytest.approx(
        swapped
    )
    assert right != pytest.approx(swapped, rel=1e-2)


@pytest.mark.parametrize("support", [{}, {"support": "top_k", "top_k": 2, "tail": "bucket"}])
def test_end_points_of_jsd_are_the_kls_exactly(support: dict[str, object]) -> None:
    student, teacher = random_pair()
    for beta, divergence in ((0.0, "forward_kl"), (1.0, "reverse_kl")):
        got = token_divergence(student, teacher, divergence="jsd", beta=beta, **support)  # type: ignore[arg-type]
        want = token_divergence(student, teacher, divergence=divergence, **support)  # type: ignore[arg-type]
        assert torch.equal(got, want)


def test_one_hot_teacher_gives_the_negative_log_likelihood() -> None:
    # q = (0, 1, 0): KL(q || p) = ln(1 / p_1) = ln 5
    assert value(logits_of(0.5, 0.2, 0.3), logits_of(0.0, 1.0, 0.0)) == pytest.approx(math.log(5))


TOP2 = {"support": "top_k", "top_k": 2}
# The teacher's 2 most likely of q = (1/2, 3/8, 1/8) are 0 and 1. p = (1/4, 1/4, 1/2).
Q2 = logits_of(0.5, 0.375, 0.125)


def test_top_k_renormalising_the_teacher_by_hand() -> None:
    # q over {0, 1}, divided by 7/8: (4/7, 3/7). p stays (1/4, 1/4).
    # 4/7 ln(16/7) + 3/7 ln(12/7)
    right = 4 / 7 * math.log(16 / 7) + 3 / 7 * math.log(12 / 7)
    assert value(P, Q2, **TOP2) == pytest.approx(right)  # 0.70338
    # d/dz = -sum_S q dlogp = p - (4/7, 3/7, 0)
    assert gradient(P, Q2, **TOP2) == pytest.approx([0.25 - 4 / 7, 0.25 - 3 / 7, 0.5])


def test_top_k_renormalising_both_by_hand() -> None:
    # p over {0, 1} becomes (1/2, 1/2): 4/7 ln(8/7) + 3/7 ln(6/7)
    right = 4 / 7 * math.log(8 / 7) + 3 / 7 * math.log(6 / 7)
    got = value(P, Q2, renormalize="both", **TOP2)
    assert got == pytest.approx(right)  # 0.01024
    # Entries outside have no gradient: (1/2 - 4/7, 1/2 - 3/7, 0)
    assert gradient(P, Q2, renormalize="both", **TOP2) == pytest.approx([0.5 - 4 / 7, 0.5 - 3 / 7, 0.0])
    assert got != pytest.approx(value(P, Q2, renormalize="teacher", **TOP2), rel=1e-1)


def test_top_k_renormalising_nobody_by_hand() -> None:
    # 1/2 ln(1/2 : 1/4) + 3/8 ln(3/8 : 1/4) = 1/2 ln 2 + 3/8 ln(3/2)
    assert value(P, Q2, renormalize="none", **TOP2) == pytest.approx(0.5 * LN2 + 0.375 * math.log(1.5))


def test_renormalising_the_student_instead_would_give_another_number() -> None:
    # Wrong: q = (1/2, 3/8) as it is, p rescaled to (1/2, 1/2): 1/2 ln 1 + 3/8 ln(3/4) < 0
    wrong = 0.375 * math.log(0.75)
    for renormalize in ("teacher", "both", "none"):
        assert value(P, Q2, renormalize=renormalize, **TOP2) != pytest.approx(wrong, rel=1e-1)


def test_top_k_of_the_student_would_give_another_number() -> None:
    # The student's 1 most likely entry is 2, the teacher's is 0. renormalize none, k = 1:
    # right: q_0 ln(q_0 / p_0) = 1/2 ln(1/2 : 1/4); wrong: q_2 ln(q_2 / p_2) = 1/8 ln(1/8 : 1/2) < 0
    got = value(P, Q2, support="top_k", top_k=1, renormalize="none")
    assert got == pytest.approx(0.5 * LN2)
    assert got != pytest.approx(0.125 * math.log(0.25), rel=1e-1)


def test_bucket_by_hand() -> None:
    # The rest is q 1/8 and p 1/2: 1/2 ln 2 + 3/8 ln(3/2) + 1/8 ln(1/8 : 1/2) = ... - 1/4 ln 2
    right = 0.5 * LN2 + 0.375 * math.log(1.5) - 0.25 * LN2
    assert value(P, Q2, tail="bucket", **TOP2) == pytest.approx(right)
    # A single entry is left out here, so that the bucket loses nothing: the full divergence
    assert right == pytest.approx(value(P, Q2))
    # Reverse: 1/4 ln(1/2) + 1/4 ln(2/3) + 1/2 ln 4
    reverse = 0.25 * math.log(0.5) + 0.25 * math.log(2 / 3) + 0.5 * math.log(4)
    assert value(P, Q2, tail="bucket", divergence="reverse_kl", **TOP2) == pytest.approx(reverse)


def test_bucket_holds_all_other_entries_together() -> None:
    # k = 1: the rest of q is 1/2, of p is 3/4: 1/2 ln 2 + 1/2 ln(1/2 : 3/4) = 1/2 ln(4/3)
    got = value(P, Q2, support="top_k", top_k=1, tail="bucket")
    assert got == pytest.approx(0.5 * math.log(4 / 3))
    assert got != pytest.approx(value(P, Q2), rel=1e-2)


def test_renormalisation_changes_nothing_beside_a_bucket() -> None:
    student, teacher = random_pair()
    values = [
        token_divergence(student, teacher, support="top_k", top_k=3, tail="bucket", renormalize=renormalize)
        for renormalize in ("teacher", "both", "none")
    ]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


@pytest.mark.parametrize("renormalize", ["teacher", "both", "none"])
@pytest.mark.parametrize("tail", ["drop", "bucket"])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_k_of_the_whole_vocabulary_or_more_is_full_support(
    renormalize: str, tail: str, divergence: str
) -> None:
    student, teacher = random_pair()
    full = token_divergence(student, teacher, divergence=divergence)
    for k in (7, 50):
        got = token_divergence(
            student,
            teacher,
            divergence=divergence,
            support="top_k",
            top_k=k,
            renormalize=renormalize,
            tail=tail,
        )
        torch.testing.assert_close(got, full)


def test_one_entry_with_both_renormalised_is_always_equal() -> None:
    student, teacher = random_pair()
    student.requires_grad_()
    got = token_divergence(student, teacher, support="top_k", top_k=1, renormalize="both")
    got.sum().backward()
    assert not got.any()
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_tiny_tails_keep_their_digits(divergence: str) -> None:
    # Outside the top 1 the student has e^-40 a token, far below what 1 minus a float32 can tell.
    student = torch.tensor([[0.0, -40.0, -40.0]])
    teacher = torch.tensor([[0.0, -1.0, -1.0]])
    leaf = student.clone().requires_grad_()
    got = token_divergence(leaf, teacher, divergence=divergence, support="top_k", top_k=1, tail="bucket")
    want = token_divergence(
        student.double(), teacher.double(), divergence=divergence, support="top_k", top_k=1, tail="bucket"
    )
    assert got.item() == pytest.approx(want.item(), rel=1e-5)
    got.sum().backward()
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()
    if divergence == "forward_kl":  # (1 - q_0) times a half each, since the student's two are alike
        rest = 2 * math.exp(-1) / (1 + 2 * math.exp(-1))
        assert leaf.grad[0].tolist() == pytest.approx([rest, -rest / 2, -rest / 2], rel=1e-5)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_an_empty_tail_on_both_sides_adds_nothing(divergence: str) -> None:
    student = torch.tensor([[1.0, 0.0, -INF, -INF]]).requires_grad_()
    teacher = torch.tensor([[0.0, 1.0, -INF, -INF]])
    got = token_divergence(student, teacher, divergence=divergence, support="top_k", top_k=2, tail="bucket")
    got.sum().backward()
    want = token_divergence(student.detach()[:, :2], teacher[:, :2], divergence=divergence)
    torch.testing.assert_close(got.detach(), want)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_clips_by_hand_and_the_clip_after_the_sum() -> None:
    # q = (1/2, 1/4, 1/4), p = (1/4, 1/4, 1/2): the entries are 1/2 ln 2, 0, -1/4 ln 2.
    entries = [0.5 * LN2, 0.0, -0.25 * LN2]  # 0.34657, 0, -0.17329, in all 0.17329
    assert value() == pytest.approx(sum(entries))
    # entry at 0.1: 0.1 + 0 - 0.17329 = -0.07329; token at 0.1: min(0.17329, 0.1) = 0.1
    entry = value(clip="entry", clip_max=0.1)
    token = value(clip="token", clip_max=0.1)
    assert entry == pytest.approx(0.1 - 0.25 * LN2)
    assert entry < 0
    assert token == pytest.approx(0.1)
    # Gradient of entry: only those below the bound pull, -q_1 dlogp_1 - q_2 dlogp_2 = p/2 - (0, 1/4, 1/4)
    assert gradient(clip="entry", clip_max=0.1) == pytest.approx([0.125, 0.125 - 0.25, 0.25 - 0.25])
    assert gradient(clip="token", clip_max=0.1) == [0.0, 0.0, 0.0]


def test_a_clip_binds_from_above_only() -> None:
    # Entries from below: -1/4 ln 2 = -0.173 stays although its size is above 0.1.
    assert value(clip="entry", clip_max=1.0) == pytest.approx(value())
    assert value(clip="token", clip_max=1.0) == pytest.approx(value())


def test_the_bucket_is_an_entry_that_can_be_clipped() -> None:
    # k = 1, reverse: entries 1/4 ln(1/2) and, in the bucket, 3/4 ln(3/4 : 1/2) = 0.304, clipped at 0.1
    got = value(
        P, Q2, support="top_k", top_k=1, tail="bucket", divergence="reverse_kl", clip="entry", clip_max=0.1
    )
    assert got == pytest.approx(0.25 * math.log(0.5) + 0.1)


def test_an_infinite_token_is_clipped_without_a_gradient() -> None:
    student, teacher = logits_of(1.0, 0.0), logits_of(0.5, 0.5)
    for support in ({}, TOP2):
        assert value(student, teacher, clip="token", clip_max=2.0, **support) == 2.0
        assert gradient(student, teacher, clip="token", clip_max=2.0, **support) == [0.0, 0.0]
        assert gradient(teacher, student, divergence="reverse_kl", clip="token", clip_max=2.0, **support) == [
            0,
            0,
        ]


def test_shift_by_one_position_would_give_another_number() -> None:
    student, teacher = random_pair()
    right = token_divergence(student, teacher).mean()
    shifted = token_divergence(student[1:], teacher[:-1]).mean()
    assert right.item() != pytest.approx(shifted.item(), rel=1e-2)


def test_other_temperature_would_give_another_number() -> None:
    student, teacher = random_pair()
    right = token_divergence(student, teacher).mean()
    assert right.item() != pytest.approx(token_divergence(student / 2, teacher / 2).mean().item(), rel=1e-2)


def test_softmax_over_padding_with_finite_logits_would_give_another_number() -> None:
    student, teacher = random_pair()
    wrong = token_divergence(
        torch.cat([student, torch.zeros(len(student), 3)], dim=1),
        torch.cat([teacher, torch.ones(len(student), 3)], dim=1),
    )
    assert not torch.allclose(wrong, token_divergence(student, teacher), rtol=1e-2)


def test_an_entry_that_only_the_student_rules_out_is_infinite_forward_and_finite_reverse() -> None:
    student, teacher = logits_of(1.0, 0.0), logits_of(0.5, 0.5)
    assert value(student, teacher) == INF
    # KL(p || q) = 1 ln(1 : 1/2) = ln 2
    assert value(student, teacher, divergence="reverse_kl") == pytest.approx(LN2)
    # m = (3/4, 1/4): 1/2 (1/2 ln(2/3) + 1/2 ln 2) + 1/2 ln(4/3), finite
    jsd = 0.25 * (math.log(2 / 3) + LN2) + 0.5 * math.log(4 / 3)
    assert value(student, teacher, divergence="jsd") == pytest.approx(jsd)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"divergence": "backward_kl"}, "divergence: got 'backward_kl'; expected one of"),
        ({"divergence": "nll"}, "divergence: got 'nll', which looks at tokens"),
        ({"support": "all"}, "support: got 'all'"),
        ({"support": "sampled"}, "support: got 'sampled', which looks at tokens"),
        ({"support": "top_k"}, "top_k: got None; expected 1 or more"),
        ({"support": "top_k", "top_k": 0}, "top_k: got 0; expected 1 or more"),
        ({"renormalize": "student"}, "renormalize: got 'student'"),
        ({"tail": "keep"}, "tail: got 'keep'"),
        ({"clip": "row"}, "clip: got 'row'"),
        ({"clip": "token"}, "clip_max: got None; expected a number above 0"),
        ({"clip": "token", "clip_max": 0.0}, "clip_max: got 0.0; expected a number above 0"),
        ({"beta": 1.5}, "beta: got 1.5"),
        ({"top_k": 4}, "top_k: got 4; expected None"),
        ({"clip_max": 0.5}, "clip_max: got 0.5; expected None"),
    ],
)
def test_options_that_are_unknown_or_contradict_each_other_are_refused(
    option: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        token_divergence(torch.zeros(1, 3), torch.zeros(1, 3), **option)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"divergence": "jsd", "support": "sampled"}, "jsd has no sampled form"),
        ({"support": "sampled", "clip": "entry", "clip_max": 1.0}, "a sampled estimate has no entries"),
        ({"divergence": "nll", "clip": "token", "clip_max": 1.0}, "uses no teacher distribution"),
        ({"estimator": "k2"}, "estimator: got 'k2'"),
        ({"ratio_clip": 0.0}, "ratio_clip: got 0.0"),
    ],
)
def test_contradictions_of_an_objective_are_refused(option: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DivergenceOptions(**option)  # type: ignore[arg-type]


def test_gate_and_reward_are_checked() -> None:
    with pytest.raises(ValueError, match=r"gate\.top_k: got 0; expected 1 or more"):
        GateOptions(threshold=0.8, coef=1.0, top_k=0)
    with pytest.raises(ValueError, match=r"reward\.clip: got 0.0; expected a number above 0"):
        RewardOptions(coef=1.0, clip=0.0)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"student_logits has shape \(2, 3\), teacher_logits has shape \(2, 4\)"
    ):
        token_divergence(torch.zeros(2, 3), torch.zeros(2, 4))
