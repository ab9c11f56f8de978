"""An SAE in scikit-learn: the same codes, in pipelines, and what scikit-learn's own checks can ask of it."""

from __future__ import annotations

import numpy as np
import pytest
import splinterp
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks
from splinterp.errors import SplinterpError
from splinterp.sae import SAE, SAEConfig, save_sae, to_dense

D_IN, D_SAE, K = 10, 40, 4


def make_sae(architecture: str = "topk", d_in: int = D_IN) -> SAE:
    g = torch.Generator().manual_seed(0)
    shapes = ((d_in, D_SAE), (D_SAE,), (D_SAE, d_in), (d_in,))
    config = SAEConfig(architecture, d_in, D_SAE, K if architecture == "topk" else None)  # type: ignore[arg-type]
    return SAE(config, *(torch.randn(*s, generator=g) for s in shapes))


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((100, D_IN)).astype(np.float32)


@pytest.mark.parametrize("architecture", ["topk", "standard"])
@pytest.mark.parametrize("fitted", [True, False])
def test_codes_are_the_saes_however_batched(x, architecture, fitted):
    sae = make_sae(architecture)
    transformer = splinterp.SAETransformer(sae, batch_size=33)
    if fitted:
        assert transformer.fit(x) is transformer
    codes = transformer.transform(x)
    assert isinstance(codes, sparse.csr_matrix)
    assert codes.has_canonical_format
    expected = to_dense(sae.encode(torch.from_numpy(x)), D_SAE).numpy()
    assert np.allclose(codes.toarray(), expected, atol=1e-5)
    dense = splinterp.SAETransformer(sae, dense=True).fit_transform(x)
    assert np.allclose(dense, expected, atol=1e-5)
    for given in (codes, dense):
        assert np.allclose(transformer.inverse_transform(given), sae(torch.from_numpy(x)).numpy(), atol=1e-4)
    assert list(transformer.get_feature_names_out()[:2]) == ["saetransformer0", "saetransformer1"]
    assert len(transformer.get_feature_names_out()) == D_SAE


def test_it_works_in_a_search_over_a_pipeline(x, tmp_path):
    save_sae(make_sae(), tmp_path)
    y = x[:, 0] > 0
    pipeline = make_pipeline(splinterp.SAETransformer(tmp_path, encoder="omp"), LogisticRegression(max_iter=500))
    search = GridSearchCV(pipeline, {"saetransformer__k": [1, 4]}, cv=2).fit(x, y)
    assert search.best_score_ > 0.6
    best = search.best_estimator_[0]
    assert (np.diff(best.transform(x).indptr) <= best.k).all()


def test_other_widths_are_refused(x):
    transformer = splinterp.SAETransformer(make_sae())
    with pytest.raises(SplinterpError, match="width 10"):
        transformer.fit(x[:, :4])
    transformer.fit(x)
    with pytest.raises(ValueError, match="expecting 10 features"):
        transformer.transform(x[:, :4])
    with pytest.raises(SplinterpError, match="40 latents"):
        transformer.inverse_transform(x)
    with pytest.raises(ValueError, match="NaN"):
        transformer.transform(np.full((2, D_IN), np.nan, np.float32))


class OfAnyWidth(splinterp.SAETransformer):
    """scikit-learn's checks come with data of many widths."""

    def __init__(self, sae=None, *, dense: bool = True) -> None:
        super().__init__(sae, dense=dense)
        self.__dict__ = {"sae": sae, "dense": dense}

    def fit(self, X, y=None):
        width = np.shape(X)[1] if np.ndim(X) == 2 else D_IN
        full = splinterp.SAETransformer(make_sae(d_in=width), dense=self.dense)
        vars(self).update(
            {name: value for name, value in vars(full.fit(X)).items() if name.endswith("_") or name.startswith("_")}
        )
        return self

    encoder, k, l1, residual, signed, steps, start, batch_size, device = "native", None, None, None, None, None, None, 7, "cpu"


def test_a_clone_is_the_same(x):
    transformer = splinterp.SAETransformer(make_sae(), dense=True, batch_size=7)
    assert np.array_equal(clone(transformer, safe=False).transform(x), transformer.transform(x))


CHECKS = [
    estimator_checks.check_estimators_dtypes,
    estimator_checks.check_fit2d_1sample,
    estimator_checks.check_fit2d_predict1d,
    estimator_checks.check_n_features_in,
    estimator_checks.check_transformer_general,
    estimator_checks.check_estimators_nan_inf,
    estimator_checks.check_get_params_invariance,
    estimator_checks.check_dict_unchanged,
    estimator_checks.check_methods_subset_invariance,
    estimator_checks.check_transformer_get_feature_names_out,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_scikit_learns_own_checks(check):
    check("OfAnyWidth", OfAnyWidth())


def test_tensors_of_any_kind_are_taken(x):
    """A store's rows are bfloat16; a model's may have gradients."""
    sae = make_sae()
    rows = torch.from_numpy(x).bfloat16()
    expected = splinterp.SAETransformer(sae, dense=True).fit_transform(rows.float().numpy())
    for kind in (rows, rows.float().requires_grad_()):
        assert np.array_equal(splinterp.SAETransformer(sae, dense=True).fit_transform(kind), expected)
    with pytest.raises(SplinterpError, match="batch_size must be at least 1"):
        splinterp.SAETransformer(sae, batch_size=0).fit(x)
