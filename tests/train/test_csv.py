"""Reading a CSV file: what is accepted, how the task is inferred, and what each refusal says."""

import numpy as np
import pytest

from kernelzoo.data import InputError, load, split

ROWS = [f"{i}.5,{i * i % 7},{'yes' if i % 3 else 'no'}" for i in range(20)]
HEADER = "a,b,label"


def csv(tmp_path, lines, name="t.csv"):
    path = tmp_path / name
    path.write_bytes("\n".join(lines).encode() if isinstance(lines, list) else lines)
    return str(path)


def replaced(line, row):
    return [HEADER, *ROWS[: line - 2], row, *ROWS[line - 1 :]]


def test_text_target_is_classes(tmp_path):
    table = load(csv(tmp_path, ["﻿" + HEADER, *ROWS, "", " "]), "label")
    assert (table.task, table.classes, table.features) == ("classification", ("no", "yes"), ("a", "b"))
    assert table.x.shape == (20, 2)
    assert table.y.tolist()[:3] == [0, 1, 1]


@pytest.mark.parametrize(
    ("cell", "task"),
    [
        (lambda i: i % 3, "classification"),
        (lambda i: f"{i % 3}.0", "classification"),
        (lambda i: i % 21, "regression"),
        (lambda i: i / 4, "regression"),
    ],
    ids=["whole", "whole-as-float", "21-values", "fractions"],
)
def test_task_is_inferred_by_the_rule(tmp_path, cell, task):
    lines = ["x,y", *(f"{i},{cell(i)}" for i in range(42))]
    path = csv(tmp_path, lines)
    assert load(path, "y").task == task
    assert load(path, "y", task="regression").task == "regression"


def test_equal_numbers_are_one_class(tmp_path):
    lines = ["x,y", *(f"{i},{('1', '1.0', '01', '2')[i % 4]}" for i in range(20))]
    assert load(csv(tmp_path, lines), "y").classes == ("1", "2")


@pytest.mark.parametrize(
    ("lines", "target", "message"),
    [
        ([HEADER, *ROWS], None, "say which column to predict with --target; the columns are a, b, label"),
        ([HEADER, *ROWS], "lable", "no column 'lable'; did you mean 'label'"),
        (replaced(4, "x1,2,yes"), "label", "line 4, column 'a': 'x1' is text"),
        (replaced(5, "1,NaN,yes"), "label", "line 5, column 'b': the value is missing"),
        (replaced(5, "1,,yes"), "label", "line 5, column 'b': the value is missing"),
        (replaced(6, "1,-inf,yes"), "label", "line 6, column 'b': the value is infinite"),
        (replaced(7, "1,2,"), "label", "line 7, column 'label': the target is missing"),
        (replaced(7, "1,2"), "label", "line 7: 2 cells, but the header names 3 columns"),
        ([HEADER, *(row.replace("no", "yes") for row in ROWS)], "label", "a single class"),
        (replaced(4, "1,2,maybe"), "label", "class 'maybe' of label has one row"),
        ([HEADER, *ROWS[:9]], "label", "has 9 rows; training and validation need at least 10"),
        ([HEADER], "label", "has a header but no rows"),
        (b"", "label", "is empty"),
        (ROWS[:0] + ["1,2,3"] * 12, "3", "only numbers where the column names should be"),
        (["a,a,label", *ROWS], "label", "two columns are called 'a'"),
        (["a,,label", *ROWS], "label", "column 2 has no name"),
        (["a;b;label", *(row.replace(",", ";") for row in ROWS)], "label", "separate the columns by commas"),
        (["label", *("yes", "no") * 8], "label", "the target column only"),
        (b"a,b,label\n1,2,caf\xe9\n", "label", "not UTF-8"),
        (["x,y", *(f"{i},7.5" for i in range(20))], "y", "every row has y = 7.5"),
    ],
    ids=lambda v: v[:40] if isinstance(v, str) else None,
)
def test_refusals_name_what_and_where(tmp_path, lines, target, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        load(csv(tmp_path, lines), target)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digit", {}, "no data set is called 'digit'; did you mean digits"),
        ("missing.csv", {"target": "y"}, "there is no such file"),
        ("digits", {"target": "y"}, "has its own target"),
        ("digits", {"task": "clustering"}, "classification or regression"),
        ("breast_cancer", {"task": "regression"}, "regression needs numbers"),
    ],
)
def test_names_are_checked(name, options, message):
    with pytest.raises(InputError, match=message):
        load(name, **options)


def test_split_is_stratified_seeded_and_normalised_by_the_training_rows():
    table = load("breast_cancer")
    data = split(table, 0.25, seed=1)
    assert (len(data.x), len(data.val_x)) == (427, 142)
    assert abs(data.y.double().mean() - data.val_y.double().mean()) < 0.01
    np.testing.assert_allclose(data.x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(data.x.std(0, correction=0), 1, atol=1e-5)
    assert abs(data.val_x.mean()) > 1e-4
    assert (split(table, 0.25, seed=1).x == data.x).all()
    assert (split(table, 0.25, seed=2).x != data.x).any()


def test_constant_columns_stay_finite_and_huge_ones_are_refused(tmp_path):
    lines = ["a,b,label", *(f"3,{i},{i % 2}" for i in range(20))]
    assert split(load(csv(tmp_path, lines), "label"), 0.2, 0).x.isfinite().all()
    lines = ["a,b,label", *(f"3,{i}e300,{i % 2}" for i in range(20))]
    with pytest.raises(InputError, match="column 'b' holds values too large"):
        split(load(csv(tmp_path, lines), "label"), 0.2, 0)


def test_a_part_too_small_for_its_classes_is_refused(tmp_path):
    lines = ["a,label", *(f"{i},{i % 6}" for i in range(24))]
    with pytest.raises(InputError, match=r"each part needs at least 6\. Change --val-fraction"):
        split(load(csv(tmp_path, lines), "label"), 0.1, 0)
