import pytest

from kernelzoo import zoo


def test_list_matches_shell_patterns():
    assert {"linear_regression", "mlp"} <= set(zoo.list())
    assert zoo.list("ml*") == ["mlp"]
    assert zoo.list("nothing*") == []


def test_unknown_name_names_the_close_ones():
    with pytest.raises(ValueError, match=r"no model is called 'mpl'; did you mean 'mlp'\?"):
        zoo.create("mpl")
    with pytest.raises(ValueError, match=r"there are .*linear_regression, .*mlp"):
        zoo.create("zzz")


def test_unknown_option_names_the_accepted_ones():
    with pytest.raises(
        TypeError, match=r"'in_feature'; did you mean 'in_features'\? it takes .*hidden=\(256, 128\)"
    ):
        zoo.create("mlp", in_feature=3)


def test_missing_options_are_named():
    with pytest.raises(TypeError, match="mlp needs in_features and out_features"):
        zoo.create("mlp")


def test_a_name_is_entered_once():
    with pytest.raises(ValueError, match="the name 'mlp' is taken"):
        zoo.register("mlp")(object)
