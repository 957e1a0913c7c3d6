import pytest

from segscse.attention.spec import read_spec
from segscse.errors import InputError


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("scse", {}),
        ("scse:aggregation=max:reduction=4", {"aggregation": "max", "reduction": 4}),
        ("scse:bias=False:hidden_act=none", {"bias": False, "hidden_act": None}),
        ("scse:kernel_size=7x7x3", {"kernel_size": [7, 7, 3]}),
        ("scse:reduction=-1:bias=true", {"reduction": -1, "bias": True}),
    ],
)
def test_a_name_and_its_options(text, options):
    assert read_spec(text) == ("scse", options)


@pytest.mark.parametrize("text", ["scse:", "scse:max", "scse:aggregation=", "scse:=max", "scse:bias=true:bias=false"])
def test_what_is_no_option_is_refused(text):
    with pytest.raises(InputError, match="NAME:OPTION=VALUE"):
        read_spec(text)
