"""Per-token divergences: hand-derived numbers, float64 reference, discriminating and hard cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trd_ray.losses import token_divergence
from trd_ray.losses.reference import reference_divergence

INF = math.inf


def logits_of(*probabilities: float) -> torch.Tensor:
    """[1, V] logits whose softmax is `probabilities`, which sum to 1."""
    return torch.tensor([[math.log(p) if p else -INF for p in probabilities]], dtype=torch.float64)


def random_pair(*, num: int = 5, vocab: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, num, vocab, generator=generator, dtype=torch.float64).mul(2).unbind()
    return student, teacher


def test_forward_kl_by_hand() -> None:
    # q = (1/2, 1/2), p = (1/4, 3/4).
    # KL(q || p) = 1/2 ln(1/2 : 1/4) + 1/2 ln(1/2 : 3/4) = 1/2 ln 2 + 1/2 ln(2/3) = 1/2 ln(4/3)
    value = token_divergence(logits_of(0.25, 0.75), logits_of(0.5, 0.5), divergence="forward_kl")
    assert value.tolist() == pytest.approx([0.5 * math.log(4 / 3)])  # 0.14384


def test_reverse_kl_by_hand_differs_from_forward() -> None:
    # KL(p || q) = 1/4 ln(1/4 : 1/2) + 3/4 ln(3/4 : 1/2) = -1/4 ln 2 + 3/4 ln(3/2)
    value = token_divergence(logits_of(0.25, 0.75), logits_of(0.5, 0.5), divergence="reverse_kl")
    assert value.tolist() == pytest.approx([-0.25 * math.log(2) + 0.75 * math.log(1.5)])  # 0.13081
    assert value.item() != pytest.approx(0.5 * math.log(4 / 3), rel=1e-2)


def test_gradient_by_hand() -> None:
    # d KL(q || p) / dz = p - q = (1/4 - 1/2, 3/4 - 1/2)
    student = logits_of(0.25, 0.75).requires_grad_()
    token_divergence(student, logits_of(0.5, 0.5)).sum().backward()
    assert student.grad is not None
    assert student.grad.tolist() == [pytest.approx([-0.25, 0.25])]


def test_one_hot_teacher_gives_the_negative_log_likelihood() -> None:
    # q = (0, 1, 0): KL(q || p) = ln(1 / p_1) = ln 5
    value = token_divergence(logits_of(0.5, 0.2, 0.3), logits_of(0.0, 1.0, 0.0))
    assert value.tolist() == pytest.approx([math.log(5)])


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_agrees_with_the_float64_reference(divergence: str) -> None:
    student, teacher = random_pair()
    student.requires_grad_()
    values = token_divergence(student, teacher, divergence=divergence)
    values.sum().backward()
    expected, gradient = reference_divergence(
        student.detach().numpy(), teacher.numpy(), divergence=divergence
    )
    assert student.grad is not None
    np.testing.assert_allclose(values.detach().numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(student.grad.numpy(), gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_gradcheck(divergence: str) -> None:
    student, teacher = random_pair(num=3, vocab=5)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: token_divergence(s, teacher, divergence=divergence), student)


def test_gradient_reaches_the_student_only() -> None:
    student, teacher = random_pair()
    teacher.requires_grad_()
    student.requires_grad_()
    token_divergence(student, teacher, divergence="reverse_kl").sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_shift_by_one_position_would_give_another_number() -> None:
    student, teacher = random_pair()
    right = token_divergence(student, teacher).mean()
    shifted = token_divergence(student[1:], teacher[:-1]).mean()
    assert right.item() != pytest.approx(shifted.item(), rel=1e-2)


def test_other_temperature_would_give_another_number() -> None:
    student, teacher = random_pair()
    right = token_divergence(student, teacher).mean()
    assert right.item() != pytest.approx(token_divergence(student / 2, teacher / 2).mean().item(), rel=1e-2)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_padded_entries_at_minus_infinity_change_nothing(divergence: str) -> None:
    student, teacher = random_pair()
    padding = torch.full((len(student), 3), -INF, dtype=torch.float64)
    padded = torch.cat([student, padding], dim=1).requires_grad_()
    bare = student.clone().requires_grad_()
    value = token_divergence(padded, torch.cat([teacher, padding], dim=1), divergence=divergence)
    expected = token_divergence(bare, teacher, divergence=divergence)
    value.sum().backward()
    expected.sum().backward()
    assert padded.grad is not None
    assert bare.grad is not None
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(padded.grad[:, : student.shape[1]], bare.grad)
    assert not padded.grad[:, student.shape[1] :].any()


def test_softmax_over_padding_with_finite_logits_would_give_another_number() -> None:
    student, teacher = random_pair()
    wrong = token_divergence(
        torch.cat([student, torch.zeros(len(student), 3)], dim=1),
        torch.cat([teacher, torch.ones(len(student), 3)], dim=1),
    )
    assert not torch.allclose(wrong, token_divergence(student, teacher), rtol=1e-2)


def test_an_entry_that_only_the_student_rules_out_is_infinite_forward_and_finite_reverse() -> None:
    student, teacher = logits_of(1.0, 0.0), logits_of(0.5, 0.5)
    assert token_divergence(student, teacher, divergence="forward_kl").item() == INF
    # KL(p || q) = 1 ln(1 : 1/2) = ln 2
    assert token_divergence(student, teacher, divergence="reverse_kl").item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
def test_large_logits_stay_finite_with_finite_gradients(divergence: str, scale: float) -> None:
    student, teacher = random_pair()
    student = (student * scale).float().requires_grad_()
    value = token_divergence(student, (teacher * scale).float(), divergence=divergence)
    value.sum().backward()
    assert student.grad is not None
    assert torch.isfinite(value).all()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_equal_logits_give_zero_and_no_gradient(divergence: str) -> None:
    student, _ = random_pair()
    teacher = student + 3.0  # a constant shift is the same distribution
    student.requires_grad_()
    value = token_divergence(student, teacher, divergence=divergence)
    value.sum().backward()
    assert student.grad is not None
    torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-12, rtol=0)
    torch.testing.assert_close(student.grad, torch.zeros_like(student.grad), atol=1e-12, rtol=0)


def test_bfloat16_logits_are_computed_in_float32() -> None:
    student, teacher = (logits.to(torch.bfloat16) for logits in random_pair())
    value = token_divergence(student, teacher)
    expected, _ = reference_divergence(
        student.double().numpy(), teacher.double().numpy(), divergence="forward_kl"
    )
    assert value.dtype == torch.float32
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-5)


def test_no_tokens_give_no_values_and_a_valid_backward() -> None:
    student = torch.zeros(0, 5, requires_grad=True)
    value = token_divergence(student, torch.zeros(0, 5))
    value.sum().backward()
    assert value.shape == (0,)
    assert student.grad is not None


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"divergence": "jsd"}, "divergence: 'jsd' is not offered yet"),
        ({"support": "top_k", "top_k": 5}, "support: 'top_k' is not offered yet"),
        ({"support": "sampled"}, "support: 'sampled' is not offered yet"),
        ({"clip": "token", "clip_max": 1.0}, "clip: 'token' is not offered yet"),
        ({"divergence": "backward_kl"}, "divergence: got 'backward_kl'; expected one of"),
        ({"support": "all"}, "support: got 'all'"),
        ({"renormalize": "student"}, "renormalize: got 'student'"),
        ({"tail": "keep"}, "tail: got 'keep'"),
        ({"clip": "row"}, "clip: got 'row'"),
        ({"beta": 1.5}, "beta: got 1.5"),
        ({"top_k": 4}, "top_k: got 4; expected None"),
        ({"clip_max": 0.5}, "clip_max: got 0.5; expected None"),
    ],
)
def test_options_that_are_unknown_or_not_offered_are_refused(option: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        token_divergence(torch.zeros(1, 3), torch.zeros(1, 3), **option)  # type: ignore[arg-type]


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"student_logits has shape \(2, 3\), teacher_logits has shape \(2, 4\)"
    ):
        token_divergence(torch.zeros(2, 3), torch.zeros(2, 4))
