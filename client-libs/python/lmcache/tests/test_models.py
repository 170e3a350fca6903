"""What decides over the bytes of a key beside the key: `memkv_lmcache.models`."""

import pytest
from conftest import key
from memkv_lmcache.models import Models


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    return tmp_path


def exchange(model) -> None:
    """Puts other weights in the place of a model's."""
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").write_bytes(bytes(999) + b"\1")


def test_weights_that_are_exchanged_under_a_process_are_noticed(model):
    models = Models(now=lambda: 0.0)
    keys = [key(1, model=str(model))]
    assert not models.knows(keys), "nobody has read anything yet"
    models.learn(keys)
    before = models.names(keys)
    assert models.knows(keys)
    exchange(model)
    assert not models.knows(keys)
    models.learn(keys)
    assert models.knows(keys)
    assert models.names(keys) != before


def test_who_is_content_with_what_was_so_lately_has_no_file_looked_at(model):
    now = 0.0
    models = Models(now=lambda: now)
    keys = [key(1, model=str(model))]
    assert not models.knows(keys, age=1.0), "nobody has read anything yet"
    models.learn(keys)
    for _ in range(3):
        now += 1.0
        assert models.knows(keys, age=1.0)
    exchange(model)
    now += 0.5
    assert models.knows(keys, age=1.0), "it was looked at half a second ago"
    assert not models.knows(keys, age=0.25)
    assert not models.knows(keys, age=1.0), "somebody has seen the change"
