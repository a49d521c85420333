"""Tests of ``gauss_flows.codec``."""

import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import pytest
from sklearn.datasets import load_digits

import gauss_flows as gf
from gauss_flows import codec

pytestmark = pytest.mark.usefixtures("quick_compilation")

DIGITS = load_digits().images.astype(np.uint8)


def model_of(key=None, **options):
    """A model of the middle of the digits, 4 × 4 pixels."""
    layer = gf.MaskedAutoregressive(
        jr.key(0) if key is None else key, (4, 4), bijector=gf.Affine(),
        order=gf.masks.interlaced(4, 4), nn_width=16, **options,
    )  # fmt: skip
    return gf.DiscreteAutoregressive(layer, 17, images=DIGITS[:, 2:6, 2:6])


IMAGES = DIGITS[:70, 2:6, 2:6]  # more than a batch, and no multiple of it


@pytest.fixture(scope="module")
def written():
    model = model_of()
    return model, gf.compress(model, IMAGES)


def promised(model, images):
    """In bytes."""
    return -float(np.asarray(model.log_prob(images), float).sum()) / np.log(2) / 8


def test_images_come_back_bit_for_bit(written):
    model, data = written
    images = gf.decompress(model, data)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, IMAGES)
    one = gf.compress(model, IMAGES[:1].astype(float))
    np.testing.assert_array_equal(gf.decompress(model, one), IMAGES[:1])


def test_the_file_has_the_promised_size():
    training = gf.FitOptions(steps=100, batch_size=64, progress=False)
    layer = gf.MaskedAutoregressive(
        jr.key(0), (8, 8), bijector=gf.Affine(), order=gf.masks.interlaced(8, 8), nn_width=64
    )
    model = gf.DiscreteAutoregressive(layer, 17, images=DIGITS[257:])
    model = gf.fit(jr.key(1), model, DIGITS[257:], options=training).flow
    images = DIGITS[:250]
    data = gf.compress(model, images)
    np.testing.assert_array_equal(gf.decompress(model, data), images)
    bytes_promised = promised(model, images)
    assert bytes_promised < 0.5 * images.size  # trained
    # Rounding of the frequencies, 17 levels of 2^-21 on average; the coder's own is below 2^-16.
    assert abs(len(data) - codec.OVERHEAD - bytes_promised) <= 1 + 5e-5 * bytes_promised
    assert len(data) - codec.OVERHEAD <= 1.001 * bytes_promised


def test_the_coder_spends_the_information_of_each_symbol():
    rng = np.random.default_rng(0)
    total = 1 << codec._Coder.BITS
    lengths = np.array([1, 20, 1000, 50_000])
    cdf = [0, *np.cumsum(lengths).tolist(), total]
    chances = np.diff(cdf) / total
    symbols = rng.choice(5, size=5000, p=chances)
    symbols[:3] = 0  # the rarest
    first = 1 << 32 | 12345
    coder = codec._Coder(first, [])
    for symbol in symbols[::-1]:
        coder.push(cdf[symbol], cdf[symbol + 1])
        assert coder.state < 1 << codec._Coder.LEAST + codec._Coder.WORD
    bits = 32 * len(coder.words) + coder.state.bit_length()
    information = -np.log2(chances[symbols]).sum() + np.log2(first)
    assert abs(bits - information) <= 1 + 5000 * 2**-15
    assert [coder.pop(cdf) for _ in symbols] == symbols.tolist()
    assert coder.state == first
    assert coder.words == []


def test_every_flipped_bit_is_refused(written):
    model, data = written
    with pytest.raises(ValueError, match="`data` must be whole; their checksum differs"):
        gf.decompress(model, data[:-1])
    for place in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError, match="`data` must be"):
            gf.decompress(model, damaged)


def test_other_data_are_refused(written):
    model, data = written
    for other in (b"", b"gfi", b"\x89PNG" * 20, data[1:]):
        with pytest.raises(ValueError, match=r"`data` must be bytes that gf\.compress returned; these"):
            gf.decompress(model, other)
    with pytest.raises(ValueError, match=r"`data` must be bytes that gf\.compress returned; got str"):
        gf.decompress(model, "gfi")
    newer = bytearray(data[:-4])
    newer[3] = 2
    with pytest.raises(ValueError, match="`data` must be of format version 1; got version 2"):
        gf.decompress(model, bytes(newer) + codec._CHECKSUM.pack(codec.zlib.crc32(newer)))


