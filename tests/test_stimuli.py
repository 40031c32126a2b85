"""The stimulus set and the split that simulation and pretraining share."""

import numpy as np
import pytest

from raybrain.stimuli import (
    emoji_objects,
    emoji_shown,
    emoji_variants,
    family_of,
    held_out_emoji,
    held_out_families,
    pretraining_emoji,
    render,
    render_all,
)


def test_objects_are_one_per_family_and_pictures_of_things():
    objects = emoji_objects()
    assert len(objects) == len({e.family for e in objects}) > 1100
    assert [e.code for e in objects] == sorted(e.code for e in objects)
    assert {e.group for e in objects} == {
        "smileys-emotion",
        "people-body",
        "animals-nature",
        "food-drink",
        "travel-places",
        "activities",
        "objects",
    }
    codes = {e.code for e in objects}
    assert "1F436" in codes
    assert not codes & {"1F1E9-1F1EA", "0031-FE0F-20E3", "1F170", "2757", "1F469-1F3FD"}


def test_a_dog_is_captioned_as_one():
    dog = next(e for e in emoji_objects() if e.code == "1F436")
    assert dog.captions[0] == "dog face, animal mammal"
    assert "dog face" in dog.captions
    assert any("puppy" in caption for caption in dog.captions)
    assert all(len(set(e.captions)) == len(e.captions) >= 2 for e in emoji_objects())


@pytest.mark.parametrize(
    ("code", "family"),
    [
        ("1F469-1F3FD-200D-1F692", "1F9D1-200D-1F692"),
        ("1F9D1-200D-1F692", "1F9D1-200D-1F692"),
        ("1F64B-1F3FB-200D-2642-FE0F", "1F64B"),
        ("1F468-200D-1F9B0", "1F9D1"),
        ("1F469", "1F9D1"),
        ("1F478-1F3FF", "1FAC5"),
        ("1F936", "1F9D1-200D-1F384"),
        ("1F468-200D-1F469-200D-1F467-200D-1F466", "1F46A"),
        ("1F469-200D-2764-FE0F-200D-1F48B-200D-1F468", "1F48F"),
        ("1F9D1-1F3FB-200D-1F91D-200D-1F9D1-1F3FF", "1F46B"),
        ("1F3C3-200D-27A1-FE0F", "1F3C3"),
        ("1F436", "1F436"),
    ],
)
def test_variants_share_a_family(code, family):
    assert family_of(code) == family


def test_nothing_held_out_is_trained_on():
    held_out = held_out_families()
    assert len(held_out) == 103
    trained = pretraining_emoji()
    assert not held_out & {e.family for e in trained}
    assert not held_out & {family_of(e.code) for e in trained}
    names = {e.captions[1] for e in held_out_emoji()}
    assert not names & {caption for e in trained for caption in e.captions[:2]}
    assert len(trained) + sum(e.family in held_out for e in emoji_variants()) == len(
        emoji_variants()
    )


def test_held_out_pictures_come_from_every_group_and_no_series():
    held_out = held_out_emoji()
    assert len(held_out) == 103
    assert {e.group for e in held_out} == {e.group for e in emoji_objects()}
    assert not any("o'clock" in e.captions[0] or "moon" in e.captions[0] for e in held_out)
    # Both would have a near-duplicate in training.
    assert not {"1F431", "1F408"} & {e.code for e in held_out}


def test_the_draw_depends_on_its_seed_alone():
    assert held_out_families(seed=1) == held_out_families(seed=1)
    assert held_out_families(seed=1) != held_out_families(seed=2)
    assert held_out_families(count=10) < held_out_families(count=20)


def test_variants_are_shown_but_no_tones_and_one_picture_of_a_held_out_family():
    shown = emoji_shown()
    codes = {e.code for e in shown}
    assert {"1F468-200D-1F33E", "1F469-200D-1F33E", "1F9D1-200D-1F33E"} <= codes
    assert not any("1F3FD" in code for code in codes)
    tested = [e for e in shown if e.family in held_out_families()]
    assert tested == list(held_out_emoji())
    assert {e.family for e in shown} == {e.family for e in emoji_objects()}


def test_too_many_held_out_families_are_refused():
    with pytest.raises(ValueError, match="ask for at most"):
        held_out_families(count=2000)


def test_render_paints_on_white():
    tomato = next(e for e in emoji_objects() if e.code == "1F345")
    pixels = render(tomato.svg, size=48)
    assert pixels.shape == (48, 48, 3)
    assert pixels.dtype == np.uint8
    assert (pixels[0, 0] == 255).all()
    red, green, blue = pixels[24, 24].astype(int)
    assert red > green + 50  # a tomato
    assert red > blue + 50


def test_render_all_keeps_the_order():
    chosen = emoji_objects()[5:8]
    together = render_all(chosen, size=16)
    assert together.shape == (3, 16, 16, 3)
    for emoji, pixels in zip(chosen, together, strict=True):
        np.testing.assert_array_equal(pixels, render(emoji.svg, size=16))
