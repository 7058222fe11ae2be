import pytest
import torch

from lowrank_ldu.finetuning.digits.data import SHIFTS, load_digits_split


def rows(pixels: torch.Tensor) -> list[tuple[float, ...]]:
    return [tuple(row) for row in pixels.flatten(1).tolist()]


def test_the_parts_hold_every_digit_once_in_the_documented_shapes_and_range():
    split = load_digits_split(0)
    parts = (split.pretraining, split.training, split.validation, split.test)

    assert [len(part) for part in parts] == [600, 300, 150, 747]
    for part in (*parts, split.upright_test):
        assert part.pixels.shape == (len(part), 1, 8, 8)
        assert part.labels.shape == (len(part),)
        assert part.pixels.dtype == torch.float32
        assert part.labels.dtype == torch.int64
        assert part.pixels.min() == -1.0
        assert part.pixels.max() == 1.0
        assert set(part.labels.tolist()) == set(range(10))


def test_no_image_is_in_two_parts():
    split = load_digits_split(0)
    # The half turn in negative is its own inverse, so all parts can be compared upright.
    undo = SHIFTS["half-turn-negative"]
    parts = [split.pretraining.pixels, *(undo(part.pixels) for part in (split.training, split.validation, split.test))]
    images = [row for part in parts for row in rows(part)]

    assert len(images) == 1797
    # The original set has no two equal images.
    assert len(set(images)) == 1797


def test_the_upright_test_set_holds_the_test_images():
    split = load_digits_split(0)

    assert torch.equal(SHIFTS["half-turn-negative"](split.upright_test.pixels), split.test.pixels)
    assert torch.equal(split.upright_test.labels, split.test.labels)


def test_the_split_depends_on_the_seed_alone():
    first, again, other = load_digits_split(0), load_digits_split(0), load_digits_split(1)

    assert torch.equal(first.test.pixels, again.test.pixels)
    assert torch.equal(first.training.labels, again.training.labels)
    assert not torch.equal(first.test.pixels, other.test.pixels)


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_shift_changes_the_rendering_and_nothing_else(shift):
    split = load_digits_split(3, shift=shift)
    reference = load_digits_split(3)

    assert torch.equal(split.pretraining.pixels, reference.pretraining.pixels)
    assert torch.equal(split.training.labels, reference.training.labels)
    assert torch.equal(split.test.pixels, SHIFTS[shift](split.upright_test.pixels))
    assert not torch.equal(split.test.pixels, split.upright_test.pixels)


def test_an_unknown_shift_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"shift is 'mirror'; accepted: .*half-turn-negative"):
        load_digits_split(shift="mirror")
