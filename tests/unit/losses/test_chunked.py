"""The chunked forms give the values and gradients of the plain one, whatever the chunks and the heads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.losses.cases import arguments, divergence_grid, name_of
from tests.unit.losses.test_objective import GATE, OPTIONS, REWARD, objective_name, precomputed
from trd_ray.losses import (
    DivergenceOptions,
    HiddenTeacher,
    LogitTransform,
    ObjectiveOptions,
    ObjectiveOutput,
    TokenBatch,
    chunked,
    chunked_objective,
    chunked_token_divergence,
    token_divergence,
)

VOCAB, WIDTH, TEACHER_WIDTH = 11, 6, 5
GRID = divergence_grid(top_k=(3,))
IDENTITY = LogitTransform()
MIXED = ObjectiveOptions(
    divergence=DivergenceOptions(divergence="reverse_kl", support="top_k", top_k=3, tail="bucket"),
    gate=GATE,
    reward=REWARD,
)


def make_inputs(
    *, num: int, seed: int = 0, dtype: torch.dtype = torch.float64, rows: int = VOCAB
) -> list[Tensor]:
    """student_hidden, student_head, teacher_hidden, teacher_head."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((num, WIDTH), (rows, WIDTH), (num, TEACHER_WIDTH), (rows, TEACHER_WIDTH))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def make_tokens(num: int, seed: int = 0) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    return TokenBatch(
        target_ids=torch.randint(VOCAB, (num,), generator=generator),
        weights=torch.rand(num, generator=generator, dtype=torch.float64),
        rollout_logprobs=-3 * torch.rand(num, generator=generator, dtype=torch.float64),
        advantages=torch.randn(num, generator=generator, dtype=torch.float64),
    )


def rows_of(tokens: TokenBatch, rows: Tensor | slice) -> TokenBatch:
    assert tokens.rollout_logprobs is not None and tokens.advantages is not None
    return TokenBatch(
        target_ids=tokens.target_ids[rows],
        weights=tokens.weights[rows],
        rollout_logprobs=tokens.rollout_logprobs[rows],
        advantages=tokens.advantages[rows],
    )


def objective(
    inputs: list[Tensor],
    tokens: TokenBatch,
    options: ObjectiveOptions,
    *,
    chunk_size: int = 3,
    student: LogitTransform = IDENTITY,
    teacher: LogitTransform = IDENTITY,
) -> ObjectiveOutput:
    return chunked_objective(
        *inputs[:2],
        HiddenTeacher(hidden=inputs[2], head=inputs[3], transform=teacher),
        tokens,
        options=options,
        chunk_size=chunk_size,
        vocab_size=VOCAB,
        transform=student,
    )


def plain(inputs: list[Tensor], **options: object) -> Tensor:
    student_hidden, student_head, teacher_hidden, teacher_head = inputs
    return token_divergence(student_hidden @ student_head.T, teacher_hidden @ teacher_head.T, **options)  # type: ignore[arg-type]


def require_grad(inputs: list[Tensor]) -> list[Tensor]:
    for tensor in inputs[:2]:
        tensor.requires_grad_()
    return inputs


@pytest.mark.parametrize("options", GRID, ids=name_of)
def test_values_and_gradients_equal_the_plain_divergence(options: DivergenceOptions) -> None:
    inputs = require_grad(make_inputs(num=7))
    upstream = torch.linspace(-1, 2, 7, dtype=torch.float64)
    expected = plain(inputs, **arguments(options))
    want = torch.autograd.grad((expected * upstream).sum(), inputs[:2])
    for chunk_size in (1, 3, 7, 100):
        values = chunked_token_divergence(*inputs, chunk_size=chunk_size, **arguments(options))  # type: ignore[arg-type]
        torch.testing.assert_close(values, expected)
        got = torch.autograd.grad((values * upstream).sum(), inputs[:2])
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("options", GRID, ids=name_of)
def test_the_objective_is_the_weighted_sum_of_divergences(options: DivergenceOptions) -> None:
    inputs, tokens = require_grad(make_inputs(num=7)), make_tokens(7)
    expected = plain(inputs, **arguments(options))
    want = torch.autograd.grad((expected * tokens.weights).sum(), inputs[:2])
    for chunk_size in (1, 3, 7, 100):
        output = objective(inputs, tokens, ObjectiveOptions(divergence=options), chunk_size=chunk_size)
        torch.testing.assert_close(output.token_values, expected.detach())
        torch.testing.assert_close(torch.autograd.grad(output.loss, inputs[:2]), want)


