import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2gray

from raybrain.evaluation.pixels import grey, pixcorr, ssim


@pytest.fixture
def pair():
    rng = np.random.default_rng(1)
    a = gaussian_filter(rng.random((4, 48, 48, 3)), (0, 2, 2, 0))
    b = np.clip(a + 0.05 * rng.normal(size=a.shape), 0, 1)
    a[:, :12] = b[:, :12] = 1.0  # a flat border, as around an object on white
    return a, b


def test_pixcorr_equals_numpy(pair):
    a, b = pair
    wanted = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(pixcorr(seen=a, reconstructed=b), wanted, atol=1e-6)


def test_grey_equals_scikit_image(pair):
    np.testing.assert_allclose(grey(pair[0]), rgb2gray(pair[0]), atol=1e-12)


def test_ssim_equals_the_formula(pair):
    a, b = grey(pair[0]), grey(pair[1])
    found = ssim(seen=a, reconstructed=b)
    for x, y, value in zip(a, b, found, strict=True):
        blur = lambda image: gaussian_filter(image, 1.5, truncate=3.5)  # noqa: E731
        ux, uy = blur(x), blur(y)
        vx, vy, vxy = blur(x * x) - ux**2, blur(y * y) - uy**2, blur(x * y) - ux * uy
        c1, c2 = 0.01**2, 0.03**2
        quality = (2 * ux * uy + c1) * (2 * vxy + c2)
        quality /= (ux**2 + uy**2 + c1) * (vx + vy + c2)
        assert value == pytest.approx(quality[5:-5, 5:-5].mean(), abs=1e-9)


def test_ssim_is_two_dimensional_on_grey(pair):
    # Trap: with multichannel=True on a grey image, scikit-image <= 0.17 took the columns for
    # channels and computed a one-dimensional SSIM, inflated by .07 to .12.
    from skimage.metrics import structural_similarity

    a, b = grey(pair[0]), grey(pair[1])
    columns = [
        structural_similarity(
            x, y, channel_axis=-1, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, data_range=1.0,
        )
        for x, y in zip(a, b, strict=True)
    ]  # fmt: skip
    assert np.mean(columns) - ssim(seen=a, reconstructed=b).mean() > 0.01


def test_a_perfect_reconstruction_scores_one(pair):
    a = pair[0]
    np.testing.assert_allclose(pixcorr(seen=a, reconstructed=a), 1.0, atol=1e-6)
    np.testing.assert_allclose(ssim(seen=grey(a), reconstructed=grey(a)), 1.0)


def test_a_flat_image_correlates_with_nothing(pair):
    a = pair[0]
    np.testing.assert_array_equal(pixcorr(seen=a, reconstructed=np.full_like(a, 0.4)), 0.0)
