"""`chunked_objective`: all terms by hand, against the reference, and what wrong versions give."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.losses.cases import divergence_grid, logits_of, name_of, random_pair
from trd_ray.losses import (
    DivergenceOptions,
    GateOptions,
    HiddenTeacher,
    ObjectiveOptions,
    ObjectiveOutput,
    RewardOptions,
    TokenBatch,
    TopKTeacher,
    chunked_objective,
)
from trd_ray.losses.reference import reference_objective

LN2 = math.log(2)
GATE = GateOptions(threshold=0.8, coef=0.7, top_k=2)
REWARD = RewardOptions(coef=0.5, clip=0.2)


def run(
    student: Tensor,
    teacher: Tensor | TopKTeacher | None,
    tokens: TokenBatch,
    options: ObjectiveOptions,
    *,
    chunk_size: int = 2,
) -> ObjectiveOutput:
    """With the identity as head the hidden states are the logits."""
    vocab = student.shape[1]
    identity = torch.eye(vocab, dtype=student.dtype)
    side = HiddenTeacher(hidden=teacher, head=identity) if isinstance(teacher, Tensor) else teacher
    return chunked_objective(
        student, identity, side, tokens, options=options, chunk_size=chunk_size, vocab_size=vocab
    )


def tokens_for(num: int, *, vocab: int = 7, seed: int = 1) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    return TokenBatch(
        target_ids=torch.randint(vocab, (num,), generator=generator),
        weights=torch.rand(num, generator=generator, dtype=torch.float64) + 0.5,
        rollout_logprobs=-3 * torch.rand(num, generator=generator, dtype=torch.float64),
        advantages=torch.randn(num, generator=generator, dtype=torch.float64),
    )


def one_token(
    student: Tensor, teacher: Tensor | None, *, target: int = 0, rollout: float = 0.0, advantage: float = 0.0
) -> tuple[Tensor, TokenBatch]:
    return student.clone().requires_grad_(), TokenBatch(
        target_ids=torch.tensor([target]),
        weights=torch.ones(1, dtype=torch.float64),
        rollout_logprobs=torch.tensor([rollout], dtype=torch.float64),
        advantages=torch.tensor([advantage], dtype=torch.float64),
    )


def value_and_gradient(
    student: Tensor, teacher: Tensor | None, options: ObjectiveOptions, **token: float
) -> tuple[float, list[float]]:
    leaf, tokens = one_token(student, teacher, **token)  # type: ignore[arg-type]
    output = run(leaf, teacher, tokens, options)
    output.loss.backward()
    assert leaf.grad is not None
    return output.loss.item(), leaf.grad[0].tolist()


def sampled(divergence: str, estimator: str = "k1", **more: float) -> ObjectiveOptions:
    return ObjectiveOptions(
        divergence=DivergenceOptions(divergence=divergence, support="sampled", estimator=estimator, **more)
    )


P, Q = logits_of(0.25, 0.25, 0.5), logits_of(0.5, 0.25, 0.25)


def all_options() -> list[ObjectiveOptions]:
    made = [ObjectiveOptions(divergence=options) for options in divergence_grid(top_k=(3,))]
    for clip, clip_max in ((None, None), ("token", 0.3)):
        clipped = {"clip": clip, "clip_max": clip_max}
        made.append(
            ObjectiveOptions(
                divergence=DivergenceOptions(divergence="forward_kl", support="sampled", **clipped)
            )
        )
        for estimator in ("k1", "k3", "policy_gradient"):
            made.append(
                ObjectiveOptions(
                    divergence=DivergenceOptions(
                        divergence="reverse_kl", support="sampled", estimator=estimator, **clipped
                    )
                )
            )
    nll = DivergenceOptions(divergence="nll")
    made.append(ObjectiveOptions(divergence=nll))
    made.append(ObjectiveOptions(divergence=DivergenceOptions(divergence="none"), reward=REWARD))
    made.append(ObjectiveOptions(divergence=nll, reward=REWARD))
    extras = [{"gate": GATE}, {"reward": REWARD}, {"gate": GATE, "reward": REWARD}]
    for extra, options in itertools.product(
        extras,
        (
            DivergenceOptions(divergence="reverse_kl"),
            DivergenceOptions(clip="token", clip_max=0.3),
            DivergenceOptions(support="top_k", top_k=3, tail="bucket"),
            DivergenceOptions(divergence="reverse_kl", support="sampled"),
        ),
    ):
        made.append(ObjectiveOptions(divergence=options, **extra))  # type: ignore[arg-type]
    return made


def objective_name(options: ObjectiveOptions) -> str:
    parts = [name_of(options.divergence)]
    if options.divergence.support == "sampled":
        parts.append(options.divergence.estimator)
    return "-".join(parts + ["gate"] * (options.gate is not None) + ["reward"] * (options.reward is not None))


OPTIONS = all_options()


@pytest.mark.parametrize("options", OPTIONS, ids=objective_name)
@pytest.mark.parametrize("chunk_size", [1, 3, 50])
def test_agrees_with_the_float64_reference(options: ObjectiveOptions, chunk_size: int) -> None:
    student, teacher = random_pair(num=7, seed=2)
    student.requires_grad_()
    tokens = tokens_for(7)
    output = run(student, teacher if options.needs_teacher else None, tokens, options, chunk_size=chunk_size)
    (gradient,) = torch.autograd.grad(output.loss, student)
    assert tokens.rollout_logprobs is not None and tokens.advantages is not None
    expected, expected_gradient = reference_objective(
        student.detach().numpy(),
        teacher.numpy(),
        tokens.target_ids.tolist(),
        tokens.rollout_logprobs.tolist(),
        tokens.advantages.tolist(),
        options,
    )
    weights = tokens.weights.numpy()
    np.testing.assert_allclose(output.token_values.numpy(), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradient.numpy(), expected_gradient * weights[:, None], rtol=1e-8, atol=1e-12)
    assert output.loss.item() == pytest.approx(float((weights * expected).sum()))
    logprobs = torch.log_softmax(student.detach(), -1).gather(1, tokens.target_ids[:, None])[:, 0]
    torch.testing.assert_close(output.student_logprobs, logprobs)
    assert not output.token_values.requires_grad and not output.student_logprobs.requires_grad


def test_sampled_forward_kl_by_hand() -> None:
    # y = 0: ln q - ln p = ln(1/2) - ln(1/4) = ln 2; d/dz = -dlogp = p - (1, 0, 0)
    value, gradient = value_and_gradient(P, Q, sampled("forward_kl"))
    assert value == pytest.approx(LN2)
    assert gradient == pytest.approx([-0.75, 0.25, 0.5])


def test_k1_and_k3_by_hand() -> None:
    # y = 0, p = 1/4, q = 1/2. k1: ln p - ln q = -ln 2. k3: r = 2: 2 - 1 - ln 2.
    k1, k1_gradient = value_and_gradient(P, Q, sampled("reverse_kl", "k1"))
    k3, k3_gradient = value_and_gradient(P, Q, sampled("reverse_kl", "k3"))
    assert k1 == pytest.approx(-LN2)
    assert k3 == pytest.approx(1 - LN2)
    # d k1 / dz = dlogp = (1, 0, 0) - p; d k3 / d log p = 1 - r = -1, so the opposite direction
    assert k1_gradient == pytest.approx([0.75, -0.25, -0.5])
    assert k3_gradient == pytest.approx([-0.75, 0.25, 0.5])


def test_expected_k1_and_k3_are_the_reverse_kl() -> None:
    # sum_y p_y k(y) = KL(p || q): 1/4 ln(1/2) + 1/4 ln 1 + 1/2 ln 2 = 1/4 ln 2
    for estimator in ("k1", "k3"):
        mean = sum(
            p * value_and_gradient(P, Q, sampled("reverse_kl", estimator), target=y)[0]
            for y, p in enumerate((0.25, 0.25, 0.5))
        )
        assert mean == pytest.approx(0.25 * LN2)


def test_policy_gradient_by_hand_and_the_unclipped_ratio() -> None:
    # y = 0, p = 1/4, q = 1/2, sampled with probability 1/8: A = ln(1/2) - ln(1/8) = ln 4, ratio = 2.
    # min(2 A, 1.2 A) = 1.2 ln 4, no gradient. Unclipped it would be 2 ln 4.
    options = sampled("reverse_kl", "policy_gradient", ratio_clip=0.2)
    value, gradient = value_and_gradient(P, Q, options, rollout=math.log(1 / 8))
    assert value == pytest.approx(-1.2 * math.log(4))
    assert gradient == [0.0, 0.0, 0.0]
    assert value != pytest.approx(-2 * math.log(4), rel=1e-2)
    # Sampled with 1/4: A = ln 2, ratio 1, value -ln 2, d/dz = -A dlogp; A is held constant.
    value, gradient = value_and_gradient(P, Q, options, rollout=math.log(1 / 4))
    assert value == pytest.approx(-LN2)
    assert gradient == pytest.approx([-0.75 * LN2, 0.25 * LN2, 0.5 * LN2])


@pytest.mark.parametrize(
    ("advantage", "rollout", "want", "slope"),
    [
        # p = 1/4. Ratio 2, A = 1: min(2, 1.2). Ratio 2, A = -1: min(-2, -1.2) = -2, unclipped and pulling.
        (1.0, 1 / 8, -1.2, 0.0),
        (-1.0, 1 / 8, 2.0, 2.0),
        # Ratio 1/2, A = 1: min(1/2, 0.8) = 1/2. A = -1: min(-1/2, -0.8) = -0.8, clipped.
        (1.0, 1 / 2, -0.5, -0.5),
        (-1.0, 1 / 2, 0.8, 0.0),
        # Ratio 1: inside.
        (1.0, 1 / 4, -1.0, -1.0),
    ],
)
def test_grpo_by_hand(advantage: float, rollout: float, want: float, slope: float) -> None:
    options = ObjectiveOptions(
        divergence=DivergenceOptions(divergence="none"), reward=RewardOptions(coef=2.0, clip=0.2)
    )
    value, gradient = value_and_gradient(P, None, options, rollout=math.log(rollout), advantage=advantage)
    assert value == pytest.approx(2 * want)
    # slope is d value / d log p: -r A or 0; dlogp = (3/4, -1/4, -1/2)
    assert gradient == pytest.approx([2 * slope * 0.75, -2 * slope * 0.25, -2 * slope * 0.5])


def test_nll_by_hand() -> None:
    # -ln(1/4); d/dz = p - (1, 0, 0)
    value, gradient = value_and_gradient(
        P, None, ObjectiveOptions(divergence=DivergenceOptions(divergence="nll"))
    )
    assert value == pytest.approx(2 * LN2)
    assert gradient == pytest.approx([-0.75, 0.25, 0.5])


def test_gate_by_hand() -> None:
    # H(q) = 1/2 ln 2 + 2 * 1/4 ln 4 = 3/2 ln 2 = 1.0397. Top 1 rescaled is (1): ln(1 / p_0) = ln 4.
    # Reverse KL of the whole: 1/4 ln 2 (above). Gate open: 1/4 ln 2 + 0.5 ln 4 = 5/4 ln 2.
    def options(threshold: float) -> ObjectiveOptions:
        gate = GateOptions(threshold=threshold, coef=0.5, top_k=1)
        return ObjectiveOptions(divergence=DivergenceOptions(divergence="reverse_kl"), gate=gate)

    assert value_and_gradient(P, Q, options(1.03))[0] == pytest.approx(1.25 * LN2)
    assert value_and_gradient(P, Q, options(1.05))[0] == pytest.approx(0.25 * LN2)
    # The gate looks at the teacher: the student of entropy 0.98 would open it at a threshold of 0.9.
    sure = logits_of(0.98, 0.01, 0.01)
    gated = value_and_gradient(P, sure, options(0.9))[0]
    plain = value_and_gradient(P, sure, options(2.0))[0]
    assert gated == pytest.approx(plain)
    # Top 2 of q' = (1/2, 3/8, 1/8) rescaled to (4/7, 3/7), the student not: 4/7 ln(16/7) + 3/7 ln(12/7)
    teacher = logits_of(0.5, 0.375, 0.125)
    two = GateOptions(threshold=0.9, coef=1.0, top_k=2)
    only_gate = ObjectiveOptions(divergence=DivergenceOptions(divergence="none"), gate=two)
    got, gradient = value_and_gradient(P, teacher, only_gate)
    assert got == pytest.approx(4 / 7 * math.log(16 / 7) + 3 / 7 * math.log(12 / 7))
    assert gradient == pytest.approx([0.25 - 4 / 7, 0.25 - 3 / 7, 0.5])


def test_token_clip_bounds_the_divergence_and_not_the_other_terms() -> None:
    # KL = 1/4 ln 2 = 0.173 clipped at 0.1; the reward's -1 (ratio 1, A = 1) is added whole.
    options = ObjectiveOptions(
        divergence=DivergenceOptions(clip="token", clip_max=0.1), reward=RewardOptions(coef=1.0, clip=0.2)
    )
    value, _ = value_and_gradient(P, Q, options, rollout=math.log(1 / 4), advantage=1.0)
    assert value == pytest.approx(0.1 - 1.0)


def test_targets_shifted_by_one_would_give_another_number() -> None:
    student, _ = random_pair(num=6)
    tokens = tokens_for(6)
    nll = ObjectiveOptions(divergence=DivergenceOptions(divergence="nll"))
    shifted = TokenBatch(target_ids=tokens.target_ids.roll(1), weights=tokens.weights)
    right = run(student, None, tokens, nll).loss.item()
    assert right != pytest.approx(run(student, None, shifted, nll).loss.item(), rel=1e-2)
    logprobs = torch.log_softmax(student, -1)[torch.arange(6), tokens.target_ids]
    assert right == pytest.approx(-(tokens.weights * logprobs).sum().item())


def test_mean_of_micro_batch_means_would_give_another_number() -> None:
    student, teacher = random_pair(num=6)
    ids = tokens_for(6).target_ids
    plain = ObjectiveOptions()

    def share(rows: slice, weight: float) -> float:
        weights = torch.full((len(ids[rows]),), weight, dtype=torch.float64)
        tokens = TokenBatch(target_ids=ids[rows], weights=weights)
        return run(student[rows], teacher[rows], tokens, plain).loss.item()

    whole = share(slice(0, 6), 1 / 6)
    assert share(slice(0, 1), 1 / 6) + share(slice(1, 6), 1 / 6) == pytest.approx(whole)
    mean_of_means = (share(slice(0, 1), 1.0) + share(slice(1, 6), 1 / 5)) / 2
    assert whole != pytest.approx(mean_of_means, rel=1e-2)


def precomputed(teacher: Tensor, targets: Tensor, *, k: int) -> TopKTeacher:
    logprobs = torch.log_softmax(teacher, -1)
    top, ids = logprobs.topk(k, dim=-1)
    return TopKTeacher(
        topk_ids=ids, topk_logprobs=top, token_logprobs=logprobs.gather(1, targets[:, None])[:, 0]
    )


@pytest.mark.parametrize(
    "options",
    [o for o in OPTIONS if o.needs_teacher and o.divergence.support != "full" and o.gate is None],
    ids=objective_name,
)
@pytest.mark.parametrize("k", [3, 5, 7])
def test_precomputed_top_k_agrees_with_hidden_states(options: ObjectiveOptions, k: int) -> None:
    """More entries than asked for may come; the first are used."""
    student, teacher = random_pair(num=6, seed=8)
    student.requires_grad_()
    tokens = tokens_for(6)
    hidden = run(student, teacher, tokens, options)
    given = run(student, precomputed(teacher, tokens.target_ids, k=k), tokens, options)
    torch.testing.assert_close(given.token_values, hidden.token_values)
    got, want = (torch.autograd.grad(output.loss, student)[0] for output in (given, hidden))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_precomputed_top_k_that_rounding_brings_above_one_stays_finite(divergence: str) -> None:
    student, _ = random_pair(num=1)
    student.requires_grad_()
    given = TopKTeacher(
        topk_ids=torch.tensor([[0, 1]]),
        topk_logprobs=torch.tensor([[math.log(0.75), math.log(0.25) + 1e-6]]),
        token_logprobs=torch.tensor([math.log(0.75)]),
    )
    options = ObjectiveOptions(
        divergence=DivergenceOptions(divergence=divergence, support="top_k", top_k=2, tail="bucket")
    )
    output = run(student, given, tokens_for(1), options)
    (gradient,) = torch.autograd.grad(output.loss, student)
    assert torch.isfinite(output.loss)
    assert torch.isfinite(gradient).all()


def test_weight_zero_takes_a_token_out_even_if_it_is_infinite() -> None:
    student, teacher = random_pair(num=2, vocab=3)
    student[0, 1] = -math.inf
    student.requires_grad_()
    tokens = TokenBatch(target_ids=torch.tensor([0, 0]), weights=torch.tensor([0.0, 1.0]).double())
    from trd_ray.losses.rows import Buffers, teacher_from_logits, token_terms

    buffers = Buffers(rows=2, vocab=3, dtype=torch.float64, device=student.device)
    rows = teacher_from_logits(
        teacher.clone(), tokens.target_ids, options=ObjectiveOptions(), buffers=buffers
    )
    terms = token_terms(
        student.detach().clone(), rows, tokens, tokens.weights, options=ObjectiveOptions(), buffers=buffers
    )
    assert terms.values[0].item() == math.inf
    assert terms.gradient is not None
    assert torch.isfinite(terms.gradient).all()
    assert not terms.gradient[0].any()


def test_what_is_missing_or_does_not_fit_is_refused() -> None:
    student, teacher = random_pair(num=4)
    tokens = tokens_for(4)
    bare = TokenBatch(target_ids=tokens.target_ids, weights=tokens.weights)
    policy = sampled("reverse_kl", "policy_gradient")
    reward = ObjectiveOptions(divergence=DivergenceOptions(divergence="none"), reward=REWARD)
    given = precomputed(teacher, tokens.target_ids, k=2)
    no_advantages = TokenBatch(
        target_ids=bare.target_ids, weights=bare.weights, rollout_logprobs=tokens.rollout_logprobs
    )
    for side, batch, options, message in (
        (teacher, bare, policy, r"rollout_logprobs: got None"),
        (None, bare, reward, r"rollout_logprobs: got None"),
        (None, no_advantages, reward, r"advantages: got None"),
        (
            None,
            bare,
            ObjectiveOptions(),
            r"teacher: got None; expected one, because divergence is 'forward_kl'",
        ),
        (given, bare, ObjectiveOptions(), r"got TopKTeacher; expected HiddenTeacher"),
        (
            given,
            bare,
            ObjectiveOptions(divergence=DivergenceOptions(support="top_k", top_k=3)),
            r"top_k: got 2 entries a token; expected 3 or more",
        ),
        (teacher, tokens_for(3), ObjectiveOptions(), r"target_ids: got shape \(3,\); expected N = 4"),
    ):
        with pytest.raises(ValueError, match=message):
            run(student, side, batch, options)
