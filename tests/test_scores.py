"""Scores of images that hold not one box."""

from yolojax.scores import SCORES, known_scores, shown_score


def test_scores_are_unknown_where_there_is_no_box_to_find():
    figures = dict.fromkeys(SCORES, 0.0) | {"images": 4}
    assert known_scores({**figures, "instances": 0}) == {"images": 4, "instances": 0} | dict.fromkeys(SCORES)
    assert known_scores({**figures, "instances": 1}) == {**figures, "instances": 1}


def test_an_unknown_score_is_a_dash_and_zero_a_number():
    assert (shown_score(None, 3), shown_score(0.0, 3)) == ("-", "0.000")
