"""The chunked divergence gives the values and gradients of the plain one, whatever the chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trd_ray.losses import chunked_token_divergence, token_divergence

VOCAB, WIDTH, TEACHER_WIDTH = 11, 6, 5


def make_inputs(
    *, num: int, seed: int = 0, dtype: torch.dtype = torch.float64, rows: int = VOCAB
) -> list[Tensor]:
    """student_hidden, student_head, teacher_hidden, teacher_head."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((num, WIDTH), (rows, WIDTH), (num, TEACHER_WIDTH), (rows, TEACHER_WIDTH))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def plain(inputs: list[Tensor], *, divergence: str = "forward_kl") -> Tensor:
    student_hidden, student_head, teacher_hidden, teacher_head = inputs
    return token_divergence(
        student_hidden @ student_head.T, teacher_hidden @ teacher_head.T, divergence=divergence
    )


def gradients(values: Tensor, weights: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad((values * weights).sum(), inputs[:2])


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_values_and_gradients_equal_the_plain_divergence(divergence: str, chunk_size: int) -> None:
    inputs = make_inputs(num=7)
    for tensor in inputs[:2]:
        tensor.requires_grad_()
    weights = torch.linspace(-1, 2, 7, dtype=torch.float64)
    chunked = chunked_token_divergence(*inputs, chunk_size=chunk_size, divergence=divergence)
    expected = plain(inputs, divergence=divergence)
    torch.testing.assert_close(chunked, expected)
    for got, want in zip(
        gradients(chunked, weights, inputs), gradients(expected, weights, inputs), strict=True
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_gradcheck(divergence: str) -> None:
    student_hidden, student_head, teacher_hidden, teacher_head = make_inputs(num=4)
    student_hidden.requires_grad_()
    student_head.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda hidden, head: chunked_token_divergence(
            hidden, head, teacher_hidden, teacher_head, chunk_size=3, divergence=divergence
        ),
        (student_hidden, student_head),
    )


def test_gradient_reaches_the_student_only() -> None:
    inputs = make_inputs(num=4)
    for tensor in inputs:
        tensor.requires_grad_()
    chunked_token_divergence(*inputs, chunk_size=2).sum().backward()
    assert [tensor.grad is not None for tensor in inputs] == [True, True, False, False]


def test_a_frozen_head_gets_no_gradient() -> None:
    inputs = make_inputs(num=4)
    inputs[0].requires_grad_()
    chunked_token_divergence(*inputs, chunk_size=2).sum().backward()
    assert inputs[0].grad is not None
    assert inputs[1].grad is None


def test_rows_beyond_the_shared_vocabulary_are_left_out() -> None:
    student_hidden, student_head, teacher_hidden, teacher_head = make_inputs(num=5, rows=VOCAB + 4)
    student_head.requires_grad_()
    cut = [student_hidden, student_head[:VOCAB], teacher_hidden, teacher_head[:VOCAB]]
    # The two heads are padded differently, as 151,936 and 152,064 rows over one tokenizer are.
    value = chunked_token_divergence(
        student_hidden,
        student_head,
        teacher_hidden,
        teacher_head[: VOCAB + 2],
        chunk_size=2,
        vocab_size=VOCAB,
    )
    torch.testing.assert_close(value, plain(cut))
    (gradient,) = torch.autograd.grad(value.sum(), student_head)
    assert gradient.shape == student_head.shape
    assert not gradient[VOCAB:].any()
    padded = plain([student_hidden, student_head, teacher_hidden, teacher_head])
    assert not torch.allclose(value, padded, rtol=1e-2)


def test_bfloat16_is_multiplied_and_summed_in_float32() -> None:
    inputs = make_inputs(num=600, dtype=torch.bfloat16)
    exact = [tensor.double() for tensor in inputs]
    for tensor in (*inputs[:2], *exact[:2]):
        tensor.requires_grad_()
    value = chunked_token_divergence(*inputs, chunk_size=10)
    expected = plain(exact)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)
    ones = torch.ones(600)
    hidden_gradient, head_gradient = gradients(value, ones, inputs)
    _, expected_head = gradients(expected, ones.double(), exact)
    assert hidden_gradient.dtype == head_gradient.dtype == torch.bfloat16
    # One rounding to bfloat16 (8 bits) at the end; a running sum in bfloat16 over 60 chunks is far worse.
    torch.testing.assert_close(head_gradient.double(), expected_head, rtol=2**-8, atol=1e-3)