@pytest.mark.parametrize("options", OPTIONS, ids=objective_name)
def test_chunks_of_more_rows_than_the_arithmetic_takes_at_once(
    options: ObjectiveOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    num = 11
    monkeypatch.setattr(chunked, "ENTRIES_AT_ONCE", 4 * VOCAB + 1)
    inputs, tokens = require_grad(make_inputs(num=num)), make_tokens(num)
    bent = LogitTransform(softcap=2.0)
    few = objective(inputs, tokens, options, chunk_size=3, student=bent)
    many = objective(inputs, tokens, options, chunk_size=9, student=bent)
    torch.testing.assert_close(many.token_values, few.token_values)
    torch.testing.assert_close(many.student_logprobs, few.student_logprobs)
    got, want = (torch.autograd.grad(output.loss, inputs[:2]) for output in (many, few))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("options", GRID, ids=name_of)
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_scale_and_softcap_on_either_side(options: DivergenceOptions, softcap: float | None) -> None:
    inputs, tokens = require_grad(make_inputs(num=5)), make_tokens(5)

    def bend(logits: Tensor, scale: float) -> Tensor:
        return scale * logits if softcap is None else softcap * torch.tanh(scale * logits / softcap)

    expected = token_divergence(
        bend(inputs[0] @ inputs[1].T, 0.7), bend(inputs[2] @ inputs[3].T, 1.3), **arguments(options)
    )
    want = torch.autograd.grad((expected * tokens.weights).sum(), inputs[:2])
    output = objective(
        inputs,
        tokens,
        ObjectiveOptions(divergence=options),
        student=LogitTransform(scale=0.7, softcap=softcap),
        teacher=LogitTransform(scale=1.3, softcap=softcap),
    )
    torch.testing.assert_close(output.token_values, expected.detach())
    torch.testing.assert_close(torch.autograd.grad(output.loss, inputs[:2]), want)


def test_a_softcap_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"softcap: got 0\.0"):
        LogitTransform(softcap=0.0)


@pytest.mark.parametrize("options", [*OPTIONS, MIXED], ids=objective_name)
def test_gradcheck_of_the_objective(options: ObjectiveOptions) -> None:
    inputs, tokens = require_grad(make_inputs(num=3, seed=4)), make_tokens(3, seed=4)
    assert torch.autograd.gradcheck(
        lambda hidden, head: objective([hidden, head, *inputs[2:]], tokens, options, chunk_size=2).loss,
        (inputs[0], inputs[1]),
        fast_mode=True,
    )


@pytest.mark.parametrize("options", GRID, ids=name_of)
def test_gradcheck_of_the_divergence(options: DivergenceOptions) -> None:
    inputs = require_grad(make_inputs(num=3, seed=4))
    assert torch.autograd.gradcheck(
        lambda hidden, head: chunked_token_divergence(
            hidden, head, *inputs[2:], chunk_size=2, **arguments(options)
        ),
        (inputs[0], inputs[1]),
        fast_mode=True,
    )


def test_the_incoming_factor_scales_the_gradients_and_backward_may_run_twice() -> None:
    inputs, tokens = require_grad(make_inputs(num=5)), make_tokens(5)
    loss = objective(inputs, tokens, MIXED).loss
    once = torch.autograd.grad(loss, inputs[:2], retain_graph=True)
    thrice = torch.autograd.grad(3 * loss, inputs[:2])
    for a, b in zip(once, thrice, strict=True):
        torch.testing.assert_close(3 * a, b)


def test_backward_needs_no_head() -> None:
    """ZeRO-3 releases a gathered parameter between the passes."""
    inputs, tokens = require_grad(make_inputs(num=5)), make_tokens(5)
    want = torch.autograd.grad(objective(inputs, tokens, MIXED).loss, inputs[:2])
    loss = objective(inputs, tokens, MIXED).loss
    inputs[1].data.fill_(torch.nan)
    inputs[3].fill_(torch.nan)
    torch.testing.assert_close(torch.autograd.grad(loss, inputs[:2]), want)


def test_gradient_reaches_the_student_only() -> None:
    for call in (
        lambda inputs: chunked_token_divergence(*inputs, chunk_size=2).sum(),
        lambda inputs: objective(inputs, make_tokens(4), MIXED).loss,
    ):
        inputs = make_inputs(num=4)
        for tensor in inputs:
            tensor.requires_grad_()
        call(inputs).backward()
        assert [tensor.grad is not None for tensor in inputs] == [True, True, False, False]


