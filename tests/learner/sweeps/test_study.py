"""Several processes share the trials of a folder, and a trial whose process has ended is done again."""

import optuna
import pytest
from optuna.pruners import NopPruner
from optuna.trial import TrialState

from metalora.learner.sweeps.space import Choice
from metalora.learner.sweeps.study import FIRST, TrialStudy, best_of, first_of, is_cut_off, pruner_for, remove_cut_line

FIRST_PARAMETERS = {"rank": 8, "lr": 0.002}


def suggest(trial):
    return Choice("lora", trial.suggest_categorical("rank", [2, 4, 8]), "all", trial.suggest_float("lr", 1e-4, 0.1))


def study(folder, most_deaths=None):
    return TrialStudy(folder, suggest, FIRST_PARAMETERS, 3, NopPruner(), most_deaths)


def run(of, value, limit=99):
    """Do a trial that ends with a value; the choice of it."""
    with of.next_trial(limit) as (trial, choice):
        trial.set_user_attr("reason", "")
        of.study.tell(trial, value)
    return choice


def test_the_first_trial_has_the_settings_without_a_search(tmp_path):
    assert run(study(tmp_path), 0.5) == Choice("lora", 8, "all", 0.002)
    assert first_of(study(tmp_path).finished()).number == 0


def test_a_trial_that_runs_is_left_alone_and_counts(tmp_path):
    first, second = study(tmp_path), study(tmp_path)
    with first.next_trial(2), second.next_trial(2) as (trial, _):
        assert trial.number == 1
        with first.next_trial(2) as third:
            assert third is None
        assert second.others_running() == [0, 1]


def test_a_trial_that_was_cut_off_is_done_again_before_others(tmp_path):
    of = study(tmp_path)
    run(of, 0.5)
    with of.next_trial(9) as (_, lost):
        pass  # its process ends here without a word, which releases its lock
    with study(tmp_path).next_trial(9) as (trial, choice):
        assert choice == lost and trial.number == 2
    assert [is_cut_off(trial) for trial in of.study.get_trials()] == [False, True, False]
    assert len(of.trials()) == 2


def test_a_first_trial_that_was_cut_off_stays_the_first(tmp_path):
    of = study(tmp_path)
    with of.next_trial(9):
        pass
    assert run(of, 0.1) == Choice("lora", 8, "all", 0.002)
    assert first_of(of.finished()).user_attrs[FIRST] is True


def test_a_trial_that_is_stopped_has_not_died(tmp_path):
    """Ctrl-C never makes a trial fail, however often; a death counts only once the training has begun."""
    of = study(tmp_path, most_deaths=1)
    for number in range(3):
        with pytest.raises(KeyboardInterrupt), of.next_trial(9) as (trial, choice):
            assert (trial.number, choice) == (number, Choice("lora", 8, "all", 0.002))
            trial.set_user_attr("choice", choice.to_dict())
            raise KeyboardInterrupt
    with of.next_trial(9):
        pass  # dies before its training
    with of.next_trial(9) as (trial, choice):
        trial.set_user_attr("choice", choice.to_dict())
    assert of.missing(9) == 8 and of.begun() == 6
    (failed,) = of.finished()
    assert failed.user_attrs["reason"] == "its process died in each of 1 tries" and failed.user_attrs[FIRST]


def test_choices_depend_on_the_trials_alone(tmp_path):
    """A search that goes on in another process chooses what it would have chosen."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = study(tmp_path / "whole")
    values = [0.3, 0.1, 0.6, 0.2, 0.5, 0.4, 0.7, 0.8]
    expected = [run(whole, value) for value in values]
    assert [run(study(tmp_path / "parts"), value) for value in values] == expected
    assert len({choice.lr for choice in expected}) == len(values)


def test_a_line_that_was_cut_off_is_removed_before_the_next_one(tmp_path):
    of = study(tmp_path)
    run(of, 0.5)
    with (tmp_path / "journal.log").open("a") as file:
        file.write('{"op_code":4,"wor')
    run(study(tmp_path), 0.7)
    assert [trial.value for trial in study(tmp_path).finished()] == [0.5, 0.7]


def test_an_empty_line_alone_is_cut_to_nothing(tmp_path):
    (tmp_path / "journal.log").write_text('{"op')
    remove_cut_line(tmp_path / "journal.log")
    assert (tmp_path / "journal.log").read_text() == ""


def test_the_best_is_the_earliest_of_the_best_complete_ones(tmp_path):
    of = study(tmp_path)
    for value in (0.2, 0.6, 0.6):
        run(of, value)
    with of.next_trial(9) as (trial, _):
        trial.set_user_attr("reason", "NaN")
        of.study.tell(trial, state=TrialState.FAIL)
    assert best_of(of.finished()).number == 1 and best_of([]) is None
    for number in range(3):
        of.kept(number).mkdir(parents=True)
    of.remove_worse()
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["0", "1"]


@pytest.mark.parametrize(("validations", "rung"), [(12, 3), (5, 1), (1, 1)])
def test_trials_may_be_pruned_after_a_quarter_of_the_validations(validations, rung):
    pruned_at = []
    of = optuna.create_study(direction="maximize", pruner=pruner_for(validations, prune=True))
    for value in (0.9, 0.1):
        trial = of.ask()
        for number in range(1, validations + 1):
            trial.report(value, number)
            if trial.should_prune():
                pruned_at.append((value, number))
                break
        of.tell(trial, value)
    assert pruned_at == [(0.1, rung)]


def test_without_pruning_no_trial_is_stopped():
    assert isinstance(pruner_for(5, prune=False), NopPruner)