def test_no_tokens_give_zero_and_a_valid_backward() -> None:
    inputs = make_inputs(num=0)
    for tensor in inputs[:2]:
        tensor.requires_grad_()
    value = chunked_token_divergence(*inputs, chunk_size=4)
    loss = value.sum()
    loss.backward()
    assert loss.item() == 0.0
    assert inputs[0].grad is not None
    assert inputs[1].grad is not None
    assert not inputs[1].grad.any()


def test_only_a_chunk_of_logits_exists_at_a_time() -> None:
    shapes: list[tuple[int, ...]] = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.ndim == 2 and result.shape[1] == VOCAB:
                shapes.append(tuple(result.shape))
            return result

    inputs = make_inputs(num=20)
    inputs[0].requires_grad_()
    with Recorder():
        chunked_token_divergence(*inputs, chunk_size=4).sum().backward()
    assert shapes
    assert max(rows for rows, _ in shapes) <= WIDTH  # heads [VOCAB, D] transposed to [D, VOCAB]; chunks of 4


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    chunk_size=st.integers(1, 12),
    num_ranks=st.integers(1, 4),
    num_padding=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_split_padding_and_chunks_change_neither_loss_nor_gradient(
    lengths: list[int], chunk_size: int, num_ranks: int, num_padding: int, seed: int
) -> None:
    """The sum over ranks of sum(divergence) / num_loss_tokens is the global token mean."""
    num = sum(lengths)
    inputs = make_inputs(num=num, seed=seed)
    whole_head = inputs[1].clone().requires_grad_()
    whole = plain([inputs[0], whole_head, *inputs[2:]]).mean()
    (whole_gradient,) = torch.autograd.grad(whole, whole_head)

    junk = torch.full((num_padding, WIDTH), 9.0, dtype=torch.float64)
    head = torch.cat([inputs[1], junk]).requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    sequences = torch.arange(num).split(lengths)
    for rank in range(num_ranks):
        for rows in sequences[rank::num_ranks]:
            values = chunked_token_divergence(
                inputs[0][rows], head, inputs[2][rows], inputs[3], chunk_size=chunk_size, vocab_size=VOCAB
            )
            total = total + values.sum() / num
    (gradient,) = torch.autograd.grad(total, head)
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(gradient[:VOCAB], whole_gradient)


def test_mean_of_micro_batch_means_would_give_another_number() -> None:
    values = chunked_token_divergence(*make_inputs(num=6), chunk_size=4)
    right = values.mean()
    wrong = torch.stack([values[:1].mean(), values[1:].mean()]).mean()
    assert right.item() != pytest.approx(wrong.item(), rel=1e-2)


def test_invalid_arguments_are_refused() -> None:
    inputs = make_inputs(num=3)
    with pytest.raises(ValueError, match="chunk_size: got 0"):
        chunked_token_divergence(*inputs, chunk_size=0)
    with pytest.raises(ValueError, match="vocab_size: got 12; expected 1 to 11"):
        chunked_token_divergence(*inputs, chunk_size=1, vocab_size=12)
    with pytest.raises(ValueError, match="vocab_size: not given"):
        chunked_token_divergence(inputs[0], inputs[1], inputs[2], inputs[3][:-1], chunk_size=1)
    with pytest.raises(ValueError, match="'student_hidden'"):
        chunked_token_divergence(inputs[0][:2], *inputs[1:], chunk_size=1)
    with pytest.raises(ValueError, match="not offered yet"):
        chunked_token_divergence(*inputs, chunk_size=1, divergence="jsd")
