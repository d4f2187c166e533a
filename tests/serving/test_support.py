"""The learners of these tests tell their inputs apart, so that a wrong answer is seen."""

from support.serving import pictures, sentences, two_labels


def test_small_learners_adapt(image_learner, text_learner):
    for learner, inputs in ((image_learner, pictures), (text_learner, sentences)):
        task = learner.adapt(inputs(12), two_labels(12))
        assert task.condition is not None
        assert task.score(inputs(10, seed=1), two_labels(10)) == 1
        other = learner.adapt(inputs(12, seed=5), two_labels(12)[::-1])
        assert (task.features(inputs(4)) - other.features(inputs(4))).abs().max() > 1e-3
