"""A step that does not fit: the settings that the message names do, by the compiled program's own figures."""

import re

import jax
import jax.numpy as jnp
import pytest
from helpers import tiny

from jvdm.core.errors import UserError
from jvdm.core.records import Batch
from jvdm.training import memory
from jvdm.training.step import init_state


def compile_with(monkeypatch, c, have, *, resumed=False):
    monkeypatch.setattr(memory, "device_memory", lambda: have)
    model, mesh = tiny.model(c), tiny.mesh()
    state = jax.eval_shape(lambda key: init_state(model, c, key), jax.random.key(0))
    images = jnp.zeros((1, c.training.batch_size, *tiny.SHAPE), jnp.uint8)
    return memory.compile_step(model, c, mesh, state, jax.eval_shape(lambda: Batch(images)), resumed=resumed)


def needed(compiled):
    found = compiled.memory_analysis()
    return found.argument_size_in_bytes + found.temp_size_in_bytes


def refused(monkeypatch, c, have, **options):
    with pytest.raises(UserError) as error:
        compile_with(monkeypatch, c, have, **options)
    message = str(error.value)
    assert re.match(r"a training step needs \d+\.\d\d GB per device, and \S+ has \d+\.\d\d GB: ", message)
    return message


@pytest.mark.long
@pytest.mark.parametrize(("share", "resumed"), [(0.9, False), (0.4, False), (0.4, True)])
def test_what_is_advised_fits(monkeypatch, share, resumed):
    c = tiny.config().unlock()
    c.network.num_blocks, c.network.remat = 8, "none"
    have = int(share * needed(compile_with(monkeypatch, c, 1 << 40)))
    message = refused(monkeypatch, c, have, resumed=resumed)
    advised = re.findall(r"--config\.(\w+)\.(\w+)=(\w+)", message)
    assert advised, message
    for section, name, value in advised:
        c[section][name] = type(c[section][name])(value)
    assert needed(compile_with(monkeypatch, c, have)) <= have


@pytest.mark.long
def test_nothing_fits(monkeypatch):
    message = refused(monkeypatch, tiny.config(), 1000)
    assert "use more devices, a smaller config.training.batch_size or a smaller network (the least" in message
    assert "config.network.name=ddpm_unet" in message
    resumed = refused(monkeypatch, tiny.light_config(), 1000, resumed=True)
    assert ": use more devices (the least that was tried needs" in resumed


def test_a_step_that_fits(monkeypatch, caplog):
    with caplog.at_level("INFO", logger="jvdm"):
        compile_with(monkeypatch, tiny.light_config(), 1 << 40)
    assert "one step needs 0.00 GB per device" in caplog.text
