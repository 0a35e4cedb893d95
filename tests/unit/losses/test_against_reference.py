"""`token_divergence` gives the float64 reference's values and gradients, for every combination."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.losses.cases import adversarial_pairs, arguments, divergence_grid, name_of, random_pair
from trd_ray.losses import DivergenceOptions, token_divergence
from trd_ray.losses.reference import reference_divergence

GRID = divergence_grid()
PAIRS = adversarial_pairs()


def check(student: Tensor, teacher: Tensor, options: DivergenceOptions) -> None:
    leaf = student.clone().requires_grad_()
    values = token_divergence(leaf, teacher, **arguments(options))
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    expected, expected_gradient = reference_divergence(student.numpy(), teacher.numpy(), options)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(values.detach().numpy(), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradient.numpy(), expected_gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("options", GRID, ids=name_of)
def test_random_logits(options: DivergenceOptions) -> None:
    check(*random_pair(), options)


@pytest.mark.parametrize("options", GRID, ids=name_of)
def test_adversarial_logits(options: DivergenceOptions) -> None:
    for name, (student, teacher) in PAIRS.items():
        if name != "flat" or options.support == "full" or options.top_k == 7:
            check(student, teacher, options)


@pytest.mark.parametrize("options", divergence_grid(top_k=(1, 3)), ids=name_of)
def test_which_of_equal_entries_is_chosen_does_not_change_the_value(options: DivergenceOptions) -> None:
    student, teacher = PAIRS["flat"]
    expected, _ = reference_divergence(student.numpy(), teacher.numpy(), options)
    value = token_divergence(student, teacher, **arguments(options))
    np.testing.assert_allclose(value.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("options", GRID, ids=name_of)
def test_float32_is_close_to_the_reference(options: DivergenceOptions) -> None:
    student, teacher = random_pair(seed=5)
    leaf = student.float().requires_grad_()
    values = token_divergence(leaf, teacher.float(), **arguments(options))
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    expected, expected_gradient = reference_divergence(student.numpy(), teacher.numpy(), options)
    assert values.dtype == gradient.dtype == torch.float32
    np.testing.assert_allclose(values.detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient.numpy(), expected_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", divergence_grid(top_k=(3,)), ids=name_of)
def test_bfloat16_logits_are_computed_in_float32(options: DivergenceOptions) -> None:
    student, teacher = (logits.to(torch.bfloat16) for logits in random_pair(seed=6))
    value = token_divergence(student, teacher, **arguments(options))
    expected, _ = reference_divergence(student.double().numpy(), teacher.double().numpy(), options)
    assert value.dtype == torch.float32
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", GRID, ids=name_of)
def test_float32_extremes_stay_finite(options: DivergenceOptions) -> None:
    for student, teacher in PAIRS.values():
        leaf = student.float().requires_grad_()
        values = token_divergence(leaf, teacher.float(), **arguments(options))
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
        assert torch.isfinite(values).all()
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("options", divergence_grid(top_k=(2,)), ids=name_of)
def test_gradcheck(options: DivergenceOptions) -> None:
    student, teacher = random_pair(num=3, vocab=5)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: token_divergence(s, teacher, **arguments(options)), student)


@pytest.mark.parametrize("options", divergence_grid(top_k=(3,)), ids=name_of)
def test_gradient_reaches_the_student_only_and_inputs_are_kept(options: DivergenceOptions) -> None:
    student, teacher = random_pair()
    before = student.clone(), teacher.clone()
    teacher.requires_grad_()
    student.requires_grad_()
    token_divergence(student, teacher, **arguments(options)).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None
    torch.testing.assert_close((student.detach(), teacher.detach()), before, rtol=0, atol=0)


@pytest.mark.parametrize("options", divergence_grid(top_k=(3,)), ids=name_of)
def test_no_tokens_give_no_values_and_a_valid_backward(options: DivergenceOptions) -> None:
    student = torch.zeros(0, 5, requires_grad=True)
    value = token_divergence(student, torch.zeros(0, 5), **arguments(options))
    value.sum().backward()
    assert value.shape == (0,)
    assert student.grad is not None


def test_a_broken_student_is_not_hidden() -> None:
    student, teacher = random_pair()
    student[1, 2] = torch.nan
    for options in divergence_grid(top_k=(3,)):
        if options.support == "top_k" and options.renormalize == "both":
            continue  # which has no part outside the support
        value = token_divergence(student, teacher, **arguments(options))
        assert value.isnan().tolist() == [False, True, False, False, False], name_of(options)