def test_the_file_of_another_model_is_refused(written):
    model, data = written
    bias = lambda m: m.layer.conditioner.layers[0].bias
    nearly = eqx.tree_at(bias, model, bias(model).at[0].add(1e-6))
    smooth = eqx.tree_at(lambda m: m.layer.conditioner.activation, model, jax.nn.silu)
    uncounted = gf.DiscreteAutoregressive(model.layer, 17)
    for other in (model_of(jr.key(1)), nearly, smooth, uncounted):
        with pytest.raises(ValueError, match="`model` must be the model that the images were written with"):
            gf.decompress(other, data)


def test_models_without_exact_probabilities_are_refused(written):
    flow = gf.Transformed(gf.standard_normal(2), gf.ActNorm((2,)))
    for model in (gf.Dequantize(flow, 17), flow):
        with pytest.raises(ValueError, match=r"gives no more than a bound .*can be written\. Got"):
            gf.compress(model, np.zeros((1, 2), int))
        with pytest.raises(ValueError, match="gives no more than a bound"):
            gf.decompress(model, written[1])


def test_models_with_broken_parameters_are_refused(written):
    bias = lambda m: m.layer.conditioner.layers[0].bias
    model = eqx.tree_at(bias, written[0], bias(written[0]).at[3].set(np.nan))
    with pytest.raises(ValueError, match="`model` must give each level a positive probability"):
        gf.compress(model, IMAGES)
    with pytest.raises(ValueError, match="`model` must have finite parameters"):
        model.sample(jr.key(0), 3)
    assert np.isnan(model.log_prob(IMAGES[:3])).all()


def test_images_that_do_not_fit_are_refused(written):
    model = written[0]
    for images, message in (
        (IMAGES[:0], r"must have shape \(n, 4, 4\) with n ≥ 1; got \(0, 4, 4\)"),
        (IMAGES[0], "must have shape"),
        (IMAGES + 1, "must hold whole numbers from 0 to 16"),
        (np.full((1, 4, 4), np.nan), "must hold whole numbers from 0 to 16.*got nan"),
    ):
        with pytest.raises(ValueError, match=f"`images` {message}"):
            gf.compress(model, images)


def test_a_file_is_read_with_its_own_conditions_only():
    model = model_of(cond_dim=1)
    condition = np.linspace(-1, 1, 70)[:, None]
    data = gf.compress(model, IMAGES, condition)
    np.testing.assert_array_equal(gf.decompress(model, data, condition), IMAGES)
    with pytest.raises(ValueError, match="with the same conditions"):
        gf.decompress(model, data, -condition)
    with pytest.raises(
        ValueError, match=r"`condition` must have shape \(70, 1\), one row per image; got None"
    ):
        gf.decompress(model, data)


def test_probabilities_that_differ_in_a_last_bit_are_noticed(written, monkeypatch):
    model, data = written
    steps = codec._steps

    def differ(*args):
        for step in steps(*args):
            step.cdf[:, :, 5] += 1
            yield step

    monkeypatch.setattr(codec, "_steps", differ)
    with pytest.raises(ValueError, match="`data` cannot be decoded here, although they are whole"):
        gf.decompress(model, data)


READER = """
import sys, numpy as np, test_codec, gauss_flows as gf
model = gf.load(sys.argv[1] + "/model.npz", test_codec.model_of())
with open(sys.argv[1] + "/images.gfi", "rb") as file:
    np.testing.assert_array_equal(gf.decompress(model, file.read()), test_codec.IMAGES)
print("the same")
"""


@pytest.mark.parametrize(
    "flags", ["", pytest.param("--xla_cpu_max_isa=SSE4_2", marks=pytest.mark.nightly)], ids=["own", "SSE4.2"]
)
def test_another_process_reads_the_file_under_another_instruction_set_too(flags, written, tmp_path):
    """Or it says that it cannot; in double precision that would be a rare accident."""
    model, data = written
    gf.save(tmp_path / "model.npz", model)
    (tmp_path / "images.gfi").write_bytes(data)
    here = Path(__file__).parent
    environment = os.environ | {
        "XLA_FLAGS": flags,
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)]),
    }
    command = [sys.executable, "-c", READER, str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "the same" or (flags and "cannot be decoded here" in run.stderr), run.stderr


def test_files_are_not_written_under_jit(written):
    model, data = written
    for call in (lambda m: gf.compress(m, IMAGES), lambda m: gf.decompress(m, data)):
        with pytest.raises(ValueError, match="`model` must be concrete, since a file holds numbers"):
            eqx.filter_jit(call)(model)
    conditional = model_of(cond_dim=1)
    with pytest.raises(ValueError, match="`condition` must be concrete, since a file holds numbers"):
        jax.jit(lambda condition: gf.compress(conditional, IMAGES, condition))(np.zeros((len(IMAGES), 1)))