@pytest.mark.parametrize("trained", [0, 1])
def test_only_what_is_trained_gets_a_gradient(trained: int) -> None:
    inputs, tokens = require_grad(make_inputs(num=4)), make_tokens(4)
    both = torch.autograd.grad(objective(inputs, tokens, MIXED).loss, inputs[:2])
    frozen = make_inputs(num=4)
    frozen[trained].requires_grad_()
    objective(frozen, tokens, MIXED).loss.backward()
    assert frozen[1 - trained].grad is None
    torch.testing.assert_close(frozen[trained].grad, both[trained])


def test_a_head_tied_to_the_embedding_gets_both_gradients() -> None:
    inputs, tokens = make_inputs(num=4), make_tokens(4)
    ids = torch.tensor([1, 5, 5, 9])

    def gradient(plainly: bool) -> Tensor:
        tied = inputs[1].clone().requires_grad_()
        hidden = torch.nn.functional.embedding(ids, tied).tanh()
        made = [hidden, tied, *inputs[2:]]
        loss = (
            (plain(made) * tokens.weights).sum()
            if plainly
            else objective(made, tokens, ObjectiveOptions()).loss
        )
        return torch.autograd.grad(loss, tied)[0]

    torch.testing.assert_close(gradient(False), gradient(True))


def test_without_a_gradient_only_the_forward_products_are_made() -> None:
    counts: list[int] = []

    class Counter(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            counts[-1] += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_)
            return func(*args, **(kwargs or {}))

    inputs, tokens = require_grad(make_inputs(num=6)), make_tokens(6)
    for grad in (False, True):
        counts.append(0)
        with Counter(), torch.set_grad_enabled(grad):
            output = objective(inputs, tokens, ObjectiveOptions(), chunk_size=2)
            assert output.loss.requires_grad is grad
            if grad:
                output.loss.backward()
    # Three chunks: the logits of both sides; with gradients, two products more. None is made twice.
    assert counts == [6, 12]


def test_rows_beyond_the_shared_vocabulary_are_left_out() -> None:
    student_hidden, student_head, teacher_hidden, teacher_head = make_inputs(num=5, rows=VOCAB + 4)
    student_head.requires_grad_()
    tokens = make_tokens(5)
    cut = [student_hidden, student_head[:VOCAB], teacher_hidden, teacher_head[:VOCAB]]
    # The two heads are padded differently, as 151,936 and 152,064 rows over one tokenizer are.
    uneven = [student_hidden, student_head, teacher_hidden, teacher_head[: VOCAB + 2]]
    value = chunked_token_divergence(*uneven, chunk_size=2, vocab_size=VOCAB)
    torch.testing.assert_close(value, plain(cut))
    padded = plain([student_hidden, student_head, teacher_hidden, teacher_head])
    assert not torch.allclose(value, padded, rtol=1e-2)
    output = objective(uneven, tokens, ObjectiveOptions())
    torch.testing.assert_close(output.token_values, plain(cut).detach())
    for loss in (value.sum(), output.loss):
        (gradient,) = torch.autograd.grad(loss, student_head)
        assert gradient.shape == student_head.shape
        assert not gradient[VOCAB:].any()


