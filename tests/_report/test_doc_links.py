"""Links to the documentation, and the HTML representation that has them."""

from sklearn_ec import ExpandClusterRegressor
from sklearn_ec._report import reports
from sklearn_ec._report.doc_links import documentation_among, page_template


def test_html_representation_links_to_the_published_documentation(monkeypatch):
    monkeypatch.setattr(
        ExpandClusterRegressor, "_doc_link_template", page_template("https://docs.test/stable/")
    )
    page = "https://docs.test/stable/generated/sklearn_ec.ExpandClusterRegressor.html"
    assert page in ExpandClusterRegressor()._repr_html_()


def test_html_representation_has_no_link_without_published_documentation(monkeypatch):
    monkeypatch.setattr(ExpandClusterRegressor, "_doc_link_template", page_template(""))
    assert ExpandClusterRegressor()._get_doc_link() == ""
    assert "<a " not in ExpandClusterRegressor()._repr_html_()


def test_html_representation_of_a_fitted_estimator_computes_nothing(tanh_model, monkeypatch):
    def compute(*arguments):
        raise AssertionError("the representation computes standard errors")

    monkeypatch.setattr(reports, "standard_errors", compute)
    assert "ExpandClusterRegressor" in tanh_model._repr_html_()
    learned = {name for name in dir(tanh_model) if name.endswith("_") and name[0] != "_"}
    assert learned <= set(vars(tanh_model))  # no property among them


def test_documentation_url_comes_from_the_metadata():
    urls = ["Source, https://code.test/repo", "Documentation, https://docs.test/stable"]
    assert documentation_among(urls) == "https://docs.test/stable"
    assert documentation_among(urls[:1]) == ""
