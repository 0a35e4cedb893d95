"""What looks like a secret is masked, and what is none is left."""

from __future__ import annotations

import pytest

from trd_ray.secrets_mask import has_credentials, mask_text, mask_tree


@pytest.mark.parametrize(
    "secret",
    [
        "hf_abcdefghijklmnopqrstuvwxyz", "sk-proj-abcdefgh12345678", "ghp_0123456789abcdefghij",
        "github_pat_11ABCDEFG0123456789", "glpat-abcdefghij0123456789", "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "0123456789abcdef0123456789abcdef01234567",
        "wandb_v1_abcdefghijklmnop",
    ],
)  # fmt: skip
def test_tokens_are_masked_wherever_they_stand(secret):
    for text in (secret, f"tag:{secret}", f"runs/{secret}/x"):
        assert secret not in mask_text(text)
        assert "***" in mask_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "runs/trd_opd_4b", "Qwen/Qwen3-4B-Instruct-2507", "testbed:held_out", "s3://bucket/sets/aime24.jsonl",
        "TRD-OPD-Qwen3-4B-Instruct-2507-lr1e-4-seed3", "sqlite:////home/me/mlflow.db", "all-linear",
        "http://127.0.0.1:5000", "a?b=c", "abcdefghijklmnopqrstuvwxyzabcdefghijklmnop",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text):
    assert mask_text(text) == text
    assert not has_credentials(text)


def test_urls_lose_users_and_the_values_of_queries():
    url = "https://me:hunter2@host:8080/a?sig=abc&x=1#top"
    assert mask_text(url) == "https://***@host:8080/a?sig=***&x=***#top"
    assert has_credentials(url) and has_credentials("s3://key@bucket/x")


def test_a_tree_keeps_its_shape_and_its_numbers():
    tree = {"max_tokens": 64, "api_key": "short", "log": {"token": "", "urls": ["s3://me@b/x", "plain"]}}
    assert mask_tree(tree) == {
        "max_tokens": 64, "api_key": "***", "log": {"token": "", "urls": ["s3://***@b/x", "plain"]},
    }  # fmt: skip