def test_bfloat16_is_multiplied_and_summed_in_float32() -> None:
    inputs = require_grad(make_inputs(num=600, dtype=torch.bfloat16))
    exact = require_grad([tensor.detach().double() for tensor in inputs])
    expected = plain(exact)
    _, expected_head = torch.autograd.grad(expected.sum(), exact[:2])
    value = chunked_token_divergence(*inputs, chunk_size=10)
    tokens = TokenBatch(target_ids=torch.zeros(600, dtype=torch.int64), weights=torch.ones(600))
    output = objective(inputs, tokens, ObjectiveOptions(), chunk_size=10)
    for values, loss in ((value.detach(), value.sum()), (output.token_values, output.loss)):
        assert values.dtype == torch.float32
        torch.testing.assert_close(values.double(), expected.detach(), rtol=1e-4, atol=1e-5)
        hidden_gradient, head_gradient = torch.autograd.grad(loss, inputs[:2])
        assert hidden_gradient.dtype == head_gradient.dtype == torch.bfloat16
        # One rounding to bfloat16 (8 bits) at the end; a running sum in bfloat16 over 60 chunks is far worse.
        torch.testing.assert_close(head_gradient.double(), expected_head, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("options", [*OPTIONS, MIXED], ids=objective_name)
def test_no_tokens_give_zero_and_a_valid_backward(options: ObjectiveOptions) -> None:
    inputs = require_grad(make_inputs(num=0))
    loss = objective(inputs, make_tokens(0), options).loss
    loss.backward()
    assert loss.item() == 0.0
    assert inputs[0].grad is not None
    assert inputs[1].grad is not None
    assert not inputs[1].grad.any()


def test_no_tokens_give_no_divergences_and_a_valid_backward() -> None:
    inputs = require_grad(make_inputs(num=0))
    chunked_token_divergence(*inputs, chunk_size=4).sum().backward()
    assert inputs[1].grad is not None
    assert not inputs[1].grad.any()


@pytest.mark.parametrize("options", [*OPTIONS, MIXED], ids=objective_name)
def test_only_a_chunk_of_logits_exists_at_a_time(options: ObjectiveOptions) -> None:
    most = 0

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal most
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.ndim == 2 and result.shape[1] == VOCAB:
                most = max(most, result.shape[0])
            return result

    inputs = require_grad(make_inputs(num=20))
    with Recorder():
        objective(inputs, make_tokens(20), options, chunk_size=4).loss.backward()
    assert 4 <= most <= WIDTH  # heads [VOCAB, D] transposed to [D, VOCAB]; chunks of 4


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    chunk_size=st.integers(1, 12),
    num_ranks=st.integers(1, 4),
    num_padding=st.integers(0, 3),
    seed=st.integers(0, 1000),
    options=st.sampled_from([*OPTIONS, MIXED]),
)
def test_split_padding_and_chunks_change_neither_loss_nor_gradient(
    lengths: list[int],
    chunk_size: int,
    num_ranks: int,
    num_padding: int,
    seed: int,
    options: ObjectiveOptions,
) -> None:
    """The sum over ranks and micro-batches is the whole, since each token carries its weight."""
    num = sum(lengths)
    inputs, tokens = make_inputs(num=num, seed=seed), make_tokens(num, seed=seed)
    whole_head = inputs[1].clone().requires_grad_()
    whole = objective([inputs[0], whole_head, *inputs[2:]], tokens, options, chunk_size=num).loss
    (whole_gradient,) = torch.autograd.grad(whole, whole_head)

    junk = torch.full((num_padding, WIDTH), 9.0, dtype=torch.float64)
    head = torch.cat([inputs[1], junk]).requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    sequences = torch.arange(num).split(lengths)
    for rank in range(num_ranks):
        for rows in sequences[rank::num_ranks]:
            share = [inputs[0][rows], head, inputs[2][rows], inputs[3]]
            total = total + objective(share, rows_of(tokens, rows), options, chunk_size=chunk_size).loss
    (gradient,) = torch.autograd.grad(total, head)
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(gradient[:VOCAB], whole_gradient, rtol=1e-7, atol=1e-10)
    assert not gradient[VOCAB:].any()


def test_precomputed_top_k_and_hidden_states_agree_through_a_head() -> None:
    inputs, tokens = require_grad(make_inputs(num=6)), make_tokens(6)
    options = ObjectiveOptions(divergence=DivergenceOptions(support="top_k", top_k=4, tail="bucket"))
    hidden = objective(inputs, tokens, options)
    given_k = chunked_objective(
        *inputs[:2],
        precomputed(inputs[2] @ inputs[3].T, tokens.target_ids, k=4),
        tokens,
        options=options,
        chunk_size=2,
        vocab_size=VOCAB,
    )
    torch.testing.assert_close(given_k.token_values, hidden.token_values)
    got, want = (torch.autograd.grad(output.loss, inputs[:2]) for output in (given_k, hidden))
    torch.testing.assert_close(got, want)


def test_invalid_arguments_are_refused() -> None:
    inputs, tokens = make_inputs(num=3), make_tokens(3)
    with pytest.raises(ValueError, match="chunk_size: got 0"):
        chunked_token_divergence(*inputs, chunk_size=0)
    with pytest.raises(ValueError, match="chunk_size: got 0"):
        objective(inputs, tokens, ObjectiveOptions(), chunk_size=0)
    with pytest.raises(ValueError, match="vocab_size: got 12; expected 1 to 11"):
        chunked_token_divergence(*inputs, chunk_size=1, vocab_size=12)
    with pytest.raises(ValueError, match="vocab_size: not given"):
        chunked_token_divergence(inputs[0], inputs[1], inputs[2], inputs[3][:-1], chunk_size=1)
    with pytest.raises(ValueError, match=r"chunked_token_divergence: got .'student_hidden'"):
        chunked_token_divergence(inputs[0][:2], *inputs[1:], chunk_size=1)
    with pytest.raises(ValueError, match=r"chunked_objective: got .'student_hidden'"):
        objective([inputs[0][:2], *inputs[1:]], tokens, ObjectiveOptions())
    with pytest.raises(ValueError, match="looks at tokens"):
        chunked_token_divergence(*inputs, chunk_size=1, support="sampled")
