"""Objects by dotted name, as strategies and ClientApps of other packages come in."""

import json
from fractions import Fraction

import pytest

from fedscale_local.errors import ConfigError
from fedscale_local.instantiate import instantiate, locate


def test_submodules_are_imported_and_attributes_followed():
    assert locate("json.JSONDecoder.decode") is json.JSONDecoder.decode
    assert locate("xml.etree.ElementTree.Element").__name__ == "Element"  # xml imports no etree by itself
    assert locate("fractions:Fraction") is Fraction  # as Flower writes its apps
    assert locate("os.path") is __import__("os").path


def test_hydras_own_words_are_not_needed_for_a_strategy_that_wraps_another():
    kwargs = {
        "strategy": {"_target_": "flwr.serverapp.strategy.FedAvg", "fraction_train": 0.25},
        "noise_multiplier": 1.0,
        "clipping_norm": 0.5,
        "num_sampled_clients": 10,
    }
    target = "flwr.serverapp.strategy.DifferentialPrivacyServerSideFixedClipping"
    wrapped = instantiate(target, kwargs, "strategy")
    assert wrapped.strategy.fraction_train == 0.25 and wrapped.clipping_norm == 0.5
    assert kwargs["strategy"]["_target_"]  # the configuration stays as it was


def test_an_error_names_the_key_of_the_nested_target():
    with pytest.raises(ConfigError) as raised:
        instantiate("builtins.dict", {"inner": [{"_target_": "fractions.Fracture"}]}, "strategy")
    assert str(raised.value) == (
        "strategy.inner[0]._target_=fractions.Fracture: "
        "the module fractions has no Fracture; correct the name."
    )


@pytest.mark.parametrize(
    ("dotted", "told"),
    [
        ("fractions.Fraction.gone", "the object fractions.Fraction has no gone"),
        ("json.gone.Name", "the module json has no gone"),
        ("fractions..Fraction", "expected the dotted name"),
        ("fractions", "expected the dotted name"),
        ("no_such_package.Name", "there is no module no_such_package"),
    ],
)
def test_a_wrong_name_is_told_where_it_ends(dotted, told):
    with pytest.raises(ConfigError) as raised:
        locate(dotted)
    assert told in str(raised.value)


def test_errors_of_the_project_pass_through_unwrapped():
    with pytest.raises(ConfigError) as raised:
        instantiate("fedscale_local.errors.ConfigError", {"where": "a"}, "model")
    assert "missing a required argument: 'expectation'" in str(raised.value)
    wanted = ConfigError("a=1", "b", "c")

    def refuse():
        raise wanted

    globals()["refuse"] = refuse
    with pytest.raises(ConfigError) as raised:
        instantiate(f"{__name__}.refuse", {}, "model")
    assert raised.value is wanted
