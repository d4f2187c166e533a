"""A folder of a learner, of a task or of a fine-tuned network is replaced, unless anything else is in it."""

import pytest

from metalora.learner import MetaLearner, finetune
from support.serving import save_text_learner, sentences, two_labels


def test_each_kind_is_saved_twice_and_never_over_notes(tmp_path):
    learner = MetaLearner.from_pretrained(save_text_learner(tmp_path))
    task = learner.adapt(sentences(12), two_labels(12))
    tuned = finetune(f"hf:{tmp_path / 'network'}", sentences(12), two_labels(12), "full", steps=1)
    for saved in (learner, task, tuned):
        folder = tmp_path / type(saved).__name__
        saved.save_pretrained(folder)
        saved.save_pretrained(folder)
        (folder / "notes.txt").write_text("theirs")
        with pytest.raises(ValueError, match="notes.txt: would be lost"):
            saved.save_pretrained(folder)
