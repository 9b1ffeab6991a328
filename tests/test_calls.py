"""One grammar for NAME(key=value): what it takes, and what it says of anything else."""

import pytest

from wardrop.calls import Call, CallError, parse_call, split_outside


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("toll", Call("toll")),
        (" toll ( ) ", Call("toll")),
        ("toll(e2e=2, goodput = 0.5)", Call("toll", {"e2e": 2, "goodput": 0.5})),
        ("p(a=.5,b=1e3,c=-2,d=+3)", Call("p", {"a": 0.5, "b": 1000.0, "c": -2, "d": 3.0})),
        ("p(a=true,b=null,c=beside)", Call("p", {"a": True, "b": None, "c": "beside"})),
        ('p(a="x, y",b=[0.5,1])', Call("p", {"a": "x, y", "b": [0.5, 1]})),
        ("p(moves=kappa|objective,)", Call("p", {"moves": "kappa|objective"})),
    ],
)
def test_a_call_is_read(text: str, call: Call) -> None:
    assert parse_call(text) == call
    assert parse_call(str(call)) == call


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "got '', expected NAME"),
        ("Toll", "expected NAME"),
        ("toll(e2e=1", "expected NAME"),
        ("toll)", "expected NAME"),
        ("toll(e2e)", "got 'e2e' in 'toll\\(e2e\\)', expected NAME"),
        ("toll(e2e=)", "got the value ''"),
        ("toll(=1)", "expected NAME"),
        ("toll(e2e=1,e2e=2)", "got 'e2e' twice"),
        ("toll(e2e=NaN)", "got the value 'NaN'"),
        ("toll(e2e=Infinity)", "got the value 'Infinity'"),
        ("toll(e2e=1e999)", "below 2\\^64"),
        ("toll(e2e=1 2)", "got the value '1 2'"),
        ("toll(e2e={})", "got the value '{}'"),
        ("toll(" + ",".join(f"k{i}=1" for i in range(33)) + ")", "at most 32"),
        ("toll(a=" + "[" * 100_000 + ")", "got"),
    ],
)
def test_anything_else_is_refused_with_what_was_expected(text: str, says: str) -> None:
    with pytest.raises(CallError, match=says):
        parse_call(text)


def test_only_separators_outside_of_brackets_split() -> None:
    assert split_outside("a(x=1,y=[2,3]),b, ", ",") == ["a(x=1,y=[2,3])", "b"]
    assert split_outside('a(x="+")+b', "+") == ['a(x="+")', "b"]


def test_numbers_are_numbers() -> None:
    assert parse_call("p(a=1,b=2.5)").numbers() == {"a": 1, "b": 2.5}
    with pytest.raises(CallError, match="p: got a=True, expected a=number"):
        parse_call("p(a=true)").numbers()
