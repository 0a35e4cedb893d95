"""The batched sampler gives what the model gives one prompt at a time."""

from __future__ import annotations

import torch

from trd_ray.testbed.model import new_model
from trd_ray.testbed.sampling import SamplerSettings, sample
from trd_ray.testbed.tokenizer import build_tokenizer
from trd_ray.testbed.training import make_batch, response_loss

TOKENIZER = build_tokenizer()
USERS = ["Problem: 1+2", "Problem: 10+20-3\nSolve step by step.", "x"]


def test_greedy_batch_equals_generate_one_by_one() -> None:
    model = new_model(seed=1).eval()
    samples = sample(model, TOKENIZER, USERS, SamplerSettings(temperature=0.0, max_new_tokens=12))
    for one in samples:
        ids = torch.tensor([one.prompt_ids])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12
        )
        assert one.token_ids == tuple(expected[0, ids.shape[1] :].tolist())


def test_sampling_is_deterministic() -> None:
    model = new_model(seed=1).eval()
    settings = SamplerSettings(seed=3, max_new_tokens=8, batch_size=2)
    first = sample(model, TOKENIZER, USERS, settings)
    assert first == sample(model, TOKENIZER, USERS, settings)
    assert [s.text for s in first] != [
        s.text for s in sample(model, TOKENIZER, USERS, SamplerSettings(seed=4, max_new_tokens=8))
    ]


def test_rows_that_end_are_taken_out_and_keep_their_end_token() -> None:
    model = new_model(seed=1).eval()
    with torch.no_grad():  # make the end token likely
        model.model.embed_tokens.weight[model.config.eos_token_id] *= 8
    samples = sample(model, TOKENIZER, USERS * 8, SamplerSettings(max_new_tokens=40))
    ends = [s.token_ids.count(model.config.eos_token_id) for s in samples]
    assert any(ends)
    for one in samples:
        assert model.config.eos_token_id not in one.token_ids[:-1]
        assert len(one.token_ids) == 40 or one.token_ids[-1] == model.config.eos_token_id


def test_response_loss_is_over_responses_only_and_ignores_padding() -> None:
    model = new_model(seed=1).eval()
    inputs, targets = make_batch([[5, 6, 7], [8]], [[9, 10], [11]], 0)
    alone = [make_batch([p], [r], 0) for p, r in (([5, 6, 7], [9, 10]), ([8], [11]))]
    together = response_loss(model, inputs, targets)
    apart = sum(response_loss(model, i, t) for i, t in alone)
    torch.testing.assert_close(together, apart)
    logits = model(torch.tensor([[5, 6, 7, 9]])).logits[0].log_softmax(-1)
    torch.testing.assert_close(response_loss(model, *alone[0]), -(logits[2, 9] + logits[3, 10]))
