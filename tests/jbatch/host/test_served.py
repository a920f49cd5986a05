"""The virtual token counter."""

from jbatch.host.served import Served


def test_who_comes_back_is_lifted_to_the_least_served():
    served = Served()
    for user in ("a", "b"):
        served.come(user)
    served.charge("a", 70)
    served.charge("b", 40)
    served.come("c")
    assert served.tokens == {"a": 70, "b": 40, "c": 40}
    served.go("b")
    served.charge("c", 5)
    served.charge("c", 5)
    served.come("b")  # its 40 were from before
    assert served.tokens == {"a": 70, "b": 50, "c": 50}


def test_who_has_more_keeps_it():
    served = Served()
    served.come("a")
    served.charge("a", 9)
    served.go("a")
    served.come("b")
    assert served.tokens == {"a": 9, "b": 0}  # nobody has requests
    served.come("a")
    assert served.tokens == {"a": 9, "b": 0}


def test_nothing_is_counted_until_a_user_is_named():
    served = Served()
    served.come(None)
    assert not served.named
    served.come("a")
    assert served.named
